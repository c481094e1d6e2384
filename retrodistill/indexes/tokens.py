"""The token store: codes of token vectors in one memory-mapped file, documents by their offsets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from retrodistill.core.arrays import append_array, read_array, save_array
from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import atomic_file
from retrodistill.core.json_files import CHECKSUMS, check_checksums, write_checksums
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import log
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.codecs import Codec, load_codec, save_codec
from retrodistill.indexes.int8 import Int8Tokens, limits_of, to_int8

_ADVICE = "its vectors are encoded again"
CODES_FILE = "tokens.bin"
_BOUNDS_FILE = "tokens.bounds.npy"
_ROUNDED_FILE, _LIMITS_FILE = "tokens.int8.bin", "tokens.int8.npy"  # of a codec that keeps rounded vectors
_LENGTHS_FILE = "tokens.lengths.bin"  # of a store that is being written
# Tokens of a block, so that what is made of them stays in the processor's cache
_BLOCK, _ROUNDED_BLOCK = 8192, 16384  # that is decoded, or read in 8 bits


class TokenStore:
    """Token vectors of documents under one codec, by row.

    `parts` are (tokens, bytes) uint8 codes, in memory or memory-mapped; `starts` (n,) int64 are the first code of each
    document, counted over all parts, and `lengths` (n,) int64 its number of tokens. `rounded` are the same tokens as
    (tokens, d) int8, if they are kept beside the codes, and `limits` (n, 3) those of `limits_of`, if they are known.
    """

    def __init__(
        self,
        codec: Codec,
        parts: Sequence[np.ndarray],
        starts: np.ndarray,
        lengths: np.ndarray,
        rounded: Sequence[np.ndarray] | None = None,
        limits: np.ndarray | None = None,
    ) -> None:
        self.codec, self.parts, self.starts, self.lengths = codec, list(parts), starts, lengths
        self.rounded = None if rounded is None else list(rounded)
        self._limits = _unknown(len(starts)) if limits is None else limits

    @classmethod
    def empty(cls, codec: Codec) -> TokenStore:
        """A store without documents."""
        none = np.zeros(0, dtype=np.int64)
        return cls(codec, [], none, none, [] if codec.keeps_rounded else None)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def nbytes(self) -> int:
        """Size of codes, rounded vectors, offsets, and fitted arrays of the codec."""
        tokens = int(self.lengths.sum())
        beside = 0 if self.rounded is None else tokens * self.codec.dimension + self._limits.nbytes
        return tokens * self.codec.bytes_per_vector + 8 * (len(self) + 1) + self.codec.own_bytes + beside

    def append(self, tokens: Tokens) -> None:
        """Add documents at the end; their codes stay in memory until the store is saved."""
        first, documents = sum(len(part) for part in self.parts), len(self)
        self.parts.append(self.codec.encode(tokens.vectors))
        self.starts = np.concatenate([self.starts, first + tokens.bounds[:-1]])
        self.lengths = np.concatenate([self.lengths, tokens.lengths])
        self._limits = np.concatenate([self._limits, _unknown(len(tokens))])
        if self.rounded is not None:
            added = np.empty(tokens.vectors.shape, dtype=np.int8)
            for start, stop in blocks_of(tokens.bounds, _BLOCK):
                block = self._rounded(np.arange(documents + start, documents + stop))
                added[tokens.bounds[start] : tokens.bounds[stop]] = block.vectors
            self.rounded.append(added)

    def without(self, removed: np.ndarray) -> TokenStore:
        """The store without the documents of a (n,) mask; saving leaves their codes out."""
        kept = ~removed
        return TokenStore(
            self.codec, self.parts, self.starts[kept], self.lengths[kept], self.rounded, self._limits[kept]
        )

    def gather(self, rows: np.ndarray) -> Tokens:
        """Decoded tokens of (m,) rows, in their order."""
        rows = np.asarray(rows, dtype=np.int64)
        bounds = _bounds(self.lengths[rows])
        return Tokens(
            self.codec.decode(_read(self.parts, self.starts[rows], bounds, self.codec.bytes_per_vector)), bounds
        )

    def blocks(self, rows: np.ndarray | None = None, *, tokens: int = _BLOCK) -> Iterator[tuple[int, Tokens]]:
        """Documents of (m,) rows, by default all, in blocks of at most this number of tokens, each with its place."""
        rows = np.arange(len(self)) if rows is None else rows
        for start, stop in blocks_of(_bounds(self.lengths[rows]), tokens):
            yield start, self.gather(rows[start:stop])

    def rounded_blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, Int8Tokens]]:
        """As `blocks`, rounded to 8 bits: read if they are kept beside the codes, else made of these.

        A block's vectors are valid until the next block, which overwrites them.
        """
        import torch

        rows = np.arange(len(self)) if rows is None else rows
        starts, bounds = self.starts[rows], _bounds(self.lengths[rows])
        blocks = list(blocks_of(bounds, _BLOCK if self.rounded is None else _ROUNDED_BLOCK))
        longest = max((int(bounds[stop] - bounds[start]) for start, stop in blocks), default=0)
        # Read in order into memory that stays in the cache: a product reads the vectors in an order for which it would
        # wait, and new memory for each block takes longer than the copy.
        buffer = np.empty((longest, self.codec.dimension), dtype=np.int8)
        for start, stop in blocks:
            if self.rounded is None:
                yield start, self._rounded(rows[start:stop])
            else:
                own = bounds[start : stop + 1] - bounds[start]
                vectors = _read(self.rounded, starts[start:stop], own, self.codec.dimension, buffer)
                yield start, Int8Tokens(torch.from_numpy(vectors), own, self._limits[rows[start:stop]])

    def _rounded(self, rows: np.ndarray) -> Int8Tokens:
        """Documents of rows, rounded; their limits are kept, since they take a part of a query's time."""
        bounds = _bounds(self.lengths[rows])
        codes = _read(self.parts, self.starts[rows], bounds, self.codec.bytes_per_vector)
        vectors = self.codec.decode(codes)
        if np.isnan(self._limits[rows]).any():
            self._limits[rows] = limits_of(Tokens(vectors, bounds))
        if np.may_share_memory(vectors, codes):  # rounding overwrites the vectors
            vectors = vectors.copy()
        limits = self._limits[rows]
        return Int8Tokens(to_int8(vectors, bounds, limits[:, 0]), bounds, limits)

    def save(self, folder: Path) -> None:
        """Write codec, codes in document order, bounds, and rounded vectors if the codec keeps them, in blocks."""
        save_codec(self.codec, folder)
        with (folder / CODES_FILE).open("wb") as file:
            bounds = _bounds(self.lengths)
            for start, stop in blocks_of(bounds, 16 * _BLOCK):
                own = bounds[start : stop + 1] - bounds[start]
                append_array(file, _read(self.parts, self.starts[start:stop], own, self.codec.bytes_per_vector))
        save_array(folder / _BOUNDS_FILE, bounds)
        if self.codec.keeps_rounded:
            self.save_rounded(folder)

    def save_rounded(self, folder: Path) -> None:
        """Write the vectors in 8 bits beside the codes."""
        with (folder / _ROUNDED_FILE).open("wb") as file:
            for _, block in self.rounded_blocks():
                append_array(file, block.vectors.numpy())
        save_array(folder / _LIMITS_FILE, self._limits)  # last: without it the other file may be incomplete

    @classmethod
    def load(cls, folder: Path) -> TokenStore:
        """Open the store of a folder, memory-mapped."""
        keeps_rounded = (folder / _LIMITS_FILE).is_file()  # not of version 0.1.0
        for name in (CODES_FILE, _BOUNDS_FILE, *([_ROUNDED_FILE] if keeps_rounded else [])):
            if not (folder / name).is_file():
                raise UserError(f"no file {folder / name}: the token store is incomplete; build it again.")
        codec, bounds = load_codec(folder), read_array(folder / _BOUNDS_FILE)
        codes = _mapped(folder / CODES_FILE, codec.bytes_per_vector, np.uint8)
        if not len(bounds) or bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] != len(codes):
            raise UserError(
                f"{folder / CODES_FILE} holds {len(codes)} tokens of {codec.bytes_per_vector} bytes, "
                f"{_BOUNDS_FILE} counts {int(bounds[-1]) if len(bounds) else 0}; one is cut short or of another store: "
                "build it again."
            )
        if not keeps_rounded:
            return cls(codec, [codes], bounds[:-1], np.diff(bounds))
        rounded, limits = _mapped(folder / _ROUNDED_FILE, codec.dimension, np.int8), read_array(folder / _LIMITS_FILE)
        if len(rounded) != len(codes) or len(limits) != len(bounds) - 1:
            raise UserError(
                f"{folder / _ROUNDED_FILE} holds {len(rounded)} tokens of {len(limits)} documents, {CODES_FILE} "
                f"{len(codes)} of {len(bounds) - 1}; one is cut short or of another store: build it again."
            )
        return cls(codec, [codes], bounds[:-1], np.diff(bounds), [rounded], limits)

    @classmethod
    def finished(cls, folder: Path, documents: int) -> TokenStore | None:
        """The store that a `TokenWriter` finished in a folder, which is only read; None if it has to be written."""
        if not (folder / CHECKSUMS).is_file():  # written last
            return None
        try:
            check_checksums(folder, _ADVICE)
            store = cls.load(folder)
        except (UserError, ValueError):  # not there, cut short, or being written
            return None
        lacks_rounded = store.codec.keeps_rounded and store.rounded is None
        return None if lacks_rounded or len(store) != documents else store

    def read_into_memory(self) -> None:
        """Stop reading from the files."""
        self.parts = [np.array(part) for part in self.parts]
        self.rounded = None if self.rounded is None else [np.array(part) for part in self.rounded]


class TokenWriter:
    """Writes a token store block by block, with a codec by `fit`, or continues after its last complete document."""

    def __init__(self, folder: Path, fit: Callable[[], Codec]) -> None:
        self.folder = make_folder(folder)
        if (folder / CHECKSUMS).is_file():  # it was finished, and something is wrong with it
            try:
                check_checksums(folder, _ADVICE)
            except UserError as error:
                log(str(error), always=True)
                (folder / _LENGTHS_FILE).unlink(missing_ok=True)
            (folder / CHECKSUMS).unlink()
        else:
            (folder / _LIMITS_FILE).unlink(missing_ok=True)  # may be cut short
        if not (folder / _LENGTHS_FILE).is_file():  # written last: without it the other files may be incomplete
            save_codec(fit(), folder)
            (folder / CODES_FILE).write_bytes(b"")
            (folder / _LENGTHS_FILE).write_bytes(b"")
        self.codec = load_codec(folder)
        self.documents = self._recover()

    def append(self, tokens: Tokens) -> None:
        """Add the next documents."""
        (self.folder / _LIMITS_FILE).unlink(missing_ok=True)  # of fewer documents
        with (self.folder / CODES_FILE).open("ab") as file:
            append_array(file, self.codec.encode(tokens.vectors))
        # Lengths after codes: a document counts only when all its codes are written.
        with (self.folder / _LENGTHS_FILE).open("ab") as file:
            append_array(file, tokens.lengths.astype("<i8"))
        self.documents += len(tokens)

    def finish(self) -> TokenStore:
        """Write the offsets, and rounded vectors if the codec keeps them, and open the store."""
        bounds = _bounds(np.fromfile(self.folder / _LENGTHS_FILE, dtype="<i8"))
        with atomic_file(self.folder / _BOUNDS_FILE) as temporary:
            save_array(temporary, bounds)
        store = TokenStore.load(self.folder)
        if self.codec.keeps_rounded and store.rounded is None:
            store.save_rounded(self.folder)
            store = TokenStore.load(self.folder)
        write_checksums(self.folder)
        return store

    def _recover(self) -> int:
        """Cut both files back to complete documents, and return their number."""
        codes, lengths = self.folder / CODES_FILE, self.folder / _LENGTHS_FILE
        whole = lengths.stat().st_size // 8
        bounds = _bounds(np.fromfile(lengths, dtype="<i8", count=whole)) * self.codec.bytes_per_vector
        complete = int(np.searchsorted(bounds, codes.stat().st_size, side="right")) - 1
        for path, size in ((codes, int(bounds[complete])), (lengths, 8 * complete)):
            with path.open("r+b") as file:
                file.truncate(size)
        return complete


def check_tokens(tokens: Tokens, ids: Sequence[str], what: str) -> None:
    """Refuse texts without tokens, NaN or infinite vectors, and another number of ids."""
    if len(tokens) != len(ids):
        raise UserError(f"{what}: {len(ids)} ids for the tokens of {len(tokens)} texts; give one id per text.")
    if empty := np.flatnonzero(tokens.lengths == 0).tolist():
        named = sample_of(ids[row] for row in empty)
        raise UserError(f"{what}: {len(empty)} have no token ({named}) and cannot be compared; leave them out.")
    if len(broken := np.flatnonzero(~np.isfinite(tokens.vectors).all(axis=1))):
        rows = np.unique(np.searchsorted(tokens.bounds, broken, side="right") - 1).tolist()
        raise UserError(
            f"{what}: {len(broken)} token vectors of {len(rows)} texts are NaN or infinite "
            f"({sample_of(ids[row] for row in rows)}); embed these again or leave them out."
        )


def _read(
    parts: Sequence[np.ndarray], starts: np.ndarray, bounds: np.ndarray, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Codes or rounded vectors of documents with these starts, over all parts, and bounds; a view if none is copied."""
    if not len(starts) or not parts:
        return np.zeros((0, width), np.uint8)
    firsts = np.cumsum([0, *map(len, parts)])
    owners = np.searchsorted(firsts[1:-1], starts, side="right")
    # Documents that follow each other in a part are one slice; slices are copied faster than tokens.
    shifts = starts - bounds[:-1]
    heads = np.flatnonzero((shifts[1:] != shifts[:-1]) | (owners[1:] != owners[:-1])) + 1
    begins, ends = (starts - firsts[owners]).tolist(), bounds.tolist()
    slices = [
        np.asarray(parts[owners[first]])[begins[first] : begins[first] + ends[last] - ends[first]]
        for first, last in itertools.pairwise([0, *heads.tolist(), len(starts)])
    ]
    if out is not None:
        return np.concatenate(slices, out=out[: bounds[-1]])
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


def _mapped(path: Path, width: int, kind: type) -> np.ndarray:
    """A file of one-byte numbers as a table of this width, memory-mapped."""
    shape = (path.stat().st_size // width, width)
    if not shape[0]:
        return np.zeros(shape, kind)  # an empty file cannot be mapped
    return np.memmap(path, kind, "c", shape=shape)  # copy-on-write, since torch warns of read-only arrays


def _unknown(documents: int) -> np.ndarray:
    return np.full((documents, 3), np.nan, dtype=np.float32)


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
