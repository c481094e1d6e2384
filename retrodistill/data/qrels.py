"""Relevance judgments of one split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.data.texts import column_digest

SCHEMA = pa.schema([("query_id", pa.string()), ("document_id", pa.string()), ("relevance", pa.int32())])


@dataclass(frozen=True, eq=False)
class Qrels:
    """Judgments: one row per (query, document) pair. Zero and negative grades are kept: judged, not relevant.

    Attributes:
        table: Columns query_id, document_id (string), relevance (int32); queries in order of their first row.
    """

    table: pa.Table

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str, int]]) -> Qrels:
        """Build from (query_id, document_id, relevance); of a pair given twice the last row counts, as in beir."""
        grades: dict[str, dict[str, int]] = {}
        for query, document, relevance in rows:
            grades.setdefault(query, {})[document] = relevance
        return cls.from_dict(grades)

    @classmethod
    def from_dict(cls, grades: Mapping[str, Mapping[str, int]]) -> Qrels:
        """Build from ``{query_id: {document_id: relevance}}``."""
        rows = [(query, document, grade) for query, judged in grades.items() for document, grade in judged.items()]
        queries, documents, values = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(pa.table([list(queries), list(documents), list(values)], schema=SCHEMA))

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def query_ids(self) -> list[str]:
        """The queries that are judged, in order of their first row."""
        return pc.unique(self.table["query_id"]).to_pylist()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the content, 32 hexadecimal digits, independent of the order of the rows."""
        ordered = self.table.sort_by([("query_id", "ascending"), ("document_id", "ascending")])
        parts = "".join(column_digest(ordered[name].cast(pa.string()).chunks) for name in SCHEMA.names)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, dict[str, int]]:
        """``{query_id: {document_id: relevance}}`` with plain Python integers, the form of pytrec_eval and beir."""
        grades: dict[str, dict[str, int]] = {}
        columns = (self.table[name].to_pylist() for name in SCHEMA.names)
        for query, document, relevance in zip(*columns, strict=True):
            grades.setdefault(query, {})[document] = relevance
        return grades
