"""Drop tokens between the layers of a transformer, so that its later layers have less to do.

PoWER-BERT (Goyal et al. 2020, arXiv 2001.08950) keeps the tokens that receive the most attention; the Length-Adaptive
Transformer (Kim and Cho 2021, arXiv 2010.07003) trains one model for all lengths. Unlike there, tokens are dropped
after a layer and not between its attention and its feed-forward part, so that layers stay whole.

Nothing here knows names of architectures: `retrodistill.encoders.divided_layers` lets layers be wrapped, and attention
is read where torch computes it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from retrodistill.core.errors import UserError
from retrodistill.core.settings import validated
from retrodistill.encoders.divided_layers import going_through, knows_distances, make_divisible, mask_of_layers
from retrodistill.encoders.layers import stack_of
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings, length_adaptive_settings
from retrodistill.encoders.modules import KEEP, LENGTH_ADAPTIVE, with_modules

_ROUNDING = 1e-6  # taken off a number of tokens before it is rounded up: .3 of 10 is 3
_ATTENTION = nn.functional.scaled_dot_product_attention
_ATTENDED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # what it takes by position


def make_length_adaptive(model: SentenceTransformer, settings: LengthAdaptiveSettings | None) -> None:
    """Let tokens be dropped in a transformer with a pooling, in place; as it is, the model drops none.

    Without settings, a model that was length-adaptive is not any more.

    Raises:
        UserError: The model is not a transformer, already drops tokens, has too few layers, or its layers cannot go on
            with fewer tokens.
    """
    transformer: Any = getattr(model[0], "auto_model", None)
    if settings is None:
        if hasattr(getattr(transformer, "config", None), LENGTH_ADAPTIVE):
            delattr(transformer.config, LENGTH_ADAPTIVE)
        return
    if transformer is None:
        raise UserError(f"length_adaptive: a model of {type(model[0]).__name__} has no layers; leave it out.")
    if isinstance(model[0], LengthAdaptiveTransformer):
        raise UserError(
            f"length_adaptive: the model already keeps {model[0].length_adaptive.keep[0]:g} of its tokens; start from "
            "the model with all tokens, without @keep-..."
        )
    if type(model[0]) is not Transformer:  # the module that drops tokens saves what the stock module saves
        raise UserError(f"length_adaptive: a model that begins with {type(model[0]).__name__} cannot drop tokens.")
    _check_layers(transformer, settings)
    _check_can_drop(transformer, settings.by)
    setattr(transformer.config, LENGTH_ADAPTIVE, settings.model_dump())


def keep_share(model: SentenceTransformer, keep: float) -> SentenceTransformer:
    """Copy a length-adaptive model as one that drops tokens: a share of a text's tokens is left in its last layers.

    The tokens that are left are pooled. With a share of 1, it is the stock model of all tokens.

    Args:
        model: Made by `make_length_adaptive`, and possibly trained.
        keep: From the smallest share in its settings to 1.

    Raises:
        UserError: The model is not length-adaptive, or was not made for that share.
    """
    settings = length_adaptive_settings(model)
    if settings is None:
        raise UserError(f"{KEEP}{keep:g}: the model drops no tokens; train it as a student with length_adaptive.")
    if not settings.keep[-1] <= keep <= 1:
        raise UserError(f"{KEEP}{keep:g}: the model was made for shares of its tokens from {settings.keep[-1]:g} to 1.")
    _check_layers(model[0].auto_model, settings)
    transformer, *others = (copy.deepcopy(module) for module in model)
    if keep < 1:
        transformer = LengthAdaptiveTransformer.of(transformer, settings.model_copy(update={"keep": [keep]}))
    elif isinstance(transformer, LengthAdaptiveTransformer):
        transformer = transformer.stock()
    adaptive: SentenceTransformer = with_modules(model, [transformer, *others])
    return adaptive


class LengthAdaptiveTransformer(Transformer):
    """A transformer that drops tokens between its layers; `keep_share` makes it.

    It saves and loads as the stock module does, where retrodistill is installed.

    Args:
        args: As the stock module takes them.
        length_adaptive: Content of `LengthAdaptiveSettings` with one share in ``keep``, that of this module.
        kwargs: As the stock module takes them.
    """

    def __init__(self, *args: Any, length_adaptive: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.length_adaptive = validated(LengthAdaptiveSettings, length_adaptive, LENGTH_ADAPTIVE)
        make_divisible(self.auto_model)

    @classmethod
    def of(cls, transformer: nn.Module, settings: LengthAdaptiveSettings) -> Any:
        """The module of another, stock or not, with the same weights."""
        module: Any = copy.copy(transformer)
        module.__class__ = cls
        module.length_adaptive = settings
        make_divisible(module.auto_model)
        return module

    def stock(self) -> Any:
        """The module of sentence-transformers with the same weights, which drops no tokens."""
        module: Any = copy.copy(self)
        module.__class__ = Transformer
        del module.length_adaptive
        return module

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As the stock module; each dropped token gets the mean vector of those that are left, see `dropping`."""
        with dropping(self.length_adaptive, self.length_adaptive.keep[0]):
            return super().forward(features, **kwargs)

    def get_config_dict(self) -> dict[str, Any]:
        """The stock module's settings and ``length_adaptive``."""
        return {**super().get_config_dict(), LENGTH_ADAPTIVE: self.length_adaptive.model_dump()}


@contextmanager
def dropping(settings: LengthAdaptiveSettings, keep: float) -> Iterator[None]:
    """Let forward passes of divisible transformers inside the block drop tokens; with a share of 1, none.

    The first token of a text always stays. What a transformer gives has a row for each token as ever, in which dropped
    tokens have the mean of those that are left: a mean pooling then gives just that mean, and others work, too. The
    states that dropped tokens had in their last layer (the paper's drop-and-restore) fit those of the last layer badly:
    untrained, with half of the tokens dropped after MiniLM's second layer, the cosine to the vectors of all tokens is
    .50 with them and .88 without.
    """
    if keep == 1:
        yield
        return
    with going_through(lambda layers: _Pass(settings, keep, len(layers)).wrapped(layers)):  # a new one for each batch
        yield


def _check_layers(transformer: Any, settings: LengthAdaptiveSettings) -> None:
    last = len(stack_of(transformer)[0])
    if settings.layers[-1] >= last:
        has = f"{last} layers; name some of 1 to {last - 1}" if last > 1 else "one layer; leave length_adaptive out"
        raise UserError(f"length_adaptive.layers={settings.layers}: tokens are dropped before the last layer of {has}.")


def _check_can_drop(transformer: Any, by: str) -> None:
    """Make a transformer divisible, in place, and check that its layers can go on with fewer tokens, or a UserError."""
    name = type(transformer).__name__
    make_divisible(transformer)
    if knows_distances(transformer):
        raise UserError(
            f"length_adaptive: the layers of {name} see how far apart tokens are, and would go wrong without some of "
            "them; take a model with positions in its embeddings alone, such as BERT, MiniLM, DistilBERT, or RoBERTa."
        )
    ids = torch.zeros((1, 3), dtype=torch.int64, device=next(transformer.parameters()).device)
    with torch.no_grad():
        mask = mask_of_layers(transformer, ids, torch.tensor([[True, True, False]], device=ids.device))
    if mask is None or not bool((mask == mask[:, :, :1]).all()):
        raise UserError(
            f"length_adaptive: in {name}, tokens do not see all other tokens, as they have to; take an encoder such as "
            "BERT, MiniLM, DistilBERT, or RoBERTa."
        )
    if by == "attention":
        with torch.no_grad(), _Attention() as attention:
            transformer(input_ids=ids, attention_mask=torch.ones_like(ids))
        attention.received(name)


class _Tokens(NamedTuple):
    """The tokens that are left of each text of a batch."""

    places: Tensor  # (batch, left) in the text, ascending; after its own, a text has dropped ones, to fill up
    valid: Tensor  # (batch, left) bool: those that are left
    lengths: Tensor  # (batch,) of the whole texts


class _Pass:
    """One forward pass of a batch."""

    def __init__(self, settings: LengthAdaptiveSettings, keep: float, layers: int) -> None:
        self._shares, self._fewest = settings.left_after(keep), settings.fewest
        self._by_attention, self._last = settings.by == "attention", layers
        self._tokens: _Tokens | None = None  # all of them before the first layer that drops some
        self._mask: Tensor | None = None  # of the tokens that are left, as the layers take it
        self._width = 0  # tokens of the longest text of the batch

    def wrapped(self, layers: Sequence[Any]) -> Sequence[Any]:
        """The layers, those that drop tokens and those above them wrapped."""
        first = min(self._shares)
        after = [_Layer(layer, number, self) for number, layer in enumerate(layers[first - 1 :], start=first)]
        return [*layers[: first - 1], *after]

    def through(self, layer: Any, number: int, given: inspect.BoundArguments) -> Any:
        """What a layer, counted from 1, gives of the tokens that are left, without those that are dropped after it."""
        if self._tokens is None:
            self._mask = given.arguments.get("attention_mask")
        else:
            given.arguments["attention_mask"] = self._mask
        share = self._shares.get(number)
        with _Attention() if share is not None and self._by_attention else nullcontext() as attention:
            out = layer(*given.args, **given.kwargs)
        states, *others = out if isinstance(out, tuple) else (out,)
        if share is not None:
            name = type(layer).__name__
            scores = states.detach().float().norm(dim=2) if attention is None else attention.received(name)
            states = self._drop(states, scores, share)
        if number == self._last:
            states = self._restored(states)
        return (states, *others) if isinstance(out, tuple) else states

    def _drop(self, states: Tensor, scores: Tensor, share: float) -> Tensor:
        """(batch, left, d) states of the tokens with the highest (batch, tokens) scores, in the order of the text."""
        width = states.shape[1]
        if self._tokens is None:
            self._width, valid = width, _valid_of(self._mask, states)
            places = torch.arange(width, device=states.device).expand(len(states), -1)
            self._tokens = _Tokens(places, valid, valid.sum(dim=1))
        places, valid, lengths = self._tokens
        counts = (lengths * share - _ROUNDING).ceil().long().clamp(min=self._fewest).minimum(lengths)
        scores = scores.masked_fill(~valid, -torch.inf)
        scores = scores.scatter(1, valid.int().argmax(dim=1, keepdim=True), torch.inf)  # the first token of each text
        # Stable: of equal scores, the first one in the text. Ranks of a text do not depend on the others of its batch.
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        valid = torch.arange(best.shape[1], device=states.device) < counts[:, None]
        chosen = torch.where(valid, best, best + width).sort(dim=1).values % width  # those that fill up come last
        self._tokens = _Tokens(places.gather(1, chosen), valid, lengths)
        self._mask = None if self._mask is None else _mask_like(self._mask, valid)
        return states.gather(1, _for_states(chosen, states))

    def _restored(self, states: Tensor) -> Tensor:
        """(batch, tokens, d) states of the whole texts; see `dropping`."""
        if self._tokens is None:
            return states
        places, valid, _ = self._tokens
        left = valid[:, :, None]
        sums = torch.where(left, states, 0).sum(dim=1, keepdim=True)
        mean = sums / left.sum(dim=1, keepdim=True).clamp(min=1)  # a text without tokens has none left
        whole = mean.to(states.dtype).expand(-1, self._width, -1)
        return whole.scatter(1, _for_states(places, states), torch.where(left, states, mean.to(states.dtype)))


class _Layer:
    """In the place of a layer, with its attributes."""

    def __init__(self, layer: Any, number: int, dropping_pass: _Pass) -> None:
        self._layer, self._number, self._pass = layer, number, dropping_pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(self._layer.forward).bind(*args, **kwargs)
        return self._pass.through(self._layer, self._number, given)


class _Attention(TorchFunctionMode):
    """Reads the attention of the torch code inside the block; the last one where there are several."""

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[str, Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATTENTION:
            self._given = {**dict(zip(_ATTENDED, args, strict=False)), **kwargs}
        return func(*args, **kwargs)

    def received(self, name: str) -> Tensor:
        """(batch, tokens) attention that each token receives from all tokens, summed over heads; without a gradient."""
        if self._given is None:
            raise UserError(f"length_adaptive: {name} does not compute its attention with torch's own; set by: norm.")
        with torch.no_grad():
            return attention_received(
                self._given["query"], self._given["key"], self._given.get("attn_mask"), self._given.get("scale")
            )


def attention_received(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """(batch, tokens) float32: ``sum_h sum_i softmax_j(scale q_hi . k_hj)`` over heads h, and tokens i but padding.

    Args:
        query: (batch, heads, tokens, d).
        key: (batch, heads, tokens, d).
        mask: (batch, 1, tokens, tokens), true or 0 for tokens but padding; the same for every token i.
        scale: ``d ** -0.5`` by default.
    """
    scale = query.shape[3] ** -0.5 if scale is None else scale
    valid = _valid_of(mask, key[:, 0])
    total, padding, rows = torch.zeros_like(valid, dtype=torch.float32), ~valid[:, None, :], valid[:, None, :].float()
    for head in range(query.shape[1]):  # one at a time: each takes tokens^2 numbers
        logits = (query[:, head] @ key[:, head].transpose(1, 2)).float().mul_(scale)
        total += (rows @ logits.masked_fill_(padding, -torch.inf).softmax(dim=2))[:, 0]
    return total


def _valid_of(mask: Tensor | None, states: Tensor) -> Tensor:
    """(batch, tokens) bool of (batch, tokens, d) states: what the mask of layers lets tokens see."""
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    seen = mask[:, 0, 0]
    return (seen if seen.dtype == torch.bool else seen == 0).expand(states.shape[:2])


def _mask_like(mask: Tensor, valid: Tensor) -> Tensor:
    """(batch, 1, left, left) mask of the form that layers take, of (batch, left) bool."""
    seen = valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
    if mask.dtype == torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)


def _for_states(places: Tensor, states: Tensor) -> Tensor:
    """(batch, n, d) places for gathering and scattering states, of (batch, n)."""
    return places[:, :, None].expand(-1, -1, states.shape[2])
