"""Which tokens texts have, as a sparse student's documents read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from retrodistill.encoders.sparse import SparseTextEncoder

_BLOCK = 256


def counted(features: Mapping[str, Tensor], dimension: int) -> Tensor:
    """(batch, vocabulary) float32: how often each token stands in each text of a batch.

    Args:
        features: With (batch, tokens) ``input_ids`` and ``attention_mask``.
        dimension: Size of the vocabulary.
    """
    ids, mask = features["input_ids"], features["attention_mask"]
    return torch.zeros((len(ids), dimension), device=ids.device).scatter_add_(1, ids, mask.float())


def token_ids(student: SparseTextEncoder, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) int64 ids, one text after the other, and (texts,) int64: how many each has."""
    prompt = student.prompt("document") or None
    ids, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(texts), _BLOCK):
        features = student.model.preprocess(list(texts[start : start + _BLOCK]), prompt=prompt, task="document")
        mask = features["attention_mask"].bool()
        ids.append(features["input_ids"][mask].numpy())
        lengths.append(mask.sum(dim=1).numpy())
    return np.concatenate(ids), np.concatenate(lengths)


def token_counts(student: SparseTextEncoder, texts: Sequence[str]) -> tuple[csr_array, np.ndarray]:
    """How often each token stands in each text, and how many tokens the text has.

    Returns:
        (texts, vocabulary) float32 and (texts,) int64.
    """
    ids, lengths = token_ids(student, texts)
    rows = np.repeat(np.arange(len(texts)), lengths)
    counts = csr_array((np.ones(len(ids), dtype=np.float32), (rows, ids)), shape=(len(texts), student.dimension))
    counts.sum_duplicates()
    return counts, lengths
