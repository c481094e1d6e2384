"""Names from recipes, collections and results that become names of files or folders."""

from __future__ import annotations

from retrodistill.core.errors import UserError

_LONGEST = 120  # bytes; file systems take 255, of which this package's endings need some
_MEANINGFUL = frozenset('/\\:*?"<>|')  # in paths of some system
# Devices of Windows, whatever their ending.
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789")}


def is_file_name(name: str) -> bool:
    """Whether a name can be a file or folder of its own, and nothing else, on every system."""
    is_special = not name or name[0] in ".- " or name[-1] in ". " or name.partition(".")[0].upper() in _RESERVED
    is_short = len(name.encode(errors="surrogatepass")) <= _LONGEST
    return is_short and not is_special and name.isprintable() and _MEANINGFUL.isdisjoint(name)


def check_file_name(name: str, what: str) -> None:
    """Refuse a name, `what` it is of, that `is_file_name` refuses."""
    if not is_file_name(name):
        shown = name if len(name) <= _LONGEST else f"{name[:20]}..."
        raise UserError(
            f"{what} cannot be called {shown!r}; the name is also a folder, so use letters, digits, . + - _, and at "
            f"most {_LONGEST} of them."
        )
