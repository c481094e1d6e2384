"""k-means on each text of a batch, in torch: the same clusters whatever batch a text stands in, but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

_SAME = 1e-6  # of two squared lengths: a smaller squared distance is rounding


def k_means(tokens: Tensor, mask: Tensor, counts: Tensor, *, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm on each text of a batch, from `first_centres`.

    A cluster that loses all its members keeps its center, and may end empty.

    Args:
        tokens: (batch, tokens, d) float32, 0 where masked.
        mask: (batch, tokens) bool, true first and false after.
        counts: (batch,) int64 clusters of each text; where it has no more tokens, each is a cluster of its own.
        iterations: At most so many; it ends where nothing changes.
        seed: Of the first centers.

    Returns:
        (batch, tokens) int64 clusters, -1 where masked.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    alone = (mask.sum(dim=1) <= counts)[:, None]
    clusters = torch.zeros_like(mask, dtype=torch.int64) + torch.where(alone, places, -1)
    if not bool(alone.all()):
        most = int(counts.max())
        alive = torch.arange(most, device=tokens.device) < counts[:, None]
        first = first_centres(tokens, mask, most, seed)
        centers = tokens.gather(1, first[:, :, None].expand(-1, -1, tokens.shape[2]))
        found = torch.full_like(clusters, -1)
        for _ in range(iterations):
            # argmin |x - c|^2 without |x|^2, which is the same for all centers
            near = tokens @ centers.mT - centers.square().sum(dim=2)[:, None, :] / 2
            nearest = near.masked_fill(~alive[:, None, :], -torch.inf).argmax(dim=2)
            if torch.equal(nearest, found):
                break
            found = nearest
            means, sizes = cluster_means(tokens, found.masked_fill(~mask, -1), most)
            centers = torch.where((sizes > 0)[:, :, None], means, centers)
        clusters = torch.where(alone, clusters, found)
    return clusters.masked_fill(~mask, -1)


def first_centres(tokens: Tensor, mask: Tensor, most: int, seed: int) -> Tensor:
    """Tokens that k-means starts from: k-means++ (Arthur and Vassilvitskii 2007) with draws fixed by the seed.

    The j-th center of every text is drawn by the same j-th number between 0 and 1, on the cumulated squared distances
    to the nearest center before it: so a text has the same centers in any batch.

    Args:
        tokens: (batch, tokens, d) float32, 0 where masked.
        mask: (batch, tokens) bool, true first and false after.
        most: Centres of each text.
        seed: Of the draws.

    Returns:
        (batch, most) int64 places of tokens. They are distinct as far as a text has distinct vectors.
    """
    draws = torch.rand(most, generator=torch.Generator().manual_seed(seed)).tolist()
    rows = torch.arange(len(tokens), device=tokens.device)
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    products = tokens @ tokens.mT
    squares = products.diagonal(dim1=1, dim2=2)
    chosen = torch.minimum((draws[0] * (last + 1)).long(), last)
    centers, distances = [chosen], torch.full_like(squares, torch.inf)
    for draw in draws[1:]:
        sums = squares + squares[rows, chosen][:, None]
        apart = sums - 2 * products[rows, chosen]
        distances = torch.minimum(distances, apart.masked_fill((apart < _SAME * sums) | ~mask, 0.0))
        cumulated = distances.cumsum(dim=1)
        chosen = torch.searchsorted(cumulated, draw * cumulated[:, -1:], right=True)[:, 0]
        chosen = torch.minimum(chosen, last)
        centers.append(chosen)
    return torch.stack(centers, dim=1)


def cluster_means(tokens: Tensor, clusters: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Means of the members of each cluster.

    Args:
        tokens: (batch, tokens, d), 0 where they belong to no cluster.
        clusters: (batch, tokens) int64, -1 for none.
        most: Clusters of a text.

    Returns:
        (batch, most, d) means, 0 for empty clusters, and (batch, most) int64 sizes.
    """
    members = clusters[:, None, :] == torch.arange(most, device=tokens.device)[:, None]
    sizes = members.sum(dim=2)
    return members.to(tokens.dtype) @ tokens / sizes.clamp(min=1)[:, :, None], sizes
