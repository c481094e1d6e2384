"""Token pooling after training: hierarchical clusters of a document's tokens (Clavié et al. 2024, arXiv 2409.14683)."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling, HierarchicalTokenPooling
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.students.clustering import ClusterSize, check_cluster_size, pooled_by, vectors_kept


class FixedTokenPooling(BaseTokenPooling):
    """Pools the tokens of documents to a number of vectors by Ward's linkage on cosine distances, not those of queries.

    For one whole factor, a HierarchicalTokenPooling of sentence-transformers does nearly the same (it rounds the number
    down), and a model with it loads without this package. Clustered students are compared with it.

    Args:
        vectors: Vectors of a document: a number, or a share of its tokens between 0 and 1, rounded up.
        protected: Number of first tokens that are kept as they are, and count.
        normalise: Give pooled vectors length 1.
        tasks: Roles of texts that are pooled.
    """

    config_keys: list[str] = ["vectors", "protected", "normalise", "tasks"]  # noqa: RUF012 - the base's

    def __init__(
        self, vectors: ClusterSize, *, protected: int = 1, normalise: bool = True, tasks: list[str] | None = None
    ) -> None:
        super().__init__(tasks=tasks)
        check_cluster_size("vectors", vectors)
        if protected < 0:
            raise UserError(f"protected={protected}: give 0 or more.")
        self.vectors, self.protected, self.normalise = vectors, protected, normalise

    def pool_one(self, embedding: Tensor, **kwargs: Any) -> Tensor:
        """(vectors, d) of one document's (tokens, d) unit vectors; a short text is unchanged.

        Fewer tokens are protected where no vector would be left for the rest, and fewer vectors are left where tokens
        are equal. Deterministic.
        """
        if embedding.ndim != 2:
            raise UserError(f"tokens of shape {tuple(embedding.shape)}; give (tokens, dimensions).")
        kept = int(vectors_kept(self.vectors, torch.tensor(len(embedding))))
        if kept >= len(embedding):
            return embedding
        protected = min(self.protected, kept - 1)
        # The library keeps the floor of (n - protected) / factor; the half guards against rounding.
        factor = (len(embedding) - protected) / (kept - protected + 0.5)
        ward = HierarchicalTokenPooling(factor, num_protected_tokens=protected, normalize_embeddings=self.normalise)
        with torch.autocast(embedding.device.type, enabled=False):  # numpy gets the distances, and has no bfloat16
            return ward.pool_one(embedding)


def with_pooling(model: MultiVectorEncoder, vectors: ClusterSize, *, protected: int = 1) -> MultiVectorEncoder:
    """A multi-vector encoder with `FixedTokenPooling` of documents, which shares its weights with the given one."""
    return pooled_by(model, FixedTokenPooling(vectors, protected=protected))
