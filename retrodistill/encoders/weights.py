"""The digest of a model's weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def weights_digest(model: nn.Module) -> str:
    """Digest of all parameters and buffers, by name, whatever their type."""
    import torch

    hasher = hashlib.blake2b(digest_size=8)
    for key, tensor in sorted(model.state_dict().items()):
        hasher.update(key.encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        hasher.update(plain.view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return hasher.hexdigest()
