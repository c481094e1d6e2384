"""What the page of an evaluation says beyond its rows: differences from the first system, queries won and lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.evaluation.comparing import paired_tests
from retrodistill.evaluation.examples import MEASURE, Side, side_by_side, spread_out, won_and_lost
from retrodistill.evaluation.measures import Grades
from retrodistill.evaluation.results import Results

if TYPE_CHECKING:
    from retrodistill.evaluation.evaluating import Evaluation

_EXAMPLES = 5


def with_differences(made: Evaluation, collection: Collection, grades: Grades | None, command: str = "") -> Results:
    """The results of an evaluation with comparisons of each system with the first, and rankings of two side by side.

    The two are the first system and the best of the others.

    Args:
        made: What was measured.
        collection: On what.
        grades: Its judgments; None for none.
        command: What to print as the command that gives these numbers again.
    """
    results = made.results(command)
    first, *others = [system.name for system in results.systems]
    if not others:
        return results
    update: dict[str, Any] = {"comparisons": _comparisons(made, first, others)}
    best = max(others, key=lambda name: results.system(name).ndcg10 or 0.0)
    sides = [Side.of(name, made.kept[name].results(), made.per_query.get(name)) for name in (first, best)]
    asked = [query for query in (grades or collection.split(made.split).ids) if query in collection.queries]
    chosen = {"examples": spread_out(asked, _EXAMPLES)}
    chosen["won"], chosen["lost"] = won_and_lost(sides[0], sides[1])
    shown = {name: side_by_side(collection, grades, queries, sides[0], sides[1]) for name, queries in chosen.items()}
    return results.model_copy(update={**update, "sides": [first, best], **shown})


def _comparisons(made: Evaluation, first: str, others: list[str]) -> list[dict[str, Any]]:
    if not made.per_query:
        return []
    measures = [name for name in made.per_query[first].column_names if name != "query_id"]
    measure = MEASURE if MEASURE in measures else measures[0]
    values = {name: np.asarray(table[measure].to_numpy()) for name, table in made.per_query.items()}
    return paired_tests([(other, first) for other in others], values, measure)
