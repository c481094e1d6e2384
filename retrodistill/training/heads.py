"""Losses that train a head against stored hidden states: no transformer runs, and no vocabulary is walked through.

An inference-free sparse score is ``sum_t w_t log(1 + relu(max_i <d_t, h_i> + b_t))`` over the query's terms t and the
document's hidden states h_i: MaxSim (ColBERT, arXiv 2004.12832) with a vector for each term in place of the query's
token vectors. So both kinds train alike, and a step of a sparse student touches the terms of its queries only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill import objectives as pure
from retrodistill.core.distributed import average_gradients, processes
from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.heads import clusters_of, head_of, query_weights_of
from retrodistill.students.states import States, segment_max
from retrodistill.students.term_head import TermHead
from retrodistill.training.groups import Groups
from retrodistill.training.in_batch import across_of, in_batch_of
from retrodistill.training.regularizers import Regularizer, regularized
from retrodistill.training.terms import Term, TermsLoss, lists_only

_REGULARIZED = 32  # documents drawn for each step, whose weights of the batch's terms the regularizers see


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

    def alive(self, documents: np.ndarray) -> tuple[list[int], int]:
        """How many terms each of some documents has, and how many there are: none where there is no vocabulary."""
        return [], 0

    def regularized(self, queries: Any) -> dict[str, Tensor]:
        """Regularizers by name and side; none by default."""
        return {}


class TermHeadLoss(HeadLoss):
    """Of inference-free sparse students: a vector and a bias for each term, and the terms' weights in queries.

    Args:
        student: The student.
        terms: List objectives.
        groups: Documents and teacher scores of each text.
        documents: Hidden states of the corpus.
        regularizers: Of term weights. They see the terms of the batch's queries in documents drawn from the corpus:
            other terms have no gradient in this step, and FLOPS is a sum over terms.
        seed: Of the drawing.
        texts: The corpus, which a student with lexical terms counts.

    Raises:
        UserError: As `HeadLoss`; or the student's queries, head or pooling are others.
    """

    def __init__(
        self,
        student: SparseTextEncoder,
        terms: Sequence[Term],
        groups: Groups,
        documents: States,
        regularizers: Sequence[Regularizer] = (),
        seed: int = 0,
        texts: Sequence[str] = (),
    ) -> None:
        self._head = TermHead(student, documents, texts)
        weights = query_weights_of(student)
        if student.similarity != "dot":
            raise UserError("train: head trains sparse students of the dot product; this one uses the cosine.")
        super().__init__(student.model, terms, groups, documents, [weights, *self._head.parameters])
        self._regularizers = list(regularizers)
        self._seed = seed

    def queries(self, features: dict[str, Tensor], rows: np.ndarray) -> list[Tensor]:
        """The distinct terms of each text."""
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        return [torch.unique(ids[row][mask[row]]) for row in range(len(ids))]

    def lists(self, parameters: Sequence[Tensor], queries: list[Tensor], documents: np.ndarray) -> Tensor:
        """(batch, n) scores."""
        used = torch.unique(torch.cat(queries))
        weights, *head = (parameter[used] for parameter in parameters)  # once: else each query costs a table
        scores = []
        for terms, row in zip(queries, documents, strict=True):
            places, there = torch.searchsorted(used, terms), np.flatnonzero(row >= 0)
            alive = self._head.weights([part[places] for part in head], terms, row[there])
            full = alive.new_zeros(len(row))
            scores.append(full.index_put((torch.from_numpy(there).to(full.device),), alive @ weights[places]))
        return torch.stack(scores)

    def matrix(self, queries: list[Tensor], documents: np.ndarray) -> Tensor:
        """(queries, documents) scores."""
        used = torch.unique(torch.cat(queries))
        weights, *head = (parameter[used] for parameter in self._trained)
        asked = torch.stack([torch.isin(used, terms) for terms in queries]) * weights
        return asked @ self._head.weights(head, used, documents).T

    def alive(self, documents: np.ndarray) -> tuple[list[int], int]:
        """How many terms each of some documents has, and how many there are."""
        weights, *head = self._trained
        every = torch.arange(len(weights), device=weights.device)
        with torch.no_grad():
            counts = [
                int((self._head.weights(head, every, documents[one : one + 1]) > 0).sum())
                for one in range(len(documents))
            ]
        return counts, len(weights)

    def regularized(self, queries: list[Tensor]) -> dict[str, Tensor]:
        """Regularizers of the batch's terms in documents drawn for this step."""
        if not self._regularizers:
            return {}
        used = _of_all_processes(torch.unique(torch.cat(queries)), len(self._trained[0]))
        weights, *head = (parameter[used] for parameter in self._trained)
        generator = np.random.default_rng([self._seed, round(1e6 * (self.progress or 0.0))])
        size = min(_REGULARIZED, len(self.documents))
        drawn = np.sort(generator.choice(len(self.documents), size, replace=False))
        alive = self._head.weights(head, used, drawn)
        asked = torch.stack([torch.isin(used, terms) for terms in queries]) * weights
        return regularized(self._regularizers, pure.whole_batch(asked), alive, self.progress)


class TokenHeadLoss(HeadLoss):
    """Of multi-vector students: the projection of token states, on both sides; clusters behind it as in the student.

    Args:
        student: The student.
        terms: List objectives.
        groups: Documents and teacher scores of each text.
        documents: Hidden states of the corpus.
        queries: Hidden states of the training texts, in their order.

    Raises:
        UserError: As `HeadLoss`; or the student has no projection, or pools its tokens by more than clusters.
    """

    def __init__(
        self, student: MultiVectorModel, terms: Sequence[Term], groups: Groups, documents: States, queries: States
    ) -> None:
        linear = head_of(student).linear
        trained = [linear.weight, *([linear.bias] if linear.bias is not None else [])]
        super().__init__(student.model, terms, groups, documents, trained)
        self._states = queries
        self._unit = any(type(part).__name__ == "Normalize" for part in student.modules("document"))
        self._clusters = clusters_of(student)

    def queries(self, features: dict[str, Tensor], rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Hidden states of the batch's texts, one after the other, and how many each has."""
        return self._states.gather(self._groups.rows[rows], features["input_ids"].device)

    def lists(self, parameters: Sequence[Tensor], queries: tuple[Tensor, Tensor], documents: np.ndarray) -> Tensor:
        """(batch, n) mean MaxSim."""
        needed, places = np.unique(np.maximum(documents, 0), return_inverse=True)
        flat, lengths = self.vectors(parameters, self.documents.gather(needed, queries[0].device), "document")
        tokens = flat.split(lengths.tolist())
        scores = []
        asking = zip(self._asking(parameters, queries), places.reshape(documents.shape), documents >= 0, strict=True)
        for query, row, there in asking:
            own = [tokens[place] for place in row]
            counts = lengths[torch.from_numpy(row).to(lengths.device)]
            best = segment_max(torch.cat(own) @ query.T, counts)
            scores.append(best.mean(dim=1) * torch.from_numpy(there).to(best.device))
        return torch.stack(scores)

    def matrix(self, queries: tuple[Tensor, Tensor], documents: np.ndarray) -> Tensor:
        """(queries, documents) mean MaxSim."""
        states = self.documents.gather(documents, queries[0].device)
        tokens, lengths = self.vectors(self._trained, states, "document")
        asking = self._asking(self._trained, queries)
        return torch.stack([segment_max(tokens @ query.T, lengths).mean(dim=1) for query in asking])

    def start_lists(
        self, parameters: Sequence[Tensor], queries: tuple[Tensor, Tensor], documents: np.ndarray
    ) -> Tensor:
        """As `lists`, without clusters: the unclustered student of the stage's start teaches the clustered one."""
        clusters, self._clusters = self._clusters, None
        try:
            return self.lists(parameters, queries, documents)
        finally:
            self._clusters = clusters

    def vectors(self, parameters: Sequence[Tensor], states: tuple[Tensor, Tensor], role: Role) -> tuple[Tensor, Tensor]:
        """The vectors that texts are compared by: projected, and of clusters their means.

        Args:
            parameters: Of the projection.
            states: (sum of lengths, d) hidden states, one text after the other, and (texts,) int64 lengths.
            role: Of the texts.

        Returns:
            (sum of counts, dimension) and (texts,) int64 counts.
        """
        projected, lengths = self.project(parameters, states[0]), states[1]
        if self._clusters is None:
            return projected, lengths
        return self._clusters.cluster_flat(projected, lengths, role)

    def _asking(self, parameters: Sequence[Tensor], queries: tuple[Tensor, Tensor]) -> list[Tensor]:
        flat, lengths = self.vectors(parameters, queries, "query")
        return list(flat.split(lengths.tolist()))

    def project(self, parameters: Sequence[Tensor], states: Tensor) -> Tensor:
        """(tokens, dimension) token vectors of hidden states."""
        projected = nn.functional.linear(states, *parameters)
        return nn.functional.normalize(projected, dim=1) if self._unit else projected


def _of_all_processes(terms: Tensor, vocabulary: int) -> Tensor:
    """Terms that a text of any process has, so that FLOPS does not depend on how many there are."""
    if processes() == 1:
        return terms
    flags = torch.zeros(vocabulary, dtype=torch.int32, device=terms.device).index_fill(0, terms, 1)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags.nonzero()[:, 0]
