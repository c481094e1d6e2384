"""How a recipe's index is built."""

from __future__ import annotations

from pydantic import model_validator

from retrodistill.indexes.registry import IndexOptions
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.training.settings import StageSettings, TextSettings


class IndexSettings(IndexOptions):
    """How the index is built.

    Attributes:
        learn: Learn the quantizer from a teacher (Distill-VQ): in a recipe without students, whose systems are
            ``exact``, ``opq``, ``distilled`` and ``distilled-queries``. `bytes` or `factory` sets the size of a code.
        texts: What `learn` takes for queries.
        encoder: A stage that trains the query encoder against the learned codes, for ``distilled-queries``; without it,
            a linear map of the queries is learned beside the codes.
    """

    learn: QuantizerSettings | None = None
    """Learn the quantizer from a teacher (Distill-VQ), in a recipe without students. Its systems are `exact`, `opq`,
    `distilled`, and `distilled-queries`."""
    texts: TextSettings = TextSettings()
    """The texts that `learn` uses as queries."""
    encoder: StageSettings | None = None
    """A stage that trains the query encoder against the learned codes, for `distilled-queries`. Without it, a linear
    map of the queries is learned together with the codes."""

    @model_validator(mode="after")
    def _encoder_fits(self) -> IndexSettings:
        if self.encoder is None:
            return self
        if self.learn is None:
            raise ValueError("encoder trains queries for a learned index; set learn")
        if self.encoder.train != "query_encoder" or not self.encoder.needs_lists:
            raise ValueError("encoder is a stage with train: query_encoder and a list objective")
        return self
