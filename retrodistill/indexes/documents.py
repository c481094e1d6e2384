"""Adding and removing documents: the checks that every kind of index makes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import EmbeddingSpace

_UNIT = 1e-3  # by how much a unit vector's length may be off: float16 stores
_LARGEST = 1e15  # squared and summed over a thousand dimensions it is still far from float32's largest


def check_new(ids: Sequence[str], known: Sequence[str]) -> None:
    """Refuse ids that cannot be added.

    Raises:
        UserError: An id that is no string or empty, is in the index already, or stands twice.
    """
    _check_list(ids)
    strange = [one for one in ids if not isinstance(one, str)]
    if strange:
        raise UserError(f"document id {strange[0]!r} is {type(strange[0]).__name__}; ids are strings.")
    if any(not one.strip() for one in ids):
        raise UserError(f"document id {next(one for one in ids if not one.strip())!r} is empty; give each one a name.")
    there = set(known)
    twice = [one for one, times in Counter(ids).items() if one in there or times > 1]
    if twice:
        raise UserError(f"{sample_of(twice)}: in the index already, or twice; remove or rename them first.")


def to_remove(ids: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """(len(known),) bool, true where a document is to go.

    Raises:
        UserError: Ids that are not there.
    """
    _check_list(ids)
    wanted = set(ids)
    gone = np.fromiter((one in wanted for one in known), dtype=bool, count=len(known))
    if int(gone.sum()) != len(wanted):
        raise UserError(f"cannot remove {sample_of(sorted(wanted - set(known), key=str))}: not in the index.")
    return gone


def check_lengths(vectors: np.ndarray, ids: Sequence[str], *, unit: bool) -> None:
    """Refuse vectors that no query could tell from others: of no length, or of one that float32 products overflow.

    Args:
        vectors: (n, d) float32, finite.
        ids: Of their documents.
        unit: They are compared by cosine.

    Raises:
        UserError: Names the first few ids.
    """
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    zero = np.flatnonzero(largest == 0) if unit else np.zeros(0, dtype=np.int64)
    if len(zero):
        named = sample_of(ids[int(row)] for row in zero)
        raise UserError(
            f"documents: {len(zero)} vectors are zero ({named}), which have no cosine; embed these again or leave them "
            "out."
        )
    huge = np.flatnonzero(largest > _LARGEST)
    if len(huge):
        named = sample_of(ids[int(row)] for row in huge)
        raise UserError(
            f"documents: {len(huge)} vectors hold numbers beyond {_LARGEST:g} ({named}); embed these again or leave "
            "them out."
        )


def of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors from an API or a file may have any length; those that are of unit length stay as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    off = (np.abs(lengths - 1) > _UNIT) & (lengths > 0) & np.isfinite(lengths)
    return vectors / np.where(off, lengths, np.float32(1)) if off.any() else vectors


def _check_list(ids: Sequence[str]) -> None:
    if isinstance(ids, str):
        raise UserError(f"document ids are {ids!r}, one string; give a list of them, e.g. [{ids!r}].")


def encoder_of(space: EmbeddingSpace, kinds: Sequence[str]) -> Any:
    """The encoder that made a space's documents, by its name, for documents that are added as texts.

    Raises:
        UserError: It is not to be found, or is no longer the same.
    """
    found = load_encoder(space.documents_by, kinds)
    if found.document_space != space.fingerprint:
        raise UserError(
            f"{found.name} is no longer the model that made the documents ({'; '.join(space.differences(found))}); add "
            "vectors of the index' space instead."
        )
    return found
