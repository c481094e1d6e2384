"""Dense encoders: one vector per text, from a transformer or a static token table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from retrodistill.data.records import require_utf8
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.modules import is_linear
from retrodistill.encoders.vectors import normalized
from retrodistill.encoders.words import WordTable

_PART = 1024  # texts that a token table reads at once
_FEW_THREADS = 4  # with more, a tokenizer, which uses them all, is faster than a table of words


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

    @property
    def widths(self) -> tuple[int, ...]:
        """Dimensions of the encoders whose vectors are side by side in its own: here one."""
        return (self.dimension,)

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
        """Whether it only averages rows of a table on the CPU, with a linear map or not, normalized or not."""
        first, *others = self.model
        if self.is_static and others and is_linear(others[0]):
            others = others[1:]
        is_table = self.is_static and {type(module).__name__ for module in others} <= {"Normalize"}
        return is_table and self.truncation is None and first.embedding.weight.device.type == "cpu"

    def _encode_table(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """The model's own result without its overhead, which is several times the work for one query.

        Texts go in parts, one per thread at a time: the tokens of a part take several times the bytes of its vectors.
        """
        import torch

        require_utf8(texts, role)
        prompt, table = self.prompt(role), self.model[0].embedding.weight.detach()
        mapped = next((module.linear.weight.detach().numpy().T for module in self.model if is_linear(module)), None)

        def encode(start: int) -> np.ndarray:
            ids = self._token_ids([prompt + text for text in texts[start : start + _PART]])
            lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
            tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=lengths.sum())
            firsts = torch.from_numpy(np.cumsum(lengths) - lengths)
            sums = torch.nn.functional.embedding_bag(torch.from_numpy(tokens), table, firsts, mode="sum").numpy()
            means = sums / np.maximum(lengths, 1).astype(np.float32)[:, None]  # mode="mean" takes twice the time
            return means if mapped is None else means @ mapped

        starts = range(0, len(texts), _PART)
        if len(starts) == 1:
            vectors = encode(0)
        else:
            vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # tokenizers work outside Python's lock
                for start, part in zip(starts, threads.map(encode, starts), strict=True):
                    vectors[start : start + _PART] = part
        return normalized(vectors) if self.similarity == "cosine" else vectors

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        """Of a token table's tokenizer, without special tokens."""
        import torch

        if self._words is not None and torch.get_num_threads() <= _FEW_THREADS:
            return self._words.ids(texts)
        encodings = self.model[0].tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def _words(self) -> WordTable | None:
        tokenizer = self.model[0].tokenizer
        return WordTable(tokenizer) if WordTable.fits(tokenizer) else None
