"""Clustered token vectors: k-means inside the forward pass, and the means are the vectors (CRISP, arXiv 2505.11471)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.modules import with_modules

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

ClusterSize = int | float  # a number of vectors, or a share of a text's tokens
_TEXTS = 32  # clustered at once where they come without padding
_PARTS = 10_000  # a share is so fine
_SAME = 1e-6  # of two squared lengths: a smaller squared distance is rounding


class TokenClusters(BaseTokenPooling):
    """Replaces the token vectors of a text by the means of their clusters.

    The last module of a multi-vector encoder, so that training, indexing and search see the same vectors. Gradients
    flow through the means, assignments are constants: ``d mean / d token`` is 1 / size for members and 0 for others.
    A text's vectors depend on its own tokens and the seed alone, not on its batch, but for rounding.

    No library has the class: a model with it loads where retrodistill is installed, by
    `retrodistill.encoders.loading.load_multi_vector`, or with sentence-transformers' ``trust_remote_code=True``.

    Args:
        query: Vectors of a query: a number, a share of its tokens between 0 and 1, or None to leave queries alone.
        document: The same of a document, and of texts without a task.
        normalise: Give the means length 1, as the tokens have it.
        iterations: Of Lloyd's algorithm, at most.
        seed: Of the first centers.

    Raises:
        UserError: Not a number of vectors, or no iteration.
    """

    config_keys: list[str] = ["query", "document", "normalise", "iterations", "seed"]  # noqa: RUF012 - the base's

    def __init__(
        self,
        query: ClusterSize | None = None,
        document: ClusterSize | None = None,
        *,
        normalise: bool = True,
        iterations: int = 10,
        seed: int = 0,
    ) -> None:
        wanted = {"query": query, "document": document}
        super().__init__(tasks=[role for role, vectors in wanted.items() if vectors is not None])
        for role, vectors in wanted.items():
            if vectors is not None:
                check_cluster_size(role, vectors)
        if iterations < 1:
            raise UserError(f"iterations={iterations}: k-means takes at least 1.")
        self.query, self.document = query, document
        self.normalise, self.iterations, self.seed = normalise, iterations, seed

    def forward(  # type: ignore[override]
        self, features: dict[str, Tensor], task: str | None = None
    ) -> dict[str, Tensor]:
        """Put the means in place of ``token_embeddings``, and which of them count in place of ``attention_mask``."""
        if self.applies_to(task) and len(features["token_embeddings"]):
            found = self.cluster(features["token_embeddings"], features["attention_mask"], task)
            features["token_embeddings"], features["attention_mask"] = found
        return features

    def cluster(self, tokens: Tensor, mask: Tensor, task: str | None = None) -> tuple[Tensor, Tensor]:
        """The means of padded texts.

        Args:
            tokens: (batch, tokens, d); padding may hold anything.
            mask: (batch, tokens) bool, true where a token counts.
            task: ``query`` or ``document``.

        Returns:
            (batch, vectors, d) of the tokens' type and (batch, vectors) bool. Texts without more tokens than wanted
            keep theirs; those with fewer distinct tokens have fewer vectors.
        """
        wanted = self.query if task == "query" else self.document
        if wanted is None:
            return tokens, mask.bool()
        with torch.autocast(tokens.device.type, enabled=False):
            packed, there = _packed(tokens.float(), mask.bool())
            counts = vectors_kept(wanted, there.sum(dim=1))
            with torch.no_grad():  # clustering only decides who belongs together
                clusters = k_means(packed, there, counts, iterations=self.iterations, seed=self.seed)
            means, sizes = cluster_means(packed, clusters, max(1, int(counts.max())))
            means = nn.functional.normalize(means, dim=2) if self.normalise else means
            means, kept = _packed(means, sizes > 0)
        return means.to(tokens.dtype), kept

    def cluster_flat(self, tokens: Tensor, lengths: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """The means of texts that are concatenated without padding.

        Args:
            tokens: (sum of lengths, d).
            lengths: (texts,) int64.
            task: ``query`` or ``document``.

        Returns:
            (sum of counts, d) and (texts,) int64 counts, texts in their order.
        """
        if not self.applies_to(task) or not len(lengths):
            return tokens, lengths
        texts = tokens.split(lengths.tolist())
        order = torch.argsort(lengths, stable=True)  # texts of a length together: little is padding
        parts, counts = [], torch.zeros_like(lengths)
        for rows in order.split(_TEXTS):
            padded = nn.utils.rnn.pad_sequence([texts[row] for row in rows.tolist()], batch_first=True)
            mask = torch.arange(padded.shape[1], device=padded.device) < lengths[rows, None]
            vectors, kept = self.cluster(padded, mask, task)
            parts.append(vectors[kept])
            counts[rows] = kept.sum(dim=1)
        found = torch.arange(len(texts), device=tokens.device)[order].repeat_interleave(counts[order])
        return torch.cat(parts)[torch.argsort(found, stable=True)], counts

    def pool(  # type: ignore[override]
        self,
        embeddings: list[Tensor] | Tensor,
        *,
        task: str | None = None,
        attention_mask: Tensor | None = None,
        padding_side: str = "right",
    ) -> list[Tensor] | Tensor:
        """Cluster vectors that are encoded already; as the base class, but by the task's own number of vectors."""
        if not self.applies_to(task) or not len(embeddings):
            return embeddings
        if isinstance(embeddings, Tensor):
            mask = (embeddings != 0).any(dim=2) if attention_mask is None else attention_mask
            return self.cluster(embeddings, mask, task)[0]
        padded = nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
        lengths = torch.tensor([len(one) for one in embeddings], device=padded.device)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        vectors, kept = self.cluster(padded, mask, task)
        return [one[there] for one, there in zip(vectors, kept, strict=True)]

    def pool_one(self, embedding: Tensor, **kwargs: Any) -> Tensor:
        """(vectors, d) of one document's (tokens, d)."""
        (found,) = self.pool([embedding], task="document")
        return found


def with_clusters(
    model: MultiVectorEncoder, sizes: str, *, normalise: bool = True, iterations: int = 10, seed: int = 0
) -> MultiVectorEncoder:
    """A multi-vector encoder with clustered vectors; it shares its weights with the given one, which stays as it is.

    Args:
        model: With or without clusters, which are replaced.
        sizes: As `cluster_sizes` reads it, e.g. ``C8x32``.
        normalise: Give the means length 1.
        iterations: Of k-means.
        seed: Of the first centers.

    Raises:
        UserError: Not such a name, or the model pools its tokens already.
    """
    query, document = cluster_sizes(sizes)
    modules: list[Any] = [module for module in model if not isinstance(module, TokenClusters)]
    for module in modules:
        if isinstance(module, BaseTokenPooling):
            raise UserError(
                f"clusters={sizes}: the model pools its tokens by {type(module).__name__} already; start from one "
                "without."
            )
    clusters = TokenClusters(query, document, normalise=normalise, iterations=iterations, seed=seed)
    return with_modules(model, [*modules, clusters])


def without_clusters(model: Any) -> Any:
    """A model without its clusters, which shares its weights; one that has none, of any kind, as it is."""
    modules = [module for module in model if not isinstance(module, TokenClusters)] if _has_clusters(model) else []
    return with_modules(model, modules) if modules else model


def cluster_sizes(name: str) -> tuple[ClusterSize, ClusterSize]:
    """Read the paper's names: ``C8x32`` is 8 vectors a query and 32 a document, ``C25`` 25% of the tokens of both.

    Raises:
        UserError: Not such a name.
    """
    if fixed := re.fullmatch(r"C([1-9]\d*)x([1-9]\d*)", name):
        return int(fixed[1]), int(fixed[2])
    if share := re.fullmatch(r"C([1-9]\d?)", name):
        return int(share[1]) / 100, int(share[1]) / 100
    raise UserError(
        f"clusters={name!r}: give C8x32 for 8 vectors a query and 32 a document, or C25 for 25% of the tokens."
    )


def _has_clusters(model: Any) -> bool:
    return isinstance(model, nn.Sequential) and any(isinstance(module, TokenClusters) for module in model)


def check_cluster_size(what: str, wanted: ClusterSize) -> None:
    """Reject values that are neither a number of vectors nor a share of tokens.

    Raises:
        UserError: It is none.
    """
    whole = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1
    if not whole and not (isinstance(wanted, float) and 0 < wanted < 1):
        raise UserError(
            f"{what}={wanted!r}: give a number of vectors from 1, or a share of the tokens between 0 and 1."
        )


def vectors_kept(wanted: ClusterSize, lengths: Tensor) -> Tensor:
    """(batch,) int64 vectors of texts of (batch,) lengths: at most all, of a share its ceiling."""
    if isinstance(wanted, int):
        return lengths.clamp(max=wanted)
    return (lengths * max(1, round(wanted * _PARTS)) + _PARTS - 1) // _PARTS  # whole numbers: 0.7 x 10 is above 7


def _packed(vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, n, d) vectors that count, in order and first, 0 behind them, and their mask."""
    width = max(1, int(mask.sum(dim=1).max()))
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :width]
    there = mask.gather(1, order)
    moved = vectors.gather(1, order[:, :, None].expand(-1, -1, vectors.shape[2]))
    return moved.masked_fill(~there[:, :, None], 0.0), there


def k_means(tokens: Tensor, mask: Tensor, counts: Tensor, *, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm on each text of a batch, from `first_centres`.

    A cluster that loses all its members keeps its center, and may end empty.

    Args:
        tokens: (batch, tokens, d) float32, 0 where masked.
        mask: (batch, tokens) bool, true first and false after.
        counts: (batch,) int64 clusters of each text; where it has no more tokens, each is a cluster of its own.
        iterations: The most; it ends earlier where nothing changes.
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
        most: Centers of each text.
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
