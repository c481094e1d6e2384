"""Candidates of training texts with their teacher scores: `Lists` of all texts, `ListBatch` of a batch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from retrodistill.candidates.samplers import sample_places
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.data.texts import Texts
from retrodistill.objectives.lists import usable_lists
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.runs.run import Run, top_k
from retrodistill.training.settings import GroupSettings
from retrodistill.training.texts import TrainingTexts

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
    positives: Tensor  # (batch,) int64 place of the text's own document in its list, -1 for none
    own: np.ndarray  # (batch,) int64 corpus position of the text's own document, -1 for none
    shared: np.ndarray  # (m,) int64 corpus positions, ascending
    is_whole: bool  # whether they are the whole corpus


@dataclass(frozen=True, eq=False)
class Lists:
    """Candidates and teacher scores, one list per row; documents of the corpus that a batch shares are drawn for it."""

    documents: np.ndarray  # (lists, n) int32 corpus positions, -1 for padding
    scores: np.ndarray  # (lists, n) float32 teacher scores; undefined where `documents` is -1
    hidden: np.ndarray  # (lists,) int64 corpus position that is masked, the source of a pseudo-query; -1 for none
    positives: np.ndarray  # (lists,) int64 corpus position of the text's own document, source or labeled; -1 for none
    texts: np.ndarray | None = None  # (lists,) int64 rows of the texts; None if list i is that of text i
    teacher: CorpusScores | None = None  # scores of all texts with any document
    shared: int = 0  # documents that a batch shares; the whole corpus if this is its size
    seed: int = 0  # of their draws
    origin: Lists | None = None  # the lists of all texts, if these are others

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def text_rows(self) -> np.ndarray:
        """(lists,) int64 rows of the texts."""
        return np.arange(len(self)) if self.texts is None else self.texts

    @property
    def mask(self) -> np.ndarray:
        """(lists, n) bool, true where a candidate counts."""
        return self._counts(self.documents, self.hidden)

    @property
    def sizes(self) -> np.ndarray:
        """(lists,) int64 number of documents that count; a shared one that is also a candidate counts twice."""
        sizes = self.mask.sum(axis=1) + self.shared
        return sizes - (self.hidden >= 0) if self.is_whole else sizes

    @property
    def is_whole(self) -> bool:
        """Whether a list is the whole corpus."""
        return self.teacher is not None and self.shared >= self.teacher.shape[1]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """Some of the lists, on a device; `rows` are (batch,) integers, which also decide the documents to share."""
        documents, hidden, own, shared = self.documents[rows], self.hidden[rows], self.positives[rows], self._draw(rows)
        texts = rows if self.texts is None else self.texts[rows]
        targets, counts = self.scores[rows], self._counts(documents, hidden)
        at = (documents == own[:, None]) & counts & (own >= 0)[:, None]
        places = np.where(at.any(axis=1), at.argmax(axis=1) if at.size else 0, -1)
        if self.teacher is not None and len(shared):
            known = self.teacher.of(texts, None if self.is_whole else shared)
            once = _not_in(shared, documents) & (shared != hidden[:, None])
            place = np.minimum(np.searchsorted(shared, own), len(shared) - 1)
            is_shared = (shared[place] == own) & once[np.arange(len(rows)), place]
            places = np.where(is_shared, documents.shape[1] + place, places)
            targets, counts = np.concatenate([targets, known], axis=1), np.concatenate([counts, once], axis=1)
        teacher, mask = as_float32(targets, device), torch.from_numpy(counts).to(device)
        own_places = torch.from_numpy(places).to(device)
        return ListBatch(texts, documents, teacher, mask, own_places, own, shared, self.is_whole)

    def of_texts(self, texts: np.ndarray, times: int = 0) -> Lists:
        """The lists of some rows of texts, repeated as these are; at most `times` per text, 0 for all."""
        rows, order = self.text_rows, np.argsort(self.text_rows, kind="stable")
        first, last = (np.searchsorted(rows, texts, side, sorter=order) for side in ("left", "right"))
        last = np.minimum(last, first + times) if times else last
        spans = [order[start:stop] for start, stop in zip(first, last, strict=True)]
        kept = np.concatenate([order[:0], *spans])
        arrays = {name: getattr(self, name)[kept] for name in ("documents", "scores", "hidden", "positives")}
        return replace(self, **arrays, texts=rows[kept], origin=self.origin or self)

    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The teacher's scores of a batch's texts with any documents, (m,) corpus positions, -1 for padding.

        Returns:
            (batch, m) float32 scores and (batch, m) bool, false where a document is hidden from its text; None if the
            teacher does not score any document.
        """
        if self.teacher is None:
            return None
        device, hidden = batch.targets.device, (self.origin or self).hidden[batch.texts]
        scores = as_float32(self.teacher.of(batch.texts, np.maximum(documents, 0)), device)
        return scores, torch.from_numpy(documents[None, :] != hidden[:, None]).to(device)

    def usable(self) -> dict[str, int]:
        """Number of lists that teach something, under ``usable``, and of the others by reason."""
        total = Counter(usable=0)
        for start in range(0, len(self), _BLOCK):
            batch = self.batch(np.arange(start, min(start + _BLOCK, len(self))))
            usable, counts = usable_lists(batch.targets, batch.mask)
            total.update(counts, usable=int(usable.sum()))
        return total

    def best(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, k) corpus positions and scores that the teacher ranks highest, best first; -1 where it has fewer.

        They are those of the candidates or, where lists have none, of the corpus. Hidden documents are among them.
        """
        if self.teacher is not None and not self.documents.shape[1]:
            blocks = [(top_k(scores, k), scores) for scores in self.teacher.blocks(self.text_rows[rows])]
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

    @staticmethod
    def _counts(documents: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return (documents >= 0) & (documents != hidden[:, None])


def _not_in(shared: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(batch, m) bool, false where an ascending shared document is among the (batch, n) candidates of a text."""
    places = np.minimum(np.searchsorted(shared, documents), len(shared) - 1)
    rows, columns = np.nonzero(shared[places] == documents)
    absent = np.ones((len(documents), len(shared)), dtype=bool)
    absent[rows, places[rows, columns]] = False
    return absent


def lists_over_corpus(teacher: CorpusScores, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Lists that are the whole corpus.

    `hide_source` masks a pseudo-query's own document, which lexical teachers trivially rank first: (texts,) `sources`.
    """
    documents, scores = np.zeros((len(sources), 0), dtype=np.int32), np.zeros((len(sources), 0), dtype=np.float32)
    hidden = sources if hide_source else np.full_like(sources, -1)
    return Lists(documents, scores, hidden, sources, teacher=teacher, shared=teacher.shape[1])


def lists_from_run(run: Run, texts: Texts, corpus: Texts, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Pad a scored run to lists, best candidate first; texts without a row get an empty list."""
    ranked = run.ranked()
    rows, columns = ranked.positions(texts, corpus)
    places = np.arange(len(ranked)) - ranked.bounds[ranked.query_codes]
    width = int(places.max(initial=0)) + 1
    documents = np.full((len(texts), width), -1, dtype=np.int32)
    scores = np.zeros((len(texts), width), dtype=np.float32)
    documents[rows, places] = columns
    scores[rows, places] = ranked.scores
    return Lists(documents, scores, sources if hide_source else np.full_like(sources, -1), sources)


def best_labeled(lists: Lists, texts: TrainingTexts, corpus: Texts, labels: Qrels) -> np.ndarray:
    """(texts,) int64 corpus position of each text's positive: the best of its labeled documents in the list.

    The best has the highest grade, then the highest teacher score. The others stay in the list, so a contrastive
    objective counts them as negatives. Pseudo-queries keep the document that they were taken from.
    """
    positives = texts.sources.copy()
    for text, grades in graded_positions(texts, corpus, labels).items():
        if lists.teacher is not None:
            judged = np.array(list(grades))
            scores = dict(zip(grades, lists.teacher.pairs(np.full(len(judged), text), judged).tolist(), strict=True))
        else:
            listed = zip(lists.documents[text].tolist(), lists.scores[text].tolist(), strict=True)
            scores = {position: score for position, score in listed if position in grades}
        if scores:
            positives[text] = max(scores, key=lambda at: (grades[at], scores[at], -at))
    return positives


def graded_positions(texts: TrainingTexts, corpus: Texts, labels: Qrels) -> dict[int, dict[int, int]]:
    """Grades above 0 by row of the text and corpus position, for the texts that are judged."""
    relevant = labels.table.filter(pc.greater(labels.table["relevance"], 0))
    rows = texts.texts.positions(relevant["query_id"].to_pylist())
    positions = corpus.positions(relevant["document_id"].to_pylist())
    known = np.flatnonzero((rows >= 0) & (positions >= 0))
    grades = relevant["relevance"].to_numpy()[known]
    graded: dict[int, dict[int, int]] = {}
    for row, position, grade in zip(rows[known].tolist(), positions[known].tolist(), grades.tolist(), strict=True):
        graded.setdefault(row, {})[position] = grade
    return graded


def draw_groups(lists: Lists, settings: GroupSettings, seed: int) -> Lists:
    """Draw small lists from long ones (best candidate first, or the whole corpus) for stages that encode documents.

    Returns:
        Lists of `settings.documents` + `settings.random` documents, `settings.draws` per text; none for texts with
        fewer than two candidates.

    Raises:
        UserError: No text has two candidates, or random documents where the teacher does not score any document.
    """
    if settings.random and lists.teacher is None:
        raise UserError(
            f"groups.random={settings.random} needs a teacher that scores any document; set candidates.random, for "
            "random documents in every list."
        )
    generator = np.random.default_rng(seed)
    rows: list[int] = []
    groups: list[np.ndarray] = []
    group_scores: list[np.ndarray] = []
    for row, candidates, values in _ranked(lists, np.tile(np.arange(len(lists)), settings.draws), settings.depth):
        if len(candidates) < 2:
            continue
        places = sample_places(settings.sampler, len(candidates), settings.documents, generator, values)
        at_own = np.flatnonzero((candidates == lists.positives[row]) & (candidates >= 0))
        if len(at_own) and at_own[0] not in places:  # controls need the text's own document
            places = np.concatenate([places[:-1], at_own])
        group, scores = candidates[places], values[places]
        if settings.random and lists.teacher is not None:
            size = lists.teacher.shape[1]
            drawn = generator.choice(size, min(settings.random, size), replace=False)
            drawn = drawn[~np.isin(drawn, group) & (drawn != lists.hidden[row])]
            text = np.full(len(drawn), lists.text_rows[row])
            group, scores = np.concatenate([group, drawn]), np.concatenate([scores, lists.teacher.pairs(text, drawn)])
        padding = (0, settings.documents + settings.random - len(group))
        rows.append(row)
        groups.append(np.pad(group.astype(np.int32), padding, constant_values=-1))
        group_scores.append(np.pad(scores, padding))
    if not rows:
        raise UserError("no query has two candidates, and a list objective needs at least two; mine deeper.")
    at, documents = np.array(rows), np.stack(groups)
    own = np.where(lists.positives[at] == lists.hidden[at], -1, lists.positives[at])
    has_own = ((documents == own[:, None]) & (documents >= 0)).any(axis=1)
    own, hidden = np.where(has_own, own, -1), np.full(len(at), -1, dtype=np.int64)  # a hidden document is in no group
    texts, origin = lists.text_rows[at], lists.origin or lists
    return Lists(documents, np.stack(group_scores), hidden, own, texts, lists.teacher, origin=origin)


def require_lists(lists: Lists) -> Lists:
    """The lists, unless there are none, which is a `UserError`."""
    if not len(lists):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    return lists


def columns_of(lists: Lists, queries: Sequence[str], documents: Sequence[str]) -> dict[str, list[str]]:
    """Texts of drawn groups by column: ``query``, ``document_1`` to ``document_n``; padding is the empty text."""
    if not lists.documents.shape[1]:
        raise UserError("lists over the whole corpus are not encoded; draw groups of documents from them.")
    columns = {"query": [queries[row] for row in lists.text_rows]}
    for place, column in enumerate(lists.documents.T, 1):
        columns[f"document_{place}"] = [documents[row] if row >= 0 else "" for row in column]
    return columns


def _ranked(lists: Lists, rows: np.ndarray, depth: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each row with its candidates that count and their scores, best first; the `depth` best of the whole corpus."""
    if lists.teacher is None or lists.documents.shape[1]:
        for row in rows.tolist():
            usable = (lists.documents[row] >= 0) & (lists.documents[row] != lists.hidden[row])
            usable &= np.cumsum(usable) <= (depth if lists.teacher is not None else len(usable))
            yield row, lists.documents[row][usable], lists.scores[row][usable]
        return
    blocks = lists.teacher.blocks(lists.text_rows[rows])
    for row, values in zip(rows.tolist(), itertools.chain.from_iterable(blocks), strict=True):
        hidden, own = lists.hidden[row], lists.positives[row]
        if hidden >= 0:
            values[hidden] = -np.inf
        most = min(depth, len(values) - int(hidden >= 0))
        best = np.argpartition(-values, most - 1)[:most] if most else np.zeros(0, dtype=np.int64)
        if own >= 0 and own != hidden and own not in best:  # a control needs it, wherever the teacher ranks it
            best = np.concatenate([best[:-1], [own]])
        best = best[np.argsort(-values[best], kind="stable")]
        yield row, best, values[best]
