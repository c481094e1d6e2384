"""The answer in plain sentences: what was distilled, what it kept, what it costs, what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrodistill.evaluation.results import REWRITES, Results, Role, System
from retrodistill.report import words


def answer(results: Results) -> list[str]:
    """The sentences that a report opens with: what was kept, what it costs, then what qualifies it.

    Nothing is left out for being bad: a student below its control, a baseline above the student and a difference
    that may be chance are each said.
    """
    student = best_student(results.systems)
    if student is None:
        return [_measured_only(results), *_of_the_best(results)]
    sentences = [_kept(results, student), _cost(results, student)]
    if student.agreement is not None:
        share = f"{student.agreement.overlap10:.0%} of the ten best documents of {student.agreement.teacher}"
        # Without judgments this is all that says how good it is.
        sentences.insert(1 if student.ndcg10 is None else 2, f"{student.name} finds {share} among its own ten.")
    for other in _yardsticks(results, student):
        failed = other.role == "control" and (student.ndcg10 or 0.0) <= (other.ndcg10 or 0.0)
        # A distillation that did not help is the answer, not a remark on it.
        sentences.insert(1 if failed else len(sentences), _against(results, student, other))
    return [*sentences, *_other_students(results, student), *_picked(results, student)]


def best_student(systems: Sequence[System]) -> System | None:
    """The student with the highest nDCG@10; the first one where there are no judgments."""
    students = [system for system in systems if system.role == "student"]
    return max(students, key=lambda system: -1.0 if system.ndcg10 is None else system.ndcg10, default=None)


def verdict(comparison: dict[str, Any]) -> str:
    """Whether a difference is significant, with its interval and p; where it is not, what could have been seen."""
    low, high = comparison["interval"]
    decisive = words.corrected(comparison)
    kind = "corrected " if "p_holm" in comparison else ""
    told = f"interval {words.signed(low)} to {words.signed(high)}, {kind}{words.probability(decisive)}"
    if decisive < words.ALPHA:
        return f"significant: {told}"
    smallest = comparison.get("smallest")
    return f"not significant: {told}" + (
        f"; so many queries show differences from {smallest:.3f} on" if smallest else ""
    )


def _measured_only(results: Results) -> str:
    systems, place = results.systems, _place(results)
    counted = "1 system was" if len(systems) == 1 else f"{len(systems)} systems were"
    measured = [system for system in systems if system.ndcg10 is not None]
    if not measured:
        return f"{counted} run on {place}; there are no relevance judgments to measure quality with."
    best = max(measured, key=lambda system: system.ndcg10 or 0.0)
    return f"{counted} measured on {place}: {best.name} has the highest nDCG@10, {words.measure(best.ndcg10)}."


def _of_the_best(results: Results) -> list[str]:
    """What can be said of the best system where nothing was distilled: against every one that it was tested with."""
    measured = [system for system in results.systems if system.ndcg10 is not None]
    if not measured:
        return []
    best = max(measured, key=lambda system: system.ndcg10 or 0.0)
    return [_against(results, best, other) for other in measured if comparison_of(results, best.name, other.name)]


def _place(results: Results) -> str:
    queries = "1 query" if results.queries == 1 else f"{results.queries:,} queries"
    return f"{results.collection} ({results.split}, {queries})"


def _kept(results: Results, student: System) -> str:
    teacher, place = results.teacher, _place(results)
    if student.ndcg10 is None:
        source = "" if teacher is None else f" was distilled from {teacher.name} and"
        return f"{student.name}{source} was run on {place}; there are no relevance judgments to measure quality with."
    base = results.yardstick
    if base is None:
        return f"{student.name} has nDCG@10 {words.measure(student.ndcg10)} on {place}; its teacher was not measured."
    numbers = f"{words.measure(student.ndcg10)} against {words.measure(base.ndcg10)}"
    source = "" if teacher is None else f", distilled from {teacher.name},"
    where = f"On {results.collection} ({results.split}), {student.name}{source}"
    if student.retention is None:
        return f"{where} has nDCG@10 {numbers}."
    whose = "its" if base is teacher else f"{base.name}’s"
    return f"{where} keeps {words.kept(student)} of {whose} nDCG@10: {numbers}."


def _cost(results: Results, student: System) -> str:
    costs = []
    if student.query_ms is not None:
        costs.append(f"answers a query in {words.milliseconds(student.query_ms['p50'])} ms (median)")
    if student.bytes_per_document is not None:
        costs.append(f"stores {words.size(student.bytes_per_document)} bytes a document")
    if not costs:
        return f"What {student.name} costs was not measured."
    return f"{student.name} {' and '.join(costs)}{_beside(results.yardstick, student)}."


def _beside(other: System | None, student: System) -> str:
    """What the system takes that it is held against."""
    if other is None:
        return ""
    costs = []
    if other.query_ms is not None and student.query_ms is not None:
        costs.append(f"takes {words.milliseconds(other.query_ms['p50'])} ms")
    sizes = (words.size(other.bytes_per_document), words.size(student.bytes_per_document))
    if words.MISSING not in sizes and sizes[0] != sizes[1]:
        costs.append(f"stores {sizes[0]} bytes")
    return f"; {other.name} {' and '.join(costs)}" if costs else ""


def _yardsticks(results: Results, student: System) -> list[System]:
    """The teacher, the best control, the best baseline: whatever of them has a quality to compare with."""
    chosen = [results.teacher, results.yardstick if results.yardstick is not results.teacher else None]
    roles: tuple[Role, ...] = ("control", "baseline")
    for role in roles:
        measured = [system for system in results.with_role(role) if system.ndcg10 is not None]
        measured = [system for system in measured if system.name != REWRITES]
        chosen.append(max(measured, key=lambda system: system.ndcg10 or 0.0, default=None))
    unlike = [system for system in chosen if system is not None and system is not student]
    return [system for system in unlike if system.ndcg10 is not None and student.ndcg10 is not None]


def _against(results: Results, student: System, other: System) -> str:
    difference = (student.ndcg10 or 0.0) - (other.ndcg10 or 0.0)
    named = _named(results, other)
    place = f"level with {named} in nDCG@10"
    if difference:
        place = f"{abs(difference):.3f} nDCG@10 {'above' if difference > 0 else 'below'} {named}"
    sentence = f"{student.name} is {place}"
    comparison = comparison_of(results, student.name, other.name)
    sentence += f" ({verdict(comparison)})" if comparison else " (significance not tested)"
    if other.role == "control" and difference <= 0:
        sentence += ": the distillation did not help"
    return sentence + "."


def _named(results: Results, other: System) -> str:
    if other.role == "teacher" and other is not results.teacher:
        return other.name
    role = "its teacher" if other is results.teacher else f"the {other.role}"
    return role if other.name == other.role else f"{role} {other.name}"


def _other_students(results: Results, best: System) -> list[str]:
    """A sentence each; of many, one for all."""
    others = [system for system in results.with_role("student") if system is not best]
    values = [system.ndcg10 for system in others if system.ndcg10 is not None]
    if len(others) <= 2:
        return [_other_student(other, best) for other in others]
    if not values:
        return [f"{len(others)} other students were run, too."]
    reach = f"from {words.measure(min(values))} to {words.measure(max(values))}"
    return [f"The {len(others)} other students have nDCG@10 {reach}; {best.name} is the best one."]


def _picked(results: Results, best: System) -> list[str]:
    """That the one which the answer is about was picked by what it is measured on."""
    measured = [system for system in results.with_role("student") if system.ndcg10 is not None]
    if len(measured) < 2:
        return []
    return [
        f"{best.name} was picked as the best of {len(measured)} students on these same test queries, so its lead over "
        "the others is optimistic."
    ]


def _other_student(other: System, best: System) -> str:
    kept = f", {words.kept(other)} kept" if other.retention is not None else ""
    if other.ndcg10 is None:
        return f"The student {other.name} was run, too."
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
            if {"wins", "losses"} <= comparison.keys():
                turned |= {"wins": comparison["losses"], "losses": comparison["wins"]}
            return {**comparison, **turned}
    return None
