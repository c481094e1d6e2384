"""A collection: documents, queries, and relevance judgments by split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import digest
from retrodistill.data.texts import Texts, column_digest

JUDGMENT_SCHEMA = pa.schema([("query_id", pa.string()), ("document_id", pa.string()), ("relevance", pa.int32())])


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
        return cls(pa.table([list(queries), list(documents), list(values)], schema=JUDGMENT_SCHEMA))

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
        parts = "".join(column_digest(ordered[name].cast(pa.string()).chunks) for name in JUDGMENT_SCHEMA.names)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, dict[str, int]]:
        """``{query_id: {document_id: relevance}}`` with plain Python integers, the form of pytrec_eval and beir."""
        grades: dict[str, dict[str, int]] = {}
        columns = (self.table[name].to_pylist() for name in JUDGMENT_SCHEMA.names)
        for query, document, relevance in zip(*columns, strict=True):
            grades.setdefault(query, {})[document] = relevance
        return grades


PSEUDO_SPLITS = ("all", "unjudged", "auto")


class Collection:
    """Documents, queries and relevance judgments.

    Judgments follow beir 2.2. Its `GenericDataLoader` never looks a judged document up and its `EvaluateRetrieval`
    counts it, so a relevant document that the corpus lacks counts against recall and the ideal gain: those rows are
    kept. A judged query that is not in queries.jsonl makes beir's loader raise KeyError: those rows are dropped. Both
    are counted in `warnings`.

    Attributes:
        name: Short name, fit for a table or a file.
        documents: Text of each document by beir's rule, ``(title + " " + text).strip()``.
        titles: The titles alone; '' for a document without one. Same ids, same order.
        bodies: The texts without the title. Same ids, same order.
        queries: All queries.
        qrels: Judgments by split, in the order train, dev, test, others.
        warnings: Problems in the data, one line each, with counts.
    """

    def __init__(
        self,
        name: str,
        documents: Texts,
        *,
        titles: Texts,
        bodies: Texts,
        queries: Texts,
        qrels: Mapping[str, Qrels],
        warnings: Iterable[str] = (),
    ) -> None:
        """Put checked parts together; `from_parts` checks, and the loaders do."""
        order = {"train": 0, "dev": 1, "test": 2}
        self.name = name
        self.documents = documents
        self.titles = titles
        self.bodies = bodies
        self.queries = queries
        self.qrels = {split: qrels[split] for split in sorted(qrels, key=lambda split: (order.get(split, 3), split))}
        self.warnings = list(warnings)

    @classmethod
    def from_parts(
        cls,
        name: str,
        documents: Mapping[str, str | tuple[str, str]],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    ) -> Collection:
        """Build in memory, and check.

        Args:
            name: Short name.
            documents: Text, or (title, text), by id.
            queries: Text by id.
            qrels: ``{split: {query_id: {document_id: relevance}}}``.

        Raises:
            UserError: There are no documents, or a split has a reserved name.
        """
        pairs = {id_: ("", both) if isinstance(both, str) else both for id_, both in documents.items()}
        titles = Texts.from_pairs((id_, title) for id_, (title, _) in pairs.items())
        bodies = Texts.from_pairs((id_, body) for id_, (_, body) in pairs.items())
        joined = Texts.from_pairs((id_, full_text(title, body)) for id_, (title, body) in pairs.items())
        asked = Texts.from_pairs(queries.items())
        if not pairs:
            raise UserError(f"collection {name}: there are no documents; give at least one.")
        judged, warnings = check_parts(joined, asked, {split: Qrels.from_dict(qrels[split]) for split in qrels})
        return cls(name, joined, titles=titles, bodies=bodies, queries=asked, qrels=judged, warnings=warnings)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {size}" for name, size in self.split_sizes.items())
        return f"Collection({self.name}: {len(self.documents)} documents, queries: {splits or 'none'})"

    def title(self, id_: str) -> str:
        """The title of a document, '' where it has none."""
        return self.titles[id_]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of documents, queries and judgments."""
        judged = {split: qrels.fingerprint for split, qrels in self.qrels.items()}
        return digest(self.documents.fingerprint, self.queries.fingerprint, judged)

    @cached_property
    def split_sizes(self) -> dict[str, int]:
        """Queries in each split that `split` accepts, empty ones left out."""
        sizes = {split: len(self._in_order(qrels.query_ids)) for split, qrels in self.qrels.items()}
        sizes |= {"all": len(self.queries), "unjudged": len(self._unjudged)}
        return {split: size for split, size in sizes.items() if size}

    def split(self, name: str) -> Texts:
        """The queries of a split, in the order of the queries file.

        Args:
            name: A split of `qrels`; ``"all"`` (every query); ``"unjudged"`` (queries in no split: a query log without
                labels); ``"auto"``, for training: train if there is one, else unjudged if there are any, else no query.

        Raises:
            UserError: There is no such split or it has no queries; the message lists the splits there are.
        """
        sizes = self.split_sizes
        if name == "auto":
            name = next((split for split in ("train", "unjudged") if split in sizes), "none")
            if name == "none":
                return Texts.from_pairs([])
        if name not in sizes:
            what = "has no queries in" if name in self.qrels or name in PSEUDO_SPLITS else "has no"
            raise UserError(f"collection {self.name} {what} split {name!r}; {self._listed(sizes)}.")
        if name == "all":
            return self.queries
        return self.queries.select(self._unjudged if name == "unjudged" else self._in_order(self.qrels[name].query_ids))

    def relevance(self, split: str) -> Qrels:
        """The judgments of a split.

        Raises:
            UserError: The split has none; the message lists those that have.
        """
        if split not in self.qrels:
            judged = {name: size for name, size in self.split_sizes.items() if name not in PSEUDO_SPLITS}
            raise UserError(f"collection {self.name} has no judgments for split {split!r}; {self._listed(judged)}.")
        return self.qrels[split]

    @cached_property
    def _unjudged(self) -> list[str]:
        judged = {query for qrels in self.qrels.values() for query in qrels.query_ids}
        return [query for query in self.queries.ids if query not in judged]

    def _in_order(self, ids: Iterable[str]) -> list[str]:
        wanted = set(ids)
        return [query for query in self.queries.ids if query in wanted]

    @staticmethod
    def _listed(sizes: Mapping[str, int]) -> str:
        listed = ", ".join(f"{split} ({size} queries)" for split, size in sizes.items())
        return f"splits: {listed}" if listed else "it has no queries at all"


@dataclass(frozen=True)
class Leak:
    """A training query that is also a test query.

    Attributes:
        train_id: Its id among the training queries.
        test_id: The test query's id; the same, or one with the same normalized text.
        text: The training query's text.
    """

    train_id: str
    test_id: str
    text: str


def leaks(collection: Collection, train: str = "train", test: str = "test") -> list[Leak]:
    """Queries in both splits, by id or by normalized text; at most one entry per training query.

    Raises:
        UserError: One of the splits does not exist.
    """
    return leaks_between(collection.split(train), collection.split(test))


def leaks_between(train: Texts, test: Texts) -> list[Leak]:
    """As `leaks`, for any two sets of queries: titles drawn as pseudo-queries may be test queries too."""
    by_text: dict[str, str] = {}
    for id_, text in zip(test.ids, test.texts, strict=True):
        by_text.setdefault(normalized(text), id_)
    by_text.pop("", None)
    found = []
    for id_, text in zip(train.ids, train.texts, strict=True):
        twin = id_ if id_ in test else by_text.get(normalized(text))
        if twin is not None:
            found.append(Leak(id_, twin, text))
    return found


def leak_warning(found: list[Leak]) -> str | None:
    """One line that says how many training queries are test queries, or None."""
    if not found:
        return None
    return (
        f"{len(found)} training queries are also test queries, by id or by text "
        f"({sample_of(leak.text for leak in found)}): they are dropped from training."
    )


def normalized(text: str) -> str:
    """Casefolded, with every run of whitespace and punctuation made one space."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def full_text(title: str, body: str) -> str:
    """The text that a ranker sees of a document: beir's rule."""
    return f"{title} {body}".strip()


def check_parts(documents: Texts, queries: Texts, qrels: Mapping[str, Qrels]) -> tuple[dict[str, Qrels], list[str]]:
    """Drop judgments of unknown queries and collect warnings.

    Returns:
        The judgments that are left, and warnings, one line each.

    Raises:
        UserError: A split has the name of a pseudo-split.
    """
    for split in qrels:
        if split in PSEUDO_SPLITS:
            raise UserError(
                f"a split of the judgments is called {split!r}, a reserved name "
                f"({', '.join(PSEUDO_SPLITS)}); rename it."
            )
    warnings = _empty_warnings(documents, queries)
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


def empty_ids(texts: Texts) -> list[str]:
    """Ids of the texts that are empty or only whitespace."""
    blank = pc.equal(pc.utf8_trim_whitespace(texts.table["text"]), "")
    return texts.table["id"].filter(blank).to_pylist()


def _empty_warnings(documents: Texts, queries: Texts) -> list[str]:
    kinds = (
        ("documents have no text", documents, "they are kept and can never be found"),
        ("queries have no text", queries, "they are kept and find nothing"),
    )
    return [f"{len(ids)} {what} ({sample_of(ids)}): {so}." for what, texts, so in kinds if (ids := empty_ids(texts))]


def _unknown_documents(split: str, judged: Qrels, documents: Texts) -> list[str]:
    # In this direction, the corpus' ids stream past a small set and are never held in memory.
    wanted = pc.unique(judged.table["document_id"])
    ids = documents.table["id"]
    unknown = set(wanted.to_pylist()) - set(ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist())
    if not unknown:
        return []
    rows = pc.sum(pc.is_in(judged.table["document_id"], value_set=pa.array(sorted(unknown), pa.string()))).as_py()
    return [
        f"{split}: {rows} judgments name {len(unknown)} documents that the corpus lacks "
        f"({sample_of(sorted(unknown))}): kept, they count against recall as in beir."
    ]
