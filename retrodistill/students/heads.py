"""Training of a head against stored hidden states: no transformer runs, and no vocabulary is walked through.

An inference-free sparse score is ``sum_t w_t log(1 + relu(max_i <d_t, h_i> + b_t))`` over the query's terms t and the
document's hidden states h_i: MaxSim (ColBERT, arXiv 2004.12832) with a vector for each term in place of the query's
token vectors. So sparse and multi-vector students train alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.distributed import average_gradients
from retrodistill.students.states import States
from retrodistill.training.group_stages import StageRun, draw_groups, fit
from retrodistill.training.groups import Groups, require_groups
from retrodistill.training.in_batch import across_of, in_batch_of
from retrodistill.training.monitors import RankMonitor
from retrodistill.training.prepared import teacher_rows, training_rows
from retrodistill.training.terms import Term, TermsLoss, lists_only
from retrodistill.training.trainer import History

_DEPTH = 10
_DOCUMENTS = 1000  # that held-out queries are ranked over, those that the teacher ranks highest among them
_COUNTED = 16  # documents whose terms are counted over the whole vocabulary
_BLOCK = 64


class HeadLoss(TermsLoss, ABC):
    """What both kinds share: one text column, whose label is the row of its group.

    Args:
        model: The student; all but its head is frozen by this.
        terms: List objectives.
        groups: Documents and teacher scores of each text.
        documents: Hidden states of the corpus.
        trained: Parameters that learn.

    Attributes:
        documents: Hidden states of the corpus.

    Raises:
        UserError: An embedding objective among the terms, one that lacks what it learns from, or no group that teaches
            anything.
    """

    def __init__(
        self, model: Any, terms: Sequence[Term], groups: Groups, documents: States, trained: Sequence[nn.Parameter]
    ) -> None:
        super().__init__()
        self.model = model
        self.terms = lists_only(terms)
        groups.check(terms)
        if any(term.reads_scores for term in terms):
            self._report(groups.usable())
        self.documents = documents
        self._groups = groups
        model.requires_grad_(False)
        self._trained = [parameter.requires_grad_(True) for parameter in trained]
        self._began: list[Tensor] | None = None
        if any(term.name == "lwf" for term in terms):
            self._began = [parameter.detach().clone() for parameter in trained]
        average_gradients(self._trained)  # used outside the wrapped model's forward, which would do it

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, and regularizers by name and side."""
        features = next(iter(sentence_features))
        rows = labels.cpu().numpy().astype(np.int64)
        queries = self.queries(features, rows)
        scores = self.lists(self._trained, queries, self._groups.documents[rows])
        mask, positives, targets = self._groups.tensors(rows, scores.device)
        began = in_batch = across = None
        if self._began is not None:
            with torch.no_grad():
                began = self.start_lists(self._began, queries, self._groups.documents[rows])
        if self.asks("own_scores") or self.asks("batch_scores"):
            own = self._groups.own[rows]
            matrix = self.matrix(queries, np.maximum(own, 0))
            in_batch = in_batch_of(matrix, own)
            if self.asks("batch_scores"):
                found = self._groups.across(rows, own, matrix.device)
                across = None if found is None else across_of(matrix, *found, own, own)
        parts = self.list_terms(scores, targets, mask, positives, start_scores=began, in_batch=in_batch, across=across)
        return parts | self.regularized(queries)

    @abstractmethod
    def queries(self, features: dict[str, Tensor], rows: np.ndarray) -> Any:
        """What a batch's queries are to `lists`."""

    @abstractmethod
    def lists(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """(batch, n) scores of each query with its own documents, by some parameters.

        Args:
            parameters: As those that learn.
            queries: As `queries` gives.
            documents: (batch, n) corpus positions, -1 for padding, whose score is 0.
        """

    def start_lists(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """As `lists`, by the parameters of the stage's start, for ``lwf``."""
        return self.lists(parameters, queries, documents)

    @abstractmethod
    def matrix(self, queries: Any, documents: np.ndarray) -> Tensor:
        """(queries, documents) scores of every query with every document, by the parameters that learn.

        Args:
            queries: As `queries` gives.
            documents: (m,) corpus positions.
        """

    @abstractmethod
    def held_out(self, student: Any, texts: list[str]) -> Any:
        """Held-out texts as `lists` takes queries, for the monitor."""

    def regularized(self, queries: Any) -> dict[str, Tensor]:
        """Regularizers by name and side; none by default."""
        return {}


def train_head(
    run: StageRun,
    make: Callable[[Groups], HeadLoss],
    watch: Callable[[HeadLoss, np.ndarray], dict[str, float]] | None = None,
) -> History:
    """Train a student's head on both sides; all else is frozen meanwhile.

    Args:
        run: The stage.
        make: The loss on some groups.
        watch: What else is monitored of the loss in training, on some corpus positions.

    Raises:
        UserError: No list objective, or nothing to learn from.
    """
    model, texts = run.student.model, run.prepared.texts.texts.texts
    groups = require_groups(draw_groups(run).of(training_rows(run.prepared, run.stage)))
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    loss = make(groups)
    columns = {"query": [texts[row] for row in groups.rows]}
    history = fit(run, loss, columns, groups.rows, range(len(groups)), _monitor(run, loss, watch))
    model.requires_grad_(True)  # a later stage may train all of it
    for parameter in frozen:
        parameter.requires_grad_(False)
    return history


def _monitor(
    run: StageRun, loss: HeadLoss, watch: Callable[[HeadLoss, np.ndarray], dict[str, float]] | None
) -> RankMonitor | None:
    """Agreement with the teacher over a sample of the corpus."""
    prepared, texts = run.prepared, run.prepared.texts.texts.texts
    if len(prepared.held_out) < 2:
        return None
    best = teacher_rows(prepared, _DEPTH)
    others = np.random.default_rng(run.data.seed).permutation(len(loss.documents))[: max(0, _DOCUMENTS - best.size)]
    sample = np.unique(np.concatenate([best[best >= 0], others]))
    ranked = np.where(best >= 0, np.searchsorted(sample, np.maximum(best, 0)), -1)
    queries = loss.held_out(run.student, [texts[row] for row in prepared.held_out])

    def scores() -> np.ndarray:
        with torch.no_grad():
            parts = [
                loss.matrix(queries, sample[start : start + _BLOCK]).cpu().numpy()
                for start in range(0, len(sample), _BLOCK)
            ]
        return np.concatenate(parts, axis=1)

    counted = sample[np.linspace(0, len(sample) - 1, min(_COUNTED, len(sample)), dtype=int)]
    return RankMonitor(scores, ranked, None if watch is None else lambda: watch(loss, counted))
