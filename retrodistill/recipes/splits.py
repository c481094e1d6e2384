"""Which queries a job trains on and which it is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.data.collection import judgments_of
from retrodistill.data.leaks import ExcludedQueries, without_leaks
from retrodistill.data.pseudo_queries import document_texts, sample_sentences, title_texts
from retrodistill.evaluation.examples import spread_out
from retrodistill.recipes.settings import SplitSettings
from retrodistill.training.texts import training_queries

_HELD_OUT = 300  # most queries that are held out; a fifth of them, if that is less
_LEAST = 10  # training queries from which some can be held out


@dataclass(frozen=True)
class Queries:
    """The queries of a job.

    Attributes:
        collection: With the judgments of the queries that are measured on, if there are any.
        train: Training queries. None of them is barred, or nearly.
        test: Queries to measure on.
        barred: What nothing is trained on: `test`, and with `held_out` the split for testing, too.
        notes: What a reader of the results should know.
    """

    collection: Collection
    train: Texts
    test: Texts
    barred: Texts
    notes: list[str]


def split_queries(given: Collection, split: SplitSettings, seed: int) -> Queries:
    """Split the queries of a collection; one without queries gets texts of its documents in their place.

    Raises:
        UserError: There is no such split, or there are too few training queries to hold some out.
    """
    collection = given
    if not len(given.queries):
        if split.held_out:
            raise UserError(
                f"split.held_out: {given.name} has no queries; add queries.jsonl, for instance a query log."
            )
        collection = replace(given, queries=_made_queries(given, seed))
    test = queries_of_split(collection, split.test) if len(given.queries) else collection.queries
    train, warning = training_queries(given, split.train, ExcludedQueries(test, split.leaks))
    if split.held_out:
        return _held_out(collection, split, train, test)
    if collection.qrels:
        return Queries(collection, train, test, test, [warning] if warning else [])
    lacks, which = "relevance judgments", f"of its {len(given.queries)} queries"
    if not len(given.queries):
        lacks, which = "queries", "texts of its documents"
    note = (
        f"{collection.name} has no {lacks}, so quality is not measured; agreement and cost are measured on {len(test)} "
        f"{which}, which were held out from training."
    )
    return Queries(collection, train, test, test, [note])


def queries_of_split(collection: Collection, split: str) -> Texts:
    """The queries of a split; without judgments in the collection, a sample of all queries."""
    if collection.qrels:
        queries = collection.split(split)
        collection.relevance(split)  # raises if the split has no judgments
        return queries
    return _sample(collection.split("all"))


def _held_out(collection: Collection, split: SplitSettings, train: Texts, test: Texts) -> Queries:
    """Some of the training queries in the place of the test queries, which are not read any more."""
    if len(train) < _LEAST:
        raise UserError(
            f"split.held_out: {collection.name} has {len(train)} training queries, and at least {_LEAST} are needed to "
            "hold some out; add queries without judgments, such as a query log, to queries.jsonl."
        )
    chosen = _sample(train)
    rest, _ = without_leaks(train, ExcludedQueries(chosen, split.leaks))
    known = {name: judged for name, judged in collection.qrels.items() if name != split.test}
    judged = judgments_of(chosen, known.values())
    without_test = collection.queries.select([query for query in collection.queries.ids if query not in test])
    reduced = replace(collection, queries=without_test, qrels=known | ({split.test: judged} if len(judged) else {}))
    note = f"measured on {len(chosen)} training queries that were held out (split.held_out), not on test queries."
    return Queries(reduced, rest, chosen, test + chosen, [note])


def _sample(queries: Texts) -> Texts:
    return queries.select(spread_out(queries.ids, min(_HELD_OUT, max(1, len(queries) // 5))))


def _made_queries(collection: Collection, seed: int) -> Texts:
    """One text of each of some documents, in the place of test queries: a sentence, or the title, or the whole."""
    count = len(collection.documents)
    rows = np.unique(np.linspace(0, count - 1, min(_HELD_OUT, max(1, count // 5)), dtype=np.int64))
    for texts in (sample_sentences(collection, 1, seed, rows), title_texts(collection, rows)):
        if len(texts):
            return texts
    texts = document_texts(collection, rows)
    if not len(texts):
        raise UserError(f"{collection.name} has no queries, and its documents have no text; add queries.jsonl.")
    return texts
