"""The asymmetric index: documents by one encoder, queries by another that was distilled into its space."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrodistill.collections.collection import Collection
from retrodistill.collections.texts import Texts
from retrodistill.errors import UserError
from retrodistill.files import atomic_folder, check_replaceable, file_digest
from retrodistill.indexes.factory import build_faiss, empty_index, set_parameters
from retrodistill.manifest import FILE_NAME, Manifest
from retrodistill.models.embeddings import embed
from retrodistill.models.encoder import IN_MEMORY, Encoder, load_encoder
from retrodistill.models.retrievers import check_k, check_queries, require_space
from retrodistill.models.vectors import check_finite
from retrodistill.runs.run import Run

_FAISS_FILE, _IDS_FILE = "index.faiss", "ids.parquet"


@dataclass(frozen=True)
class Space:
    """The space that an index' documents lie in: its contract with query encoders.

    Attributes:
        fingerprint: Of model weights, prompt, maximum length, similarity and dimension.
        dimension: Width of a vector.
        similarity: ``cosine`` (unit vectors) or ``dot``.
        documents_by: Name of the encoder that made them.
    """

    fingerprint: str
    dimension: int
    similarity: str
    documents_by: str

    @classmethod
    def of(cls, encoder: Encoder) -> Space:
        """The space of an encoder's documents."""
        return cls(encoder.document_space, encoder.dimension, encoder.similarity, encoder.name)


class AsymmetricIndex:
    """A plain FAISS index, the documents' ids, the space's contract and a query encoder that it admits.

    Args:
        index: The filled FAISS index.
        ids: (n,) document ids, by FAISS row.
        space: Where the documents lie.
        queries: Encodes queries; None to search by vectors only.
        factory: The string that it was built from.
        name: What its runs are called.

    Raises:
        UserError: The query encoder belongs to another space, or the number of ids is not that of the vectors.
    """

    def __init__(
        self,
        index: Any,
        ids: Sequence[str],
        space: Space,
        queries: Encoder | None = None,
        factory: str = "Flat",
        name: str = "index",
    ) -> None:
        if index.ntotal != len(ids) or index.d != space.dimension:
            raise UserError(
                f"index of {index.ntotal} vectors of {index.d} dimensions with {len(ids)} ids and a space of "
                f"{space.dimension}; the files do not belong together: build the index again."
            )
        self.index, self.ids, self.space, self.factory, self.name = index, list(ids), space, factory, name
        self.queries = queries
        if queries is not None:
            require_space(queries, space.fingerprint, space.dimension, space.documents_by)

    def __repr__(self) -> str:
        asking = "no query encoder" if self.queries is None else f"queries by {self.queries.name}"
        return f"AsymmetricIndex({len(self)} documents by {self.space.documents_by}, {asking}, {self.factory})"

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, queries: str | Sequence[str] | Texts, k: int = 10) -> Run:
        """Search by text.

        Args:
            queries: One text, several (their ids are "0", "1"...), or queries with ids.
            k: Documents per query, 1 to the size of the index.

        Returns:
            A run in rank order.

        Raises:
            UserError: No query encoder, an empty query, or k beyond the index.
        """
        asked = queries if isinstance(queries, Texts) else _numbered(queries)
        check_queries(asked.texts)
        return self.search_vectors(self._encode(asked.texts), k, asked.ids)

    def search_vectors(self, vectors: np.ndarray, k: int = 10, query_ids: Sequence[str] | None = None) -> Run:
        """Search by vectors that an admitted encoder made.

        Args:
            vectors: (q, dimension) float32.
            k: Documents per query, 1 to the size of the index.
            query_ids: (q,) ids; "0", "1"... by default.

        Raises:
            UserError: Another dimension, vectors that are not finite, or k beyond the index.
        """
        check_k(k, len(self))
        vectors = np.ascontiguousarray(np.atleast_2d(vectors), dtype=np.float32)
        if vectors.shape[1] != self.space.dimension:
            raise UserError(
                f"queries of {vectors.shape[1]} dimensions, the index has {self.space.dimension}; use the "
                f"encoder of its documents ({self.space.documents_by}) or one distilled into its space."
            )
        names = list(query_ids) if query_ids is not None else [str(number) for number in range(len(vectors))]
        check_finite(vectors, names, "queries")
        scores, rows = self.index.search(vectors, k)
        return Run.from_matrix(names, self.ids, rows, scores, name=self.name).ranked()

    def retrieve(self, collection: Collection, queries: Texts, k: int) -> Run:
        """As `search`, for a collection that it was built on; k is cut to its size.

        Raises:
            UserError: The collection lacks documents of the index.
        """
        vectors = embed(self._query_encoder(), queries.texts, "query")
        run = self.search_vectors(vectors, min(k, len(self)), queries.ids)
        run.require(queries.ids, collection.documents.ids)
        return run

    def responder(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """Encodes and searches one query."""
        k = min(k, len(self))
        return lambda text: self.index.search(self._encode([text]), k)

    def bytes_per_document(self, collection: Collection | None = None) -> float | None:
        """Size of the FAISS index as a file, codebooks included, per document."""
        import faiss

        return len(faiss.serialize_index(self.index)) / len(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``index.faiss`` (any FAISS program reads it), ``ids.parquet`` (by FAISS row) and ``manifest.json``.

        Raises:
            UserError: The folder is not writable, the disk is full, or the folder holds something else than an index;
                what stood there stays.
        """
        import faiss

        target = check_replaceable(folder, _FAISS_FILE)
        with atomic_folder(target) as temporary:
            try:
                faiss.write_index(self.index, str(temporary / _FAISS_FILE))
            except RuntimeError as error:
                raise OSError(str(error).strip().splitlines()[-1]) from error
            pq.write_table(pa.table({"document_id": pa.array(self.ids, pa.string())}), temporary / _IDS_FILE)
            checksums = {name: file_digest(temporary / name) for name in (_FAISS_FILE, _IDS_FILE)}
            about = {
                "space": asdict(self.space),
                "documents": len(self),
                "name": self.name,
                "queries_by": self._queries_by(target),
                "checksums": checksums,
            }
            Manifest("index", {"space": self.space.fingerprint, **checksums}, {"factory": self.factory}, about).write(
                temporary
            )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        queries: Any = None,
        *,
        parameters: str | None = None,
        memory_map: bool = False,
    ) -> AsymmetricIndex:
        """Load an index.

        Args:
            folder: Where it was saved.
            queries: Name or object of the query encoder; by default the one it was saved with.
            parameters: FAISS search parameters, e.g. ``nprobe=16``.
            memory_map: Leave the vectors on disk.

        Raises:
            UserError: A file is missing, cut short or altered, or the query encoder belongs to another space.
        """
        import faiss

        path = Path(folder)
        factory, about = _checked_manifest(path)
        index = faiss.read_index(str(path / _FAISS_FILE), faiss.IO_FLAG_MMAP if memory_map else 0)
        if parameters:
            set_parameters(index, parameters)
        ids = pq.read_table(path / _IDS_FILE)["document_id"].to_pylist()
        asking = _resolve(path, about["queries_by"]) if queries is None else queries
        encoder = None if asking is None else load_encoder(asking)
        return cls(index, ids, Space(**about["space"]), encoder, factory, about["name"])

    def _encode(self, texts: list[str]) -> np.ndarray:
        return self._query_encoder().encode(texts, "query")

    def _query_encoder(self) -> Encoder:
        if self.queries is None:
            raise UserError("this index has no query encoder; give one, or search by vectors.")
        return self.queries

    def _queries_by(self, folder: Path) -> str | None:
        """The query encoder's name; a folder is named relative to the index, so that both can move together.

        None where there is no encoder, or one that was never saved: it is given again when the index is loaded.
        """
        kind, _, place = self.queries.name.partition(":") if self.queries else ("", "", IN_MEMORY)
        if place == IN_MEMORY:
            return None
        return f"{kind}:{os.path.relpath(place, folder)}" if Path(place).is_dir() else f"{kind}:{place}"


def build_index(
    collection: Collection, documents: Any, queries: Any = None, factory: str = "Flat", *, name: str = "index"
) -> AsymmetricIndex:
    """Embed a collection and index it.

    Args:
        collection: What to index.
        documents: Name or object of the encoder of documents.
        queries: Name or object of the encoder of queries; the documents' by default.
        factory: A FAISS factory string.
        name: What its runs are called.

    Raises:
        UserError: The query encoder belongs to another space, vectors that are not finite, or a factory that does not
            parse or cannot be trained on so few.
    """
    encoder = load_encoder(documents)
    asking = encoder if queries is None else load_encoder(queries)
    require_space(asking, encoder.document_space, encoder.dimension, encoder.name)
    empty_index(factory, encoder.dimension, len(collection.documents))
    vectors = embed(encoder, collection.documents.texts, "document")
    check_finite(vectors, collection.documents.ids, encoder.name)
    index = build_faiss(factory, np.ascontiguousarray(vectors))
    return AsymmetricIndex(index, collection.documents.ids, Space.of(encoder), asking, factory, name)


def _checked_manifest(path: Path) -> tuple[str, dict[str, Any]]:
    """Factory and ``about`` of an index whose files are whole."""
    if not path.is_dir():
        raise UserError(f"no index folder {path}; build one with 'retrodistill index'.")
    if not (path / FILE_NAME).is_file():
        raise UserError(f"folder {path} holds no index (no {FILE_NAME}); a model is named 'dense:{path}'.")
    manifest = Manifest.read(path)
    if manifest.artifact != "index":
        raise UserError(f"{path} holds no index but {manifest.artifact}; give an index' folder.")
    about = manifest.about
    lacking = {"space", "name", "queries_by", "checksums"} - set(about)
    if lacking or "factory" not in manifest.settings:
        lost = min(lacking, default="factory")
        raise UserError(f"{path / FILE_NAME} is no whole manifest of an index: it lacks {lost!r}; build it again.")
    for name, checksum in about["checksums"].items():
        if not (path / name).is_file() or file_digest(path / name) != checksum:
            raise UserError(f"{path / name} is missing, cut short or altered (checksum); build the index again.")
    return manifest.settings["factory"], about


def _numbered(queries: str | Sequence[str]) -> Texts:
    texts = [queries] if isinstance(queries, str) else list(queries)
    return Texts.from_pairs((str(number), text) for number, text in enumerate(texts))


def _resolve(folder: Path, name: str | None) -> str | None:
    if name is None:
        return None
    kind, _, place = name.partition(":")
    return f"{kind}:{folder / place}" if (folder / place).is_dir() else name
