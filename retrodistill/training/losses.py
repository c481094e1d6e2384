"""The thin modules between the terms of a stage and the sentence-transformers trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.objectives import usable_lists, whole_batch
from retrodistill.objectives.pairwise import check_width
from retrodistill.training.groups import Groups
from retrodistill.training.in_batch import Across, InBatch, across_corpus, across_of, in_batch_of
from retrodistill.training.lists import Lists
from retrodistill.training.scorers import Scorer, VectorScorer
from retrodistill.training.terms import (
    ListView,
    Term,
    TermsLoss,
    check_positives_known,
    list_view,
    lists_only,
    unusable_counts,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_OF_LISTS = {"scores", "targets", "labels", "mask", "positives"}
# (queries, documents, share of the steps done) -> weighted terms by name, of (texts, terms) weights of all processes
Regularize = Callable[[Tensor, Tensor, float | None], dict[str, Tensor]]


class OwnTokens(NamedTuple):
    """Objectives on scores of which one side is its own tokens, each of weight 1 (the semi-parametric half of VDR).

    Attributes:
        weight: Of the mean over the two sides.
        bag: (batch, vocabulary) bool of a column's features: the tokens that each text has.
    """

    weight: float
    bag: Callable[[dict[str, Tensor]], Tensor]


class StoredTargetsLoss(TermsLoss):
    """Trains the query tower alone, against what is stored: embeddings of the same texts, or documents' vectors.

    The trainer's label is the row of the text. Nothing but the text is encoded, so a list may be the whole corpus.

    Args:
        model: The student.
        terms: Objectives; their weighted sum is the loss.
        embeddings: (texts, d) teacher embeddings, for embedding objectives.
        documents: (corpus, d) document vectors, for list objectives.
        lists: Candidates and teacher scores, for list objectives.
        alone: False for one of several under a wrapper: another of them tells which lists teach nothing, and the
            wrapper gives the student of the stage's start.

    Raises:
        UserError: An objective lacks what it learns from, or no list teaches anything.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Sequence[Term],
        *,
        embeddings: np.ndarray | None = None,
        documents: np.ndarray | None = None,
        lists: Lists | None = None,
        alone: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.terms = list(terms)
        self._cosine = str(model.similarity_fn_name) == "cosine"
        self._embeddings, self._documents, self._lists = embeddings, documents, lists
        self._corpus: Tensor | None = None
        for term in terms:
            if term.sees_lists and (lists is None or documents is None):
                raise UserError(f"objective {term.name!r} needs candidates with teacher scores and stored documents.")
            if not term.sees_lists and embeddings is None:
                raise UserError(f"objective {term.name!r} needs a dense teacher, whose embeddings it aligns to.")
            if term.objective.has_pairs and lists is not None:
                check_width(lists.scores.shape[1])
            if term.objective.dot_only and self._cosine:
                raise UserError(
                    f"objective {term.name!r} shapes lengths, and a cosine student has none; take cosine or leaf."
                )
        if lists is not None:
            check_positives_known(terms, lists.positives)
        if alone and lists is not None and any(term.reads_scores for term in terms):
            self._report(unusable_counts(lists))
        if alone:
            self._keep_start(model)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Encode the one text column and add up the terms."""
        columns = list(sentence_features)
        start = self._start_encoded(columns, VectorScorer(self._cosine))
        return self.compute_loss_from_embeddings(
            [self.model(features)["sentence_embedding"] for features in columns], labels, start
        )

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor, start_embeddings: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms by name; the trainer sums and logs them.

        Args:
            embeddings: One tensor (batch, d): the texts by the student.
            labels: (batch,) integer rows of the texts.
            start_embeddings: The same by the student of the stage's start, for ``lwf``.
        """
        queries, rows = _unit(embeddings[0], self._cosine), labels.cpu().numpy().astype(np.int64)
        parts: dict[str, Tensor] = {}
        if any(term.sees_lists for term in self.terms):
            if self._lists is None:
                raise UserError("list objectives need lists and documents.")
            view = list_view(self._lists, rows, queries.device)
            start = None
            if start_embeddings is not None:
                start = self._score(_unit(start_embeddings[0], self._cosine), view)
            scores, across = self._score(queries, view), None
            if self.asks("batch_scores") and self._lists.documents is None:
                across = across_corpus(scores, view.targets, view.mask, self._lists.positives[rows])
            parts = self.list_terms(
                scores,
                view.targets,
                view.mask,
                view.positives,
                start_scores=start,
                in_batch=self._in_batch(queries, rows),
                across=across,
            )
        for term in self.terms:
            if not term.sees_lists:
                stored: np.ndarray = self._embeddings[rows]  # type: ignore[index]
                temperature = term.student_temperature
                value = term.value(
                    {"student": queries, "teacher": _tensor(stored, queries), "student_temperature": temperature}
                )
                parts[term.name] = parts.get(term.name, 0.0) + term.weight * value
        return parts

    def _score(self, queries: Tensor, view: ListView) -> Tensor:
        """(batch, n) student scores of the lists."""
        if self._lists is None or self._documents is None:
            raise UserError("list objectives need lists and documents.")
        if self._lists.documents is None:
            if self._corpus is None:
                self._corpus = _tensor(self._documents, queries)
            return queries @ self._corpus.T
        vectors = _tensor(self._documents[np.maximum(view.candidates, 0)], queries)
        return torch.einsum("bd,bnd->bn", queries, vectors)

    def _in_batch(self, queries: Tensor, rows: np.ndarray) -> InBatch | None:
        if self._lists is None or self._documents is None or not self.asks("own_scores"):
            return None
        own = self._lists.positives[rows]
        return in_batch_of(queries @ _tensor(self._documents[np.maximum(own, 0)], queries).T, own)


class GroupsLoss(TermsLoss):
    """Trains both encoders of any kind of student: columns query, document_1..n, and the row of the group as label.

    Args:
        model: The student, which encodes both sides.
        terms: List objectives.
        scores: (groups, n) float32 teacher scores.
        mask: (groups, n) bool, true where there is a document.
        positives: (groups,) place of the pseudo-query's own document, -1 for none.
        documents: (groups, n) corpus positions, by which ``in-batch`` knows documents that two groups share.
        scorer: Of the kind of student; inner products by default.
        corpus: The groups, with the lists over the corpus that they were drawn from, for ``in-batch-margin-mse``.
        regularize: Terms on the weights that a sparse student gives.
        own_tokens: Objectives on scores of which one side needs no model.
        start: The model that ``lwf`` compares with; the model as it is by default.
        alone: As of `StoredTargetsLoss`.

    Raises:
        UserError: An embedding objective among the terms, one that lacks what it learns from, or no group that teaches
            anything.
    """

    def __init__(  # noqa: PLR0913 - what groups are made of
        self,
        model: Any,
        terms: Sequence[Term],
        scores: np.ndarray,
        mask: np.ndarray,
        positives: np.ndarray,
        documents: np.ndarray | None = None,
        *,
        scorer: Scorer | None = None,
        corpus: Groups | None = None,
        regularize: Regularize | None = None,
        own_tokens: OwnTokens | None = None,
        start: Any = None,
        alone: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.scorer = scorer or VectorScorer(str(model.similarity_fn_name) == "cosine")
        self._own_tokens, self._regularize = own_tokens, regularize
        self.terms = lists_only(terms)
        across = next((term.name for term in terms if term.objective.needs("own_scores", "batch_scores")), None)
        if across and not self.scorer.has_vectors:
            raise UserError(f"objective {across!r} needs vectors, and a cross-encoder has none; take contrastive.")
        check_positives_known(terms, positives)
        self._scores, self._mask, self._positives = scores, mask, positives
        self._own: np.ndarray | None = None
        self._documents, self._corpus = documents, corpus
        if documents is not None:
            own = np.take_along_axis(documents, np.maximum(positives, 0)[:, None], axis=1)[:, 0]
            self._own = np.where(positives >= 0, own, -1)
        elif across:
            raise UserError(f"objective {across!r} needs the groups' corpus positions, to know who shares a document.")
        if alone and any(term.reads_scores for term in terms):
            usable, counts = usable_lists(torch.from_numpy(scores), torch.from_numpy(mask))
            self._report({"usable": int(usable.sum()), **counts})
        if alone:
            self._keep_start(model if start is None else start)

    def forward(
        self, sentence_features: Iterable[Any], labels: Tensor, prompt: str | None = None, task: str | None = None
    ) -> dict[str, Tensor]:
        """Encode all columns and add up the terms.

        Args:
            sentence_features: Of each column; of a cross-encoder its texts.
            labels: (batch,) integer rows of the groups.
            prompt: What the trainer of cross-encoders hands over; the model's own is read from it.
            task: As `prompt`.
        """
        columns = list(sentence_features)
        start = self._start_encoded(columns, self.scorer)
        bags = None
        if self._own_tokens is not None:
            bags = [self._own_tokens.bag(features) for features in columns]
        encoded = self.scorer.encode(self.model, columns)
        parts = self.compute_loss_from_embeddings(encoded, labels, start)
        if self._own_tokens is None or bags is None:
            return parts
        return parts | self._own_terms(encoded, bags, labels, self._own_tokens.weight)

    def _own_terms(self, encoded: list[Tensor], bags: list[Tensor], labels: Tensor, weight: float) -> dict[str, Tensor]:
        """The list terms where one side is its own tokens, each of weight 1, by name and side."""
        (query, *documents), (bag, *others) = encoded, [own.float() for own in bags]
        sides = {"query": [bag, *documents], "document": [query, *others]}
        parts: dict[str, Tensor] = {}
        for side, columns in sides.items():
            scores = self.scorer.lists(columns)
            mask, positives, targets = self._of_rows(labels, scores)
            inputs = {"scores": scores, "targets": targets, "labels": targets, "mask": mask, "positives": positives}
            for term in self.terms:
                if set(term.objective.takes) <= _OF_LISTS:
                    key = f"{term.name}@own-{side}"
                    value = weight / 2 * term.weight * term.value(inputs)
                    parts[key] = parts[key] + value if key in parts else value
        return parts

    def _of_rows(self, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mask (batch, n), positives (batch,) and teacher scores (batch, n) of some groups."""
        rows = labels.cpu().numpy().astype(np.int64)
        mask = torch.from_numpy(self._mask[rows]).to(scores.device)
        positives = torch.from_numpy(self._positives[rows]).to(scores.device)
        return mask, positives, _tensor(self._scores[rows], scores)

    def compute_loss_from_embeddings(
        self, embeddings: list[Any], labels: Tensor, start_embeddings: list[Any] | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms by name, and regularizers by name and side.

        Args:
            embeddings: What the scorer encodes the columns to; of single vectors n + 1 tensors (batch, d): the queries,
                then the documents of each place.
            labels: (batch,) integer rows of the groups.
            start_embeddings: The same by the student of the stage's start, for ``lwf``.
        """
        scores = self.scorer.lists(embeddings)
        rows = labels.cpu().numpy().astype(np.int64)
        mask, positives, targets = self._of_rows(labels, scores)
        start = None if start_embeddings is None else self.scorer.lists(start_embeddings)
        in_batch = None
        if self._own is not None and self.asks("own_scores"):
            in_batch = in_batch_of(self.scorer.across(embeddings, positives.clamp(min=0)), self._own[rows])
        across = self._across(embeddings, rows) if self.asks("batch_scores") else None
        parts = self.list_terms(scores, targets, mask, positives, start_scores=start, in_batch=in_batch, across=across)
        if self._regularize is not None:
            queries, *sides = (side.float() for side in embeddings)
            documents, there = torch.cat(sides), mask.T.reshape(-1)  # a masked place holds the empty text
            documents = whole_batch(documents)[whole_batch(there[:, None].float())[:, 0] > 0]
            parts |= self._regularize(whole_batch(queries), documents, self.progress)
        return parts

    def _across(self, embeddings: list[Any], rows: np.ndarray) -> Across | None:
        """Each query with all documents of the batch; None where the teacher's scores of them are not known."""
        if self._corpus is None or self._documents is None or self._own is None:
            return None
        columns = self._documents.shape[1]
        places = torch.arange(columns)[:, None].expand(columns, len(rows))
        scores = torch.cat([self.scorer.across(embeddings, column) for column in places], dim=1)
        documents = self._documents[rows].T.reshape(-1)
        found = self._corpus.across(rows, documents, scores.device)
        return None if found is None else across_of(scores, *found, documents, self._own[rows])


def _unit(embeddings: Tensor, cosine: bool) -> Tensor:
    """float32, of length 1 for cosine students, whether or not their last module normalizes."""
    return nn.functional.normalize(embeddings.float(), dim=1) if cosine else embeddings.float()


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(like.device)
