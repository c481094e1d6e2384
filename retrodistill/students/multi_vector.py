"""Training of multi-vector students, of all of them or of their head alone; their documents from stored states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import main_first
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import MULTI_VECTOR, load_encoder
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import TokenVectors
from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector
from retrodistill.encoders.modules import keep_first_layers, with_modules
from retrodistill.encoders.multi_vector import (
    MultiVectorModel,
    Tokens,
    best_documents,
    fitted_on,
    principal_directions,
    token_encoder,
)
from retrodistill.rankers.bi_encoder import MultiVectorRanker
from retrodistill.students.clustering import TokenClusters, with_clusters, without_clusters
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.students.stored_states import (
    BLOCK,
    HeadScorer,
    States,
    StoredStatesRanker,
    backbone_of,
    head_of,
    segment_max,
    store_from_states,
    stored_states,
    train_head,
)
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import ColumnScorer, TokenBatch
from retrodistill.training.stages import BothEncoders, StageRun, train_both
from retrodistill.training.trainer import History

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

_NOTHING = torch.finfo(torch.float32).min  # of a token that is not there: loses every maximum, and stays finite


class TokenScorer(ColumnScorer):
    """MaxSim of token vectors: ``sum_i max_j <q_i, d_j>`` (ColBERT, arXiv 2004.12832), or its mean over i.

    Args:
        mean: Divide by the query's tokens. Raw MaxSim grows with the query's length, and lists of different queries
            meet one temperature in training, so that the mean is the default; no ranking depends on it.
    """

    has_tokens = True

    def __init__(self, mean: bool = True) -> None:
        self.mean = mean

    def keep_start(self, model: Any) -> Any:
        """A frozen copy without clusters: the unclustered student of the stage's start teaches the clustered one."""
        return super().keep_start(without_clusters(model))

    def encode(self, model: nn.Module, columns: Sequence[Any], texts: np.ndarray) -> list[TokenBatch]:
        """Token vectors and scoring masks of each column: the first is the query's, whatever it is called."""
        found = []
        for place, features in enumerate(columns):
            out = model(features, task=features.get("task", "document" if place else "query"))
            found.append(TokenBatch(out["token_embeddings"], out["attention_mask"].bool()))
        return found

    def lists(self, encoded: Sequence[TokenBatch], batch: ListBatch | None = None) -> Tensor:
        """(batch, n) MaxSim scores."""
        queries, *sides = encoded
        return torch.stack([max_sim(queries, side, mean=self.mean) for side in sides], dim=1)

    def across(self, encoded: Sequence[TokenBatch], places: Tensor) -> Tensor:
        """(batch, batch) MaxSim scores."""
        queries, *sides = encoded
        longest = max(side.mask.shape[1] for side in sides)
        rows = torch.arange(len(places))
        padded = [nn.functional.pad(side.vectors, (0, 0, 0, longest - side.mask.shape[1])) for side in sides]
        masks = [nn.functional.pad(side.mask, (0, longest - side.mask.shape[1])) for side in sides]
        own = TokenBatch(torch.stack(padded, dim=1)[rows, places], torch.stack(masks, dim=1)[rows, places])
        scores = [
            max_sim(queries, TokenBatch(own.vectors[one : one + 1], own.mask[one : one + 1]), mean=self.mean)
            for one in range(len(places))
        ]
        return torch.stack(scores, dim=1)


def max_sim(queries: TokenBatch, documents: TokenBatch, *, mean: bool) -> Tensor:
    """(batch,) MaxSim of matched texts, float32; a query without tokens, or a document without, scores 0.

    Args:
        queries: (batch, tokens, d) and their mask.
        documents: (batch or 1, tokens, d) and their mask.
        mean: Divide by the query's tokens.
    """
    products = queries.vectors.float() @ documents.vectors.float().transpose(1, 2)
    best = products.masked_fill(~documents.mask[:, None, :], _NOTHING).amax(dim=2)
    counts = queries.mask & documents.mask.any(dim=1, keepdim=True)
    total = torch.where(counts, best, torch.zeros_like(best)).sum(dim=1)
    return total / counts.sum(dim=1).clamp(min=1) if mean else total


def train_multi_vector(run: StageRun) -> History:
    """Train a multi-vector student through a stage.

    Raises:
        UserError: Nothing to learn from, or a student that lacks what the stage trains.
    """
    student: MultiVectorModel = run.student
    if run.stage.train != "head":
        return train_both(run, BothEncoders(TokenScorer()))
    with main_first():
        documents = stored_states(student, run.data.collection.documents.texts, "document")
        queries = stored_states(student, run.prepared.texts.texts.texts, "query")
    return train_head(run, TokenHeadScorer(student, documents, queries))


class TokenHeadScorer(HeadScorer):
    """Of multi-vector students: the projection of token states, on both sides; clusters behind it as in the student.

    Args:
        student: The student.
        documents: Hidden states of the corpus.
        queries: Hidden states of the training texts, in their order.

    Raises:
        UserError: The student has no projection, or pools its tokens by more than clusters.
    """

    def __init__(self, student: MultiVectorModel, documents: States, queries: States) -> None:
        linear = head_of(student).linear
        super().__init__(documents, [linear.weight, *([linear.bias] if linear.bias is not None else [])])
        self._states = queries
        self._unit = any(type(part).__name__ == "Normalize" for part in student.modules("document"))
        self._clusters = clusters_of(student)

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Hidden states of the batch's texts, one after the other, and how many each has."""
        return self._states.gather(texts, columns[0]["input_ids"].device)

    def held_out(self, student: MultiVectorModel, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Hidden states of held-out texts."""
        return stored_states(student, texts, "query").gather(np.arange(len(texts)), student.model.device)

    def scores(self, parameters: Sequence[Tensor], queries: tuple[Tensor, Tensor], documents: np.ndarray) -> Tensor:
        """(batch, n) mean MaxSim."""
        needed, places = np.unique(np.maximum(documents, 0), return_inverse=True)
        flat, lengths = self.vectors(parameters, self.documents.gather(needed, queries[0].device), "document")
        tokens = flat.split(lengths.tolist())
        scores = []
        asking = zip(self._asking(parameters, queries), places.reshape(documents.shape), documents >= 0, strict=True)
        for query, row, there in asking:
            own = [tokens[place] for place in row]
            counts = lengths[torch.from_numpy(row).to(lengths.device)]
            best = segment_max(torch.cat(own) @ query.T, counts)
            scores.append(best.mean(dim=1) * torch.from_numpy(there).to(best.device))
        return torch.stack(scores)

    def matrix(self, queries: tuple[Tensor, Tensor], documents: np.ndarray) -> Tensor:
        """(queries, documents) mean MaxSim."""
        states = self.documents.gather(documents, queries[0].device)
        tokens, lengths = self.vectors(self.trained, states, "document")
        asking = self._asking(self.trained, queries)
        return torch.stack([segment_max(tokens @ query.T, lengths).mean(dim=1) for query in asking])

    def start_lists(self, encoded: tuple[Tensor, Tensor], batch: ListBatch) -> Tensor:
        """Without clusters: the unclustered student of the stage's start teaches the clustered one."""
        clusters, self._clusters = self._clusters, None
        try:
            return super().start_lists(encoded, batch)
        finally:
            self._clusters = clusters

    def vectors(self, parameters: Sequence[Tensor], states: tuple[Tensor, Tensor], role: Role) -> tuple[Tensor, Tensor]:
        """The vectors that texts are compared by: projected, and of clusters their means.

        Args:
            parameters: Of the projection.
            states: (sum of lengths, d) hidden states, one text after the other, and (texts,) int64 lengths.
            role: Of the texts.

        Returns:
            (sum of counts, dimension) and (texts,) int64 counts.
        """
        projected, lengths = self.project(parameters, states[0]), states[1]
        if self._clusters is None:
            return projected, lengths
        return self._clusters.cluster_flat(projected, lengths, role)

    def _asking(self, parameters: Sequence[Tensor], queries: tuple[Tensor, Tensor]) -> list[Tensor]:
        flat, lengths = self.vectors(parameters, queries, "query")
        return list(flat.split(lengths.tolist()))

    def project(self, parameters: Sequence[Tensor], states: Tensor) -> Tensor:
        """(tokens, dimension) token vectors of hidden states."""
        projected = nn.functional.linear(states, *parameters)
        return nn.functional.normalize(projected, dim=1) if self._unit else projected


def clusters_of(student: MultiVectorModel) -> TokenClusters | None:
    """The module that puts the means of clusters in place of token vectors; None where each token has its own.

    Raises:
        UserError: The student pools its tokens otherwise, and no gradient would flow.
    """
    from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling

    pooling = [part for part in student.modules("document") if isinstance(part, BaseTokenPooling)]
    if not pooling:
        return None
    if len(pooling) > 1 or not isinstance(pooling[0], TokenClusters):
        raise UserError(
            f"model {student.name} pools its tokens by {type(pooling[0]).__name__}, which is for after training; set "
            "the student's clusters."
        )
    return pooling[0]


def exhaustive(student: MultiVectorModel, name: str) -> StoredStatesRanker:
    """Exact search by stored hidden states."""
    return StoredStatesRanker(student, name, _search)


def _search(
    student: MultiVectorModel, states: States, queries: Texts, corpus: Texts, k: int
) -> tuple[np.ndarray, np.ndarray]:
    return best_documents(student.encode(queries.texts, "query"), _blocks(student, states, corpus.texts), k)


def store_documents(student: MultiVectorModel, texts: Sequence[str]) -> None:
    """Put a student's documents into its store where the cache has their hidden states, as train: head leaves it.

    No transformer runs for its index then. float16 states change a value by a thousandth.
    """
    store_from_states(student, TokenVectors(student, "document"), texts, _blocks)


def _blocks(student: MultiVectorModel, states: States, texts: Sequence[str]) -> Iterator[tuple[int, Tokens]]:
    """Row of the first document and the student's document vectors, for a few documents at a time."""
    front = backbone_of(student, "document")
    behind = [part for part in student.modules("document") if not any(part is one for one in front)]
    for start in range(0, len(states), BLOCK):
        flat, lengths = states.gather(np.arange(start, min(start + BLOCK, len(states))), student.model.device)
        padded = torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths.tolist())), batch_first=True)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        features: dict[str, Any] = {"token_embeddings": padded, "attention_mask": mask.long()}
        for part in behind:
            keys = getattr(part, "forward_kwargs", ())
            features = part(features, task="document") if "task" in keys else part(features)
        kept = features["attention_mask"].bool()
        found = zip(features["token_embeddings"], kept, strict=True)
        vectors = [one[there].float().cpu().numpy() for one, there in found]
        yield start, Tokens.of(vectors, student.dimension)


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


KIND = Kind(
    "multi-vector",
    library_class="MultiVectorEncoder",
    written="multi-vector:NAME",
    start=_start,
    load=lambda folder: load_encoder(f"multi-vector:{folder}", MULTI_VECTOR),
    wrap=MultiVectorModel,
    train=train_multi_vector,
    ranker=lambda student, documents: MultiVectorRanker(student),
    store_documents=store_documents,
    exhaustive=exhaustive,
    parts=("head", "both_encoders"),
    defaults=lambda _: StageDefaults("head", {"learning_rate": 1e-3, "batch_size": 32, "warmup": 0.05}, 0.02),
    options=frozenset({"expansion", "dimension", "clusters", "clustered_from"}),
    complete=_complete,
    check=_check,
    at_stage=_at_stage,
    index="multi-vector",
    card="multi-vector",
)
