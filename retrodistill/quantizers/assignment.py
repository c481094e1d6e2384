"""Choosing codes and lists for documents under learned parts."""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.quantizers.quantizer import Quantiser

_BLOCK = 8192


@torch.no_grad()
def nearest_lists(quantiser: Quantiser, documents: Tensor) -> Tensor:
    """(n,) the list of highest inner product, as FAISS assigns on `add`."""
    return torch.cat([quantiser.list_scores(block).argmax(dim=1) for block in documents.split(_BLOCK)])


@torch.no_grad()
def nearest_codes(quantiser: Quantiser, documents: Tensor, rows: Tensor) -> Tensor:
    """(n, M) nearest codewords of (n, d) documents, as FAISS codes on `add`; `rows` are theirs, for their lists."""
    subspaces, _, size = quantiser.codebooks.shape
    lengths = quantiser.codebooks.square().sum(dim=2)
    found = []
    for block, own in zip(documents.split(_BLOCK), rows.split(_BLOCK), strict=True):
        inner = block @ quantiser.transform.T
        if quantiser.centroids is not None and quantiser.lists is not None:
            inner = inner - quantiser.centroids[quantiser.lists[own]]
        parts = inner.view(len(block), subspaces, size).transpose(0, 1)
        distances = lengths[:, None, :] - 2 * torch.bmm(parts, quantiser.codebooks.transpose(1, 2))
        found.append(distances.argmin(dim=2).T)
    return torch.cat(found)
