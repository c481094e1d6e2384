"""trec_eval's nDCG, AP, P, R, and RR of a whole run at once, from the ranks of the judged documents."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.runs.run import Run

MEASURES = ("nDCG", "AP", "P", "R", "RR")  # names of ir_measures


class JudgedRanks:
    """Ranks of the judged documents of a run, in the order of `Run.ranked`.

    Queries are those of the judgments; the results of the others do not count. Values are (queries,) float64; a query
    without results has 0.
    """

    def __init__(self, run: Run, qrels: Mapping[str, Mapping[str, int]]) -> None:
        self._queries = len(qrels)
        sizes = np.fromiter(map(len, qrels.values()), dtype=np.int64, count=len(qrels))
        self._owners = np.repeat(np.arange(len(qrels)), sizes)  # of all judgments, as the next
        self._grades = np.fromiter((grade for judged in qrels.values() for grade in judged.values()), dtype=np.int64)
        self._retrieved = np.zeros(len(qrels), dtype=np.int64)
        self._run = run
        # Of retrieved judgments: their places, and their ranks from 1. Sorted by query and rank.
        self._places, self._ranks = self._rank(list(itertools.chain.from_iterable(qrels.values())), list(qrels))

    def value(self, name: str, cutoff: int | None = None, level: int = 1) -> np.ndarray:
        """A measure of `MEASURES`; grades from `level` on are relevant. P and R need a cutoff."""
        relevant = self._grades[self._places] >= level
        hits = np.flatnonzero(relevant & self._within(cutoff))
        owners, ranks = self._owners[self._places[hits]], self._ranks[hits]
        if name == "P":
            return self._sum(owners) / (cutoff or 1)
        if name == "RR":
            values = np.zeros(self._queries)
            first, places = np.unique(owners, return_index=True)
            values[first] = 1 / ranks[places]
            return values
        if name == "nDCG":
            return _ratio(self._gain(self._places, self._ranks, cutoff), self._gain(*self._ideal, cutoff))
        total = self._sum(self._owners[self._grades >= level])
        if name == "R":
            return _ratio(self._sum(owners), total)
        found = np.cumsum(relevant)[hits]  # counted over all queries
        before = np.concatenate([[0], np.cumsum(self._sum(self._owners[self._places[relevant]]))])[owners]
        return _ratio(self._sum(owners, (found - before) / ranks), total)

    def hole(self, cutoff: int) -> np.ndarray:
        """The share of the top `cutoff`, or of a shorter list, without a judgment."""
        judged = self._sum(self._owners[self._places[self._within(cutoff)]])
        shown = np.minimum(self._retrieved, cutoff)
        return np.where(shown > 0, 1 - _ratio(judged, shown), 0.0)

    def _rank(self, judged_ids: list[str], query_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
        names, documents = self._run.coded_documents
        ranked, bounds = self._run.ranks, self._run.bounds
        codes = _codes(judged_ids, names)
        starts = np.searchsorted(self._owners, np.arange(self._queries + 1))
        row_of = {query: row for row, query in enumerate(query_ids)}
        place_of = np.full(len(names), -1)  # of a document's judgment for the query at hand
        places, ranks = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for at, query in enumerate(self._run.query_ids):
            if (row := row_of.get(query)) is None:
                continue
            rows = slice(bounds[at], bounds[at + 1])
            listed = documents[rows]
            self._retrieved[row] = len(listed)
            judged = np.arange(starts[row], starts[row + 1])
            judged = judged[codes[judged] >= 0]
            place_of[codes[judged]] = judged
            hits = np.flatnonzero(place_of[listed] >= 0)
            places.append(place_of[listed[hits]])
            place_of[codes[judged]] = -1
            ranks.append(ranked[rows][hits])
        place, rank = np.concatenate(places), np.concatenate(ranks)
        order = np.lexsort((rank, self._owners[place]))
        return place[order], rank[order]

    @cached_property
    def _ideal(self) -> tuple[np.ndarray, np.ndarray]:
        """All judgments by query, best first, and their ranks from 1."""
        places = np.lexsort((-self._grades, self._owners))
        starts = np.searchsorted(self._owners, np.arange(self._queries))
        return places, np.arange(1, len(places) + 1) - starts[self._owners]

    def _gain(self, places: np.ndarray, ranks: np.ndarray, cutoff: int | None) -> np.ndarray:
        within = np.flatnonzero(ranks <= cutoff) if cutoff else slice(None)
        gains = np.maximum(self._grades[places[within]], 0) / np.log2(ranks[within] + 1.0)
        return self._sum(self._owners[places[within]], gains)

    def _within(self, cutoff: int | None) -> np.ndarray:
        return self._ranks <= (cutoff or np.inf)

    def _sum(self, owners: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(owners, values, minlength=self._queries)


def _codes(ids: list[str], names: pa.Array) -> np.ndarray:
    """(n,) place of each id among the names, -1 if it is not there."""
    places: np.ndarray = pc.index_in(pa.array(ids, pa.string()), value_set=names).fill_null(-1).to_numpy()
    return places


def _ratio(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """0 where the total is 0."""
    return np.divide(values, totals, out=np.zeros(len(values)), where=totals > 0)
