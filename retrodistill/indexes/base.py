"""The base class of all indexes: documents by id, search by text, and the folder on disk."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.core.arrays import read_parquet
from retrodistill.core.checksums import PREFIX, check_files, file_checksum
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import atomic_folder, check_replaceable, is_leftover, read_whole
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.turns import alone, in_turn, shared
from retrodistill.data.collection import Collection
from retrodistill.data.fields import type_names
from retrodistill.data.filters import Filtering, parse_filter
from retrodistill.data.parents import Parents, PassageSettings
from retrodistill.data.passages import cut_documents, untitled, with_passages
from retrodistill.data.texts import Texts, id_places
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY, TextModel
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.names import found_from, relative_to, split_variant
from retrodistill.encoders.reading import readable, readable_queries
from retrodistill.encoders.space import EmbeddingSpace, changes_of_queries
from retrodistill.indexes.columns import (
    COLUMNS_FILE,
    ID,
    Records,
    new_rows,
    of_passages,
    passing_rows,
    read_columns,
    row_of,
    schema_with_ids,
    write_columns,
)
from retrodistill.rankers.protocol import DEPTH, Queries, Ranker, as_queries, wanted_depth, with_content
from retrodistill.runs.documents import best_documents, by_document, in_blocks, passage_pairs
from retrodistill.runs.run import Run

_IDS_FILE = "ids.parquet"
_OTHER_FILES = ("made-from.json",)  # recipes write it into the folder
_ABOUT = ("space", "name", "queries_by", "checksums")


class StoredIndex(NamedTuple):
    """What every index folder holds, whatever its kind. The checksums of all files were checked."""

    folder: Path
    settings: dict[str, Any]
    about: dict[str, Any]  # name, queries_by, build_seconds...
    space: EmbeddingSpace
    ids: list[str]
    labels: np.ndarray  # (n,) int64 by which the other files refer to the documents
    parents: Parents | None  # of passages
    fingerprint: str
    columns_seal: str | None  # of the columns; None without these, and in version 0.1.0


class Index(Ranker):
    """A ranker that holds its own documents. A kind implements what raises `NotImplementedError` here.

    `ids` are in the order in which the documents were added. Query encoders of another space than `space` are refused;
    without `queries`, the index is searched by vectors only. `name` is that of its runs. `documents` encodes documents
    that are added as texts; by default it is loaded by its name when needed.

    An index of passages has their `parents`. Its `ids` and its length are those of passages; documents are what a
    search finds, what `add` takes and cuts by the same rule, and what `remove` removes.

    Any number of threads may search it. Changes are made one after the other, and each waits for the searches that are
    under way; a search finds all of the documents of a change or none, though texts of a multi-vector index are added
    in blocks. Setting search parameters and tuning are for one thread, while no other one uses the index.
    """

    can_search = True
    index_kind: str  # its name in the registry
    encoder_kinds: tuple[str, ...]  # whose vectors it holds
    made_from: str = ""  # fingerprint of the folder it was loaded from; empty in memory or after a change
    build_seconds: float | None = None
    is_read_only: bool = False  # memory-mapped
    parents: Parents | None = None  # the documents, where passages of them are indexed
    # the collection: name, number of documents, fingerprint until a change, ids that the encoder could not read
    source: Mapping[str, Any] = MappingProxyType({})
    columns: pa.Table | None = None  # fields of the documents, and title and text if wanted; a row for each of `ids`

    def __init__(self, ids: Sequence[str], space: EmbeddingSpace, queries: Any, name: str, documents: Any) -> None:
        held = self._held()
        if held != (len(ids), space.dimension):
            raise UserError(
                f"{self.index_kind} index of {held[0]} documents of {held[1]} dimensions with {len(ids)} ids and a "
                f"space of {space.dimension}; the files do not belong together: build the index again."
            )
        self.ids, self.space, self.name, self._documents = list(ids), space, name, documents
        self._queries_by: str | None = None  # model whose token weights replace it
        self._set_queries(queries)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        queries = getattr(self.queries, "name", "no model")
        settings = ", ".join(f"{name}={value}" for name, value in self._settings().items() if value is not None)
        return f"{type(self).__name__}({self.size_text} by {self.documents_by}, queries by {queries}, {settings})"

    def fingerprint(self, collection: Collection) -> str:
        """Digest of its folder and its query encoder; empty for an index in memory."""
        queries = self.queries.fingerprint("query") if hasattr(self.queries, "fingerprint") else ""
        return digest(self.made_from, queries) if self.made_from else ""

    @property
    def rule(self) -> PassageSettings | None:
        """How documents were cut into the passages that are indexed; None for whole documents."""
        return None if self.parents is None else self.parents.settings

    @property
    def size(self) -> int:
        """Number of documents, those that passages were cut from."""
        return len(self) if self.parents is None else len(self.parents.ids)

    @property
    def size_text(self) -> str:
        """The size in words, with the number of passages."""
        return f"{self.size} documents" + (f" in {len(self)} passages" if self.rule is not None else "")

    @property
    def document_ids(self) -> list[str]:
        """(size,) ids of the documents."""
        return self.ids if self.parents is None else self.parents.ids.to_pylist()

    def ranks_documents(self, collection: Collection) -> bool:
        """Yes: it finds documents by their passages itself."""
        return True

    def set_source(self, collection: Collection) -> None:
        """Note the collection that it was made from, with the documents that the encoder could not read."""
        documents = collection.whole.documents
        self.source = {"name": collection.name, "documents": len(documents), "fingerprint": documents.fingerprint}
        if self.size < len(documents):
            self._leave_out({*documents.ids}.difference(self.document_ids))

    @property
    def left_out(self) -> frozenset[str]:
        """Ids of documents that it was given and does not hold, since the encoder cannot read them."""
        return frozenset(self.source.get("unreadable", ()))

    def _leave_out(self, ids: Iterable[str]) -> None:
        self.source = {**self.source, "unreadable": sorted(ids)}

    def changes(self, collection: Collection) -> str | None:
        """How a collection differs from the documents that are indexed, in words; None if it does not.

        Documents are compared by id, unless the collection has the fingerprint of the one that was indexed. Texts that
        changed are noticed if nothing was added or removed since.
        """
        documents = collection.whole.documents
        built = self.source.get("fingerprint")
        if built == documents.fingerprint:
            return None
        held = set(self.document_ids)
        texts = set(documents.ids).difference(documents.blank, self.left_out)
        found = [(len(texts - held), "new"), (len(held - texts), "missing")]
        phrases = [f"{count} {what}" for count, what in found if count]
        if not phrases and not built:
            return None
        said = f"{' and '.join(phrases)} documents" if phrases else "other texts"
        return f"collection {collection.name} is not what the index was made from: {said}"

    def as_indexed(self, collection: Collection) -> Collection:
        """The collection, cut into passages where the index holds passages."""
        if self.rule is None or collection.parents is not None:
            return collection
        return with_passages(collection, self.rule)

    @property
    def documents_by(self) -> str:
        """Name of the document encoder."""
        return self.space.documents_by

    @property
    def documents_from(self) -> str:
        """Name of the document encoder by which any process can load it, where that is known."""
        return saved_name(self._documents) or self.documents_by

    @property
    def can_be_timed(self) -> bool:
        """Whether it has a query encoder that encodes new queries."""
        return self.queries is not None and getattr(self.queries, "can_be_timed", True)

    def add(self, documents: Texts | Collection, fields: Records | None = None) -> None:
        """As `add_vectors`, by the encoder of the space. Trained parts stay as they are.

        A collection has titles, which are put before each passage, and fields; of plain texts, the whole text is cut.
        Documents that the encoder cannot read, such as blank ones, are left out.
        """
        given = documents.whole if isinstance(documents, Collection) else untitled(documents)
        with in_turn(self):
            self._add(given, fields)

    def _add(self, given: Collection, fields: Records | None) -> None:
        self._check_new(given.documents.ids)
        titled = readable(self._document_encoder(), given)
        ids = titled.documents.ids
        rows = new_rows(self.columns, ids, titled.fields if fields is None else fields, titled)
        if self.parents is None:
            self._add_texts(ids, titled.documents, rows)
        else:
            owners, passages = cut_documents(titled, self.parents.settings)
            self._add_texts(owners, passages, of_passages(rows, owners, passages))
        self._leave_out(self.left_out.union(given.documents.ids).difference(ids))

    def add_vectors(self, ids: Sequence[str], vectors: Any, fields: Records | None = None) -> None:
        """Index vectors of the documents' space: (n, dimension) float32, (n, terms) sparse weights, or `Tokens`.

        In an index of passages, the vectors are of passages, and the ids of their documents: those of a document are
        adjacent. `fields` are ``{id: {field: value}}`` of fields that the index stores; those that are missing are
        null. An id that occurs twice or is in the index, vectors of another dimension or not finite, an unknown field
        or a value of another type, and a change of a memory-mapped index are a `UserError`.
        """
        _check_list(ids)
        owners = ids if self.parents is None else [id_ for id_, _ in itertools.groupby(ids)]
        with in_turn(self):
            self._check_new(owners)
            rows = new_rows(self.columns, owners, fields)
            rows = rows if self.parents is None else of_passages(rows, ids)
            self._extend(ids, self._checked_new(vectors, ids), rows)

    def _add_texts(self, ids: Sequence[str], texts: Texts, rows: pa.Table | None) -> None:
        """Encode and add texts, with the ids of their documents and rows of what is stored."""
        self._extend(ids, embed(self._document_encoder(), texts.column, "document"), rows)

    def _extend(self, ids: Sequence[str], vectors: Any, rows: pa.Table | None) -> None:
        """Add vectors of new documents, by the ids of these, and rows of what is stored."""
        vectors = self._prepare(vectors, "documents")
        _check_count(ids, vectors, "ids")
        self._check_values(vectors, ids, "documents")
        with alone(self):
            self._forget()
            self._append(vectors)
            if self.parents is None:
                self.ids += list(ids)
            else:
                self.parents = self.parents.with_added(ids)
                self.ids += self.parents.names(len(self.ids))
            if rows is not None:
                self.columns = pa.concat_tables([self.columns, rows])

    def _checked_new(self, vectors: Any, ids: Sequence[str]) -> Any:
        """What `add_vectors` is given, after checks that vectors of the index's own encoder need not pass."""
        return vectors

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents, or refuse an unknown id or a kind that cannot. The codes of the others do not change.

        Those that the encoder could not read may be removed as well, though they are not held.
        """
        self._check_changeable()
        _check_list(ids)
        with in_turn(self), alone(self):
            removed, held = set(ids) - self.left_out, self.document_ids
            if strange := removed.difference(held):
                raise UserError(f"cannot remove {sample_of(sorted(strange, key=str))}: not in the index.")
            if removed:
                self._remove(removed, held)
            self._leave_out(self.left_out.difference(ids))

    def _remove(self, removed: set[str], held: Sequence[str]) -> None:
        """Remove documents that are held."""
        gone = np.fromiter((id_ in removed for id_ in held), dtype=bool, count=len(held))
        if self.parents is not None:
            gone = gone[self.parents.rows]
        self._drop(gone)
        self._forget()
        if self.parents is not None:
            self.parents = self.parents.without(gone)
        if self.columns is not None:
            self.columns = self.columns.filter(pa.array(~gone))
        self.ids = [id_ for id_, is_gone in zip(self.ids, gone.tolist(), strict=True) if not is_gone]

    def _forget(self) -> None:
        """Forget what is derived from documents that change: what they were made from, and places of ids."""
        self.made_from, self.source = "", {**self.source, "fingerprint": ""}
        for derived in ("_id_places", "_rows_by_id"):
            self.__dict__.pop(derived, None)

    def search(
        self,
        queries: Queries,
        collection: Collection | None = None,
        k: int | None = None,
        filter: Filtering | None = None,
        *,
        aggregate: str | None = None,
    ) -> Run:
        """The best k documents of each query: of one text, several (ids "0", "1"...), a mapping by id, or `Texts`.

        `k` is 1 to the number of documents; by default 10, or all if there are fewer. With a collection, query vectors
        come from the store, k is cut to the size of the index, and documents that are not in the collection are
        refused; those of a collection of passages are passages, all of a document's if the index holds documents. With
        a `filter` on the fields that the index stores, such as ``{"year": {">=": 2020}, "lang": "de"}``, the best of
        the documents that pass it are found: k, or all if fewer pass; see `retrodistill.data.filters`. No query
        encoder, an empty query, a k that exceeds the index, or a filter that does not fit the fields is a `UserError`.
        `aggregate` is that of `search_vectors`.
        """
        parsed = None if filter is None else parse_filter(filter, self.schema)  # before queries are encoded
        # a collection may have blank queries, which find nothing
        is_own = collection is not None and isinstance(queries, Texts)
        given: Any = queries if is_own else as_queries(queries)
        texts = readable_queries(self._query_encoder(), given)
        if collection is not None and collection.parents is not None:
            if self.rule is None:
                return passage_pairs(self.search(texts, collection.whole, k, parsed), texts, collection)
            vectors = self._prepare(self._encode_queries(texts.texts, collection), "queries")
            with shared(self):
                run = self._found(vectors, texts.ids, min(k or DEPTH, len(self)), self._passing(parsed))
        else:
            k = k if k is None or collection is None else min(k, self.size)

            def find(rows: slice) -> Run:
                vectors = self._encode_queries(texts.slice(rows.start, rows.stop), collection)
                return self.search_vectors(vectors, k, texts.ids[rows], parsed, aggregate=aggregate)

            passages = 0 if self.rule is None else (k or DEPTH) * len(self) // max(self.size, 1)
            run = in_blocks(find, len(texts), passages)
        if collection is None:
            return run
        run.positions(texts, collection.documents)  # refuses unknown ids
        return with_content(run, texts, collection)

    def search_vectors(
        self,
        vectors: Any,
        k: int | None = None,
        query_ids: Sequence[str] | None = None,
        filter: Filtering | None = None,
        *,
        aggregate: str | None = None,
    ) -> Run:
        """As `search`, by vectors of a query encoder of the space; `query_ids` are "0", "1"... by default.

        Of an index of passages, the run has a column `passage_id` with the best passage of each document, and
        `aggregate` replaces the index's own: ``max``, or ``mean@n``, see `by_document`.
        """
        vectors = self._prepare(vectors, "queries")
        ids = [str(number) for number in range(_count(vectors))] if query_ids is None else list(query_ids)
        _check_count(ids, vectors, "query ids")
        self._check_values(vectors, ids, "queries")
        with shared(self):
            k, passing = wanted_depth(k, self.size), self._passing(filter)
            return self._answer(lambda depth: self._found(vectors, ids, depth, passing), k, aggregate, passing)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of what filters compare: the columns that are stored, and ``document_id``."""
        return schema_with_ids(self.columns)

    def fields_of(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What the index stores of each of the documents: fields by name, and title and text if they are stored.

        Values are as in records, dates as `datetime.date` and times as `datetime.datetime`; missing ones are left out.
        An unknown id is a `UserError`.
        """
        with shared(self):
            if strange := [id_ for id_ in ids if id_ not in self._rows_by_id]:
                raise UserError(f"{sample_of(strange)}: not in the index.")
            return [row_of(self.columns, self._rows_by_id[id_]) for id_ in ids]

    def timed_stages(self, collection: Collection, k: int) -> tuple[Callable[[list[str]], Any], Callable[[Any], Any]]:
        """Encoding of queries, and search by their vectors."""
        encoder, k = self._query_encoder(), min(k, self.size)

        def find(vectors: Any) -> Any:
            if self.rule is None:
                return self._best(vectors, k)
            ids = [str(number) for number in range(_count(vectors))]
            return self._answer(lambda depth: self._found(vectors, ids, depth), k)

        return lambda texts: self._prepare(encoder.encode(texts, "query"), "queries"), find

    def vector_reader(self) -> Callable[[int, int], Any] | None:
        """A function that reads the vectors of documents start to stop (exclusive), as the index scores them.

        They are (stop - start, d) float32, CSR rows, or `Tokens`. None if the index holds codes only.
        """
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that serving needs, without ids and texts."""
        raise NotImplementedError

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """`nbytes` per document; None for an empty index."""
        return self.nbytes / self.size if self.size else None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder, whole or not at all: the files of the kind, ``ids.parquet``, and a manifest."""
        target = check_index_folder(folder)
        with shared(self), atomic_folder(target) as temporary:
            self._write(temporary)
            table = {ID: pa.array(self.ids, pa.string()), "label": pa.array(self._labels(), pa.int64())}
            if self.parents is not None:
                table["parent_id"] = self.parents.column
            pq.write_table(pa.table(table), temporary / _IDS_FILE)
            checksums = {file.name: file_checksum(file) for file in sorted(temporary.iterdir())}
            if self.columns is not None:  # texts take long to read: they are verified as they are
                checksums[COLUMNS_FILE] = write_columns(self.columns, temporary)
            has_model = self.queries is None or self.queries.has_model
            about = {
                "space": {**self.space.to_json(), "documents_by": relative_to(self.documents_from, target)},
                "documents": self.size,
                "name": self.name,
                "queries_by": relative_to(saved_name(self.queries) if has_model else self._queries_by, target),
                "checksums": checksums,
                **({} if self.columns is None else {"columns": type_names(self.columns.schema)}),
                **self._about(),
            }
            about |= {"collection": dict(self.source)} if self.source else {}
            if self.parents is not None:
                about["passages"] = self.parents.settings.model_dump()
            encoders = [each for each in (self.queries, self._documents) if each is not None and each.has_model]
            if code := {encoder.name: encoder.code for encoder in encoders if encoder.code}:
                about["code"] = code
            if (contract := own_query_contract(self.queries, self.space)) is not None:
                about["query_contract"] = contract
            if self.build_seconds is not None:
                about["build_seconds"] = round(self.build_seconds, 3)
            # Fields and texts do not change what a search finds without a filter.
            decisive = {name: checksum for name, checksum in checksums.items() if name != COLUMNS_FILE}
            inputs = {"space": self.space.fingerprint, **decisive}
            Manifest("index", inputs, {"kind": self.index_kind, **self._settings()}, about).write(temporary)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], queries: Any = None, *, memory_map: bool | None = None) -> Self:
        """Load an index with a query encoder (name or object), by default the one it was saved with.

        `memory_map` leaves vectors, codes or postings on disk; None does so for token vectors only. No index or one of
        another kind, a missing or damaged file, and a query encoder of another space are a `UserError`.
        """
        return read_whole(folder, lambda: cls._load(path_of(folder), queries, memory_map))

    @classmethod
    def _load(cls, folder: Path, queries: Any, memory_map: bool | None) -> Self:
        stored = _open(folder, cls.index_kind)
        index = cls._read(stored, memory_map)
        encoder = cls._load_queries(stored, queries)
        check_unchanged(encoder, stored.about.get("query_contract", {}))
        index._set_queries(encoder)
        index._queries_by = stored.about["queries_by"] if queries is None else None
        if COLUMNS_FILE in stored.about["checksums"]:
            index.columns = read_columns(stored.folder, stored.columns_seal)
        index.build_seconds, index.parents = stored.about.get("build_seconds"), stored.parents
        index.made_from, index.source = stored.fingerprint, stored.about.get("collection", {})
        return index

    def _answer(
        self, find: Callable[[int], Run], k: int, aggregate: str | None = None, passing: np.ndarray | None = None
    ) -> Run:
        """The best k documents by a search of what is indexed, which takes a depth; `passing` as of `_found`."""
        if self.rule is None:
            if aggregate is not None:
                raise UserError(f"aggregate {aggregate}: this index holds whole documents, not passages; leave it out.")
            return find(k)
        if passing is not None and not len(passing):
            return find(k)
        combine = partial(by_document, aggregate=aggregate or self.rule.aggregate, parents=self.parents)
        if passing is None or self.parents is None:
            return best_documents(find, k, len(self), self.size, combine)
        return best_documents(find, k, len(passing), len(np.unique(self.parents.rows[passing])), combine)

    def _found(self, vectors: Any, query_ids: Sequence[str], k: int, passing: Any = None) -> Run:
        """What prepared vectors find among all that is indexed, documents or passages, or among ascending rows."""
        if passing is None:
            rows, scores = self._best(vectors, k)
        elif len(passing) and k:
            rows, scores = self._best(vectors, min(k, len(passing)), passing)
        else:
            rows, scores = np.full((len(query_ids), 1), -1), np.zeros((len(query_ids), 1), dtype=np.float32)
        return Run.from_matrix(query_ids, self.ids, rows, scores, name=self.name).ranked()

    def _id_order(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64 keys that sort rows by ascending document id: the rule for equal scores."""
        return self._id_places[rows]

    @cached_property
    def _id_places(self) -> np.ndarray:
        return id_places(pa.array(self.ids, pa.string()))

    def _passing(self, filter: Filtering | None) -> Any:
        """What `_found` takes: ascending rows of what is indexed and passes a filter; None if everything does."""
        if filter is None:
            return None

        def ids() -> Any:
            return self.ids if self.parents is None else self.parents.column.cast(pa.string())

        rows = passing_rows(parse_filter(filter, self.schema), self.columns, ids)
        return None if rows is None or len(rows) == len(self) else rows

    @cached_property
    def _rows_by_id(self) -> dict[str, int]:
        """By id of what is indexed; and by document, the first of its passages."""
        documents = [] if self.parents is None else zip(self.document_ids, self.parents.bounds.tolist(), strict=False)
        return {**dict(documents), **{id_: row for row, id_ in enumerate(self.ids)}}

    def _held(self) -> tuple[int, int]:
        """Documents in it, and their dimension."""
        raise NotImplementedError

    def _prepare(self, vectors: Any, what: str) -> Any:
        """Vectors as the index holds them, after a check of their dimension."""
        raise NotImplementedError

    def _check_values(self, vectors: Any, ids: Sequence[str], what: str) -> None:
        """Refuse vectors that cannot be searched, by id."""
        raise NotImplementedError

    def _append(self, vectors: Any) -> None:
        """Index checked vectors of new documents."""
        raise NotImplementedError

    def _drop(self, removed: np.ndarray) -> None:
        """Remove the documents of a (n,) mask, or refuse before anything changes."""
        raise NotImplementedError

    def _best(self, vectors: Any, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (q, k) int64 and scores (q, k) float32; -1 where fewer than k were found.

        `among` are (m,) int64, ascending: the rows that may be found, at least k and not all. Of documents that tie for
        the last places, those of the lowest `_id_order`, as far as the kind can.
        """
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """How it was built, as JSON values."""
        raise NotImplementedError

    def _write(self, folder: Path) -> None:
        """Write the files of the kind."""
        raise NotImplementedError

    @classmethod
    def _read(cls, stored: StoredIndex, memory_map: bool | None) -> Self:
        """Read what `_write` wrote, without a query encoder."""
        raise NotImplementedError

    def _check_width(self, width: int, wanted: int, described: str, unit: str = "dimensions") -> None:
        """Refuse vectors of another encoder's width."""
        if width != wanted:
            raise UserError(
                f"{described} {width} {unit}, the index has {wanted}; use the encoder of its documents "
                f"({self.documents_by}) or one distilled into its space."
            )

    def _labels(self) -> np.ndarray:
        return np.arange(len(self))

    def _about(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _load_queries(cls, stored: StoredIndex, queries: Any) -> Any:
        source = stored.about["queries_by"] if queries is None else queries
        return None if source is None else load_encoder(source, cls.encoder_kinds)

    def _set_queries(self, queries: Any) -> None:
        if queries is not None and queries.has_model:
            self.space.check_query_encoder(queries)
        self.queries = queries

    def _query_encoder(self) -> Any:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _document_encoder(self, advice: str = "add vectors of the index's space instead") -> Any:
        """The encoder that made the documents, refused if it is no longer the same model."""
        if self._documents is None:
            encoder = load_encoder(self.documents_by, self.encoder_kinds)
            if not self.space.holds_documents_of(encoder):
                raise UserError(
                    f"{encoder.name} is no longer the model that encoded the documents "
                    f"({'; '.join(self.space.differences(encoder))}); {advice}."
                )
            self._documents = encoder
        return self._documents

    def _encode_queries(self, texts: Sequence[str], collection: Collection | None) -> Any:
        encoder = self._query_encoder()
        if collection is None:
            return encoder.encode(texts, "query")
        return embed(encoder.bind(collection) if encoder.has_model else encoder, texts, "query")

    def _check_new(self, ids: Sequence[str]) -> None:
        self._check_changeable()
        _check_list(ids)
        if wrong := [id_ for id_ in ids if not isinstance(id_, str)]:
            raise UserError(f"document id {wrong[0]!r} is {type(wrong[0]).__name__}; ids are strings.")
        if empty := [id_ for id_ in ids if not id_.strip()]:
            raise UserError(f"document id {empty[0]!r} is empty; give every document an id.")
        known = set(self.document_ids)
        if repeated := [id_ for id_, times in Counter(ids).items() if id_ in known or times > 1]:
            raise UserError(f"{sample_of(repeated)}: in the index already, or given twice; remove or rename them.")

    def _check_changeable(self) -> None:
        if self.is_read_only:
            raise UserError("a memory-mapped index cannot be changed; load it without memory_map.")


def load_sides(
    documents: Any, queries: Any, kinds: Sequence[str], truncation: int | None = None
) -> tuple[Any, Any, EmbeddingSpace]:
    """The encoder of documents, the encoder of queries (by default the same, else checked), and the space."""
    encoder = load_encoder(documents, kinds)
    query_encoder = encoder if queries is None else load_encoder(queries, kinds)
    space = EmbeddingSpace.of(encoder, truncation)
    space.check_query_encoder(query_encoder)
    return encoder, query_encoder, space


def check_index_folder(folder: str | os.PathLike[str]) -> Path:
    """Refuse to write an index where other files would be lost: anything but an older index."""
    target = check_replaceable(folder, _IDS_FILE)
    if not (target / FILE_NAME).is_file():
        return target
    known = {FILE_NAME, *_OTHER_FILES, *Manifest.read(target).about.get("checksums", {})}
    found = (entry.name for entry in target.iterdir() if not is_leftover(entry))
    if others := sorted(name for name in found if name not in known):
        raise UserError(f"{target} holds an index and {sample_of(others)}, which would be lost; choose another folder.")
    return target


def read_index_manifest(folder: Path) -> Manifest:
    """The manifest of an index folder, checked to be one and complete."""
    if not folder.is_dir():
        raise UserError(f"no index folder {folder}; build one with 'retrodistill index'.")
    if not (folder / FILE_NAME).is_file():
        raise UserError(f"folder {folder} does not hold an index (no {FILE_NAME}); a model is named 'dense:{folder}'.")
    manifest = Manifest.read(folder)
    if manifest.artifact != "index":
        raise UserError(f"{folder} holds {manifest.artifact}, not an index; give the folder of an index.")
    missing = [key for key in _ABOUT if key not in manifest.about]
    missing += ["kind"] if "kind" not in manifest.settings else []
    if missing:
        raise UserError(f"{folder / FILE_NAME} is incomplete: it lacks {missing[0]!r}; build the index again.")
    return manifest


def own_query_contract(queries: Any, space: EmbeddingSpace) -> dict[str, Any] | None:
    """For the manifest: how a query encoder that is not the documents' model encodes queries; None for others."""
    if queries is None or not queries.has_model or saved_name(queries) is None:
        return None
    contract: dict[str, Any] = queries.contract("query")
    return contract if "weights" in contract and contract != space.query_contract else None


def check_unchanged(queries: Any, contract: dict[str, Any]) -> None:
    """Refuse a query encoder of the same weights as in a manifest that encodes queries differently now."""
    if queries is not None and queries.has_model and (changes := changes_of_queries(queries, contract)):
        raise UserError(
            f"{queries.name} has changed since the index was saved ({'; '.join(changes)}); change it back, or build "
            "the index with it as it is now: documents are not embedded again."
        )


def saved_name(queries: TextModel | None) -> str | None:
    """An encoder's name for a manifest; None for a model that was never saved and must be given at loading."""
    if queries is None or queries.name.partition(":")[2] == IN_MEMORY:
        return None
    place = None if queries.loaded_from is None else split_variant(queries.loaded_from.name)[0]
    return str(queries.loaded_from) if place and os.path.exists(place) else str(queries.name)


def _open(folder: Path, kind: str) -> StoredIndex:
    manifest = read_index_manifest(folder)
    settings = dict(manifest.settings)
    if (stored_kind := settings.pop("kind")) != kind:
        raise UserError(f"{folder} holds an index of kind {stored_kind}, not {kind}; load it as such.")
    checksums = dict(manifest.about["checksums"])
    seal = checksums.pop(COLUMNS_FILE) if checksums.get(COLUMNS_FILE, "").startswith(PREFIX) else None
    check_files(folder, checksums, "build the index again")
    columns = [ID, "label", *(["parent_id"] if manifest.about.get("passages") is not None else [])]
    table = read_parquet(folder / _IDS_FILE, columns, "build the index again")
    space = EmbeddingSpace.from_json(manifest.about["space"])
    ids, labels = table[ID].to_pylist(), table["label"].to_numpy()
    space = replace(space, documents_by=found_from(space.documents_by, folder) or "")
    about = {**manifest.about, "queries_by": found_from(manifest.about["queries_by"], folder)}
    rule, parents = manifest.about.get("passages"), None
    if rule is not None:
        parents = Parents.of_column(table["parent_id"].cast(pa.string()), PassageSettings.of(rule))
    return StoredIndex(folder, settings, about, space, ids, labels, parents, manifest.fingerprint, seal)


def _check_list(ids: Sequence[str]) -> None:
    if isinstance(ids, str):
        raise UserError(f"document ids are {ids!r}, one string; give a list of them, e.g. [{ids!r}].")


def _count(vectors: Any) -> int:
    # Sparse arrays refuse `len`, and `Tokens` have no shape.
    return int(vectors.shape[0]) if hasattr(vectors, "shape") else len(vectors)


def _check_count(ids: Sequence[str], vectors: Any, what: str) -> None:
    if len(ids) != _count(vectors):
        raise UserError(f"{len(ids)} {what} for {_count(vectors)} vectors; give one id per vector.")
