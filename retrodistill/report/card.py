"""Model cards: sentence-transformers' own, and how the student was distilled, what it keeps and what it costs.

The text is in templates/card.md.j2, with one partial per kind of student in templates/card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from pydantic import BaseModel

from retrodistill.core.files import atomic_file
from retrodistill.core.paths import path_of
from retrodistill.core.published import without_local_folders
from retrodistill.data.conversations import SEPARATOR
from retrodistill.encoders.length_adaptive import length_adaptive_settings
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.modules import KEEP, ROUTE, exits_of
from retrodistill.evaluation.results import REWRITES, Results, SystemResult
from retrodistill.objectives.registry import OBJECTIVES
from retrodistill.report import columns, text
from retrodistill.report.columns import CARD, Column
from retrodistill.report.headline import comparison_of
from retrodistill.students.registry import get_kind
from retrodistill.students.vdr import vocabulary_pooling
from retrodistill.training.settings import StageSettings

YOURS = "FOLDER/OF/"  # in examples, stands for a folder on the reader's machine
_PUBLIC = ("beir/", "ir_datasets:")


@dataclass(frozen=True)
class Teaching:
    """The teacher of a recipe."""

    members: Sequence[tuple[str, float]]  # ``(kind:name, weight)`` of each
    fusion: str | None = None  # how several are fused; None for one
    fingerprint: str = ""  # of all of them together
    recorded: int | None = None  # number of pairs in a recorded run; None for a teacher that computes scores

    @property
    def text(self) -> str:
        """``bm25`` or ``0.3 bm25 + 0.7 dense:NAME``."""
        if len(self.members) == 1:
            return self.members[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.members)


@dataclass(frozen=True)
class Turns:
    """Conversations that replace a collection's queries."""

    path: str | None  # the file of turns, without local folders; None if they were made by chaining queries
    history: int | None = None  # maximum number of earlier turns after an utterance; None for all
    responses: bool = True  # whether answers are part of the history


@dataclass(frozen=True)
class Facts:
    """How a student was made."""

    name: str  # the system's, in results.json
    kind: str  # name of its `Kind`, e.g. ``static``
    start: str  # its base model, ``kind:NAME``
    collection: str  # name of the training collection
    documents: int  # number of its documents
    queries: int  # number of training queries
    teaching: Teaching
    stages: Sequence[StageSettings]
    changes: dict[str, Any] = field(default_factory=dict)  # before training, by setting: layers, dimension...
    documents_by: str | None = None  # the model that encodes the documents; None for itself
    learned: Sequence[dict[str, Any]] = ()  # of each stage: `training.prepared.learned_from`; may be empty
    seconds: float = 0.0  # wall time of the training
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)  # fingerprints
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    base_model: str | None = None  # on the Hugging Face hub; None for a folder, or if unknown
    own_modules: bool = False  # whether its folder has modules of this package or code, which need `trust_remote_code`
    sparsity: dict[str, float] | None = None  # of sparse students: mean terms per text and products per pair
    passages: str | None = None  # as ``WORDS,OVERLAP``, if it learned from passages of its documents
    source: str = ""  # what `load_collection` takes for the collection (see `published`); a placeholder by default
    turns: Turns | None = None  # the conversations that it was trained on; None for ordinary queries
    bm25: str = "bm25"  # name of the lexical search whose results re-rankers order
    rewritten: Sequence[str] = ()  # what the teacher got in place of the student's queries, e.g. ``rewrites``

    @property
    def loaded_from(self) -> str:
        """What a reader passes to `load_collection`."""
        return self.source or f"{YOURS}{self.collection}"

    @property
    def taught_by(self) -> str:
        """The teachers in the order of the stages: the recipe's, or the stages' own."""
        own = [[(without_folders(member.model), member.weight) for member in stage.teacher] for stage in self.stages]
        teachers = [Teaching(members).text if members else self.teaching.text for members in own]
        return ", then ".join(dict.fromkeys(teachers)) or self.teaching.text


def without_folders(name: str) -> str:
    """A model's name; only the last part of a local folder, because cards are published."""
    kind, _, place = name.partition(":")
    path = Path(place)
    return f"{kind}:{path.name}" if place and (path.is_absolute() or path.exists()) else name


def published(source: str | Path) -> str:
    """A collection's source for a card: public names unchanged, and only the last part of a local folder."""
    name = source if isinstance(source, str) else ""  # a `Path` is a folder, whatever its name
    prefix = "hf:" if name.startswith("hf:") else ""
    path = path_of(str(source).removeprefix(prefix))
    is_on_hub = prefix and not (path.is_absolute() or path.exists())
    if name == "demo" or name.startswith(_PUBLIC) or is_on_hub:
        return name
    return f"{prefix}{YOURS}{path.resolve().name}"


def dataset_on_hub(source: str) -> str | None:
    """The name on the Hugging Face hub of what `published` gives; None for a folder, or if it is not there."""
    prefix, _, name = source.partition("/") if source.startswith(_PUBLIC[0]) else source.partition(":")
    if prefix == "beir":
        return f"BeIR/{name}"
    return name if prefix == "hf" and not name.startswith(YOURS) else None


_TAGS = ("retrodistill", "knowledge-distillation", "information-retrieval")
_MEASURES = {
    "nDCG@10": "ndcg10", "MRR@10": "mrr10", "MAP@1000": "map1000",
    "Recall@10": "recall10", "Recall@100": "recall100", "Recall@1000": "recall1000",
}  # fmt: skip
_OWN_LINES = {  # settings of a stage that templates/card/stage.md.j2 describes
    "objectives", "regularizers", "train", "texts", "candidates", "teacher", "selection", "groups", "training",
}  # fmt: skip


def write_card(model: Any, facts: Facts, folder: str | os.PathLike[str], results: Results | None = None) -> None:
    """Write README.md into a student's folder; without results, it says that the student was not measured."""
    with atomic_file(Path(folder) / "README.md") as temporary:
        temporary.write_text(card_text(model, facts, results), encoding="utf-8", newline="\n")


def card_text(model: Any, facts: Facts, results: Results | None = None) -> str:
    """The card: front matter for the Hugging Face hub, then Markdown; `results` have a system of the student's name."""
    kind = get_kind(facts.kind)
    title = str(text.inert(f"{facts.name}: a {facts.kind} student distilled on {facts.collection}"))
    front, own_sections = _library_card(model, facts, title)
    # The measured exits, shares of tokens, truncations, and own-token queries of the student.
    prefix = f"{facts.name}@"
    variants = [system for system in results.systems if system.name.startswith(prefix)] if results else []
    cuts = {int(end) for system in variants if re.fullmatch(r"\d+", end := system.name.removeprefix(prefix))}
    # A kind without its own partial gets the general card.
    template = _templates().select_template([f"card/{kind.name}.md.j2", "card.md.j2"])
    body = template.render(
        facts=facts,
        model=model,
        title=title,
        placeholder=placeholder(model),
        # The kind in front of a folder; a hybrid student is loaded as a dense one.
        package_kind=kind.written.partition(":")[0] or "dense",
        trusted=", trust_remote_code=True" if facts.own_modules else "",
        library=own_sections,
        separator=SEPARATOR,
        placeholder_folder=YOURS if YOURS in f"{facts.loaded_from}{facts.turns and facts.turns.path}" else "",
        cuts=sorted(cuts.union(*(stage.matryoshka for stage in facts.stages)), reverse=True),
        # Older students have no records of their stages.
        stages=[_stage(stage, known or {}) for stage, known in zip_longest(facts.stages, facts.learned)],
        objectives={term.name: OBJECTIVES[term.name] for stage in facts.stages for term in stage.objectives},
        results=results,
        rewrites=REWRITES,
        **_measurements(facts, results, variants) if results else {},
    )
    body = without_local_folders(re.sub(r"\n{3,}", "\n\n", body).strip())
    return f"---\n{_front_matter(front, facts, results, title)}---\n\n{body}\n"


@cache  # compiling the templates takes longer than filling them in
def _templates() -> Environment:
    environment = text.environment(escape=True)
    environment.finalize = text.inert
    environment.filters |= {"code": _code, "setting": _setting, "linked": _linked}
    environment.globals |= {"exits_of": exits_of, "vocabulary_pooling": vocabulary_pooling, "ROUTE": ROUTE}
    environment.globals |= {"length_adaptive_settings": length_adaptive_settings, "KEEP": KEEP}
    return environment


def placeholder(model: Any) -> str:
    """The model's name in examples, which sentence-transformers replaces by the name on the hub when it is uploaded."""
    return str(getattr(model, "_model_card_model_id_placeholder", "sentence_transformers_model_id"))


def _measurements(facts: Facts, results: Results, variants: Sequence[SystemResult]) -> dict[str, Any]:
    """The systems of the card: the student, its variants, and those that are neither students nor others' controls."""
    controls = ("control", f"{facts.name}-control")
    others = [system for system in results.systems if system.role != "student"]
    others = [system for system in others if system.role != "control" or system.name in controls]

    def difference(system: SystemResult) -> str:
        if system.name == facts.name:
            return ""
        comparison = comparison_of(results, facts.name, system.name)
        if comparison is None:
            return text.MISSING
        test = f"{text.interval(comparison['interval'])}, {text.probability(comparison['p'])}"
        return f"{text.signed(comparison['difference'])} ({test})"

    quality = columns.columns_of_quality(results, CARD)
    return {
        "student": results.system(facts.name),
        "others": others,
        "variants": variants,
        "quality": [*quality, Column("difference in nDCG@10 (95% interval, p)", difference)],
        "cost": columns.columns_of_serving(results, CARD),
    }


def _stage(stage: StageSettings, known: dict[str, Any]) -> dict[str, Any]:
    fields = type(stage).model_fields
    values = stage.model_dump(mode="json", exclude=_OWN_LINES).items()
    changed = {name: value for name, value in values if value != fields[name].get_default(call_default_factory=True)}
    teachers = [(member.weight, without_folders(member.model)) for member in stage.teacher or []]
    return {"settings": stage, "known": known, "changed": changed, "teachers": teachers}


# The card of sentence-transformers.


def _library_card(model: Any, facts: Facts, title: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The front matter and the sections, by heading, of the card by sentence-transformers; without network access."""
    import yaml
    from huggingface_hub import ModelCard

    # New card data, so that those of the user's model do not change; no text is encoded for the example.
    data = type(model.model_card_data)(local_files_only=True, generate_widget_examples=False, model_name=title)
    data.add_tags(list(_TAGS))
    data.base_model = facts.base_model
    data.ir_model = True  # the example then encodes queries and documents by their own calls
    data.register_model(model)
    with quiet_libraries():
        content = ModelCard.from_template(card_data=data, template_path=str(data.template_path)).content
    _, front, body = content.split("---\n", 2)
    return yaml.safe_load(front), _sections(re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL))


def _sections(markdown: str) -> dict[str, str]:
    """The text below each second-level heading; a line in a code block is not a heading."""
    sections: dict[str, list[str]] = {}
    heading, fenced = "", False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            heading = line.removeprefix("## ").strip()
        else:
            sections.setdefault(heading, []).append(line.rstrip())
    return {name: "\n".join(lines).strip() for name, lines in sections.items()}


def _front_matter(front: dict[str, Any], facts: Facts, results: Results | None, title: str) -> str:
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump

    student = results and results.system(facts.name)
    collection, split = (str(text.inert(name)) for name in (results.collection, results.split)) if results else ("", "")
    values = {name: getattr(student, field) for name, field in _MEASURES.items()} if student else {}
    measured = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=collection,
            dataset_name=collection,
            dataset_split=split,
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in values.items()
        if results and value is not None
    ]
    if dataset := dataset_on_hub(facts.source):
        front = {**front, "datasets": [dataset]}
    if measured:
        names = [one.metric_type for one in measured]
        front = {**front, "metrics": names, "model-index": eval_results_to_model_index(title, measured)}
    return yaml_dump(front, sort_keys=False)


# Filters of the template.


def _code(value: str) -> Markup:
    return Markup(f"`{text.inert(value)}`" if value and value != text.MISSING else text.MISSING)


def _setting(value: Any) -> str:
    """A setting in words: without braces, quotes and underscores."""
    if isinstance(value, BaseModel):
        return _setting(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {_setting(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _linked(source: str) -> Markup:
    """The citation of an objective, which is this package's own text."""
    return Markup(re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source))
