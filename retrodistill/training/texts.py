"""Training texts: real queries, plus pseudo-queries from the documents if there are few or no real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.leaks import ExcludedQueries, leak_warning, without_leaks
from retrodistill.data.sentences import document_texts, sample_sentences, source_document, title_texts
from retrodistill.data.texts import Texts


@dataclass(frozen=True)
class TrainingTexts:
    """Queries and pseudo-queries, in one order."""

    texts: Texts
    # (n,) int64 corpus position of the document that a text was taken from, of copies the first; -1 for real queries
    sources: np.ndarray
    left_out: int = 0  # texts of documents that are test queries, or nearly

    def __len__(self) -> int:
        return len(self.texts)


def training_queries(collection: Collection, split: str, excluded: ExcludedQueries | None) -> tuple[Texts, str | None]:
    """The queries of a split that may be trained on, and a line about the others, or None.

    Raises:
        UserError: There is no such split.
    """
    queries, leaks = without_leaks(collection.split(split), excluded)
    return queries, leak_warning(leaks)


def training_texts(
    collection: Collection,
    queries: Texts,
    *,
    titles: bool = True,
    sentences: int = 3,
    documents: bool = False,
    limit: int | None = None,
    seed: int = 0,
    excluded: ExcludedQueries | None = None,
) -> TrainingTexts:
    """Gather what a student learns to encode.

    Args:
        collection: Source of pseudo-queries.
        queries: Real queries, possibly none.
        titles: Take every document's title.
        sentences: Number of sentences per document, drawn without replacement by the seed.
        documents: Take every document's whole text.
        limit: Most texts: queries, up to half of it if documents have texts too, then texts of documents that are
            drawn evenly. None for all.
        seed: Of the draws.
        excluded: Test queries; a text of a document that is one, or nearly, is left out.

    Raises:
        UserError: Nothing is left to train on.
    """
    queries, rows = _within(limit, collection, queries, titles + sentences + documents, seed)
    pseudo = Texts.from_pairs([])
    if titles:
        pseudo = pseudo + title_texts(collection, rows)
    if sentences:
        pseudo = pseudo + sample_sentences(collection, sentences, seed, rows)
    if documents:
        pseudo = pseudo + document_texts(collection, rows)
    pseudo, leaks = without_leaks(pseudo, excluded)
    texts = queries + pseudo
    if not len(texts):
        raise UserError(
            f"collection {collection.name}: no query and no text of documents to train on; give a split with queries, "
            "or set texts.titles, texts.sentences or texts.documents."
        )
    sources = [source_document(text_id) for text_id in texts.ids[len(queries) :]]
    positions = collection.documents.positions([source or "" for source in sources])
    originals = collection.documents.originals[positions]
    sources_of_all = np.concatenate([np.full(len(queries), -1, dtype=np.int64), originals])
    return TrainingTexts(texts, sources_of_all, len(leaks))


def _within(
    limit: int | None, collection: Collection, queries: Texts, per_document: int, seed: int
) -> tuple[Texts, np.ndarray | None]:
    """The queries and the rows of documents whose texts stay within a limit; None for all documents."""
    size, generator = len(collection.documents), np.random.default_rng(seed)
    if limit is None or len(queries) + per_document * size <= limit:
        return queries, None
    most = max(1, limit // 2) if per_document else limit
    if len(queries) > most:
        chosen = np.sort(generator.choice(len(queries), most, replace=False))
        queries = queries.select([queries.ids[row] for row in chosen])
    if not per_document:
        return queries, None
    count = min(size, max(1, (limit - len(queries)) // per_document))
    return queries, np.sort(generator.choice(size, count, replace=False))
