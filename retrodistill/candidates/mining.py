"""Mining: several rankers propose candidates; the union records the sources. Filters drop false negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.candidates.samplers import random_documents
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection, Qrels
from retrodistill.data.texts import Texts
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import with_content
from retrodistill.runs.fusion import union
from retrodistill.runs.run import Run


def mine(
    collection: Collection,
    queries: Texts | str,
    sources: Sequence[Any],
    depth: int = 100,
    *,
    random: int = 0,
    seed: int = 0,
) -> Run:
    """Propose candidates for queries.

    Args:
        collection: Collection that holds the documents.
        queries: Queries, or the name of a split.
        sources: Model names (``bm25``, ``dense:...``, ``run:FILE``) or objects (runs, encoders, indexes).
        depth: Maximum number of documents per query and source.
        random: Number of additional documents drawn from the corpus per query; their source is ``random``.
        seed: Seed of the random draws.

    Returns:
        A run with `sources` (names joined by ``+``), ordered by the sum of reciprocal ranks over the sources.
        Documents that were only drawn at random come last, with score 0. A document that is the query itself is no
        candidate (see `Collection.own_documents`).

    Raises:
        UserError: No source, a depth below 1, a split without queries, or a source that cannot search.
    """
    if isinstance(sources, str):
        raise UserError(f"sources={sources!r}: give a list, e.g. [{sources!r}].")
    if not sources:
        raise UserError("no source of candidates; give at least one, e.g. ['bm25'].")
    if depth < 1 or random < 0:
        raise UserError(f"depth={depth}, random={random}: depth is at least 1 and random at least 0.")
    texts = collection.split(queries) if isinstance(queries, str) else queries
    if not len(texts):
        raise UserError(f"collection {collection.name} has no queries to mine for in {queries!r}; name another split.")
    rankers = [load_ranker(source, needs="search") for source in sources]
    own = collection.own_documents(texts.ids)
    runs = [ranker.search(texts, collection, depth + bool(own)).without(own).top(depth) for ranker in rankers]
    if random:
        runs.append(random_documents(texts.ids, collection.documents.ids, random, seed).without(own))
    pool = union(runs, weights=[1.0] * len(sources) + [0.0] * (len(runs) - len(sources)))
    return with_content(pool, texts, collection)  # recorded runs and random draws may name blank documents


def with_positives(pool: Run, documents: Texts, listed: Sequence[tuple[str, Sequence[str]]]) -> Run:
    """The pool with the positives that are listed for its queries, last in order; ids that are no document are not."""
    queries = [query for query, named in listed for _ in named]
    named = [document for _, of_query in listed for document in of_query]
    known = documents.positions(named) >= 0
    if not known.any():
        return pool
    added = Run.from_arrays(queries, named, np.zeros(len(named)), name="positives")
    return union([pool, added.filter(known)], weights=[1.0, 0.0])


def distinct_documents(run: Run, documents: Texts) -> Run:
    """Of documents of a query with equal texts only the best, under the id of the first document of that text.

    A document is not a negative for a query that its copy answers.
    """
    if documents.copies is None:
        return run
    rows = documents.positions(run.coded_documents[0].to_pylist())
    first = np.where(rows >= 0, documents.originals[rows], -1 - np.arange(len(rows)))  # unknown ids stay as they are
    if (first == rows)[rows >= 0].all():
        return run
    ranked = run.ranked()
    names, codes = ranked.coded_documents
    texts = np.unique(first, return_inverse=True)[1]
    best = np.unique(ranked.query_codes * len(names) + texts[codes], return_index=True)[1]
    renamed = np.asarray(names.to_pylist(), dtype=object)
    renamed[rows >= 0] = documents.table["id"].take(pa.array(first[rows >= 0])).to_pylist()
    column = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(renamed, pa.string()))
    at = ranked.table.column_names.index("document_id")
    table = ranked.table.set_column(at, "document_id", column).take(pa.array(np.sort(best)))
    return Run.from_table(table, run.name)


def labeled_positives(run: Run, labels: Qrels) -> dict[str, str]:
    """The positive of each query: of its labeled documents in the run, the best by grade, then by score."""
    grades, positives = labels.to_dict(), {}
    for query, documents, _ in run.ranked():
        judged = grades.get(query, {})
        best = max(documents, key=lambda document: judged.get(document, 0))  # the first of several
        if judged.get(best, 0) > 0:
            positives[query] = str(best)
    return positives


def negative_ceiling(
    positives: np.ndarray, *, margin: float | None = None, relative: float | None = None
) -> np.ndarray:
    """The highest teacher score of a negative that is kept, by (n,) scores of the positives.

    Positive-aware mining (NV-Retriever, arXiv 2407.15831): the score minus `margin` (TopK-MarginPos), or the share
    `relative` of it (TopK-PercPos), below it for negative scores too.
    """
    if margin is not None:
        return positives - margin
    return positives - (1.0 - (1.0 if relative is None else relative)) * np.abs(positives)


def require_calibrated(scores: np.ndarray, name: str) -> None:
    """Reject scores of which a share has no meaning; shares need 0 to mean "not relevant".

    Cosines, probabilities, and scores from 0 (BM25, min-max) pass. Logits and z-scores do not: some are negative, and
    some are beyond -1 to 1.
    """
    lowest, highest = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 0.0)
    if lowest < -1 or (lowest < 0 and highest > 1):
        raise UserError(
            f"{name} has negative scores (from {lowest:.3g} to {highest:.3g}), for which a share has no meaning; "
            "calibrate them, e.g. with 'minmax' or labels: sigmoid, or filter by a margin."
        )


def keep_below_margin(run: Run, positives: dict[str, str], margin: float) -> Run:
    """Keep the positive and documents that the teacher scores at least `margin` below it, on any scale, logits too.

    `positives` are ``{query_id: document_id}``: each has a score in the run, and a query without one keeps all its
    rows. The margin is 0 or more, in the unit of the scores.
    """
    if not margin >= 0:  # NaN too
        raise UserError(f"margin={margin}: it is 0 or more, in the unit of the teacher's scores.")
    return _keep_below(run, positives, lambda scores: negative_ceiling(scores, margin=margin))


def keep_below_share(run: Run, positives: dict[str, str], share: float = 0.95) -> Run:
    """Keep the positive and documents with at most `share` of its score (TopK-PercPos).

    From NV-Retriever, arXiv 2407.15831.

    A share is meaningful only where 0 means "not relevant": cosines, probabilities, min-max scaled lists.

    Raises:
        UserError: The scores are raw logits or z-scores: use `keep_below_margin`.
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share}: it must be above 0 and at most 1.")
    require_calibrated(run.scores, f"run {run.name}")
    return _keep_below(run, positives, lambda scores: negative_ceiling(scores, relative=share))


def _keep_below(run: Run, positives: dict[str, str], limit: Callable[[np.ndarray], np.ndarray]) -> Run:
    """The positives, and the rows that score at most `limit` of their query's positive."""
    by_query = np.array([positives.get(query) for query in run.query_ids], dtype=object)
    is_positive = run.document_ids == by_query[run.query_codes]
    score = np.full(len(run.query_ids), np.nan)
    score[run.query_codes[is_positive]] = run.scores[is_positive]
    lost = [query for query, value in zip(run.query_ids, score, strict=True) if query in positives and np.isnan(value)]
    if lost:
        raise UserError(f"run {run.name}: {len(lost)} positives have no score, first of query {lost[0]!r}; score them.")
    ceiling = np.where(np.isnan(score), np.inf, limit(score))
    return run.filter(is_positive | (run.scores <= ceiling[run.query_codes]))
