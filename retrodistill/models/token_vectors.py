"""The store of token vectors: a text is encoded once, for candidates, teacher and student together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodistill.errors import UserError
from retrodistill.files import cache_folder
from retrodistill.manifest import Manifest
from retrodistill.models.contract import Role
from retrodistill.models.multi_vector import MultiVectorModel, Tokens
from retrodistill.progress import bar
from retrodistill.stores import KeyIndex, PartStore, text_keys

_BATCH = 32
_PART = 256  # texts per part: what a kill may lose


class TokenVectors:
    """Token vectors of one encoder in one role, keyed by text, in memory-mapped parts of float16.

    Args:
        encoder: Whose vectors these are.
        role: ``query`` or ``document``: it decides prompt, length, expansion and mask.
        root: Folder of stores; the shared cache by default.

    Raises:
        UserError: The folder belongs to another encoder or cannot be written.
    """

    def __init__(self, encoder: MultiVectorModel, role: Role, root: Path | None = None) -> None:
        self.encoder, self.role = encoder, role
        contract, fingerprint = encoder.contract(role), encoder.fingerprint(role)
        owner = Manifest("encoder", {"encoder": fingerprint}, {"role": role}, {"contract": contract})
        self._store = PartStore((root or cache_folder()) / "token-vectors" / f"{role}-{fingerprint}", owner, ".arrow")
        self._load()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct texts that are not encoded yet, in order."""
        keys = text_keys(texts)
        absent = self._index.find(keys) < 0
        _, first = np.unique(keys, return_index=True)
        return [texts[row] for row in np.sort(first) if absent[row]]

    def fill(self, texts: Sequence[str]) -> None:
        """Encode what is missing, longest first, a part at a time; safe to kill and to run twice at once."""
        if not self.missing(texts):
            return
        with self._store.writing():
            self._load()  # another process may have been faster
            todo = sorted(self.missing(texts), key=len, reverse=True)
            with bar(len(todo), f"token vectors ({self.encoder.name}, {self.role})", "texts") as progress:
                for start in range(0, len(todo), _PART):
                    part = todo[start : start + _PART]
                    self._store.append(_part(part, self.encoder.encode(part, self.role, batch_size=_BATCH)))
                    progress.update(len(part))
            self._store.compact()
        self._load()

    def gather(self, texts: Sequence[str]) -> Tokens:
        """The token vectors of encoded texts, float32 as near as float16 keeps them (5e-4 of a value).

        Raises:
            UserError: A text is not in the store.
        """
        rows = self._index.find(text_keys(texts))
        if (rows < 0).any():
            raise UserError(f"{int((rows < 0).sum())} texts are not in the store; encode them first.")
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        found = []
        for block, row in zip(blocks.tolist(), rows.tolist(), strict=True):
            bounds, vectors = self._blocks[block]
            start, stop = bounds[row - self._starts[block] : row - self._starts[block] + 2]
            found.append(vectors[start:stop].astype(np.float32))
        return Tokens.of(found, self.encoder.dimension)

    def _load(self) -> None:
        tables = self._store.parts()
        width = self.encoder.dimension
        self._blocks = []
        for table in tables:
            for chunk in table["tokens"].chunks:
                bounds = chunk.offsets.to_numpy()
                vectors = chunk.values.flatten().to_numpy().reshape(-1, width)
                self._blocks.append((bounds, vectors))
        sizes = [len(bounds) - 1 for bounds, _ in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
        keys = [table["key"].to_numpy() for table in tables]
        self._index = KeyIndex(np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64))


def embed_tokens(encoder: MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None = None) -> Tokens:
    """Encode texts through the store of the encoder."""
    store = TokenVectors(encoder, role, root)
    store.fill(texts)
    return store.gather(texts)


def _part(texts: Sequence[str], tokens: Tokens) -> pa.Table:
    flat = pa.array(tokens.vectors.astype(np.float16).ravel())
    rows = pa.FixedSizeListArray.from_arrays(flat, tokens.dimension)
    held = pa.LargeListArray.from_arrays(pa.array(tokens.bounds), rows)
    return pa.table({"key": pa.array(text_keys(texts)), "tokens": held})
