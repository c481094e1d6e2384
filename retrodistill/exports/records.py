"""What is exported: ids, exact vectors, titles and texts of an index's documents, batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse
from scipy.sparse import csr_array

from retrodistill.core.checksums import checked
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import log
from retrodistill.core.stores import slug
from retrodistill.data.collection import Collection
from retrodistill.data.fields import fields_digest, type_names
from retrodistill.data.parents import Parents
from retrodistill.data.passages import with_passages
from retrodistill.data.texts import Texts, duplicates, id_places, take_rows
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import TextModel
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.multi_vector import Tokens, maxsim
from retrodistill.encoders.names import KINDS, ModelName, parse_model_name, relative_to
from retrodistill.encoders.reading import readable
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import leading
from retrodistill.indexes.base import Index, saved_name
from retrodistill.indexes.columns import TEXTS, Choice, chosen, columns_of
from retrodistill.indexes.registry import load_index
from retrodistill.runs.documents import PASSAGE
from retrodistill.runs.run import Run, TieOrder, top_k

Kind = Literal["dense", "sparse", "multi-vector"]
Vectors: TypeAlias = "np.ndarray | csr_array | Tokens"
Answers: TypeAlias = list[list[tuple[str, float]]]
"""For each query (document id, score) of the documents that were found, best first."""
_OWN_COLUMNS = (PASSAGE, "document_id", "title", "text", "vector", "vectors", "indices", "values")
_BATCH = {"dense": 4096, "sparse": 4096, "multi-vector": 128}  # documents that are read at a time, about 10 MB


@dataclass(frozen=True)
class Records:
    """The documents of an index, as another system takes them."""

    kind: Kind  # of a vector: per document, of weights of vocabulary entries, or per token
    ids: Sequence[str]  # (n,)
    space: EmbeddingSpace  # queries of another space are refused
    read: Callable[[int, int], Any]  # (start, stop) -> (stop - start, d) numbers, CSR rows, or `Tokens`; stop excluded
    fingerprint: str = ""  # of ids and vectors, or of what determines them; ties an interrupted export to its source
    name: str = "index"  # of the index's runs
    queries_by: str | None = None  # name of the query encoder; None for one that was never saved
    vocabulary: Sequence[str] | None = None  # (d,) entries of a sparse space, where they are known
    collection: str | None = None  # name for a collection in a store
    payload: Mapping[str, Texts] = field(default_factory=dict)  # ``title`` and ``text``, those that are exported
    parents: Parents | None = None  # of passages, whose ids are those of the records
    columns: pa.Table | None = None  # of the index: fields, and titles and texts if it stores them
    fields: pa.Table | None = None  # that are exported, a row per document

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def field_types(self) -> list[tuple[str, pa.DataType]]:
        """Names and types of the fields that are exported."""
        return [] if self.fields is None else [(field.name, field.type) for field in self.fields.schema]

    def block(self, start: int, stop: int) -> Vectors:
        """Float32 vectors of documents start to stop; sparse rows have ascending columns and no zeros."""
        vectors = self.read(start, stop)
        if isinstance(vectors, Tokens):
            return Tokens(np.asarray(vectors.vectors, dtype=np.float32), np.asarray(vectors.bounds, dtype=np.int64))
        if isinstance(vectors, np.ndarray):
            return np.ascontiguousarray(vectors, dtype=np.float32)
        rows = vectors.astype(np.float32)
        rows.sum_duplicates()  # also sorts the columns of each row
        rows.eliminate_zeros()
        return rows

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """All documents in batches of `size`; by default of about 10 MB."""
        size = size or _BATCH[self.kind]
        for start in range(0, len(self), size):
            yield Batch(self, start, min(start + size, len(self)))

    def take(self, rows: Iterable[int]) -> Vectors:
        """Vectors of the documents of `rows`, in this order."""
        return stacked(self.kind, [self.block(row, row + 1) for row in rows], self.space.dimension)

    def with_payload(self, collection: Collection | None, *, texts: bool, fields: Choice = "all") -> Records:
        """The same with titles, fields, and, if wanted, texts: of the collection, and else those that the index stores.

        Missing documents, texts that neither has, and unknown fields are refused. Fields of the index come first.
        """
        if collection is not None and self.parents is not None and collection.parents is None:
            collection = with_passages(collection, self.parents.settings)
        stored = self.columns
        if stored is None or set(stored.column_names) <= set(TEXTS):
            stored = None if collection is None else _fields_of(collection, self.ids)
        columns = chosen(stored, fields)
        if taken := [name for name in columns if name in _OWN_COLUMNS]:
            reserved = ", ".join(_OWN_COLUMNS)
            raise UserError(f"field {taken[0]!r} has a reserved name ({reserved}); choose other fields.")
        records = replace(self, fields=pa.table(columns) if columns else None)
        if collection is not None:
            parts = {"title": _texts_of(collection.titles, self.ids)}
            parts |= {"text": _texts_of(collection.bodies, self.ids)} if texts else {}
            return replace(records, collection=slug(collection.name), payload=parts)
        if self.columns is None or "text" not in self.columns.column_names:
            if texts:
                raise UserError("texts are to be exported, but there is no collection to take them from; give one.")
            return records
        ids, wanted = pa.chunked_array([self.ids], pa.string()), TEXTS if texts else TEXTS[:1]
        filled = {name: pc.fill_null(checked(self.columns[name]), "") for name in wanted}
        return replace(records, payload={name: Texts(pa.table({"id": ids, "text": filled[name]})) for name in wanted})

    def manifest(self, artifact: str, settings: dict[str, Any], folder: Path | None = None) -> Manifest:
        """What determines an export, the settings of its store among them, and what a search of it needs to know.

        In an export that is a folder, models that are folders are named relative to it.
        """
        inputs = {"space": self.space.fingerprint, "vectors": self.fingerprint}
        inputs |= {f"{column}s": texts.fingerprint for column, texts in self.payload.items()}
        inputs |= {} if self.fields is None else {"fields": fields_digest(self.fields)}
        names = [self.space.documents_by, self.queries_by]
        documents_by, queries_by = names if folder is None else [relative_to(name, folder) for name in names]
        about = {
            "space": {**self.space.to_json(), "documents_by": documents_by},
            "documents": len(self),
            "name": self.name,
            "queries_by": queries_by,
        }
        if self.parents is not None:
            about |= {"passages": self.parents.settings.model_dump(), "parents": len(self.parents.ids)}
        about |= {} if self.fields is None else {"fields": type_names(self.fields.schema)}
        return Manifest(artifact, inputs, {"kind": self.kind, **settings}, about)


@dataclass(frozen=True)
class Batch:
    """Documents `start` to `stop` (exclusive) of some records."""

    records: Records
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def ids(self) -> list[str]:
        """(n,) document ids."""
        return list(self.records.ids[self.start : self.stop])

    @cached_property
    def vectors(self) -> Vectors:
        """Their vectors, which are read when they are first needed."""
        return self.records.block(self.start, self.stop)

    @property
    def payload(self) -> dict[str, list[str]]:
        """``document_id``, ``title`` and ``text``, those that are exported; '' where a document has none.

        A passage has a ``passage_id``, too, which is the record's.
        """
        texts = {name: texts.slice(self.start, self.stop) for name, texts in self.records.payload.items()}
        if self.records.parents is None:
            return {"document_id": self.ids, **texts}
        return {
            PASSAGE: self.ids,
            "document_id": self.records.parents.column[self.start : self.stop].to_pylist(),
            **texts,
        }

    @property
    def fields(self) -> pa.Table | None:
        """The fields that are exported, a row per document."""
        return None if self.records.fields is None else self.records.fields.slice(self.start, len(self))


def vector_records(
    ids: Sequence[str],
    vectors: Any,
    space: EmbeddingSpace,
    *,
    name: str = "index",
    queries_by: str | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Records:
    """Records of (n, d) numbers, a CSR matrix (n, vocabulary), or `Tokens` of n texts, memory-mapped or not.

    Raises:
        UserError: Vectors that do not fit the ids or the space, that are not finite, or ids that are not unique.
    """
    kind: Kind = "dense"
    if isinstance(vectors, Tokens):
        bounds = np.asarray(vectors.bounds)
        if bounds[0] != 0 or bounds[-1] != len(vectors.vectors) or (np.diff(bounds) < 0).any():
            raise UserError(f"bounds of {len(vectors)} documents do not fit {len(vectors.vectors)} token vectors.")
        kind, rows, width = "multi-vector", len(vectors), vectors.dimension
    elif vectors.ndim != 2:
        raise UserError(f"dense vectors of {vectors.ndim} axes; give (documents, dimension).")
    else:
        rows, width = vectors.shape
        if sparse.issparse(vectors):
            kind, vectors = "sparse", csr_array(vectors)
    if rows != len(ids) or width != space.dimension:
        raise UserError(
            f"{len(ids)} ids and a space of {space.dimension} dimensions with {rows} documents of {width}; they do not "
            "belong together: build the index again."
        )
    read = vectors.slice if kind == "multi-vector" else lambda start, stop: vectors[start:stop]
    return _checked(Records(kind, ids, space, read, "", name, queries_by, vocabulary))


def records_from(source: Any, collection: Collection | None = None) -> Records:
    """The exact vectors of an index's documents.

    Dense vectors are exported as their encoder made them, not as codes: the other system quantizes for itself, and a
    code of a code loses twice. Where a FAISS index holds codes or transforms, the documents are embedded again; the
    store of embeddings has those that were embedded on this machine. Impacts and token vectors are exported as the
    index scores them: pruned and decoded (with ``bits: 32``, ``float32`` or ``float16``, they are the encoder's).

    Args:
        source: `Records`, an index or its folder, a dense or sparse encoder or its name.
        collection: Where to take texts that have to be embedded (again).

    Raises:
        UserError: It cannot be exported; or texts have to be embedded and there is no collection, it lacks documents,
            or the documents' encoder cannot be loaded.
    """
    if isinstance(source, Records):
        return source
    if isinstance(source, (str, Path, ModelName)):
        name = str(source)  # of an index's folder, or of an encoder
        source = load_encoder(parse_model_name(name)) if name.partition(":")[0] in KINDS else load_index(name)
    if hasattr(source, "vector_reader"):
        return _of_index(source, collection)
    if getattr(source, "kind", None) == "multi-vector":
        raise UserError(f"{source.name}: token vectors are exported from an index; build one of codec 'float16' first.")
    if getattr(source, "has_model", False):
        return _of_encoder(source, collection)
    raise UserError(f"a {type(source).__name__} cannot be exported; give an index, its folder, or an encoder's name.")


def stacked(kind: str, blocks: Sequence[Any], dimension: int) -> Vectors:
    """Several blocks of one kind as one."""
    if kind == "multi-vector":
        return Tokens.of([block[row] for block in blocks for row in range(len(block))], dimension)
    if kind == "dense":
        return np.concatenate([np.zeros((0, dimension), dtype=np.float32), *blocks])
    return sparse.vstack([csr_array((0, dimension), dtype=np.float32), *blocks], format="csr")


def score_matrix(queries: Any, documents: Any) -> np.ndarray:
    """(q, n) float32 scores of every query with every document, both of one kind.

    Inner products, or MaxSim (ColBERT, arXiv 2004.12832, eq. 3) of token vectors. The score is -inf where a search
    does not find the document: no token, or no positive product of sparse vectors.
    """
    if isinstance(queries, Tokens):
        scores = np.full((len(queries), len(documents)), -np.inf, dtype=np.float32)
        rows = np.ix_(np.flatnonzero(queries.lengths), np.flatnonzero(documents.lengths))
        # Texts without tokens have no vectors: without their repeated bounds they are gone.
        filled = (Tokens(tokens.vectors, np.unique(tokens.bounds)) for tokens in (queries, documents))
        scores[rows] = maxsim(*filled)
        return scores
    if isinstance(queries, np.ndarray):
        return np.asarray(queries @ documents.T, dtype=np.float32)
    scores = (queries @ documents.T).toarray().astype(np.float32, copy=False)
    scores[scores <= 0] = -np.inf
    return scores


def exact_search(batches: Iterable[tuple[Sequence[str], Vectors]], queries: Any, k: int) -> Answers:
    """The k best documents of each query by `score_matrix`, from batches of ids and vectors of the queries' kind.

    Of documents that tie for the last places, those of the lowest ids.

    Memory grows with a batch and k, not with the documents.
    """
    count = len(queries) if isinstance(queries, Tokens) else queries.shape[0]
    ids, scores = np.zeros((count, 0), dtype=object), np.zeros((count, 0), dtype=np.float32)
    for batch_ids, vectors in batches:
        batch_scores, names = score_matrix(queries, vectors), np.asarray(batch_ids, dtype=object)
        best = top_k(batch_scores, k, _by_id(names))
        ids = np.concatenate([ids, names[best]], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(batch_scores, best, axis=1)], axis=1)
        kept = [top_k(values, k, _by_id(own)) for own, values in zip(ids, scores, strict=True)]
        best = np.array(kept, dtype=np.int64).reshape(count, min(k, scores.shape[1]))
        ids, scores = (np.take_along_axis(table, best, axis=1) for table in (ids, scores))
    rows = zip(ids.tolist(), scores.tolist(), strict=True)
    return [[pair for pair in zip(*row, strict=True) if np.isfinite(pair[1])] for row in rows]


def _by_id(ids: np.ndarray) -> TieOrder:
    return lambda rows: id_places(pa.array(ids[rows], pa.string()))


def run_of(answers: Answers, query_ids: Sequence[str] | None = None, name: str = "run") -> Run:
    """Answers as a run in rank order; queries are named "0", "1"... by default."""
    ids = map(str, range(len(answers))) if query_ids is None else query_ids
    rows = [(query, *pair) for query, pairs in zip(ids, answers, strict=True) for pair in pairs]
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return Run.from_arrays(*map(list, columns), name=name).ranked()


def _of_index(index: Index, collection: Collection | None) -> Records:
    kind: Any = index.encoder_kinds[0]
    queries, read = index.queries, index.vector_reader()
    if collection is not None and (changed := index.changes(collection)):
        log(changed)
    space = replace(index.space, documents_by=_anywhere(index.documents_from))
    # Token weights do not name a model; the index does.
    by = space.documents_by if queries is not None and not queries.has_model else _full_name(queries)
    if read is not None:
        exact = Records(kind, index.ids, space, read, "", index.name, by, parents=index.parents, columns=index.columns)
        return _checked(exact)
    if collection is None:
        raise UserError(
            f"{index!r} holds codes, not vectors; give the collection, so that its documents can be embedded again, or "
            "export an index of factory 'Flat'."
        )
    encoder = queries
    if encoder is None or not space.holds_documents_of(encoder):
        encoder = index._document_encoder("export an index of factory 'Flat', or build it again")
    texts = _texts_of(index.as_indexed(collection).documents, index.ids)
    vectors = embed(encoder.bind(collection), texts.texts, "document")
    vectors = leading(vectors, space.truncation, unit=space.norm == "unit")
    records = vector_records(index.ids, vectors, space, name=index.name, queries_by=by)
    made_by = encoder.fingerprint("document"), space.dimension, texts.fingerprint
    return replace(records, fingerprint=_pin(index.ids, *made_by), parents=index.parents, columns=index.columns)


def _of_encoder(encoder: Any, collection: Collection | None) -> Records:
    if collection is None:
        raise UserError(f"{encoder.name} has no documents of its own to export; give a collection.")
    collection = readable(encoder, collection)
    documents = collection.documents
    vectors, space = embed(encoder.bind(collection), documents.column, "document"), EmbeddingSpace.of(encoder)
    space = replace(space, documents_by=_full_name(encoder) or encoder.name)
    records = vector_records(documents.ids, vectors, space, name=encoder.name, queries_by=_full_name(encoder))
    pin = _pin(records.ids, encoder.fingerprint("document"), documents.fingerprint)
    return replace(records, fingerprint=pin, parents=collection.parents)


def _full_name(queries: TextModel | None) -> str | None:
    """Name of the query encoder; a folder as an absolute path, since exports are searched from anywhere."""
    name = saved_name(queries)
    return None if name is None else _anywhere(name)


def _anywhere(name: str) -> str:
    return str(parse_model_name(name).anywhere) if name.partition(":")[0] in KINDS else name


def _texts_of(texts: Texts, ids: Sequence[str]) -> Texts:
    """The texts of an index's documents, in its order."""
    if len(ids) == len(texts) and list(ids) == texts.ids:
        return texts
    missing = [ids[row] for row in np.flatnonzero(texts.positions(ids) < 0).tolist()]
    if missing:
        raise UserError(
            f"the collection lacks {len(missing)} documents of the index ({sample_of(missing)}); give the collection "
            "that it was built on."
        )
    return texts.select(ids)


def _fields_of(collection: Collection, ids: Sequence[str]) -> pa.Table | None:
    """The fields of an index's documents, in its order."""
    table = columns_of(collection)
    if table is None or _texts_of(collection.documents, ids) is collection.documents:
        return table
    return take_rows(table, collection.documents.positions(ids))


def _pin(ids: Sequence[str], *parts: object) -> str:
    """Digest of ids and of what determines the vectors."""
    names = hashlib.blake2b(digest_size=16)
    for encoded in map(str.encode, ids):
        names.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest(names.hexdigest(), *parts)


def _checked(records: Records) -> Records:
    """The records with the fingerprint of their content, which is read once and checked on the way."""
    if not len(records):
        raise UserError("the index holds no documents; there is nothing to export.")
    if twice := duplicates(pa.chunked_array([records.ids], pa.string())):
        raise UserError(f"document id {sample_of(twice)} appears more than once; ids must be unique.")
    content = hashlib.blake2b(digest_size=16)
    for batch in records.batches():
        arrays = _arrays(batch.vectors)
        if not np.isfinite(arrays[0]).all():
            raise UserError(
                f"documents {batch.ids[0]!r} to {batch.ids[-1]!r} hold numbers that are NaN or infinite; embed these "
                "again or leave them out."
            )
        for array in arrays:
            content.update(np.ascontiguousarray(array).tobytes())
    return replace(records, fingerprint=_pin(records.ids, records.kind, content.hexdigest()))


def _arrays(vectors: Any) -> list[np.ndarray]:
    """The numbers of a block, and what tells its documents apart."""
    if isinstance(vectors, Tokens):
        return [vectors.vectors, np.diff(vectors.bounds)]
    if isinstance(vectors, np.ndarray):
        return [vectors]
    return [vectors.data, np.diff(vectors.indptr).astype(np.int64), vectors.indices.astype(np.int64)]
