"""Multi-vector students: a vector per token, of any transformer (ColBERT, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector
from retrodistill.encoders.modules import keep_first_layers, with_modules
from retrodistill.encoders.multi_vector import MultiVectorModel, fitted_on, principal_directions, token_encoder
from retrodistill.rankers.multi_vector import MultiVectorRanker
from retrodistill.students.clustering import with_clusters
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.students.states import StoredStatesRanker

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from retrodistill.training.stages import StageRun
    from retrodistill.training.trainer import History

_TOKEN_WIDTH = 128  # of a token vector (ColBERT, arXiv 2004.12832)


def multi_vector_student(
    source: str,
    corpus: Sequence[str],
    *,
    dimension: int | None = None,
    layers: int | None = None,
    max_length: int | None = None,
    expansion: int | None = None,
) -> MultiVectorEncoder:
    """A multi-vector encoder to start from.

    A multi-vector encoder starts as it is. A bi-encoder's transformer gets a projection, which begins with the
    directions that keep inner products of its tokens best, and unit length for each token.

    Args:
        source: Folder or hub name of a multi-vector encoder or a bi-encoder.
        corpus: Documents that the projection is fitted on.
        dimension: Width of a token vector; the transformer's by default.
        layers: Number of transformer layers to keep, from the first.
        max_length: Tokens of a document; the model's own by default.
        expansion: Number of tokens that queries are filled up to with the mask token, whose vectors count (query
            augmentation).

    Raises:
        UserError: Not to be found, no transformer, a width or a number of layers that it does not have, or no token
            to expand with.
    """
    try:
        model = load_multi_vector(source)
    except UserError:
        model = _from_bi_encoder(source, corpus, dimension, layers, max_length)
    else:
        if dimension is not None and dimension != model.get_embedding_dimension():
            raise UserError(
                f"dimension={dimension}: model {source} has token vectors of {model.get_embedding_dimension()} "
                "dimensions; leave dimension out, or start from a bi-encoder."
            )
        if layers is not None:
            keep_first_layers(model, layers)  # type: ignore[arg-type]
        if max_length is not None:
            model[0].document_length = max_length  # type: ignore[assignment]
    if expansion is not None:
        try:
            model[0].query_expansion = {"strategy": "min", "attend": False, "length": expansion}  # type: ignore[assignment]
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"expansion={expansion}: model {source} cannot expand queries ({reason[:160]})") from error
    return model


def _from_bi_encoder(
    source: str, corpus: Sequence[str], dimension: int | None, layers: int | None, max_length: int | None
) -> MultiVectorEncoder:
    if layers is None and dimension is None:
        return token_encoder(source, document_length=max_length)
    plain = token_encoder(source, document_length=max_length)
    if layers is not None:
        keep_first_layers(plain, layers)  # type: ignore[arg-type]
    width = int(plain.get_embedding_dimension() or 0)
    if dimension is None or dimension == width:
        return plain
    if not 1 <= dimension <= width:
        raise UserError(f"dimension={dimension}: tokens by {source} have {width}; choose from 1 to {width}.")
    tokens = MultiVectorModel(plain, f"multi-vector:{source}").encode(fitted_on(corpus), "document")
    return _projected(plain, principal_directions(tokens.vectors)[:dimension])


def _projected(plain: MultiVectorEncoder, directions: np.ndarray) -> MultiVectorEncoder:
    """The model with a linear map without bias behind its transformer."""
    import torch
    from sentence_transformers.base.modules import Dense

    transformer, *rest = list(plain)
    projection: Any = Dense(
        directions.shape[1],
        directions.shape[0],
        bias=False,
        activation_function=None,
        module_input_name="token_embeddings",
    )
    projection.linear.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(directions)))
    modules = [transformer, projection.to(plain.device), *rest]
    made: MultiVectorEncoder = with_modules(plain, modules, "MultiVectorEncoder", "maxsim")
    return made


def _start(settings: Any, data: Any) -> MultiVectorEncoder:
    model = multi_vector_student(
        settings.model.partition(":")[2],
        data.collection.documents.texts,
        dimension=settings.dimension,
        layers=settings.layers,
        max_length=settings.max_length,
        expansion=settings.expansion,
    )
    return _at_stage(model, settings, 0)


def _at_stage(model: Any, settings: Any, stage: int) -> Any:
    """With clusters from the stage on that begins with them; from the start where there is no stage."""
    begins = settings.clustered_from - 1 if settings.stages else 0
    return with_clusters(model, settings.clusters) if settings.clusters and stage == begins else model


def _complete(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A width below the transformer's, so that there is a projection to train; a multi-vector encoder has its own."""
    if "dimension" in settings:
        return {}
    try:
        load_multi_vector(name)
    except UserError:
        transformer: Any = load_bi_encoder(name)[0]  # raises a clear error if it is neither
        return {"dimension": max(1, min(_TOKEN_WIDTH, int(transformer.get_embedding_dimension()) // 2))}
    return {}


def _check(settings: Any) -> None:
    if settings.dimension == "space":
        raise ValueError("a multi-vector student's dimension is a number: that of a token's vector")
    if settings.clustered_from > 1 and not settings.clusters:
        raise ValueError("clustered_from says when clusters begin; set clusters, e.g. C8x32")
    if settings.clustered_from > max(1, len(settings.stages)):
        raise ValueError(f"clustered_from: {settings.clustered_from}, and there are {len(settings.stages)} stages")


def _train(run: StageRun) -> History:
    from retrodistill.students.multi_vector_training import train_multi_vector

    return train_multi_vector(run)


def _store_documents(student: Any, texts: Sequence[str]) -> None:
    from retrodistill.students.multi_vector_training import store_documents

    store_documents(student, texts)


def _exhaustive(student: Any, name: str) -> StoredStatesRanker:
    from retrodistill.students.multi_vector_training import exhaustive

    return exhaustive(student, name)


KIND = Kind(
    "multi-vector",
    library_class="MultiVectorEncoder",
    written="multi-vector:NAME",
    start=_start,
    load=lambda folder: load_encoder(f"multi-vector:{folder}", MULTI_VECTOR),
    wrap=MultiVectorModel,
    train=_train,
    ranker=lambda student, documents: MultiVectorRanker(student),
    store_documents=_store_documents,
    exhaustive=_exhaustive,
    parts=("head", "both_encoders"),
    defaults=lambda _: StageDefaults("head", {"learning_rate": 1e-3, "batch_size": 32, "warmup": 0.05}, 0.02),
    options=frozenset({"expansion", "dimension", "clusters", "clustered_from"}),
    complete=_complete,
    check=_check,
    at_stage=_at_stage,
    index="multi-vector",
    card="multi-vector",
)
