"""How frozen models encode texts and score pairs: batch size and precision. Training has its own settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import Field

from retrodistill.core.settings import Settings


class EncodingSettings(Settings):
    """How models encode texts and score pairs, training apart."""

    batch_size: int = Field(default=32, ge=1)
    """Texts or pairs per forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products; weights, vectors, and scores stay float32. `bfloat16` is faster on a GPU and on a
    CPU with AMX or AVX512-BF16. Stores and manifests keep the two apart."""

    def autocast(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """A context in which products on a device have the precision."""
        import torch

        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


_CURRENT: ContextVar[EncodingSettings] = ContextVar("encoding", default=EncodingSettings())  # noqa: B039 - frozen


def current_encoding() -> EncodingSettings:
    """The settings that a model takes when it is loaded."""
    return _CURRENT.get()


@contextlib.contextmanager
def encode_with(settings: EncodingSettings | None = None, **changes: Any) -> Iterator[EncodingSettings]:
    """Models that are loaded inside the block encode with these settings, e.g. ``encode_with(batch_size=8)``.

    Args:
        settings: In place of those outside; these by default.
        changes: Keys of `EncodingSettings` to change.
    """
    chosen = EncodingSettings.model_validate({**(settings or current_encoding()).model_dump(), **changes})
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)
