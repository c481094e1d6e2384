"""A collection: documents, queries, and relevance judgments by split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.data.fields import fields_table
from retrodistill.data.languages import LETTERS
from retrodistill.data.parents import Parents
from retrodistill.data.records import Document, document_of, judgment_of, query_of
from retrodistill.data.texts import GENERATED, Texts, column_digest, without_rows

JUDGMENT_SCHEMA = pa.schema([("query_id", pa.string()), ("document_id", pa.string()), ("relevance", pa.int32())])
PSEUDO_SPLITS = ("all", "unjudged", "auto")
_BREAKS = regex.compile(rf"[^{LETTERS}]+")
SameId = Literal["auto", "keep", "drop"]
_SPLIT_ORDER = {"train": 0, "dev": 1, "test": 2}


@dataclass(frozen=True, eq=False)
class Qrels:
    """Relevance judgments of one split. Zero and negative grades are kept: they mean judged, but not relevant.

    Attributes:
        table: Columns query_id, document_id (string), relevance (int32), one row per pair; queries in the order of
            their first row.
    """

    table: pa.Table

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str, int]]) -> Qrels:
        """Build from (query_id, document_id, relevance). The last row of a repeated pair counts, as in beir."""
        grades: dict[str, dict[str, int]] = {}
        for query, document, relevance in rows:
            grades.setdefault(query, {})[document] = relevance
        return cls.from_dict(grades)

    @classmethod
    def from_dict(cls, grades: Mapping[str, Mapping[str, int]]) -> Qrels:
        """Build from ``{query_id: {document_id: relevance}}``."""
        rows = [(query, document, grade) for query, judged in grades.items() for document, grade in judged.items()]
        queries, documents, values = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(pa.table([list(queries), list(documents), list(values)], schema=JUDGMENT_SCHEMA))

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def query_ids(self) -> list[str]:
        """The judged queries, in the order of their first row."""
        return pc.unique(self.table["query_id"]).to_pylist()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the content, 32 hexadecimal digits, independent of the order of the rows."""
        ordered = self.table.sort_by([("query_id", "ascending"), ("document_id", "ascending")])
        parts = "".join(column_digest(ordered[name].cast(pa.string()).chunks) for name in JUDGMENT_SCHEMA.names)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, dict[str, int]]:
        """``{query_id: {document_id: relevance}}`` with Python integers, as pytrec_eval and beir expect."""
        grades: dict[str, dict[str, int]] = {}
        columns = (self.table[name].to_pylist() for name in JUDGMENT_SCHEMA.names)
        for query, document, relevance in zip(*columns, strict=True):
            grades.setdefault(query, {})[document] = relevance
        return grades


def judgments_of(queries: Texts, splits: Iterable[Qrels]) -> Qrels:
    """The judgments of some queries in several splits. The last one of a repeated pair counts."""
    wanted = pa.array(queries.ids, pa.string())
    return last_judgments(judged.table.filter(pc.is_in(judged.table["query_id"], wanted)) for judged in splits)


def last_judgments(tables: Iterable[pa.Table]) -> Qrels:
    """The rows of several tables of judgments. The last one of a repeated pair counts."""
    table = pa.concat_tables([JUDGMENT_SCHEMA.empty_table(), *tables])
    last = table.group_by(JUDGMENT_SCHEMA.names[:2], use_threads=False).aggregate([("relevance", "last")])
    return Qrels(last.rename_columns(JUDGMENT_SCHEMA.names))


@dataclass(eq=False, repr=False)
class Collection:
    """Documents, queries and relevance judgments.

    Judgments are treated as in beir 2.2. A judged document that is missing from the corpus counts against recall and
    the ideal gain there (`EvaluateRetrieval` counts it without looking it up), so those rows are kept. A judged query
    that is missing from queries.jsonl makes beir's `GenericDataLoader` raise KeyError, so those rows are dropped.
    `warnings` reports the number of both. The constructor takes checked parts; `from_parts` and the loaders check them.

    Attributes:
        name: Short name, usable in tables and file names.
        documents: Text of each document as in beir, ``(title + " " + text).strip()``.
        titles: The titles only, '' for a document without one; same ids and order.
        bodies: The texts without the title; same ids and order.
        queries: All queries.
        qrels: Judgments by split, in the order train, dev, test, others.
        fields: What the documents' records hold besides id, title, and text: typed columns, one row per document in the
            same order, or None. They do not belong to the texts and their fingerprints.
        warnings: Problems in the data, one line each, with counts.
        parents: Where the documents are passages, what they were cut from; judgments are of those. Otherwise None.
        uncut: The collection before it was cut.
        same_id: Whether the document with a query's id is left out of the query's results: ``auto`` where it is the
            query itself (see `own_documents`), ``drop`` always, as in beir, ``keep`` never.
    """

    name: str
    documents: Texts
    _: KW_ONLY
    titles: Texts
    bodies: Texts
    queries: Texts
    qrels: dict[str, Qrels]
    fields: pa.Table | None = None
    warnings: list[str] = field(default_factory=list)
    parents: Parents | None = None
    uncut: Collection | None = None
    same_id: str = "auto"

    def __post_init__(self) -> None:
        check_same_id(self.same_id)
        self.qrels = dict(sorted(self.qrels.items(), key=lambda item: (_SPLIT_ORDER.get(item[0], 3), item[0])))

    @classmethod
    def from_parts(
        cls,
        name: str,
        documents: Mapping[str, str | tuple[str, str]],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
        fields: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Collection:
        """Build from dictionaries, and check them.

        Args:
            name: As in `Collection`.
            documents: Text, or (title, text), by id.
            queries: Text by id.
            qrels: ``{split: {query_id: {document_id: relevance}}}``.
            fields: ``{document_id: {field: value}}``, for any of the documents; see `retrodistill.data.fields`.

        Raises:
            UserError: There are no documents, a split has a reserved name, fields belong to unknown documents, or an
                id, text or grade is not one.
        """
        if not documents:
            raise UserError(f"collection {name}: there are no documents; give at least one.")
        rows = [_document(id_, given, name, place) for place, (id_, given) in enumerate(documents.items(), start=1)]
        titles = Texts.from_pairs((row.id, row.title) for row in rows)
        bodies = Texts.from_pairs((row.id, row.body) for row in rows)
        joined = Texts.from_pairs((row.id, full_text(row.title, row.body)) for row in rows)
        asked = ({"_id": id_, "text": text} for id_, text in queries.items())
        checked = (query_of(record, f"{name}, query", place) for place, record in enumerate(asked, start=1))
        query_texts = Texts.from_pairs((query.id, query.text) for query in checked)
        given = {split: Qrels.from_rows(_judgments(qrels[split], f"{name}, {split}, judgment")) for split in qrels}
        judged, warnings = check_parts(joined, query_texts, given)
        table, field_warnings = fields_table(fields, joined.ids) if fields else (None, [])
        warnings += field_warnings
        return cls(
            name,
            joined,
            titles=titles,
            bodies=bodies,
            queries=query_texts,
            qrels=judged,
            fields=table,
            warnings=warnings,
        )

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {size}" for name, size in self.split_sizes.items())
        size = f"{len(self.whole.documents)} documents"
        size += f" in {len(self.documents)} passages" if self.parents is not None else ""
        return f"Collection({self.name}: {size}, queries: {splits or 'none'})"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of documents, queries and judgments."""
        judged = {split: qrels.fingerprint for split, qrels in self.qrels.items()}
        rule = [] if self.parents is None else [self.parents.settings.model_dump()]
        return digest(self.documents.fingerprint, self.queries.fingerprint, judged, *rule)

    @property
    def whole(self) -> Collection:
        """The documents that users see and that judgments are of: uncut if these are passages."""
        if self.uncut is None:
            return self
        return replace(self.uncut, name=self.name, queries=self.queries, qrels=self.qrels, warnings=self.warnings)

    def without(self, rows: np.ndarray) -> Collection:
        """The collection without the documents or passages of (m,) ascending rows; itself for none. Judgments stay."""
        if not len(rows):
            return self
        if (key := rows.tobytes()) not in self._without:
            self._without[key] = self._without_rows(rows)
        return self._without[key]

    @cached_property
    def _without(self) -> dict[bytes, Collection]:
        return {}

    def _without_rows(self, rows: np.ndarray) -> Collection:
        parts = (self.documents, self.titles, self.bodies)
        documents, titles, bodies = (texts.without(rows) for texts in parts)
        fields = None if self.fields is None or self.parents is not None else without_rows(self.fields, rows)
        parents = uncut = None
        if self.parents is not None and self.uncut is not None:
            removed = np.isin(np.arange(len(self.documents)), rows)
            parents = self.parents.without(removed)
            uncut = self.uncut.without(np.setdiff1d(self.parents.rows, self.parents.rows[~removed]))
        reduced = replace(self, documents=documents, titles=titles, bodies=bodies, fields=fields)
        return replace(reduced, parents=parents, uncut=uncut)

    def passage_labels(self, labels: Qrels) -> Qrels:
        """Judgments of documents as judgments of their passages, which all get the grade; the same without passages.

        Judgments of unknown documents are left out.
        """
        if self.parents is None:
            return labels
        rows = self.whole.documents.positions(labels.table["document_id"].to_pylist())
        known = np.flatnonzero(rows >= 0)
        places, passages = self.parents.passages_of(rows[known])
        table = labels.table.take(pa.array(known[places]))
        ids = self.documents.table["id"].take(pa.array(passages))
        return Qrels(table.set_column(1, JUDGMENT_SCHEMA.field("document_id"), ids))

    @cached_property
    def split_sizes(self) -> dict[str, int]:
        """Number of queries in each split that `split` accepts, without empty splits."""
        sizes = {split: len(self._in_order(qrels.query_ids)) for split, qrels in self.qrels.items()}
        sizes |= {"all": len(self.queries), "unjudged": len(self._unjudged)}
        return {split: size for split, size in sizes.items() if size}

    def split(self, name: str) -> Texts:
        """The queries of a split, in the order of the queries file.

        Args:
            name: A split of `qrels`; ``"all"`` for every query; ``"unjudged"`` for the queries without judgments, such
                as a query log; or ``"auto"`` for training: train if it exists, else unjudged, which may be empty.

        Raises:
            UserError: There is no such split or it has no queries; the message lists the existing splits.
        """
        sizes = self.split_sizes
        if name == "auto":
            if not sizes.keys() & {"train", "unjudged"}:
                return Texts.from_pairs([])
            name = "train" if "train" in sizes else "unjudged"
        if name not in sizes:
            what = "has no queries in" if name in self.qrels or name in PSEUDO_SPLITS else "has no"
            raise UserError(f"collection {self.name} {what} split {name!r}; {_listed(sizes)}.")
        if name == "all":
            return self.queries
        return self.queries.select(self._unjudged if name == "unjudged" else self._in_order(self.qrels[name].query_ids))

    def relevance(self, split: str) -> Qrels:
        """The judgments of a split.

        Raises:
            UserError: The split has none; the message lists the splits that do.
        """
        if split not in self.qrels:
            judged = {name: size for name, size in self.split_sizes.items() if name not in PSEUDO_SPLITS}
            raise UserError(f"collection {self.name} has no judgments for split {split!r}; {_listed(judged)}.")
        return self.qrels[split]

    def own_documents(self, query_ids: Iterable[str]) -> dict[str, str]:
        """The document that a query is, ``{query_id: document_id}``, for those of the queries that are documents.

        Ids of queries and of documents are independent: a common id alone means nothing. A query is a document if the
        document with its id has its text, with or without the title (case, space and punctuation aside), and is not
        judged for it, as in ArguAna and Quora. `same_id` replaces this rule.
        """
        return {query: query for query in query_ids if query in self._are_documents}

    @cached_property
    def _are_documents(self) -> frozenset[str]:
        if self.same_id == "keep":
            return frozenset()
        places = self.whole.documents.positions(self.queries.ids)
        rows = np.flatnonzero(places >= 0)
        ids = self.queries.table["id"]
        if self.same_id == "auto":
            rows = rows[self._have_same_text(rows, places[rows])]
            tables = [qrels.table for qrels in self.qrels.values()]
            judged = [table["query_id"].filter(pc.equal(table["query_id"], table["document_id"])) for table in tables]
            rows = rows[~np.isin(rows, self.queries.positions(id_ for part in judged for id_ in part.to_pylist()))]
        return frozenset(ids.take(pa.array(rows)).to_pylist())

    def _have_same_text(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(n,) bool: the queries at (n,) rows have the text of the documents at (n,) rows."""
        same, lengths = np.zeros(len(queries), dtype=bool), self.queries.lengths[queries]
        for texts in (self.whole.documents, self.whole.bodies):
            # Ids are often numbers, so that many queries share one with a document: lengths leave few to compare.
            differences = np.abs(texts.lengths[documents] - lengths)
            for place in np.flatnonzero(~same & (differences <= 8 + lengths // 8)):
                query = normalized(self.queries.column[queries[place]])
                same[place] = query != "" and query == normalized(texts.column[documents[place]])
        return same

    @cached_property
    def _unjudged(self) -> list[str]:
        judged = {query for qrels in self.qrels.values() for query in qrels.query_ids}
        return [query for query in self.queries.ids if query not in judged]

    def _in_order(self, ids: Iterable[str]) -> list[str]:
        wanted = set(ids)
        return [query for query in self.queries.ids if query in wanted]


def _document(id_: object, given: object, name: str, place: int) -> Document:
    title, body = given if isinstance(given, (tuple, list)) and len(given) == 2 else ("", given)
    return document_of({"_id": id_, "title": title, "text": body}, f"{name}, document", place)


def _judgments(grades: Mapping[str, Mapping[str, int]], where: str) -> Iterator[tuple[str, str, int]]:
    pairs = ((query, document, grade) for query, judged in grades.items() for document, grade in judged.items())
    for place, (query, document, grade) in enumerate(pairs, start=1):
        record = {"query-id": query, "corpus-id": document, "score": grade}
        yield judgment_of(record, where, place)[1:]


def check_same_id(same_id: str) -> None:
    """Raise a UserError for an unknown value of `Collection.same_id`."""
    if same_id not in get_args(SameId):
        raise unknown("value of same_id", same_id, get_args(SameId))


def _listed(sizes: Mapping[str, int]) -> str:
    listed = ", ".join(f"{split} ({size} queries)" for split, size in sizes.items())
    return f"splits: {listed}" if listed else "it has no queries at all"


def normalized(text: str) -> str:
    """Case-folded text in which each run of whitespace and punctuation becomes a single space."""
    return _BREAKS.sub(" ", text.casefold()).strip()


def full_text(title: str, body: str) -> str:
    """The text of a document that rankers see, joined as in beir."""
    return f"{title} {body}".strip()


def of_originals(labels: Qrels, documents: Texts) -> Qrels:
    """The judgments, with those of a copy given to the first document of its text; of several grades the highest.

    For training: a copy of a relevant document is relevant, too. Measures count judgments as they are.
    """
    if documents.copies is None or not len(labels):
        return labels
    rows = documents.positions(labels.table["document_id"].to_pylist())
    known = rows >= 0
    ids = labels.table["document_id"].to_numpy(zero_copy_only=False).copy()
    ids[known] = documents.table["id"].take(pa.array(documents.originals[rows[known]])).to_pylist()
    table = labels.table.set_column(1, "document_id", pa.array(ids, pa.string()))
    best = table.group_by(JUDGMENT_SCHEMA.names[:2], use_threads=False).aggregate([("relevance", "max")])
    return Qrels(best.rename_columns(JUDGMENT_SCHEMA.names))


def check_parts(documents: Texts, queries: Texts, qrels: Mapping[str, Qrels]) -> tuple[dict[str, Qrels], list[str]]:
    """The judgments of known queries, and warnings of one line each."""
    for split in qrels:
        if split in PSEUDO_SPLITS:
            reserved = ", ".join(PSEUDO_SPLITS)
            raise UserError(f"a split of the judgments is called {split!r}, a reserved name ({reserved}); rename it.")
    warnings = _text_warnings(documents, queries)
    known = pa.chunked_array(queries.table["id"].chunks, pa.string())
    kept = {}
    for split, judged in qrels.items():
        is_known = pc.is_in(judged.table["query_id"], value_set=known)
        dropped = pc.unique(judged.table.filter(pc.invert(is_known))["query_id"]).to_pylist()
        kept[split] = Qrels(judged.table.filter(is_known))
        if dropped:
            warnings.append(
                f"{split}: {len(judged) - len(kept[split])} judgments of {len(dropped)} unknown queries "
                f"({sample_of(dropped)}) are dropped."
            )
        warnings += _unknown_documents(split, kept[split], documents)
    return kept, warnings


def _text_warnings(documents: Texts, queries: Texts) -> list[str]:
    """Warnings about empty and equal texts; reserved ids are a UserError."""
    warnings = []
    for what, texts in (("documents", documents), ("queries", queries)):
        if reserved := texts.table["id"].filter(pc.match_substring(texts.table["id"], GENERATED)).to_pylist():
            raise UserError(
                f"{len(reserved)} ids of {what} have a null character ({sample_of(reserved)}), which is reserved for "
                "ids that are made here; give ids without it."
            )
    for what, texts, effect in (("documents", documents, "cannot be retrieved"), ("queries", queries, "find nothing")):
        if texts.blank:
            named = sample_of(texts.table["id"].take(pa.array(texts.blank_rows)).to_pylist())
            warnings.append(f"{len(texts.blank)} {what} have no text ({named}): they are kept but {effect}.")
    if documents.copies is not None:
        ids = documents.table["id"].take(pa.array(np.flatnonzero(documents.copies))).to_pylist()
        warnings.append(
            f"{len(ids)} documents have the text of another ({sample_of(ids)}): training takes them for the same "
            "document, measures do not."
        )
    return warnings


def _unknown_documents(split: str, judged: Qrels, documents: Texts) -> list[str]:
    # Search the corpus for the judged ids, not the reverse: the corpus streams past and is never held in memory.
    wanted = pc.unique(judged.table["document_id"])
    ids = documents.table["id"]
    unknown = sorted(set(wanted.to_pylist()) - set(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()))
    if not unknown:
        return []
    rows = pc.sum(pc.is_in(judged.table["document_id"], value_set=pa.array(unknown, pa.string()))).as_py()
    return [
        f"{split}: {rows} judgments name {len(unknown)} documents that are not in the corpus ({sample_of(unknown)}): "
        "they are kept and count against recall, as in beir."
    ]
