"""Token ids of BERT's tokenizers from a table of words, in a part of the time that splitting the words takes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

_WORDS = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9 \t\n\r]").findall  # of an ASCII text, as BERT's tokenizers separate them
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # characters that they delete
_LARGEST = 2**17  # words in a table, which bounds its memory
_PARTS = ("BertNormalizer", "BertPreTokenizer", "WordPiece")


class WordTable:
    """Token ids of texts, without special tokens, equal to those of the tokenizer.

    These tokenizers separate a text at white space and punctuation and then split each word on its own, so a word that
    was seen before needs no splitting. The tokenizer itself takes new words, and texts that are not ASCII or hold
    control characters or one of its added tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._words = tokenizer, _Words(tokenizer)
        added = [re.escape(token.content) for token in tokenizer.get_added_tokens_decoder().values()]
        self._is_other = re.compile("|".join([_CONTROL, *added]), re.IGNORECASE).search

    @staticmethod
    def fits(tokenizer: Any) -> bool:
        """Whether a ``tokenizers.Tokenizer`` is of this kind."""
        parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
        kept = tokenizer.truncation
        return tuple(type(part).__name__ for part in parts) == _PARTS and (not kept or kept["direction"] == "right")

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        lower, kept = self._tokenizer.normalizer.lowercase, self._tokenizer.truncation
        length, known = kept["max_length"] if kept else None, self._words.__getitem__
        found: list[list[int]] = []
        other = []
        for place, text in enumerate(texts):
            if not text.isascii() or self._is_other(text):
                other.append(place)
                found.append([])
            else:
                words = _WORDS(text.lower() if lower else text)
                found.append(list(itertools.chain.from_iterable(map(known, words)))[:length])
        if other:
            others = self._tokenizer.encode_batch_fast([texts[place] for place in other], add_special_tokens=False)
            for place, encoding in zip(other, others, strict=True):
                found[place] = encoding.ids
        return found


class _Words(dict[str, list[int]]):
    """Token ids by word, filled by the tokenizer's model."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids: list[int] = [token.id for token in self._tokenizer.model.tokenize(word)]
        if len(self) < _LARGEST:
            self[word] = ids
        return ids
