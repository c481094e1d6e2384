"""Dense encoders: one vector per text, from a transformer or a static token table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.vectors import normalized

_PART = 1024  # texts that a token table reads at once


class Encoder(TextModel):
    """Encodes queries and documents as vectors whose inner product is the score.

    Vectors of a cosine model are normalized here, so that the inner product means the same for every model.
    """

    @property
    def kind(self) -> str:  # type: ignore[override]  # read-only here
        """``dense`` or ``static``."""
        return "static" if self.is_static else "dense"

    @property
    def is_static(self) -> bool:  # type: ignore[override]  # read-only here
        """Whether it is a token table, without a transformer."""
        return type(self.model[0]).__name__ == "StaticEmbedding"

    def needs_store(self, role: Role) -> bool:
        """As `TextModel.needs_store`; a token table is faster than the store."""
        return not (self.is_static or self.is_recorded)

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """(n, dimension) float32; unit vectors for cosine models."""
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        if self._is_plain_table:
            vectors = self._encode_table(texts, role)
        else:
            is_cosine = self.similarity == "cosine"
            rows = self._run(texts, role, batch_size, convert_to_numpy=True, normalize_embeddings=is_cosine)
            vectors = np.stack(rows).astype(np.float32, copy=False)
            if is_cosine and self.encoding.precision != "float32":
                vectors = normalized(vectors)  # bfloat16 products leave lengths that are 1 to three digits only
        self._require_finite(~np.isfinite(vectors).all(axis=1), None, texts, "vector")
        return vectors

    @property
    def _is_plain_table(self) -> bool:
        """Whether it only averages rows of a table on the CPU, normalized or not."""
        others = {type(module).__name__ for module in list(self.model)[1:]}
        on_cpu = str(self.model.device) == "cpu"
        return self.is_static and others <= {"Normalize"} and self.truncation is None and on_cpu

    def _encode_table(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """The model's own result without its overhead, which is several times the work for one query.

        Texts go in parts, one per thread at a time: the tokens of a part take several times the bytes of its vectors.
        """
        import torch

        module: Any = self.model[0]
        prompt, table = self.prompt(role), module.embedding.weight.detach()

        def encode(start: int) -> np.ndarray:
            part = [prompt + text for text in texts[start : start + _PART]]
            ids = [encoding.ids for encoding in module.tokenizer.encode_batch(part, add_special_tokens=False)]
            firsts = torch.tensor([0, *itertools.accumulate(map(len, ids))][:-1])
            tokens = torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.int64)
            return torch.nn.functional.embedding_bag(tokens, table, firsts, mode="mean").numpy()

        starts = range(0, len(texts), _PART)
        if len(starts) == 1:
            vectors = encode(0)
        else:
            vectors = np.empty((len(texts), table.shape[1]), dtype=np.float32)
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # tokenizers work outside Python's lock
                for start, part in zip(starts, threads.map(encode, starts), strict=True):
                    vectors[start : start + _PART] = part
        return normalized(vectors) if self.similarity == "cosine" else vectors
