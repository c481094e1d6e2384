"""Pools: whom a stage's teacher might score, and the pairs of them that a budget buys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retrodistill.candidates.budget import Budget, choose_pairs
from retrodistill.candidates.mining import mine
from retrodistill.candidates.selection import labeled
from retrodistill.core.errors import UserError
from retrodistill.data.sentences import source_document
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import parse_model_name
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.runs.fusion import union
from retrodistill.runs.run import Run
from retrodistill.training.list_settings import CURRENT_STUDENT
from retrodistill.training.settings import StageSettings

if TYPE_CHECKING:
    from retrodistill.training.training_data import TrainingData

_CHEAP = ("bm25", "dense", "static", "vectors")  # they score any pair at no cost once texts are embedded


def candidate_pool(data: TrainingData, stage: StageSettings, texts: Texts, sources: list[str]) -> Run:
    """Every pair that the teacher might score.

    Args:
        data: Of the student.
        stage: Whose candidates are wanted.
        texts: The stage's texts, as the student is asked them; retrievers are asked the better ones where there are.
        sources: Who proposes.

    Raises:
        UserError: The current student is to propose where there is none.
    """
    asked, corpus, settings = data.teacher_queries(texts), data.collection, stage.candidates
    if data.teacher.run is not None:
        return data.teacher.run.select(texts.ids)  # of labeled documents it knows those that it lists
    depth = min(int(settings.depth), len(corpus.documents))
    proposing: list[object] = []
    for source in sources:
        if source == CURRENT_STUDENT:
            if data.student is None:
                raise UserError("candidates of the current student are known when its stage begins, not before.")
            proposing.append(data.student.search(corpus, texts, depth))
        else:
            proposing.append(source)
    found = mine(corpus, asked, proposing, depth, random=settings.random, seed=data.seed)
    return _with_labeled(found, data, texts) if stage.positives == "labels" else found


def select_within_budget(
    data: TrainingData, stage: StageSettings, texts: Texts, pool: Run, sources: list[str]
) -> Budget:
    """The pairs that the stage's budget buys, by the fused scores of those who score any pair cheaply.

    Where nobody does, the pool's reciprocal ranks choose. Pairs of a pseudo-query with the document that it was taken
    from are hidden in training and not bought, unless an objective needs them.

    Raises:
        UserError: As `choose_pairs`.
    """
    settings = stage.candidates
    if not stage.needs_own_document:
        own = ((query, source_document(query)) for query in pool.query_ids)
        pool = pool.without({query: document for query, document in own if document is not None})
    cheap = [one for one in sources if one != CURRENT_STUDENT and parse_model_name(one).kind in _CHEAP]
    if cheap:
        space = data.space
        scorers = [load_ranker(space if space is not None and one == space.name else one) for one in cheap]
        pool = Ensemble(scorers).score(data.teacher_queries(texts), data.collection, pool)
    return choose_pairs(pool, settings.budget or 0, settings.budget_by, seed=data.seed)


def _with_labeled(found: Run, data: TrainingData, texts: Texts) -> Run:
    """The pool with the labeled documents of its queries, last in order."""
    corpus = data.collection.documents
    judged = ((query, document) for query, named in labeled(data.qrels()).items() for document in sorted(named))
    rows = [(query, document) for query, document in judged if query in texts and document in corpus]
    if not rows:
        return found
    queries, documents = zip(*rows, strict=True)
    added = Run.from_arrays(list(queries), list(documents), np.zeros(len(rows)), name="labels")
    return union([found, added], weights=[1.0, 0.0])
