"""The answer in plain sentences: what was distilled, how much quality was kept, its cost, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrodistill.evaluation.results import REWRITES, Results, SystemResult
from retrodistill.report import text


def answer(results: Results) -> list[str]:
    """The first sentences of a report: quality, cost, then the limits; bad news as plainly as good news."""
    student = best_student(results.systems)
    if student is None:
        return _without_student(results)
    sentences = [_kept(results, student), _cost(results.yardstick, student)]
    if student.agreement is not None:
        share = f"{student.agreement.overlap10:.0%} of the ten best documents of {student.agreement.teacher}"
        # Without judgments this is the only statement about quality.
        place = 1 if student.ndcg10 is None else 2
        sentences.insert(place, f"{student.name} finds {share} among its own ten.")
    for other in _compared_with(results, student):
        failed = other.role == "control" and (student.ndcg10 or 0.0) <= (other.ndcg10 or 0.0)
        # A distillation that did not help is the main result.
        sentences.insert(1 if failed else len(sentences), _against(results, student, other))
    sentences[2:2] = [f"{warning[0].upper()}{warning[1:]}" for warning in results.warnings]
    return [*sentences, *_other_students(results, student)]


def best_student(systems: Sequence[SystemResult]) -> SystemResult | None:
    """The student with the highest nDCG@10; the first one if there are no judgments."""
    students = [system for system in systems if system.role == "student"]
    return max(students, key=lambda system: -1.0 if system.ndcg10 is None else system.ndcg10, default=None)


def comparison_of(results: Results, a: str, b: str, measure: str = "ndcg@10") -> dict[str, Any] | None:
    """The comparison of a with b, reversed if it was recorded as b with a; None if there is none."""
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


def _judged(systems: Sequence[SystemResult]) -> list[SystemResult]:
    return [system for system in systems if system.ndcg10 is not None]


def _best(systems: Sequence[SystemResult]) -> SystemResult | None:
    return max(_judged(systems), key=lambda system: system.ndcg10 or 0.0, default=None)


def _without_student(results: Results) -> list[str]:
    """The best system, and its tests against others."""
    place, best = _place(results), _best(results.systems)
    systems = "1 system was" if len(results.systems) == 1 else f"{len(results.systems)} systems were"
    if best is None:
        return [f"{systems} run on {place}. There are no relevance judgments to measure quality with."]
    first = f"{systems} measured on {place}: {best.name} has the highest nDCG@10, {text.measure(best.ndcg10)}."
    tested = [other for other in _judged(results.systems) if comparison_of(results, best.name, other.name)]
    return [first, *(_against(results, best, other) for other in tested)]


def _place(results: Results) -> str:
    queries = "1 query" if results.queries == 1 else f"{results.queries:,} queries"
    return f"{results.collection} ({results.split}, {queries})"


def _kept(results: Results, student: SystemResult) -> str:
    teacher, base = results.teacher, results.yardstick
    distilled = "" if teacher is None else f", distilled from {teacher.name},"
    if student.ndcg10 is None:
        missing = "There are no relevance judgments to measure quality with."
        return f"{student.name}{distilled} was run on {_place(results)}. {missing}"
    if base is None:
        quality = text.measure(student.ndcg10)
        return f"{student.name} has nDCG@10 {quality} on {_place(results)}. Its teacher was not measured."
    numbers = f"{text.measure(student.ndcg10)} against {text.measure(base.ndcg10)}"
    subject = f"On {results.collection} ({results.split}), {student.name}{distilled}"
    if student.retention is None:
        return f"{subject} has nDCG@10 {numbers}."
    owner = "its" if base is teacher else f"{base.name}’s"
    return f"{subject} keeps {text.percent(student.retention)} of {owner} nDCG@10: {numbers}."


def _cost(base: SystemResult | None, student: SystemResult) -> str:
    costs, costs_of_base = [], []
    if student.query_ms is not None:
        costs.append(f"answers a query in {text.milliseconds(student.query_ms['p50'])} ms (median)")
        if base is not None and base.query_ms is not None:
            costs_of_base.append(f"takes {text.milliseconds(base.query_ms['p50'])} ms")
    if student.bytes_per_document is not None:
        size = text.thousands(student.bytes_per_document)
        costs.append(f"stores {size} bytes per document")
        if base is not None and text.thousands(base.bytes_per_document) not in (text.MISSING, size):
            costs_of_base.append(f"stores {text.thousands(base.bytes_per_document)} bytes")
    if not costs:
        return f"The cost of {student.name} was not measured."
    contrast = f"; {base.name} {' and '.join(costs_of_base)}" if base is not None and costs_of_base else ""
    return f"{student.name} {' and '.join(costs)}{contrast}."


def _compared_with(results: Results, student: SystemResult) -> list[SystemResult]:
    """The teacher, the yardstick, the best control, and the best baseline, if their quality is known."""
    if student.ndcg10 is None:
        return []
    baselines = [system for system in results.with_role("baseline") if system.name != REWRITES]
    chosen = [results.teacher, results.yardstick, _best(results.with_role("control")), _best(baselines)]
    unique = {system.name: system for system in chosen if system is not None and system is not student}
    return _judged(list(unique.values()))


def _against(results: Results, student: SystemResult, other: SystemResult) -> str:
    difference = (student.ndcg10 or 0.0) - (other.ndcg10 or 0.0)
    role = "its teacher" if other is results.teacher else f"the {other.role}"
    name = role if other.name == other.role else f"{role} {other.name}"
    if other.role == "teacher" and other is not results.teacher:
        name = other.name
    place = f"level with {name} in nDCG@10"
    if difference:
        place = f"{abs(difference):.3f} nDCG@10 {'above' if difference > 0 else 'below'} {name}"
    comparison = comparison_of(results, student.name, other.name)
    verdict = "significance not tested" if comparison is None else _verdict(comparison)
    failed = ": the distillation did not help" if other.role == "control" and difference <= 0 else ""
    return f"{student.name} is {place} ({verdict}){failed}."


def _verdict(comparison: dict[str, Any]) -> str:
    """Significant or not, with interval and p; if not, the smallest detectable difference."""
    corrected = "corrected " if "p_holm" in comparison else ""
    p = text.probability(text.decisive_p(comparison))
    verdict, smallest = text.significance(comparison), comparison.get("smallest")
    is_hidden = verdict != "significant" and smallest
    visible = f"; the smallest detectable difference is {smallest:.3f}" if is_hidden else ""
    return f"{verdict}: interval {text.interval(comparison['interval'])}, {corrected}{p}{visible}"


def _other_students(results: Results, best: SystemResult) -> list[str]:
    """A sentence per other student, or one for many; and a warning that the choice of the best one favors it."""
    others = [system for system in results.with_role("student") if system is not best]
    judged = _judged(others)
    sentences = []
    if len(others) <= 2:
        for other in others:
            kept = "" if other.retention is None else f", {text.percent(other.retention)} kept"
            quality = f"has nDCG@10 {text.measure(other.ndcg10)}{kept}; {best.name} is the best one."
            sentences.append(f"The student {other.name} {'was also run.' if other.ndcg10 is None else quality}")
    elif not judged:
        sentences = [f"{len(others)} other students were also run."]
    else:
        values = sorted(system.ndcg10 or 0.0 for system in judged)
        spread = f"from {text.measure(values[0])} to {text.measure(values[-1])}"
        sentences = [f"The {len(others)} other students have nDCG@10 {spread}; {best.name} is the best one."]
    if judged and best.ndcg10 is not None:
        sentences.append(
            f"{best.name} was chosen as the best of {len(judged) + 1} students on these same test queries, so its lead "
            "over the others is optimistic."
        )
    return sentences
