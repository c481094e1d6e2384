"""Adding and removing documents: the checks that every kind of index makes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from retrodistill.errors import UserError, sample_of
from retrodistill.models.contract import Space, TextModel


def check_new(ids: Sequence[str], known: Sequence[str]) -> None:
    """Refuse ids that cannot be added.

    Raises:
        UserError: An id that is no string, is in the index already, or stands twice.
    """
    strange = [one for one in ids if not isinstance(one, str)]
    if strange:
        raise UserError(f"document id {strange[0]!r} is {type(strange[0]).__name__}; ids are strings.")
    there = set(known)
    twice = [one for one, times in Counter(ids).items() if one in there or times > 1]
    if twice:
        raise UserError(f"{sample_of(twice)}: in the index already, or twice; remove or rename them first.")


def to_remove(ids: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """(len(known),) bool, true where a document is to go.

    Raises:
        UserError: Ids that are not there.
    """
    wanted = set(ids)
    gone = np.fromiter((one in wanted for one in known), dtype=bool, count=len(known))
    if int(gone.sum()) != len(wanted):
        raise UserError(f"cannot remove {sample_of(sorted(wanted - set(known), key=str))}: not in the index.")
    return gone


def encoder_of(space: Space, load: Callable[[str], TextModel]) -> TextModel:
    """The encoder that made a space's documents, by its name, for documents that are added as texts.

    Raises:
        UserError: It is not to be found, or is no longer the same.
    """
    found = load(space.documents_by)
    if found.document_space != space.fingerprint:
        raise UserError(
            f"{found.name} is no longer the model that made the documents ({'; '.join(space.differences(found))}); add "
            "vectors of the index' space instead."
        )
    return found
