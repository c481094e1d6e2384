"""Ranking measures per query, trec_eval's own or those of ir_measures, with one tie rule and nothing dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError, unknown
from retrodistill.evaluation.ranked import MEASURES, JudgedRanks
from retrodistill.runs.run import Run

Grades = Mapping[str, Mapping[str, int]]
DEFAULT_MEASURES = ("ndcg@10", "mrr@10", "recall@100")
BEIR_MEASURES = ("ndcg@10", "mrr@10", "map@1000", "recall@10", "recall@100", "recall@1000", "hole@10")
# results.json's names of ir_measures' measures; "p" is only an input.
_SHORT = {"ndcg": "nDCG", "mrr": "RR", "recall": "R", "map": "AP", "precision": "P"}
_INPUTS = {**_SHORT, "p": "P"}
# Providers besides pytrec_eval, in the order of ir_measures. No gdeval: a Perl script that fails on most ids.
_PROVIDERS = ("cwl_eval", "compat", "pyndeval", "judged", "accuracy")
_BLOCK = 512  # queries passed to trec_eval at once, as Python dictionaries: bounds the memory

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measure:
    """A measure."""

    name: str  # its column and its key in results.json: ``ndcg@10`` for ``nDCG@10``, else the string of ir_measures
    cutoff: int | None  # depth of the ranking that counts; None for the whole ranking
    computed: Any  # the measure of ir_measures that `value_at_cutoff` starts from
    is_hole: bool = False  # whether it is ``hole@k``, the share of the top k without a judgment

    @property
    def is_plain(self) -> bool:
        """Whether `JudgedRanks` has it."""
        return self.computed.NAME in MEASURES and self.computed.params.keys() <= {"cutoff", "rel"}

    def of_ranks(self, ranks: JudgedRanks) -> np.ndarray:
        """The values of a plain measure, by query."""
        if self.is_hole:
            return ranks.hole(self.cutoff or 1)
        return ranks.value(self.computed.NAME, self.cutoff, self.computed.params.get("rel", 1))

    def value_at_cutoff(self, value: float) -> float:
        """The measure of a query, from the value of ir_measures."""
        if self.computed.NAME == "RR" and self.cutoff is not None:
            return value if value >= 1 / self.cutoff - 1e-9 else 0.0
        return value


def evaluate_run(run: Run, qrels: Grades, measures: Sequence[str] = DEFAULT_MEASURES) -> pa.Table:
    """Measure a run per query, equal to beir's `EvaluateRetrieval` on complete runs.

    Every judged query counts: a query without results has 0 for every measure. All documents of the run count, those
    with the id of their query too: beir drops these, and `Collection.own_documents` tells which are the query itself
    (ArguAna, Quora): ``run.without(collection.own_documents(run.query_ids))``. Ranks are those of `Run.ranked`; by the
    id, trec_eval breaks ties the other way round, and takes scores that are equal in float32 for ties.

    Args:
        run: Search results. Queries without judgments are ignored.
        qrels: ``{query_id: {document_id: relevance}}``, graded; nDCG uses linear gains (trec_eval).
        measures: Any strings of ir_measures, such as ``nDCG@10``, ``RR(rel=2)@10`` or ``Rprec``; for short ``ndcg@k``,
            ``mrr@k``, ``recall@k``, ``map@k``, ``precision@k`` (or ``p@k``); and ``hole@k``, the share of the top k
            without a judgment for this query (1 - ir_measures' Judged@k; beir's own `hole` counts judgments for any
            query).

    Returns:
        A table query_id, then one float64 column per measure under `Measure.name`, in the order of `qrels`.

    Raises:
        UserError: Unknown measure, or no judged query.
    """
    if not qrels:
        raise UserError("no judged query to measure on; choose a split with judgments.")
    parsed = [parse_measure(measure) for measure in measures]
    ranks = JudgedRanks(run, qrels)
    values = {measure.name: measure.of_ranks(ranks) for measure in parsed if measure.is_plain}
    others = [measure for measure in parsed if not measure.is_plain]
    if others:
        values |= _by_ir_measures(others, run, qrels)
    return pa.table({"query_id": list(qrels), **{measure.name: values[measure.name] for measure in parsed}})


def means(per_query: pa.Table) -> dict[str, float]:
    """Mean of each measure over all queries."""
    names = [name for name in per_query.column_names if name != "query_id"]
    return {name: float(np.mean(per_query[name].to_numpy())) for name in names}


def parse_measure(text: str) -> Measure:
    """Read a measure: a short name such as ``ndcg@10``, or any string of ir_measures.

    A UserError names the nearest measure, or the package that ir_measures lacks for this one.
    """
    import ir_measures

    short = re.fullmatch(r"([a-z]+)@(\d+)", text)
    name, cutoff = (short.group(1), int(short.group(2))) if short else ("", 0)
    if name == "hole" and cutoff:
        return Measure(text, cutoff, ir_measures.P @ cutoff, is_hole=True)
    try:
        measure = ir_measures.parse_measure(f"{_INPUTS[name]}@{cutoff}" if name in _INPUTS else text)
        measure.validate_params()
        depth = measure.params.get("cutoff")
        if depth is not None and depth < 1:
            raise ValueError(f"cutoff {depth}")
    except (ValueError, NameError, TypeError, AssertionError) as error:
        near = unknown("measure", text, [f"{name}@k" for name in (*_SHORT, "hole")])
        raise UserError(
            f"{near} Or any string of ir_measures, such as RR(rel=2)@10, Rprec, Success@5 or infAP."
        ) from error
    canonical = next((f"{short}@{depth}" for short, name in _SHORT.items() if str(measure) == f"{name}@{depth}"), "")
    computed = measure
    if measure.NAME == "RR" and depth is not None:  # trec_eval's has no cutoff: `value_at_cutoff` applies it
        computed = type(measure)(**{key: value for key, value in measure.params.items() if key != "cutoff"})
    parsed = Measure(canonical or str(measure), depth, computed)
    _provider(parsed)
    return parsed


def measures_within(depth: int, measures: Iterable[str] = BEIR_MEASURES) -> list[str]:
    """The measures with a cutoff of at most `depth` or 10: a deeper recall would be understated."""
    return [measure for measure in measures if (parse_measure(measure).cutoff or 0) <= max(depth, 10)]


def _provider(measure: Measure) -> Any:
    """The provider of ir_measures that computes a measure: pytrec_eval if it can, or else another installed one."""
    import ir_measures

    if ir_measures.pytrec_eval.supports(measure.computed):
        return ir_measures.pytrec_eval
    others = [ir_measures.providers.registry[name] for name in _PROVIDERS]
    able = [provider for provider in others if provider.supports(measure.computed)]
    installed = next((provider for provider in able if provider.is_available()), None)
    if installed is not None:
        return installed
    hints = [hint for provider in able if (hint := provider.install_instructions())]
    raise UserError(
        f"measure {measure.name!r} cannot be computed here; {hints[0] if hints else 'use one that pytrec_eval has'}."
    )


def _by_ir_measures(measures: Sequence[Measure], run: Run, qrels: Grades) -> dict[str, np.ndarray]:
    """Values by name, in the order of `qrels`."""
    rows = {query: row for row, query in enumerate(qrels)}
    values = {measure.name: np.zeros(len(rows)) for measure in measures}
    for scores in _blocks(run.select(qrels)):
        # pytrec_eval writes beyond its arrays for grades below -1, which trec_eval treats as -1.
        grades = {query: {document: max(grade, -1) for document, grade in qrels[query].items()} for query in scores}
        for measure in measures:  # one by one: custom gains would leak into measures of the same call (0.4.3)
            for query, value in _of_block(measure, grades, scores).items():
                values[measure.name][rows[query]] = measure.value_at_cutoff(value)
    return values


def _of_block(measure: Measure, grades: dict[str, dict[str, int]], scores: Scores) -> dict[str, float]:
    """Values by query, for a block of queries."""
    found = _provider(measure).evaluator([measure.computed], grades).iter_calc(scores)
    return {metric.query_id: float(metric.value) for metric in found if metric.query_id in scores}


def _blocks(run: Run) -> Iterator[Scores]:
    """The run as dictionaries of Python floats, a block of queries at a time.

    Scores are strictly descending ranks, since every provider breaks ties in its own way, and pytrec_eval takes scores
    as float32. They are above 0: Compat takes 0 as not retrieved.
    """
    queries = iter(run.with_scores(-run.ranks))
    while block := list(islice(queries, _BLOCK)):
        yield {
            query: dict(zip(documents, (scores + len(scores) + 1).tolist(), strict=True))
            for query, documents, scores in block
        }
