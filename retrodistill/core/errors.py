"""The one error that a user's mistake raises, and helpers for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one line that says what came, what was wanted, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def unknown(what: str, given: object, known: Iterable[str]) -> UserError:
    """Build the error for a name outside a closed list; names the nearest known one.

    Args:
        what: What kind of name it is, e.g. ``"objective"``.
        given: The name that came.
        known: Every name that would have been accepted.
    """
    options = sorted(known)
    nearest = difflib.get_close_matches(str(given), options, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {what} {str(given)!r}.{hint} Known: {', '.join(options)}.")


def sample_of(names: Iterable[object], shown: int = 3) -> str:
    """Name the first few of many: ``'a', 'b', 'c' and 4 more``."""
    listed = [repr(str(name)) for name in names]
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more} more" if more > 0 else "")
