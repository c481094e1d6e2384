"""The product quantizer with gradients: what FAISS computes at search, in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrodistill.quantizers.start import Codes


class Quantizer(nn.Module):
    """Scores queries against coded documents as FAISS does: ``<A q, codewords + centroid>``.

    Args:
        start: The parts to begin with.
        transform: ``free``, ``rotation`` or ``fixed`` (`QuantizerSettings.transform`).
    """

    def __init__(self, start: Codes, transform: str) -> None:
        super().__init__()
        self.start = start
        self.kind = transform if start.rotated else "fixed"
        self.transform = nn.Parameter(torch.from_numpy(start.rotation.copy()), requires_grad=self.kind != "fixed")
        self.codebooks = nn.Parameter(torch.from_numpy(start.codebooks.copy()))
        self.centroids = None if start.centroids is None else nn.Parameter(torch.from_numpy(start.centroids.copy()))
        self.register_buffer("codes", torch.from_numpy(start.codes.copy()))
        self.register_buffer("lists", None if start.lists is None else torch.from_numpy(start.lists.copy()))
        subspaces, words, _ = self.codebooks.shape
        self.register_buffer("_offsets", torch.arange(subspaces) * words)

    codes: Tensor
    lists: Tensor | None
    _offsets: Tensor

    def rebuilt(self, rows: Tensor | None = None) -> Tensor:
        """(n, width) documents, or those of some `rows`, in the space of the codes; differentiable in the codebooks."""
        codes = self.codes if rows is None else self.codes[rows]
        flat = self.codebooks.flatten(0, 1)
        inner = flat.index_select(0, (codes + self._offsets).flatten()).view(len(codes), -1)
        if self.centroids is None or self.lists is None:
            return inner
        return inner + self.centroids.index_select(0, self.lists if rows is None else self.lists[rows])

    def forward(self, queries: Tensor, rows: Tensor | None = None) -> Tensor:
        """(batch, n) scores of (batch, d) queries, over all documents or those of some `rows`."""
        return (queries @ self.transform.T) @ self.rebuilt(rows).T

    def list_scores(self, queries: Tensor) -> Tensor:
        """(batch, lists) inner products with the centroids: which lists are probed."""
        if self.centroids is None:
            raise ValueError("a quantizer without lists has no centroids")
        return (queries @ self.transform.T) @ self.centroids.T

    def tangent(self) -> None:
        """Take from the rotation's gradient what would only bend it, before a step of the optimizer."""
        if self.kind == "rotation" and self.transform.grad is not None:
            inward = self.transform.grad @ self.transform.detach().T
            self.transform.grad -= (inward + inward.T) / 2 @ self.transform.detach()

    @torch.no_grad()
    def straighten(self) -> None:
        """Bring the rotation's rows back to right angles (two Newton-Schulz rounds), after a step."""
        if self.kind == "rotation":
            for _ in range(2):
                own = self.transform.data
                self.transform.data = 1.5 * own - 0.5 * (own @ own.T) @ own

    def parts(self) -> Codes:
        """The learned parts as arrays."""
        return self.start.with_arrays(
            rotation=self.transform.detach().numpy().copy(),
            codebooks=self.codebooks.detach().numpy().copy(),
            codes=self.codes.numpy().copy(),
            centroids=None if self.centroids is None else self.centroids.detach().numpy().copy(),
            lists=None if self.lists is None else self.lists.numpy().copy(),
        )
