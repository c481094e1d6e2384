"""Documents of dense students as their codes of 8 bits or 1 bit represent them, for a loss on what an index stores.

Queries stay float vectors (asymmetric search): they are compared with decoded documents.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss
from retrodistill.encoders.vectors import Vectors, training_rows
from retrodistill.students.dense_variants import VectorLoss

Precision = Literal["int8", "binary"]
_LEVELS = 255  # steps between the smallest and the largest number of a dimension, as in FAISS's SQ8
_BLOCK = 65_536  # vectors that are coded at once


class CodedVectors:
    """Stored (n, d) vectors as the index of their codes represents them, decoded when they are read.

    Args:
        vectors: (n, d), 2 or more; fewer are a `UserError`.
        precision: ``int8`` or ``binary``.

    Codes are those of FAISS's `SQ8` (int8) or `PQ{d}x1` (binary): two numbers for each dimension, in whose middle its
    bit changes. Only the codes are kept.
    """

    def __init__(self, vectors: Vectors, precision: Precision) -> None:
        count, dimension = vectors.shape
        if count < 2:
            raise UserError(f"quantize is for two or more documents, and there is {count}; leave it out.")
        factory = "SQ8" if precision == "int8" else f"PQ{dimension}x1np"
        self._index: Any = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if precision == "binary":
            self._index.pq.cp.min_points_per_centroid = 1  # otherwise C++ prints a warning per dimension
        self._index.train(_float32(vectors[training_rows(count, 2)]))
        self._codes = np.empty((count, self._index.sa_code_size()), dtype=np.uint8)
        for start in range(0, count, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._codes[block] = self._index.sa_encode(_float32(vectors[block]))

    def __getitem__(self, rows: Any) -> np.ndarray:
        """(..., d) float32 of rows, a slice or one array of indices of any shape."""
        codes = self._codes[rows]
        decoded: np.ndarray = self._index.sa_decode(np.ascontiguousarray(codes.reshape(-1, codes.shape[-1])))
        return decoded.reshape(*codes.shape[:-1], self._index.d)


def _float32(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def straight_through(vectors: Tensor, precision: Precision) -> Tensor:
    """(batch, d) vectors as their codes represent them, with the gradient of the vectors themselves.

    ``x + stop(code(x) - x)``, the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432). The binary code is
    the sign of each number, as in ``encode(precision="binary")`` and vector stores, at the batch's mean magnitude. The
    int8 code is one of 256 levels between a dimension's smallest and largest number in the batch.
    """
    fixed = vectors.detach()
    if precision == "binary":
        magnitude = fixed.abs().mean()
        coded = torch.where(fixed > 0, magnitude, -magnitude)
    else:
        low, high = fixed.amin(dim=0), fixed.amax(dim=0)
        step = ((high - low) / _LEVELS).clamp(min=torch.finfo(fixed.dtype).tiny)
        coded = low + ((fixed - low) / step).round() * step
    return vectors + (coded - fixed)


class QuantizedLoss(VectorLoss):
    """Adds to a loss the same loss on coded documents: ``L(q, d) + L(q, code(d))``; the model runs once.

    Documents that are columns of a batch are coded by `straight_through`; those that ``coded``, the second loss, has
    stored are `CodedVectors` already. ``start`` is the student at the start of the stage, for ``lwf``.
    """

    def __init__(
        self, model: Any, plain: nn.Module, coded: nn.Module, precision: Precision, *, start: nn.Module | None = None
    ) -> None:
        super().__init__(model, start)
        self._precision = precision
        self._cosine = str(model.similarity_fn_name) == "cosine"
        self.plain, self.coded = plain, coded

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Terms by name, those of coded documents as ``name@binary``, of (batch, d) vectors, the queries first."""
        terms: dict[str, Tensor] = self.plain.compute_loss_from_embeddings(  # type: ignore[operator]
            embeddings, labels, start_embeddings
        )
        queries, *documents = embeddings
        if documents:
            together = torch.cat([document.float() for document in documents])
            if self._cosine:
                together = nn.functional.normalize(together, dim=1)
            documents = list(straight_through(together, self._precision).split([len(one) for one in documents]))
        coded = self.coded.compute_loss_from_embeddings(  # type: ignore[operator]
            [queries, *documents], labels, start_embeddings
        )
        return {**terms, **{f"{name}@{self._precision}": value for name, value in coded.items()}}
