"""What every kind of index can do."""

from __future__ import annotations

import os

from retrodistill.core.files import digest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.queries import Queries
from retrodistill.runs.run import Run


class Index(Ranker):
    """A ranker over documents of its own: it is filled, searched, saved and loaded.

    Attributes:
        index_kind: Name of its kind in the registry.
        ids: Document ids, in the order in which they were added.
        space: Where the documents lie; query encoders of another space are refused.
        made_from: Fingerprint of the folder that it was loaded from; empty once it was changed, or where there is none.
        build_seconds: How long indexing took; None where it is unknown.
    """

    can_search = True
    index_kind: str
    ids: list[str]
    space: EmbeddingSpace
    made_from: str = ""
    build_seconds: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of its folder and its query encoder; empty for an index in memory."""
        asking = self.queries.fingerprint("query") if hasattr(self.queries, "fingerprint") else ""
        return digest(self.made_from, asking) if self.made_from else ""

    @property
    def documents_by(self) -> str:
        """Name of the encoder of its documents."""
        return self.space.documents_by

    @property
    def can_be_timed(self) -> bool:
        """Whether it has a query encoder that encodes new queries."""
        return self.queries is not None and not getattr(self.queries, "is_recorded", False)

    def add(self, documents: Texts) -> None:
        """Encode documents by the encoder of the space and index them.

        Raises:
            UserError: An id that is there already, or no encoder of the space at hand.
        """
        raise NotImplementedError

    def search(self, queries: Queries, collection: Collection | None = None, k: int | None = None) -> Run:
        """The k best documents of each query.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids: a mapping of them, or `Texts`.
            collection: Of the documents, where there is one: vectors of queries come from the store, k is cut to the
                size of the index, and documents that the collection lacks are refused.
            k: Documents per query, 1 to the size of the index; 10 by default, or all of fewer.

        Returns:
            A run in rank order.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        raise NotImplementedError

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Bytes that serving keeps per document."""
        raise NotImplementedError

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index' folder, whole or not at all.

        Raises:
            UserError: The folder is not writable or holds something else.
        """
        raise NotImplementedError
