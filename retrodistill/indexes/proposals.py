"""Candidates of a multi-vector index: MUVERA's encodings of its documents in a FAISS index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.factory import build_faiss, empty_index, set_parameters
from retrodistill.indexes.muvera import Muvera, MuveraSettings
from retrodistill.indexes.tokens import CODES_FILE, TokenStore

FAISS_FILE = "muvera.faiss"
_TRAINED_ON = 20_000  # encodings, at most


class Proposer:
    """Proposes the documents whose encoding has the highest inner product with the query's.

    Args:
        muvera: Makes the encodings.
        index: The filled FAISS index of encodings.
        labels: (n,) int64, ascending: by what the FAISS index names the documents that are left.

    Raises:
        UserError: The FAISS index does not know the settings' search parameters.
    """

    def __init__(self, muvera: Muvera, index: Any, labels: np.ndarray) -> None:
        self.muvera, self.index, self.labels = muvera, index, labels
        if muvera.settings.parameters is not None:
            set_parameters(index, muvera.settings.parameters)

    @classmethod
    def build(cls, settings: MuveraSettings, store: TokenStore) -> Proposer:
        """Encode the documents of a store, as its codec keeps them, block by block.

        Raises:
            UserError: A factory that does not parse, or that cannot be trained on so few documents.
        """
        muvera = Muvera(settings, store.codec.dimension)
        index = empty_index(settings.factory, muvera.dimension, len(store))
        if not index.is_trained:
            rows = np.linspace(0, len(store) - 1, min(len(store), _TRAINED_ON)).astype(np.int64)
            trained = build_faiss(settings.factory, muvera.documents(store.gather(rows)))
            trained.reset()
            index = trained
        for _, tokens in store.blocks():
            index.add(muvera.documents(tokens))
        return cls(muvera, index, np.arange(len(store)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of the FAISS index as a file."""
        import faiss

        return len(faiss.serialize_index(self.index))

    def candidates(self, queries: Tokens, k: int) -> Iterator[np.ndarray]:
        """Rows of the documents proposed for each query: the settings' number, or k where that is more."""
        wanted = max(self.muvera.settings.candidates, k)
        removed = self.index.ntotal - len(self)
        labels = self.index.search(self.muvera.queries(queries), min(wanted + removed, self.index.ntotal))[1]
        for found in labels:
            rows = np.minimum(np.searchsorted(self.labels, found), len(self) - 1)
            yield rows[self.labels[rows] == found][:wanted]  # neither FAISS's -1 nor a removed document

    def add(self, tokens: Tokens) -> None:
        """Encode the next documents."""
        first = self.index.ntotal
        self.index.add(self.muvera.documents(tokens))
        self.labels = np.concatenate([self.labels, np.arange(first, self.index.ntotal)])

    def forget(self, gone: np.ndarray) -> None:
        """Propose the documents of a (n,) mask no more."""
        self.labels = self.labels[~gone]

    def save(self, folder: Path) -> None:
        """Write the FAISS file."""
        import faiss

        faiss.write_index(self.index, str(folder / FAISS_FILE))

    @classmethod
    def load(cls, settings: MuveraSettings, dimension: int, folder: Path, labels: np.ndarray) -> Proposer:
        """Read the FAISS file that lies beside a token store.

        Raises:
            UserError: It is missing, or holds encodings of other tokens or settings.
        """
        import faiss

        if not (folder / FAISS_FILE).is_file():
            raise UserError(f"no file {folder / FAISS_FILE}: build the index again.")
        muvera = Muvera(settings, dimension)
        index = faiss.read_index(str(folder / FAISS_FILE))
        if index.d != muvera.dimension or (len(labels) and labels[-1] >= index.ntotal):
            raise UserError(
                f"{folder / FAISS_FILE} holds {index.ntotal} encodings of {index.d} dimensions, {CODES_FILE} and the "
                f"settings ask for {len(labels)} of {muvera.dimension}; they do not belong together: build it again."
            )
        return cls(muvera, index, labels)
