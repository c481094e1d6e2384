"""Settings of learning a quantizer, as recipes write them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retrodistill.training.settings import Settings


class QuantizerSettings(Settings):
    """How codebooks, rotation, lists and query map are learned; the defaults serve all sizes and collections.

    Attributes:
        objective: What makes the quantized scores of a list like the teacher's.
        target_std: The temperature is the standard deviation of a query's teacher scores over the corpus, averaged over
            queries, divided by this. (At temperature 1 the softmax of cosines is flat and teaches nothing.)
        temperature: A fixed temperature in place of the measured one.
        transform: ``free`` learns any linear map in the rotation's place: FAISS applies it to queries, and to documents
            that are added later; ``rotation`` keeps it at right angles; ``fixed`` leaves the start's. A factory without
            OPQ has none to learn.
        codes: ``kept`` learns codebooks under the start's codes; ``nearest`` takes the nearest codewords anew at every
            look at the held-out queries. Kept codes come out far better: learned codewords have left the places that
            distance speaks of.
        lists: With IVF: ``fixed`` keeps each document in its list, ``reassigned`` moves it to the list of the highest
            inner product with the learned centroids.
        list_weight: Of the term that makes the lists' scores (query times centroid) like the teacher's.
        steps: Of Adam.
        batch_size: Queries per step.
        real_share: Share of real queries in a batch, where there are both real ones and pseudo-queries.
        learning_rate: Peak, of codebooks, transform and centroids; it rises over the first tenth and falls to 0.
        whole: Up to so many documents every step scores the whole corpus. Above, it scores the `depth` best documents
            of the batch's queries and `sampled` random ones.
        depth: Documents of each query, by exact search.
        sampled: Random documents of each step.
        query_map: Learn a linear map of the queries besides.
        query_map_rate: Its learning rate.
        query_map_weight: Of its squared distance from the identity, in the loss.
        held_out: Share of the queries that choose the step to stop at, real ones where there are any.
        held_out_most: At most so many.
        evaluations: How often they are asked.
        start_iterations: Rounds of OPQ that the start is trained for.
        seed: Of everything drawn; the same seed gives the same bytes on one machine.
    """

    objective: Literal["kl", "reverse-kl", "listnet", "margin-mse", "mse"] = "kl"
    target_std: float = Field(default=2.0, gt=0)
    temperature: float | None = Field(default=None, gt=0)
    transform: Literal["free", "rotation", "fixed"] = "free"
    codes: Literal["kept", "nearest"] = "kept"
    lists: Literal["fixed", "reassigned"] = "fixed"
    list_weight: float = Field(default=1.0, ge=0)
    steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    real_share: float = Field(default=0.75, ge=0, le=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    whole: int = Field(default=16384, ge=1)
    depth: int = Field(default=100, ge=2)
    sampled: int = Field(default=2048, ge=0)
    query_map: bool = False
    query_map_rate: float = Field(default=2e-3, gt=0)
    query_map_weight: float = Field(default=0.0, ge=0)
    held_out: float = Field(default=0.15, gt=0, lt=1)
    held_out_most: int = Field(default=500, ge=1)
    evaluations: int = Field(default=15, ge=1)
    start_iterations: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
