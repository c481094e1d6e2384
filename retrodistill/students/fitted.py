"""A token table fitted to vectors in closed form: the teacher is not asked for anything but what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.data.texts import Texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FITTED, _TRIED = 8192, 2048  # documents that are fitted to, and that penalties are tried on: work grows as their cube
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the mean of the kernel's diagonal


def fitted_rows(
    tokenizer: Tokenizer, corpus: Texts, vectors: np.ndarray, frequencies: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Token rows whose mean over a document comes closest to the document's vector: LEAF's loss, solved.

    Ridge regression in its dual form, ``X = D A' (A D A' + penalty I)^-1 V``, where A has a document's share of each
    token and D the squared weights: a rare token may move further from zero than a common one. The penalty is the one
    whose leave-one-out predictions ``v - (v - v^) / (1 - h)`` have the highest mean cosine with the vectors; no label
    and no query is looked at.

    Args:
        tokenizer: Of the table.
        corpus: The documents; 8,192 drawn ones where there are more, and 2,048 to choose the penalty.
        vectors: (documents, d) float32 of the corpus.
        frequencies: (vocabulary,) weights in 0..1, inverse document frequencies.
        seed: Of the drawing.

    Returns:
        (vocabulary, d) float32; zeros for tokens that no document has.
    """
    from scipy.linalg import solve

    places = np.random.default_rng(seed).permutation(len(corpus))[:_FITTED]
    texts = corpus.texts
    shares = _shares(tokenizer, [texts[place] for place in places])
    targets = vectors[places].astype(np.float64)
    weighted = shares.multiply(frequencies**2).tocsr()
    kernel = (weighted @ shares.T).toarray()
    scale = max(float(np.trace(kernel)) / len(kernel), 1e-12)
    values, directions = np.linalg.eigh(kernel[:_TRIED, :_TRIED])
    turned = directions.T @ targets[:_TRIED]
    best = max(_PENALTIES, key=lambda one: _left_out(values, directions, turned, targets[:_TRIED], one * scale))
    kernel[np.diag_indices_from(kernel)] += best * scale
    return np.asarray(weighted.T @ solve(kernel, targets, assume_a="pos", overwrite_a=True), dtype=np.float32)


def _left_out(
    values: np.ndarray, directions: np.ndarray, turned: np.ndarray, targets: np.ndarray, penalty: float
) -> float:
    """Mean cosine of each document's vector with its prediction by the others."""
    kept = values / (values + penalty)
    fitted, leverage = directions @ (kept[:, None] * turned), directions**2 @ kept
    predicted = targets - (targets - fitted) / (1 - leverage)[:, None]
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(targets, axis=1)
    return float(np.mean(np.sum(predicted * targets, axis=1) / np.where(lengths > 0, lengths, 1.0)))


def _shares(tokenizer: Tokenizer, texts: list[str]) -> Any:
    """(texts, vocabulary) sparse: what share of a text's tokens each token is, so that rows times it are their mean."""
    from scipy.sparse import csr_matrix

    ids = [np.asarray(one.ids, dtype=np.int64) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    sizes = np.array([len(one) for one in ids])
    values = np.repeat(1 / np.maximum(sizes, 1), sizes)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    joined = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
    found = csr_matrix((values, joined, bounds), shape=(len(texts), tokenizer.get_vocab_size()))
    found.sum_duplicates()
    return found
