"""Phrases of a text: neighboring words, such as make up a short query."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import regex

from retrodistill.data.languages import LETTERS, UNSPACED

LONGEST = 3  # words of a phrase
_NO_START, _NO_END = -1, -2  # in the place of a run, whose numbers are positive
# A word, with the apostrophes and hyphens in it; or a character of a script without spaces, with its marks.
_TOKEN = regex.compile(
    rf"(?P<character>[{UNSPACED}]\p{{M}}*)|[{LETTERS}--[{UNSPACED}]]+(?:['’-][{LETTERS}--[{UNSPACED}]]+)*", regex.V1
)
_LETTER = regex.compile(r"\p{L}")


def phrase_places(text: str, stopwords: Collection[str] = ()) -> list[list[slice]]:
    """Where the phrases of one, two, and three words are in a text.

    The words of a phrase have only white space between them, none is a bare number, and neither the first nor the last
    is one of the `stopwords`, which are in lower case. A single letter is not a phrase. In scripts without spaces, a
    phrase of n words is n + 1 adjacent characters: two to four, since telling words apart takes a dictionary there.
    """
    words, characters = _Tokens(), _Tokens()
    run, end, before = 0, 0, None
    for token in _TOKEN.finditer(text):
        written, (start, stop) = token[0], token.span()
        between, end = text[end:start], stop
        kind = characters if token.lastgroup else words
        if kind is not before or (between if kind is characters else not between.isspace()):
            run += 1
        before = kind
        if not written.isalpha() and not _LETTER.search(written):
            before = None  # a number, which ends a run
            continue
        is_edge = written.casefold() not in stopwords
        kind.spans.append((start, stop))
        kind.starts.append(run if is_edge else _NO_START)
        kind.ends.append(run if is_edge else _NO_END)
    return [words.phrases(length) + characters.phrases(length + 1) for length in range(1, LONGEST + 1)]


@dataclass
class _Tokens:
    """Words, or characters of scripts without spaces, of a text. A run of them has nothing else in between."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the run of each if a phrase may begin with it, else `_NO_START`
    ends: list[int] = field(default_factory=list)  # the run of each if a phrase may end with it, else `_NO_END`

    def phrases(self, length: int) -> list[slice]:
        """The places of all phrases of so many tokens, without single letters."""
        edges = zip(self.spans, self.starts, self.spans[length - 1 :], self.ends[length - 1 :], strict=False)
        return [slice(start, end) for (start, _), a, (_, end), b in edges if a == b and end - start > 1]
