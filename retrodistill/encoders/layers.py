"""Cut a transformer down to its first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def keep_first_layers(model: SentenceTransformer, layers: int) -> None:
    """Keep the first `layers` transformer layers, in place; the configuration follows, so that it saves and loads.

    Raises:
        UserError: The model has no layer stack that we can find, or fewer layers than asked for.
    """
    transformer: Any = getattr(model[0], "auto_model", None)
    if transformer is None:
        raise UserError(f"a model of {type(model[0]).__name__} has no layers to cut; leave 'layers' out.")
    stack, owner, attribute = _layer_stack(transformer)
    if not 1 <= layers <= len(stack):
        raise UserError(f"layers={layers}: the model has {len(stack)}; choose 1 to {len(stack)}.")
    setattr(owner, attribute, stack[:layers])
    transformer.config.num_hidden_layers = layers


def _layer_stack(transformer: nn.Module) -> tuple[nn.ModuleList, nn.Module, str]:
    """The longest ModuleList, the module that holds it and under which name."""
    from torch import nn

    lists = [
        (child, parent, name)
        for parent in transformer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not lists:
        raise UserError(f"{type(transformer).__name__} has no stack of layers to cut; leave 'layers' out.")
    return max(lists, key=lambda found: len(found[0]))
