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
    out, as in beir (ArguAna, Quora). Ties go by document id, ascending.

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
    clean = run.select(qrels).without({query: query for query in run.query_ids}).ranked()
    ranks = clean.with_scores(-(np.arange(len(clean)) - clean.bounds[clean.query_codes]).astype(np.float64))
    columns: dict[str, list] = {"query_id": list(qrels)}
    for measure, (name, cut) in zip(measures, cuts, strict=True):
        scores = (ranks.top(cut) if name == "mrr" else ranks).to_dict()
        asked = _NAMES[name] if name == "mrr" else f"{_NAMES[name]}.{cut}"
        key = _NAMES[name] if name == "mrr" else f"{_NAMES[name]}_{cut}"
        found = pytrec_eval.RelevanceEvaluator(
            {query: dict(documents) for query, documents in qrels.items()}, {asked}
        ).evaluate({query: scores.get(query, {}) for query in qrels})
        columns[measure] = [float(found.get(query, {}).get(key, 0.0)) for query in qrels]
    return pa.table(columns)


def means(per_query: pa.Table) -> dict[str, float]:
    """Mean of each measure over all queries."""
    names = [name for name in per_query.column_names if name != "query_id"]
    return {name: float(np.mean(per_query[name].to_numpy())) for name in names}


def _parse(measure: str) -> tuple[str, int]:
    parsed = re.fullmatch(r"([a-z]+)@(\d+)", measure)
    if parsed is None or parsed.group(1) not in _NAMES or int(parsed.group(2)) < 1:
        raise unknown("measure", measure, [f"{name}@k" for name in _NAMES])
    return parsed.group(1), int(parsed.group(2))
