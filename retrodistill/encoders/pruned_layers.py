"""Layers with fewer attention heads or feed-forward units: where both are, how they are removed, how models load.

A transformer with fewer units is a stock model, since its configuration has their number. It has no number of heads
apart from their width, so that a transformer with fewer heads is saved as a `PrunedTransformer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.transformer import TRANSFORMER_TASK_TO_AUTO_MODEL
from torch import nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import stack_of

_KEPT_HEADS = "kept_attention_heads"  # key of the configuration
# Architectures whose attention takes the number of heads from the width of its maps, and has nothing else per head.
_WITH_HEADS = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
# Names within a layer: the linear maps into the inner dimensions, and the one out of them.
_HEADS = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),  # DistilBERT
)
_UNITS = (
    (("intermediate.dense",), "output.dense"),  # BERT and its like, MPNet, DeBERTa
    (("ffn.lin1",), "ffn.lin2"),  # DistilBERT
    (("mlp.Wi",), "mlp.Wo"),  # ModernBERT: units and their gates in one map
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),  # Qwen3, EuroBERT
)
_WIDTHS = ("intermediate_size", "hidden_dim")  # keys of the number of units


@dataclass(frozen=True)
class Parts:
    """The heads or the units of one layer.

    Attributes:
        into: Linear maps into them.
        out: The linear map out of them, whose inputs are the context of all heads or the activations of all units.
        width: Inputs of that map that belong to one of them: the width of a head, 1 for a unit.
    """

    into: tuple[nn.Linear, ...]
    out: nn.Linear
    width: int

    def __len__(self) -> int:
        return self.out.in_features // self.width

    def places(self, kept: Sequence[int]) -> torch.Tensor:
        """Places of the inputs of some of them, in order."""
        places = torch.arange(len(self) * self.width, device="cpu").view(-1, self.width)
        return places[list(kept)].flatten()

    def keep(self, kept: Sequence[int]) -> None:
        """Remove the others, in place; the map out is not fitted to that."""
        places, inner = self.places(kept), self.out.in_features
        for linear in self.into:  # a map may hold the rows of all units twice, such as for their gates
            starts = range(0, linear.out_features, inner)
            _set(linear, torch.cat([places + start for start in starts]), 0)
        _set(self.out, places, 1)


def _set(linear: nn.Linear, places: torch.Tensor, dim: int) -> None:
    """Keep some outputs (0) or inputs (1) of a linear map."""
    places = places.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, places), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, places), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def heads_of(transformer: Any, key: str = "keep.heads") -> list[Parts]:
    """The attention heads of each layer of a transformer; a UserError if they are not found.

    The maps into them are those of queries, keys and values, in this order. `key` is the setting that needs them.
    """
    config, found = transformer.config, None
    if config.model_type in _WITH_HEADS:
        found = _found(transformer, _HEADS, config.hidden_size // config.num_attention_heads)
    if found is None:
        raise UserError(
            f"{key}: attention heads of {type(transformer).__name__} cannot be taken apart; leave that out, or start "
            f"from a model of {', '.join(sorted(_WITH_HEADS))}."
        )
    return found


def units_of(transformer: Any) -> list[Parts]:
    """The feed-forward units of each layer of a transformer; a UserError if they are not found."""
    found = _found(transformer, _UNITS, 1)
    if found is None or not any(hasattr(transformer.config, key) for key in _WIDTHS):
        raise UserError(
            f"keep.units: units of {type(transformer).__name__} are not found; leave units out, or start from a model "
            "such as BERT, RoBERTa, MPNet, DistilBERT, or ModernBERT."
        )
    return found


def _found(transformer: Any, names: Any, width: int) -> list[Parts] | None:
    """The parts of all layers, by the first names that they all have."""
    layers = stack_of(transformer, "keep")[0]
    for into, out in names:
        modules = [dict(layer.named_modules()) for layer in layers]
        if all(isinstance(each.get(name), nn.Linear) for each in modules for name in (*into, out)):
            return [Parts(tuple(each[name] for name in into), each[out], width) for each in modules]
    return None


def describe_pruned(module: Transformer) -> None:
    """Make a module whose parts were removed one that saves and loads, in place."""
    transformer: Any = module.auto_model
    units = _found(transformer, _UNITS, 1)
    for key in _WIDTHS:
        if units is not None and hasattr(transformer.config, key):
            setattr(transformer.config, key, len(units[0]))
    if transformer.config.model_type in _WITH_HEADS:
        kept = len(heads_of(transformer)[0])
        if kept < transformer.config.num_attention_heads:
            setattr(transformer.config, _KEPT_HEADS, kept)
            module.__class__ = PrunedTransformer  # it differs in how it is loaded


class PrunedTransformer(Transformer):
    """A transformer with fewer attention heads per layer than its configuration's width and width of a head give.

    A model with it loads where retrodistill is installed: by retrodistill, or with sentence-transformers'
    ``trust_remote_code=True``.
    """

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> Any:
        if backend != "torch":  # a graph has its own shapes
            return super()._load_model(
                model_name_or_path, transformer_task, config, backend, is_peft_model, **model_kwargs
            )
        kept = getattr(config, _KEPT_HEADS, None)
        if kept is None or config.model_type not in _WITH_HEADS:
            raise UserError(
                f"model {model_name_or_path} has fewer attention heads, which needs {_KEPT_HEADS} in its config.json "
                f"and one of the architectures {', '.join(sorted(_WITH_HEADS))}."
            )
        stock = TRANSFORMER_TASK_TO_AUTO_MODEL[transformer_task]._model_mapping[type(config)]

        def build(model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            stock.__init__(model, config, *args, **kwargs)
            for parts in heads_of(model):
                parts.keep(range(kept))  # any: their weights are read afterwards

        smaller: Any = type(stock.__name__, (stock,), {"__init__": build, "__module__": stock.__module__})
        model = smaller.from_pretrained(model_name_or_path, config=config, **model_kwargs)
        model.__class__ = stock  # which can be pickled
        return model
