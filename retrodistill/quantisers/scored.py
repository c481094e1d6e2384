"""Choosing codes by scores: those under which the queries near a document see it where the teacher has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrodistill.quantisers.quantiser import Quantiser
from retrodistill.quantisers.targets import Targets

_BLOCK = 256
_NEAREST = 32  # queries that have a say in one document's codes


@dataclass(frozen=True)
class Audience:
    """For each document, the training queries that put most of their teacher's mass on it.

    Attributes:
        queries: (n, 32) rows of queries, 0 where there are fewer.
        weights: (n, 32) float32 probability of the document in the query's list; 0 for padding.
        wanted: (n, 32) float32 teacher scores of the pairs.
    """

    queries: Tensor
    weights: Tensor
    wanted: Tensor


def audience(targets: Targets, rows: np.ndarray, sources: np.ndarray, documents: int, temperature: float) -> Audience:
    """Find the queries of each document, among the 100 documents that each query's teacher puts first."""
    depth = min(100, documents)
    asked, placed, weights, wanted = [], [], [], []
    for start in range(0, len(rows), 256):
        block = rows[start : start + 256]
        scores = torch.from_numpy(np.ascontiguousarray(targets.scores(block), dtype=np.float32))
        own = torch.from_numpy(sources[block])
        known = own >= 0
        scores[known, own[known]] = -torch.inf
        found = scores.topk(depth, dim=1)
        shares = found.values / temperature
        shares = (shares - (scores / temperature).logsumexp(dim=1, keepdim=True)).exp()
        asked.append(torch.from_numpy(block)[:, None].expand(-1, depth).reshape(-1))
        placed.append(found.indices.reshape(-1))
        weights.append(shares.reshape(-1))
        wanted.append(found.values.reshape(-1))
    return _grouped(torch.cat(asked), torch.cat(placed), torch.cat(weights), torch.cat(wanted), documents)


def _grouped(asked: Tensor, placed: Tensor, weights: Tensor, wanted: Tensor, documents: int) -> Audience:
    order = torch.argsort(weights, descending=True, stable=True)
    order = order[torch.argsort(placed[order], stable=True)]
    counts = torch.bincount(placed, minlength=documents)
    rank = torch.arange(len(order)) - (torch.cumsum(counts, 0) - counts)[placed[order]]
    order, rank = order[rank < _NEAREST], rank[rank < _NEAREST]
    shape = (documents, _NEAREST)
    queries, shares, scores = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape)
    queries[placed[order], rank], shares[placed[order], rank] = asked[order], weights[order]
    scores[placed[order], rank] = wanted[order]
    return Audience(queries, shares, scores)


@torch.no_grad()
def scored_codes(
    quantiser: Quantiser, documents: Tensor, queries: Tensor, near: Audience, everywhere: float, sweeps: int = 2
) -> Tensor:
    """(n, M) codes by coordinate descent, one subspace after the other, from the present ones.

    Each document's codes minimise ``sum_q p_q (<q, x^> - t_q - shift_q)^2 + w E_q[(<q, x^ - x> - shift_q)^2]``: the
    list loss to second order (the sum over its audience), and the error before any other query. ``shift_q`` is the mean
    error of the query's list, which changes no ranking.

    Args:
        quantiser: With its present codes.
        documents: (n, d).
        queries: (q, d) that the audience's rows point into; also those whose mean is taken.
        near: Who asks for which document.
        everywhere: w, in units of the mean total weight of an audience.
        sweeps: Over all subspaces.
    """
    subspaces, _, size = quantiser.codebooks.shape
    asked, books = queries @ quantiser.transform.T, quantiser.codebooks
    rebuilt = quantiser.rebuilt()
    errors = torch.stack(
        [(asked[near.queries[:, place]] * rebuilt).sum(dim=1) - near.wanted[:, place] for place in range(_NEAREST)], 1
    )
    flat, weights = near.queries.flatten(), near.weights.flatten()
    total = torch.zeros(len(queries)).index_add_(0, flat, weights)
    shift = torch.zeros(len(queries)).index_add_(0, flat, weights * errors.flatten()) / total.clamp(min=1e-6)
    errors = errors - shift[near.queries]
    share = everywhere * float(near.weights.sum()) / len(documents)
    spread = asked.T @ asked / len(asked)  # of mapped queries: E_q[(Aq)(Aq)^T]
    lean = asked.T @ shift / len(asked)
    truth = documents @ (queries.T @ asked / len(asked))  # E_q[<q, x> Aq]
    pull = rebuilt @ spread - truth - lean  # half the gradient of the second term
    codes = quantiser.codes.clone()
    for _ in range(sweeps):
        for block in range(subspaces):
            part = slice(block * size, (block + 1) * size)
            table = asked[:, part] @ books[block].T
            own = ((books[block] @ spread[part, part]) * books[block]).sum(dim=1)
            for start in range(0, len(documents), _BLOCK):
                rows = slice(start, start + _BLOCK)
                was = books[block][codes[rows, block]]
                seen = table[near.queries[rows]]
                left = errors[rows] - seen.gather(2, codes[rows, block][:, None, None].expand(-1, _NEAREST, 1))[:, :, 0]
                away = pull[rows, part] - was @ spread[part, part]
                cost = torch.bmm(near.weights[rows][:, None], seen * (seen + 2 * left[:, :, None]))[:, 0]
                cost = cost + share * (own[None, :] + 2 * away @ books[block].T)
                chosen = cost.argmin(dim=1)
                codes[rows, block] = chosen
                errors[rows] = left + seen.gather(2, chosen[:, None, None].expand(-1, _NEAREST, 1))[:, :, 0]
                pull[rows] += (books[block][chosen] - was) @ spread[part, :]
    return codes
