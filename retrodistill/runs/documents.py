"""From passages to documents: a run over passages as one over the documents that they were cut from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.parents import BEST, Parents, document_ids, mean_of
from retrodistill.data.texts import Texts
from retrodistill.runs.run import Run

PASSAGE = "passage_id"
_ROWS = 10_000_000  # of passages that are in memory at once
_MORE = 2  # times as many passages as the documents have on average: best documents often have several good ones


def by_document(run: Run, aggregate: str = BEST, parents: Parents | None = None) -> Run:
    """A run over documents from one over passages, in rank order; a column `passage_id` names each best passage.

    A document's score is that of its best passage, or, with ``mean@n``, the mean of its n best. A passage that is not
    in the run counts there as the lowest of its query that is: the most that it can have, if the run holds the best
    passages. Documents of fewer than n passages have fewer, so `parents` is needed for their number.
    """
    best, ranked = mean_of(aggregate), run.ranked()
    names, codes = ranked.coded_documents
    documents = document_ids(names).dictionary_encode()
    groups = ranked.query_codes * len(names) + documents.indices.to_numpy()[codes]
    order = np.argsort(groups, kind="stable")  # the passages of a document stay in rank order
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    first = order[starts]
    scores = ranked.scores[first]
    if best is not None and len(scores):
        if parents is None:
            raise UserError(f"aggregate {aggregate} needs the number of passages of each document; use max.")
        lengths = np.diff(np.append(starts, len(order)))
        counted = np.arange(len(order)) - np.repeat(starts, lengths) < best
        total = np.add.reduceat(np.where(counted, ranked.scores[order], 0.0), starts)
        sizes = np.minimum(parents.sizes_of(documents.dictionary), best)[documents.indices.to_numpy()[codes[first]]]
        lowest = ranked.scores[ranked.bounds[1:] - 1][ranked.query_codes[first]]
        scores = (total + np.maximum(sizes - lengths, 0) * lowest) / sizes
    of_row = pa.DictionaryArray.from_arrays(documents.indices.take(pa.array(codes[first])), documents.dictionary)
    table = ranked.table.take(pa.array(first))
    columns = {"query_id": table["query_id"], "document_id": of_row, "score": scores, PASSAGE: table["document_id"]}
    return Run(pa.table(columns), run.name).ranked()


def best_documents(
    search: Callable[[int], Run], k: int, passages: int, documents: int, combine: Callable[[Run], Run]
) -> Run:
    """The best k documents of each query, by a search for passages that goes deep enough for k distinct ones.

    Args:
        search: From a depth to the best passages of each query; fewer where no more are found.
        k: Documents per query.
        passages: Their number.
        documents: The number of documents that they were cut from.
        combine: `by_document`, with its settings.
    """
    k = min(k, documents)
    depth = min(passages, math.ceil(_MORE * k * passages / max(documents, 1)))
    while True:
        run = search(depth)
        found = combine(run)
        lacking = np.bincount(found.query_codes) < k  # both have the same queries in the same order
        if depth >= passages or not (lacking & (np.bincount(run.query_codes) >= depth)).any():
            return found.top(k)
        depth = min(passages, 2 * depth)


def in_blocks(search: Callable[[slice], Run], queries: int, passages: int) -> Run:
    """A search of a number of queries, in blocks if it goes through many `passages` per query: bounds the memory."""
    size = max(1, _ROWS // max(1, _MORE * passages))
    runs = [search(slice(start, min(start + size, queries))) for start in range(0, max(queries, 1), size)]
    return runs[0] if len(runs) == 1 else Run(pa.concat_tables([run.table for run in runs]), runs[0].name)


def passage_pairs(pairs: Run, queries: Texts, collection: Collection) -> Run:
    """Pairs of queries and documents as pairs with all passages of these, with the documents' scores.

    Unknown ids are a `UserError`; pairs of a collection without passages are returned as they are.
    """
    if collection.parents is None:
        return pairs
    _, rows = pairs.positions(queries, collection.whole.documents)
    places, passages = collection.parents.passages_of(rows)
    of_pair, ids = pa.array(places), collection.documents.table["id"].take(pa.array(passages))
    return Run.from_arrays(pairs.table["query_id"].take(of_pair), ids, pairs.scores[places], name=pairs.name)
