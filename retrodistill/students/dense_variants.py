"""Matryoshka students: the leading dimensions of a vector are a vector (Kusupati et al. 2022, arXiv 2205.13147)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log
from retrodistill.encoders.modules import ROUTE, behind_exit, exit_model, exits_of, with_modules
from retrodistill.encoders.vectors import check_dimensions, leading
from retrodistill.objectives.distributions import kl_divergence
from retrodistill.objectives.lists import full_mask

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class LeadingVectors:
    """Stored vectors of which only the leading dimensions are seen; they are cut where they are read, not before.

    What a loss holds against a truncated student must be truncated as its index will be: documents' vectors and the
    teacher's embeddings, made unit vectors again where the similarity is the cosine.

    Args:
        vectors: (n, d) float; memory-mapped if you like.
        dimensions: How many leading ones.
        unit: Make them unit vectors again.

    Raises:
        UserError: More dimensions than there are, or none.
    """

    def __init__(self, vectors: np.ndarray, dimensions: int, *, unit: bool) -> None:
        check_dimensions([dimensions], vectors.shape[1])
        self._vectors, self._dimensions, self._unit = vectors, dimensions, unit

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dimensions)."""
        return len(self._vectors), self._dimensions

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """(..., dimensions) of rows, one array of indices of any shape."""
        found = self._vectors[rows]
        flat = leading(found.reshape(-1, found.shape[-1]), self._dimensions, unit=self._unit)
        return flat.reshape(*found.shape[:-1], self._dimensions)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


class MatryoshkaLoss(nn.Module):
    """Applies a loss to the whole vector and to its leading dimensions: ``sum_d w_d L(v[:d])``; the model runs once.

    sentence-transformers' own wrapper cuts what the model gives and labels that are embeddings, not what a loss has
    stored, and cannot add up losses that come as named terms.

    Args:
        model: The student, which gives one vector a text.
        losses: By number of dimensions, that of whole vectors among them: what is learned there, on stored vectors of
            as many dimensions (`LeadingVectors`). They take embeddings as
            `retrodistill.training.loss.DistillationLoss` does, and make unit vectors where they want them.
        weights: By number of dimensions; 1 by default.
        start: The student as the stage began, for ``lwf``.

    Raises:
        UserError: No loss for whole vectors, dimensions that the student does not have, or a weight for others.
    """

    def __init__(
        self,
        model: Any,
        losses: Mapping[int, nn.Module],
        *,
        weights: Mapping[int, float] | None = None,
        start: nn.Module | None = None,
    ) -> None:
        super().__init__()
        whole = int(model.get_embedding_dimension())
        check_dimensions(list(losses), whole)
        if whole not in losses or not set(weights or {}) <= set(losses):
            raise UserError(
                f"losses for {sorted(losses)} dimensions, weights for {sorted(weights or {})}; whole vectors of "
                f"{whole} are among the losses, and weights are for some of these."
            )
        self.model, self._start = model, start
        self.losses = nn.ModuleDict({str(cut): losses[cut] for cut in sorted(losses, reverse=True)})
        self._whole = whole
        self._weights = {int(cut): float((weights or {}).get(int(cut), 1.0)) for cut in self.losses}

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name, those of leading dimensions as ``name@64``."""
        columns = list(sentence_features)
        start = None
        if self._start is not None:
            self._start.eval()
            with torch.no_grad():  # a model writes into the features that it is given
                start = [self._start(dict(features))["sentence_embedding"] for features in columns]
        return self.compute_loss_from_embeddings(
            [self.model(features)["sentence_embedding"] for features in columns], labels, start
        )

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """As `forward`, of (batch, d) whole vectors of each column."""
        parts: dict[str, Tensor] = {}
        for cut, weight in self._weights.items():
            loss: Any = self.losses[str(cut)]
            start = None if start_embeddings is None else [column[:, :cut] for column in start_embeddings]
            found = loss.compute_loss_from_embeddings([column[:, :cut] for column in embeddings], labels, start)
            suffix = "" if cut == self._whole else f"@{cut}"
            parts |= {name + suffix: weight * value for name, value in found.items()}
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """Weights by number of dimensions, for the model card."""
        return {"matryoshka": self._weights}


_PROBE = ["An exit gives what its first layers alone give."]


class EmbeddingLoss(Protocol):
    """A loss that takes embeddings of the columns of a batch, as `retrodistill.training.loss.DistillationLoss` does."""

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms by name."""
        ...


def multi_exit(model: SentenceTransformer, exits: Sequence[int], *, project: bool = False) -> SentenceTransformer:
    """Give a bi-encoder exits behind some of its layers.

    Its last layer is the deepest exit always, with the model's own modules behind it: there nothing changes. The other
    exits get copies of them.

    Args:
        model: A transformer and what pools it; its modules are taken over.
        exits: Layers, counted from 1; the last one is left out, and it is said.
        project: Give each exit but the deepest a linear map of its own behind the pooling, at first the identity;
            `retrodistill.students.dense_training.fit_exit_maps` fits it.

    Returns:
        A SentenceTransformer of stock modules.

    Raises:
        UserError: No transformer, layers that it does not have, or one whose first layers alone give something else.
    """
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WeightedLayerPooling

    modules: list[Any] = list(model)
    transformer, behind = modules[0], modules[1:]
    if Transformer not in type(transformer).__mro__ or Pooling not in map(type, behind):
        raise UserError("exits are made in a transformer with a pooling behind it; this student is another model.")
    count = int(transformer.auto_model.config.num_hidden_layers)
    if not exits or len(set(exits)) < len(exits) or not all(1 <= layer <= count for layer in exits):
        raise UserError(f"exits={list(exits)}: the model has layers 1 to {count}; name some of them, each once.")
    if count in exits:
        log(f"exits: layer {count} is the model's last one, which is the student itself and no exit besides; left out")
    width = int(transformer.get_embedding_dimension())
    sized: list[Any] = [one for one in behind if hasattr(one, "get_embedding_dimension")]
    dimension = int(sized[-1].get_embedding_dimension())
    routes: dict[str, list[Any]] = {}
    for layer in sorted({*exits} - {count}):
        picked = torch.zeros(count + 1)
        picked[layer] = 1.0  # the one before the first layer is the embeddings'
        modules = copy.deepcopy(behind)
        if project:
            dense = Dense(
                dimension, dimension, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(dimension)
            )
            end = len(modules) - 1 if isinstance(modules[-1], Normalize) else len(modules)
            modules.insert(end, dense)
        weights = nn.Parameter(picked, requires_grad=False)
        pick = WeightedLayerPooling(width, num_hidden_layers=count, layer_start=0, layer_weights=weights)
        routes[f"{ROUTE}{layer}"] = [pick, *modules]
    deepest = f"{ROUTE}{count}"
    routes = {deepest: behind, **routes}  # a Router's width is that of its first route
    transformer.auto_model.config.output_hidden_states = True
    towers: dict[tuple[str | None, Any], str] = {("query", None): deepest, ("document", None): deepest}
    found = with_modules(model, [transformer, Router(routes, default_route=deepest, route_mappings=towers)])
    for layer in exits_of(found)[:-1]:
        whole = found.encode(_PROBE, task=f"{ROUTE}{layer}", convert_to_tensor=True, show_progress_bar=False)
        alone = exit_model(found, layer).encode(_PROBE, convert_to_tensor=True, show_progress_bar=False)
        if not torch.allclose(whole, alone, atol=1e-3):
            raise UserError(
                f"exits={list(exits)}: {type(transformer.auto_model).__name__} does something behind its last layer, "
                "so that its first layers alone give other vectors; take a model of another architecture."
            )
    return found


def embeddings_by_exit(model: nn.Module, features: dict[str, Any]) -> dict[int, Tensor]:
    """The embeddings of all exits from one run through the layers, deepest last, with gradients.

    Args:
        model: Of `multi_exit`, or what wraps it in distributed training.
        features: A tokenized batch.

    Returns:
        (batch, d) by layer.
    """
    inner: Any = getattr(model, "module", model)
    out = model(features)
    exits = exits_of(inner)
    if not exits or "all_layer_embeddings" not in out:
        raise UserError("the model has no exits; make them by students.multi_exit.multi_exit first.")
    found = {}
    for layer in exits[:-1]:
        state = {**out, "token_embeddings": out["all_layer_embeddings"][layer]}
        for module in behind_exit(list(inner)[-1], layer):
            if not hasattr(module, "layer_weights"):  # it would stack all layers to take one
                state = module(state)
        found[layer] = state["sentence_embedding"]
    return {**found, exits[-1]: out["sentence_embedding"]}


def multi_exit_kl(
    scores_by_exit: Sequence[Tensor],
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """The deepest exit teaches the others: KL on the scores of the same candidates.

    ``sum_e w_e KL(softmax(s_deepest / T) || softmax(s_e / T))``, without a gradient to the deepest exit. The weighted
    sum over exits and deep ones guiding shallow ones are of arXiv 2503.03008; the divergence is this package's choice.

    Args:
        scores_by_exit: (batch, n) scores by each exit, the deepest last.
        mask: (batch, n) bool, true at positions that hold a candidate.
        weights: Of each exit but the deepest; 1 by default.
        temperature: Above 0, of all exits.

    Returns:
        Scalar float32 in nats, 0 or more; 0 for a single exit.

    Raises:
        UserError: No exit, another number of weights, or as `kl_divergence`.
    """
    if not scores_by_exit:
        raise UserError("multi_exit_kl of no exit; give the scores by each, the deepest last.")
    *shallow, deepest = scores_by_exit
    full_mask(deepest, mask)
    weights = [1.0] * len(shallow) if weights is None else list(weights)
    if len(weights) != len(shallow):
        raise UserError(f"{len(weights)} weights for {len(shallow)} exits besides the deepest; give one for each.")
    total = deepest.new_zeros((), dtype=torch.promote_types(deepest.dtype, torch.float32))
    for weight, scores in zip(weights, shallow, strict=True):
        kl = kl_divergence(
            scores, deepest.detach(), mask, student_temperature=temperature, teacher_temperature=temperature
        )
        total = total + weight * kl
    return total


class MultiExitLoss(nn.Module):
    """Applies a loss at every exit, and lets the deepest teach the others; the layers run once a column.

    Args:
        model: Of `multi_exit`.
        losses: By exit: what it learns from labels. Several exits may share a loss, unless it has state (``taid``).
        weights: Of the exits' terms, by exit; 1 by default.
        kl_weight: Of `multi_exit_kl`; 0 for none.
        temperature: Of the divergence.
        start: The student as the stage began, for ``lwf``.

    Raises:
        UserError: The losses are not those of the model's exits.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        losses: Mapping[int, EmbeddingLoss],
        *,
        weights: Mapping[int, float] | None = None,
        kl_weight: float = 1.0,
        temperature: float = 0.05,
        start: nn.Module | None = None,
    ) -> None:
        super().__init__()
        exits = exits_of(model)
        if set(losses) != set(exits) or not set(weights or {}) <= set(exits):
            raise UserError(f"losses for exits {sorted(losses)}; the model has {exits}: give one for each.")
        self.model, self._start = model, start
        self.losses = nn.ModuleDict({str(layer): losses[layer] for layer in exits})  # type: ignore[misc]
        self._weights = {layer: float((weights or {}).get(layer, 1.0)) for layer in exits}
        self._kl_weight, self._temperature = kl_weight, temperature
        self._cosine = str(model.similarity_fn_name) == "cosine"
        for name, parameter in model.named_parameters():  # which layer an exit takes is not learned
            if name.endswith("layer_weights"):
                parameter.requires_grad_(False)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name, those of exits but the deepest as ``name@exit-4``, and the divergence as ``exits``."""
        texts = list(sentence_features)
        began: list[dict[int, Tensor]] | None = None
        if self._start is not None:
            self._start.eval()
            with torch.no_grad():  # a model writes into the features that it is given
                began = [embeddings_by_exit(self._start, dict(features)) for features in texts]
        columns = [embeddings_by_exit(self.model, features) for features in texts]
        exits = list(self._weights)
        parts: dict[str, Tensor] = {}
        for layer in exits:
            loss: Any = self.losses[str(layer)]
            start = None if began is None else [column[layer] for column in began]
            found = loss.compute_loss_from_embeddings([column[layer] for column in columns], labels, start)
            suffix = "" if layer == exits[-1] else f"@{ROUTE}{layer}"
            parts |= {name + suffix: self._weights[layer] * value for name, value in found.items()}
        if self._kl_weight and len(exits) > 1:
            scored = [in_batch_similarities([column[layer] for column in columns], self._cosine) for layer in exits]
            kl = multi_exit_kl(
                [scores for scores, _ in scored],
                scored[0][1],
                [self._weights[layer] for layer in exits[:-1]],
                temperature=self._temperature,
            )
            parts["exits"] = self._kl_weight * kl
        return parts

    def get_config_dict(self) -> dict[str, Any]:
        """Weights of exits and of the divergence, for the model card."""
        return {"exits": self._weights, "kl_weight": self._kl_weight, "temperature": self._temperature}


def in_batch_similarities(columns: Sequence[Tensor], cosine: bool) -> tuple[Tensor, Tensor]:
    """What the divergence between exits sees: scores of each text with others of the batch.

    Args:
        columns: (batch, d) embeddings: of queries, then of documents; or of single texts alone.
        cosine: Make them unit vectors.

    Returns:
        (batch, n) float32 scores of each query with all documents of the batch, or of each text with the others; and
        their mask, which leaves out a text with itself.
    """
    queries, *documents = (nn.functional.normalize(one.float(), dim=1) if cosine else one.float() for one in columns)
    scores = queries @ (torch.cat(documents) if documents else queries).T
    mask = torch.ones_like(scores, dtype=torch.bool)
    return scores, mask if documents else mask.fill_diagonal_(False)
