"""The token store: ragged token vectors as codes on disk, memory-mapped, documents found by their offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.files import make_folder
from retrodistill.encoders.multi_vector import Tokens, blocks_of
from retrodistill.indexes.codecs import Codec, load_codec, save_codec

CODES_FILE = "tokens.bin"
BOUNDS_FILE = "tokens.bounds.npy"
_LENGTHS_FILE = "tokens.lengths.bin"  # of a store that is still being written
_BLOCK = 16384  # tokens that are decoded at once


class TokenStore:
    """Documents' token vectors under one codec, by row.

    Args:
        codec: Turns vectors into codes and back.
        parts: (tokens, bytes) uint8 codes, in memory or memory-mapped.
        starts: (n,) int64: where each document's codes begin, counted over all parts.
        lengths: (n,) int64 tokens of each document.
    """

    def __init__(self, codec: Codec, parts: Sequence[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> None:
        self.codec, self.parts, self.starts, self.lengths = codec, list(parts), starts, lengths

    @classmethod
    def empty(cls, codec: Codec) -> TokenStore:
        """A store without documents."""
        none = np.zeros(0, dtype=np.int64)
        return cls(codec, [], none, none)

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        return f"TokenStore({len(self)} documents, {self.tokens} tokens of {self.codec.bytes_per_vector} bytes)"

    @property
    def tokens(self) -> int:
        """Token vectors of all documents."""
        return int(self.lengths.sum())

    @property
    def nbytes(self) -> int:
        """Of codes, offsets and what the codec keeps."""
        return self.tokens * self.codec.bytes_per_vector + 8 * (len(self) + 1) + self.codec.own_bytes

    def append(self, tokens: Tokens) -> None:
        """Add documents at the end; their codes stay in memory until the store is saved."""
        first = sum(len(part) for part in self.parts)
        self.parts.append(self.codec.encode(tokens.vectors))
        self.starts = np.concatenate([self.starts, first + tokens.bounds[:-1]])
        self.lengths = np.concatenate([self.lengths, tokens.lengths])

    def without(self, gone: np.ndarray) -> TokenStore:
        """The store less the documents of a (n,) mask; their codes are left out when it is saved."""
        return TokenStore(self.codec, self.parts, self.starts[~gone], self.lengths[~gone])

    def gather(self, rows: np.ndarray) -> Tokens:
        """The decoded tokens of (m,) rows, in their order."""
        codes, bounds = self._codes(np.asarray(rows, dtype=np.int64))
        return Tokens(self.codec.decode(codes), bounds)

    def blocks(self, tokens: int = _BLOCK) -> Iterator[tuple[int, Tokens]]:
        """All documents, a few thousand decoded tokens at a time, each block with the row of its first document."""
        for start, stop in blocks_of(_bounds(self.lengths), tokens):
            yield start, self.gather(np.arange(start, stop))

    def save(self, folder: Path) -> None:
        """Write ``tokens.bin`` (codes, document after document), ``tokens.bounds.npy`` and the codec, in blocks."""
        save_codec(self.codec, folder)
        with (folder / CODES_FILE).open("wb") as file:
            for start, stop in blocks_of(_bounds(self.lengths), 16 * _BLOCK):
                self._codes(np.arange(start, stop))[0].tofile(file)
        np.save(folder / BOUNDS_FILE, _bounds(self.lengths))

    @classmethod
    def load(cls, folder: Path) -> TokenStore:
        """Open the store of a folder, codes left on disk.

        Raises:
            UserError: A file is missing, cut short, or does not belong to the others.
        """
        for name in (CODES_FILE, BOUNDS_FILE):
            if not (folder / name).is_file():
                raise UserError(f"no file {folder / name}: {folder} holds no whole token store; build it again.")
        codec = load_codec(folder)
        bounds = np.load(folder / BOUNDS_FILE)
        codes = _mapped(folder / CODES_FILE, codec.bytes_per_vector)
        if not len(bounds) or bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] != len(codes):
            raise UserError(
                f"{folder / CODES_FILE} holds {len(codes)} tokens of {codec.bytes_per_vector} bytes, "
                f"{BOUNDS_FILE} counts {int(bounds[-1]) if len(bounds) else 0}; one is cut short or of another store: "
                "build it again."
            )
        return cls(codec, [codes], bounds[:-1], np.diff(bounds))

    def _codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of rows and their bounds; documents that stand one after the other are read at one go."""
        bounds = _bounds(self.lengths[rows])
        starts = self.starts[rows]
        firsts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])
        if len(rows) and (starts - starts[0] == bounds[:-1]).all():
            part = int(np.searchsorted(firsts, starts[0], side="right")) - 1
            begin = int(starts[0] - firsts[part])
            if begin + bounds[-1] <= len(self.parts[part]):
                return np.asarray(self.parts[part][begin : begin + bounds[-1]]), bounds
        places = np.repeat(starts - bounds[:-1], self.lengths[rows]) + np.arange(bounds[-1])
        codes = np.empty((len(places), self.codec.bytes_per_vector), dtype=np.uint8)
        owner = np.searchsorted(firsts, places, side="right") - 1
        for number, part_codes in enumerate(self.parts):
            here = np.flatnonzero(owner == number)
            codes[here] = part_codes[places[here] - firsts[number]]
        return codes, bounds


class TokenWriter:
    """Writes a token store block by block; after a kill it goes on where the last whole document ends.

    Args:
        folder: Where; what an earlier writer left there is taken up.
        fit: Makes the codec, where none was saved yet.
    """

    def __init__(self, folder: Path, fit: Callable[[], Codec]) -> None:
        self.folder = make_folder(folder)
        if not (folder / _LENGTHS_FILE).is_file():  # written after the codec: what lies here without it is not whole
            save_codec(fit(), folder)
            (folder / CODES_FILE).write_bytes(b"")
            (folder / _LENGTHS_FILE).write_bytes(b"")
        self.codec = load_codec(folder)
        self.documents = self._recover()

    def append(self, tokens: Tokens) -> None:
        """Add the next documents; lengths are written after codes, so that a kill leaves no document half there."""
        with (self.folder / CODES_FILE).open("ab") as file:
            self.codec.encode(tokens.vectors).tofile(file)
        with (self.folder / _LENGTHS_FILE).open("ab") as file:
            tokens.lengths.astype("<i8").tofile(file)
        self.documents += len(tokens)

    def finish(self) -> TokenStore:
        """Write the offsets and open the store."""
        np.save(self.folder / BOUNDS_FILE, _bounds(np.fromfile(self.folder / _LENGTHS_FILE, dtype="<i8")))
        return TokenStore.load(self.folder)

    def _recover(self) -> int:
        """Cut both files back to whole documents; returns how many there are."""
        codes, lengths = self.folder / CODES_FILE, self.folder / _LENGTHS_FILE
        whole = lengths.stat().st_size // 8
        bounds = _bounds(np.fromfile(lengths, dtype="<i8", count=whole)) * self.codec.bytes_per_vector
        done = int(np.searchsorted(bounds, codes.stat().st_size, side="right")) - 1
        for path, size in ((codes, int(bounds[done])), (lengths, 8 * done)):
            with path.open("r+b") as file:
                file.truncate(size)
        return done


def check_tokens(tokens: Tokens, ids: Sequence[str], what: str) -> None:
    """Refuse token vectors that no search can use.

    Raises:
        UserError: Texts without tokens, NaN or infinite vectors, or another number of ids; the first few are named.
    """
    if len(tokens) != len(ids):
        raise UserError(f"{what}: {len(ids)} ids for the tokens of {len(tokens)} texts; give one id per text.")
    bare = np.flatnonzero(tokens.lengths == 0)
    if len(bare):
        named = sample_of(ids[row] for row in bare.tolist())
        raise UserError(
            f"{what}: {len(bare)} have no token ({named}), so that nothing can be compared; leave them out."
        )
    broken = np.flatnonzero(~np.isfinite(tokens.vectors).all(axis=1))
    if len(broken):
        rows = np.unique(np.searchsorted(tokens.bounds, broken, side="right") - 1)
        raise UserError(
            f"{what}: {len(broken)} token vectors of {len(rows)} texts are NaN or infinite "
            f"({sample_of(ids[row] for row in rows.tolist())}); embed these again or leave them out."
        )


def _bounds(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _mapped(path: Path, width: int) -> np.ndarray:
    tokens = path.stat().st_size // width
    if not tokens:  # an empty file cannot be mapped
        return np.zeros((0, width), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(tokens, width))
