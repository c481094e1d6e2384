"""Candidates of training texts with their teacher scores: `Lists` of all texts, `ListBatch` of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from retrodistill.candidates.mining import distinct_documents, negative_ceiling, require_calibrated
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels, of_originals
from retrodistill.data.parents import Parents
from retrodistill.data.texts import Texts
from retrodistill.objectives.lists import usable_lists
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.runs.run import Run, top_k
from retrodistill.training.settings import FilterSettings
from retrodistill.training.texts import TrainingTexts

_WIDTH = 2**32  # above any corpus position
_BLOCK = 1024  # lists that are checked at once, which bounds memory when each list is a whole corpus


def as_float32(values: np.ndarray, device: torch.device | str) -> Tensor:
    """A float32 tensor of stored values on a device."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


class ListBatch(NamedTuple):
    """Lists of a batch: n candidates of each text, then m documents that all texts share."""

    texts: np.ndarray  # (batch,) int64 rows of the texts
    documents: np.ndarray  # (batch, n) corpus positions of candidates, -1 for padding
    targets: Tensor  # (batch, n + m) float32 teacher scores
    mask: Tensor  # (batch, n + m) bool, true where a document counts
    own_mask: Tensor  # (batch, n + m) bool, the same without relevant documents that are not the text's own
    positives: Tensor  # (batch,) int64 place of the text's own document in its list, -1 for none
    own: np.ndarray  # (batch,) int64 corpus position of the text's own document, -1 for none
    shared: np.ndarray  # (m,) int64 corpus positions, ascending
    is_whole: bool  # whether they are the whole corpus


class TrainingLists(ABC):
    """The lists that a loss sees, by row: `Lists`, or `retrodistill.training.groups.Groups` drawn from them."""

    teacher: CorpusScores | None  # scores of all texts with any document, if it gives them
    text_codes: np.ndarray | None = None  # (texts,) int64, equal for texts that are equal

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def text_rows(self) -> np.ndarray:
        """(lists,) int64 rows of the texts."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of documents of a list, padding included."""

    @property
    @abstractmethod
    def shows_positives(self) -> np.ndarray:
        """(lists,) bool: the text has a document of its own, and that is not hidden."""

    @abstractmethod
    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """Some of the lists, on a device; `rows` are (batch,) integers."""

    @abstractmethod
    def excuses(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(batch, m) bool: passages that are no candidates for a text, because others of their document stand for it.

        Takes (batch,) rows of the texts, and (batch, m) or (m,) corpus positions.
        """

    @abstractmethod
    def relevant(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(batch, m) bool: documents that are labeled relevant to a text, without the text's own one.

        Takes what `excuses` takes. They are not negatives of a contrastive objective, and a teacher scores them.
        """

    @abstractmethod
    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The teacher's scores of a batch's texts with any documents, (m,) corpus positions, -1 for padding.

        Returns:
            (batch, m) float32 scores and (batch, m) bool, true where a document counts for its text; None if the
            teacher does not score any document.
        """

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 - most lists are the same in every epoch
        """Draw what is drawn anew in each epoch, which counts from 0."""

    def usable(self) -> dict[str, int]:
        """Number of lists that teach something, under ``usable``, and of the others by reason."""
        total = Counter(usable=0)
        for start in range(0, len(self), _BLOCK):
            batch = self.batch(np.arange(start, min(start + _BLOCK, len(self))))
            usable, counts = usable_lists(batch.targets, batch.mask)
            total.update(counts, usable=int(usable.sum()))
        return total


@dataclass(frozen=True, eq=False)
class Lists(TrainingLists):
    """Candidates and teacher scores, a list for each text; documents that a batch shares are drawn for it."""

    documents: np.ndarray  # (lists, n) int32 corpus positions, -1 for padding
    scores: np.ndarray  # (lists, n) float32 teacher scores; undefined where `documents` is -1
    hidden: np.ndarray  # (lists,) int64 corpus position that is masked, the source of a pseudo-query; -1 for none
    positives: np.ndarray  # (lists,) int64 corpus position of the text's own document, source or labeled; -1 for none
    teacher: CorpusScores | None = None  # scores of all texts with any document
    shared: int = 0  # documents that a batch shares; the whole corpus if this is its size
    seed: int = 0  # of their draws
    ceiling: np.ndarray | None = None  # (lists,) highest teacher score of a negative that counts; None for no filter
    excused: np.ndarray | None = None  # ascending int64 `_keys` of passages that do not count; None without passages
    labeled: np.ndarray | None = None  # ascending int64 `_keys` of relevant documents but the own; None without labels
    copies: np.ndarray | None = None  # (corpus,) bool, documents with the text of an earlier one; None for none
    text_codes: np.ndarray | None = None  # (lists,) int64, equal for texts that are equal; None if none are known to be

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def text_rows(self) -> np.ndarray:
        """List i is that of text i."""
        return np.arange(len(self))

    @property
    def width(self) -> int:
        """Candidates and shared documents."""
        return self.documents.shape[1] + self.shared

    @property
    def shows_positives(self) -> np.ndarray:
        """See `TrainingLists`."""
        return (self.positives >= 0) & (self.positives != self.hidden)

    @property
    def mask(self) -> np.ndarray:
        """(lists, n) bool, true where a candidate counts."""
        return self.counts(self.text_rows, self.documents, self.scores)

    def counts(self, rows: np.ndarray, documents: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(batch, m) bool: the (batch, m) documents count for the lists at (batch,) rows, given their teacher scores.

        Padding, hidden documents, copies of documents, negatives above the ceiling, and excused passages do not.
        """
        return self._counts(rows, documents, scores) & ~self.excuses(rows, documents)

    def excuses(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `TrainingLists`."""
        return _among(self.excused, texts, documents)

    def relevant(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `TrainingLists`."""
        return _among(self.labeled, texts, documents)

    def _counts(self, rows: np.ndarray, documents: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """As `counts`, for lists without excused passages."""
        counted = (documents >= 0) & (documents != self.hidden[rows, None])
        if self.copies is not None:
            counted &= ~self.copies[documents]
        if self.ceiling is None:
            return counted
        return counted & ((scores <= self.ceiling[rows, None]) | (documents == self.positives[rows, None]))

    def _excused_of(self, rows: np.ndarray) -> np.ndarray:
        """(batch, n) corpus positions of the lists' excused passages, -1 for padding."""
        if self.excused is None:
            return np.full((len(rows), 0), -1)
        starts, ends = (np.searchsorted(self.excused, _keys(rows + more, np.int64(0))) for more in (0, 1))
        places = starts[:, None] + np.arange(int((ends - starts).max(initial=0)))
        keys = self.excused[np.minimum(places, max(len(self.excused) - 1, 0))] if len(self.excused) else places
        return np.where(places < ends[:, None], keys % _WIDTH, -1)

    @property
    def sizes(self) -> np.ndarray:
        """(lists,) int64 number of documents that count; a shared one that is also a candidate counts twice."""
        sizes = self.mask.sum(axis=1) + self.shared
        copies = 0 if self.copies is None else int(self.copies.sum())
        return sizes - (self.hidden >= 0) - copies if self.is_whole else sizes

    @property
    def is_whole(self) -> bool:
        """Whether a list is the whole corpus."""
        return self.teacher is not None and self.shared >= self.teacher.shape[1]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """Some of the lists, on a device; `rows` are (batch,) integers, which also decide the documents to share."""
        documents, own, shared = self.documents[rows], self.positives[rows], self._draw(rows)
        targets = self.scores[rows]
        counts = self.counts(rows, documents, targets)
        at = (documents == own[:, None]) & counts & (own >= 0)[:, None]
        places = np.where(at.any(axis=1), at.argmax(axis=1) if at.size else 0, -1)
        if self.teacher is not None and len(shared):
            known = self.teacher.of(rows, None if self.is_whole else shared)
            once = _not_in(shared, documents) & _not_in(shared, self._excused_of(rows))
            once &= self._counts(rows, np.broadcast_to(shared, known.shape), known)
            place = np.minimum(np.searchsorted(shared, own), len(shared) - 1)
            is_shared = (shared[place] == own) & once[np.arange(len(rows)), place]
            places = np.where(is_shared, documents.shape[1] + place, places)
            targets, counts = np.concatenate([targets, known], axis=1), np.concatenate([counts, once], axis=1)
        teacher, mask = as_float32(targets, device), torch.from_numpy(counts).to(device)
        own_mask = mask
        if self.labeled is not None:
            relevant = np.concatenate([self.relevant(rows, documents), self.relevant(rows, shared)], axis=1)
            own_mask = torch.from_numpy(counts & ~relevant).to(device)
        own_places = torch.from_numpy(places).to(device)
        return ListBatch(rows, documents, teacher, mask, own_mask, own_places, own, shared, self.is_whole)

    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """See `TrainingLists`."""
        if self.teacher is None:
            return None
        scores = self.teacher.of(batch.texts, np.maximum(documents, 0))
        counts = self.counts(batch.texts, np.broadcast_to(documents, scores.shape), scores)
        return as_float32(scores, batch.targets.device), torch.from_numpy(counts).to(batch.targets.device)

    def best(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, k) corpus positions and scores that the teacher ranks highest, best first; -1 where it has fewer.

        They are those of the candidates or, where lists have none, of the corpus. Hidden documents are among them.
        """
        if self.teacher is not None and not self.documents.shape[1]:
            blocks = [(top_k(scores, k), scores) for scores in self.teacher.blocks(rows)]
            found = np.concatenate([places for places, _ in blocks])
            return found, np.concatenate([np.take_along_axis(scores, places, axis=1) for places, scores in blocks])
        documents = self.documents[rows]
        order = top_k(np.where(documents >= 0, self.scores[rows], -np.inf), k)
        short = ((0, 0), (0, k - order.shape[1]))
        found = np.pad(np.take_along_axis(documents, order, axis=1), short, constant_values=-1)
        return found, np.pad(np.take_along_axis(self.scores[rows], order, axis=1), short)

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        """(m,) int64 documents that a batch shares, by the seed and the batch, so that a resumed training has them."""
        if self.teacher is None or not self.shared:
            return np.zeros(0, dtype=np.int64)
        if self.is_whole:
            return np.arange(self.teacher.shape[1])
        generator = np.random.default_rng([self.seed, *rows.tolist()])
        return np.sort(generator.choice(self.teacher.shape[1], self.shared, replace=False))


def _not_in(shared: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(batch, m) bool, false where an ascending shared document is among the (batch, n) candidates of a text."""
    places = np.minimum(np.searchsorted(shared, documents), len(shared) - 1)
    rows, columns = np.nonzero(shared[places] == documents)
    absent = np.ones((len(documents), len(shared)), dtype=bool)
    absent[rows, places[rows, columns]] = False
    return absent


def _keys(texts: Any, documents: Any) -> Any:
    """A number for each pair of a text's row and a corpus position."""
    return np.asarray(texts, dtype=np.int64) * _WIDTH + documents


def _among(keys: np.ndarray | None, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(batch, m) bool: the pairs of (batch,) texts and documents, (batch, m) or (m,), that are in ascending `_keys`."""
    documents = np.broadcast_to(documents, (len(texts), documents.shape[-1]))
    if keys is None or not len(keys):
        return np.zeros(documents.shape, dtype=bool)
    wanted = _keys(texts[:, None], documents)
    found: np.ndarray = keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted
    return found


def lists_over_corpus(teacher: CorpusScores, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Lists that are the whole corpus.

    `hide_source` masks a pseudo-query's own document, which lexical teachers trivially rank first: (texts,) `sources`.
    """
    documents, scores = np.zeros((len(sources), 0), dtype=np.int32), np.zeros((len(sources), 0), dtype=np.float32)
    hidden = sources if hide_source else np.full_like(sources, -1)
    return Lists(documents, scores, hidden, sources, teacher=teacher, shared=teacher.shape[1])


def lists_from_run(run: Run, texts: Texts, corpus: Texts, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Pad a scored run to lists, best candidate first; texts without a row get an empty list.

    Of documents with equal texts, a list has the best, at the position of the first one in the corpus.
    """
    ranked = distinct_documents(run, corpus).ranked()
    sources = np.where(sources >= 0, corpus.originals[sources], -1)
    rows, columns = ranked.positions(texts, corpus)
    places = np.arange(len(ranked)) - ranked.bounds[ranked.query_codes]
    width = int(places.max(initial=0)) + 1
    documents = np.full((len(texts), width), -1, dtype=np.int32)
    scores = np.zeros((len(texts), width), dtype=np.float32)
    documents[rows, places] = columns
    scores[rows, places] = ranked.scores
    hidden = sources if hide_source else np.full_like(sources, -1)
    return Lists(documents, scores, hidden, sources, copies=corpus.copies, text_codes=texts.originals)


def below_positives(lists: Lists, settings: FilterSettings, teacher: str) -> tuple[Lists, str]:
    """The lists without negatives that may be relevant, and a note with the counts; `teacher` is its name.

    A positive is a text's own document, hidden or not. Texts whose positive has no score keep all candidates.

    Raises:
        UserError: No text has a positive with a score, or a share is wanted of scores that are not calibrated.
    """
    there = lists.documents >= 0
    if settings.relative is not None:
        require_calibrated(lists.scores[there], f"candidates.filter.relative: teacher {teacher}")
    at = there & (lists.documents == lists.positives[:, None])
    scores = np.where(at.any(axis=1), lists.scores[lists.text_rows, at.argmax(axis=1)], np.nan)
    unlisted = np.flatnonzero(np.isnan(scores) & (lists.positives >= 0))
    if lists.teacher is not None:
        scores[unlisted] = lists.teacher.pairs(unlisted, lists.positives[unlisted])
    known = np.isfinite(scores)
    if not known.any():
        raise UserError("candidates.filter compares with the teacher's scores of positives, and no text has one.")
    ceiling = negative_ceiling(scores, margin=settings.margin, relative=settings.relative)
    kept = replace(lists, ceiling=np.where(known, ceiling, np.inf).astype(np.float32))
    before, after = int(lists.mask.sum()), int(kept.mask.sum())
    rule = f"margin {settings.margin:g}" if settings.margin is not None else f"relative {settings.relative:g}"
    return kept, (
        f"filter of false negatives ({rule}): dropped {before - after} of {before} candidates; {int(known.sum())} of "
        f"{len(lists)} texts have a positive"
    )


def with_labels(lists: Lists, texts: TrainingTexts, corpus: Texts, labels: Qrels) -> Lists:
    """The lists, where the positive of a text is the best of its labeled documents in its list.

    The best has the highest grade, then the highest teacher score. The others stay in the list, for objectives that
    read the teacher's scores; contrastive ones do not count them as negatives. Pseudo-queries keep the positive that
    they have.
    """
    positives, keys = lists.positives.copy(), [np.zeros(0, dtype=np.int64)]
    for text, grades in graded_positions(texts.texts, corpus, labels).items():
        if scores := _labeled_scores(lists, text, grades):
            positives[text] = max(scores, key=lambda at: (grades[at], scores[at], -at))
        keys.append(_keys(text, np.setdiff1d(list(grades), positives[text])))
    return replace(lists, positives=positives, labeled=np.unique(np.concatenate(keys)))


def without_siblings(
    lists: Lists, texts: TrainingTexts, corpus: Texts, parents: Parents, labels: Qrels | None
) -> Lists:
    """The lists without passages that share a document with a positive: they are neither positives nor negatives.

    Those are the other passages of the document that a pseudo-query was taken from, which may have its words too (the
    title, the overlap), and of each relevant document in `labels`, all but the teacher's best.
    """
    owners = np.flatnonzero(texts.sources >= 0)
    places, siblings = parents.passages_of(parents.rows[texts.sources[owners]])
    is_other = siblings != texts.sources[owners[places]]
    keys = [_keys(owners[places[is_other]], siblings[is_other])]
    for text, grades in ({} if labels is None else graded_positions(texts.texts, corpus, labels)).items():
        scores, best = _labeled_scores(lists, text, grades), {}
        for position in sorted(scores, key=lambda at: (scores[at], -at)):
            best[int(parents.rows[position])] = position
        keys.append(_keys(text, np.setdiff1d(list(grades), list(best.values()))))
    return replace(lists, excused=np.unique(np.concatenate(keys)))


def _labeled_scores(lists: Lists, text: int, grades: dict[int, int]) -> dict[int, float]:
    """The teacher's scores of a text's labeled documents, by corpus position; only of those in its list, if any."""
    if lists.teacher is not None:
        judged = np.array(list(grades))
        return dict(zip(grades, lists.teacher.pairs(np.full(len(judged), text), judged).tolist(), strict=True))
    listed = zip(lists.documents[text].tolist(), lists.scores[text].tolist(), strict=True)
    return {position: score for position, score in listed if position in grades}


def graded_positions(texts: Texts, corpus: Texts, labels: Qrels) -> dict[int, dict[int, int]]:
    """Grades above 0 by row of the text and corpus position, of copies the first, for the texts that are judged."""
    labels = of_originals(labels, corpus)
    relevant = labels.table.filter(pc.greater(labels.table["relevance"], 0))
    rows = texts.positions(relevant["query_id"].to_pylist())
    positions = corpus.positions(relevant["document_id"].to_pylist())
    known = np.flatnonzero((rows >= 0) & (positions >= 0))
    grades = relevant["relevance"].to_numpy()[known]
    graded: dict[int, dict[int, int]] = {}
    for row, position, grade in zip(rows[known].tolist(), positions[known].tolist(), grades.tolist(), strict=True):
        graded.setdefault(row, {})[position] = grade
    return graded
