"""The run, a table (query_id, document_id, score): the one value that passes between stages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, first_line, sample_of
from retrodistill.core.stores import KeyIndex
from retrodistill.data.texts import Texts, column_digest, id_places

Scores = Mapping[str, Mapping[str, float]]
TieOrder = Callable[[np.ndarray], np.ndarray]  # (m,) keys of (m,) rows; of equal scores, the lowest keys are found
_Ids: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray
_IDS = pa.dictionary(pa.int32(), pa.string())
_ID_COLUMNS = ("query_id", "document_id")
_GROUPS = 64  # of a long row of scores, whose maxima bound the k-th highest score


def top_k(scores: np.ndarray, k: int, ties: TieOrder | None = None) -> np.ndarray:
    """Positions of the k highest scores of each row: highest first, equal scores by ascending position.

    Takes (n,) or (rows, n) scores, finite or -inf; k is at least 1. Returns (min(k, n),) or (rows, min(k, n)) int64.
    Of the positions that tie for the last places, `ties` keeps those of the lowest keys, by default the first.
    """
    if scores.ndim == 2:
        width = min(k, scores.shape[1])
        return np.array([top_k(row, k, ties) for row in scores], dtype=np.int64).reshape(len(scores), width)
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    width = len(scores) // _GROUPS
    if k <= width:
        # Of groups of one element in `width`, k have a maximum of at least `least`, and so have k scores or more.
        maxima = scores[: _GROUPS * width].reshape(_GROUPS, width).max(axis=0)
        least = np.partition(maxima, width - k)[width - k]
        likely = np.flatnonzero(scores >= least)
        if len(likely) < width:
            return likely[top_k(scores[likely], k, ties_among(likely, ties))]
    # A partition is linear in n, but its ties are arbitrary: take those at the threshold in order of position.
    threshold = -np.partition(-scores, k - 1)[k - 1]
    above = np.flatnonzero(scores > threshold)
    tied, places = np.flatnonzero(scores == threshold), k - len(above)
    if ties is not None and len(tied) > places:
        tied = tied[np.argsort(ties(tied), kind="stable")]
    positions = np.sort(np.concatenate([above, tied[:places]]))
    return positions[np.argsort(-scores[positions], kind="stable")]


def ties_among(rows: np.ndarray, ties: TieOrder | None) -> TieOrder | None:
    """The keys of places among (n,) `rows`."""
    return None if ties is None else lambda places: ties(rows[places])


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A table (query_id, document_id, score[, sources]): candidates, teacher scores or search results.

    The rows of a query are adjacent; queries are in the order of their first row. Scores are raw float64 values,
    higher is better. The optional column `sources` names the systems that proposed a candidate (joined by ``+``).

    Attributes:
        table: The Arrow table; ids are dictionary-encoded.
        name: Name of the system that made it, used as the TREC tag.
    """

    table: pa.Table
    name: str = "run"

    @classmethod
    def from_arrays(
        cls,
        query_ids: _Ids,
        document_ids: _Ids,
        scores: Sequence[float] | np.ndarray | pa.ChunkedArray,
        *,
        sources: _Ids | None = None,
        name: str = "run",
    ) -> Run:
        """Build from columns of equal length.

        A missing id, a score that is not a finite number, or a pair that appears twice is a `UserError`.
        """
        columns: dict[str, pa.Array] = {
            "query_id": _as_ids(query_ids, name),
            "document_id": _as_ids(document_ids, name),
            "score": _as_scores(scores, name),
        }
        if sources is not None:
            columns["sources"] = _as_ids(sources, name)
        lengths = {column: len(values) for column, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"run {name}: columns of different length ({lengths}); each needs one value per pair.")
        run = cls(pa.table(columns), name)
        run._check_scores()
        run._check_pairs()
        codes = run.query_codes
        if np.any(np.diff(codes) < 0):
            run = cls(run.table.take(pa.array(np.argsort(codes, kind="stable"))), name)
        return run

    @classmethod
    def from_table(cls, table: pa.Table, name: str = "run") -> Run:
        """Build from an Arrow table with at least query_id, document_id and score, and check it as `from_arrays`."""
        missing = [column for column in (*_ID_COLUMNS, "score") if column not in table.column_names]
        if missing:
            raise UserError(
                f"run {name}: no column {missing[0]!r} among {table.column_names}; a run has query_id, "
                "document_id and score."
            )
        sources = table["sources"] if "sources" in table.column_names else None
        return cls.from_arrays(table["query_id"], table["document_id"], table["score"], sources=sources, name=name)

    @classmethod
    def from_dict(cls, scores: Scores, name: str = "run") -> Run:
        """Build from ``{query_id: {document_id: score}}``, as pytrec_eval and beir return it."""
        rows = [(query, document, score) for query, listed in scores.items() for document, score in listed.items()]
        queries, documents, values = zip(*rows, strict=True) if rows else ((), (), ())
        return cls.from_arrays(list(queries), list(documents), list(values), name=name)

    @classmethod
    def from_matrix(
        cls,
        query_ids: Sequence[str],
        document_ids: Sequence[str],
        rows: np.ndarray,
        scores: np.ndarray,
        *,
        name: str = "run",
    ) -> Run:
        """Build from padded search results, two (q, k) tables.

        `rows` index `document_ids`, all ids of the corpus; negative ones are padding and are dropped.
        """
        is_result = rows >= 0
        codes = np.repeat(np.arange(len(query_ids)), is_result.sum(axis=1))
        used, places = np.unique(rows[is_result], return_inverse=True)  # a run must not hold all ids of the corpus
        documents = _dictionary(places, [document_ids[row] for row in used])
        return cls.from_arrays(_dictionary(codes, query_ids), documents, scores[is_result], name=name)

    def __repr__(self) -> str:
        return f"Run({self.name}: {len(self.query_ids)} queries, {len(self)} rows)"

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def query_ids(self) -> list[str]:
        """The queries with at least one row, in order."""
        return list(self._queries[0])

    @property
    def query_codes(self) -> np.ndarray:
        """(rows,) int64: position of each row's query in `query_ids`."""
        return self._queries[1]

    @cached_property
    def document_ids(self) -> np.ndarray:
        """(rows,) object array of document ids."""
        return self.table["document_id"].to_numpy(zero_copy_only=False)

    @property
    def coded_documents(self) -> tuple[pa.Array, np.ndarray]:
        """Distinct document ids, among them all of the run, and (rows,) integer codes: places in these."""
        array = _one_chunk(self.table["document_id"])
        return array.dictionary, array.indices.to_numpy()

    @cached_property
    def scores(self) -> np.ndarray:
        """(rows,) float64 scores."""
        return self.table["score"].to_numpy()

    @cached_property
    def bounds(self) -> np.ndarray:
        """(queries + 1,) int64: rows of query i are ``bounds[i]:bounds[i + 1]``."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.query_codes, minlength=len(self.query_ids)))])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of pairs and scores, independent of the order of rows and queries; sources are not included."""
        (queries, query_codes), (documents, document_codes) = (id_codes(self.table[column]) for column in _ID_COLUMNS)
        by_query, by_document = np.argsort(queries, kind="stable"), np.argsort(documents, kind="stable")
        order = np.lexsort((np.argsort(by_document)[document_codes], np.argsort(by_query)[query_codes]))
        ids = self.table.select(_ID_COLUMNS).take(pa.array(order))
        scores = hashlib.blake2b((self.scores[order] + 0.0).tobytes(), digest_size=16)  # turns -0.0 into 0.0
        return digest(*(column_digest(ids[column].chunks) for column in _ID_COLUMNS), scores.hexdigest())

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield (query id, document ids, scores) for each query, in row order."""
        for place, query in enumerate(self.query_ids):
            rows = slice(self.bounds[place], self.bounds[place + 1])
            yield query, self.document_ids[rows], self.scores[rows]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """``{query_id: {document_id: score}}`` with plain Python floats."""
        return {query: dict(zip(ids, scores.tolist(), strict=True)) for query, ids, scores in self}

    def ranked(self) -> Run:
        """Rows of each query in rank order: score descending, then document id ascending (as text).

        This is the order of equal scores everywhere in the package: in searches, in runs that are cut, in measures.
        """
        order = self._rank_order()
        return self if order is None else Run(self.table.take(pa.array(order)), self.name)

    @property
    def ranks(self) -> np.ndarray:
        """(rows,) int64 rank of each row among its query's, from 1, in the order of `ranked`."""
        order, ranks = self._rank_order(), np.arange(1, len(self) + 1) - self.bounds[self.query_codes]
        if order is None:
            return ranks
        by_row = np.empty_like(ranks)
        by_row[order] = ranks  # the rows of a query stay in its place
        return by_row

    def top(self, k: int) -> Run:
        """The best k documents of each query, in rank order; fewer if a query has fewer."""
        return self.filter(self.ranks <= k).ranked()

    def select(self, query_ids: Iterable[str]) -> Run:
        """Rows of the given queries; unknown ids are ignored."""
        wanted = set(query_ids)
        known = np.array([query in wanted for query in self.query_ids], dtype=bool)
        return self.filter(known[self.query_codes])

    def without(self, pairs: Mapping[str, str]) -> Run:
        """Drop one document per query, ``{query_id: document_id}``: a self-match or the source of a pseudo-query."""
        excluded = np.array([pairs.get(query) for query in self.query_ids], dtype=object)
        return self.filter(self.document_ids != excluded[self.query_codes])

    def without_documents(self, ids: Collection[str]) -> Run:
        """Drop some documents of all queries."""
        return self.filter(~np.isin(self.document_ids, np.array(list(ids), dtype=object))) if ids else self

    def filter(self, keep: np.ndarray) -> Run:
        """Rows for which `keep`, (rows,) bool, is true."""
        return Run(self.table.filter(pa.array(np.asarray(keep, dtype=bool))), self.name)

    def with_scores(self, scores: np.ndarray, name: str | None = None) -> Run:
        """The same pairs with new scores (rows,); raises UserError if one is NaN or infinite."""
        column = self.table.column_names.index("score")
        table = self.table.set_column(column, "score", pa.array(np.asarray(scores, dtype=np.float64)))
        run = Run(table, name or self.name)
        run._check_scores()
        return run

    def renamed(self, name: str) -> Run:
        """The same run under another name."""
        return Run(self.table, name)

    def known(self, queries: Sequence[Texts], documents: Texts) -> tuple[Run, str | None]:
        """The rows of known ids, and a line that counts the others; None if there are no others.

        A run may have more queries and documents than a collection: all topics of a track, or documents that were
        deleted. No row with a known query and a known document is a UserError, unless the run is empty.
        """
        keep, strange = np.ones(len(self), dtype=bool), []
        for column, known in zip(_ID_COLUMNS, (queries, [documents]), strict=True):
            ids, codes = id_codes(self.table[column])
            is_known = np.logical_or.reduce([texts.positions(ids) >= 0 for texts in known])
            keep &= is_known[codes]
            if unknown := ids[~is_known].tolist():
                what = "queries" if column == "query_id" else "documents"
                strange.append(f"{len(unknown)} {what} ({sample_of(sorted(unknown))})")
        if not strange:
            return self, None
        named = " and ".join(strange)
        if not keep.any():
            raise UserError(
                f"run {self.name}: no row has a query and a document of the collection, which lacks {named}; use a run "
                "made on this collection."
            )
        return self.filter(keep), f"run {self.name}: the collection lacks {named}"

    def positions(self, queries: Texts, documents: Texts) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) int64 positions of each row's query and of its document; raises UserError if one is unknown."""
        places = []
        for column, texts in zip(_ID_COLUMNS, (queries, documents), strict=True):
            ids, codes = id_codes(self.table[column])
            of_ids = texts.positions(ids)
            self._refuse(column, ids[of_ids < 0].tolist())
            places.append(of_ids[codes])
        return places[0], places[1]

    def _refuse(self, column: str, unknown: Collection[str]) -> None:
        if len(unknown):
            raise UserError(
                f"run {self.name}: {len(unknown)} {column.removesuffix('_id')} ids are not in the collection "
                f"({sample_of(sorted(unknown))}); use a run made on this collection."
            )

    @cached_property
    def _queries(self) -> tuple[list[str], np.ndarray]:
        dictionary, codes = id_codes(self.table["query_id"])
        first = np.zeros(len(dictionary), dtype=np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last assignment of a repeated code stays
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return [str(dictionary[code]) for code in order], place[codes]

    def _rank_order(self) -> np.ndarray | None:
        """(rows,) int64 rows by query, score and document; None if they are in this order."""
        codes, scores = self.query_codes, self.scores
        same = codes[1:] == codes[:-1]
        falls = bool((~same | (scores[1:] <= scores[:-1])).all())
        tied = np.flatnonzero(same & (scores[1:] == scores[:-1]))
        if falls and not len(tied):
            return None
        names, documents = self.coded_documents
        documents = id_places(names)[documents]
        if falls and (documents[tied + 1] > documents[tied]).all():
            return None
        return np.lexsort((documents, -scores, codes))

    def _check_pairs(self) -> None:
        queries, documents = (_one_chunk(self.table[column]).indices.to_numpy() for column in _ID_COLUMNS)
        pairs = queries.astype(np.int64) * (int(documents.max(initial=0)) + 1) + documents
        ascending = np.sort(pairs)
        if (ascending[1:] == ascending[:-1]).any():
            twice = np.setdiff1d(np.arange(len(pairs)), np.unique(pairs, return_index=True)[1])
            raise UserError(
                f"run {self.name}: {len(twice)} pairs appear twice, first {self._pair(twice[0])}; keep one score per "
                "pair."
            )

    def _check_scores(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self.scores))
        if len(bad):
            raise UserError(
                f"run {self.name}: {len(bad)} scores are NaN or infinite, first {self._pair(bad[0])}; every score must "
                "be a finite number: leave out pairs without a score."
            )

    def _pair(self, row: int) -> str:
        query, document = (self.table[column][int(row)].as_py() for column in _ID_COLUMNS)
        return f"query {query!r} with document {document!r}"


def _as_ids(values: _Ids, name: str) -> pa.Array:
    """Dictionary-encoded strings without duplicates in the dictionary; numbers become strings."""
    try:
        array = _one_chunk(values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(list(values)))
        array = array.cast(_IDS) if pa.types.is_dictionary(array.type) else array.cast(pa.string()).dictionary_encode()
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise UserError(f"run {name}: ids must be strings ({first_line(error)}).") from error
    if array.null_count or array.dictionary.null_count:
        raise UserError(f"run {name}: {array.cast(pa.string()).null_count} ids are missing; every row needs both ids.")
    if pc.count_distinct(array.dictionary).as_py() < len(array.dictionary):
        array = array.cast(pa.string()).dictionary_encode()
    return array


def _as_scores(values: Sequence[float] | np.ndarray | pa.ChunkedArray, name: str) -> pa.Array:
    """float64 scores; missing ones become NaN."""
    try:
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            return pa.array(_one_chunk(values).cast(pa.float64()).to_numpy(zero_copy_only=False))
        return pa.array(np.asarray(values, dtype=np.float64))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"run {name}: scores must be numbers ({first_line(error)}).") from error


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    if pa.types.is_dictionary(column.type) and column.num_chunks > 1:
        column = column.cast(pa.string()).dictionary_encode()  # a third of the time of unify_dictionaries
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def id_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(dictionary as object array, (rows,) int64 codes) of a dictionary column, without unused entries."""
    array = _one_chunk(column)
    indices, is_used = array.indices.to_numpy(), np.zeros(len(array.dictionary), dtype=bool)
    is_used[indices] = True
    codes = (np.cumsum(is_used) - 1)[indices]
    return np.asarray(array.dictionary.filter(pa.array(is_used)).to_pylist(), dtype=object), codes


def align(runs: Sequence[Run], name: str = "union") -> tuple[Run, np.ndarray]:
    """Put runs side by side on the union of their pairs, queries in the order of their first appearance.

    Returns the union as a run with meaningless scores of 0, and a (rows, runs) float64 matrix of each run's scores, NaN
    for pairs that a run did not score.
    """
    if not runs:
        raise UserError("no run was given; give at least one.")
    query_ids, query_codes = _common([run.table["query_id"] for run in runs])
    document_ids, document_codes = _common([run.table["document_id"] for run in runs])
    width = max(len(document_ids), 1)
    keys = [queries * width + documents for queries, documents in zip(query_codes, document_codes, strict=True)]
    union = np.sort(np.concatenate(keys))
    union = union[np.append(True, union[1:] != union[:-1])[: len(union)]]
    matrix = np.full((len(union), len(runs)), np.nan)
    for column, (run, own) in enumerate(zip(runs, keys, strict=True)):
        matrix[np.searchsorted(union, own), column] = run.scores
    ids = _dictionary(union // width, query_ids), _dictionary(union % width, document_ids)
    table = pa.table([*ids, pa.array(np.zeros(len(union)))], [*_ID_COLUMNS, "score"])
    return Run(table, name), matrix


def look_up(run: Run, pairs: Run) -> np.ndarray:
    """(rows of `pairs`,) float64 scores of `run` for the pairs; NaN where it has none."""
    _, query_codes = _common([run.table["query_id"], pairs.table["query_id"]])
    document_ids, document_codes = _common([run.table["document_id"], pairs.table["document_id"]])
    own, wanted = (q * len(document_ids) + d for q, d in zip(query_codes, document_codes, strict=True))
    rows = KeyIndex(own).find(wanted)
    scores = np.full(len(wanted), np.nan)
    scores[rows >= 0] = run.scores[rows[rows >= 0]]
    return scores


def _common(columns: Sequence[pa.ChunkedArray]) -> tuple[pa.Array, list[np.ndarray]]:
    """One dictionary for several id columns, in the order of first appearance, and each column's codes in it."""
    arrays = [_one_chunk(column) for column in columns]
    names = pc.unique(pa.chunked_array([pc.unique(array).dictionary_decode() for array in arrays], pa.string()))
    coded = []
    for array in arrays:
        places = pc.index_in(array.dictionary, value_set=names).fill_null(-1).to_numpy()  # -1 for unused entries
        coded.append(places.astype(np.int64)[array.indices.to_numpy()])
    return names, coded


def _dictionary(codes: np.ndarray, names: Sequence[str] | pa.Array) -> pa.DictionaryArray:
    names = names if isinstance(names, pa.Array) else pa.array(names, pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names)
