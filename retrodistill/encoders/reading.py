"""What a model reads of texts: which it cannot read at all, and how many are longer than what it reads."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import regex
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from retrodistill.core.errors import sample_of
from retrodistill.core.runtime import log
from retrodistill.core.turns import in_turn
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts, is_blank

_SAMPLE = 100  # documents whose tokens are counted
_READ = 8  # characters per token that is read: the rest of a sampled document is not tokenized
_BEGINNING = 40  # characters of a text that are tokenized first: they nearly always decide
_SAID: set[tuple[str, str, str]] = set()  # warnings that were logged, for a model and documents
# A word between spaces, ASCII punctuation or the ends of a text, which is read by a model that knows all letters.
_WORD = r"(^|[\x00-/:-@\[-`{-\x7f])[0-9A-Za-z]{1,50}($|[\x00-/:-@\[-`{-\x7f])"
_has_word = re.compile(_WORD).search
_LETTERS = string.ascii_letters + string.digits
_is_punctuation = regex.compile(r"\p{P}+").fullmatch
_SPACES = "\u2581\u0120\u010a"  # how tokenizers write spaces and line ends: those of SentencePiece, and of bytes


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """Id of the token in place of what is not in the vocabulary; None if all is."""
    about = json.loads(tokenizer.to_str())["model"]
    unknown: int | None = about.get("unk_id", tokenizer.token_to_id(about.get("unk_token") or ""))
    return unknown


def tokens_without_text(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand for no text: of the unknown token, of special tokens, and of those that are spaces only."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    spaces = {number for token, number in tokenizer.get_vocab().items() if is_blank(token.strip(_SPACES))}
    return special | spaces | {number for number in [unknown_token(tokenizer)] if number is not None}


class Reader:
    """Tells the texts that a model cannot read: blank ones, and those of which its tokenizer knows no token.

    Punctuation between unknown tokens does not make a text readable; alone, it is read. What cannot be read has no
    vector: it is left out of indexes, never found, and finds nothing. Of a model without a fast tokenizer, such as one
    behind an API, only blank texts are known to be of that kind.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer: Any = tokenizer
        self._rows: dict[str, np.ndarray] = {}  # by fingerprint of the texts

    def unreadable(self, texts: Sequence[str]) -> list[int]:
        """Rows of the texts that it cannot read, ascending."""
        rows = [row for row, text in enumerate(texts) if not (self._knows_words and _has_word(text))]
        blank = [row for row in rows if is_blank(texts[row])]
        if self._tokenizer is None:
            return blank
        unknown = self._unknown(texts, rows, _BEGINNING)
        return sorted({*blank, *self._unknown(texts, unknown, None)})

    def unreadable_rows(self, texts: Texts) -> np.ndarray:
        """(m,) int64 rows of the texts that it cannot read, ascending; kept for the next time."""
        if self._tokenizer is None:
            return texts.blank_rows
        key = texts.fingerprint
        if key not in self._rows:
            self._rows[key] = texts.rows_of(self.unreadable, unless=_WORD if self._knows_words else None)
        return self._rows[key]

    def _unknown(self, texts: Sequence[str], rows: Sequence[int], length: int | None) -> list[int]:
        """The rows of texts of whose first characters it knows no token."""
        if not len(rows):
            return []
        some = [texts[row][:length] for row in rows]
        encodings = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
        return [row for row, encoding in zip(rows, encodings, strict=True) if not self._is_known({*encoding.ids})]

    def _is_known(self, tokens: set[int]) -> bool:
        unknown, without_text, punctuation = self._unread
        rest = tokens - without_text
        return not rest <= punctuation if unknown in tokens else bool(rest)

    @cached_property
    def _unread(self) -> tuple[int | None, set[int], set[int]]:
        """The unknown token, those that stand for no text, and punctuation."""
        vocabulary = self._tokenizer.get_vocab().items()
        punctuation = {number for token, number in vocabulary if _is_punctuation(token.strip(_SPACES))}
        return unknown_token(self._tokenizer), tokens_without_text(self._tokenizer), punctuation

    @cached_property
    def _knows_words(self) -> bool:
        """Whether it knows the letters and digits of ASCII, and so a part of any word of them."""
        if self._tokenizer is None:
            return True
        model, normalizer, token = self._tokenizer.model, self._tokenizer.normalizer, self._tokenizer.token_to_id
        if isinstance(model, WordLevel):
            return False
        letters = {(normalizer.normalize_str(letter) if normalizer else letter).strip(_SPACES) for letter in _LETTERS}
        prefixes = {"", getattr(model, "continuing_subword_prefix", None) or ""}
        return all(token(prefix + letter) is not None for prefix in prefixes for letter in letters)


def readable(encoder: Any, collection: Collection) -> Collection:
    """The collection without the documents or passages that an encoder cannot read; itself if it reads all.

    Those that are not blank, which loading counts, are logged once.
    """
    unknown = unknown_to(encoder, collection.documents)
    if unknown and _is_first("unreadable", encoder, collection):
        noun = "documents" if collection.parents is None else "passages"
        named = sample_of(unknown)
        log(f"warning: {len(unknown)} {noun} have no token that {encoder.name} knows ({named}): it cannot find them.")
    return collection.without(encoder.reader("document").unreadable_rows(collection.documents))


def unknown_to(encoder: Any, documents: Texts) -> list[str]:
    """Ids of the documents that are not blank and that an encoder cannot read, in order."""
    rows = np.setdiff1d(encoder.reader("document").unreadable_rows(documents), documents.blank_rows)
    return documents.table["id"].take(pa.array(rows)).to_pylist()


def readable_queries(encoder: Any, queries: Texts) -> Texts:
    """The queries without those that an encoder cannot read, which find nothing."""
    return queries.without(encoder.reader("query").unreadable_rows(queries))


def count_longer(encoder: Any, documents: Texts) -> int:
    """The number of documents with more tokens than an encoder reads, about: 0 for one that reads whole texts.

    The tokens per byte of a sample tell it, from the documents' bytes; nothing else is tokenized.
    """
    if not encoder.has_weights or (limit := encoder.contract("document")["max_length"]) is None:
        return 0
    tokenizer = getattr(encoder.modules("document")[0], "tokenizer", None)
    lengths = documents.lengths
    likely = np.flatnonzero(lengths > limit)  # a token has a byte or more
    if not len(likely) or not callable(tokenizer):
        return 0
    rows = likely[np.unique(np.linspace(0, len(likely) - 1, _SAMPLE, dtype=np.int64))]
    texts = [documents.column[row][: _READ * limit] for row in rows.tolist()]
    with in_turn(encoder.modules("document")[0]):
        tokens = sum(map(len, tokenizer(texts, truncation=False, verbose=False)["input_ids"]))
    per_byte = tokens / max(1, sum(len(text.encode()) for text in texts))
    return int((lengths * per_byte > limit).sum())


def length_warning(encoder: Any, collection: Collection) -> str | None:
    """A line on documents, or passages, of which an encoder reads the beginning only; None if there are none."""
    longer, count = count_longer(encoder, collection.documents), len(collection.documents)
    if not longer:
        return None
    limit = encoder.contract("document")["max_length"]
    if collection.parents is None:
        return f"about {longer} of {count} documents exceed {limit} tokens of {encoder.name}; set passages."
    return f"about {longer} of {count} passages exceed {limit} tokens of {encoder.name}; set fewer passages.words."


def warn_of_length(encoder: Any, collection: Collection) -> None:
    """Log `length_warning`, once for a model and documents."""
    if _is_first("length", encoder, collection) and (line := length_warning(encoder, collection)):
        log(f"warning: {line}")


def _is_first(warning: str, encoder: Any, collection: Collection) -> bool:
    key = (warning, encoder.name, collection.documents.fingerprint)
    is_first = key not in _SAID
    _SAID.add(key)
    return is_first
