"""Clustered token vectors: means of clusters that are made in the forward pass (CRISP, arXiv 2505.11471)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling
from torch import Tensor, nn

from retrodistill.core.errors import UserError, unknown
from retrodistill.encoders.modules import with_modules

Vectors = list[Tensor] | Tensor  # of texts: (tokens, d) each, or padded
ClusterSize = int | float  # a number of vectors, or a share of a text's tokens
ClusterSizes = tuple[ClusterSize | None, ClusterSize | None]  # of a query and of a document; None: not clustered
METHODS = ("k-means", "ward")
_TEXTS = 32  # clustered at once where they come without padding
_PARTS = 10_000  # resolution of a share
_SAME = 1e-6  # of two squared lengths: a smaller squared distance is rounding


class TokenClusters(BaseTokenPooling):
    """Replaces the token vectors of a text by the means of their clusters.

    It is the last module of a multi-vector encoder, so that training, indexing and search see the same vectors.
    Gradients flow through the means, assignments are constants: ``d mean / d token`` is 1 / size for members and 0 for
    others. Except for rounding, a text's vectors depend on its own tokens and the seed, not on its batch. A model with
    it loads where retrodistill is installed, by `retrodistill.encoders.loading.load_multi_vector`, or with
    sentence-transformers' ``trust_remote_code=True``.

    Args:
        query: Vectors of a query: a number, a share of its tokens between 0 and 1, or None to leave queries unchanged.
        document: The same of a document, and of texts without a task.
        normalise: Give the means length 1, which tokens have.
        iterations: Maximum number of iterations of Lloyd's algorithm.
        seed: Seed of the first centers.
        weighted: Multiply a query's means by the sizes of their clusters, relative to the mean size. MaxSim adds up a
            query's tokens, so that a mean stands for as many terms of the sum as it has tokens.
        method: ``k-means``, as in the paper, or ``ward``: the hierarchical clusters of token pooling, which depend on
            no seed (see `ward`). Ward takes time and memory in the square of a text's tokens.
    """

    config_keys: list[str] = [  # noqa: RUF012 - the base's
        "query",
        "document",
        "normalise",
        "iterations",
        "seed",
        "weighted",
        "method",
    ]

    def __init__(
        self,
        query: ClusterSize | None = None,
        document: ClusterSize | None = None,
        *,
        normalise: bool = True,
        iterations: int = 10,
        seed: int = 0,
        weighted: bool = False,
        method: str = "k-means",
    ) -> None:
        sizes = {role: size for role, size in (("query", query), ("document", document)) if size is not None}
        super().__init__(tasks=list(sizes))
        for role, size in sizes.items():
            check_cluster_size(role, size)
        if iterations < 1:
            raise UserError(f"iterations={iterations}: k-means needs at least 1.")
        if method not in METHODS:
            raise unknown("method of clustering", method, METHODS)
        self.query, self.document = query, document
        self.normalise, self.iterations, self.seed = normalise, iterations, seed
        self.weighted, self.method = weighted, method

    def get_config_dict(self) -> dict[str, Any]:
        """The settings; those that earlier versions do not have only if they are set, so that saved ones stay equal."""
        config: dict[str, Any] = super().get_config_dict()
        newer = {"weighted": False, "method": "k-means"}
        return {key: value for key, value in config.items() if key not in newer or value != newer[key]}

    def forward(  # type: ignore[override]
        self, features: dict[str, Tensor], task: str | None = None
    ) -> dict[str, Tensor]:
        """Replace ``token_embeddings`` by the means, and ``attention_mask`` by which of them count."""
        if self.applies_to(task) and len(features["token_embeddings"]):
            means, kept = self.cluster(features["token_embeddings"], features["attention_mask"], task)
            features["token_embeddings"], features["attention_mask"] = means, kept
        return features

    def cluster(self, tokens: Tensor, mask: Tensor, task: str | None = None) -> tuple[Tensor, Tensor]:
        """The means of padded texts.

        Of (batch, tokens, d) tokens and their (batch, tokens) bool mask: (batch, vectors, d) of the tokens' type and
        (batch, vectors) bool. Texts with no more tokens than clusters keep theirs; those with fewer distinct tokens
        have fewer vectors.
        """
        size = self.query if task == "query" else self.document
        if size is None:
            return tokens, mask.bool()
        with torch.autocast(tokens.device.type, enabled=False):
            packed, kept = _packed(tokens.float(), mask.bool())
            counts = vectors_kept(size, kept.sum(dim=1))
            with torch.no_grad():  # clustering only picks assignments
                if self.method == "ward":
                    clusters = ward(packed, kept, counts)
                else:
                    clusters = k_means(packed, kept, counts, iterations=self.iterations, seed=self.seed)
            means, sizes = cluster_means(packed, clusters, max(1, int(counts.max())))
            means = nn.functional.normalize(means, dim=2) if self.normalise else means
            if self.weighted and task == "query":
                used = (sizes > 0).sum(dim=1, keepdim=True)
                means = means * (sizes * used / sizes.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None]
            means, kept = _packed(means, sizes > 0)
        return means.to(tokens.dtype), kept

    def cluster_flat(self, tokens: Tensor, lengths: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """The means of texts without padding, in their order.

        Takes (sum of lengths, d) tokens and (texts,) int64 lengths; gives (sum of counts, d) and (texts,) int64 counts.
        """
        if not self.applies_to(task) or not len(lengths):
            return tokens, lengths
        texts = tokens.split(lengths.tolist())
        order = torch.argsort(lengths, stable=True)  # texts of similar length together: little padding
        parts, counts = [], torch.zeros_like(lengths)
        for rows in order.split(_TEXTS):
            vectors, kept = self.cluster(*padded([texts[row] for row in rows.tolist()]), task)
            parts.append(vectors[kept])
            counts[rows] = kept.sum(dim=1)
        text_of_vector = order.repeat_interleave(counts[order])
        return torch.cat(parts)[torch.argsort(text_of_vector, stable=True)], counts

    def pool(  # type: ignore[override]
        self, embeddings: Vectors, *, task: str | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Vectors:
        """Cluster vectors that are already encoded, as the base class does, but to the task's own number of vectors."""
        if not self.applies_to(task) or not len(embeddings):
            return embeddings
        if isinstance(embeddings, Tensor):
            mask = (embeddings != 0).any(dim=2) if attention_mask is None else attention_mask
            return self.cluster(embeddings, mask, task)[0]
        vectors, kept = self.cluster(*padded(embeddings), task)
        return [text[own] for text, own in zip(vectors, kept, strict=True)]

    def pool_one(self, embedding: Tensor, **kwargs: Any) -> Tensor:
        """(vectors, d) of one document's (tokens, d)."""
        return self.pool([embedding], task="document")[0]


def with_clusters(model: MultiVectorEncoder, sizes: str | ClusterSizes, **options: Any) -> MultiVectorEncoder:
    """A multi-vector encoder with clustered vectors, which shares its weights with the given one.

    Clusters that it has already are replaced; a model that pools its tokens by other means is refused. The sizes are
    those of a query and a document, or read by `cluster_sizes`, e.g. ``C8x32``; the options are those of
    `TokenClusters`.
    """
    query, document = cluster_sizes(sizes) if isinstance(sizes, str) else sizes
    return pooled_by(without_clusters(model), TokenClusters(query, document, **options))


def without_clusters(model: Any) -> Any:
    """A model without its clusters, which shares its weights; a model of any kind without clusters as it is."""
    modules = list(model) if isinstance(model, nn.Sequential) else []
    plain = [module for module in modules if not isinstance(module, TokenClusters)]
    return with_modules(model, plain) if len(plain) < len(modules) else model


def pooled_by(model: MultiVectorEncoder, pooling: BaseTokenPooling) -> MultiVectorEncoder:
    """A model with a pooling as its last module, which shares its weights; one that pools its tokens is refused."""
    for module in model:
        if isinstance(module, BaseTokenPooling):
            raise UserError(f"the model pools its tokens by {type(module).__name__} already; start from one without.")
    pooled: MultiVectorEncoder = with_modules(model, [*model, pooling])
    return pooled


def cluster_sizes(name: str) -> tuple[ClusterSize, ClusterSize]:
    """Read the paper's names: ``C8x32`` is 8 vectors per query and 32 per document, ``C25`` 25% of their tokens."""
    if fixed := re.fullmatch(r"C([1-9]\d*)x([1-9]\d*)", name):
        return int(fixed[1]), int(fixed[2])
    if share := re.fullmatch(r"C([1-9]\d?)", name):
        return int(share[1]) / 100, int(share[1]) / 100
    raise UserError(
        f"clusters={name!r}: give C8x32 for 8 vectors per query and 32 per document, or C25 for 25% of the tokens."
    )


def check_cluster_size(name: str, size: ClusterSize) -> None:
    """Refuse values that are neither a number of vectors nor a share of tokens."""
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    if not whole and not (isinstance(size, float) and 0 < size < 1):
        raise UserError(f"{name}={size!r}: give a number of vectors from 1, or a share of the tokens between 0 and 1.")


def vectors_kept(size: ClusterSize, lengths: Tensor) -> Tensor:
    """(batch,) int64 vectors of texts of (batch,) lengths: at most all; shares are rounded up."""
    if isinstance(size, int):
        return lengths.clamp(max=size)
    return (lengths * max(1, round(size * _PARTS)) + _PARTS - 1) // _PARTS  # in integers, since 0.7 x 10 is above 7


def _packed(vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, n, d) vectors that count, moved to the front in order, 0 after them, and their mask."""
    width = max(1, int(mask.sum(dim=1).max()))
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :width]
    kept = mask.gather(1, order)
    moved = vectors.gather(1, order[:, :, None].expand(-1, -1, vectors.shape[2]))
    return moved.masked_fill(~kept[:, :, None], 0.0), kept


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(texts, tokens, d), 0 after a text's end, and (texts, tokens) bool mask of one (tokens, d) tensor per text."""
    tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts], device=tokens.device)
    return tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def ward(tokens: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Ward's hierarchical clusters of each text of a batch, cut at its number of clusters; as `k_means`.

    They are those of token pooling (Clavié et al. 2024, arXiv 2409.14683): linkage on cosine distances, and the first
    token, usually [CLS], is a cluster of its own. On NFCorpus, that keeps two points more than linkage on Euclidean
    distances of all tokens: see the study `token-vectors`.
    """
    assigned = torch.full_like(mask, -1, dtype=torch.int64)
    for row, (text, length, count) in enumerate(zip(tokens, mask.sum(dim=1).tolist(), counts.tolist(), strict=True)):
        places = np.arange(length)
        if length > count:
            first = min(1, count - 1)
            distances = pdist(text[first:length].cpu().numpy(), "cosine").clip(0.0)
            clusters = fcluster(linkage(np.nan_to_num(distances), "ward"), count - first, "maxclust")
            places[first:] = clusters + (first - 1)
        assigned[row, :length] = torch.from_numpy(places).to(assigned.device)
    return assigned


def k_means(tokens: Tensor, mask: Tensor, counts: Tensor, *, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm on each text of a batch, from `first_centres`: (batch, tokens) int64 clusters, -1 where masked.

    Takes (batch, tokens, d) float32 tokens, 0 where masked; a (batch, tokens) bool mask, true first and false after;
    and (batch,) int64 numbers of clusters. A text with no more tokens than clusters has one for each token. A cluster
    that loses all its members keeps its center, and may end empty. It ends before ``iterations`` where nothing changes.
    """
    alone = (mask.sum(dim=1) <= counts)[:, None]
    assigned = torch.full_like(mask, -1, dtype=torch.int64)
    if not bool(alone.all()):
        most = int(counts.max())
        alive = torch.arange(most, device=tokens.device) < counts[:, None]
        first = first_centres(tokens, mask, most, seed)
        centers = tokens.gather(1, first[:, :, None].expand(-1, -1, tokens.shape[2]))
        for _ in range(iterations):
            # argmin |x - c|^2 without |x|^2, which is the same for all centers
            near = tokens @ centers.mT - centers.square().sum(dim=2)[:, None, :] / 2
            nearest = near.masked_fill(~alive[:, None, :], -torch.inf).argmax(dim=2)
            if torch.equal(nearest, assigned):
                break
            assigned = nearest
            means, sizes = cluster_means(tokens, assigned.masked_fill(~mask, -1), most)
            centers = torch.where((sizes > 0)[:, :, None], means, centers)
    return torch.where(alone, torch.arange(tokens.shape[1], device=tokens.device), assigned).masked_fill(~mask, -1)


def first_centres(tokens: Tensor, mask: Tensor, most: int, seed: int) -> Tensor:
    """(batch, most) int64 places of tokens that k-means starts from, distinct where a text has enough distinct vectors.

    k-means++ (Arthur and Vassilvitskii 2007) with draws fixed by the seed: the j-th center of all texts is drawn by the
    same j-th number between 0 and 1, on the cumulated squared distances to the nearest earlier center, so a text has
    the same centers in any batch. Tokens are 0 where masked, and the mask is true first and false after.
    """
    draws = torch.rand(most, generator=torch.Generator().manual_seed(seed)).tolist()
    rows = torch.arange(len(tokens), device=tokens.device)
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    products = tokens @ tokens.mT
    squares = products.diagonal(dim1=1, dim2=2)
    chosen = [torch.minimum((draws[0] * (last + 1)).long(), last)]
    distances = torch.full_like(squares, torch.inf)
    for draw in draws[1:]:
        sums = squares + squares[rows, chosen[-1]][:, None]
        apart = sums - 2 * products[rows, chosen[-1]]
        distances = torch.minimum(distances, apart.masked_fill((apart < _SAME * sums) | ~mask, 0.0))
        cumulated = distances.cumsum(dim=1)
        place = torch.searchsorted(cumulated, draw * cumulated[:, -1:], right=True)[:, 0]
        chosen.append(torch.minimum(place, last))
    return torch.stack(chosen, dim=1)


def cluster_means(tokens: Tensor, clusters: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Means of the members of each cluster: (batch, most, d), 0 for empty clusters, and (batch, most) int64 sizes.

    Of (batch, tokens, d) tokens, 0 where they belong to no cluster, and (batch, tokens) int64 clusters, -1 for none.
    """
    members = clusters[:, None, :] == torch.arange(most, device=tokens.device)[:, None]
    sizes = members.sum(dim=2)
    return members.to(tokens.dtype) @ tokens / sizes.clamp(min=1)[:, :, None], sizes
