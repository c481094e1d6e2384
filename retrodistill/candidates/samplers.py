"""Samplers: the negatives of a query's training group, random corpus documents, and batches of one topic or length.

Topics and margins are balanced as in TAS-B (Hofstätter et al. 2021, arXiv 2104.06967): the binning and the choice
of bins follow the authors' training loader. The division of an epoch into batches is this package's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
_SORTED_BATCHES = 50  # whose rows are sorted by length together, as in transformers
SAMPLERS = {
    "top-k": "the positive, then the teacher's best of the other documents",
    "stratified": "the positive, then one of the others from each of equally many ranks",
    "random": "the positive, then others uniformly",
    "margin-balanced": "the positive, then by the margin to it: a bin of equal width uniformly, one from it (TAS-B)",
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


def uniforms(seed: Sequence[int], rows: np.ndarray, count: int) -> np.ndarray:
    """Draw (rows, count) float64 numbers from [0, 1) that depend on nothing but the seed and the (rows,) row numbers.

    Any rows can be drawn again, in any order and in any process: a row's numbers are its own part of the sequence of
    SplitMix64 (Steele et al. 2014).
    """
    start = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)
    numbers = (rows.astype(np.uint64)[:, None] << np.uint64(32)) + np.arange(count, dtype=np.uint64)
    mixed: np.ndarray = start + numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_ranks(name: str, available: np.ndarray, count: int, numbers: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Choose negatives of a batch of lists, each sorted by the teacher's scores, best first, without its positive.

    Args:
        name: A key of `SAMPLERS`.
        available: (lists,) lengths of the lists, at most n.
        count: How many to choose from each list, at least 1.
        numbers: (lists, at least n and 2 count) uniform numbers from `uniforms`, which decide the draw.
        margins: (lists, n) the positive's score minus that of the document at each rank; not read after a list's end.

    Returns:
        (lists, min(count, n)) int64 ranks from 0, ascending and distinct; -1 where a list has fewer documents.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if count < 1:
        raise UserError(f"a group with {count} negatives; take at least 1.")
    count = min(count, margins.shape[1])
    first = np.arange(count)
    if name == "top-k":
        ranks = np.broadcast_to(first, (len(available), count))
    elif name == "stratified":
        edges = np.arange(count + 1) * available[:, None] // max(count, 1)
        ranks = edges[:, :-1] + (numbers[:, :count] * np.diff(edges, axis=1)).astype(np.int64)
    elif name == "random":
        keys = np.where(np.arange(margins.shape[1]) < available[:, None], numbers[:, : margins.shape[1]], np.inf)
        ranks = np.sort(np.argsort(keys, axis=1)[:, :count], axis=1)
    else:
        ranks = np.sort(balanced_ranks(margins, available, count, numbers), axis=1)
    ranks = np.where((available > count)[:, None], ranks, first)
    return np.where(ranks < available[:, None], ranks, -1)


def margin_bins(margins: np.ndarray, available: np.ndarray, bins: int = MARGIN_BINS) -> np.ndarray:
    """Assign margins, the positive's raw score minus each candidate's, to bins of equal *width* between the extremes.

    Takes (lists, n) margins, of which the first (lists,) `available` count. Returns (lists, n) int64 bins, 0 for a
    list's smallest margin, -1 where there is no candidate. Equal margins are all in bin 0.
    """
    there = np.arange(margins.shape[1]) < available[:, None]
    lowest = np.min(margins, axis=1, initial=np.inf, where=there, keepdims=True)
    width = (np.max(margins, axis=1, initial=-np.inf, where=there, keepdims=True) - lowest) / bins
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.nan_to_num((margins - lowest) / width)
    return np.where(there, np.clip(scaled, 0, bins - 1).astype(np.int64), -1)


def balanced_ranks(margins: np.ndarray, available: np.ndarray, count: int, numbers: np.ndarray) -> np.ndarray:
    """Draw candidates evenly over margin sizes: a bin uniformly, then a candidate in the bin uniformly.

    Empty bins are skipped. Nothing is drawn twice, so exhausted bins are skipped too (TAS-B draws one candidate at a
    time). Takes what `sample_ranks` takes; each list has `count` candidates or more. Returns (lists, count) int64
    ranks, in the order drawn.
    """
    binned = margin_bins(np.asarray(margins, dtype=np.float64), available)
    lists = np.arange(len(binned))
    drawn = np.zeros((len(binned), count), dtype=np.int64)
    for draw in range(count):
        is_open = (binned[:, :, None] == np.arange(MARGIN_BINS)).any(axis=1)
        inside = binned == _pick(is_open, numbers[:, 2 * draw])[:, None]
        drawn[:, draw] = _pick(inside, numbers[:, 2 * draw + 1])
        binned[lists, drawn[:, draw]] = -1
    return drawn


def _pick(allowed: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(rows,) a uniformly drawn column of each row of (rows, columns) bool, by (rows,) uniform numbers."""
    places = np.cumsum(allowed, axis=1)
    return np.argmax(places == (numbers * places[:, -1]).astype(np.int64)[:, None] + 1, axis=1)


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
        full += _batches(rows[:whole], batch_size)
        rest.append(rows[whole:])
    left = np.concatenate(rest) if rest else np.zeros(0, dtype=np.int64)
    return _in_random_order([*full, *_batches(left, batch_size)], batch_size, generator)


def length_plan(lengths: np.ndarray, batch_size: int, seed: int, epoch: int = 0) -> list[np.ndarray]:
    """Cut an epoch into batches of rows of similar length, in random order, by the (n,) lengths of the rows.

    Rows are shuffled, those of 50 batches at a time are sorted by length, and these batches are shuffled. Every row is
    in exactly one batch, an array of int64 rows, and all batches except possibly the last are full. The order differs
    in each epoch, which counts from 0.
    """
    generator = np.random.default_rng([seed, epoch])
    full: list[np.ndarray] = []
    for rows in _batches(generator.permutation(len(lengths)), _SORTED_BATCHES * batch_size):
        full += _batches(rows[np.argsort(lengths[rows], kind="stable")[::-1]], batch_size)
    return _in_random_order(full, batch_size, generator)


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _in_random_order(batches: list[np.ndarray], size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """The batches in random order, but for a last one that is not full, which stays the last."""
    short = [batches.pop()] if batches and len(batches[-1]) < size else []
    return [batches[place] for place in generator.permutation(len(batches))] + short


class PlannedBatches:
    """A ``batch_sampler`` for a sentence-transformers trainer, with batches of one topic or of similar length.

    The order depends only on the trainer's seed and the epoch. A resumed training therefore skips the batches that it
    has seen, and the devices of a distributed training agree without communication. It is a class, not a closure,
    because the trainer saves its arguments with every checkpoint.

    Args:
        values: (n,) topic or length of each row of the training dataset.
        plan: `topic_plan` or `length_plan`.
    """

    def __init__(
        self, values: Sequence[int] | np.ndarray, plan: Callable[[np.ndarray, int, int, int], list[np.ndarray]]
    ) -> None:
        self.values, self.plan = np.asarray(values), plan

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

        values, plan = self.values, self.plan
        if len(dataset) != len(values):
            raise UserError(f"{len(values)} topics or lengths for {len(dataset)} training rows; give one per row.")

        class Batches(DefaultBatchSampler):
            def __iter__(self) -> Iterator[list[int]]:
                for rows in plan(values, self.batch_size, self.seed, self.epoch):
                    if len(rows) == self.batch_size or not self.drop_last:
                        yield rows.tolist()

            def __len__(self) -> int:
                return len(values) // self.batch_size + (not self.drop_last and len(values) % self.batch_size > 0)

        return Batches(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
