"""Lists: for each training text its candidates and their teacher scores, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodistill.candidates.samplers import sample_places
from retrodistill.collections.texts import Texts
from retrodistill.errors import UserError
from retrodistill.runs.run import Run


@dataclass(frozen=True)
class Lists:
    """Candidates of each training text.

    Attributes:
        documents: (texts, n) int32 corpus positions, -1 where a list is shorter; None where each list is the whole
            corpus in its order.
        scores: (texts, n) float32 teacher scores; anything where `documents` is -1.
        hidden: (texts,) int64 corpus position that is masked, since the pseudo-query was taken from it; -1 for none.
        positives: (texts,) int64 corpus position that a pseudo-query was taken from, for contrastive controls; -1
            for none.
    """

    documents: np.ndarray | None
    scores: np.ndarray
    hidden: np.ndarray
    positives: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


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


def sampled_groups(
    lists: Lists, size: int, sampler: str, seed: int, draws: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw small groups from long lists, for training that encodes its documents.

    Args:
        lists: Candidates, best first.
        size: Documents per group, at least 2.
        sampler: One of `retrodistill.candidates.samplers.SAMPLERS`.
        seed: Of the drawing.
        draws: Groups per text.

    Returns:
        rows (g,) int64 of the texts, documents (g, size) int32 with -1 padding, scores (g, size) float32; texts with
        fewer than two candidates give none.

    Raises:
        UserError: Lists over the whole corpus, groups of fewer than two, or no text with two candidates.
    """
    if lists.documents is None:
        raise UserError("training both towers draws groups from lists; set candidates.depth to a number, not 'all'.")
    if size < 2:
        raise UserError(f"groups of {size} documents; a list objective needs at least 2.")
    generator = np.random.default_rng(seed)
    rows, documents, scores = [], [], []
    for _ in range(draws):
        for row, (candidates, values) in enumerate(zip(lists.documents, lists.scores, strict=True)):
            usable = np.flatnonzero((candidates >= 0) & (candidates != lists.hidden[row]))
            if len(usable) < 2:
                continue
            places = usable[sample_places(sampler, len(usable), size, generator)]
            padding = size - len(places)
            rows.append(row)
            documents.append(np.pad(candidates[places], (0, padding), constant_values=-1))
            scores.append(np.pad(values[places], (0, padding)))
    if not rows:
        raise UserError("no query has two candidates, and a list objective needs at least two; mine deeper.")
    return np.array(rows), np.stack(documents), np.stack(scores)
