"""Groups: a few documents of each list, drawn anew in each epoch, for stages that encode documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from retrodistill.candidates.samplers import sample_ranks, uniforms
from retrodistill.core.errors import UserError
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.training.lists import ListBatch, Lists, TrainingLists, as_float32
from retrodistill.training.settings import GroupSettings


@dataclass(eq=False)
class Groups(TrainingLists):
    """Groups of a few documents that are drawn from long lists.

    The first document is the text's positive: its own document, source or labeled, if its list shows that, and the
    teacher's best otherwise. The sampler draws the negatives from the others. A draw depends on nothing but the seed,
    the epoch, and the number of the group. A resumed training therefore draws what an uninterrupted one draws, and so
    do the processes that read texts and the loss.
    """

    lists: Lists  # best candidate first
    rows: np.ndarray  # (groups,) int64 rows of the lists, which have two or more documents that count
    settings: GroupSettings
    seed: int
    epoch: int = field(default=0, kw_only=True)  # counts from 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def teacher(self) -> CorpusScores | None:  # type: ignore[override]
        """Scores of all texts with any document, if the teacher gives them."""
        return self.lists.teacher

    @property
    def text_codes(self) -> np.ndarray | None:  # type: ignore[override]
        """Equal for texts that are equal."""
        return self.lists.text_codes

    @property
    def text_rows(self) -> np.ndarray:
        """(groups,) int64 rows of the texts."""
        return self.rows

    @property
    def width(self) -> int:
        """Number of documents of a group, padding included."""
        return self.settings.documents + self._random

    @property
    def shows_positives(self) -> np.ndarray:
        """See `TrainingLists`."""
        return self.lists.shows_positives[self.rows]

    def of_texts(self, texts: np.ndarray, times: int = 0) -> Groups:
        """New groups of some rows of texts, repeated as these are; `times` per text, 0 for those of the settings."""
        drawable = texts[np.isin(texts, self.rows)]
        return replace(self, rows=np.repeat(drawable, times or self.settings.draws))

    def start_epoch(self, epoch: int) -> None:
        """See `TrainingLists`."""
        self.epoch = epoch

    def documents(self, rows: np.ndarray) -> np.ndarray:
        """(batch, n) int64 corpus positions of the documents of groups, the positive first; -1 for padding."""
        return self._drawn(rows)[0]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """See `TrainingLists`."""
        texts = self.rows[rows]
        documents, scores = self._drawn(rows)
        if self._random and self.teacher is not None:
            added = np.nonzero(documents[:, self.settings.documents :] >= 0)
            at = (added[0], added[1] + self.settings.documents)
            scores[at] = self.teacher.pairs(texts[at[0]], documents[at])
        mask = self.lists.counts(texts, documents, scores)
        has_own = (documents[:, 0] == self.lists.positives[texts]) & mask[:, 0]
        own = np.where(has_own, documents[:, 0], -1)
        places = torch.from_numpy(np.where(has_own, 0, -1)).to(device)
        targets, none = as_float32(scores, device), np.zeros(0, dtype=np.int64)
        counts = own_mask = torch.from_numpy(mask).to(device)
        if self.lists.labeled is not None:
            own_mask = torch.from_numpy(mask & ~self.relevant(texts, documents)).to(device)
        return ListBatch(texts, documents, targets, counts, own_mask, places, own, none, False)

    def excuses(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `TrainingLists`."""
        return self.lists.excuses(texts, documents)

    def relevant(self, texts: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """See `TrainingLists`."""
        return self.lists.relevant(texts, documents)

    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """See `TrainingLists`."""
        return self.lists.teacher_on(batch, documents)

    @property
    def _random(self) -> int:
        return 0 if self.teacher is None else min(self.settings.random, self.teacher.shape[1])

    def _drawn(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(batch, n) corpus positions and teacher scores; random documents have no scores yet."""
        lists, texts, settings = self.lists, self.rows[rows], self.settings
        listed, scores = lists.documents[texts].astype(np.int64), lists.scores[texts]
        others = lists.counts(texts, listed, scores)
        own = others & (listed == lists.positives[texts, None])
        first = np.where(own.any(axis=1), own.argmax(axis=1), others.argmax(axis=1))[:, None]
        np.put_along_axis(others, first, False, axis=1)
        if self.teacher is not None:
            others &= np.cumsum(others, axis=1) < settings.depth
        order = np.argsort(~others, axis=1, kind="stable")  # the others first, in the teacher's order
        margins = np.take_along_axis(scores, first, axis=1) - np.take_along_axis(scores, order, axis=1)
        numbers = max(listed.shape[1], 2 * settings.documents)
        drawn = uniforms([self.seed, self.epoch], rows, numbers + self._random)
        ranks = sample_ranks(settings.sampler, others.sum(axis=1), settings.documents - 1, drawn, margins)
        places = np.concatenate([first, np.take_along_axis(order, np.maximum(ranks, 0), axis=1)], axis=1)
        chosen = np.take_along_axis(listed, places, axis=1)
        chosen[:, 1:][ranks < 0] = -1
        missing = ((0, 0), (0, self.width - chosen.shape[1]))
        chosen = np.pad(chosen, missing, constant_values=-1)
        if self._random:
            chosen[:, settings.documents :] = self._random_documents(texts, chosen, drawn[:, numbers:])
        return chosen, np.pad(np.take_along_axis(scores, places, axis=1), missing)

    def _random_documents(self, texts: np.ndarray, chosen: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(batch, random) documents, one from each of equally large parts of the corpus; -1 where it is in the group.

        Hidden documents, the text's own, and copies of other documents are left out, too.
        """
        size = self.lists.teacher.shape[1] if self.lists.teacher is not None else 0
        edges = np.arange(self._random + 1) * size // max(self._random, 1)
        added = edges[:-1] + (numbers * np.diff(edges)).astype(np.int64)
        in_group = (added[:, :, None] == chosen[:, None, :]).any(axis=2) | self.lists.excuses(texts, added)
        left_out = in_group | (added == self.lists.hidden[texts, None])
        if self.lists.copies is not None:
            left_out |= self.lists.copies[added]
        return np.where(left_out, -1, added)


def draw_groups(lists: Lists, settings: GroupSettings, seed: int) -> Groups:
    """Groups of `settings.documents` + `settings.random` documents of all lists, `settings.draws` of each.

    Lists have their best candidate first, or are the whole corpus, of which the best `settings.depth` are kept. A list
    with fewer than two documents that count has no group.

    Raises:
        UserError: No text has two candidates, or random documents where the teacher does not score any document.
    """
    if settings.random and lists.teacher is None:
        raise UserError(
            f"groups.random={settings.random} needs a teacher that scores any document; set candidates.random, for "
            "random documents in every list."
        )
    if not lists.documents.shape[1]:
        lists = _best_of_corpus(lists, settings.depth)
    rows = np.flatnonzero(lists.mask.sum(axis=1) >= 2)
    if not len(rows):
        raise UserError("no query has two candidates, and a list objective needs at least two; mine deeper.")
    return Groups(lists, np.tile(rows, settings.draws), settings, seed)


def _best_of_corpus(lists: Lists, depth: int) -> Lists:
    """Lists over the corpus, cut to the teacher's best documents besides the hidden one, and the text's own."""
    rows = np.arange(len(lists))
    documents, scores = lists.best(rows, depth + 1)
    missing = lists.shows_positives & (documents != lists.positives[:, None]).all(axis=1)
    own = np.where(missing, lists.positives, -1)
    own_scores = np.zeros(len(lists), dtype=np.float32)
    if lists.teacher is not None:
        own_scores[missing] = lists.teacher.pairs(rows[missing], own[missing])
    documents = np.concatenate([documents, own[:, None]], axis=1).astype(np.int32)
    return replace(lists, documents=documents, scores=np.concatenate([scores, own_scores[:, None]], axis=1), shared=0)


def require_groups(groups: Groups) -> Groups:
    """The groups, unless there are none, which is a `UserError`."""
    if not len(groups):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    return groups


def document_columns(groups: Groups, rows: np.ndarray, documents: Sequence[str]) -> dict[str, list[str]]:
    """Texts of groups' documents by column, ``document_1`` to ``document_n``; padding is the empty text."""
    drawn = groups.documents(rows)
    return {
        f"document_{place}": [documents[row] if row >= 0 else "" for row in column.tolist()]
        for place, column in enumerate(drawn.T, 1)
    }
