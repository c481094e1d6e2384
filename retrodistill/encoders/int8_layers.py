"""Layers of a model that compute as its int8 graph will, with gradients: quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import transformers_in

_WEIGHT, _LEVELS = 127, 255  # steps on each side of 0, and in all
_SMALLEST = 1e-12  # step: a row of zeros stays one


class _Int8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(rounded_activations(input), rounded_weights(self.weight), self.bias)


class _Int8Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        low, high = self.weight.detach().aminmax()
        return _on_levels(super().forward(input), low.clamp(max=0), high.clamp(min=0))


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Int8Linear, nn.Embedding: _Int8Embedding}


def rounded_weights(weight: Tensor) -> Tensor:
    """An (outputs, inputs) matrix, rounded to 127 steps on each side of 0 up to the greatest number of each output."""
    fixed = weight.detach()
    steps = (fixed.abs().amax(dim=1, keepdim=True) / _WEIGHT).clamp(min=_SMALLEST)
    return weight + (torch.round(fixed / steps) * steps - fixed)


def rounded_activations(values: Tensor) -> Tensor:
    """Values of one text each, (batch, ...), rounded to 256 levels between their least and greatest, 0 among them.

    As ONNX's DynamicQuantizeLinear, for texts that are read one at a time.
    """
    whole, shape = values.detach().flatten(1), (-1, *(1,) * (values.ndim - 1))
    low, high = whole.amin(dim=1).clamp(max=0), whole.amax(dim=1).clamp(min=0)
    return _on_levels(values, low.view(shape), high.view(shape))


def _on_levels(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values on 256 levels from low to high; gradients pass as if nothing was rounded (arXiv 1308.3432)."""
    fixed = values.detach()
    steps = ((high - low) / _LEVELS).clamp(min=_SMALLEST)
    zero = torch.round(-low / steps)
    levels = (torch.round(fixed / steps) + zero).clamp(0, _LEVELS) - zero
    return values + (levels * steps - fixed)


@contextmanager
def int8_layers(model: Any) -> Iterator[None]:
    """Let the linear maps and embeddings of a model compute in the numbers of its int8 graph inside the block.

    Weights are rounded by output (embeddings as a whole) and activations by text, as `retrodistill export --quantize
    int8` does; the weights themselves stay float32, and learn what rounds well (Jacob et al. 2018, arXiv 1712.05877). A
    model without a transformer is a UserError.
    """
    if not transformers_in(model):
        raise UserError(
            "quantize_weights is about the matrices of a transformer, and this student has none; remove it."
        )
    changed = [module for module in model.modules() if type(module) in _CLASSES]
    for module in changed:  # another class, and not another module: the student saves and is copied as it was
        module.__class__ = _CLASSES[type(module)]
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = type(module).__mro__[1]
