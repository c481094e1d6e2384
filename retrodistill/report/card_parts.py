"""The sections of a model card that sentence-transformers does not know: Markdown, one function each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from retrodistill.evaluation.results import Results
from retrodistill.objectives.registry import OBJECTIVES
from retrodistill.report import words
from retrodistill.report.card_facts import Facts, without_folders
from retrodistill.report.card_measures import code, in_a_sentence, machine, shortfalls, table
from retrodistill.report.card_usage import OF_PAIRS
from retrodistill.training.settings import SelectionSettings, StageSettings

_WORDS = {
    "static": "static encoder (a table of token vectors, no transformer)",
    "dense": "dense encoder",
    "hybrid": "hybrid encoder (a dense half and a lexical half in one vector)",
    "sparse": "learned sparse encoder",
    "multi-vector": "late-interaction encoder (a vector per token)",
    "cross-encoder": "cross-encoder (a re-ranker)",
    "prett": "PreTT re-ranker (a cross-encoder whose lower layers read documents alone, so that they are stored)",
    "tk": "TK re-ranker (kernel pooling over stored token vectors)",
}
_TRAINED = {
    "query_encoder": "the query encoder",
    "both_encoders": "both encoders",
    "lexical": "the lexical half",
    "head": "the head",
}
_TOLD = {  # as lines
    "objectives", "regularizers", "train", "texts", "candidates", "teacher", "selection", "groups", "training",
}  # fmt: skip
_SENTENCE_BERT = """```bibtex
@inproceedings{reimers-2019-sentence-bert,
    title = "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
    author = "Reimers, Nils and Gurevych, Iryna",
    booktitle = "Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing",
    month = "11",
    year = "2019",
    publisher = "Association for Computational Linguistics",
    url = "https://arxiv.org/abs/1908.10084",
}
```"""


def title(facts: Facts) -> str:
    """Name, kind and collection."""
    return f"{facts.name}: a {facts.kind} student distilled on {facts.collection}"


def opening(facts: Facts, results: Results | None) -> str:
    """What it is, whose documents it searches, and what it kept."""
    searched = "It encodes both queries and documents."
    if facts.kind in OF_PAIRS:
        searched = "It scores pairs of a query and a document, and orders what another system has found."
    elif facts.documents_by is not None:
        searched = (
            f"It encodes queries only: the documents that it searches are encoded by `{facts.documents_by}`, so an "
            "index of that model's documents stays as it is."
        )
    said = f"A {_WORDS.get(facts.kind, facts.kind)} that learned from {facts.taught_by}, with retrodistill. {searched}"
    return f"{said} {in_a_sentence(facts, results)}"


def teacher(facts: Facts) -> str:
    """Who taught, and how several were fused."""
    teaching = facts.teaching
    rows = [[code(name), f"{weight:g}"] for name, weight in teaching.members]
    said = [table(["Teacher", "weight"], rows)]
    if teaching.fusion is not None:
        said.append(f"Fused by `{teaching.fusion}`: each teacher's scores are calibrated, then averaged by weight.")
    if teaching.recorded is not None:
        said.append(f"Its scores are a recorded run of {teaching.recorded:,} pairs.")
    if facts.turns is not None:
        asked = "the rewrites of the queries" if facts.rewritten else "the conversations as the student is, no rewrites"
        said.append(f"Teachers were asked {asked}; the student was asked the conversations.")
    elif facts.rewritten:
        said.append("Teachers were asked better queries (rewrites) in the place of those that the student was asked.")
    if any(stage.teacher for stage in facts.stages):
        said.append("Stages with a teacher of their own name it under Training.")
    return "\n\n".join(said)


def training(facts: Facts) -> str:
    """Texts, candidates, objectives, temperatures and time of each stage."""
    corpus = f"{facts.documents:,} documents and {facts.queries:,} training queries of {facts.collection}"
    changes = [name if value is True else f"{name} {_plain(value)}" for name, value in facts.changes.items()]
    changed = "".join(f", {change}" for change in changes)
    said = [f"Made from {code(facts.start)}{changed}; trained on {corpus} in {words.duration(facts.seconds)}."]
    learned = [*facts.learned, *[{}] * (len(facts.stages) - len(facts.learned))]
    for number, (stage, known) in enumerate(zip(facts.stages, learned, strict=True), 1):
        said.append(f"### Stage {number}\n\n" + "\n".join(f"- {line}" for line in _stage(stage, known)))
    if facts.sparsity:
        measured = ", ".join(f"{name} {value:.1f}" for name, value in facts.sparsity.items())
        said.append(f"Sparsity after training: {measured}.")
    return "\n\n".join(said)


def _stage(stage: StageSettings, known: dict[str, Any]) -> Iterable[str]:
    yield "objectives: " + " + ".join(f"{term.weight:g} {term.name}" for term in stage.objectives)
    if stage.regularizers:
        yield "regularizers: " + ", ".join(f"{one.weight:g} {one.name} ({one.side}s)" for one in stage.regularizers)
    if stage.teacher:
        members = [f"{one.weight:g} {code(without_folders(one.model))}" for one in stage.teacher]
        yield f"teacher of this stage: {' + '.join(members)}"
    yield f"trains: {_TRAINED[stage.train]}"
    if known:
        yield (
            f"texts: {known['texts']:,}, of them {known['queries']:,} real queries and {known['held_out']:,} held out "
            "to look at during training"
        )
    if stage.selection is not None:
        yield _selection(stage.selection, known)
    if stage.needs_lists:
        depth = "the whole corpus" if stage.candidates.depth == "all" else f"{stage.candidates.depth} from each source"
        drawn = f", {stage.candidates.random} drawn at random besides" if stage.candidates.random else ""
        pairs = f"; {known['pairs']:,} scored pairs" if known.get("pairs") else ""
        sources = known.get("sources") if stage.candidates.depth != "all" else None
        named = f" ({', '.join(map(code, sources))})" if sources else ""
        bought = f", of which the teacher scored {stage.candidates.budget}" if stage.candidates.budget else ""
        yield f"candidates: {depth}{named}{drawn}{bought}{pairs}"
    for name, temperatures in known.get("temperatures", {}).items():
        yield (
            f"calibration of {name}: student scores over {temperatures['student']:.4g}, teacher scores over "
            f"{temperatures['teacher']:.4g}"
        )
    usual = type(stage).model_fields
    for name, value in stage.model_dump(mode="json", exclude=_TOLD).items():
        if value != usual[name].get_default(call_default_factory=True):
            yield f"{name.replace('_', ' ')}: {_plain(value)}"
    one = stage.training
    steps = f"{known['steps']:,} steps in {words.duration(known['seconds'])}; " if "steps" in known else ""
    epochs = f"{one.epochs:g} epoch{'' if one.epochs == 1 else 's'}"
    yield (
        f"optimization: {steps}{epochs}, batches of {one.batch_size}, AdamW, peak learning rate "
        f"{one.learning_rate:g}, {one.schedule} schedule"
    )


def _selection(selection: SelectionSettings, known: dict[str, Any]) -> str:
    first, last = selection.ranks
    count = f"{known['selected']:,} of {known['texts']:,} texts" if "selected" in known else "texts"
    right = "as the labels say" if selection.positives == "labels" else "as an ensemble says"
    return (
        f"selection: trained on {count}, those on which the teacher is right and the student, as the stage began, "
        f"wrong (rank {first} to {last}), {right}"
    )


def _plain(value: Any) -> str:
    """A setting without the marks of a program."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {_plain(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def provenance(facts: Facts, results: Results | None) -> str:
    """Seed, machine, versions, fingerprints, the command."""
    lines = [f"seed: {facts.seed}", f"hardware: {machine(facts.hardware)}"]
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()))
    inputs = {**facts.inputs, "teacher": facts.teaching.fingerprint or facts.inputs.get("teacher", "")}
    lines.append("fingerprints: " + ", ".join(f"{name} `{value}`" for name, value in inputs.items()))
    if results is not None and results.command:
        lines.append(f"command: `{results.command}`")
    return "\n".join(f"- {line}" for line in lines)


def limits(facts: Facts, results: Results | None) -> str:
    """What it cannot do, said from its kind and from what was measured."""
    lines = [f"It was trained on {facts.collection}; on other texts its quality is unknown until it is measured there."]
    if facts.documents_by is not None:
        lines.append(
            f"Its queries search documents that `{facts.documents_by}` encoded, with the same prompt and length; "
            "vectors of any other model mean nothing to it."
        )
    if "stored" in facts.inputs:
        lines.append("It was trained against the codes of one quantized index, and is at its best with that index.")
    if facts.kind == "static":
        lines.append("It sees no order of words; a text without a known token has a zero vector.")
    if facts.kind == "cross-encoder":
        lines.append("It reads every pair anew and finds nothing itself. Its scores are raw logits, not probabilities.")
    elif facts.kind in OF_PAIRS:
        lines.append(
            "It finds nothing itself, and is fast only where documents' states are stored, as `retrodistill evaluate` "
            "does. Its scores are raw, not probabilities."
        )
    if facts.turns is not None:
        lines.append("Its queries are conversations in the form that stands under Usage; it has seen no other form.")
    if facts.own_modules:
        lines.append("It has a module beyond sentence-transformers' own: load it with trust_remote_code=True.")
    lines += shortfalls(facts, results)
    lines += facts.notes
    lines.append("Its license is for its publisher to state: models and texts that it was made from have theirs.")
    return "\n".join(f"- {words.plain(line)}" for line in lines)


def citation(facts: Facts) -> str:
    """sentence-transformers, and the source of every objective that was used."""
    names = list(dict.fromkeys(term.name for stage in facts.stages for term in stage.objectives))
    lines = [f"- {name}: {_linked(OBJECTIVES[name])}" for name in names]
    return "\n".join([*lines, "", _SENTENCE_BERT]) if lines else _SENTENCE_BERT


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
