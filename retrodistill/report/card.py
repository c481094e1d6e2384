"""Model cards: sentence-transformers' own, and how the student was distilled, what it keeps and what it costs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from retrodistill.core.files import atomic_file
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.evaluation.results import Results
from retrodistill.report import card_forms, card_measures, card_parts, card_usage
from retrodistill.report.card_facts import Facts

CARD = "README.md"
_TAGS = ("retrodistill", "knowledge-distillation", "information-retrieval")
_MEASURES = {
    "nDCG@10": "ndcg10",
    "MRR@10": "mrr10",
    "MAP@1000": "map1000",
    "Recall@10": "recall10",
    "Recall@100": "recall100",
    "Recall@1000": "recall1000",
}


def write_card(model: Any, facts: Facts, folder: str | os.PathLike[str], results: Results | None = None) -> None:
    """Write README.md into a student's folder, whole or not at all; no digest of a student reads that file.

    Args:
        model: The student's sentence-transformers model, of any kind.
        facts: How it came to be.
        folder: Where it lies.
        results: Where it was measured; without them the card says that it was not.

    Raises:
        UserError: The folder is not writable.
    """
    with atomic_file(Path(folder) / CARD) as temporary:
        temporary.write_text(card_text(model, facts, results), encoding="utf-8", newline="\n")


def card_text(model: Any, facts: Facts, results: Results | None = None) -> str:
    """The card: front matter that the Hugging Face hub reads, then Markdown.

    Args:
        model: The student's sentence-transformers model.
        facts: How it came to be.
        results: Of a job that has a system of the student's name.
    """
    front, parts = _own_card(model, facts)
    usage = [_usage(model, facts, parts["Usage"]), card_usage.package_usage(facts)]
    if facts.turns is not None:
        usage.insert(0, card_usage.conversation(facts.turns))
    usage += card_forms.usage(model, facts, results)
    told = "\n\n".join(usage)
    sections = [
        f"# {card_parts.title(facts)}",
        card_parts.opening(facts, results),
        f"## Usage\n\n{told}",
        f"## Measured quality\n\n{card_measures.quality(facts, results)}",
        f"## Cost\n\n{card_measures.cost(facts, results)}",
        f"## Teacher\n\n{card_parts.teacher(facts)}",
        f"## Training\n\n{card_parts.training(facts)}",
        f"## Model Details\n\n{parts['Model Details']}",
        f"## Provenance\n\n{card_parts.provenance(facts, results)}",
        f"## Limits\n\n{card_parts.limits(facts, results)}",
        f"## Citation\n\n{card_parts.citation(facts)}",
    ]
    return f"---\n{_front_matter(front, facts, results)}---\n\n" + "\n\n".join(sections) + "\n"


def _usage(model: Any, facts: Facts, own: str) -> str:
    """sentence-transformers' own example, but for two encoders, and for sparse ones: it knows no queries of theirs."""
    if facts.documents_by is not None:
        return card_usage.asymmetric_usage(model, facts)
    if facts.kind == "sparse":
        return card_usage.sparse_usage(model, facts)
    holder = f'("{card_usage.placeholder(model)}"'
    return own.replace(f"{holder})", f"{holder}, trust_remote_code=True)") if facts.own_modules else own


def _own_card(model: Any, facts: Facts) -> tuple[dict[str, Any], dict[str, str]]:
    """The front matter and the sections of the card that sentence-transformers writes, by heading; no network."""
    import yaml
    from huggingface_hub import ModelCard

    # Data of our own: what the user's model holds stays as it is, and no text is encoded for the example.
    data = type(model.model_card_data)(
        local_files_only=True, generate_widget_examples=False, model_name=card_parts.title(facts)
    )
    data.add_tags(list(_TAGS))
    data.base_model = facts.base_model
    data.ir_model = True  # queries and documents are encoded by their own calls
    data.register_model(model)
    with quiet_libraries():
        content = ModelCard.from_template(card_data=data, template_path=str(data.template_path)).content
    _, front, text = content.split("---\n", 2)
    return yaml.safe_load(front), _sections(re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL))


def _sections(text: str) -> dict[str, str]:
    """What stands below each heading of the second level; a line in a block of code is no heading."""
    found: dict[str, list[str]] = {}
    heading, fenced = "", False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            heading = line.removeprefix("## ").strip()
        else:
            found.setdefault(heading, []).append(line.rstrip())
    return {name: re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() for name, lines in found.items()}


def _front_matter(front: dict[str, Any], facts: Facts, results: Results | None) -> str:
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump

    if results is not None:
        system = results.system(facts.name)
        measured = [
            EvalResult(
                task_type="information-retrieval",
                task_name="Information Retrieval",
                dataset_type=results.collection,
                dataset_name=results.collection,
                dataset_split=results.split,
                metric_type=name.lower(),
                metric_name=name,
                metric_value=round(value, 6),
            )
            for name, value in ((name, getattr(system, field)) for name, field in _MEASURES.items())
            if value is not None
        ]
        if measured:
            front = {**front, "model-index": eval_results_to_model_index(card_parts.title(facts), measured)}
    return yaml_dump(front, sort_keys=False)
