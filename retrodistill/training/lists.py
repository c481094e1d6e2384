"""Lists: candidates of training texts with their teacher scores; `Lists` of all texts, `ListBatch` of a batch."""

from __future__ import annotations

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

_BLOCK = 1024  # lists that are looked at together


class ListBatch(NamedTuple):
    """Lists of a batch.

    Attributes:
        rows: (batch,) int64 rows of the lists.
        texts: (batch,) int64 rows of their texts.
        documents: (batch, n) corpus positions, -1 for padding; (1, corpus) where each list is the whole corpus.
        targets: (batch, n) float32 teacher scores.
        mask: (batch, n) bool, true where a candidate counts.
        positives: (batch,) int64 place of the text's own document in its list, -1 for none.
        own: (batch,) int64 corpus position of the text's own document, -1 for none.
        over_corpus: Whether each list is the whole corpus in its order.
    """

    rows: np.ndarray
    texts: np.ndarray
    documents: np.ndarray
    targets: Tensor
    mask: Tensor
    positives: Tensor
    own: np.ndarray
    over_corpus: bool


@dataclass(frozen=True, eq=False)
class Lists:
    """Candidates and teacher scores, a list a row.

    Attributes:
        documents: (lists, n) int32 corpus positions, -1 where a list is shorter; None where each list is the whole
            corpus in its order.
        scores: (lists, n) float32 teacher scores; anything where `documents` is -1.
        hidden: (lists,) int64 corpus position that is masked, since the pseudo-query was taken from it; -1 for none.
        positives: (lists,) int64 corpus position of the text's own document, which the pseudo-query was taken from or
            which is labeled; -1 for none.
        texts: (lists,) int64 rows of the texts; None where list i is that of text i.
        corpus: The lists over the whole corpus that these were drawn from, where they were.
    """

    documents: np.ndarray | None
    scores: np.ndarray
    hidden: np.ndarray
    positives: np.ndarray
    texts: np.ndarray | None = None
    corpus: Lists | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def over_corpus(self) -> Lists | None:
        """Lists of the same texts over the whole corpus; None where the teacher did not score it."""
        return self if self.documents is None else self.corpus

    @property
    def text_rows(self) -> np.ndarray:
        """(lists,) int64 rows of the texts."""
        return np.arange(len(self)) if self.texts is None else self.texts

    @property
    def mask(self) -> np.ndarray:
        """(lists, n) bool, true where a candidate counts. Large for whole-corpus lists: use `batch`."""
        documents = np.arange(self.scores.shape[1])[None, :] if self.documents is None else self.documents
        return (documents >= 0) & (documents != self.hidden[:, None])

    @property
    def sizes(self) -> np.ndarray:
        """(lists,) int64 candidates that count."""
        if self.documents is None:
            return self.scores.shape[1] - (self.hidden >= 0).astype(np.int64)
        return self.mask.sum(axis=1)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ListBatch:
        """Some of the lists, on a device; `rows` are (batch,) integers."""
        targets = torch.from_numpy(np.ascontiguousarray(self.scores[rows], dtype=np.float32)).to(device)
        documents = np.arange(self.scores.shape[1])[None, :] if self.documents is None else self.documents[rows]
        mask = (documents >= 0) & (documents != self.hidden[rows][:, None])
        own = self.positives[rows]
        at = (documents == own[:, None]) & mask & (own >= 0)[:, None]
        places = torch.from_numpy(np.where(at.any(axis=1), at.argmax(axis=1), -1)).to(device)
        texts = rows if self.texts is None else self.texts[rows]
        counts, whole = torch.from_numpy(mask).to(device), self.documents is None
        return ListBatch(rows, texts, documents, targets, counts, places, own, whole)

    def of_texts(self, texts: np.ndarray, times: int = 0) -> Lists:
        """The lists of some texts.

        Args:
            texts: Rows of texts; one that is there several times has its lists as often.
            times: Maximum number of lists per text, for monitors; 0 for all.
        """
        rows = self.text_rows
        order = np.argsort(rows, kind="stable")
        first = np.searchsorted(rows[order], texts, side="left")
        last = np.searchsorted(rows[order], texts, side="right")
        last = np.minimum(last, first + times) if times else last
        spans = [order[start:stop] for start, stop in zip(first, last, strict=True)]
        kept = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        documents = None if self.documents is None else self.documents[kept]
        return Lists(
            documents, self.scores[kept], self.hidden[kept], self.positives[kept], rows[kept], self.over_corpus
        )

    def teacher_on(self, batch: ListBatch, documents: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The teacher's scores of a batch's texts with any documents.

        Args:
            batch: Of these lists.
            documents: (m,) corpus positions, -1 for padding.

        Returns:
            (batch, m) float32 scores and (batch, m) bool, false where a document is hidden from its text; None where
            the teacher did not score the whole corpus.
        """
        corpus = self.over_corpus
        if corpus is None:
            return None
        scores = np.asarray(corpus.scores[np.ix_(batch.texts, np.maximum(documents, 0))], dtype=np.float32)
        counts = documents[None, :] != corpus.hidden[batch.texts][:, None]
        device = batch.targets.device
        return torch.from_numpy(scores).to(device), torch.from_numpy(counts).to(device)

    def usable(self) -> dict[str, int]:
        """How many lists teach nothing, by reason, and under ``usable`` how many do teach."""
        found = {"usable": 0}
        for start in range(0, len(self), _BLOCK):
            batch = self.batch(np.arange(start, min(start + _BLOCK, len(self))))
            usable, counts = usable_lists(batch.targets, batch.mask)
            for reason, count in {"usable": int(usable.sum()), **counts}.items():
                found[reason] = found.get(reason, 0) + count
        return found


def lists_over_corpus(scores: np.ndarray, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Every list is the whole corpus.

    Args:
        scores: (texts, documents) float32.
        sources: (texts,) corpus position of each pseudo-query's document, -1 for real queries.
        hide_source: Mask that document: lexical teachers put it on top trivially.
    """
    return Lists(None, scores, sources if hide_source else np.full_like(sources, -1), sources)


def lists_from_run(run: Run, texts: Texts, corpus: Texts, sources: np.ndarray, *, hide_source: bool = True) -> Lists:
    """Pad a scored run to lists, best candidate first; texts without a row get an empty list.

    Raises:
        UserError: The run names unknown ids.
    """
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
    """(texts,) int64 corpus position of each text's positive: of its labeled documents in the list the best.

    Best is the highest grade, then the teacher's score. The others stay in the list, so that a contrastive objective
    counts them as negatives, as it does where one document of several is labeled.

    Args:
        lists: Candidates and teacher scores.
        texts: Their texts; pseudo-queries keep the document that they were taken from.
        corpus: The documents.
        labels: Judgments; a grade above 0 is a positive.
    """
    positives = texts.sources.copy()
    for text, grades in graded_positions(texts, corpus, labels).items():
        scores = _scores_of(lists, text, list(grades))
        if scores:
            positives[text] = max(scores, key=lambda position: (grades[position], scores[position], -position))
    return positives


def graded_positions(texts: TrainingTexts, corpus: Texts, labels: Qrels) -> dict[int, dict[int, int]]:
    """Grades above 0 by row of the text and corpus position, of the texts that are judged."""
    places = {query: row for row, query in enumerate(texts.texts.ids)}
    graded: dict[int, dict[int, int]] = {}
    for row in labels.table.to_pylist():
        if row["relevance"] > 0 and row["query_id"] in places and row["document_id"] in corpus:
            of_text = graded.setdefault(places[row["query_id"]], {})
            of_text[corpus.position(row["document_id"])] = row["relevance"]
    return graded


def _scores_of(lists: Lists, text: int, positions: list[int]) -> dict[int, float]:
    """Teacher scores of those of some documents that are in a text's list."""
    if lists.documents is None:
        return {position: float(lists.scores[text, position]) for position in positions}
    at = {int(document): place for place, document in enumerate(lists.documents[text]) if document >= 0}
    return {position: float(lists.scores[text, at[position]]) for position in positions if position in at}


def draw_groups(lists: Lists, settings: GroupSettings, seed: int) -> Lists:
    """Draw small lists from long ones, before training, for stages in which documents take part.

    Args:
        lists: Of each text: candidates, best first, or the whole corpus.
        settings: How many documents a group has, and how they are drawn.
        seed: Seed of the random draws.

    Returns:
        Lists of `settings.documents` + `settings.random` documents, several of a text where it is drawn several times;
        texts with fewer than two candidates give none.

    Raises:
        UserError: No text has two candidates, or random documents beside lists that are not the whole corpus.
    """
    if settings.random and lists.documents is not None:
        raise UserError(
            f"groups.random={settings.random} draws from lists over the whole corpus; with candidates.depth set to a "
            "number, set candidates.random."
        )
    generator = np.random.default_rng(seed)
    size, random = settings.documents, settings.random
    rows, documents, scores = [], [], []
    for _ in range(settings.draws):
        for row in range(len(lists)):
            candidates, values = _ranked(lists, row, settings.depth)
            if len(candidates) < 2:
                continue
            taken = sample_places(settings.sampler, len(candidates), size, generator, values)
            taken = _with_own(taken, candidates, lists.positives[row])
            group, given = candidates[taken], values[taken]
            if random:
                drawn = generator.choice(lists.scores.shape[1], min(random, lists.scores.shape[1]), replace=False)
                drawn = drawn[~np.isin(drawn, group) & (drawn != lists.hidden[row])]
                group = np.concatenate([group, drawn])
                given = np.concatenate([given, lists.scores[row, drawn]])
            padding = size + random - len(group)
            rows.append(row)
            documents.append(np.pad(group.astype(np.int32), (0, padding), constant_values=-1))
            scores.append(np.pad(given, (0, padding)))
    if not rows:
        raise UserError("no query has two candidates, and a list objective needs at least two; mine deeper.")
    texts, places = np.array(rows), np.stack(documents)
    own = np.where(lists.positives[texts] == lists.hidden[texts], -1, lists.positives[texts])
    there = ((places == own[:, None]) & (places >= 0)).any(axis=1)
    nothing = np.full(len(texts), -1, dtype=np.int64)  # a hidden document is in no group
    return Lists(places, np.stack(scores), nothing, np.where(there, own, -1), texts, lists.over_corpus)


def require_lists(lists: Lists) -> Lists:
    """The lists, where there are any.

    Raises:
        UserError: There are none.
    """
    if not len(lists):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    return lists


def columns_of(lists: Lists, queries: Sequence[str], documents: Sequence[str]) -> dict[str, list[str]]:
    """Texts by column: ``query``, ``document_1`` to ``document_n``; a padded place holds the empty text.

    Args:
        lists: Drawn ones.
        queries: The stage's texts.
        documents: The corpus.
    """
    if lists.documents is None:
        raise UserError("lists over the whole corpus are not encoded; draw groups of documents from them.")
    columns = {"query": [queries[row] for row in lists.text_rows]}
    for place, column in enumerate(lists.documents.T):
        columns[f"document_{place + 1}"] = [documents[row] if row >= 0 else "" for row in column]
    return columns


def _with_own(taken: np.ndarray, candidates: np.ndarray, own: int) -> np.ndarray:
    """The places with that of the text's own document, for controls that need it; others never see it in their lists.

    It takes the last place drawn.
    """
    at = np.flatnonzero((candidates == own) & (candidates >= 0))
    return taken if not len(at) or at[0] in taken else np.concatenate([taken[:-1], at])


def _ranked(lists: Lists, row: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of a text that count and their scores, best first; of the whole corpus the `depth` best."""
    if lists.documents is not None:
        usable = (lists.documents[row] >= 0) & (lists.documents[row] != lists.hidden[row])
        return lists.documents[row][usable], lists.scores[row][usable]
    values = np.array(lists.scores[row])
    if lists.hidden[row] >= 0:
        values[lists.hidden[row]] = -np.inf
    available = len(values) - int(lists.hidden[row] >= 0)
    depth = min(depth, available)
    best = np.argpartition(-values, depth - 1)[:depth] if depth else np.zeros(0, dtype=np.int64)
    own = lists.positives[row]
    if own >= 0 and own != lists.hidden[row] and own not in best:  # a control needs it, wherever the teacher has it
        best = np.concatenate([best[:-1], [own]])
    best = best[np.argsort(-values[best], kind="stable")]
    return best, values[best].astype(np.float32)
