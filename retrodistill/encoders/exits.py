"""Models with exits: one folder that can be used after any of several layers, chosen at load time.

A Router has a route for each exit, which pools that layer's tokens. `exit_model` and names with ``@exit-4`` behind the
folder cut the layers above the exit, which is what makes it fast, and give an ordinary model.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.modules import keep_first_layers, with_modules

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROUTE = "exit-"


def exits_of(model: SentenceTransformer) -> list[int]:
    """Layers after which a model has an exit, the deepest last; empty for a model without exits."""
    router: Any = list(model)[-1]
    names = list(getattr(router, "sub_modules", []))
    if not names or not all(name.startswith(ROUTE) for name in names):
        return []
    return sorted(int(name.removeprefix(ROUTE)) for name in names)


def exit_model(model: SentenceTransformer, layer: int) -> SentenceTransformer:
    """One exit as an ordinary model: the first layers, its pooling, its projection; a copy, of stock modules.

    Raises:
        UserError: The model has no such exit.
    """
    exits = exits_of(model)
    if layer not in exits:
        has = f"exits {', '.join(map(str, exits))}" if exits else "no exits"
        raise UserError(f"exit={layer}: the model has {has}.")
    transformer: Any
    transformer, router = (copy.deepcopy(module) for module in model)
    modules = [module for module in behind_exit(router, layer) if not hasattr(module, "layer_weights")]
    transformer.auto_model.config.output_hidden_states = False
    found = with_modules(model, [transformer, *modules])
    keep_first_layers(found, layer)
    return found


def behind_exit(router: Any, layer: int) -> list[Any]:
    """The modules of an exit's route."""
    return list(router.sub_modules[f"{ROUTE}{layer}"])
