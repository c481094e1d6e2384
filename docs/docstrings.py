"""For mkdocstrings: a line of a docstring that names several things, ``a, b: text``, becomes a line for each."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SEVERAL = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)$", re.MULTILINE)


def split(entry: re.Match[str]) -> str:
    """The entry once for each of its names."""
    return "\n".join(f"{entry['indent']}{name}: {entry['text']}" for name in entry["names"].split(", "))


class SeveralNames(Extension):
    """Splits the entries of every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for each module, class, function, and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(split, obj.docstring.value)
