"""Format versions of what is written: a later release may write what this one cannot read, and then says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from retrodistill.core.errors import UserError

_NUMBER, _RELEASE = "format", "read_since"


class Format(NamedTuple):
    """A format, and the first release that reads it."""

    number: int
    release: str


# By kind of artifact, where it is not the first one. Raise a number when a release would misread what is written now,
# or fail on it, and set the release that reads it first. Every release reads all earlier formats.
FORMATS = {
    "index": Format(2, "0.2.0"),  # its checksums are xxh3's
    "student": Format(2, "0.2.0"),  # settings of PreTT
}
_FIRST = Format(1, "0.1.0")


def stamp(kind: str) -> dict[str, Any]:
    """What an artifact of a kind says about its format: entries of a JSON object."""
    number, release = FORMATS.get(kind, _FIRST)
    return {_NUMBER: number, _RELEASE: release}


def check_stamp(content: Mapping[str, Any], kind: str, place: str | os.PathLike[str]) -> None:
    """Refuse an artifact of a format that this release does not know; one without a stamp is of version 0.1.0.

    Args:
        content: The object with the entries of `stamp`.
        kind: Of the artifact.
        place: Its file, for the error.

    Raises:
        UserError: Its format is newer; the error names the release that reads it.
    """
    number, known = content.get(_NUMBER, _FIRST.number), FORMATS.get(kind, _FIRST).number
    if type(number) is not int or number > known:
        release = content.get(_RELEASE, "of a later version")
        raise UserError(
            f"{place} is of format {number} of {kind}, which retrodistill {release} and later read; this one reads "
            f"formats up to {known}: install that release, or make the {kind} again."
        )


def without_stamp(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not those of `stamp`."""
    return {key: value for key, value in content.items() if key not in (_NUMBER, _RELEASE)}
