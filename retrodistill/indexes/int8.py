"""Token vectors rounded to 8 bits: whole numbers times a scale of their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrodistill.encoders.multi_vector import Tokens

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 127
_SMALLEST = 1e-30  # scale, so that zero vectors have one


class Int8Tokens(NamedTuple):
    """Rounded token vectors of several texts, and how far rounding moved them."""

    vectors: Tensor  # (total, d) int8
    bounds: np.ndarray  # as of `Tokens`
    limits: np.ndarray  # (n, 3), as of `limits_of`


def limits_of(tokens: Tokens) -> np.ndarray:
    """(n, 3) float32: a text's scale, and the largest Euclidean lengths of its vectors' rounding errors and vectors."""
    import torch

    vectors = torch.from_numpy(tokens.vectors)
    largest = np.maximum.reduceat(vectors.abs().amax(dim=1).numpy(), tokens.bounds[:-1])
    scales = np.maximum(largest / _LARGEST, np.float32(_SMALLEST))
    # In units of the scale, so that squares of very small or large numbers neither vanish nor overflow.
    units = vectors * torch.from_numpy(np.repeat(1 / scales, tokens.lengths))[:, None]
    lengths = torch.stack([torch.linalg.vector_norm(each, dim=1) for each in (units - units.round(), units)])
    return np.stack([scales, *(scales * np.maximum.reduceat(lengths.numpy(), tokens.bounds[:-1], axis=1))], axis=1)


def to_int8(vectors: np.ndarray, bounds: np.ndarray, scales: np.ndarray) -> Tensor:
    """(total, d) int8: the multiple of its text's scale that is nearest to each number. Overwrites the vectors."""
    import torch

    inverse = torch.from_numpy(np.repeat(1 / scales, np.diff(bounds)))[:, None]
    # In place: new memory for each block takes longer than the rest.
    return torch.from_numpy(vectors).mul_(inverse).round_().to(torch.int8)
