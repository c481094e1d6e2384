"""Training queries that are test queries, or nearly: a student that has learned them is measured on what it was told.

A pair is near if the Jaccard similarity of their sets of words is at least .6. Pairs are found by prefix filtering
(Chaudhuri et al. 2006, ICDE; Bayardo et al. 2007, WWW): two sets that are that similar share one of their rarest words,
so that a text is compared with few others.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import regex

from retrodistill.core.digests import digest
from retrodistill.core.errors import sample_of
from retrodistill.data.collection import Collection, normalized
from retrodistill.data.languages import UNSPACED
from retrodistill.data.texts import Texts

LeakRule = Literal["near", "exact"]

NEAR = 0.6  # Jaccard similarity of sets of words
# Words, and characters of scripts without spaces, with their vowel signs.
_WORDS = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+")


@dataclass(frozen=True)
class Leak:
    """A training query that is also a test query, or nearly."""

    train_id: str
    test_id: str  # the same id, or that of the most similar query
    text: str  # of the training query
    is_exact: bool  # by id, or by text apart from case, punctuation, and space


@dataclass(frozen=True)
class ExcludedQueries:
    """Test queries, which nothing is trained or tuned on.

    With ``leaks: near``, neither are texts whose words are nearly theirs: a Jaccard similarity of at least .6.
    """

    queries: Texts
    leaks: LeakRule = "near"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the queries and the rule."""
        return digest(self.queries.fingerprint, self.leaks)

    def leaks_in(self, texts: Texts) -> list[Leak]:
        """One entry, in order, for each of the texts that may not be trained on."""
        found = []
        for id_, text in zip(texts.ids, texts.texts, strict=True):
            twin = id_ if id_ in self.queries else self._by_text.get(normalized(text))
            is_exact = twin is not None
            if twin is None and self.leaks == "near":
                twin = self._nearest(words_of(text))
            if twin is not None:
                found.append(Leak(id_, twin, text, is_exact))
        return found

    @cached_property
    def _by_text(self) -> dict[str, str]:
        by_text: dict[str, str] = {}
        for id_, text in zip(self.queries.ids, self.queries.texts, strict=True):
            by_text.setdefault(normalized(text), id_)
        by_text.pop("", None)
        return by_text

    def _nearest(self, words: frozenset[str]) -> str | None:
        """The most similar test query, the first of equals; None if none is near."""
        candidates = {row for word in self._prefix(words) for row in self._rows_of_word.get(word, ())}
        best, nearest = NEAR, None
        for row in sorted(candidates):
            shared = len(words & self._words[row])
            similarity = shared / (len(words) + len(self._words[row]) - shared)
            if similarity > best or (nearest is None and similarity >= NEAR):
                best, nearest = similarity, row
        return None if nearest is None else self.queries.ids[nearest]

    @cached_property
    def _words(self) -> list[frozenset[str]]:
        return [words_of(text) for text in self.queries.texts]

    @cached_property
    def _frequencies(self) -> Counter[str]:
        return Counter(word for words in self._words for word in words)

    @cached_property
    def _rows_of_word(self) -> dict[str, list[int]]:
        """By word, the queries that have it among their rarest."""
        rows = defaultdict(list)
        for row, words in enumerate(self._words):
            for word in self._prefix(words):
                rows[word].append(row)
        return dict(rows)

    def _prefix(self, words: Iterable[str]) -> list[str]:
        """The rarest words: a set that is near shares at least .6 of the words, and so one of these."""
        ordered = sorted(words, key=lambda word: (self._frequencies[word], word))
        return ordered[: len(ordered) - math.ceil(NEAR * len(ordered)) + 1] if ordered else []


def words_of(text: str) -> frozenset[str]:
    """The distinct words of a text, case-folded and without punctuation."""
    words = normalized(text)
    return frozenset(words.split() if words.isascii() else _WORDS.findall(words))


def leaks(collection: Collection, train: str = "train", test: str = "test", rule: LeakRule = "near") -> list[Leak]:
    """Queries of a split that are in another split, too, or nearly, with ``exact`` only by id or by normalized text.

    Raises:
        UserError: One of the splits does not exist.
    """
    return ExcludedQueries(collection.split(test), rule).leaks_in(collection.split(train))


def excluded_queries(collection: Collection, rule: LeakRule = "near") -> ExcludedQueries | None:
    """The queries of the split test; None if there is no such split."""
    return ExcludedQueries(collection.split("test"), rule) if "test" in collection.split_sizes else None


def without_leaks(texts: Texts, excluded: ExcludedQueries | None) -> tuple[Texts, list[Leak]]:
    """The texts that may be trained on, and one entry for each of the others."""
    found = excluded.leaks_in(texts) if excluded else []
    leaked = {leak.train_id for leak in found}
    return (texts.select([id_ for id_ in texts.ids if id_ not in leaked]) if leaked else texts), found


def leak_warning(leaked: list[Leak]) -> str | None:
    """One line about the number of training queries that are test queries, or nearly, or None."""
    if not leaked:
        return None
    exact = sum(leak.is_exact for leak in leaked)
    counts = [f"{exact} are test queries, by id or by text"] if exact else []
    if near := len(leaked) - exact:
        counts.append(f"{near} share at least {NEAR:.0%} of their words with one")
    return (
        f"{len(leaked)} training queries are left out: {' and '.join(counts)} "
        f"({sample_of(leak.text for leak in leaked)})."
    )
