"""Length-adaptive encoders: bi-encoders that drop tokens between their layers, as many as the user chooses at loading.

A model says in the configuration of its transformer after which layers tokens may be dropped, and stays a stock model
of all its tokens. `retrodistill.encoders.token_dropping` makes one that drops some.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from retrodistill.core.settings import Settings, validated
from retrodistill.encoders.modules import LENGTH_ADAPTIVE

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class LengthAdaptiveSettings(Settings):
    """Tokens that a dense student drops between its layers (Length-Adaptive Transformer)."""

    layers: list[int] = Field(min_length=1)
    """Layers after which tokens are dropped, counted from 1; not the last one. Each keeps the same share of the tokens
    that reach it."""
    keep: list[float] = Field(min_length=1)
    """Shares of a text's tokens that are left after the last of these layers, below 1; or a single one. Each is
    measured as `NAME@keep-SHARE`, such as `student@keep-0.5`; training draws shares down to the smallest."""
    by: Literal["norm", "attention"] = "norm"
    """What decides which tokens stay: the `norm` of a token's hidden state, or the `attention` that it receives in the
    layer, summed over heads and tokens, which takes longer to compute."""
    fewest: int = Field(default=16, ge=1)
    """Tokens that a text keeps in any case, so that queries stay whole: dropping some of a few tokens saves no time."""

    @field_validator("keep", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return given if isinstance(given, (list, tuple)) else [given]

    @field_validator("layers")
    @classmethod
    def _are_layers(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers) or min(layers) < 1:
            raise ValueError("layers must be distinct layers, counted from 1")
        return sorted(layers)

    @field_validator("keep")
    @classmethod
    def _are_shares(cls, keep: list[float]) -> list[float]:
        if len(set(keep)) < len(keep) or not all(0 < share < 1 for share in keep):
            raise ValueError("keep must be distinct shares between 0 and 1; all tokens are the student itself")
        return sorted(keep, reverse=True)

    def left_after(self, keep: float) -> dict[int, float]:
        """Share of a text's tokens that is left after each of the layers, where ``keep`` is left after the last."""
        return {layer: keep ** (place / len(self.layers)) for place, layer in enumerate(self.layers, start=1)}


def length_adaptive_settings(model: SentenceTransformer) -> LengthAdaptiveSettings | None:
    """What a model says about the tokens that it may drop; None for a model that drops none."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    said = getattr(config, LENGTH_ADAPTIVE, None)
    return None if said is None else validated(LengthAdaptiveSettings, said, f"{LENGTH_ADAPTIVE} in config.json")
