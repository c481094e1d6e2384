"""The thin modules between the pure objectives and the sentence-transformers trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.errors import UserError, unknown
from retrodistill.objectives.distributions import contrastive, kl_divergence
from retrodistill.objectives.embeddings import leaf
from retrodistill.objectives.margins import margin_mse
from retrodistill.objectives.registry import LIST_OBJECTIVES, OBJECTIVES
from retrodistill.training.lists import Lists

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Term:
    """One weighted objective with its temperatures settled.

    Attributes:
        name: Its name in the registry.
        weight: Its weight in the sum.
        student_temperature: Student scores are divided by it.
        teacher_temperature: Teacher scores are divided by it.
    """

    name: str
    weight: float = 1.0
    student_temperature: float = 0.05
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown("objective", self.name, OBJECTIVES)

    @property
    def sees_lists(self) -> bool:
        """Whether it needs candidates; the others need the teacher's embeddings."""
        return self.name in LIST_OBJECTIVES

    def on_lists(self, scores: Tensor, targets: Tensor, mask: Tensor, positives: Tensor) -> Tensor:
        """The term of (batch, n) lists, unweighted; `positives` (batch,) are places, -1 for none."""
        if self.name == "contrastive":
            return contrastive(scores, positives, mask, student_temperature=self.student_temperature)
        return _LISTS[self.name](scores / self.student_temperature, targets / self.teacher_temperature, mask)


_LISTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl_divergence,
    "margin-mse": margin_mse,
    "margin-mse-all": lambda scores, targets, mask: margin_mse(scores, targets, mask, pairs="all"),
}


class ListView(NamedTuple):
    """Lists of a batch.

    Attributes:
        candidates: (batch, n) or (1, n) corpus positions, -1 for padding.
        targets: (batch, n) teacher scores.
        mask: (batch, n) bool, true where there is a candidate that counts.
        positives: (batch,) place of the pseudo-query's own document, -1 for none.
    """

    candidates: np.ndarray
    targets: Tensor
    mask: Tensor
    positives: Tensor


def list_view(lists: Lists, rows: np.ndarray, device: torch.device) -> ListView:
    """The lists of some texts, on a device; `rows` (batch,) are the texts' rows."""
    targets = torch.from_numpy(np.ascontiguousarray(lists.scores[rows], dtype=np.float32)).to(device)
    everything = np.arange(lists.scores.shape[1])[None, :]
    candidates = everything if lists.documents is None else lists.documents[rows]
    mask = (candidates >= 0) & (candidates != lists.hidden[rows][:, None])
    at = (candidates == lists.positives[rows][:, None]) & mask & (lists.positives[rows] >= 0)[:, None]
    places = np.where(at.any(axis=1), at.argmax(axis=1), -1)
    return ListView(candidates, targets, torch.from_numpy(mask).to(device), torch.from_numpy(places).to(device))


class TermsLoss(nn.Module):
    """A loss of weighted terms, as the model card of sentence-transformers tells it."""

    terms: list[Term]

    def get_config_dict(self) -> dict[str, Any]:
        """The terms with their weights and temperatures."""
        return {"terms": [vars(term) for term in self.terms]}


class StoredTargetsLoss(TermsLoss):
    """Trains the query tower alone, against what is stored: embeddings of the same texts, or documents' vectors.

    The trainer's label is the row of the text. Nothing but the text is encoded, so a list may be the whole corpus.

    Args:
        model: The student.
        terms: Objectives; their weighted sum is the loss.
        embeddings: (texts, d) teacher embeddings, for embedding objectives.
        documents: (corpus, d) document vectors, for list objectives.
        lists: Candidates and teacher scores, for list objectives.

    Raises:
        UserError: An objective lacks what it learns from.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Sequence[Term],
        *,
        embeddings: np.ndarray | None = None,
        documents: np.ndarray | None = None,
        lists: Lists | None = None,
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

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Encode the one text column and add up the terms."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name; the trainer sums and logs them.

        Args:
            embeddings: One tensor (batch, d): the texts by the student.
            labels: (batch,) integer rows of the texts.
        """
        queries, rows = _unit(embeddings[0], self._cosine), labels.cpu().numpy().astype(np.int64)
        parts: dict[str, Tensor] = {}
        if any(term.sees_lists for term in self.terms):
            scores, view = self._score(queries, rows)
        for term in self.terms:
            value = (
                term.on_lists(scores, view.targets, view.mask, view.positives)
                if term.sees_lists
                else leaf(queries, _tensor(self._embeddings[rows], queries))  # type: ignore[index]
            )
            parts[term.name] = term.weight * value
        return parts

    def _score(self, queries: Tensor, rows: np.ndarray) -> tuple[Tensor, ListView]:
        """Student scores (batch, n) and the lists they belong to."""
        if self._lists is None or self._documents is None:
            raise UserError("list objectives need lists and documents.")
        view = list_view(self._lists, rows, queries.device)
        if self._lists.documents is None:
            if self._corpus is None:
                self._corpus = _tensor(self._documents, queries)
            return queries @ self._corpus.T, view
        vectors = _tensor(self._documents[np.maximum(view.candidates, 0)], queries)
        return torch.einsum("bd,bnd->bn", queries, vectors), view


class GroupsLoss(TermsLoss):
    """Trains both towers: columns query, document_1..n, and the row of the group as label.

    Args:
        model: The student, which encodes both sides.
        terms: List objectives.
        scores: (groups, n) float32 teacher scores.
        mask: (groups, n) bool, true where there is a document.
        positives: (groups,) place of the pseudo-query's own document, -1 for none.

    Raises:
        UserError: An embedding objective among the terms.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Sequence[Term],
        scores: np.ndarray,
        mask: np.ndarray,
        positives: np.ndarray,
    ) -> None:
        super().__init__()
        self.model = model
        self.terms = lists_only(terms)
        self._cosine = str(model.similarity_fn_name) == "cosine"
        self._scores, self._mask, self._positives = scores, mask, positives

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Encode all columns and add up the terms."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name.

        Args:
            embeddings: n + 1 tensors (batch, d): the queries, then the documents of each place.
            labels: (batch,) integer rows of the groups.
        """
        sides = [_unit(side, self._cosine) for side in embeddings]
        queries, rows = sides[0], labels.cpu().numpy().astype(np.int64)
        scores = torch.einsum("bd,bnd->bn", queries, torch.stack(sides[1:], dim=1))
        mask = torch.from_numpy(self._mask[rows]).to(scores.device)
        positives = torch.from_numpy(self._positives[rows]).to(scores.device)
        targets = _tensor(self._scores[rows], scores)
        return {term.name: term.weight * term.on_lists(scores, targets, mask, positives) for term in self.terms}


def lists_only(terms: Sequence[Term]) -> list[Term]:
    """The terms, where all of them see lists.

    Raises:
        UserError: One aligns single texts.
    """
    for term in terms:
        if not term.sees_lists:
            raise UserError(f"objective {term.name!r} aligns single texts; use it in a stage with towers: query.")
    return list(terms)


def _unit(embeddings: Tensor, cosine: bool) -> Tensor:
    """float32, of length 1 for cosine students, whether or not their last module normalises."""
    return nn.functional.normalize(embeddings.float(), dim=1) if cosine else embeddings.float()


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(like.device)
