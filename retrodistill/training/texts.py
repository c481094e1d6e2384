"""Training texts: real queries, plus pseudo-queries from the documents if there are few or no real ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.leaks import ExcludedQueries, excluded_queries, leak_warning, without_leaks
from retrodistill.data.pseudo_queries import (
    document_texts,
    is_phrase,
    joined_sentences,
    load_generated,
    sample_phrases,
    sample_sentences,
    source_document,
    title_texts,
    without_words,
)
from retrodistill.data.texts import Texts
from retrodistill.rankers.analyzers import stopwords_of

_TUNING_QUERIES, _FEWEST_QUERIES = 200, 20
_MOST_SENTENCES = 100_000  # that tuning queries are drawn from


@dataclass(frozen=True)
class TrainingTexts:
    """Queries and pseudo-queries, in one order."""

    texts: Texts
    # (n,) int64 corpus position of the document that a text was taken from, of copies the first; -1 for real queries
    sources: np.ndarray
    left_out: int = 0  # texts of documents that are test queries, or nearly

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hidden(self) -> np.ndarray:
        """(n,) int64 corpus position of the document that a text is not trained on; -1 for none.

        It is the source of a pseudo-query, which lexical teachers trivially rank first. That of a phrase is not hidden:
        other documents hold the phrase as well, and the documents that a short query wants do contain its words.
        """
        return np.where(is_phrase(self.texts), -1, self.sources)


def training_queries(collection: Collection, split: str, excluded: ExcludedQueries | None) -> tuple[Texts, str | None]:
    """The queries of a split that may be trained on, and a line about the others, or None.

    Raises:
        UserError: There is no such split.
    """
    queries, leaks = without_leaks(collection.split(split), excluded)
    return queries, leak_warning(leaks)


def training_texts(  # noqa: PLR0913 - one option each
    collection: Collection,
    queries: Texts,
    *,
    titles: bool = True,
    sentences: int = 3,
    phrases: int = 0,
    documents: bool = False,
    document_words: int | None = None,
    generated: str | os.PathLike[str] | None = None,
    joined: bool = False,
    word_dropout: float | None = None,
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
        phrases: Number of phrases per document, drawn by the seed (see `sample_phrases`).
        documents: Take every document's whole text.
        document_words: Take only its first sentences, of up to this many words.
        generated: A file of queries that were generated for documents (see `load_generated`).
        joined: For each document, a sentence followed by one of another document (see `joined_sentences`).
        word_dropout: Copy all texts of documents without this share of their words (see `without_words`).
        limit: Most texts, copies included: queries, up to half of it if there are pseudo-queries too; then generated
            queries, up to half of what is left if documents have other texts too; then texts of documents. All are
            drawn evenly. None for all.
        seed: Of the draws.
        excluded: Test queries; a text of a document that is one, or nearly, is left out.

    Raises:
        UserError: Nothing is left to train on, or the generated queries are not of these documents.
    """
    written = Texts.from_pairs([]) if generated is None else load_generated(generated, collection)
    per_document = titles + sentences + phrases + documents + joined
    copies = 1 if word_dropout is None else 2
    queries, written, rows = _within(limit, len(collection.documents), queries, written, per_document * copies, seed)
    of_documents = Texts.from_pairs([])
    if titles:
        of_documents = of_documents + title_texts(collection, rows)
    if sentences:
        of_documents = of_documents + sample_sentences(collection, sentences, seed, rows)
    if phrases:
        of_documents = of_documents + sample_phrases(
            collection, phrases, seed, rows, stopwords_of(collection.documents)
        )
    if documents:
        of_documents = of_documents + document_texts(collection, rows, document_words)
    # A part of a text that is near a test query may be near it, too, without being found: such texts go first.
    of_documents, leaks = without_leaks(of_documents, excluded)
    made = Texts.from_pairs([])
    if joined:
        drawn = (sample_sentences(collection, 1, seed + number, rows) for number in (0, 1))
        firsts, seconds = (without_leaks(some, excluded)[0] for some in drawn)
        made = joined_sentences(firsts, seconds, seed)
    if word_dropout is not None:
        made = made + without_words(of_documents + made, word_dropout, seed)
    written, of_written = without_leaks(written, excluded)
    made, of_made = without_leaks(made, excluded)
    leaks += of_written + of_made
    texts = queries + written + of_documents + made
    if not len(texts):
        raise UserError(
            f"collection {collection.name}: no query and no text of documents to train on; give a split with queries, "
            "or set texts.titles, texts.sentences, texts.phrases, texts.documents or texts.generated."
        )
    sources = [source_document(text_id) for text_id in texts.ids[len(queries) :]]
    positions = collection.documents.positions([source or "" for source in sources])
    originals = collection.documents.originals[positions]
    sources_of_all = np.concatenate([np.full(len(queries), -1, dtype=np.int64), originals])
    return TrainingTexts(texts, sources_of_all, len(leaks))


def tuning_queries(collection: Collection) -> Texts:
    """Up to 200 queries to tune or check on: training queries, or sentences of the documents; no test queries."""
    excluded = excluded_queries(collection)
    queries = training_queries(collection, "auto", excluded)[0]
    if len(queries) < _FEWEST_QUERIES:
        queries = training_texts(
            collection, queries, titles=False, sentences=1, limit=_MOST_SENTENCES, excluded=excluded
        ).texts
    step = max(1, len(queries) // _TUNING_QUERIES)
    return queries.select(queries.ids[::step][:_TUNING_QUERIES])


def _within(
    limit: int | None, documents: int, queries: Texts, generated: Texts, per_document: int, seed: int
) -> tuple[Texts, Texts, np.ndarray | None]:
    """Queries, generated queries, and the rows of documents whose texts stay within a limit; None for all documents."""
    if limit is None or len(queries) + len(generated) + per_document * documents <= limit:
        return queries, generated, None
    draw = np.random.default_rng(seed)

    def some(texts: Texts, room: int, *, alone: bool) -> Texts:
        most = room if alone else max(1, room // 2)
        if len(texts) <= most:
            return texts
        return texts.select([texts.ids[row] for row in np.sort(draw.choice(len(texts), most, replace=False))])

    queries = some(queries, limit, alone=not per_document and not len(generated))
    generated = some(generated, limit - len(queries), alone=not per_document)
    if not per_document:
        return queries, generated, None
    count = min(documents, max(1, (limit - len(queries) - len(generated)) // per_document))
    return queries, generated, np.sort(draw.choice(documents, count, replace=False))
