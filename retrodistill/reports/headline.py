"""The answer in plain sentences: what was distilled, what it kept, what it costs, what a reader must know."""

from __future__ import annotations

from typing import Any

from retrodistill.reports import words
from retrodistill.reports.results import Results, Role, System


def answer(results: Results) -> list[str]:
    """The sentences that a report opens with: what was kept, what it costs, then what qualifies it.

    Nothing is left out for being bad: a student below its control, a baseline above the student and a difference
    that may be chance are each said.
    """
    student = best_student(results)
    if student is None:
        return [_measured_only(results)]
    sentences = [_kept(results, student), _cost(results, student)]
    for other in _yardsticks(results, student):
        failed = other.role == "control" and (student.ndcg10 or 0.0) <= (other.ndcg10 or 0.0)
        # A distillation that did not help is the answer, not a remark on it.
        sentences.insert(1 if failed else len(sentences), _against(results, student, other))
    sentences += [_other_student(other, student) for other in results.with_role("student") if other is not student]
    return sentences


def best_student(results: Results) -> System | None:
    """The student with the highest nDCG@10; the first one where there are no judgements."""
    students = results.with_role("student")
    return max(students, key=lambda system: -1.0 if system.ndcg10 is None else system.ndcg10, default=None)


def verdict(comparison: dict[str, Any]) -> str:
    """Whether a difference is significant, with its interval and p."""
    low, high = comparison["interval"]
    real = "significant" if comparison["p"] < words.ALPHA else "not significant"
    return f"{real}: interval {words.signed(low)} to {words.signed(high)}, {words.probability(comparison['p'])}"


def _measured_only(results: Results) -> str:
    systems, place = results.systems, _place(results)
    counted = "1 system was" if len(systems) == 1 else f"{len(systems)} systems were"
    measured = [system for system in systems if system.ndcg10 is not None]
    if not measured:
        return f"{counted} run on {place}; there are no relevance judgements to measure quality with."
    best = max(measured, key=lambda system: system.ndcg10 or 0.0)
    return f"{counted} measured on {place}: {best.name} has the highest nDCG@10, {words.measure(best.ndcg10)}."


def _place(results: Results) -> str:
    queries = "1 query" if results.queries == 1 else f"{results.queries:,} queries"
    return f"{results.collection} ({results.split}, {queries})"


def _kept(results: Results, student: System) -> str:
    teacher, place = results.teacher, _place(results)
    if teacher is None:
        return f"{student.name} has nDCG@10 {words.measure(student.ndcg10)} on {place}; its teacher was not measured."
    if student.ndcg10 is None:
        return f"{student.name} was distilled from {teacher.name}; {place} has no judgements to measure quality with."
    numbers = f"{words.measure(student.ndcg10)} against {words.measure(teacher.ndcg10)}"
    where = f"On {results.collection} ({results.split}), {student.name}, distilled from {teacher.name},"
    if student.retention is None:
        return f"{where} has nDCG@10 {numbers}."
    return f"{where} keeps {words.kept(student)} of its nDCG@10: {numbers}."


def _cost(results: Results, student: System) -> str:
    costs = []
    if student.query_ms is not None:
        costs.append(f"answers a query in {words.milliseconds(student.query_ms['p50'])} ms (median)")
    if student.bytes_per_document is not None:
        costs.append(f"stores {words.size(student.bytes_per_document)} bytes a document")
    if not costs:
        return f"What {student.name} costs was not measured."
    sentence = f"{student.name} {' and '.join(costs)}"
    teacher = results.teacher
    if teacher is not None and teacher.query_ms is not None and student.query_ms is not None:
        sentence += f"; {teacher.name} takes {words.milliseconds(teacher.query_ms['p50'])} ms"
    return sentence + "."


def _yardsticks(results: Results, student: System) -> list[System]:
    """The teacher, the best control, the best baseline: whatever of them has a quality to compare with."""
    chosen = [results.teacher]
    roles: tuple[Role, ...] = ("control", "baseline")
    for role in roles:
        measured = [system for system in results.with_role(role) if system.ndcg10 is not None]
        chosen.append(max(measured, key=lambda system: system.ndcg10 or 0.0, default=None))
    unlike = [system for system in chosen if system is not None and system is not student]
    return [system for system in unlike if system.ndcg10 is not None and student.ndcg10 is not None]


def _against(results: Results, student: System, other: System) -> str:
    difference = (student.ndcg10 or 0.0) - (other.ndcg10 or 0.0)
    role = "its teacher" if other is results.teacher else f"the {other.role}"
    named = role if other.name == other.role else f"{role} {other.name}"
    place = f"level with {named} in nDCG@10"
    if difference:
        place = f"{abs(difference):.3f} nDCG@10 {'above' if difference > 0 else 'below'} {named}"
    sentence = f"{student.name} is {place}"
    comparison = comparison_of(results, student.name, other.name)
    sentence += f" ({verdict(comparison)})" if comparison else " (significance not tested)"
    if other.role == "control" and difference <= 0:
        sentence += ": the distillation did not help"
    return sentence + "."


def _other_student(other: System, best: System) -> str:
    kept = f", {words.kept(other)} kept" if other.retention is not None else ""
    return f"The student {other.name} has nDCG@10 {words.measure(other.ndcg10)}{kept}; {best.name} is the best one."


def comparison_of(results: Results, a: str, b: str, measure: str = "ndcg@10") -> dict[str, Any] | None:
    """The comparison of a with b, turned around where it was recorded the other way."""
    for comparison in results.comparisons:
        if comparison["measure"].lower() != measure:
            continue
        if (comparison["a"], comparison["b"]) == (a, b):
            return comparison
        if (comparison["a"], comparison["b"]) == (b, a):
            low, high = comparison["interval"]
            turned = {"a": a, "b": b, "difference": -comparison["difference"], "interval": [-high, -low]}
            return {**comparison, **turned}
    return None
