"""Training of a head against stored hidden states: no transformer runs, and no vocabulary is walked through.

An inference-free sparse score is ``sum_t w_t log(1 + relu(max_i <d_t, h_i> + b_t))`` over the query's terms t and the
document's hidden states h_i: MaxSim (ColBERT, arXiv 2004.12832) with a vector for each term in place of the query's
token vectors. So sparse and multi-vector students train alike.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.runtime import average_gradients
from retrodistill.students.states import States
from retrodistill.training.lists import ListBatch, require_lists
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.monitors import RankMonitor
from retrodistill.training.prepared import teacher_rows, training_rows
from retrodistill.training.scorers import Scorer
from retrodistill.training.stages import StageRun, drawn_groups, fit
from retrodistill.training.trainer import History

_DEPTH = 10
_DOCUMENTS = 1000  # that held-out queries are ranked over, those that the teacher ranks highest among them
_COUNTED = 16  # sampled documents whose terms are counted over the whole vocabulary
_BLOCK = 64


class HeadScorer(Scorer):
    """What both kinds share: one text column, and parameters that learn outside the model's forward pass.

    Args:
        documents: Hidden states of the corpus.
        trained: Parameters that learn.

    Attributes:
        documents: Hidden states of the corpus.
        trained: Parameters that learn.
    """

    def __init__(self, documents: States, trained: Sequence[nn.Parameter]) -> None:
        self.documents, self.trained = documents, list(trained)
        self._began: list[Tensor] = []

    @abstractmethod
    def scores(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """(batch, n) scores of each query with its own documents, by some parameters.

        Args:
            parameters: As those that learn.
            queries: As `encode` gives.
            documents: (batch, n) corpus positions, -1 for padding, whose score is 0.
        """

    @abstractmethod
    def matrix(self, queries: Any, documents: np.ndarray) -> Tensor:
        """(queries, documents) scores of every query with every document, by the parameters that learn.

        Args:
            queries: As `encode` gives.
            documents: (m,) corpus positions.
        """

    @abstractmethod
    def held_out(self, student: Any, texts: list[str]) -> Any:
        """Held-out texts as `matrix` takes queries, for the monitor."""

    def lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores."""
        return self.scores(self.trained, encoded, batch.documents)

    def own_documents(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, batch) scores."""
        return self.matrix(encoded, np.maximum(batch.own, 0))

    def batch_documents(self, encoded: Any, batch: ListBatch, scores: Tensor) -> tuple[Tensor, np.ndarray]:
        """The texts' own documents."""
        return self.own_documents(encoded, batch), batch.own

    def keep_start(self, model: Any) -> None:
        """Keep the parameters as they are."""
        self._began = [parameter.detach().clone() for parameter in self.trained]

    def start_lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores by the parameters of the stage's start."""
        return self.scores(self._began, encoded, batch.documents)


@contextlib.contextmanager
def only_trained(model: Any, trained: Sequence[Any]) -> Iterator[None]:
    """Freeze all of a model but some parameters for a while; a later stage may train all of it.

    Args:
        model: A student.
        trained: Parameters that learn, used outside the model's forward pass.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    average_gradients(trained)  # the wrapped model's forward would do it
    yield
    model.requires_grad_(True)
    for parameter in frozen:
        parameter.requires_grad_(False)


def train_head(
    run: StageRun, scorer: HeadScorer, watch: Callable[[np.ndarray], dict[str, float]] | None = None
) -> History:
    """Train a student's head on both sides; all else is frozen meanwhile.

    Args:
        run: The stage.
        scorer: By the head.
        watch: What else is monitored, on some corpus positions.

    Raises:
        UserError: No list objective, or nothing to learn from.
    """
    model, texts = run.student.model, run.prepared.texts.texts.texts
    groups = require_lists(drawn_groups(run).of_texts(training_rows(run.prepared, run.stage)))
    with only_trained(model, scorer.trained):
        loss = DistillationLoss(model, run.prepared.terms, scorer, groups)
        columns = {"query": [texts[row] for row in groups.text_rows]}
        return fit(run, loss, columns, groups.text_rows, range(len(groups)), _monitor(run, scorer, watch))


def _monitor(
    run: StageRun, scorer: HeadScorer, watch: Callable[[np.ndarray], dict[str, float]] | None
) -> RankMonitor | None:
    """Agreement with the teacher over a sample of the corpus."""
    prepared, texts = run.prepared, run.prepared.texts.texts.texts
    if len(prepared.held_out) < 2:
        return None
    best = teacher_rows(prepared, _DEPTH)
    others = np.random.default_rng(run.data.seed).permutation(len(scorer.documents))[: max(0, _DOCUMENTS - best.size)]
    sample = np.unique(np.concatenate([best[best >= 0], others]))
    ranked = np.where(best >= 0, np.searchsorted(sample, np.maximum(best, 0)), -1)
    queries = scorer.held_out(run.student, [texts[row] for row in prepared.held_out])

    def scores() -> np.ndarray:
        with torch.no_grad():
            parts = [
                scorer.matrix(queries, sample[start : start + _BLOCK]).cpu().numpy()
                for start in range(0, len(sample), _BLOCK)
            ]
        return np.concatenate(parts, axis=1)

    counted = sample[np.linspace(0, len(sample) - 1, min(_COUNTED, len(sample)), dtype=int)]
    return RankMonitor(scores, ranked, None if watch is None else lambda: watch(counted))
