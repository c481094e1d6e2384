"""Settings of learning a quantizer, as recipes write them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from retrodistill.core.settings import Settings

MOST_HELD = 2**18  # documents whose vectors are held at once; those of a larger corpus are read when they are needed
_MIN_REAL = 20  # real queries; with fewer, pseudo-queries are held out, too


class QuantizerSettings(Settings):
    """How codebooks, rotation, lists, and the query map are learned; the defaults suit all sizes and collections."""

    objective: Literal["kl", "reverse-kl", "listnet", "margin-mse", "mse"] = "kl"
    """Objective that brings the quantized scores of a list close to the teacher's."""
    target_std: float = Field(default=2.0, gt=0)
    """The temperature is the standard deviation of a query's teacher scores over the corpus, averaged over queries,
    divided by this. (At temperature 1 the softmax of cosines is flat and teaches nothing.)"""
    temperature: float | None = Field(default=None, gt=0)
    """A fixed temperature instead of the measured one."""
    transform: Literal["free", "rotation", "fixed"] = "free"
    """`free` learns any linear map in place of the rotation: FAISS applies it to queries, and to documents that are
    added later. `rotation` keeps it orthogonal. `fixed` keeps the start's, and so does `rotation` with single bits,
    which a rotation does not decode best. A factory without OPQ or ITQ has none to learn."""
    codes: Literal["kept", "nearest"] = "kept"
    """`kept` learns codebooks under the codes of the start; single bits are first fitted to the documents, together
    with the map that decodes them. `nearest` takes the nearest codewords of 4 or 8 bits again at each evaluation on the
    held-out queries. Kept codes are far better: learned codewords are no longer the nearest ones."""
    lists: Literal["fixed", "reassigned"] = "fixed"
    """With IVF: `fixed` keeps each document in its list; `reassigned` moves it to the list whose learned centroid has
    the highest inner product."""
    list_weight: float = Field(default=1.0, ge=0)
    """Weight of the term that brings the scores of the lists (query times centroid) close to the teacher's."""
    steps: int = Field(default=3000, ge=1)
    """Steps of Adam."""
    batch_size: int = Field(default=64, ge=1)
    """Queries per step."""
    real_share: float = Field(default=0.75, ge=0, le=1)
    """Share of real queries in a batch, if there are both real queries and pseudo-queries."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of codebooks, transform, and centroids. It rises over the first tenth and falls to 0."""
    whole: int = Field(default=16384, ge=1)
    """Up to this many documents, and at most 262,144, each step scores the whole corpus. Beyond, it scores the `depth`
    best documents of the batch's queries and `sampled` random ones."""
    depth: int = Field(default=100, ge=2)
    """Documents of each query, by exact search. Beyond 262,144 documents, in one of several parts of the corpus."""
    sampled: int = Field(default=2048, ge=0)
    """Random documents of each step."""
    query_map: bool = False
    """Whether to learn a linear map of the queries, too."""
    query_map_rate: float = Field(default=2e-3, gt=0)
    """Learning rate of the query map."""
    query_map_weight: float = Field(default=0.0, ge=0)
    """Weight, in the loss, of the query map's squared distance from the identity."""
    held_out: float = Field(default=0.15, gt=0, lt=1)
    """Share of the queries that is held out to choose the step to stop at; real queries if there are any."""
    held_out_most: int = Field(default=500, ge=1)
    """At most this many held-out queries."""
    evaluations: int = Field(default=15, ge=1)
    """Number of evaluations on the held-out queries."""
    start_iterations: int = Field(default=50, ge=1)
    """Iterations of OPQ that train the start."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random; the same seed gives the same bytes on one machine."""

    def split(self, sources: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training queries and of the held-out queries: real ones if there are at least 20, else any.

        `sources` are (q,) documents of pseudo-queries, -1 for real queries. The generator draws the held-out queries.
        """
        real = np.flatnonzero(sources < 0)
        pool = generator.permutation(real if len(real) >= _MIN_REAL else np.arange(len(sources)))
        count = min(max(1, int(self.held_out * len(pool))), self.held_out_most)
        held_out = np.sort(pool[:count])
        return np.setdiff1d(np.arange(len(sources)), held_out), held_out


def with_query_map(settings: QuantizerSettings) -> QuantizerSettings:
    """The settings with a query map. A free transform already maps the queries, so it becomes a rotation."""
    return settings.model_copy(update={"query_map": True, "transform": "rotation"})
