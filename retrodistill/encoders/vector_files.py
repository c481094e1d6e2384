"""Models behind an API: vectors are read from a file by id and replace the model everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.files import digest, read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import KeyIndex, text_keys
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vector_tables import ENDINGS, VectorTable, read_vectors

ABOUT_FILE = "about.json"
_SAME = 0.99  # cosine of two vectors of one text: APIs are not exact, but not that far off


@dataclass(frozen=True)
class About:
    """What a folder of vectors says about the model that made them.

    Attributes:
        model: The model's name, e.g. ``openai/text-embedding-3-small``; two files of one model lie in one space. A file
            that names none is a space of its own.
        similarity: ``cosine`` or ``dot``.
        prompts: What was put before texts of each role, or the API's word for the role (``input_type``). Where both
            roles have the same, a document's vector also serves the same text as a query.
    """

    model: str | None = None
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> About:
        """Read ``about.json``.

        Raises:
            UserError: It holds something else.
        """
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f'{path}: wanted {{"model": ..., "similarity": "cosine" or "dot", "prompts": {{...}}}}.')
        for key in content:
            if key not in cls.__dataclass_fields__:
                raise unknown(f"key of {path}", key, cls.__dataclass_fields__)
        about = cls(**content)
        if about.similarity not in Encoder.similarities:
            raise unknown(f"similarity in {path}", about.similarity, Encoder.similarities)
        is_text = isinstance(about.prompts, dict) and all(isinstance(one, str) for one in about.prompts.values())
        if not is_text or not set(about.prompts) <= {"query", "document"}:
            raise UserError(f'{path}: prompts is {about.prompts!r}; wanted {{"query": "...", "document": "..."}}.')
        if about.model is not None and (not isinstance(about.model, str) or not about.model.strip()):
            raise UserError(f"{path}: model is {about.model!r}; wanted its name.")
        return about

    @classmethod
    def of_export(cls, folder: Path) -> About:
        """What the manifest of a Parquet export says of the encoder of its documents; nothing known without one.

        Raises:
            UserError: It holds no dense vectors.
        """
        if not (folder / FILE_NAME).is_file():
            return cls()
        manifest = Manifest.read(folder)
        if manifest.settings.get("kind") != "dense":
            raise UserError(f"{folder} holds {manifest.settings.get('kind')} vectors; vectors: reads dense ones.")
        space = manifest.about["space"]
        prompts = {
            role: str(space[key]["prompt"])
            for role, key in (("document", "contract"), ("query", "query_contract"))
            if space.get(key, {}).get("prompt")
        }
        return cls(space["documents_by"], space["similarity"], prompts)


@dataclass(frozen=True)
class _Source:
    """A table's vectors by text: where a text's key stands among `rows`, which are rows of `vectors`."""

    keys: KeyIndex
    rows: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, table: VectorTable, texts: Texts, name: str) -> _Source:
        """By the texts next to the vectors, else by a collection's texts for their ids.

        Raises:
            UserError: Two ids have one text and vectors that differ.
        """
        places = {id_: row for row, id_ in enumerate(table.ids)}
        given = (table.ids, table.texts) if table.texts is not None else (texts.ids, texts.texts)
        pairs = [(id_, text) for id_, text in zip(*given, strict=True) if id_ in places]
        rows = np.array([places[id_] for id_, _ in pairs], dtype=np.int64)
        all_keys = text_keys([text for _, text in pairs])
        keys = KeyIndex(all_keys)
        first = keys.find(all_keys)
        for again in np.flatnonzero(first != np.arange(len(pairs))):
            one, other = table.vectors[rows[first[again]]], table.vectors[rows[again]]
            if one @ other < _SAME * np.linalg.norm(one) * np.linalg.norm(other):
                raise UserError(
                    f"{name}: {pairs[first[again]][0]!r} and {pairs[again][0]!r} have one text and vectors that "
                    "differ; ids and vectors may be shifted against each other: embed these again, or leave one out."
                )
        return cls(keys, rows, table.vectors)


class VectorFile(Encoder):
    """An encoder whose vectors were made elsewhere: it looks them up by text, once it knows the texts of the ids.

    Opened, it knows its space and admits queries; bound to a collection, it also encodes the collection's texts.

    Args:
        name: ``vectors:PATH``.
        documents: Vectors by document id.
        queries: Vectors by query id, or by the texts next to them.
        about: Description of the model that made them.
    """

    kind = "vectors"
    is_static = False
    is_recorded = True

    def __init__(self, name: str, documents: VectorTable, queries: VectorTable | None, about: About) -> None:
        super().__init__(None, name)
        self.documents, self.queries, self.about = documents, queries, about
        self._sources: dict[Role, list[_Source]] | None = None
        self._bound_to: tuple[str, str] | None = None

    @classmethod
    def open(cls, path: str | Path) -> VectorFile:
        """Open a file of document vectors, or a folder with ``documents.*`` and optional ``queries.*``, ``about.json``.

        A folder that ``export --to parquet`` wrote is read too; its manifest stands for ``about.json``.

        Raises:
            UserError: As `read_vectors`; or the folder holds no documents, or queries of another width.
        """
        place = Path(path).expanduser()
        if not place.is_dir():
            return cls(f"vectors:{path}", read_vectors(place, unit=True), None, About())
        about = About.read(place / ABOUT_FILE) if (place / ABOUT_FILE).exists() else About.of_export(place)
        unit = about.similarity == "cosine"
        documents, queries = _only(place, "documents"), _only(place, "queries")
        if documents is None:
            raise UserError(f"folder {place} holds no documents{{{','.join(ENDINGS)}}}; put the vectors there.")
        table = read_vectors(documents, unit=unit)
        asked = None if queries is None else read_vectors(queries, unit=unit, with_texts=True)
        if asked is not None and asked.vectors.shape[1] != table.vectors.shape[1]:
            raise UserError(
                f"{queries} has vectors of {asked.vectors.shape[1]} dimensions, {documents.name} of "
                f"{table.vectors.shape[1]}; both are by one model."
            )
        return cls(f"vectors:{path}", table, asked, about)

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.documents.vectors.shape[1])

    @property
    def similarity(self) -> str:
        """``cosine`` or ``dot``."""
        return self.about.similarity

    @property
    def truncation(self) -> int | None:
        """None: vectors that an API truncated count as those of a separate model."""
        return None

    def prompt(self, role: Role) -> str:
        """What the model was given before a text, as ``about.json`` says."""
        return self.about.prompts.get(role, "")

    def contract(self, role: Role) -> dict[str, Any]:
        """The model by its name, or by these very vectors where it has none, prompt, similarity and dimension."""
        return {
            "model": self.about.model or f"vectors {self.documents.digest}",
            "prompt": self.prompt(role),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of the contract and of the vectors: another file is other vectors, in the same space or not."""
        return digest(self.contract(role), self._content)

    @cached_property
    def _content(self) -> list[str]:
        return [table.digest for table in (self.documents, self.queries) if table is not None]

    def bind(self, collection: Collection) -> VectorFile:
        """The same vectors, found by the texts that a collection has for their ids.

        A document or query without text needs no vector (an API takes none) and gets zeros, as from a token table.

        Raises:
            UserError: Documents of the collection have no vector, or two of one text have vectors that differ.
        """
        wanted = (collection.documents.fingerprint, collection.queries.fingerprint)
        if self._bound_to == wanted:
            return self
        documents = _Source.of(self.documents, collection.documents, self.name)
        queries = [] if self.queries is None else [_Source.of(self.queries, collection.queries, self.name)]
        bound = VectorFile(self.name, self.documents, self.queries, self.about)
        bound._bound_to = wanted
        bound._sources = {"document": [documents], "query": [*queries, *([documents] if self.is_symmetric else [])]}
        bound.require(collection.documents, "document")
        return bound

    def missing(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(m,) int64 places of the texts that have no vector and need one.

        Raises:
            UserError: It is not bound to a collection.
        """
        return np.flatnonzero(self._find(texts, role)[1])

    def require(self, texts: Texts, role: Role) -> None:
        """Check, before work starts, that texts have vectors.

        Raises:
            UserError: Some have none: how many, and the first ids.
        """
        places = self.missing(texts.texts, role)
        if len(places):
            lacking = [texts.ids[place] for place in places]
            known = {"document": self.documents, "query": self.queries or ()}[role]
            raise UserError(
                f"{self.name} has no vectors for {len(lacking)} of {len(texts)} "
                f"{'queries' if role == 'query' else 'documents'} ({sample_of(lacking)}); it holds {len(known)}: "
                "embed these by the same model and add them."
            )

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """Look up the vectors of texts.

        Returns:
            (n, dimension) float32; unit vectors where they are compared by cosine, zeros for a text without words.

        Raises:
            UserError: It is not bound to a collection, or a text has no vector.
        """
        vectors, lacking = self._find(texts, role)
        if lacking.any():
            first = [texts[place][:40] for place in np.flatnonzero(lacking)[:2]]
            raise UserError(
                f"{self.name} has no vectors for {int(lacking.sum())} of {len(texts)} texts ({sample_of(first)}), and "
                "its model cannot be asked here; embed them there and add them, or use a query encoder distilled into "
                "its space."
            )
        return vectors

    def _find(self, texts: Sequence[str], role: Role) -> tuple[np.ndarray, np.ndarray]:
        """(n, dimension) vectors, zeros where there is none, and (n,) whether one is lacking."""
        if self._sources is None:
            raise UserError(
                f"{self.name} holds vectors by id: which texts they are of, only a collection tells; give the "
                "collection, or a query encoder distilled into its space."
            )
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        keys, lacking = text_keys(texts), np.ones(len(texts), dtype=bool)
        for source in self._sources[role]:
            found = source.keys.find(keys)
            here = lacking & (found >= 0)
            vectors[here] = source.vectors[source.rows[found[here]]]
            lacking &= ~here
        has_words = np.fromiter((bool(text.strip()) for text in texts), dtype=bool, count=len(texts))
        return vectors, lacking & has_words

    def __repr__(self) -> str:
        made = self.about.model or "a model that is not named"
        return f"VectorFile({self.name}, {len(self.documents)} documents by {made}, {self.dimension} dimensions)"


def _only(folder: Path, stem: str) -> Path | None:
    """The one file of a name in a folder, whatever it ends in."""
    found = [folder / f"{stem}{ending}" for ending in ENDINGS if (folder / f"{stem}{ending}").is_file()]
    if not found and any((folder / stem).glob("*.parquet")):
        return folder / stem  # the parts of an export
    if len(found) > 1:
        raise UserError(f"folder {folder} holds {' and '.join(one.name for one in found)}; keep one of them.")
    return found[0] if found else None
