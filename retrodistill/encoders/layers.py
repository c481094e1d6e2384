"""The layers of any transformer: find their stack, keep the first ones; and how many tokens a transformer reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_LISTS = (list, tuple)


def transformers_in(model: Any) -> list[Any]:
    """The transformers inside a model, of any module that has one, with their heads."""
    inner = [getattr(module, "auto_model", None) or getattr(module, "backbone", None) for module in model.modules()]
    return list({id(each): each for each in inner if hasattr(each, "load_adapter")}.values())


def stack_of(transformer: Any, key: str = "layers") -> tuple[nn.ModuleList, nn.Module, str]:
    """The layers of a transformer, the module that has them, and its attribute.

    If there are none, a UserError says to leave out the setting `key`.
    """
    from torch import nn

    children = ((child, parent, name) for parent in transformer.modules() for name, child in parent.named_children())
    lists = [place for place in children if isinstance(place[0], nn.ModuleList)]
    counted = getattr(transformer.config, "num_hidden_layers", None)
    stacks = [place for place in lists if len(place[0]) == counted]
    if not stacks:
        raise UserError(
            f"{type(transformer).__name__} has no stack of {counted} layers to take apart; leave '{key}' out."
            if counted
            else f"{type(transformer).__name__} has no stack of layers to cut; leave '{key}' out."
        )
    return stacks[0]


def keep_layers(transformer: Any, layers: int) -> None:
    """Keep the first layers of a transformer, possibly none, in place; its configuration follows, so that it loads."""
    stack, owner, attribute = stack_of(transformer)
    config, count = transformer.config, len(stack)
    setattr(owner, attribute, stack[:layers])
    # Lists with a value for each layer, such as ModernBERT's kinds of attention; properties have no setter.
    for name, value in list(vars(config).items()):
        if isinstance(value, _LISTS) and len(value) == count:
            object.__setattr__(config, name, type(value)(value[:layers]))
    config.num_hidden_layers = layers


def final_norm(transformer: Any) -> nn.Module | None:
    """The normalization of what the last layer gives, as architectures have that normalize before each layer; or None.

    It follows the stack in the module that has it, and has a gain for each dimension.
    """
    stack, owner, _ = stack_of(transformer)
    children = list(owner.children())
    width = transformer.config.hidden_size
    after = children[next(place for place, child in enumerate(children) if child is stack) + 1 :]
    gains = [(child, getattr(child, "weight", None)) for child in after]
    return next((child for child, gain in gains if gain is not None and tuple(gain.shape) == (width,)), None)


def longest_text(transformer: Any) -> int | None:
    """Most tokens that a transformer has positions for; None without a limit.

    RoBERTa and its like count positions from behind that of padding, so that their table has two more than they read.
    """
    longest = getattr(transformer.config, "max_position_embeddings", None)
    return None if longest is None or longest < 1 else int(longest) - first_position(transformer)


def first_position(transformer: Any) -> int:
    """The number of a text's first position in the table of absolute positions; 0 without a table."""
    table = position_table(transformer)
    return 0 if table is None or table.padding_idx is None else int(table.padding_idx) + 1


def position_table(transformer: Any) -> nn.Embedding | None:
    """The embeddings of absolute positions; None for a transformer without, such as one with rotary embeddings."""
    from torch import nn

    named = (module for name, module in transformer.named_modules() if name.endswith("position_embeddings"))
    return next((module for module in named if isinstance(module, nn.Embedding)), None)
