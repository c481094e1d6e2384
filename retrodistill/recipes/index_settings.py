"""How a recipe's index is built."""

from __future__ import annotations

from pydantic import Field, model_validator

from retrodistill.core.settings import Settings
from retrodistill.indexes.building import FaissSettings
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.training.settings import StageSettings, TextSettings


class IndexSettings(Settings):
    """How the index is built."""

    factory: str = "Flat"
    """A FAISS factory string, or `auto`: chosen from the number of documents, `bytes`, and `recall`."""
    parameters: str | None = None
    """FAISS search parameters, e.g. `nprobe=16`."""
    truncate: int | None = Field(default=None, ge=1)
    """Leading dimensions of the vectors to keep (Matryoshka)."""
    bytes: int | None = Field(default=None, ge=1)
    """Bytes of a document's code, for `auto` and for `learn`, which then choose the factory."""
    recall: float | None = Field(default=None, gt=0, le=1)
    """Share of the exact ten neighbors that `auto` should find."""
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

    @property
    def faiss(self) -> FaissSettings:
        """How vectors are indexed if no quantizer is learned; bytes or recall alone mean ``auto``."""
        auto = self.factory == "Flat" and (self.bytes or self.recall)
        return FaissSettings(
            factory="auto" if auto else self.factory,
            parameters=self.parameters,
            truncate=self.truncate,
            bytes=self.bytes,
            recall=self.recall,
        )
