"""What every kind of index can do."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.rankers.retrievers import Queries, Retriever
from retrodistill.runs.run import Run


@runtime_checkable
class Index(Retriever, Protocol):
    """A retriever over documents of its own: it is filled, searched, saved and loaded.

    Attributes:
        ids: Document ids, in the order in which they were added.
        space: Where the documents lie; query encoders of another space are refused.
    """

    ids: list[str]
    space: EmbeddingSpace

    def __len__(self) -> int:
        """Number of documents."""
        ...

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them.

        Raises:
            UserError: An id that is there already, or no encoder of the space at hand.
        """
        ...

    def search(self, queries: Queries, k: int | None = None) -> Run:
        """The k best documents of each query (10, or all of fewer, by default), as a run in rank order.

        Raises:
            UserError: An empty query, k beyond the index, or no query encoder.
        """
        ...

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Bytes that serving keeps per document."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index' folder, whole or not at all.

        Raises:
            UserError: The folder is not writable or holds something else.
        """
        ...
