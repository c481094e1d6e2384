"""Several teachers as one: a function from runs to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.rankers.corpus_scores import CorpusScorer, mean_of_zscores, require_corpus_teacher
from retrodistill.rankers.dense import DenseTeacher
from retrodistill.rankers.lexical import LexicalTeacher
from retrodistill.rankers.protocol import Teacher, Work
from retrodistill.rankers.recorded import RecordedTeacher
from retrodistill.rankers.retrievers import Retriever, load_retriever
from retrodistill.runs.calibration import Calibration, MinMaxPerQuery, ZScorePerQuery
from retrodistill.runs.fusion import check_calibrations, check_method, check_weights, fuse, union
from retrodistill.runs.run import Run

_PER_QUERY = {kind.name: kind for kind in (ZScorePerQuery, MinMaxPerQuery)}  # these have nothing to fit


class Ensemble:
    """A weighted fusion of teachers.

    Args:
        members: The teachers.
        weights: One per member; equal by default.
        method: A method of `retrodistill.runs.fusion`. The default, a weighted mean of z-scores taken per query,
            needs lists with depth: those of ten near-equal documents would weigh noise.
        calibrations: Fitted ones, for methods whose statistics come from a whole run.
        depth: Candidates per member that `retrieve` fuses.
        name: What its runs are called.

    Raises:
        UserError: No member, an unknown method, or weights or calibrations that do not fit.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        method: str = "zscore-per-query",
        *,
        calibrations: Sequence[Calibration] | None = None,
        depth: int = 1000,
        name: str = "ensemble",
    ) -> None:
        if not members:
            raise UserError("an ensemble without members; give at least one teacher.")
        self.members = list(members)
        self.weights = check_weights(len(members), weights)
        check_method(method)
        if calibrations is not None:
            check_calibrations(len(members), calibrations)
        self.method, self.calibrations, self.depth, self.name = method, calibrations, depth, name

    def fingerprint(self, collection: Collection) -> str:
        """Members, weights, method and fitted calibrations."""
        members = [member.fingerprint(collection) for member in self.members]
        return digest("ensemble", members, self.weights, self.method, [repr(one) for one in self.calibrations or []])

    def score(self, collection: Collection, queries: Texts, candidates: Run) -> Run:
        """The candidates with fused scores."""
        runs = [member.score(collection, queries, candidates) for member in self.members]
        return self.fuse(runs)

    def fuse(self, runs: Sequence[Run]) -> Run:
        """Fuse runs of the members, in their order.

        A member that is flat throughout has no say: one query that shares no term with any document is no mistake.
        """
        kind = _PER_QUERY.get(self.method)
        calibrations = [kind() for _ in runs] if kind and self.calibrations is None else self.calibrations
        return fuse(runs, self.weights, self.method, calibrations=calibrations, name=self.name)

    def corpus_scorer(self, collection: Collection, queries: Texts) -> CorpusScorer:
        """Fused scores, z-scored per query over the whole corpus, a block of queries at a time.

        Raises:
            UserError: A member scores pairs only, or the method is not ``zscore-per-query``.
        """
        if self.method != "zscore-per-query":
            raise UserError(f"fusion {self.method!r} over a whole corpus; it is done with 'zscore-per-query'.")
        scorers = [require_corpus_teacher(member).corpus_scorer(collection, queries) for member in self.members]
        return lambda rows: mean_of_zscores([scorer(rows) for scorer in scorers], self.weights)

    def remaining(self, collection: Collection, queries: Texts, candidates: Run) -> Work:
        """The members' work together."""
        works = [member.remaining(collection, queries, candidates) for member in self.members]
        units = {work.unit for work in works if work.items} or {"pairs"}
        return Work(sum(work.items for work in works), "/".join(sorted(units)), sum(work.seconds for work in works))

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """The best k of the members' united candidates, all scored by all members.

        Raises:
            UserError: No member can search.
        """
        searchers = self._searchers
        if not searchers:
            raise UserError("no member of the ensemble can search a corpus; add bm25 or a dense teacher.")
        runs = [_retriever(member).retrieve(collection, queries, max(k, self.depth)) for member in searchers]
        return self.score(collection, queries, union(runs)).top(k)

    @property
    def _searchers(self) -> list[Teacher]:
        """The members that find documents, not scores of pairs alone."""
        return [member for member in self.members if not _scores_pairs_only(member)]

    @property
    def can_be_timed(self) -> bool:
        """Whether all members answer new queries by themselves: no recorded one, none that scores pairs only."""
        return all(isinstance(member, (LexicalTeacher, DenseTeacher)) for member in self.members)

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Asks each member for its candidates and fuses their ranked lists: the least that serving it needs.

        Raises:
            UserError: A member answers no new query.
        """
        if not self.can_be_timed:
            raise UserError(f"{self.name} has members that answer no new query by themselves; it has no latency.")
        answers = [_retriever(member).query_fn(collection, max(k, self.depth)) for member in self.members]
        return lambda text: [answer(text) for answer in answers]

    def bytes_per_document(self, collection: Collection) -> float | None:
        """The members' together, of those that search; None where one is unknown."""
        sizes = [_retriever(member).bytes_per_document(collection) for member in self._searchers]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


def _scores_pairs_only(member: Teacher) -> bool:
    return not isinstance(member, (LexicalTeacher, DenseTeacher, RecordedTeacher))


def _retriever(member: Teacher) -> Retriever:
    if isinstance(member, DenseTeacher):
        return load_retriever(member.encoder)
    return load_retriever(member.run if isinstance(member, RecordedTeacher) else "bm25")
