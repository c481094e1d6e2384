"""Samplers: a query's candidates for a training group, random corpus documents, and batches of one topic.

Topics and margins are balanced as in TAS-B (Hofstätter et al. 2021, arXiv 2104.06967): the binning and the choice
of bins follow the authors' training loader. The division of an epoch into batches is this package's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.faiss import faiss
from retrodistill.runs.run import Run

if TYPE_CHECKING:
    from torch.utils.data import BatchSampler

MARGIN_BINS = 10
_BATCHES_PER_TOPIC = 6  # TAS-B: 400,000 queries in 2,000 topics, in batches of 32
_ROUNDS = 20  # of k-means
SAMPLERS = {
    "top-k": "the best by the teacher",
    "stratified": "the best one, then one drawn from each of equally many ranks",
    "random": "the best one, then uniformly from the rest of the list",
    "margin-balanced": "the best one, then by margins to it: a bin of equal width uniformly, one from it (TAS-B)",
}


def random_documents(query_ids: Sequence[str], document_ids: Sequence[str], count: int, seed: int) -> Run:
    """A run of `count` random documents per query, drawn from the corpus without replacement, all with score 0.

    The whole corpus is drawn if it has fewer documents. The same seed draws the same documents.
    """
    generator = np.random.default_rng([seed, len(query_ids), len(document_ids)])
    count = min(count, len(document_ids))
    drawn = [generator.choice(len(document_ids), count, replace=False) for _ in query_ids]
    rows = np.array(drawn, dtype=np.int64).reshape(len(query_ids), count)
    return Run.from_matrix(query_ids, document_ids, rows, np.zeros(rows.shape), name="random")


def sample_places(
    name: str, available: int, count: int, generator: np.random.Generator, scores: np.ndarray | None = None
) -> np.ndarray:
    """Choose (min(count, available),) int64 positions, ascending, of a list in the teacher's order, best first.

    The best document is always chosen, because it is the positive of margin objectives.

    Args:
        name: A key of `SAMPLERS`.
        available: Length of the list, at least 1.
        count: How many to choose, at least 1; all positions if the list is shorter.
        generator: Draws all but the best.
        scores: (available,) the teacher's scores, best first; only ``margin-balanced`` needs them.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if count < 1:
        raise UserError(f"a group of {count} documents; take at least 1.")
    if count >= available or name == "top-k":
        return np.arange(min(count, available))
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    if name == "margin-balanced":
        if scores is None:
            raise UserError("sampler margin-balanced needs the teacher's scores of the list; give them.")
        margins = np.asarray(scores[0] - scores[1:], dtype=np.float64)
        return np.concatenate([[0], 1 + np.sort(balanced_places(margins, count - 1, generator))])
    if name == "random":
        return np.concatenate([[0], np.sort(generator.choice(np.arange(1, available), count - 1, replace=False))])
    edges = np.linspace(1, available, count).round().astype(np.int64)
    return np.concatenate([[0], generator.integers(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))])


def margin_bins(margins: np.ndarray, bins: int = MARGIN_BINS) -> np.ndarray:
    """Assign (n,) margins, the positive's raw score minus each candidate's, to bins of equal *width*.

    Returns (n,) int64 bins, 0 for the smallest margin; all 0 if the margins are equal.
    """
    lowest, width = margins.min(), np.ptp(margins) / bins
    if width == 0:
        return np.zeros(len(margins), dtype=np.int64)
    return np.minimum(((margins - lowest) / width).astype(np.int64), bins - 1)


def balanced_places(margins: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw candidates evenly over margin sizes: a bin uniformly, then a candidate in the bin uniformly.

    Empty bins are skipped. Nothing is drawn twice, so exhausted bins are skipped too (TAS-B draws one candidate at a
    time). Takes (n,) margins as `margin_bins` does; returns (count,) int64 positions, at most n, in the order drawn.
    """
    binned = margin_bins(margins)
    open_bins = [np.flatnonzero(binned == number).tolist() for number in np.unique(binned)]
    drawn = []
    for _ in range(count):
        at = int(generator.integers(len(open_bins)))
        drawn.append(open_bins[at].pop(int(generator.integers(len(open_bins[at])))))
        if not open_bins[at]:
            del open_bins[at]
    return np.array(drawn, dtype=np.int64)


def topic_count(texts: int, batch_size: int) -> int:
    """The number of topics with about six batches each, as in TAS-B; at least 1."""
    return max(1, texts // (_BATCHES_PER_TOPIC * batch_size))


def cluster_topics(vectors: np.ndarray, topics: int, seed: int = 0) -> np.ndarray:
    """Cluster texts by k-means on their (n, d) embeddings, unit vectors for the cosine, into 1 to n topics.

    The (n,) int64 topics are the same on every call with the same number of threads. Store them if training may resume
    on another machine.
    """
    if not 1 <= topics <= len(vectors):
        raise UserError(f"{topics} topics of {len(vectors)} training texts; give at least 1 and at most one per text.")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(f"{int((~finite).sum())} embeddings of training texts are not finite.")
    points = np.ascontiguousarray(vectors, dtype=np.float32)
    means = faiss.Kmeans(points.shape[1], topics, niter=_ROUNDS, seed=seed, min_points_per_centroid=1)
    means.train(points)
    return means.index.search(points, 1)[1][:, 0].astype(np.int64)


def topic_plan(topics: np.ndarray, batch_size: int, seed: int, epoch: int = 0) -> list[np.ndarray]:
    """Cut an epoch into batches of one topic each, in random order, by the (n,) topics of the rows.

    Every row is in exactly one batch, an array of int64 rows. Rows left over after the full batches of their topics are
    joined, topic by topic, into batches of as few topics as possible. TAS-B instead draws batches independently and so
    misses some queries. All batches except possibly the last are full, as sharding over devices requires. The order
    differs in each epoch, which counts from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    full: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for topic in generator.permutation(np.unique(topics)):
        rows = generator.permutation(np.flatnonzero(topics == topic))
        whole = len(rows) // batch_size * batch_size
        full += [rows[start : start + batch_size] for start in range(0, whole, batch_size)]
        rest.append(rows[whole:])
    left = np.concatenate(rest) if rest else np.zeros(0, dtype=np.int64)
    full += [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
    short = [full.pop()] if full and len(full[-1]) < batch_size else []
    return [full[place] for place in generator.permutation(len(full))] + short


class TopicBatches:
    """A ``batch_sampler`` for a sentence-transformers trainer, with batches of one topic.

    The order depends only on the trainer's seed and the epoch. A resumed training therefore skips the batches that it
    has seen, and the devices of a distributed training agree without communication. It is a class, not a closure,
    because the trainer saves its arguments with every checkpoint.

    Args:
        topics: (n,) topic of each row of the training dataset.
    """

    def __init__(self, topics: Sequence[int] | np.ndarray) -> None:
        self.topics = np.asarray(topics)

    def __call__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: Any = None,
        seed: int = 0,
    ) -> BatchSampler:
        """The batches of a dataset, called by the trainer."""
        from sentence_transformers.base.sampler import DefaultBatchSampler

        topics = self.topics
        if len(dataset) != len(topics):
            raise UserError(f"{len(topics)} topics for {len(dataset)} training rows; give one per row.")

        class Batches(DefaultBatchSampler):
            def __iter__(self) -> Iterator[list[int]]:
                for rows in topic_plan(topics, self.batch_size, self.seed, self.epoch):
                    if len(rows) == self.batch_size or not self.drop_last:
                        yield rows.tolist()

            def __len__(self) -> int:
                return len(topics) // self.batch_size + (not self.drop_last and len(topics) % self.batch_size > 0)

        return Batches(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
