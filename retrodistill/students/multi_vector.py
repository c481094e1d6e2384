"""Multi-vector students: a vector per token, of any transformer (ColBERT, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling
from torch import Tensor, nn

from retrodistill.core.errors import UserError, first_line
from retrodistill.core.runtime import main_first
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import TokenVectors
from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector
from retrodistill.encoders.modules import keep_first_layers
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens, best_documents, fitted_on, token_encoder
from retrodistill.rankers.bi_encoder import MultiVectorRanker
from retrodistill.students.clustering import TokenClusters, with_clusters, without_clusters
from retrodistill.students.pruning import pruned
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.students.stored_states import (
    HeadScorer,
    States,
    StoredStatesRanker,
    backbone_of,
    best_products,
    head_of,
    store_from_states,
    stored_states,
    through_modules,
    train_head,
)
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import ColumnScorer, TokenBatch
from retrodistill.training.stages import BothEncoders, StageRun, train_both
from retrodistill.training.trainer import History

_TOKEN_WIDTH = 128  # of a token vector (ColBERT, arXiv 2004.12832)
_Flat = tuple[Tensor, Tensor]  # (total, d) states or vectors of texts, one after the other, and (texts,) int64 lengths
_NOTHING = torch.finfo(torch.float32).min  # product with a masked token: loses every maximum, and stays finite


def multi_vector_student(
    source: str,
    corpus: Sequence[str],
    *,
    dimension: int | None = None,
    layers: int | None = None,
    max_length: int | None = None,
    expansion: int | None = None,
) -> MultiVectorEncoder:
    """A multi-vector encoder to start from; ``source`` is the folder or hub name of one, or of a bi-encoder.

    A multi-vector encoder keeps its width. A bi-encoder's transformer gets unit length for each token and, where the
    ``dimension`` is less than its own, a projection, which begins with the directions that keep inner products of the
    corpus' tokens best. Both keep their first ``layers`` and cut documents to ``max_length`` tokens, where these are
    given. Queries are filled up to ``expansion`` tokens with the mask token, whose vectors count.
    """
    try:
        model = load_multi_vector(source)
    except UserError:
        texts = fitted_on(corpus)
        model = token_encoder(source, dimension, texts=texts, layers=layers, document_length=max_length)
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
            reason = first_line(error)
            raise UserError(f"expansion={expansion}: model {source} cannot expand queries ({reason[:160]})") from error
    return model


class TokenScorer(ColumnScorer):
    """Mean MaxSim of token vectors: ``mean_i max_j <q_i, d_j>`` (ColBERT, arXiv 2004.12832).

    The sum would grow with the query's length, while lists of different queries share one temperature in training. The
    mean changes no ranking.
    """

    has_tokens = True

    def keep_start(self, model: Any) -> Any:
        """A frozen copy without clusters: the unclustered student of the stage's start teaches the clustered one."""
        return super().keep_start(without_clusters(model))

    def encode(self, model: nn.Module, columns: Sequence[Any], texts: np.ndarray) -> list[TokenBatch]:
        """Token vectors and scoring masks of each column; the first is the query's, whatever its name."""
        roles = ["query", *["document"] * (len(columns) - 1)]
        encoded = [model(each, task=each.get("task", role)) for each, role in zip(columns, roles, strict=True)]
        return [TokenBatch(out["token_embeddings"], out["attention_mask"].bool()) for out in encoded]

    def lists(self, encoded: Sequence[TokenBatch], batch: ListBatch | None = None) -> Tensor:
        """(batch, n) MaxSim scores."""
        queries, *sides = encoded
        return torch.stack([max_sim(queries, side) for side in sides], dim=1)

    def across(self, encoded: Sequence[TokenBatch], places: Tensor) -> Tensor:
        """(batch, batch) MaxSim scores."""
        queries, *sides = encoded
        longest = max(side.mask.shape[1] for side in sides)
        rows = torch.arange(len(places))
        padded = [nn.functional.pad(side.vectors, (0, 0, 0, longest - side.mask.shape[1])) for side in sides]
        masks = [nn.functional.pad(side.mask, (0, longest - side.mask.shape[1])) for side in sides]
        vectors, mask = torch.stack(padded, dim=1)[rows, places], torch.stack(masks, dim=1)[rows, places]
        documents = map(TokenBatch, vectors.split(1), mask.split(1))
        return torch.stack([max_sim(queries, document) for document in documents], dim=1)


def max_sim(queries: TokenBatch, documents: TokenBatch) -> Tensor:
    """(batch,) float32 mean MaxSim of matched texts, or of one document; a text without tokens scores 0."""
    products = queries.vectors.float() @ documents.vectors.float().transpose(1, 2)
    best = products.masked_fill(~documents.mask[:, None, :], _NOTHING).amax(dim=2)
    counts = queries.mask & documents.mask.any(dim=1, keepdim=True)
    return best.masked_fill(~counts, 0.0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)


class TokenHeadScorer(HeadScorer):
    """Scores by the projection of token states, for queries and documents, with the student's clusters after it."""

    def __init__(self, student: MultiVectorModel, documents: States, queries: States) -> None:
        super().__init__(documents, list(head_of(student).linear.parameters()))
        self._states = queries
        self._unit = any(type(module).__name__ == "Normalize" for module in student.modules("document"))
        self._clusters = clusters_of(student)

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> _Flat:
        """Hidden states of the batch's texts, concatenated, and how many each has."""
        return self._states.gather(texts, columns[0]["input_ids"].device)

    def held_out(self, student: MultiVectorModel, texts: list[str]) -> _Flat:
        """Hidden states of held-out texts."""
        return stored_states(student, texts, "query").gather(np.arange(len(texts)), student.model.device)

    def scores(self, parameters: Sequence[Tensor], queries: _Flat, documents: np.ndarray) -> Tensor:
        """(batch, n) mean MaxSim."""
        needed, places = np.unique(np.maximum(documents, 0), return_inverse=True)
        flat, lengths = self._vectors(parameters, self.documents.gather(needed, queries[0].device), "document")
        tokens, places, scores = flat.split(lengths.tolist()), places.reshape(documents.shape), []
        for query, row, kept in zip(self._queries(parameters, queries), places, documents >= 0, strict=True):
            counts = lengths[torch.from_numpy(row).to(lengths.device)]
            best = best_products(torch.cat([tokens[place] for place in row]), query, counts)
            scores.append(best.mean(dim=1) * torch.from_numpy(kept).to(best.device))
        return torch.stack(scores)

    def matrix(self, queries: _Flat, documents: np.ndarray) -> Tensor:
        """(queries, documents) mean MaxSim."""
        tokens, lengths = self._vectors(self.trained, self.documents.gather(documents, queries[0].device), "document")
        vectors = self._queries(self.trained, queries)
        return torch.stack([best_products(tokens, query, lengths).mean(dim=1) for query in vectors])

    def start_lists(self, encoded: _Flat, batch: ListBatch) -> Tensor:
        """Without clusters: the unclustered student of the stage's start teaches the clustered one."""
        clusters, self._clusters = self._clusters, None
        try:
            return super().start_lists(encoded, batch)
        finally:
            self._clusters = clusters

    def _vectors(self, parameters: Sequence[Tensor], states: _Flat, role: Role) -> _Flat:
        """Projected states, clustered if the student is."""
        projected = nn.functional.linear(states[0], *parameters)
        if self._unit:
            projected = nn.functional.normalize(projected, dim=1)
        if self._clusters is None:
            return projected, states[1]
        return self._clusters.cluster_flat(projected, states[1], role)

    def _queries(self, parameters: Sequence[Tensor], queries: _Flat) -> list[Tensor]:
        flat, lengths = self._vectors(parameters, queries, "query")
        return list(flat.split(lengths.tolist()))


def clusters_of(student: MultiVectorModel) -> TokenClusters | None:
    """The module that replaces token vectors by means of clusters; None where each token has its own vector."""
    pooling = [module for module in student.modules("document") if isinstance(module, BaseTokenPooling)]
    if not pooling:
        return None
    if len(pooling) > 1 or not isinstance(pooling[0], TokenClusters):
        raise UserError(
            f"model {student.name} pools its tokens by {type(pooling[0]).__name__}, which is for after training; set "
            "the student's clusters."
        )
    return pooling[0]


def train_multi_vector(run: StageRun) -> History:
    """Train a multi-vector student through a stage."""
    if run.stage.train != "head":
        return train_both(run, BothEncoders(TokenScorer()))
    with main_first():
        documents = stored_states(run.student, run.data.collection.documents.column, "document")
        queries = stored_states(run.student, run.prepared.texts.texts.texts, "query")
    return train_head(run, TokenHeadScorer(run.student, documents, queries))


def _search(
    student: MultiVectorModel, states: States, queries: Texts, corpus: Texts, k: int
) -> tuple[np.ndarray, np.ndarray]:
    blocks = _blocks(student, states, corpus.column)
    return best_documents(student.encode(queries.texts, "query"), blocks, k, corpus.id_order)


def _blocks(student: MultiVectorModel, states: States, texts: Sequence[str]) -> Iterator[tuple[int, Tokens]]:
    """Row of the first document and the student's document vectors, for `BLOCK` documents at a time."""
    backbone = backbone_of(student, "document")
    after = [module for module in student.modules("document") if module not in backbone]
    for rows in states.blocks():
        hidden, mask = states.padded(rows, student.model.device)
        features = through_modules(after, {"token_embeddings": hidden, "attention_mask": mask.long()}, "document")
        texts_and_masks = zip(features["token_embeddings"], features["attention_mask"].bool(), strict=True)
        vectors = [tokens[kept].float().cpu().numpy() for tokens, kept in texts_and_masks]
        yield int(rows[0]), Tokens.of(vectors, student.dimension)


def _start(settings: Any, data: Any) -> MultiVectorEncoder:
    source, corpus = settings.model.partition(":")[2], data.collection.documents.column
    options = {name: getattr(settings, name) for name in ("dimension", "layers", "max_length", "expansion")}
    return _at_stage(pruned(multi_vector_student(source, corpus, **options), settings, data), settings, 0)


def _at_stage(model: Any, settings: Any, stage: int) -> Any:
    """With clusters from the stage on that begins with them; from the start where there is no stage."""
    begins = settings.clustered_from - 1 if settings.stages else 0
    if settings.clusters is None or stage != begins:
        return model
    return with_clusters(model, settings.clusters.sizes, **settings.clusters.options)


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


KIND = Kind(
    "multi-vector",
    library_class="MultiVectorEncoder",
    written="multi-vector:NAME",
    start=_start,
    load=lambda folder: load_encoder(f"multi-vector:{folder}", MULTI_VECTOR),
    wrap=MultiVectorModel,
    train=train_multi_vector,
    ranker=lambda student, documents: MultiVectorRanker(student),
    store_documents=lambda student, texts: store_from_states(
        student, TokenVectors(student, "document"), texts, _blocks
    ),
    exhaustive=lambda student, name: StoredStatesRanker(student, name, _search),
    parts=("head", "both_encoders"),
    defaults=lambda _: StageDefaults("head", {"learning_rate": 1e-3, "batch_size": 32, "warmup": 0.05}, 0.02),
    options=frozenset({"expansion", "dimension", "clusters", "clustered_from", "keep", "trim"}),
    complete=_complete,
    check=_check,
    at_stage=_at_stage,
    index="multi-vector",
)
