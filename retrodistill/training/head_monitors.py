"""The monitor of heads: held-out queries over a part of the corpus, from stored hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.states import stored_states
from retrodistill.training.heads import HeadLoss
from retrodistill.training.monitors import RankMonitor
from retrodistill.training.prepared import Prepared, teacher_rows
from retrodistill.training.regularizers import SparsityAlarm

_DEPTH = 10
_DOCUMENTS = 1000  # that held-out queries are ranked over, those that the teacher ranks highest among them
_COUNTED = 16  # documents whose terms are counted over the whole vocabulary
_BLOCK = 64


def head_monitor(
    loss: HeadLoss, student: SparseTextEncoder | MultiVectorModel, prepared: Prepared, alarm: SparsityAlarm, seed: int
) -> RankMonitor | None:
    """Agreement with the teacher over a sample of the corpus, and the terms of documents.

    Args:
        loss: In training.
        student: Whose head it trains.
        prepared: Of the stage: held-out texts and what the teacher ranks highest.
        alarm: Told the numbers of terms.
        seed: Of the sample.
    """
    held_out = prepared.held_out
    if len(held_out) < 2:
        return None
    best = teacher_rows(prepared, _DEPTH)
    corpus = len(loss.documents)
    generator = np.random.default_rng(seed)
    others = generator.permutation(corpus)[: max(0, _DOCUMENTS - best.size)]
    sample = np.unique(np.concatenate([best[best >= 0], others]))
    ranked = np.where(best >= 0, np.searchsorted(sample, np.maximum(best, 0)), -1)
    queries = _queries(loss, student, [prepared.texts.texts.texts[row] for row in held_out])

    def scores() -> np.ndarray:
        with torch.no_grad():
            parts = [
                loss.matrix(queries, sample[start : start + _BLOCK]).cpu().numpy()
                for start in range(0, len(sample), _BLOCK)
            ]
        return np.concatenate(parts, axis=1)

    def terms() -> dict[str, float]:
        counted = sample[np.linspace(0, len(sample) - 1, min(_COUNTED, len(sample)), dtype=int)]
        alive, vocabulary = loss.alive(counted)
        alarm(alive, vocabulary)
        return {"terms": float(np.mean(alive))} if vocabulary else {}

    return RankMonitor(scores, ranked, terms)


def _queries(loss: HeadLoss, student: SparseTextEncoder | MultiVectorModel, texts: Sequence[str]) -> Any:
    """The held-out texts as the loss takes queries."""
    if isinstance(student, MultiVectorModel):
        return stored_states(student, texts, "query").gather(np.arange(len(texts)), student.model.device)
    features = student.model.preprocess(list(texts), prompt=student.prompt("query") or None, task="query")
    from sentence_transformers.util import batch_to_device

    return loss.queries(batch_to_device(features, student.model.device), np.arange(len(texts)))
