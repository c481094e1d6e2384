"""The sections of a model card that sentence-transformers does not know: Markdown, one function each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from retrodistill.objectives.registry import OBJECTIVES
from retrodistill.reports import words
from retrodistill.reports.card_facts import Facts, without_folders
from retrodistill.reports.headline import comparison_of
from retrodistill.reports.results import Results, System
from retrodistill.training.settings import StageSettings

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
_OF_PAIRS = ("cross-encoder", "prett", "tk")
_TOLD = {"objectives", "regularisers", "towers", "texts", "candidates", "teacher", "groups", "training"}  # as lines
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
_UNMEASURED = "Not measured: the student was saved by a call that trains only. `retrodistill evaluate` measures it."


def title(facts: Facts) -> str:
    """Name, kind and collection."""
    return f"{facts.name}: a {facts.kind} student distilled on {facts.collection}"


def opening(facts: Facts, results: Results | None) -> str:
    """What it is, whose documents it searches, and what it kept."""
    searched = "It encodes both queries and documents."
    if facts.kind in _OF_PAIRS:
        searched = "It scores pairs of a query and a document, and orders what another system has found."
    elif facts.documents_by is not None:
        searched = (
            f"It encodes queries only: the documents that it searches are encoded by `{facts.documents_by}`, so an "
            "index of that model's documents stays as it is."
        )
    said = (
        f"A {_WORDS.get(facts.kind, facts.kind)} that learned from {facts.teaching.text}, with retrodistill. {searched}"
    )
    return f"{said} {_kept(facts, results)}"


def _kept(facts: Facts, results: Results | None) -> str:
    if results is None:
        return "Its quality has not been measured."
    student = results.system(facts.name)
    if student.ndcg10 is None:
        return f"{results.collection} has no judgements to measure its quality with."
    said = f"nDCG@10 {words.measure(student.ndcg10)} on {results.collection} ({results.split})"
    taught = results.teacher
    if student.retention is None or taught is None:
        return f"It has {said}."
    return f"It has {said}, {words.kept(student)} of its teacher's {words.measure(taught.ndcg10)}."


def asymmetric_usage(model: Any, facts: Facts) -> str:
    """How to load both sides where another model encodes the documents."""
    kind, _, documents = str(facts.documents_by).partition(":")
    trusted = ", trust_remote_code=True" if facts.own_modules else ""
    lines = [
        "import numpy as np" if kind == "vectors" else "",
        "from sentence_transformers import SentenceTransformer",
        "",
        "# Queries: this model, by the path of its folder or its name on the hub",
        f'model = SentenceTransformer("{placeholder(model)}"{trusted})',
        'queries = model.encode_query(["Which planet is known as the Red Planet?"])',
        "",
    ]
    if kind == "vectors":
        lines += [
            f"# Documents: vectors that were made elsewhere ({facts.documents_by})",
            'documents = np.load("documents.npy")',
        ]
    else:
        lines += [
            f"# Documents: {facts.documents_by}, not this model",
            f'encoder = SentenceTransformer("{documents}")',
            'documents = encoder.encode_document(["Mars is often called the Red Planet.", "Saturn has rings."])',
        ]
    lines += ["scores = model.similarity(queries, documents)", f"# [1, {2 if kind != 'vectors' else 'documents'}]"]
    code = "\n".join(lines).strip()
    return f"Queries and documents have an encoder each.\n\n```python\n{code}\n```"


def sparse_usage(model: Any) -> str:
    """How to load a sparse student; queries may have an encoder of their own inside it."""
    return f"""```python
from sentence_transformers import SparseEncoder

# This model, by the path of its folder or its name on the hub
model = SparseEncoder("{placeholder(model)}")
queries = model.encode_query(["Which planet is known as the Red Planet?"])
documents = model.encode_document(["Mars is often called the Red Planet.", "Saturn has rings."])
scores = model.similarity(queries, documents)
# [1, 2]
```"""


def placeholder(model: Any) -> str:
    """What stands for the model's name in examples: sentence-transformers puts the name on the hub in its place."""
    return str(getattr(model, "_model_card_model_id_placeholder", "sentence_transformers_model_id"))


def package_usage(facts: Facts) -> str:
    """How retrodistill builds an index that refuses queries of another space."""
    if facts.kind in _OF_PAIRS:
        return (
            "With retrodistill, as a re-ranker of the best 100 of BM25:\n\n```sh\n"
            f"retrodistill evaluate rerank:cross-encoder:FOLDER@bm25 --collection {facts.collection}\n```"
        )
    own = f'"{"dense" if facts.kind == "hybrid" else facts.kind}:FOLDER"'
    sides = f"documents={own}" if facts.documents_by is None else f'documents="{facts.documents_by}", queries={own}'
    return (
        "With retrodistill, whose index knows which encoder made its documents and refuses queries of another "
        f"space:\n\n```python\nimport retrodistill as rd\n\n"
        f'collection = rd.load_collection("{facts.collection}")\n'
        f"index = rd.build_index(collection, {sides})\n"
        'index.search("Which planet is known as the Red Planet?", 10)\n```'
    )


def quality(facts: Facts, results: Results | None) -> str:
    """The student among BM25, teacher and control, with the significance of each difference."""
    if results is None:
        return _UNMEASURED
    heads = ["System", "nDCG@10", "MRR@10", "Recall@100", "kept", "difference in nDCG@10 (95% interval, p)"]
    rows = []
    for system in _beside(facts, results):
        mine = system.name == facts.name
        cells = [words.measure(value) for value in (system.ndcg10, system.mrr10, system.recall100)]
        cells = [f"{_named(system)}", *cells, words.kept(system), "" if mine else _difference(facts, results, system)]
        rows.append([f"**{cell}**" if mine and cell else cell for cell in cells])
    said = (
        f"{results.collection}, split {results.split}, {results.queries:,} queries. "
        "The difference is the student's minus the system's; p by a paired randomisation test, the interval by "
        "bootstrap; `kept` is the share of the teacher's nDCG@10."
    )
    return f"{said}\n\n{table(heads, rows)}"


def cost(facts: Facts, results: Results | None) -> str:
    """Latency and size of the student and of what stands beside it."""
    if results is None:
        return f"Training took {words.duration(facts.seconds)}. Serving was not measured."
    heads = ["System", "ms a query (p50 / p95)", "bytes a document", "documents by", "queries by"]
    rows = [
        [
            _named(system),
            words.latency(system),
            words.size(system.bytes_per_document),
            _code(system.documents_by),
            _code(system.queries_by),
        ]
        for system in _beside(facts, results)
    ]
    said = f"One query at a time, encoding and search together, on {machine(results.hardware)}. "
    return f"{said}Training took {words.duration(facts.seconds)}.\n\n{table(heads, rows)}"


def teacher(facts: Facts) -> str:
    """Who taught, and how several were fused."""
    teaching = facts.teaching
    rows = [[_code(name), f"{weight:g}"] for name, weight in teaching.members]
    said = [table(["Teacher", "weight"], rows)]
    if teaching.fusion is not None:
        said.append(f"Fused by `{teaching.fusion}`: each teacher's scores are calibrated, then averaged by weight.")
    if teaching.recorded is not None:
        said.append(f"Its scores are a recorded run of {teaching.recorded:,} pairs.")
    return "\n\n".join(said)


def training(facts: Facts) -> str:
    """Texts, candidates, objectives, temperatures and time of each stage."""
    corpus = f"{facts.documents:,} documents and {facts.queries:,} training queries of {facts.collection}"
    changed = "".join(f", {name} {value}" for name, value in facts.changes.items())
    said = [f"Made from {_code(facts.start)}{changed}; trained on {corpus} in {words.duration(facts.seconds)}."]
    learned = [*facts.learned, *[{}] * (len(facts.stages) - len(facts.learned))]
    for number, (stage, sources, known) in enumerate(zip(facts.stages, facts.sources, learned, strict=True), 1):
        said.append(f"### Stage {number}\n\n" + "\n".join(f"- {line}" for line in _stage(stage, sources, known)))
    if facts.sparsity:
        measured = ", ".join(f"{name} {value:.1f}" for name, value in facts.sparsity.items())
        said.append(f"Sparsity after training: {measured}.")
    return "\n\n".join(said)


def _stage(stage: StageSettings, sources: Sequence[str], known: dict[str, Any]) -> Iterable[str]:
    yield "objectives: " + " + ".join(f"{term.weight:g} {term.name}" for term in stage.objectives)
    if stage.regularisers:
        yield "regularisers: " + ", ".join(f"{one.weight:g} {one.name} ({one.side}s)" for one in stage.regularisers)
    if stage.teacher:
        members = [f"{one.weight:g} {_code(without_folders(one.model))}" for one in stage.teacher]
        yield f"teacher of this stage: {' + '.join(members)}"
    yield f"trains: {'both towers' if stage.towers == 'both' else f'the {stage.towers} side'}"
    if known:
        yield (
            f"texts: {known['texts']:,}, of them {known['queries']:,} real queries and {known['held_out']:,} held out "
            "to look at during training"
        )
    if stage.needs_lists:
        depth = "the whole corpus" if stage.candidates.depth == "all" else f"{stage.candidates.depth} from each source"
        drawn = f", {stage.candidates.random} drawn at random besides" if stage.candidates.random else ""
        pairs = f"; {known['pairs']:,} scored pairs" if known.get("pairs") else ""
        named = f" ({', '.join(map(_code, sources))})" if stage.candidates.depth != "all" and sources else ""
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
            yield f"{name.replace('_', ' ')}: {value}"
    one = stage.training
    steps = f"{known['steps']:,} steps in {words.duration(known['seconds'])}; " if "steps" in known else ""
    yield (
        f"optimisation: {steps}{one.epochs:g} epochs, batches of {one.batch_size}, AdamW, peak learning rate "
        f"{one.learning_rate:g}, {one.schedule} schedule"
    )


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
        lines.append("It was trained against the codes of one quantised index, and is at its best with that index.")
    if facts.kind == "static":
        lines.append("It sees no order of words; a text without a known token has a zero vector.")
    if facts.kind == "cross-encoder":
        lines.append("It reads every pair anew and finds nothing itself. Its scores are raw logits, not probabilities.")
    elif facts.kind in _OF_PAIRS:
        lines.append(
            "It finds nothing itself, and is fast only where documents' states are stored, as `retrodistill evaluate` "
            "does. Its scores are raw, not probabilities."
        )
    if facts.own_modules:
        lines.append("It has a module beyond sentence-transformers' own: load it with trust_remote_code=True.")
    lines += _shortfalls(facts, results)
    lines += facts.notes
    lines.append("Its licence is for its publisher to state: models and texts that it was made from have theirs.")
    return "\n".join(f"- {words.plain(line)}" for line in lines)


def _shortfalls(facts: Facts, results: Results | None) -> list[str]:
    """Systems beside it that are no worse: whoever reads a card should not have to look for them."""
    if results is None:
        return []
    own = results.system(facts.name).ndcg10
    if own is None:
        return []
    others = [one for one in _beside(facts, results) if one.role in ("control", "baseline") and one.ndcg10 is not None]
    return [
        f"On {results.collection}, {one.role} {one.name} has nDCG@10 {words.measure(one.ndcg10)}, no less than its own."
        for one in others
        if (one.ndcg10 or 0.0) >= own
    ]


def citation(facts: Facts) -> str:
    """sentence-transformers, and the source of every objective that was used."""
    names = list(dict.fromkeys(term.name for stage in facts.stages for term in stage.objectives))
    lines = [f"- {name}: {_linked(OBJECTIVES[name])}" for name in names]
    return "\n".join([*lines, "", _SENTENCE_BERT]) if lines else _SENTENCE_BERT


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    aligned = ["---", *["---:"] * (len(heads) - 1)]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(heads), aligned, *cells])


def machine(hardware: dict[str, Any]) -> str:
    """Processor, cores, memory and GPU in a few words."""
    parts = [hardware.get("processor") or hardware.get("machine"), _counted(hardware.get("cores"), "cores")]
    parts += [_counted(hardware.get("memory_gib"), "GiB"), hardware.get("gpu") or "no GPU"]
    return ", ".join(str(part) for part in parts if part)


def _counted(value: Any, unit: str) -> str | None:
    return f"{value} {unit}" if value else None


def _beside(facts: Facts, results: Results) -> list[System]:
    """Everything that is no student, but for other students' controls, then the student."""
    controls = ("control", f"{facts.name}-control")
    others = [
        one for one in results.systems if one.role != "student" and (one.role != "control" or one.name in controls)
    ]
    return [*others, results.system(facts.name)]


def _named(system: System) -> str:
    return system.name if system.role in (system.name, "student") else f"{system.name} ({system.role})"


def _difference(facts: Facts, results: Results, other: System) -> str:
    found = comparison_of(results, facts.name, other.name)
    if found is None:
        return words.MISSING
    low, high = found["interval"]
    interval = f"{words.signed(low)} to {words.signed(high)}"
    return f"{words.signed(found['difference'])} ({interval}, {words.probability(found['p'])})"


def _code(text: str) -> str:
    return f"`{text}`" if text else words.MISSING


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
