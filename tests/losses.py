"""Losses as the stages build them, from plain arrays."""

import numpy as np

from retrodistill.rankers.corpus import Products
from retrodistill.training.lists import Lists, lists_over_corpus
from retrodistill.training.loss import DistillationLoss, TeacherVectors
from retrodistill.training.scorers import StoredVectorScorer, VectorScorer


def is_cosine(model):
    return str(model.similarity_fn_name) == "cosine"


def stored_loss(model, terms, *, embeddings=None, documents=None, lists=None, alone=True):
    """Of a query encoder against stored embeddings of the texts, or stored documents."""
    scorer = StoredVectorScorer(is_cosine(model), documents)
    return DistillationLoss(model, terms, scorer, lists, TeacherVectors(embeddings), alone=alone)


def table(scores):
    """A teacher's scores of the corpus that are known: (texts, documents)."""
    scores = np.asarray(scores, dtype=np.float32)
    return Products(scores, np.eye(scores.shape[1], dtype=np.float32))


def over_corpus(scores, sources, **options):
    """Lists over the whole corpus by a teacher whose (texts, documents) scores are known."""
    return lists_over_corpus(table(scores), sources, **options)


def groups(scores, mask, positives, documents=None):
    """Lists of encoded documents; `positives` are places, -1 for none."""
    mask, positives = np.asarray(mask, dtype=bool), np.asarray(positives)
    if documents is None:
        documents = np.arange(mask.size).reshape(mask.shape)
    own = np.take_along_axis(documents, np.maximum(positives, 0)[:, None], axis=1)[:, 0]
    nothing = np.full(len(scores), -1)
    return Lists(np.where(mask, documents, -1), np.asarray(scores), nothing, np.where(positives >= 0, own, -1))


def groups_loss(model, terms, scores, mask, positives, documents=None, *, scorer=None, alone=True):
    """Of both encoders, documents encoded with gradients."""
    lists = groups(scores, mask, positives, documents)
    return DistillationLoss(model, terms, scorer or VectorScorer(is_cosine(model)), lists, alone=alone)
