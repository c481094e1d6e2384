"""Languages and scripts: which language texts are in, and which scripts put no spaces between words."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import regex

from retrodistill.data.texts import Texts, spread

# Scripts without spaces between words, for a character class of `regex`; the last two are of no script in Unicode.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々"
LETTERS = r"\p{L}\p{M}\p{N}"  # marks too: the vowel signs of Hindi and Thai are parts of words
_CHARACTER = regex.compile(rf"[{UNSPACED}--\p{{M}}]", regex.V1)
_SAMPLED = 200  # documents that are read
_CHARACTERS = 500  # of the beginning of each
_LETTERS_NEEDED = 10  # in a text; the language of a code or a number is a guess


def languages_of(texts: Texts) -> Counter[str]:
    """Number of texts by language (ISO 639 code, the most frequent first), among at most 200 that are evenly spread.

    Detected by py3langid (Lui and Baldwin 2012, ACL) in the first 500 characters of each. The result depends only on
    the texts. Those with hardly any letters are left out.
    """
    classify = _classifier()
    codes = sorted(classify(text)[0] for text in beginnings(texts))
    return Counter(dict(Counter(codes).most_common()))


def beginnings(texts: Texts) -> list[str]:
    """The beginnings of at most 200 evenly spread texts, without those that have hardly any letters."""
    sample = (text[:_CHARACTERS] for text in spread(texts.column, _SAMPLED))
    return [text for text in sample if sum(map(str.isalpha, text)) >= _LETTERS_NEEDED]


@cache
def _classifier() -> Any:
    """The function from a text to a code; the import and the model of 5 MB take a second."""
    import py3langid

    return py3langid.classify


def has_words(text: str, least: int) -> bool:
    """Whether a text has a number of words; two characters of a script without spaces count as one."""
    words = text.split()
    if len(words) >= least or text.isascii():
        return len(words) >= least
    return sum(max(1, (len(_CHARACTER.findall(word)) + 1) // 2) for word in words) >= least
