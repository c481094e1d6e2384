"""The token store: codes of token vectors in one memory-mapped file, documents by their offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import make_folder
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.codecs import Codec, load_codec, save_codec

if TYPE_CHECKING:
    from torch import Tensor

CODES_FILE = "tokens.bin"
_BOUNDS_FILE = "tokens.bounds.npy"
_LENGTHS_FILE = "tokens.lengths.bin"  # of a store that is being written
_BLOCK = 8192  # tokens that are decoded at once: their vectors stay in the processor's cache


class RoundedTokens(NamedTuple):
    """Token vectors of several documents in bfloat16."""

    vectors: Tensor  # (total, d) bfloat16
    bounds: np.ndarray  # as of `Tokens`
    norms: np.ndarray  # (n,) float32: Euclidean length of each document's longest rounded vector


class TokenStore:
    """Token vectors of documents under one codec, by row.

    `parts` are (tokens, bytes) uint8 codes, in memory or memory-mapped; `starts` (n,) int64 are the first code of each
    document, counted over all parts, and `lengths` (n,) int64 its number of tokens.
    """

    def __init__(self, codec: Codec, parts: Sequence[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> None:
        self.codec, self.parts, self.starts, self.lengths = codec, list(parts), starts, lengths
        self._norms = np.full(len(starts), np.nan, dtype=np.float32)

    @classmethod
    def empty(cls, codec: Codec) -> TokenStore:
        """A store without documents."""
        none = np.zeros(0, dtype=np.int64)
        return cls(codec, [], none, none)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def nbytes(self) -> int:
        """Size of codes, offsets, and fitted arrays of the codec."""
        return int(self.lengths.sum()) * self.codec.bytes_per_vector + 8 * (len(self) + 1) + self.codec.own_bytes

    def append(self, tokens: Tokens) -> None:
        """Add documents at the end; their codes stay in memory until the store is saved."""
        first = sum(len(part) for part in self.parts)
        self.parts.append(self.codec.encode(tokens.vectors))
        self.starts = np.concatenate([self.starts, first + tokens.bounds[:-1]])
        self.lengths = np.concatenate([self.lengths, tokens.lengths])
        self._norms = np.concatenate([self._norms, np.full(len(tokens), np.nan, dtype=np.float32)])

    def without(self, removed: np.ndarray) -> TokenStore:
        """The store without the documents of a (n,) mask; saving leaves their codes out."""
        return TokenStore(self.codec, self.parts, self.starts[~removed], self.lengths[~removed])

    def gather(self, rows: np.ndarray) -> Tokens:
        """Decoded tokens of (m,) rows, in their order."""
        codes, bounds = self._codes(np.asarray(rows, dtype=np.int64))
        return Tokens(self.codec.decode(codes), bounds)

    def blocks(self, rows: np.ndarray | None = None, *, tokens: int = _BLOCK) -> Iterator[tuple[int, Tokens]]:
        """Documents of (m,) rows, by default all, in blocks of at most this number of tokens, each with its place."""
        rows = np.arange(len(self)) if rows is None else rows
        for start, stop in blocks_of(_bounds(self.lengths[rows]), tokens):
            yield start, self.gather(rows[start:stop])

    def rounded_blocks(self) -> Iterator[tuple[int, RoundedTokens]]:
        """All documents in blocks, rounded to bfloat16, each with the row of its first document."""
        import torch

        for start, stop in blocks_of(_bounds(self.lengths), _BLOCK):
            codes, bounds = self._codes(np.arange(start, stop))
            vectors = self.codec.rounded(codes)
            norms = self._norms[start:stop]
            if np.isnan(norms).any():  # kept, since they take a part of a query's time
                norms[:] = np.maximum.reduceat(torch.linalg.vector_norm(vectors.float(), dim=1).numpy(), bounds[:-1])
            yield start, RoundedTokens(vectors, bounds, norms)

    def save(self, folder: Path) -> None:
        """Write ``tokens.bin`` (codes in document order), ``tokens.bounds.npy`` and the codec, block by block."""
        save_codec(self.codec, folder)
        with (folder / CODES_FILE).open("wb") as file:
            for start, stop in blocks_of(_bounds(self.lengths), 16 * _BLOCK):
                self._codes(np.arange(start, stop))[0].tofile(file)
        np.save(folder / _BOUNDS_FILE, _bounds(self.lengths))

    @classmethod
    def load(cls, folder: Path) -> TokenStore:
        """Open the store of a folder, memory-mapped."""
        for name in (CODES_FILE, _BOUNDS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"no file {folder / name}: the token store is incomplete; build it again.")
        codec, bounds = load_codec(folder), np.load(folder / _BOUNDS_FILE)
        shape = ((folder / CODES_FILE).stat().st_size // codec.bytes_per_vector, codec.bytes_per_vector)
        mapped = shape[0] > 0  # an empty file cannot be mapped; copy-on-write, since torch warns of read-only arrays
        codes = np.memmap(folder / CODES_FILE, np.uint8, "c", shape=shape) if mapped else np.zeros(shape, np.uint8)
        if not len(bounds) or bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] != len(codes):
            raise UserError(
                f"{folder / CODES_FILE} holds {len(codes)} tokens of {codec.bytes_per_vector} bytes, "
                f"{_BOUNDS_FILE} counts {int(bounds[-1]) if len(bounds) else 0}; one is cut short or of another store: "
                "build it again."
            )
        return cls(codec, [codes], bounds[:-1], np.diff(bounds))

    def _codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of rows, and their bounds."""
        bounds, starts = _bounds(self.lengths[rows]), self.starts[rows]
        firsts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])
        if len(rows) and (starts - starts[0] == bounds[:-1]).all():  # consecutive documents are one slice of a part
            part = int(np.searchsorted(firsts, starts[0], side="right")) - 1
            begin = int(starts[0] - firsts[part])
            if begin + bounds[-1] <= len(self.parts[part]):
                return np.asarray(self.parts[part][begin : begin + bounds[-1]]), bounds
        places = np.repeat(starts - bounds[:-1], self.lengths[rows]) + np.arange(bounds[-1])
        if len(self.parts) == 1:
            return np.take(self.parts[0], places, axis=0), bounds
        codes = np.empty((len(places), self.codec.bytes_per_vector), dtype=np.uint8)
        owner = np.searchsorted(firsts, places, side="right") - 1
        for number, part_codes in enumerate(self.parts):
            inside = np.flatnonzero(owner == number)
            codes[inside] = part_codes[places[inside] - firsts[number]]
        return codes, bounds


class TokenWriter:
    """Writes a token store block by block, with a codec by `fit`, or continues after its last complete document."""

    def __init__(self, folder: Path, fit: Callable[[], Codec]) -> None:
        self.folder = make_folder(folder)
        if not (folder / _LENGTHS_FILE).is_file():  # written last: without it the other files may be incomplete
            save_codec(fit(), folder)
            (folder / CODES_FILE).write_bytes(b"")
            (folder / _LENGTHS_FILE).write_bytes(b"")
        self.codec = load_codec(folder)
        self.documents = self._recover()

    def append(self, tokens: Tokens) -> None:
        """Add the next documents."""
        with (self.folder / CODES_FILE).open("ab") as file:
            self.codec.encode(tokens.vectors).tofile(file)
        # Lengths after codes: a document counts only when all its codes are written.
        with (self.folder / _LENGTHS_FILE).open("ab") as file:
            tokens.lengths.astype("<i8").tofile(file)
        self.documents += len(tokens)

    def finish(self) -> TokenStore:
        """Write the offsets and open the store."""
        np.save(self.folder / _BOUNDS_FILE, _bounds(np.fromfile(self.folder / _LENGTHS_FILE, dtype="<i8")))
        return TokenStore.load(self.folder)

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


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
