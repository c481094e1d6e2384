"""Indexes whose quantizer is learned from a teacher (Distill-VQ), beside the OPQ index that it starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.quantizers import Learned, QuantizerSettings, factory_for, learn_quantizer
from retrodistill.quantizers.codes import read_form
from retrodistill.quantizers.learning import Teacher, query_student
from retrodistill.students.registry import save_student
from retrodistill.training.settings import TextSettings
from retrodistill.training.texts import TrainingTexts, training_queries, training_texts


@dataclass(frozen=True)
class LearnedIndex:
    """A learned index, what it started from, and how learning went.

    Attributes:
        index: The learned index.
        start: The OPQ index at the same bytes, over the same documents.
        learned: History, held-out agreement, the query map where one was learned.
    """

    index: FaissIndex
    start: FaissIndex
    learned: Learned


def texts_to_learn_from(
    collection: Collection, split: str = "auto", texts: TextSettings | None = None, *, seed: int = 0
) -> TrainingTexts:
    """The queries of a split, and titles and sentences as pseudo-queries; none of them a test query."""
    texts = texts or TextSettings()
    test = collection.split("test") if "test" in collection.split_sizes else None
    queries = training_queries(collection, split, test)[0] if texts.queries else Texts.from_pairs([])
    return training_texts(
        collection,
        queries,
        titles=texts.titles,
        sentences=texts.sentences,
        documents=texts.documents,
        seed=seed,
        excluded_queries=test,
    )


def texts_with_vectors(collection: Collection, asking: Encoder, *, seed: int = 0) -> TrainingTexts:
    """As `texts_to_learn_from`, for the encoder that asks: one that only looks vectors up has none of sentences.

    Such a one learns from the queries that it has vectors of, and from whole documents where a text has the same vector
    as a query.

    Raises:
        UserError: It has vectors of no training query, and documents' vectors are no queries'.
    """
    if not asking.is_recorded:
        return texts_to_learn_from(collection, seed=seed)
    known = asking.bind(collection)
    settings = TextSettings(titles=False, sentences=0, documents=known.is_symmetric)
    found = texts_to_learn_from(collection, texts=settings, seed=seed)
    places = np.setdiff1d(np.arange(len(found)), known.missing(found.texts.texts, "query"))
    if not len(places):
        raise UserError(
            f"{asking.name} has vectors of no training query; embed some (queries.*), or give a query encoder that was "
            "distilled into its space."
        )
    ids = found.texts.ids
    return TrainingTexts(found.texts.select([ids[place] for place in places]), found.sources[places])


def learn_index(
    collection: Collection,
    documents: Encoder,
    texts: TrainingTexts,
    *,
    queries: Encoder | None = None,
    target: int | str = 16,
    settings: QuantizerSettings | None = None,
    teacher: np.ndarray | None = None,
    name: str = "distilled",
) -> LearnedIndex:
    """Embed a collection and learn a quantizer of it.

    Args:
        collection: What to index.
        documents: Encoder of the documents, whose vectors stay as they are.
        texts: Queries and pseudo-queries to learn from.
        queries: Encoder of the queries, of the documents' space; the documents' by default.
        target: Bytes of a document's codes, or the factory of the start, e.g. ``OPQ16,PQ16``, ``OPQ16,IVF64,PQ16``.
        settings: How it is learned.
        teacher: (texts, n) scores of a better ranker, any scale; the exact dense scores by default.
        name: What its runs are called.

    Raises:
        UserError: Too few documents, vectors that are not finite, a factory that cannot be learned, or queries of
            another space.
    """
    asking = documents if queries is None else queries
    space = EmbeddingSpace.of(documents)
    space.check_query_encoder(asking)
    factory = factory_for(target, documents.dimension) if isinstance(target, int) else target
    read_form(factory, documents.dimension)
    documents, asking = documents.bind(collection), asking.bind(collection)
    if asking.is_recorded:
        asking.require(texts.texts, "query")
    ids = collection.documents.ids
    vectors = np.ascontiguousarray(embed(documents, collection.documents.texts, "document"))
    check_finite(vectors, ids, documents.name)
    asked = np.ascontiguousarray(embed(asking, texts.texts.texts, "query"))
    found = learn_quantizer(
        vectors,
        asked,
        factory,
        settings or QuantizerSettings(),
        sources=texts.sources,
        teacher=None if teacher is None else _on_the_scale_of(asked, vectors, teacher),
        names=ids,
    )

    def behind(index: Any, called: str, seconds: float) -> FaissIndex:
        built = FaissIndex(index, ids, space, asking, factory, called, documents=documents)
        built.build_seconds = seconds
        return built

    learned, start = behind(found.index, name, found.seconds), behind(found.start, "opq", found.start_seconds)
    return LearnedIndex(learned, start, found)


def save_query_map(found: LearnedIndex, folder: str | os.PathLike[str], manifest: Manifest | None = None) -> Encoder:
    """Save the query encoder with the learned map at its end, as the query encoder of the learned index.

    Args:
        found: With a query map.
        folder: An ordinary sentence-transformers folder appears here.
        manifest: What it was made from.

    Raises:
        UserError: No query map was learned, or the folder holds something else.
    """
    index, query_map = found.index, found.learned.query_map
    if query_map is None or index.queries is None:
        raise UserError("no query map was learned; set query_map.")
    made_from = manifest or Manifest("student", {"space": index.space.fingerprint}, found.learned.settings.model_dump())
    about = {**made_from.about, "query_space": index.space.fingerprint}
    save_student(query_student(index.queries, query_map), replace(made_from, about=about), folder)
    index.queries = load_encoder(f"dense:{folder}", DENSE)
    return index.queries


def _on_the_scale_of(queries: np.ndarray, documents: np.ndarray, scores: np.ndarray) -> Teacher:
    """A ranker's scores with each query's mean and standard deviation of the dense scores: one scale, one temperature.

    A query whose scores are all equal keeps the dense ones.
    """

    def teach(rows: np.ndarray) -> np.ndarray:
        usual, better = queries[rows] @ documents.T, np.asarray(scores[rows], dtype=np.float32)
        spread = better.std(axis=1, keepdims=True)
        standard = (better - better.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        rescaled = usual.mean(axis=1, keepdims=True) + usual.std(axis=1, keepdims=True) * standard
        return np.where(spread > 0, rescaled, usual).astype(np.float32)

    return teach
