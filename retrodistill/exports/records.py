"""What an index hands over: ids and exact vectors of its documents, a block at a time, and whose space they lie in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import digest
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.multi_vector import Tokens

Kind = Literal["dense", "sparse", "multi-vector"]
KINDS = ("dense", "sparse", "multi-vector")
_SPANS = {"dense": 4096, "sparse": 4096, "multi-vector": 128}  # documents read at a time, some 10 MB


Vectors: TypeAlias = "np.ndarray | csr_array | Tokens"


@dataclass(frozen=True)
class Exportable:
    """The documents of an index as any other system takes them.

    Attributes:
        kind: What a document is: one vector (``dense``), weights of vocabulary entries (``sparse``), or a vector per
            token (``multi-vector``).
        ids: (n,) document ids.
        space: Where the documents lie; queries of another space are refused.
        block: Documents start to stop (exclusive): (stop - start, d) float32, CSR rows of float32, or `Tokens`.
        fingerprint: Of ids and vectors, or of what makes them without fail; pins an interrupted export to its source.
        name: What the index' runs are called.
        queries_by: Name of the query encoder; None for one that was never saved.
        vocabulary: (d,) the entries of a sparse space as strings, where they are known.
    """

    kind: Kind
    ids: Sequence[str]
    space: EmbeddingSpace
    block: Callable[[int, int], Any]
    fingerprint: str
    name: str = "index"
    queries_by: str | None = None
    vocabulary: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (start, stop, vectors) over all documents."""
        size = _SPANS[self.kind]
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield start, stop, self.block(start, stop)


def dense_records(
    ids: Sequence[str],
    vectors: np.ndarray,
    space: EmbeddingSpace,
    *,
    name: str = "index",
    queries_by: str | None = None,
) -> Exportable:
    """Records of (n, d) vectors, memory-mapped or not.

    Raises:
        UserError: Other than one vector of the space's width per id, or vectors that are not finite.
    """
    if vectors.ndim != 2:
        raise UserError(f"dense vectors of {vectors.ndim} axes; give (documents, dimension).")
    _check_shape(len(ids), vectors.shape[0], vectors.shape[1], space)

    def block(start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(vectors[start:stop], dtype=np.float32)

    return _pinned(Exportable("dense", ids, space, block, "", name, queries_by))


def sparse_records(
    ids: Sequence[str],
    weights: csr_array,
    space: EmbeddingSpace,
    *,
    name: str = "index",
    queries_by: str | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Exportable:
    """Records of a CSR matrix (documents, vocabulary).

    Raises:
        UserError: Other than one row per id and one column per vocabulary entry, or weights that are not finite.
    """
    rows = csr_array(weights)
    _check_shape(len(ids), rows.shape[0], rows.shape[1], space)

    def block(start: int, stop: int) -> csr_array:
        cut = rows[start:stop].astype(np.float32)
        cut.sum_duplicates()  # sorts the columns of a row too
        cut.eliminate_zeros()
        return cut

    return _pinned(Exportable("sparse", ids, space, block, "", name, queries_by, vocabulary))


def records_of(
    kind: Kind,
    ids: Sequence[str],
    space: EmbeddingSpace,
    read: Callable[[int, int], Any],
    *,
    name: str = "index",
    queries_by: str | None = None,
) -> Exportable:
    """Records of an index, whose vectors a function reads block by block (`Index.vector_reader`).

    Raises:
        UserError: Vectors that are not finite.
    """

    def block(start: int, stop: int) -> Vectors:
        vectors = read(start, stop)
        if isinstance(vectors, (Tokens, np.ndarray)):
            return vectors
        cut = vectors.astype(np.float32)
        cut.sum_duplicates()
        cut.eliminate_zeros()
        return cut

    return _pinned(Exportable(kind, ids, space, block, "", name, queries_by))


class TokenSource(Protocol):
    """What holds token vectors on disk, e.g. a `TokenStore`."""

    def __len__(self) -> int:
        """Number of documents."""
        ...

    def gather(self, rows: np.ndarray) -> Tokens:
        """The tokens of (m,) rows, in their order."""
        ...


def multi_vector_records(
    ids: Sequence[str],
    tokens: Tokens | TokenSource,
    space: EmbeddingSpace,
    *,
    name: str = "index",
    queries_by: str | None = None,
) -> Exportable:
    """Records of ragged token vectors, memory-mapped or not, or of a store of them.

    Raises:
        UserError: Bounds that do not fit ids or vectors, another width, or vectors that are not finite.
    """
    if not isinstance(tokens, Tokens):
        return _of_store(ids, tokens, space, name, queries_by)
    bounds = np.asarray(tokens.bounds, dtype=np.int64)
    _check_shape(len(ids), len(bounds) - 1, tokens.vectors.shape[1], space)
    if bounds[0] != 0 or bounds[-1] != len(tokens.vectors) or (np.diff(bounds) < 0).any():
        raise UserError(f"bounds of {len(bounds) - 1} documents do not fit {len(tokens.vectors)} token vectors.")

    def block(start: int, stop: int) -> Tokens:
        cut = tokens.slice(start, stop)
        return Tokens(np.asarray(cut.vectors, dtype=np.float32), np.asarray(cut.bounds, dtype=np.int64))

    return _pinned(Exportable("multi-vector", ids, space, block, "", name, queries_by))


def _of_store(
    ids: Sequence[str], store: TokenSource, space: EmbeddingSpace, name: str, queries_by: str | None
) -> Exportable:
    width = store.gather(np.zeros(min(1, len(store)), dtype=np.int64)).dimension
    _check_shape(len(ids), len(store), width, space)

    def block(start: int, stop: int) -> Tokens:
        return store.gather(np.arange(start, stop))

    return _pinned(Exportable("multi-vector", ids, space, block, "", name, queries_by))


def flat_values(vectors: Vectors) -> np.ndarray:
    """All numbers of a block, as stored: for checks and digests."""
    if isinstance(vectors, Tokens):
        return vectors.vectors
    return vectors if isinstance(vectors, np.ndarray) else vectors.data


def pin(ids: Sequence[str], *parts: object) -> str:
    """Fingerprint of ids and of what decides the vectors."""
    names = hashlib.blake2b(digest_size=16)
    for one in ids:
        encoded = one.encode()
        names.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest(names.hexdigest(), *parts)


def _pinned(records: Exportable) -> Exportable:
    """The records with the fingerprint of their content, which is read once and checked on the way."""
    if not len(records):
        raise UserError("the index holds no documents; there is nothing to export.")
    twice = [one for one, count in Counter(records.ids).items() if count > 1]
    if twice:
        raise UserError(f"document id {sample_of(twice)} stands more than once; ids must be unique.")
    content = hashlib.blake2b(digest_size=16)
    for start, stop, vectors in records.blocks():
        values = flat_values(vectors)
        if not np.isfinite(values).all():
            raise UserError(
                f"documents {records.ids[start]!r} to {records.ids[stop - 1]!r} hold numbers that are NaN or infinite; "
                "embed these again or leave them out."
            )
        content.update(np.ascontiguousarray(values).tobytes())
        if isinstance(vectors, Tokens):
            content.update(np.diff(vectors.bounds).tobytes())
        elif not isinstance(vectors, np.ndarray):
            content.update(np.diff(vectors.indptr).astype(np.int64).tobytes())
            content.update(vectors.indices.astype(np.int64).tobytes())
    return replace(records, fingerprint=pin(records.ids, records.kind, content.hexdigest()))


def _check_shape(ids: int, rows: int, width: int, space: EmbeddingSpace) -> None:
    if rows != ids or width != space.dimension:
        raise UserError(
            f"{ids} ids and a space of {space.dimension} dimensions with {rows} documents of {width}; they do not "
            "belong together: build the index again."
        )
