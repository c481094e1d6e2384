"""Variants of dense students inside one model: leading dimensions of a vector, exits, and lengths of a text.

Leading dimensions: Matryoshka (Kusupati et al. 2022, arXiv 2205.13147). A model with exits (ModularStarEncoder, arXiv
2503.03008) is a transformer that gives all its layers and a Router with a route for each exit, which pools that layer's
tokens: a saved folder loads without this package, as the deepest exit or, by ``encode(texts, task="exit-4")``, as any
other. That runs all layers; `retrodistill.encoders.modules` cuts those above an exit, which makes it fast.

Lengths: a model that drops tokens between its layers, see `retrodistill.encoders.length_adaptive`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WeightedLayerPooling
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log
from retrodistill.encoders.divided_layers import make_divisible
from retrodistill.encoders.layers import final_norm
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.encoders.modules import KEEP, ROUTE, behind_exit, exit_model, exits_of, norm_of_exit, with_modules
from retrodistill.encoders.token_dropping import dropping
from retrodistill.encoders.vectors import check_dimensions, leading
from retrodistill.objectives.distributions import kl_divergence
from retrodistill.objectives.lists import full_mask

_PROBE = ["An exit gives what its first layers alone give."]


class LeadingVectors:
    """Stored (n, d) vectors that are cut to their leading dimensions when they are read, as an index would cut them.

    With ``unit``, for the cosine, they are made unit vectors again.
    """

    def __init__(self, vectors: np.ndarray, dimensions: int, *, unit: bool) -> None:
        check_dimensions([dimensions], vectors.shape[1])
        self._vectors, self._dimensions, self._unit = vectors, dimensions, unit
        self.shape = (len(vectors), dimensions)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """(..., dimensions) of rows, one array of indices of any shape."""
        whole = self._vectors[rows]
        flat = leading(whole.reshape(-1, whole.shape[-1]), self._dimensions, unit=self._unit)
        return flat.reshape(*whole.shape[:-1], self._dimensions)


class VectorLoss(nn.Module):
    """A loss of the vectors of each column of a batch; the model runs once, however many losses are in it.

    ``start`` is the student at the start of the stage, for ``lwf``. A kind defines ``compute_loss_from_embeddings``.
    """

    def __init__(self, model: Any, start: nn.Module | None) -> None:
        super().__init__()
        self.model, self._start = model, start

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name."""
        columns = list(sentence_features)
        start = start_embeddings(self._start, columns, lambda model, features: model(features)["sentence_embedding"])
        embeddings = [self.model(features)["sentence_embedding"] for features in columns]
        terms: dict[str, Tensor] = self.compute_loss_from_embeddings(embeddings, labels, start)  # type: ignore[operator]
        return terms


class MatryoshkaLoss(VectorLoss):
    """Applies a loss to the whole vector and to its leading dimensions: ``sum_d L(v[:d])``; the model runs once.

    sentence-transformers' own wrapper does not cut what a loss has stored, nor add up losses that are named terms.
    ``losses`` are `DistillationLoss` by number of dimensions, whole vectors included, on stored `LeadingVectors`;
    ``start`` is the student at the start of the stage, for ``lwf``.
    """

    def __init__(self, model: Any, losses: Mapping[int, nn.Module], *, start: nn.Module | None = None) -> None:
        super().__init__(model, start)
        self._whole = int(model.get_embedding_dimension())
        check_dimensions(list(losses), self._whole)
        if self._whole not in losses:
            raise UserError(f"losses for {sorted(losses)} dimensions; give one for whole vectors of {self._whole}.")
        self.losses = nn.ModuleDict({str(cut): losses[cut] for cut in sorted(losses, reverse=True)})

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Terms by name, those of leading dimensions as ``name@64``, of (batch, d) whole vectors of each column."""
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            cut, suffix = int(name), "" if int(name) == self._whole else f"@{name}"
            start = None if start_embeddings is None else [column[:, :cut] for column in start_embeddings]
            at_cut = [column[:, :cut] for column in embeddings]
            values = loss.compute_loss_from_embeddings(at_cut, labels, start)  # type: ignore[operator]
            terms |= {term + suffix: value for term, value in values.items()}
        return terms


def start_embeddings(start: nn.Module | None, columns: Sequence[dict[str, Any]], encode: Callable[..., Any]) -> Any:
    """What the student of the stage's start makes of each column; None where nothing compares with it."""
    if start is None:
        return None
    start.eval()
    with torch.no_grad():  # copies, since a model writes into the features that it is given
        return [encode(start, dict(features)) for features in columns]


class LengthAdaptiveLoss(nn.Module):
    """Applies a loss to the vectors of all tokens of a text, of the fewest, and of a random share of them.

    This is the sandwich rule of the Length-Adaptive Transformer (arXiv 2010.07003), which is how models without all
    layers or channels are trained (Yu and Huang 2019, arXiv 1903.05134). There, vectors of fewer tokens learn those of
    all tokens; here, all of them learn from the teacher, which costs no more and does not change while they learn.

    Args:
        model: Made by `retrodistill.encoders.token_dropping.make_length_adaptive`.
        settings: The model's own.
        whole: `DistillationLoss` or `MatryoshkaLoss` of all tokens.
        shortest: The same of the smallest share, an object of its own, as losses may have a state.
        random: The same of a share that is drawn evenly between them in each step.
        start: The student at the start of the stage, for ``lwf``, with all tokens.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        settings: LengthAdaptiveSettings,
        whole: nn.Module,
        shortest: nn.Module,
        random: nn.Module,
        *,
        start: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self._start = model, settings, start
        self.whole, self.shortest, self.random = whole, shortest, random
        make_divisible(next(iter(model)).auto_model)  # as `dropping` needs it

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name, those of fewer tokens as ``name@keep-0.25`` and ``name@keep-random``."""
        columns, least = list(sentence_features), self.settings.keep[-1]
        start = start_embeddings(self._start, columns, lambda model, features: model(features)["sentence_embedding"])
        drawn = least + (1 - least) * float(torch.rand(()))
        terms: dict[str, Tensor] = {}
        for suffix, keep, loss in (
            ("", 1.0, self.whole),
            (f"@{KEEP}{least:g}", least, self.shortest),
            (f"@{KEEP}random", drawn, self.random),
        ):
            with dropping(self.settings, keep):
                embeddings = [self.model(dict(features))["sentence_embedding"] for features in columns]
            values = loss.compute_loss_from_embeddings(embeddings, labels, start)  # type: ignore[operator]
            terms |= {term + suffix: value for term, value in values.items()}
        return terms


def multi_exit(model: SentenceTransformer, exits: Sequence[int], *, project: bool = False) -> SentenceTransformer:
    """Give a transformer with a pooling exits after some of its layers; all modules are stock modules, and shared.

    Its last layer always is the deepest exit and keeps the model's own modules; the other exits get copies of them. A
    model whose first layers alone give other vectors is refused.

    Args:
        model: A transformer with a pooling.
        exits: Layers, counted from 1, but the last, which is left out and logged.
        project: Give each exit but the deepest a linear map after the pooling, at first the identity, which
            `retrodistill.students.dense.fit_exit_maps` fits.
    """
    transformer, *head = list(model)
    if Transformer not in type(transformer).__mro__ or Pooling not in map(type, head):
        raise UserError("exits are made in a transformer with a pooling after it; this student is another model.")
    auto_model: Any = transformer.auto_model
    count = int(auto_model.config.num_hidden_layers)
    if not exits or len(set(exits)) < len(exits) or not all(1 <= layer <= count for layer in exits):
        raise UserError(f"exits={list(exits)}: the model has layers 1 to {count}; name some of them, each once.")
    if count in exits:
        log(f"exits: layer {count} is the model's last one, which is the student itself; left out")
    deepest = f"{ROUTE}{count}"
    routes: dict[str, list[Any]] = {deepest: head}  # first, since a Router's width is that of its first route
    for layer in sorted({*exits} - {count}):
        routes[f"{ROUTE}{layer}"] = _route(transformer, head, layer, count, project)
    auto_model.config.output_hidden_states = True
    roles: dict[tuple[str | None, Any], str] = {("query", None): deepest, ("document", None): deepest}
    router: Any = Router(routes, default_route=deepest, route_mappings=roles)
    with_exits: SentenceTransformer = with_modules(model, [transformer, router])
    for layer in exits_of(with_exits)[:-1]:
        whole = with_exits.encode(_PROBE, task=f"{ROUTE}{layer}", convert_to_tensor=True, show_progress_bar=False)
        alone = exit_model(with_exits, layer).encode(_PROBE, convert_to_tensor=True, show_progress_bar=False)
        if not torch.allclose(whole, alone, atol=1e-3):
            raise UserError(
                f"exits={list(exits)}: {type(auto_model).__name__} changes the output of its last layer, so its first "
                "layers alone give other vectors; take a model of another architecture."
            )
    return with_exits


def _route(transformer: Any, head: Sequence[Any], layer: int, count: int, project: bool) -> list[Any]:
    """The modules of one exit: the layer's states, copies of the model's head, a map if wanted."""
    modules = copy.deepcopy(list(head))
    if project:
        sized = [module for module in modules if hasattr(module, "get_embedding_dimension")]
        width = int(sized[-1].get_embedding_dimension())
        dense = Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(width))
        modules.insert(len(modules) - 1 if isinstance(modules[-1], Normalize) else len(modules), dense)
    picked = torch.zeros(count + 1)
    picked[layer] = 1.0  # index 0 is the embeddings before the first layer
    weights = nn.Parameter(picked, requires_grad=False)
    width = int(transformer.get_embedding_dimension())
    states = WeightedLayerPooling(width, num_hidden_layers=count, layer_start=0, layer_weights=weights)
    return [states, *norm_modules(final_norm(transformer.auto_model)), *modules]


def norm_modules(norm: nn.Module | None) -> list[Any]:
    """Stock modules that do to token vectors what a transformer's final normalization does, so that folders load.

    With x of d dimensions less its mean (LayerNorm; not for RMSNorm), ``g x / rms(x) + b = (sqrt(d) g) x / |x| + b``:
    a linear map that takes the mean off, unit length, and a diagonal map. Epsilon is left out.
    """
    if norm is None:
        return []
    weight: Any = norm.weight
    gain: Tensor = weight.detach().cpu()
    bias: Any = getattr(norm, "bias", None)
    width = len(gain)
    centered = torch.eye(width) - torch.ones(width, width) / width

    def linear(weight: Tensor, bias: Tensor | None = None) -> Dense:
        options: dict[str, Any] = {"activation_function": nn.Identity(), "module_input_name": "token_embeddings"}
        return Dense(width, width, bias=bias is not None, init_weight=weight, init_bias=bias, **options)

    scaled = linear(torch.diag(gain * width**0.5), None if bias is None else bias.detach().cpu())
    centering = [linear(centered)] if isinstance(norm, nn.LayerNorm) else []
    return [*centering, Normalize(module_input_name="token_embeddings"), scaled]


def embeddings_by_exit(model: nn.Module, features: dict[str, Any]) -> dict[int, Tensor]:
    """(batch, d) embeddings by exit from one run through the layers, deepest last, with gradients."""
    inner: Any = getattr(model, "module", model)  # what distributed training wraps
    out = model(features)
    exits = exits_of(inner)
    if not exits or "all_layer_embeddings" not in out:
        raise UserError("the model has no exits; make them by students.dense_variants.multi_exit first.")
    router = list(inner)[-1]
    shallow = {layer: through_exit(nn.Sequential(*behind_exit(router, layer)), out, layer) for layer in exits[:-1]}
    return {**shallow, exits[-1]: out["sentence_embedding"]}


def through_exit(modules: nn.Sequential, out: Mapping[str, Any], layer: int) -> Tensor:
    """(batch, d) embeddings by modules of an exit, of a transformer's output with all its layers."""
    state = {**out, "token_embeddings": out["all_layer_embeddings"][layer]}
    embeddings: Tensor = modules(state)["sentence_embedding"]
    return embeddings


def multi_exit_kl(
    scores_by_exit: Sequence[Tensor],
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """The deepest exit teaches the others: KL on the scores of the same candidates, in nats; 0 for a single exit.

    ``sum_e w_e KL(softmax(s_deepest / T) || softmax(s_e / T))``, without a gradient to the deepest exit. The weighted
    sum over exits and deep ones guiding shallow ones are from arXiv 2503.03008; the divergence is this package's
    choice.

    Args:
        scores_by_exit: (batch, n) scores by each exit, the deepest last.
        mask: (batch, n) bool, true at positions that hold a candidate.
        weights: Weight of each exit but the deepest; 1 by default.
        temperature: Above 0, of all exits.
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
    """Applies a loss at every exit of a `multi_exit` model, and lets the deepest teach the others by `multi_exit_kl`.

    ``losses`` are `DistillationLoss` or `MatryoshkaLoss` by exit; exits may share one without state (``taid`` has
    some). ``weights`` are those of exits' terms, 1 by default, and ``kl_weight`` that of the divergence, 0 for none.
    ``start`` is the student at the start of the stage, for ``lwf``. The layers run once per column.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        losses: Mapping[int, nn.Module],
        *,
        weights: Mapping[int, float] | None = None,
        kl_weight: float = 1.0,
        start: nn.Module | None = None,
    ) -> None:
        super().__init__()
        exits, weights = exits_of(model), weights or {}
        if set(losses) != set(exits) or not set(weights) <= set(exits):
            raise UserError(f"losses for exits {sorted(losses)}; the model has {exits}: give one for each.")
        self.model, self._start = model, start
        self.losses = nn.ModuleDict({str(layer): losses[layer] for layer in exits})
        self._weights = {layer: float(weights.get(layer, 1.0)) for layer in exits}
        self._kl_weight, self._cosine = kl_weight, str(model.similarity_fn_name) == "cosine"
        for name, parameter in model.named_parameters():  # which layer an exit takes is not learned
            if name.endswith("layer_weights"):
                parameter.requires_grad_(False)
        for layer in exits[:-1]:  # an exit that is cut out puts its normalization into the transformer's own
            nn.ModuleList(norm_of_exit(list(model)[-1], layer)).requires_grad_(False)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Terms by name, those of exits but the deepest as ``name@exit-4``, and the divergence as ``exits``."""
        texts = list(sentence_features)
        start_columns = start_embeddings(self._start, texts, embeddings_by_exit)
        columns = [embeddings_by_exit(self.model, features) for features in texts]
        *shallow, deepest = self._weights
        terms: dict[str, Tensor] = {}
        for layer, weight in self._weights.items():
            loss, suffix = self.losses[str(layer)], "" if layer == deepest else f"@{ROUTE}{layer}"
            start = None if start_columns is None else [column[layer] for column in start_columns]
            at_exit = [column[layer] for column in columns]
            values = loss.compute_loss_from_embeddings(at_exit, labels, start)  # type: ignore[operator]
            terms |= {term + suffix: weight * value for term, value in values.items()}
        if self._kl_weight and shallow:
            scored = [in_batch_similarities([column[at] for column in columns], self._cosine) for at in self._weights]
            weights = [self._weights[layer] for layer in shallow]
            terms["exits"] = self._kl_weight * multi_exit_kl([scores for scores, _ in scored], scored[0][1], weights)
        return terms


def in_batch_similarities(columns: Sequence[Tensor], cosine: bool) -> tuple[Tensor, Tensor]:
    """(batch, n) float32 scores of each query with all documents of the batch, and a mask that is all true.

    Of single texts alone: scores with the others, and a mask that leaves out a text with itself.
    """
    floats = [column.float() for column in columns]
    queries, *documents = (nn.functional.normalize(column, dim=1) for column in floats) if cosine else floats
    scores = queries @ (torch.cat(documents) if documents else queries).T
    mask = torch.ones_like(scores, dtype=torch.bool)
    return scores, mask if documents else mask.fill_diagonal_(False)
