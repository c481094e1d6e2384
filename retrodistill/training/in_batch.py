"""The texts of a batch with each other's documents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class InBatch(NamedTuple):
    """Each text with every text's own document.

    Attributes:
        scores: (batch, batch) student scores of text i with the own document of text j.
        same: (batch, batch) bool, true where texts i and j share it.
        known: (batch,) bool, true where a text has one.
    """

    scores: Tensor
    same: Tensor
    known: Tensor


class Across(NamedTuple):
    """Each text with the batch's documents, as its teacher scores them.

    Attributes:
        scores: (batch, m) student scores.
        targets: (batch, m) teacher scores.
        mask: (batch, m) bool, true where a document counts: of a text's own, once.
        positives: (batch,) int64 place of a text's own document, -1 for none.
    """

    scores: Tensor
    targets: Tensor
    mask: Tensor
    positives: Tensor


def in_batch_of(scores: Tensor, own: np.ndarray) -> InBatch:
    """(batch, batch) scores with who shares a document; `own` (batch,) are corpus positions, -1 for none."""
    positions = torch.from_numpy(np.asarray(own, dtype=np.int64)).to(scores.device)
    return InBatch(scores, positions[:, None] == positions[None, :], positions >= 0)


def across_of(scores: Tensor, targets: Tensor, mask: Tensor, documents: np.ndarray, own: np.ndarray) -> Across:
    """The batch's documents as lists in which each text's own document is known.

    Args:
        scores: (batch, m) student scores.
        targets: (batch, m) teacher scores.
        mask: (batch, m) bool, true where a document counts.
        documents: (m,) corpus positions, -1 for padding.
        own: (batch,) corpus positions of the texts' own documents, -1 for none.
    """
    at = (documents[None, :] == own[:, None]) & (own >= 0)[:, None]
    places = np.where(at.any(axis=1), at.argmax(axis=1), -1)
    again = at & (np.arange(len(documents))[None, :] != places[:, None])
    device = scores.device
    kept = mask & torch.from_numpy(~again & (documents >= 0)[None, :]).to(device)
    return Across(scores, targets, kept, torch.from_numpy(places).to(device))


def across_corpus(scores: Tensor, targets: Tensor, mask: Tensor, own: np.ndarray) -> Across:
    """The batch's own documents out of lists over the corpus.

    Args:
        scores: (batch, corpus) student scores.
        targets: (batch, corpus) teacher scores.
        mask: (batch, corpus) bool, true where a document counts.
        own: (batch,) corpus positions of the texts' own documents, -1 for none.
    """
    places = torch.from_numpy(np.maximum(own, 0)).to(scores.device)
    return across_of(scores[:, places], targets[:, places], mask[:, places], own, own)
