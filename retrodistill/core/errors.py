"""The error class for mistakes in the user's input, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input: one line that says what was given, what was expected and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def unknown(what: str, given: object, known: Iterable[str]) -> UserError:
    """Build the error for a `given` name outside a closed list; `what` is a noun such as ``"objective"``."""
    options = sorted(known)
    return UserError(f"unknown {what} {str(given)!r}.{did_you_mean(given, options)} Known: {', '.join(options)}.")


def did_you_mean(given: object, options: Iterable[str], prefix: str = "") -> str:
    """`` Did you mean 'x'?`` with the closest option, or '' if none is close."""
    nearest = difflib.get_close_matches(str(given), list(options), n=1, cutoff=0.4)
    return f" Did you mean {prefix + nearest[0]!r}?" if nearest else ""


def sample_of(names: Iterable[object], shown: int = 3) -> str:
    """List the first few names: ``'a', 'b', 'c' and 4 more``."""
    listed = [repr(str(name)) for name in names]
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more} more" if more > 0 else "")
