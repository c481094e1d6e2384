"""The error class for mistakes in the user's input, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of a message that stay where a value in it, such as a line of a file, makes it longer: what was given is at
# its beginning, what to do at its end.
_FIRST, _LAST = 1500, 500
_GUESSED = 100  # characters of a name for which a similar one is looked for, which takes time


class UserError(Exception):
    """A mistake in the user's input: one line that says what was given, what was expected and what to do.

    The command line prints it without a traceback and exits with status 2. The middle of a very long message is left
    out.
    """

    def __init__(self, message: str) -> None:
        message = message.encode("utf-8", "backslashreplace").decode()  # a value in it may be half a character
        left_out = len(message) - _FIRST - _LAST
        super().__init__(message if left_out <= 0 else f"{message[:_FIRST]}... {message[-_LAST:]}")


def unknown(what: str, given: object, known: Iterable[str]) -> UserError:
    """Build the error for a `given` name outside a closed list; `what` is a noun such as ``"objective"``."""
    options = sorted(known)
    return UserError(f"unknown {what} {str(given)!r}.{did_you_mean(given, options)} Known: {', '.join(options)}.")


def did_you_mean(given: object, options: Iterable[str], prefix: str = "") -> str:
    """`` Did you mean 'x'?`` with the closest option, or '' if none is close."""
    name = str(given)
    nearest = difflib.get_close_matches(name, list(options), n=1, cutoff=0.4) if len(name) <= _GUESSED else []
    return f" Did you mean {prefix + nearest[0]!r}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def sample_of(names: Iterable[object], shown: int = 3) -> str:
    """List the first few names: ``'a', 'b', 'c' and 4 more``."""
    listed = [repr(str(name)) for name in names]
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more} more" if more > 0 else "")
