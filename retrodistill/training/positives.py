"""Labeled documents as positives, beside a teacher's scores."""

from __future__ import annotations

import numpy as np

from retrodistill.data.qrels import Qrels
from retrodistill.data.texts import Texts
from retrodistill.training.lists import Lists
from retrodistill.training.texts import TrainingTexts


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
    found = texts.sources.copy()
    places = {query: row for row, query in enumerate(texts.texts.ids)}
    graded: dict[int, dict[int, int]] = {}
    for row in labels.table.to_pylist():
        if row["relevance"] > 0 and row["query_id"] in places and row["document_id"] in corpus:
            of_text = graded.setdefault(places[row["query_id"]], {})
            of_text[corpus.position(row["document_id"])] = row["relevance"]
    for text, grades in graded.items():
        scores = _scores(lists, text, list(grades))
        if scores:
            found[text] = max(scores, key=lambda position: (grades[position], scores[position], -position))
    return found


def _scores(lists: Lists, text: int, positions: list[int]) -> dict[int, float]:
    """Teacher scores of those of some documents that stand in a text's list."""
    if lists.documents is None:
        return {position: float(lists.scores[text, position]) for position in positions}
    at = {int(document): place for place, document in enumerate(lists.documents[text]) if document >= 0}
    return {position: float(lists.scores[text, at[position]]) for position in positions if position in at}
