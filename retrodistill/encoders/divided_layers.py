"""Run a part of the layers of any transformer: the first ones on texts, or the others on what those gave.

Nothing here knows names of architectures. A transformer's own forward pass makes what its layers need, such as masks,
rotary embeddings or a position bias; only the stack that it goes through is another one. `going_through` also lets
other modules put something in the place of layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import first_position, position_table, stack_of


@dataclass(frozen=True)
class _Part:
    """Layers from ``start`` on, which begin with ``states``; or those before ``stop``, after which the pass ends."""

    start: int = 0
    stop: int | None = None
    states: Tensor | None = None

    def __call__(self, layers: Sequence[Any]) -> Sequence[Any]:
        if self.states is None:
            return [*layers[: self.stop], _Called(layers[self.stop or 0], None)]
        first, *others = layers[self.start :]
        return [_Called(first, self.states), *others]


# What a forward pass goes through in the place of all layers, given these; one for each thread.
_THROUGH: ContextVar[Callable[[Sequence[Any]], Sequence[Any]] | None] = ContextVar("through", default=None)


class _ReachedError(Exception):
    """Ends a forward pass at a layer: what it is called with, by name, and by name what it does not declare."""

    def __init__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        signature = inspect.signature(layer.forward)
        self.call = dict(signature.bind_partial(*args, **kwargs).arguments)
        rest = [name for name, given in signature.parameters.items() if given.kind is given.VAR_KEYWORD]
        self.others: dict[str, Any] = {key: value for name in rest for key, value in self.call.pop(name, {}).items()}


class _Called:
    """In the place of a layer, with its attributes: begins with given states, or ends the pass."""

    def __init__(self, layer: Any, states: Tensor | None) -> None:
        self._layer, self._states = layer, states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._states is None:
            raise _ReachedError(self._layer, args, kwargs)
        if args:
            return self._layer(self._states, *args[1:], **kwargs)
        return self._layer(**{**kwargs, "hidden_states": self._states})


class _Layers(nn.ModuleList):
    """A transformer's stack, of which a forward pass inside `going_through` runs something else."""

    def __iter__(self) -> Iterator[Any]:
        layers, through = list(super().__iter__()), _THROUGH.get()
        return iter(layers if through is None else through(layers))


@contextmanager
def going_through(layers: Callable[[Sequence[Any]], Sequence[Any]]) -> Iterator[None]:
    """Let forward passes of divisible transformers inside the block go through what `layers` makes of their layers."""
    token = _THROUGH.set(layers)
    try:
        yield
    finally:
        _THROUGH.reset(token)


def make_divisible(transformer: Any) -> None:
    """Let `states_before`, `from_states`, and `going_through` work on a transformer; its weights keep their names."""
    stack, owner, attribute = stack_of(transformer)
    if not isinstance(stack, _Layers):
        setattr(owner, attribute, _Layers(stack))


def states_before(
    transformer: Any, layer: int, ids: Tensor, mask: Tensor, *, first: int = 0, segment: int | None = None
) -> Any:
    """(n, tokens, d) hidden states that a layer, from 0, gets of texts that are read alone.

    Args:
        transformer: One that is divisible, without a head.
        layer: At most the last one.
        ids: (n, tokens) int64.
        mask: (n, tokens) bool; a text without tokens has any finite states.
        first: Position of the texts' first token, for a transformer with a table of positions.
        segment: Type of the tokens, for a transformer with several; None for its own default.
    """
    return _call_of(transformer, layer, ids, mask, first, segment).call["hidden_states"]


def _call_of(transformer: Any, layer: int, ids: Tensor, mask: Tensor, first: int, segment: int | None) -> _ReachedError:
    inputs: dict[str, Any] = {}
    if segment is not None and (getattr(transformer.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.full_like(ids, segment)
    if position_table(transformer) is not None:
        places = torch.arange(ids.shape[1], device=ids.device) + first + first_position(transformer)
        inputs["position_ids"] = places[None, :].expand(len(ids), -1)
    with going_through(_Part(stop=layer)):
        try:
            transformer(input_ids=ids, attention_mask=some_token(mask).long(), **inputs)
        except _ReachedError as reached:
            return reached
    raise UserError(f"{type(transformer).__name__} does not go through its layers one by one.")


def from_states(model: Any, layer: int, states: Tensor, mask: Tensor) -> Any:
    """What a divisible transformer, with a head or without, gives of (n, tokens, d) states before a layer, from 0.

    Each token attends to those where the (n, tokens) bool `mask` is true. Positions count from the first token.
    """
    width = model.get_input_embeddings().embedding_dim
    with going_through(_Part(start=layer, states=states)):  # the embeddings of nothing give the shape, and are replaced
        nothing = states.new_zeros(*states.shape[:2], width)
        return model(inputs_embeds=nothing, attention_mask=some_token(mask).long())


def some_token(mask: Tensor) -> Tensor:
    """A mask in which a text without tokens has its first place, since attention to nothing is not a number."""
    empty = ~mask.any(dim=1, keepdim=True)
    return mask | (empty & (torch.arange(mask.shape[1], device=mask.device) == 0)[None, :])


def knows_distances(transformer: Any) -> bool:
    """Whether the layers of a divisible transformer see where tokens are: by rotary embeddings, a bias, or a window.

    Then masked places between two texts change what they give. Where positions are a part of the embeddings alone, as
    in BERT, layers are called with hidden states and a mask.
    """
    device = next(transformer.parameters()).device
    ids, mask = torch.zeros((1, 2), dtype=torch.int64, device=device), torch.tensor([[True, False]], device=device)
    with torch.no_grad():
        reached = _call_of(transformer, 0, ids, mask, 0, None)
    # transformers 5.0 also hands over where a cache, which encoders do not have, would be filled
    known = ("hidden_states", "attention_mask", "cache_position")
    declared = {name: value for name, value in reached.call.items() if name not in known}
    # Integers that a layer does not declare are positions that only the embeddings read, as RoBERTa hands them on.
    return any(map(_tensors, declared.values())) or any(
        tensor.is_floating_point() for value in reached.others.values() for tensor in _tensors(value)
    )


def mask_of_layers(transformer: Any, ids: Tensor, mask: Tensor) -> Tensor | None:
    """The mask that layers of a divisible transformer take: (n, 1, tokens, tokens), bool or what is added to logits.

    None if they take another one, or none where the (n, tokens) bool `mask` has padding.
    """
    found = _call_of(transformer, 0, ids, mask, 0, None).call.get("attention_mask")
    return found if isinstance(found, Tensor) and found.ndim == mask.ndim + 2 else None


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value, which may be a tuple of them."""
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def runs_apart(transformer: Any, ids: Tensor) -> bool:
    """Whether a divisible transformer's parts, one after the other, give what the whole gives of (n, tokens) ids."""
    mask, layer = torch.ones_like(ids, dtype=torch.bool), len(stack_of(transformer)[0]) // 2
    with torch.no_grad():
        whole = transformer(input_ids=ids, attention_mask=mask.long())[0]
        parts = from_states(transformer, layer, states_before(transformer, layer, ids, mask), mask)[0]
    return whole.shape == parts.shape and bool(torch.allclose(whole, parts, atol=1e-3))
