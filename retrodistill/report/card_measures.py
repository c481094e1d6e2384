"""What a model card says of measurements: the student among the systems of its job; Markdown, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrodistill.evaluation.results import REWRITES, Results, System
from retrodistill.report import words
from retrodistill.report.card_facts import Facts
from retrodistill.report.headline import comparison_of

_UNMEASURED = "Not measured: the student was saved by a call that trains only. `retrodistill evaluate` measures it."


def in_a_sentence(facts: Facts, results: Results | None) -> str:
    """Its quality, and what it kept of its teacher's."""
    if results is None:
        return "Its quality has not been measured."
    student = results.system(facts.name)
    if student.ndcg10 is None:
        return f"{results.collection} has no judgments to measure its quality with."
    said = f"nDCG@10 {words.measure(student.ndcg10)} on {results.collection} ({results.split})"
    taught = results.teacher
    if student.retention is None or taught is None:
        return f"It has {said}."
    return f"It has {said}, {words.kept(student)} of its teacher's {words.measure(taught.ndcg10)}."


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
        "The difference is the student's minus the system's; p by a paired randomization test, the interval by "
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
            code(system.documents_by),
            code(system.queries_by),
        ]
        for system in _beside(facts, results)
    ]
    said = f"One query at a time, encoding and search together, on {machine(results.hardware)}. "
    return f"{said}Training took {words.duration(facts.seconds)}.\n\n{table(heads, rows)}"


def shortfalls(facts: Facts, results: Results | None) -> list[str]:
    """Systems beside it that are no worse: whoever reads a card should not have to look for them."""
    if results is None:
        return []
    own = results.system(facts.name).ndcg10
    if own is None:
        return []
    # What the same student makes of better queries is no competitor of it.
    others = [
        one
        for one in _beside(facts, results)
        if one.role in ("control", "baseline") and one.ndcg10 is not None and one.name != REWRITES
    ]
    return [
        f"On {results.collection}, {one.role} {one.name} has nDCG@10 {words.measure(one.ndcg10)}, no less than its own."
        for one in others
        if (one.ndcg10 or 0.0) >= own
    ]


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


def code(text: str) -> str:
    """A name as Markdown sets it; a dash for none."""
    return f"`{text}`" if text else words.MISSING


def _beside(facts: Facts, results: Results) -> list[System]:
    """Everything that is no student, but for other students' controls, then the student and its forms."""
    controls = ("control", f"{facts.name}-control")
    others = [
        one for one in results.systems if one.role != "student" and (one.role != "control" or one.name in controls)
    ]
    return [*others, results.system(facts.name), *forms(facts, results)]


def forms(facts: Facts, results: Results | None) -> list[System]:
    """The student's exits, truncations and own-token queries, as far as they were measured."""
    return [] if results is None else [one for one in results.systems if one.name.startswith(f"{facts.name}@")]


def _named(system: System) -> str:
    if system.name == REWRITES:
        return f"{REWRITES} (the first student, asked the rewrites of the queries)"
    return system.name if system.role in (system.name, "student") else f"{system.name} ({system.role})"


def _difference(facts: Facts, results: Results, other: System) -> str:
    found = comparison_of(results, facts.name, other.name)
    if found is None:
        return words.MISSING
    low, high = found["interval"]
    interval = f"{words.signed(low)} to {words.signed(high)}"
    return f"{words.signed(found['difference'])} ({interval}, {words.probability(found['p'])})"
