"""What is inside a transformer's forward passes: hidden states, and the queries, keys and values of attention heads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import stack_of
from retrodistill.encoders.pruned_layers import heads_of

_READ = ("input_ids", "attention_mask", "token_type_ids", "position_ids")  # what another model of its tokens reads, too


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        inputs: What the transformer was given, by name.
        states: (batch, tokens, d) hidden states before the first layer and after each layer.
        heads: (3, batch, heads, tokens, d) queries, keys and values of each layer; empty if they were not recorded.
    """

    inputs: dict[str, Tensor]
    states: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)

    @property
    def mask(self) -> Tensor:
        """(batch, tokens) bool: tokens that are not padding."""
        return self.inputs["attention_mask"].bool()


@contextmanager
def recording(transformer: Any, *, heads: bool) -> Iterator[list[Pass]]:
    """The forward passes of a transformer inside the block, with gradients.

    With `heads`, queries, keys and values are recorded: of BERT and its like, whose layers have separate maps to them.
    """
    passes: list[Pass] = []
    whole = transformer.forward
    names = inspect.signature(whole)

    @wraps(whole)
    def forward(*args: Any, **given: Any) -> Any:
        named = names.bind_partial(*args, **given).arguments
        inputs = {name: named[name] for name in _READ if named.get(name) is not None}
        if not {"input_ids", "attention_mask"} <= inputs.keys():
            raise UserError("layers are compared in passes that begin with tokens; this one begins with hidden states.")
        passes.append(Pass(inputs))
        return whole(*args, **given)

    def before_layers(_: nn.Module, args: Sequence[Any], given: dict[str, Any]) -> None:
        passes[-1].states.append(args[0] if args else given["hidden_states"])

    def after_layer(_: nn.Module, __: Any, out: Any) -> None:
        passes[-1].states.append(out if isinstance(out, Tensor) else out[0])

    layers = stack_of(transformer)[0]
    with ExitStack() as hooks:
        # No hook: sentence-transformers calls the method, and not the module.
        hooks.enter_context(_replaced(transformer, "forward", forward))
        hooks.enter_context(layers[0].register_forward_pre_hook(before_layers, with_kwargs=True))
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(after_layer))
        for parts in heads_of(transformer, "objectives") if heads else []:
            found: dict[int, Tensor] = {}
            for kind, linear in enumerate(parts.into):
                hook = partial(_keep_heads, passes, found, kind, len(parts))
                hooks.enter_context(linear.register_forward_hook(hook))
        yield passes


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object with another value inside the block."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


def _keep_heads(
    passes: list[Pass], found: dict[int, Tensor], kind: int, heads: int, _: nn.Module, __: Any, out: Tensor
) -> None:
    """Hook of a map to queries (0), keys (1) or values (2); the last of a layer's three adds them to the pass."""
    found[kind] = out.unflatten(-1, (heads, -1)).transpose(1, 2)
    if len(found) == 3:
        passes[-1].heads.append(torch.stack([found.pop(each) for each in range(3)]))
