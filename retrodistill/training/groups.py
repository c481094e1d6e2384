"""Groups: a few documents of a text's list, drawn before training, for stages in which documents take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives import usable_lists
from retrodistill.training.lists import Lists, sampled_groups
from retrodistill.training.settings import GroupSettings
from retrodistill.training.terms import Term, check_positives_known


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of documents with teacher scores.

    Attributes:
        rows: (g,) int64 rows of the texts; a text may have several groups.
        documents: (g, n) int32 corpus positions, -1 for padding.
        scores: (g, n) float32 teacher scores.
        positives: (g,) int64 place of the pseudo-query's own document, -1 for none.
        corpus: Lists over the whole corpus that they were drawn from; None where lists are shorter.
    """

    rows: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    corpus: Lists | None = None

    @classmethod
    def draw(cls, lists: Lists, settings: GroupSettings, seed: int) -> Groups:
        """Draw them from lists.

        Raises:
            UserError: As `sampled_groups`.
        """
        rows, documents, scores = sampled_groups(
            lists,
            settings.documents,
            settings.sampler,
            seed,
            settings.draws,
            depth=settings.depth,
            random=settings.random,
        )
        own = np.where(lists.positives[rows] == lists.hidden[rows], -1, lists.positives[rows])
        at = (documents == own[:, None]) & (documents >= 0)
        whole = lists if lists.documents is None else None
        return cls(rows, documents, scores, np.where(at.any(axis=1), at.argmax(axis=1), -1), whole)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mask(self) -> np.ndarray:
        """(g, n) bool, true where there is a document."""
        return self.documents >= 0

    @property
    def own(self) -> np.ndarray:
        """(g,) corpus position of the pseudo-query's own document, -1 for none."""
        documents = np.take_along_axis(self.documents, np.maximum(self.positives, 0)[:, None], axis=1)[:, 0]
        return np.where(self.positives >= 0, documents, -1)

    def of(self, rows: np.ndarray, times: int = 0) -> Groups:
        """The groups of some texts.

        Args:
            rows: Rows of texts; a row that stands there several times has its groups so often.
            times: Not more groups of a text than this, for monitors; 0 for all.
        """
        order = np.argsort(self.rows, kind="stable")
        first = np.searchsorted(self.rows[order], rows, side="left")
        last = np.searchsorted(self.rows[order], rows, side="right")
        last = np.minimum(last, first + times) if times else last
        spans = [order[start:stop] for start, stop in zip(first, last, strict=True)]
        kept = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return Groups(self.rows[kept], self.documents[kept], self.scores[kept], self.positives[kept], self.corpus)

    def across(self, rows: np.ndarray, documents: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The teacher on the texts of some groups with any documents.

        Args:
            rows: (batch,) groups.
            documents: (m,) corpus positions, -1 for padding.
            device: Where they are wanted.

        Returns:
            (batch, m) float32 scores and (batch, m) bool, false where a document is hidden from its text; None where
            the teacher did not score the whole corpus.
        """
        if self.corpus is None:
            return None
        texts = self.rows[rows]
        scores = np.asarray(self.corpus.scores[np.ix_(texts, np.maximum(documents, 0))], dtype=np.float32)
        counts = documents[None, :] != self.corpus.hidden[texts][:, None]
        return torch.from_numpy(scores).to(device), torch.from_numpy(counts).to(device)

    def check(self, terms: Sequence[Term]) -> None:
        """Refuse controls without a document that is known to be right.

        Raises:
            UserError: A term needs positives, and no group has one.
        """
        check_positives_known(terms, self.positives)

    def usable(self) -> dict[str, int]:
        """How many groups teach nothing, by reason, and under ``usable`` how many do teach."""
        usable, counts = usable_lists(torch.from_numpy(self.scores), torch.from_numpy(self.mask))
        return {"usable": int(usable.sum()), **counts}

    def tensors(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Mask (batch, n), positives (batch,) and teacher scores (batch, n) of some groups."""
        parts = (self.mask[rows], self.positives[rows], self.scores[rows].astype(np.float32))
        mask, positives, scores = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts)
        return mask, positives, scores


def require_groups(groups: Groups) -> Groups:
    """The groups, where there are any.

    Raises:
        UserError: There are none.
    """
    if not len(groups):
        raise UserError("no training text is left that the objective can learn from; mine deeper or add texts.")
    return groups
