"""What a collection holds: sizes, lengths, languages, queries, and judgments, for a first look at it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrodistill.data.collection import Collection
from retrodistill.data.languages import languages_of
from retrodistill.data.leaks import excluded_queries
from retrodistill.data.texts import Texts, spread

_SAMPLE = 10_000  # texts whose words are counted, evenly spread
_FEW_QUERIES = 50  # test queries below which intervals of nDCG@10 are wider than most differences


@dataclass(frozen=True)
class Survey:
    """Counts of a collection. Words are of at most 10,000 texts, languages of at most 200, evenly spread."""

    documents: int
    blank: int  # documents without a visible character
    copies: int  # documents with the text of an earlier one
    titled: float  # share of documents with a title, 0 to 1
    words: dict[str, float]  # of documents: median, p95, max
    languages: dict[str, int]  # ISO 639 code -> sampled documents, the most frequent first
    fields: list[str]
    queries: int
    splits: dict[str, dict[str, int]]  # name -> queries and judgments
    unjudged: int  # queries in no split
    query_words: float  # median
    near_test: int  # queries outside the test split that nearly equal a test query, which are not trained on

    @property
    def language(self) -> str | None:
        """The most frequent language of the documents; None if it could not be told."""
        return next(iter(self.languages), None)

    @property
    def training_queries(self) -> int:
        """Queries to train on: those of the split train, or those without judgments."""
        return self.splits["train"]["queries"] if "train" in self.splits else self.unjudged

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self)

    def missing(self) -> list[str]:
        """One line for each thing that would help: what is absent, what it means, and what to add."""
        lines = []
        if not self.queries:
            lines.append(
                "no queries: students train on titles and sentences, and some of these are the test queries; "
                'add queries.jsonl with lines such as {"_id": "q1", "text": "..."}'
            )
        elif not self.training_queries:
            lines.append("no training queries: students train on titles and sentences; add a query log to the queries")
        if not self.splits:
            lines.append(
                "no judgments: agreement with the teacher is measured, and quality is not; add qrels/test.tsv, or "
                "judge on the page of 'retrodistill serve'"
            )
        elif "test" not in self.splits:
            lines.append(f"no split test, only {', '.join(self.splits)}: set split.test to one of them")
        elif (count := self.splits["test"]["queries"]) < _FEW_QUERIES:
            lines.append(f"{count} test queries: few differences will be significant; judge {_FEW_QUERIES} or more")
        return lines


def survey(collection: Collection) -> Survey:
    """Count what a collection holds. Documents are read once; nothing is encoded."""
    documents, queries = collection.documents, collection.queries
    words, sizes = _words(documents), collection.split_sizes
    judged = {name: {"queries": sizes[name], "judgments": len(rows)} for name, rows in collection.qrels.items()}
    excluded = excluded_queries(collection) if "test" in judged else None
    others = None if excluded is None else queries.select([id_ for id_ in queries.ids if id_ not in excluded.queries])
    titles = collection.titles
    rows = np.arange(len(documents))
    return Survey(
        documents=len(documents),
        blank=len(documents.blank_rows),
        copies=int((documents.originals != rows).sum()),
        titled=1 - len(titles.blank_rows) / max(1, len(titles)),
        words={"median": float(np.median(words)), "p95": float(np.percentile(words, 95)), "max": float(words.max())},
        languages=dict(languages_of(documents)),
        fields=[] if collection.fields is None else collection.fields.column_names,
        queries=len(queries),
        splits=judged,
        unjudged=sizes.get("unjudged", 0),
        query_words=float(np.median(_words(queries))) if len(queries) else 0.0,
        near_test=0 if excluded is None or others is None else len(excluded.leaks_in(others)),
    )


def _words(texts: Texts) -> np.ndarray:
    """(n,) number of words of at most 10,000 texts."""
    return np.array([len(text.split()) for text in spread(texts.column, _SAMPLE)] or [0])


def language_shares(languages: dict[str, int], shown: int = 3) -> str:
    """The most frequent languages with their shares: ``en 97%, de 3%``."""
    total = sum(languages.values())
    return ", ".join(f"{code} {count / total:.0%}" for code, count in Counter(languages).most_common(shown)) or "?"
