"""Rankers of passages as rankers of the documents that these were cut from, which are what is measured."""

from __future__ import annotations

from functools import partial

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.documents import best_documents, by_document, in_blocks, passage_pairs
from retrodistill.runs.run import Run, look_up


def searched(ranker: Ranker, collection: Collection) -> Collection:
    """What a ranker searches where it is measured: the collection, or the whole documents that it was cut from."""
    return collection.whole if ranker.ranks_documents(collection) else collection


def search_documents(ranker: Ranker, queries: Texts, collection: Collection, k: int) -> Run:
    """The best k documents of each query, by their passages if the collection has them; `Ranker.stream` otherwise."""
    place = searched(ranker, collection)
    if (parents := place.parents) is None:
        return ranker.stream(queries, place, k)
    combine = partial(by_document, aggregate=parents.settings.aggregate, parents=parents)
    sizes = len(place.documents), len(parents.ids)

    def find(rows: slice) -> Run:
        block = queries.select(queries.ids[rows])
        return best_documents(lambda depth: ranker.stream(block, place, depth), k, *sizes, combine)

    return in_blocks(find, len(queries), k * sizes[0] // max(sizes[1], 1))


def score_documents(ranker: Ranker, queries: Texts, collection: Collection, pairs: Run) -> Run:
    """The pairs of queries and documents with a ranker's scores, by all of their passages if there are some."""
    place = searched(ranker, collection)
    if (parents := place.parents) is None:
        return ranker.score(queries, place, pairs)
    of_passages = ranker.score(queries, place, passage_pairs(pairs, queries, place))
    scored = by_document(of_passages, parents.settings.aggregate, parents)
    return pairs.with_scores(look_up(scored, pairs), ranker.name)
