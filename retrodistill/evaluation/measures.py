"""Ranking measures per query, by pytrec_eval, with one tie rule and nothing dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, unknown
from retrodistill.runs.run import Run

Grades = Mapping[str, Mapping[str, int]]
DEFAULT_MEASURES = ("ndcg@10", "mrr@10", "recall@100")
BEIR_MEASURES = ("ndcg@10", "mrr@10", "map@1000", "recall@10", "recall@100", "recall@1000", "hole@10")
_NAMES = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P", "mrr": "recip_rank", "hole": "P"}
_BLOCK = 512  # queries handed to trec_eval at once, as Python dictionaries: bounds the memory


def evaluate_run(run: Run, qrels: Grades, measures: Sequence[str] = DEFAULT_MEASURES) -> pa.Table:
    """Measure a run per query, equal to beir's `EvaluateRetrieval` on complete runs.

    Every judged query counts: one without results has 0 throughout. A document whose id is the query's own is left
    out, as in beir (ArguAna, Quora). Ties go as in trec_eval, by document id descending, so that the figures are
    those that anyone gets from the written run file.

    Args:
        run: Search results. Queries without judgments are passed over.
        qrels: ``{query_id: {document_id: relevance}}``, graded; nDCG has linear gains (trec_eval).
        measures: ``ndcg@k``, ``mrr@k``, ``recall@k``, ``map@k``, ``precision@k`` or ``hole@k``, the share of the top k
            that nobody judged for this query (1 - ir_measures' Judged@k; beir's own `hole` asks whether a document was
            judged for any query).

    Returns:
        A table query_id, then one float64 column per measure, in the order of `qrels`.

    Raises:
        UserError: Unknown measure, or no judged query.
    """
    if not qrels:
        raise UserError("no judged query to measure on; choose a split with judgments.")
    cuts = [parse_measure(measure) for measure in measures]
    judges = _judges(qrels, cuts)
    values: dict[str, list[float]] = {}
    for scores in _blocks(run.select(qrels).without({query: query for query in run.query_ids})):
        found = {name: judge.evaluate(scores) for name, judge in judges.items()}
        for query, documents in scores.items():
            values[query] = [
                _value(found["hole" if name == "hole" else "graded"].get(query, {}), name, cut, len(documents))
                for name, cut in cuts
            ]
    nothing = [0.0] * len(cuts)
    rows = np.array([values.get(query, nothing) for query in qrels], dtype=np.float64).reshape(len(qrels), len(cuts))
    return pa.table({"query_id": list(qrels), **{measure: rows[:, at] for at, measure in enumerate(measures)}})


def means(per_query: pa.Table) -> dict[str, float]:
    """Mean of each measure over all queries."""
    names = [name for name in per_query.column_names if name != "query_id"]
    return {name: float(np.mean(per_query[name].to_numpy())) for name in names}


def parse_measure(measure: str) -> tuple[str, int]:
    """Name and cut of a measure: ``"ndcg@10"`` is ``("ndcg", 10)``.

    Raises:
        UserError: It is no measure; the nearest is named.
    """
    parsed = re.fullmatch(r"([a-z]+)@(\d+)", measure)
    if parsed is None or parsed.group(1) not in _NAMES or int(parsed.group(2)) < 1:
        raise unknown("measure", measure, [f"{name}@k" for name in _NAMES])
    return parsed.group(1), int(parsed.group(2))


def measures_within(depth: int, measures: Sequence[str] = BEIR_MEASURES) -> list[str]:
    """Those that look no deeper than `depth`, or than 10: of fewer documents, a recall would be another system's."""
    return [measure for measure in measures if parse_measure(measure)[1] <= max(depth, 10)]


def _judges(qrels: Grades, cuts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """trec_eval with the grades, and once more with every judged document as relevant: what is no hole."""
    import pytrec_eval

    graded = {_NAMES[name] if name == "mrr" else f"{_NAMES[name]}.{cut}" for name, cut in cuts if name != "hole"}
    holes = {f"{_NAMES[name]}.{cut}" for name, cut in cuts if name == "hole"}
    judges = {}
    if graded:
        grades = {query: dict(documents) for query, documents in qrels.items()}
        judges["graded"] = pytrec_eval.RelevanceEvaluator(grades, graded)
    if holes:
        judged = {query: dict.fromkeys(documents, 1) for query, documents in qrels.items()}
        judges["hole"] = pytrec_eval.RelevanceEvaluator(judged, holes)
    return judges


def _blocks(run: Run) -> Iterator[dict[str, dict[str, float]]]:
    """The run as dictionaries of plain Python floats, some queries at a time."""
    scores: dict[str, dict[str, float]] = {}
    for query, documents, values in run:
        scores[query] = dict(zip(documents, values.tolist(), strict=True))
        if len(scores) == _BLOCK:
            yield scores
            scores = {}
    if scores:
        yield scores


def _value(found: Mapping[str, float], name: str, cut: int, documents: int) -> float:
    """One measure of one query; a reciprocal rank below 1 / cut lies beyond the cut."""
    if name == "mrr":
        reciprocal = float(found.get(_NAMES[name], 0.0))
        return reciprocal if reciprocal >= 1 / cut - 1e-9 else 0.0
    value = float(found.get(f"{_NAMES[name]}_{cut}", 0.0))
    # Of a list shorter than the cut, the share of what is there.
    return 1 - value * cut / min(cut, documents) if name == "hole" else value
