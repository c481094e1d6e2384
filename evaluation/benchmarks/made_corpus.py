"""Collections of any size in BEIR's layout, made by a word model of the demonstration corpus.

A document is about 80 words. Most of them follow each other as in the docstrings of Python's standard library (a
first-order model: the next word is one that follows some occurrence of the word before it), so their frequencies are
those of the docstrings, Zipf's law included. A quarter are words of the document's own topic, among them names that
join two words (``mailbox_encode``), so that the vocabulary grows with the corpus. Five topic words are the title. The
titles of some documents are withheld and become the test queries: known-item searches with one relevant document each.
The same seed makes the same files. It is text for measuring time and memory: quality on it says nothing about others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrodistill.core.files import atomic_folder
from retrodistill.data import load_collection

QUERIES = 500
_LENGTHS = range(60, 101)  # words of a text
_TOPIC, _TITLE = 8, 5  # words
_TOPICAL = 0.25  # share of topic words in a text
_JOINED = 0.3  # share of topic words that are names of two words
_BLOCK = 10_000  # documents


class WordModel:
    """A first-order word model of texts: tokens between spaces, each followed by one that followed it somewhere."""

    def __init__(self, texts: list[str]) -> None:
        names, self._words = np.unique(" ".join(texts).split(), return_inverse=True)
        self._names = names.astype(object)
        self._places = np.argsort(self._words, kind="stable")  # of each word's occurrences, word by word
        counts = np.bincount(self._words)
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        # Topics are made of plain words; the square root makes rare ones likelier than they are in texts.
        plain = np.array([len(name) > 2 and name.isascii() and name.isalpha() and name.islower() for name in names])
        self._topical, weights = np.flatnonzero(plain), np.sqrt(counts[plain])
        self._shares = weights / weights.sum()

    def documents(self, count: int, seed: int) -> Iterator[tuple[str, str]]:
        """Titles and texts."""
        for block, start in enumerate(range(0, count, _BLOCK)):
            yield from self._block(min(_BLOCK, count - start), np.random.default_rng([seed, block]))

    def _block(self, count: int, generator: np.random.Generator) -> Iterator[tuple[str, str]]:
        draws = generator.choice(self._topical, (2, count, _TOPIC), p=self._shares)
        first, second = self._names[draws]
        topics = np.where(generator.random((count, _TOPIC)) < _JOINED, first + "_" + second, first)
        words = np.empty((count, _LENGTHS[-1]), dtype=np.int64)
        words[:, 0] = self._words[generator.integers(len(self._words), size=count)]
        for place in range(1, words.shape[1]):
            before = words[:, place - 1]
            drawn = self._starts[before] + (generator.random(count) * self._counts[before]).astype(np.int64)
            words[:, place] = self._words[(self._places[drawn] + 1) % len(self._words)]
        texts = self._names[words]
        is_topical = generator.random(words.shape) < _TOPICAL
        rows, columns = np.nonzero(is_topical)
        texts[rows, columns] = topics[rows, generator.integers(_TOPIC, size=len(rows))]
        lengths = generator.integers(_LENGTHS[0], _LENGTHS[-1] + 1, size=count)
        for topic, text, length in zip(topics.tolist(), texts.tolist(), lengths.tolist(), strict=True):
            yield " ".join(topic[:_TITLE]), " ".join(text[:length])


def write_collection(folder: Path, documents: int, seed: int = 0) -> None:
    """Write a folder in BEIR's layout as a stream, unless it exists."""
    if folder.exists():
        return
    model = WordModel(load_collection("demo").documents.texts)
    searched = set(np.random.default_rng(seed).choice(documents, min(QUERIES, documents), replace=False).tolist())
    with atomic_folder(folder) as new:
        (new / "qrels").mkdir()
        with (
            (new / "corpus.jsonl").open("w") as corpus,
            (new / "queries.jsonl").open("w") as queries,
            (new / "qrels" / "test.tsv").open("w") as qrels,
        ):
            qrels.write("query-id\tcorpus-id\tscore\n")
            for row, (title, text) in enumerate(model.documents(documents, seed)):
                kept = "" if row in searched else title
                corpus.write(json.dumps({"_id": f"d{row}", "title": kept, "text": text}) + "\n")
                if row in searched:
                    queries.write(json.dumps({"_id": f"q{row}", "text": title}) + "\n")
                    qrels.write(f"q{row}\td{row}\t1\n")
