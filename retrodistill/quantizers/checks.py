"""What is asked of vectors and queries before anything is learned from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodistill.core.errors import UserError, sample_of


def checked(vectors: np.ndarray, what: str, names: Sequence[str] | None = None) -> np.ndarray:
    """The vectors as a contiguous (n, d) float32 table.

    Args:
        vectors: (n, d) numbers.
        what: Named in the errors: ``documents``, ``queries``.
        names: Their ids, for the errors; row numbers by default.

    Raises:
        UserError: No table, ids of another number, or values that are NaN or infinite.
    """
    table = np.ascontiguousarray(vectors, dtype=np.float32)
    if table.ndim != 2 or not table.shape[1]:
        raise UserError(f"{what}: an array of shape {table.shape}; vectors are a table (n, dimension).")
    if names is not None and len(names) != len(table):
        raise UserError(f"{len(names)} ids for {len(table)} {what}; give one id per vector.")
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        which = [names[int(row)] for row in bad] if names is not None else [f"row {row}" for row in bad]
        raise UserError(
            f"{what}: {len(bad)} vectors are NaN or infinite ({sample_of(which)}); embed them again or leave them out."
        )
    return table


def checked_pair(
    documents: np.ndarray, queries: np.ndarray, names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Documents and training queries, checked against each other.

    Raises:
        UserError: As `checked`; no or too few queries; two dimensions.
    """
    if not len(queries):
        raise UserError(
            "no training queries to learn from; give a log of queries, or take sentences and titles of the documents "
            "(retrodistill.training.texts.training_texts)."
        )
    stored, asked = checked(documents, "documents", names), checked(queries, "training queries")
    if stored.shape[1] != asked.shape[1]:
        raise UserError(
            f"documents of {stored.shape[1]} dimensions and queries of {asked.shape[1]}; embed both by one model."
        )
    if len(asked) < 2:
        raise UserError("1 training query; at least 2 are needed, one of them to decide when to stop.")
    return stored, asked


def checked_sources(sources: np.ndarray | None, queries: int, documents: int) -> np.ndarray:
    """(queries,) int64 own documents of pseudo-queries, -1 for real queries; all real by default.

    Raises:
        UserError: Another length, or places outside the corpus.
    """
    if sources is None:
        return np.full(queries, -1, dtype=np.int64)
    places = np.asarray(sources, dtype=np.int64)
    if places.shape != (queries,) or places.max(initial=-1) >= documents:
        raise UserError(
            f"sources of shape {places.shape}, up to {places.max(initial=-1)}, for {queries} queries and {documents} "
            "documents; give each query its own document's place, or -1."
        )
    return places
