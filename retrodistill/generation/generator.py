"""What generates queries: a protocol, and how queries are read from the lines that a model writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import regex

from retrodistill.data.texts import is_blank
from retrodistill.rankers.protocol import Work

# What models put before a query in a list: a number, a bullet, or a word such as "Query 2:".
_BEFORE = regex.compile(r"^\s*(?:(?:[-*•–#>]+|\(?\d{1,3}[.):]|(?i:search |relevant )?(?i:query|question) ?\d*:)\s+)+")
_QUOTES = "\"'`“”„«»‘’*「」『』"


class Generator(Protocol):
    """Writes queries for documents. Answers are kept by their whole requests, so that none is computed twice."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Digest of the model, as far as it can be known here."""

    def requests(self, documents: Sequence[str]) -> Sequence[str]:
        """What decides the answer for each document, made when it is needed."""

    def answers(self, requests: Sequence[str]) -> Iterator[Any]:
        """The texts that the model wrote for each request, one query per line; None where it wrote none.

        Requests without an answer are computed first; if it is killed, the next call goes on.
        """

    def remaining(self, requests: Sequence[str]) -> Work:
        """The requests without an answer, with their time or cost."""


def queries_in(text: str, most: int) -> list[str]:
    """The queries in a text, one per line: without numbers, bullets, and quotes, blank ones, and equal ones.

    Lines that end with a colon introduce what follows.
    """
    lines = (" ".join(_BEFORE.sub("", line).split()) for line in text.splitlines())
    queries = (line.strip(_QUOTES).strip() for line in lines if not line.endswith(":"))
    distinct = {query.casefold(): query for query in reversed([query for query in queries if not is_blank(query)])}
    return list(reversed(distinct.values()))[:most]
