"""The student of a recipe as it starts, of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.sentences import title_texts
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder, load_encoder
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.recipes.settings import RERANKERS, StudentSettings
from retrodistill.students.clustering import with_clusters
from retrodistill.students.cross_encoder import cross_encoder_student
from retrodistill.students.dense import dense_student
from retrodistill.students.fitted_maps import fit_exit_maps, fit_map
from retrodistill.students.hybrid import hybrid_student
from retrodistill.students.multi_exit import multi_exit
from retrodistill.students.multi_vector import multi_vector_student
from retrodistill.students.sparse import sparse_student
from retrodistill.students.static import static_student
from retrodistill.training.training_data import TrainingData

_FITTED = 4096  # texts that a map starts from


def build_student(settings: StudentSettings, data: TrainingData) -> Any:
    """The student before training."""
    space = space_of(data)
    if settings.model == "static":
        lent = load_encoder(settings.tokenizer) if settings.tokenizer and isinstance(space, VectorFile) else None
        corpus = data.collection.documents
        return static_student(space, corpus, initialize=settings.initialize, seed=data.seed, tokenizer=lent)
    source, corpus = settings.model.partition(":")[2], data.collection.documents
    layers, max_length = settings.layers, settings.max_length
    if settings.kind == "sparse":
        return sparse_student(
            source,
            corpus,
            queries=settings.queries,
            head=settings.head,
            lexical_terms=settings.lexical_terms,
            layers=layers,
            max_length=max_length,
        )
    if settings.kind == "multi-vector":
        width = None if settings.dimension == "space" else settings.dimension
        tokens = multi_vector_student(
            source,
            corpus.texts,
            dimension=width,
            layers=layers,
            max_length=max_length,
            expansion=settings.expansion,
        )
        return clustered_from_stage(tokens, settings, 0)
    if settings.kind in RERANKERS:
        return _reranker(settings, source, corpus, data.seed)
    fitted = settings.initialize == "fitted"
    dimension = space.dimension if settings.dimension == "space" or fitted else settings.dimension
    model = dense_student(
        source,
        layers=layers,
        dimension=dimension,
        mapped=fitted,
        max_length=max_length,
        seed=data.seed,
    )
    if fitted:
        texts = _fitted_texts(data)
        vectors = embed(space, texts, "query")
        fit_map(model, texts, vectors, Encoder(model, "dense:student").prompt("query"))
    if settings.lexical_dim:
        return hybrid_student(model, settings.lexical_dim, corpus, seed=data.seed)
    return _with_exits(model, settings, data) if settings.exits else model


def _with_exits(model: Any, settings: StudentSettings, data: TrainingData) -> Any:
    """Exits behind a dense student's layers, those with maps of their own fitted to training queries and titles."""
    found = multi_exit(model, settings.exits, project=settings.project_exits)
    if settings.project_exits:
        fit_exit_maps(found, _fitted_texts(data), Encoder(found, "dense:student").prompt("query"))
    return found


def _fitted_texts(data: TrainingData) -> list[str]:
    """Training queries and titles, evenly drawn, that maps are fitted to."""
    texts = [*data.queries.texts, *title_texts(data.collection).texts]
    rows = np.unique(np.linspace(0, len(texts) - 1, min(_FITTED, len(texts)), dtype=int))
    return [texts[row] for row in rows]


def _reranker(settings: StudentSettings, source: str, corpus: Texts, seed: int) -> Any:
    """A student that scores pairs, before training."""
    layers, max_length = settings.layers, settings.max_length
    width = None if settings.dimension == "space" else settings.dimension
    if settings.kind == "prett":
        from retrodistill.students.prett import prett_student

        cut = {"join": settings.join, "layers": layers, "dimension": width, "max_length": max_length}
        return prett_student(source, corpus.texts, **cut, seed=seed)
    if settings.kind == "tk":
        from retrodistill.students.tk import tk_student

        return tk_student(source, corpus.texts, layers=layers or 2, dimension=width, max_length=max_length)
    return cross_encoder_student(source, layers=layers, max_length=max_length, seed=seed)


def clustered_from_stage(model: Any, settings: StudentSettings, stage: int) -> Any:
    """The model as a stage, from 0, finds it: with clusters from the stage on that begins with them."""
    begins = settings.clustered_from - 1 if settings.stages else 0
    return with_clusters(model, settings.clusters) if settings.clusters and stage == begins else model


def space_of(data: TrainingData) -> Encoder:
    """The space of a job.

    Raises:
        UserError: It has none.
    """
    if data.space is None:
        raise UserError("no space is given; name the dense model whose documents are searched.")
    return data.space
