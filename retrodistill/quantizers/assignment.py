"""Choosing codes and lists for documents under learned parts."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.quantizers.quantizer import Quantizer

_BLOCK = 8192


@torch.no_grad()
def nearest_lists(quantizer: Quantizer, documents: Tensor) -> Tensor:
    """(n,) the list of highest inner product, as FAISS assigns on `add`."""
    return torch.cat([quantizer.list_scores(block).argmax(dim=1) for block in documents.split(_BLOCK)])


@torch.no_grad()
def nearest_codes(quantizer: Quantizer, documents: Tensor, rows: Tensor) -> Tensor:
    """(n, M) nearest codewords of (n, d) documents, as FAISS codes on `add`; `rows` are theirs, for their lists."""
    subspaces, _, size = quantizer.codebooks.shape
    lengths = quantizer.codebooks.square().sum(dim=2)
    found = []
    for block, own in zip(documents.split(_BLOCK), rows.split(_BLOCK), strict=True):
        inner = block @ quantizer.transform.T
        if quantizer.centroids is not None and quantizer.lists is not None:
            inner = inner - quantizer.centroids[quantizer.lists[own]]
        parts = inner.view(len(block), subspaces, size).transpose(0, 1)
        distances = lengths[:, None, :] - 2 * torch.bmm(parts, quantizer.codebooks.transpose(1, 2))
        found.append(distances.argmin(dim=2).T)
    return torch.cat(found)
