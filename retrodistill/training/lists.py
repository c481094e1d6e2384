"""Candidates of training texts with their teacher scores: `Lists` of all texts, `ListBatch` of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrodistill.candidates.samplers import sample_places
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.data.texts import Texts
from retrodistill.objectives import usable_lists
from retrodistill.runs.run import Run
from retrodistill.training.settings import GroupSettings
from retrodistill.training.texts import TrainingTexts

_BLOCK = 1024  # lists that are checked at once, which bounds memory when each list is a whole corpus


def as_float32(values: np.ndarray, device: torch.device | str) -> Tensor:
    """A float32 tensor of stored values on a device."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


class ListBatch(NamedTuple):
    """Lists of a batch."""

    rows: np.ndarray  # (batch,) int64 rows of the lists
    texts: np.ndarray  # (batch,) int64 rows of their texts
    documents: np.ndarray  # (batch, n) corpus positions, -1 for padding; (1, corpus) if each list is the whole corpus
    targets: Tensor  # (batch, n) float32 teacher scores
    mask: Tensor  # (batch, n) bool, true where a candidate counts
    positives: Tensor  # (batch,) int64 place of the text's own document in its list, -1 for none
    own: np.ndarray  # (batch,) int64 corpus position of the text's own document, -1 for none
    over_corpus: bool  # whether each list is the whole corpus in its order


@dataclass(frozen=True, eq=False)
class Lists:
    """Candidates and teacher scores, one list per row."""

    documents: np.ndarray | None  # (lists, n) int32 corpus positions, -1 for padding; None for the corpus in its order
    scores: np.ndarray  # (lists, n) float32 teacher scores; undefined where `documents` is -1
    hidden: np.ndarray  # (lists,) int64 corpus position that is masked, the source of a pseudo-query; -1 for none
    positives: np.ndarray  # (lists,) int64 corpus position of the text's own document, source or labeled; -1 for none
    texts: np.ndarray | None = None  # (lists,) int64 rows of the texts; None if list i is that of text i
    corpus: Lists | None = None  # the lists over the whole corpus that these were drawn from, if any

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def over_corpus(self) -> Lists | None:
        """Lists of the same texts over the whole corpus; None if the teacher did not score it."""
        return self if self.documents is None else self.corpus

    @property
    def text_rows(self) -> np.ndarray:
        """(lists,) int64 rows of the texts."""
        return np.arange(len(self)) if self.texts is None else self.texts

    @property
    def mask(self) -> np.ndarray:
        """(lists, n) bool, true where a candidate counts. Large for whole-corpus lists: use `batch`."""
        return self._candidates(slice(None))[1]

    @property
    def sizes(self) -> np.ndarray:
        """(lists,) int64 number of candidates that count."""
        if self.documents is None:
            return self.scores.shape[1] - (self.hidden >= 0).astype(np.int64)
        return self.mask.sum(axis=1)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """Some of the lists, on a device; `rows` are (batch,) integers."""
        documents, counts = self._candidates(rows)
        own = self.positives[rows]
        at = (documents == own[:, None]) & counts & (own >= 0)[:, None]
        places = torch.from_numpy(np.where(at.any(axis=1), at.argmax(axis=1), -1)).to(device)
        texts = rows if self.texts is None else self.texts[rows]
        targets, mask = as_float32(self.scores[rows], device), torch.from_numpy(counts).to(device)
        return ListBatch(rows, texts, documents, targets, mask, places, own, self.documents is None)

    def of_texts(self, texts: np.ndarray, times: int = 0) -> Lists:
        """The lists of some rows of texts, repeated as these are; at most `times` per text, 0 for all."""
        rows, order = self.text_rows, np.argsort(self.text_rows, kind="stable")
        first, last = (np.searchsorted(rows, texts, side, sorter=order) for side in ("left", "right"))
        last = np.minimum(last, first + times) if times else last
        spans = [order[start:stop] for start, stop in zip(first, last, strict=True)]
        kept = np.concatenate([order[:0], *spans])
        documents = None if self.documents is None else self.documents[kept]
        return Lists(
            documents, self.scores[kept], self.hidden[kept], self.positives[kept], rows[kept], self.over_corpus
        )

    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The teacher's scores of a batch's texts with any documents, (m,) corpus positions, -1 for padding.

        Returns:
            (batch, m) float32 scores and (batch, m) bool, false where a document is hidden from its text; None if the
            teacher did not score the whole corpus.
        """
        corpus = self.over_corpus
        if corpus is None:
            return None
        device = batch.targets.device
        scores = as_float32(corpus.scores[np.ix_(batch.texts, np.maximum(documents, 0))], device)
        counts = documents[None, :] != corpus.hidden[batch.texts][:, None]
        return scores, torch.from_numpy(counts).to(device)

    def usable(self) -> dict[str, int]:
        """Number of lists that teach something, under ``usable``, and of the others by reason."""
        total = Counter(usable=0)
        for start in range(0, len(self), _BLOCK):
            batch = self.batch(np.arange(start, min(start + _BLOCK, len(self))))
            usable, counts = usable_lists(batch.targets, batch.mask)
            total.update(counts, usable=int(usable.sum()))
        return total

    def _candidates(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Corpus positions of some lists' candidates, and which of them count."""
        documents = np.arange(self.scores.shape[1])[None, :] if self.documents is None else self.documents[rows]
        return documents, (documents >= 0) & (documents != self.hidden[rows][:, None])


def lists_over_corpus(scores: np.ndarray, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Lists that are the whole corpus, from (texts, documents) float32 scores.

    `hide_source` masks a pseudo-query's own document, which lexical teachers trivially rank first: (texts,) `sources`.
    """
    return Lists(None, scores, sources if hide_source else np.full_like(sources, -1), sources)


def lists_from_run(run: Run, texts: Texts, corpus: Texts, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Pad a scored run to lists, best candidate first; texts without a row get an empty list."""
    run.require(texts.ids, corpus.ids)
    ranked = run.ranked()
    rows = texts.positions(ranked.query_ids)[ranked.query_codes]
    places = np.arange(len(ranked)) - ranked.bounds[ranked.query_codes]
    width = int(places.max(initial=0)) + 1
    documents = np.full((len(texts), width), -1, dtype=np.int32)
    scores = np.zeros((len(texts), width), dtype=np.float32)
    documents[rows, places] = corpus.positions(ranked.document_ids)
    scores[rows, places] = ranked.scores
    return Lists(documents, scores, sources if hide_source else np.full_like(sources, -1), sources)


def best_labeled(lists: Lists, texts: TrainingTexts, corpus: Texts, labels: Qrels) -> np.ndarray:
    """(texts,) int64 corpus position of each text's positive: the best of its labeled documents in the list.

    The best has the highest grade, then the highest teacher score. The others stay in the list, so a contrastive
    objective counts them as negatives. Pseudo-queries keep the document that they were taken from.
    """
    positives = texts.sources.copy()
    for text, grades in graded_positions(texts, corpus, labels).items():
        places = {position: position for position in grades}
        if lists.documents is not None:
            listed = lists.documents[text].tolist()
            places = {position: listed.index(position) for position in grades if position in listed}
        if places:
            scores = lists.scores[text]
            positives[text] = max(places, key=lambda at: (grades[at], float(scores[places[at]]), -at))
    return positives


def graded_positions(texts: TrainingTexts, corpus: Texts, labels: Qrels) -> dict[int, dict[int, int]]:
    """Grades above 0 by row of the text and corpus position, for the texts that are judged."""
    places = {query: row for row, query in enumerate(texts.texts.ids)}
    graded: dict[int, dict[int, int]] = {}
    for row in labels.table.to_pylist():
        if row["relevance"] > 0 and row["query_id"] in places and row["document_id"] in corpus:
            of_text = graded.setdefault(places[row["query_id"]], {})
            of_text[corpus.position(row["document_id"])] = row["relevance"]
    return graded


def draw_groups(lists: Lists, settings: GroupSettings, seed: int) -> Lists:
    """Draw small lists from long ones (best candidate first, or the whole corpus) for stages that encode documents.

    Returns:
        Lists of `settings.documents` + `settings.random` documents, `settings.draws` per text; none for texts with
        fewer than two candidates.

    Raises:
        UserError: No text has two candidates, or random documents for lists that are not the whole corpus.
    """
    if settings.random and lists.documents is not None:
        raise UserError(
            f"groups.random={settings.random} draws from lists over the whole corpus; with candidates.depth set to a "
            "number, set candidates.random."
        )
    generator = np.random.default_rng(seed)
    width = settings.documents + settings.random
    corpus_size = lists.scores.shape[1]
    rows, documents, scores = [], [], []
    for row in [*range(len(lists))] * settings.draws:
        candidates, values = _ranked(lists, row, settings.depth)
        if len(candidates) < 2:
            continue
        places = sample_places(settings.sampler, len(candidates), settings.documents, generator, values)
        at_own = np.flatnonzero((candidates == lists.positives[row]) & (candidates >= 0))
        if len(at_own) and at_own[0] not in places:  # controls need the text's own document
            places = np.concatenate([places[:-1], at_own])
        group, group_scores = candidates[places], values[places]
        if settings.random:
            drawn = generator.choice(corpus_size, min(settings.random, corpus_size), replace=False)
            drawn = drawn[~np.isin(drawn, group) & (drawn != lists.hidden[row])]
            group = np.concatenate([group, drawn])
            group_scores = np.concatenate([group_scores, lists.scores[row, drawn]])
        padding = (0, width - len(group))
        rows.append(row)
        documents.append(np.pad(group.astype(np.int32), padding, constant_values=-1))
        scores.append(np.pad(group_scores, padding))
    if not rows:
        raise UserError("no query has two candidates, and a list objective needs at least two; mine deeper.")
    texts, drawn_documents = np.array(rows), np.stack(documents)
    own = np.where(lists.positives[texts] == lists.hidden[texts], -1, lists.positives[texts])
    has_own = ((drawn_documents == own[:, None]) & (drawn_documents >= 0)).any(axis=1)
    hidden = np.full(len(texts), -1, dtype=np.int64)  # a hidden document is in no group
    return Lists(drawn_documents, np.stack(scores), hidden, np.where(has_own, own, -1), texts, lists.over_corpus)


def require_lists(lists: Lists) -> Lists:
    """The lists, unless there are none, which is a `UserError`."""
    if not len(lists):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    return lists


def columns_of(lists: Lists, queries: Sequence[str], documents: Sequence[str]) -> dict[str, list[str]]:
    """Texts of drawn groups by column: ``query``, ``document_1`` to ``document_n``; padding is the empty text."""
    if lists.documents is None:
        raise UserError("lists over the whole corpus are not encoded; draw groups of documents from them.")
    columns = {"query": [queries[row] for row in lists.text_rows]}
    for place, column in enumerate(lists.documents.T, 1):
        columns[f"document_{place}"] = [documents[row] if row >= 0 else "" for row in column]
    return columns


def _ranked(lists: Lists, row: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """A text's candidates that count and their scores, best first; the `depth` best of the whole corpus."""
    if lists.documents is not None:
        usable = (lists.documents[row] >= 0) & (lists.documents[row] != lists.hidden[row])
        return lists.documents[row][usable], lists.scores[row][usable]
    values = np.array(lists.scores[row])
    if lists.hidden[row] >= 0:
        values[lists.hidden[row]] = -np.inf
    depth = min(depth, len(values) - int(lists.hidden[row] >= 0))
    best = np.argpartition(-values, depth - 1)[:depth] if depth else np.zeros(0, dtype=np.int64)
    own = lists.positives[row]
    if own >= 0 and own != lists.hidden[row] and own not in best:  # a control needs it, wherever the teacher ranks it
        best = np.concatenate([best[:-1], [own]])
    best = best[np.argsort(-values[best], kind="stable")]
    return best, values[best].astype(np.float32)
