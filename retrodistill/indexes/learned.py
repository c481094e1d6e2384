"""Indexes whose quantizer is learned from a teacher (Distill-VQ), each with the OPQ index that it starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.leaks import excluded_queries
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.embeddings import TextVectors, embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.reading import warn_of_length
from retrodistill.encoders.vectors import Vectors
from retrodistill.indexes.base import load_sides
from retrodistill.indexes.faiss_index import FaissIndex
from retrodistill.quantizers import Learned, QuantizerSettings, factory_for, learn_quantizer
from retrodistill.quantizers.codes import ALL, Rows, start_name
from retrodistill.quantizers.learning import Teacher, checked_form, query_student
from retrodistill.quantizers.settings import MOST_HELD
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.students.registry import save_student
from retrodistill.training.settings import TextSettings
from retrodistill.training.texts import TrainingTexts, training_queries, training_texts

_REFINED = 10  # times k documents that are ranked again


@dataclass(frozen=True)
class LearnedIndex:
    """A learned index, and how learning went: history, held-out agreement, and the query map if one was learned."""

    index: FaissIndex
    start: FaissIndex  # OPQ of the same bytes, over the same documents
    learned: Learned


def texts_to_learn_from(
    collection: Collection, split: str = "auto", texts: TextSettings | None = None, *, seed: int = 0
) -> TrainingTexts:
    """The queries of a split, and pseudo-queries, titles and sentences by default; none is a test query, or nearly."""
    texts = texts or TextSettings()
    excluded = excluded_queries(collection)
    queries = training_queries(collection, split, excluded)[0] if texts.queries else Texts.from_pairs([])
    return training_texts(collection, queries, **texts.of_documents, seed=seed, excluded=excluded)


def texts_with_vectors(collection: Collection, query_encoder: Encoder, *, seed: int = 0) -> TrainingTexts:
    """As `texts_to_learn_from`, for any query encoder.

    Recorded vectors do not cover sentences, only queries, and whole documents if a text has one vector on both sides.
    """
    if not query_encoder.is_recorded:
        return texts_to_learn_from(collection, seed=seed)
    encoder = query_encoder.bind(collection)
    settings = TextSettings(titles=False, sentences=0, documents=encoder.is_symmetric)
    texts = texts_to_learn_from(collection, texts=settings, seed=seed)
    places = np.setdiff1d(np.arange(len(texts)), encoder.missing(texts.texts.texts, "query"))
    if not len(places):
        raise UserError(
            f"{encoder.name} has vectors of no training query; embed some (queries.*), or give a query encoder that "
            "was distilled into its space."
        )
    ids = texts.texts.ids
    return TrainingTexts(texts.texts.select([ids[place] for place in places]), texts.sources[places])


def learn_index(
    collection: Collection,
    documents: Encoder,
    texts: TrainingTexts,
    *,
    queries: Encoder | None = None,
    target: int | str = 16,
    settings: QuantizerSettings | None = None,
    teacher: CorpusScores | None = None,
    name: str = "distilled",
) -> LearnedIndex:
    """Embed a collection and learn a quantizer of its vectors, which do not change, from queries and pseudo-queries.

    `queries` is a query encoder of the same space, by default the document encoder. `target` is the number of bytes of
    a document's codes, or the factory to start from, e.g. ``OPQ16,PQ16``, ``OPQ16,IVF64,PQ16``, ``ITQ384,PQ384x1``; one
    with a refinement (``,Refine(SQ8)``, ``,RFlat``) ranks ten times k documents again. `teacher` holds the texts'
    scores by a better ranker, on any scale; by default the exact dense scores. `name` is that of the runs. Too few
    documents, vectors that are not finite, a factory that cannot be learned, and queries of another space raise a
    UserError.
    """
    encoder, query_encoder, space = load_sides(documents, queries, DENSE)
    factory = factory_for(target, encoder.dimension) if isinstance(target, int) else target
    form = checked_form(factory, encoder.dimension, settings or QuantizerSettings())
    encoder, query_encoder = encoder.bind(collection), query_encoder.bind(collection)
    if query_encoder.is_recorded:
        query_encoder.require(texts.texts, "query")
    warn_of_length(encoder, collection)
    ids = collection.documents.ids
    vectors: Vectors
    if len(ids) > MOST_HELD and encoder.needs_store("document"):
        vectors = TextVectors(encoder, collection.documents, "document")
    else:
        vectors = embed(encoder, collection.documents.column, "document")
    query_vectors = embed(query_encoder, texts.texts.texts, "query")
    teach = None if teacher is None else _rescaled(teacher, query_vectors, vectors)
    learned = learn_quantizer(
        vectors,
        query_vectors,
        factory,
        settings,
        sources=texts.sources,
        hidden=texts.hidden,
        teacher=teach,
        names=ids,
    )
    index = FaissIndex(learned.index, ids, space, query_encoder, factory, name, documents=encoder)
    start = FaissIndex(learned.start, ids, space, query_encoder, factory, start_name(factory), documents=encoder)
    if form.refinement is not None:
        index.parameters = start.parameters = f"k_factor_rf={_REFINED}"
    index.build_seconds, start.build_seconds = learned.seconds, learned.start_seconds
    index.parents = start.parents = collection.parents
    return LearnedIndex(index, start, learned)


def save_query_map(result: LearnedIndex, folder: str | os.PathLike[str], manifest: Manifest | None = None) -> Encoder:
    """Save the query encoder with the learned map as its last module, and use it in the learned index.

    The folder is one of sentence-transformers; its manifest says what the encoder was made from.
    """
    index, query_map = result.index, result.learned.query_map
    if query_map is None or index.queries is None:
        raise UserError("no query map was learned; set query_map.")
    space = index.space
    manifest = manifest or Manifest("student", {"space": space.fingerprint}, result.learned.settings.model_dump())
    about = {"query_space": space.fingerprint, "query_space_contract": space.contract}
    manifest = replace(manifest, about={**manifest.about, **about})
    save_student(query_student(index.queries, query_map), manifest, folder)
    index.queries = load_encoder(f"dense:{folder}", DENSE)
    return index.queries


def _rescaled(scores: CorpusScores, queries: np.ndarray, documents: Vectors) -> Teacher:
    """A ranker's scores with the mean and standard deviation of each query's dense scores: one temperature fits all.

    Both are taken over all documents, or over the ranker's reference sample of those that are not in memory.
    """
    count = documents.shape[0]
    sample = scores.reference() if count > MOST_HELD else None
    known = documents[ALL if sample is None else sample]

    def teach(rows: np.ndarray, columns: Rows) -> np.ndarray:
        dense, better = queries[rows] @ known.T, scores.of(rows, sample)
        mean, deviation = dense.mean(axis=1, keepdims=True), dense.std(axis=1, keepdims=True)
        center, spread = better.mean(axis=1, keepdims=True), better.std(axis=1, keepdims=True)
        if sample is None:
            dense, better = dense[:, columns], better[:, columns]
        else:
            dense = queries[rows] @ documents[columns].T
            better = scores.of(rows, np.arange(count)[columns])
        rescaled = mean + deviation * ((better - center) / np.where(spread > 0, spread, 1.0))
        return np.where(spread > 0, rescaled, dense).astype(np.float32)  # equal scores teach nothing

    return teach
