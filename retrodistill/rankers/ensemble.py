"""Several rankers combined into one: weighted fusion of their scores, and soft labels."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, unknown
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.corpus import CorpusScores, MeanOfZScores
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.rankers.recorded import RecordedRanker, recorded_pairs
from retrodistill.runs.calibration import Calibration, MinMaxPerQuery, ZScorePerQuery
from retrodistill.runs.fusion import check_calibrations, check_method, check_weights, fuse, scale_of, union
from retrodistill.runs.run import Run

LABELS = {
    "scores": "the raw scores; those of several teachers are fused as the recipe says",
    "mean": "the mean of raw scores of one scale (arXiv 2010.02666), or of labels that were recorded",
    "sigmoid": "1 / (1 + exp(-score)) of a cross-encoder's logits, the mean over several",
    "cosine": "(1 + score) / 2 of cosines, which may be negative, the mean over several (Trans-Encoder)",
    "ranks": "1 / log2(1 + rank) in the teacher's order, for teachers that rank; equal scores share their mean rank",
    "sigmoid-cosine": "2 / (1 + exp(-score)) - 1, the cosine of a cross-encoder that learned from `cosine`",
}
_PER_QUERY = {kind.name: kind for kind in (ZScorePerQuery, MinMaxPerQuery)}  # these need no fitting
_ROUNDING = 1e-3  # by which a float32 cosine may exceed 1


class Combined(Ranker):
    """The base of rankers with members, which differ in how they combine the members' scores."""

    can_score_pairs = True
    members: Sequence[Ranker] = ()

    def __init__(self, members: Sequence[Ranker], weights: Sequence[float] | None = None) -> None:
        if not members:
            raise UserError("no teacher was given; give at least one.")
        self.members, self.weights = list(members), check_weights(len(members), weights)
        self.is_recorded = any(member.is_recorded for member in members)
        self.is_cheap = all(member.is_cheap for member in members)

    def ranks_documents(self, collection: Collection) -> bool:
        """Whether all members search whole documents."""
        return all(member.ranks_documents(collection) for member in self.members)

    def _scores(self, queries: Texts, collection: Collection, pairs: Run) -> list[Run]:
        """Each member's scores of the same pairs: those that all of them score. An API may leave some out."""
        runs = [member.score(queries, collection, pairs) for member in self.members]
        if all(len(run) == len(pairs) for run in runs):
            return runs
        common = functools.reduce(lambda known, run: recorded_pairs(run, known, run.name), runs, pairs)
        return [recorded_pairs(run, common, run.name) for run in runs]

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """The work of all members."""
        works = [member.remaining(queries, collection, pairs) for member in self.members]
        return functools.reduce(operator.add, works)

    def _digest(self, kind: str, collection: Collection, *settings: Any) -> str:
        """Digest of the members and of settings; empty if a member's is."""
        members = [member.fingerprint(collection) for member in self.members]
        return digest(kind, members, *settings) if all(members) else ""


class Ensemble(Combined):
    """A weighted fusion of rankers.

    Args:
        members: Rankers that score pairs. Those that can also search propose candidates for `search`.
        weights: One per member; equal by default.
        method: A method of `retrodistill.runs.fusion`. The default, a weighted mean of z-scores per query, needs deep
            lists: in a list of ten almost equal documents it would amplify noise.
        calibrations: Fitted ones, for methods with statistics of a whole run.
        depth: Candidates per member that `search` fuses.

    Raises:
        UserError: No member, an unknown method, or weights or calibrations that do not fit.
    """

    method: str

    def __init__(
        self,
        members: Sequence[Ranker],
        weights: Sequence[float] | None = None,
        method: str = "zscore-per-query",
        *,
        calibrations: Sequence[Calibration] | None = None,
        depth: int = 1000,
        name: str = "ensemble",
    ) -> None:
        super().__init__(members, weights)
        check_method(method, len(self.members))
        if calibrations is not None:
            check_calibrations(len(members), calibrations)
        self.method, self.calibrations, self.depth, self.name = method, calibrations, depth, name
        self.can_search = any(member.can_search for member in members)
        self.can_score_corpus = all(member.can_score_corpus for member in members)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of members, weights, method and fitted calibrations."""
        own = self.weights, self.method, list(map(repr, self.calibrations or [])), self.depth
        return self._digest("ensemble", collection, *own)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with fused scores, without those for which a member has none."""
        return self.fuse(self._scores(queries, collection, pairs))

    def fuse(self, runs: Sequence[Run]) -> Run:
        """Fuse runs of the members, in their order. A member with equal scores throughout has no influence."""
        kind = _PER_QUERY.get(scale_of(self.method))
        calibrations = [kind() for _ in runs] if kind and self.calibrations is None else self.calibrations
        return fuse(runs, self.weights, self.method, calibrations=calibrations, name=self.name)

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """Fused scores, z-scored per query over the whole corpus."""
        if self.method != "zscore-per-query":
            raise UserError(f"fusion {self.method!r} cannot score a whole corpus; use 'zscore-per-query'.")
        return MeanOfZScores([member.corpus_scores(queries, collection) for member in self.members], self.weights)

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The best k of the union of the members' candidates, all scored by all members."""
        if not self.can_search:
            raise UserError("no member of the ensemble can search a corpus; add bm25 or a dense teacher.")
        runs = [member.stream(queries, collection, max(k, self.depth)) for member in self.members if member.can_search]
        return self.score(queries, collection, union(runs)).top(k)

    @property
    def can_be_timed(self) -> bool:
        """Whether all members answer new queries by themselves."""
        return all(member.can_be_timed for member in self.members)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Ask each member for its candidates: the least that serving the ensemble needs."""
        answers = [member.query_fn(collection, max(k, self.depth)) for member in self.members]
        return lambda text: [answer(text) for answer in answers]

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The sum over the members that search; None if one is unknown."""
        sizes = [member.bytes_per_document(collection) for member in self.members if member.can_search]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


def _cosine_labels(scores: np.ndarray) -> np.ndarray:
    if np.abs(scores).max(initial=0.0) > 1 + _ROUNDING:
        raise UserError(
            f"labels: cosine of scores up to {np.abs(scores).max():.3g}; a cosine is in -1..1. Use labels: sigmoid "
            "for a cross-encoder's logits."
        )
    return np.clip((1 + scores) / 2, 0.0, 1.0)


def _rank_labels(run: Run) -> np.ndarray:
    """The discount of DCG at each rank. Documents below a window, which share a score, share a label."""
    ties = np.unique(np.stack([run.query_codes, run.scores]), axis=1, return_inverse=True)[1].ravel()
    mean_ranks = np.bincount(ties, run.ranks) / np.bincount(ties)
    return np.asarray(1 / np.log2(1 + mean_ranks[ties]))


_MAPS: dict[str, Callable[[Run], np.ndarray]] = {
    "mean": lambda run: run.scores,
    "sigmoid": lambda run: expit(run.scores),
    "cosine": lambda run: _cosine_labels(run.scores),
    "ranks": _rank_labels,
    "sigmoid-cosine": lambda run: 2 * expit(run.scores) - 1,
}


class SoftLabels(Combined):
    """The weighted mean of teachers' scores, each mapped (Trans-Encoder, ICLR 2022, arXiv 2109.13059).

    The authors teach the cross-encoder the bi-encoder's cosines, and the bi-encoder the sigmoid of its logits: the same
    scale both ways. Cosines may be negative and a sigmoid may not, so here ``cosine`` maps to 0..1, and
    ``sigmoid-cosine`` maps what was learned from it back. A plain ``sigmoid`` would halve every margin.

    Its kind is a key of `LABELS` other than ``scores``; weights are equal by default. No member, another kind, and
    weights that do not fit are a UserError.
    """

    def __init__(self, members: Sequence[Ranker], kind: str, weights: Sequence[float] | None = None) -> None:
        if kind not in _MAPS:
            raise unknown("kind of labels", kind, _MAPS)
        super().__init__(members, weights)
        self.labels, self.name = kind, " + ".join(member.name for member in members)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of members, weights and kind."""
        return self._digest("labels", collection, self.weights, self.labels)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with labels: from 0 to 1 with ``sigmoid`` and ``cosine``, from -1 to 1 with ``sigmoid-cosine``."""
        runs = self._scores(queries, collection, pairs)
        total = np.zeros(len(runs[0]))
        for run, weight in zip(runs, self.weights, strict=True):
            total += weight * _MAPS[self.labels](run)
        return runs[0].with_scores(total / sum(self.weights), self.name)


def soft_labels(members: Sequence[Ranker], kind: str, weights: Sequence[float] | None = None) -> Ranker:
    """As `SoftLabels`; for a single recorded run a recorded run, which has its own candidates."""
    labels = SoftLabels(members, kind, weights)
    run = members[0].run if len(members) == 1 else None
    return labels if run is None else RecordedRanker(run.with_scores(_MAPS[kind](run)), labels.name)
