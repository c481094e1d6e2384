"""Encoders that run in ONNX Runtime: dense, static, and sparse models that were exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.digests import digest
from retrodistill.core.manifest import Manifest
from retrodistill.data.records import require_utf8
from retrodistill.encoders.contract import TOKENS_PER_PASS, Role, TextModel, current_encoding
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.onnx_runtime import OnnxExport
from retrodistill.encoders.reading import Reader
from retrodistill.encoders.sparse import SparseTextEncoder, TokenWeights, unit_rows
from retrodistill.encoders.vectors import normalized


class OnnxModel(TextModel):
    """A model whose texts a graph encodes; the manifest of the export says all else about it.

    torch and the model itself are loaded when they are needed: for training, or for a role that the graph does not
    encode. A contract is that of the model, since a graph only rounds its vectors: queries by the one search documents
    by the other. Stores keep the two apart, by `fingerprint`.
    """

    def __init__(self, export: OnnxExport, name: str, student: Manifest | None, load: Callable[[], Any]) -> None:
        self.export, self.name, self.student, self._load = export, name, student, load
        self.encoding = current_encoding().in_onnx()

    @cached_property
    def model(self) -> Any:
        """The sentence-transformers model."""
        return self.export.with_model(self._load)

    @property
    def is_static(self) -> bool:  # type: ignore[override]  # an attribute of the base
        """Whether it is a token table."""
        return self.export.kind == "static"

    @property
    def dimension(self) -> int:
        """As `TextModel.dimension`."""
        return int(self._documents["dimension"])

    @property
    def similarity(self) -> str:
        """As `TextModel.similarity`."""
        return str(self._documents["similarity"])

    @property
    def truncation(self) -> int | None:
        """As `TextModel.truncation`."""
        return self._documents.get("truncation")

    @property
    def code(self) -> dict[str, Any]:
        """Empty: a graph brings no code."""
        return {}

    def contract(self, role: Role) -> dict[str, Any]:
        """As `TextModel.contract`."""
        known = self.export.roles.get(role)
        return super().contract(role) if known is None else dict(known["contract"])

    def prompt(self, role: Role) -> str:
        """As `TextModel.prompt`."""
        known = self.export.roles.get(role)
        return super().prompt(role) if known is None else str(known["prompt"])

    def fingerprint(self, role: Role) -> str:
        """As `TextModel.fingerprint`, with the graph."""
        plain = super().fingerprint(role)
        return f"{plain}-{digest(self.export.checksum)}" if role in self.export.roles else plain

    @cached_property
    def weights_digest(self) -> str:
        """As `TextModel.weights_digest`."""
        return str(self._documents["weights"])

    @property
    def _documents(self) -> dict[str, Any]:
        contract: dict[str, Any] = self.export.roles["document"]["contract"]
        return contract

    @cached_property
    def _readers(self) -> dict[Role, Reader]:
        reader = Reader(self.export.tokenizer)
        own = {role: reader for role in ("query", "document") if role in self.export.roles}
        return own if len(own) == 2 else {**super()._readers, **own}

    def _rows(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(n, width) float32 of the graph."""
        require_utf8(texts, role)
        prompt = self.prompt(role)
        return self.export.graph.run([prompt + text for text in texts], min(TOKENS_PER_PASS, self.most_tokens))


class OnnxEncoder(OnnxModel, Encoder):
    """One vector per text."""

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """As `Encoder.encode`."""
        if role not in self.export.roles or not len(texts):
            return super().encode(texts, role, batch_size=batch_size)
        vectors = self._rows(texts, role)[:, : self.truncation]
        if self.similarity == "cosine":
            vectors = normalized(vectors)
        self._require_finite(~np.isfinite(vectors).all(axis=1), None, texts, "vector")
        return vectors


class OnnxSparseEncoder(OnnxModel, SparseTextEncoder):
    """Weights of the vocabulary's terms."""

    def token_weights(self, role: Role) -> TokenWeights | None:
        """As `SparseTextEncoder.token_weights`."""
        return None if role in self.export.roles else super().token_weights(role)

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int | None) -> csr_array:
        if role not in self.export.roles:
            return super()._encode(texts, role, batch_size)
        weights = self._rows(texts, role)
        if (most := self.contract(role)["most_terms"]) is not None and most < weights.shape[1]:
            lighter = np.argpartition(-np.abs(weights), most - 1, axis=1)[:, most:]
            np.put_along_axis(weights, lighter, 0.0, axis=1)
        vectors = csr_array(weights)
        return unit_rows(vectors) if self.similarity == "cosine" else vectors
