"""Ranking measures per query, by pytrec_eval, with one tie rule and nothing dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from retrodistill.errors import UserError, unknown
from retrodistill.runs.run import Run

DEFAULT_MEASURES = ("ndcg@10", "mrr@10", "recall@100")
_NAMES = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P", "mrr": "recip_rank"}


def evaluate_run(
    run: Run, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str] = DEFAULT_MEASURES
) -> pa.Table:
    """Measure a run per query, equal to beir's `EvaluateRetrieval` on complete runs.

    Every judged query counts: one without results has 0 throughout. A document whose id is the query's own is left
    out, as in beir (ArguAna, Quora). Ties go as in trec_eval, by document id descending, so that the figures are
    those that anyone gets from the written run file.

    Args:
        run: Search results. Queries without judgements are passed over.
        qrels: ``{query_id: {document_id: relevance}}``, graded; nDCG has linear gains (trec_eval).
        measures: ``ndcg@k``, ``mrr@k``, ``recall@k``, ``map@k`` or ``precision@k``.

    Returns:
        A table query_id, then one float64 column per measure, in the order of `qrels`.

    Raises:
        UserError: Unknown measure, or no judged query.
    """
    import pytrec_eval

    if not qrels:
        raise UserError("no judged query to measure on; choose a split with judgements.")
    cuts = [_parse(measure) for measure in measures]
    scores = run.select(qrels).without({query: query for query in run.query_ids}).to_dict()
    asked = {_NAMES[name] if name == "mrr" else f"{_NAMES[name]}.{cut}" for name, cut in cuts}
    evaluator = pytrec_eval.RelevanceEvaluator({query: dict(documents) for query, documents in qrels.items()}, asked)
    found = evaluator.evaluate({query: scores.get(query, {}) for query in qrels})
    columns: dict[str, list] = {"query_id": list(qrels)}
    for measure, (name, cut) in zip(measures, cuts, strict=True):
        columns[measure] = [_value(found.get(query, {}), name, cut) for query in qrels]
    return pa.table(columns)


def means(per_query: pa.Table) -> dict[str, float]:
    """Mean of each measure over all queries."""
    names = [name for name in per_query.column_names if name != "query_id"]
    return {name: float(np.mean(per_query[name].to_numpy())) for name in names}


def _value(found: Mapping[str, float], name: str, cut: int) -> float:
    """One measure of one query; a reciprocal rank below 1 / cut lies beyond the cut."""
    if name != "mrr":
        return float(found.get(f"{_NAMES[name]}_{cut}", 0.0))
    reciprocal = float(found.get(_NAMES[name], 0.0))
    return reciprocal if reciprocal >= 1 / cut - 1e-9 else 0.0


def _parse(measure: str) -> tuple[str, int]:
    parsed = re.fullmatch(r"([a-z]+)@(\d+)", measure)
    if parsed is None or parsed.group(1) not in _NAMES or int(parsed.group(2)) < 1:
        raise unknown("measure", measure, [f"{name}@k" for name in _NAMES])
    return parsed.group(1), int(parsed.group(2))
