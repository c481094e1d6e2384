"""Stores of encoded texts: a text is encoded once, for candidates, teacher, student and index together."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from retrodistill.core.cache import cache_folder
from retrodistill.core.checksums import DamagedError, check_rows, checked
from retrodistill.core.engines import Computation, check_same_model, compute, current_engine
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import bar, keep_freed_memory, log, release_freed_memory
from retrodistill.core.stores import KEY, KeyIndex, PartStore, text_keys
from retrodistill.data.texts import Texts
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import EncodingSettings, Role, TextModel, encode_with
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.encoders.names import ModelName
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import to_float16

_PART = 256  # texts or pairs per part: the most work that a kill can lose
_RELEASED = 2  # parts after which freed memory is given back: taking it again costs a hundredth of their time
_PROBE, _STRATA = 64, 4  # texts that measure the rate, in batches of similar length
_UNSTORED_BATCH = 1024  # texts at once if encoding is a table lookup


class KeyedStore(ABC):
    """Results by key, in parts on disk that are computed once and shared by processes."""

    unit: ClassVar[str] = "texts"  # of what has a key

    def __init__(self, folder: Path, owner: Manifest, ending: str) -> None:
        self._store = PartStore(folder, owner, ending)
        self._load()

    def _absent(self, keys: np.ndarray) -> np.ndarray:
        """Positions of the distinct keys that are not in the store, in order."""
        absent = self._index.find(keys) < 0
        _, first = np.unique(keys, return_index=True)
        return np.sort(first[absent[first]])

    def _fill(
        self,
        keys: np.ndarray,
        sizes: np.ndarray,
        item: Callable[[int], Any],
        computation: Computation,
        title: str,
        groups: np.ndarray | None = None,
    ) -> None:
        """Compute what is missing, largest first, one part at a time. Safe to kill and to run concurrently.

        `item` gives the text or pair at a position of `keys`, and (n,) `sizes` their lengths; a part is a list of them,
        all of one of the (n,) `groups`, if these are given.
        """
        if not len(self._absent(keys)):
            return
        with self._store.computing(keys):
            self._load()  # another process may have added parts meanwhile
            todo = self._absent(keys)
            todo = todo[np.argsort(-sizes[todo], kind="stable")]
            runs = [todo] if groups is None else _runs(todo, groups[todo])
            size = computation.part or _PART
            starts = ((rows, start) for rows in runs for start in range(0, len(rows), size))
            parts = (list(map(item, rows[start : start + size])) for rows, start in starts)
            with bar(len(todo), title, self.unit) as progress:
                for number, (part, results) in enumerate(current_engine().map(parts, computation), 1):
                    self._store.append(self._part(part, results))
                    progress.update(len(part))
                    if number % _RELEASED == 0:
                        release_freed_memory()
            self._store.compact()
        release_freed_memory()
        self._load()

    @abstractmethod
    def _part(self, items: Sequence[Any], results: Any) -> pa.Table:
        """A part of the store: the results of texts or pairs, and the keys of these very texts or pairs."""

    def _load(self) -> None:
        while True:
            try:
                self._index = KeyIndex(self._read(self._store.parts()))
                return
            except DamagedError as error:
                log(str(error), always=True)

    @abstractmethod
    def _read(self, tables: list[pa.Table]) -> np.ndarray:
        """Map the parts that are on disk now; returns their keys."""


def _runs(rows: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Rows by their group, in the order in which groups begin."""
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first[codes], kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(first[codes][order])) + 1)


@dataclass(frozen=True)
class EncodingTask:
    """Encodes texts in any process that can load the encoder."""

    model: ModelName
    encoding: EncodingSettings
    fingerprints: tuple[str, str]  # of both roles, so that a worker loads the model once for both
    role: Role

    def open(self) -> Callable[[Sequence[str]], Any]:
        """The encoder of a role; a missing model or another one is a UserError."""
        encoder = _loaded(self.model, self.encoding, self.fingerprints)
        return lambda texts: encoder.encode(texts, self.role)


@lru_cache(maxsize=1)
def _loaded(model: ModelName, encoding: EncodingSettings, fingerprints: tuple[str, str]) -> TextModel:
    with encode_with(encoding):
        encoder: TextModel = load_encoder(model)
    for found, expected in zip(_fingerprints(encoder), fingerprints, strict=True):
        check_same_model(str(model), found, expected)
    return encoder


def _fingerprints(encoder: TextModel) -> tuple[str, str]:
    return encoder.fingerprint("query"), encoder.fingerprint("document")


def _computation(encoder: Any, role: Role) -> Computation:
    task, model = None, encoder.loaded_from
    if model is not None:
        task = EncodingTask(model, encoder.encoding, _fingerprints(encoder), role)
    return Computation(lambda texts: encoder.encode(texts, role), task, encoder.part, encoder.threads)


def _of_members(encoder: Any, role: Role, texts: Sequence[str], root: Path | None) -> Computation:
    """Joins what the members of an encoder have in their stores, which are filled first."""
    stores = [store_of(member, role, root) if member.needs_store(role) else None for member in encoder.members]
    for store in filter(None, stores):
        store.fill(texts)

    def join(part: Sequence[str]) -> np.ndarray:
        pairs = zip(encoder.members, stores, strict=True)
        vectors = [member.encode(part, role) if store is None else store.gather(part) for member, store in pairs]
        return np.asarray(encoder.joined(vectors))

    return Computation(join)


class TextStore(KeyedStore):
    """Vectors of one model in one role by text, in memory-mapped parts; `root` is the shared cache by default."""

    folder: ClassVar[str]

    def __init__(self, encoder: TextModel, role: Role, root: Path | None = None) -> None:
        self.encoder: Any = encoder
        self.role, self._root = role, root
        contract, fingerprint = encoder.contract(role), encoder.fingerprint(role)
        about = {"contract": contract, "precision": encoder.encoding.precision}
        owner = Manifest("encoder", {"encoder": fingerprint}, {"role": role}, about)
        super().__init__((root or cache_folder()) / self.folder / f"{role}-{fingerprint}", owner, ".arrow")

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct texts that are not encoded yet, in order."""
        return [texts[row] for row in self._absent(text_keys(texts))]

    def fill(self, texts: Sequence[str]) -> None:
        """Encode missing texts, longest first, one part at a time. Safe to kill and to run concurrently."""
        keep_freed_memory()
        title = f"embedding ({self.encoder.name}, {self.role})"
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        missing = self.missing(texts) if self.encoder.members else []
        if missing:
            computation = _of_members(self.encoder, self.role, missing, self._root)
        else:
            computation = _computation(self.encoder, self.role)
        self._fill(text_keys(texts), sizes, texts.__getitem__, computation, title)

    def put(self, texts: Sequence[str], vectors: Any) -> None:
        """Add vectors computed elsewhere, in the encoder's form; texts already in the store keep theirs."""
        if not self.missing(texts):
            return
        with self._store.writing():
            self._load()
            row_of = {text: row for row, text in enumerate(texts)}
            absent = self.missing(texts)
            if absent:
                self._store.append(self._part(absent, self._select(vectors, [row_of[text] for text in absent])))
            self._store.compact()
        self._load()

    @abstractmethod
    def gather(self, texts: Sequence[str]) -> Any:
        """Vectors of encoded texts, in the encoder's form.

        A damaged part of the store is renamed, with a `DamagedError`: the next time, its texts are missing.
        """

    def embed(self, texts: Sequence[str]) -> Any:
        """As `gather`, after encoding what is missing or damaged."""
        while True:
            self.fill(texts)
            try:
                return self.gather(texts)
            except DamagedError as error:
                log(str(error), always=True)
                self._load()

    def _select(self, vectors: Any, rows: list[int]) -> Any:
        return vectors[rows]

    def _part(self, texts: Sequence[str], vectors: Any) -> pa.Table:
        return pa.table({KEY: pa.array(text_keys(texts)), **self._columns(vectors)})

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) int64 row of each text in the whole store."""
        rows = self._index.find(text_keys(texts))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} texts are not in the store; embed them first.")
        return rows

    def _read(self, tables: list[pa.Table]) -> np.ndarray:
        self._map(tables)
        return _joined([table[KEY].to_numpy() for table in tables], np.uint64)

    @abstractmethod
    def _columns(self, vectors: Any) -> dict[str, pa.Array]:
        """Columns of a part, from the encoder's vectors."""

    @abstractmethod
    def _map(self, tables: list[pa.Table]) -> None:
        """Map the columns of the parts."""


class EmbeddingStore(TextStore):
    """Dense vectors, (n, dimension), in float32 or float16."""

    folder = "embeddings"

    def gather(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32."""
        return self.read(self.rows(texts))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(n, dimension) float32 vectors at (n,) rows of the store."""
        vectors = np.empty((len(rows), self.encoder.dimension), dtype=np.float32)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(part, kind="stable")  # a corpus has thousands of parts: each looks at its own rows only
        bounds = np.searchsorted(part, np.arange(len(self._blocks) + 1), sorter=order)
        for block, start, span in zip(self._blocks, self._starts, itertools.pairwise(bounds), strict=True):
            places = order[slice(*span)]
            with self._store.reading():
                check_rows(block, rows[places] - start)
            vectors[places] = block[rows[places] - start]
        return vectors

    def _columns(self, vectors: np.ndarray) -> dict[str, pa.Array]:
        stored = np.ascontiguousarray(vectors, dtype=np.float32)
        if self.encoder.encoding.store_precision == "float16":
            stored = to_float16(stored, f"vectors by {self.encoder.name}")
        return {"vector": pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), vectors.shape[1])}

    def _map(self, tables: list[pa.Table]) -> None:
        chunks = [chunk for table in tables for chunk in table["vector"].chunks]
        self._blocks = [chunk.flatten().to_numpy().reshape(-1, self.encoder.dimension) for chunk in chunks]
        self._starts = _starts([len(block) for block in self._blocks])


class SparseStore(TextStore):
    """Sparse vectors, as rows of terms and weights."""

    folder = "sparse"

    def gather(self, texts: Sequence[str]) -> csr_array:
        """(n, vocabulary) float32."""
        return self._vectors[self.rows(texts)]

    def _columns(self, vectors: csr_array) -> dict[str, pa.Array]:
        bounds = pa.array(vectors.indptr.astype(np.int32))
        return {
            "terms": pa.ListArray.from_arrays(bounds, pa.array(vectors.indices.astype(np.int32))),
            "weights": pa.ListArray.from_arrays(bounds, pa.array(vectors.data.astype(np.float32))),
        }

    def _map(self, tables: list[pa.Table]) -> None:
        for table in tables:  # which are joined in memory
            with self._store.reading():
                checked(table)
        terms = [chunk for table in tables for chunk in table["terms"].chunks]
        weights = [chunk.flatten().to_numpy() for table in tables for chunk in table["weights"].chunks]
        counts = [np.diff(chunk.offsets.to_numpy()) for chunk in terms]
        bounds = np.concatenate([[0], np.cumsum(_joined(counts, np.int64))])
        indices = _joined([chunk.flatten().to_numpy() for chunk in terms], np.int32)
        shape = (len(bounds) - 1, self.encoder.dimension)
        self._vectors = csr_array((_joined(weights, np.float32), indices, bounds), shape=shape)
        try:
            self._vectors.check_format()  # products with a term beyond the width would read outside their memory
        except ValueError as error:
            raise UserError(f"{self._store.folder} holds other vectors ({error}); delete that folder.") from error


class TokenVectors(TextStore):
    """Token vectors in float16, which keeps a value to 5e-4."""

    folder = "token-vectors"

    def gather(self, texts: Sequence[str]) -> Tokens:
        """Token vectors, as float32."""
        rows = self.rows(texts)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        arrays = []
        for block, row in zip(blocks.tolist(), (rows - self._starts[blocks]).tolist(), strict=True):
            chunk, bounds, vectors = self._blocks[block]
            with self._store.reading():
                checked(chunk)
            arrays.append(vectors[bounds[row] : bounds[row + 1]].astype(np.float32))
        return Tokens.of(arrays, self.encoder.dimension)

    def _select(self, vectors: Tokens, rows: list[int]) -> Tokens:
        return Tokens.of([vectors[row] for row in rows], vectors.dimension)

    def _columns(self, vectors: Tokens) -> dict[str, pa.Array]:
        flat = pa.array(to_float16(vectors.vectors, f"token vectors by {self.encoder.name}").ravel())
        rows = pa.FixedSizeListArray.from_arrays(flat, vectors.dimension)
        return {"tokens": pa.LargeListArray.from_arrays(pa.array(vectors.bounds), rows)}

    def _map(self, tables: list[pa.Table]) -> None:
        self._blocks = []
        for chunk in (chunk for table in tables for chunk in table["tokens"].chunks):
            vectors = chunk.values.flatten().to_numpy().reshape(-1, self.encoder.dimension)
            self._blocks.append((chunk, chunk.offsets.to_numpy(), vectors))
        self._starts = _starts([len(chunk) for chunk, _, _ in self._blocks])


_STORES: dict[str, type[TextStore]] = {"sparse": SparseStore, "multi-vector": TokenVectors}


def store_of(encoder: TextModel, role: Role, root: Path | None = None) -> Any:
    """The store for the vectors of an encoder's kind in a role."""
    return _STORES.get(encoder.kind, EmbeddingStore)(encoder, role, root)


@overload
def embed(encoder: Encoder, texts: Sequence[str], role: Role, root: Path | None = None) -> np.ndarray: ...
@overload
def embed(encoder: SparseTextEncoder, texts: Sequence[str], role: Role, root: Path | None = None) -> csr_array: ...
@overload
def embed(encoder: MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None = None) -> Tokens: ...
def embed(encoder: TextModel, texts: Sequence[str], role: Role, root: Path | None = None) -> Any:
    """(n, dimension) float32, (n, vocabulary) float32 CSR or `Tokens`, through a store unless encoding is faster."""
    if not encoder.needs_store(role):
        return encoder.encode(texts, role, batch_size=_UNSTORED_BATCH)
    return store_of(encoder, role, root).embed(texts)


class TextVectors:
    """(n, dimension) float32 vectors of texts by row, read from the store, which is filled first, or encoded anew."""

    def __init__(self, encoder: Encoder, texts: Texts, role: Role, root: Path | None = None) -> None:
        self._encoder, self._texts, self._role, self._store = encoder, texts.column, role, None
        self.shape = (len(texts), encoder.dimension)
        if encoder.needs_store(role):
            self._store = store_of(encoder, role, root)
            self._store.fill(self._texts)
            self._rows = self._store.rows(self._texts)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if self._store is not None:
            return self._store.read(self._rows[rows])
        texts = self._texts[rows] if isinstance(rows, slice) else [self._texts[row] for row in rows]
        return self._encoder.encode(texts, self._role, batch_size=_UNSTORED_BATCH)


def seconds_to_embed(
    encoder: TextModel, texts: Sequence[str], role: Role, root: Path | None = None
) -> tuple[int, float]:
    """Number of texts to encode, and the seconds that one process takes at rates measured on up to 64 of them.

    The current engine encodes them. Batches have texts of similar length, so each quarter of the texts, by length, has
    a rate of its own. A model elsewhere, which may be paid for, is not asked: its texts are only counted.
    """
    missing = store_of(encoder, role, root).missing(texts) if encoder.needs_store(role) else []
    if not missing:
        return 0, 0.0
    if encoder.members:
        return len(missing), sum(seconds_to_embed(member, missing, role, root)[1] for member in encoder.members)
    if not encoder.has_weights:
        return len(missing), encoder.bill(missing, role).seconds
    order = np.argsort([len(text) for text in missing], kind="stable")
    computation = _computation(encoder, role)
    compute([missing[order[0]]], computation)  # the first call is slower
    seconds = 0.0
    for stratum in np.array_split(order, min(_STRATA, len(order))):
        size = min(_PROBE // _STRATA, len(stratum))
        first = (len(stratum) - size) // 2
        probe = [missing[row] for row in stratum[first : first + size]]
        start = time.perf_counter()
        compute(probe, computation)
        seconds += (time.perf_counter() - start) * len(stratum) / size
    return len(missing), seconds


def _joined(arrays: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=kind)


def _starts(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
