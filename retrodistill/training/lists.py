"""Lists: for each training text its candidates and their teacher scores, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodistill.candidates.samplers import sample_places
from retrodistill.core.errors import UserError
from retrodistill.data.texts import Texts
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
    lists: Lists, size: int, sampler: str, seed: int, draws: int = 1, *, depth: int = 100, random: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw small groups from long lists, for training that encodes its documents.

    Args:
        lists: Candidates, best first; or the whole corpus.
        size: Documents per group, at least 2.
        sampler: One of `retrodistill.candidates.samplers.SAMPLERS`.
        seed: Of the drawing.
        draws: Groups per text.
        depth: Of the whole corpus, the sampler draws from so many that the teacher scores best.
        random: Of the whole corpus, so many more documents are drawn; one that is in the group already is left out.

    Returns:
        rows (g,) int64 of the texts, documents (g, size + random) int32 with -1 padding, scores of that shape float32;
        texts with fewer than two candidates give none.

    Raises:
        UserError: Groups of fewer than two, no text with two candidates, or random documents beside lists that are not
            the whole corpus.
    """
    if size < 2:
        raise UserError(f"groups of {size} documents; a list objective needs at least 2.")
    if random and lists.documents is not None:
        raise UserError(
            f"groups.random={random} draws from lists over the whole corpus; with candidates.depth set to a number, "
            "set candidates.random."
        )
    generator = np.random.default_rng(seed)
    rows, documents, scores = [], [], []
    for _ in range(draws):
        for row in range(len(lists)):
            candidates, values = _ranked(lists, row, depth)
            if len(candidates) < 2:
                continue
            taken = _with_own(
                sample_places(sampler, len(candidates), size, generator, values), candidates, lists.positives[row]
            )
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
    return np.array(rows), np.stack(documents), np.stack(scores)


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
