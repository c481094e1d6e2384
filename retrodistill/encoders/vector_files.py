"""Vectors made elsewhere, such as by an API: files of ids and vectors, and an encoder that looks them up."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, sample_of, unknown
from retrodistill.core.files import digest, read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import KeyIndex, text_keys
from retrodistill.data.collection import Collection
from retrodistill.data.records import read_objects
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import check_finite

ENDINGS = (".parquet", ".jsonl", ".npy")
_ID = ("_id", "id", "document_id", "query_id")
_VECTOR = ("vector", "embedding")
_Read = tuple[list[str], np.ndarray, list[Any]]  # ids, (n, d) vectors, texts or nothing


@dataclass(frozen=True)
class VectorTable:
    """Ids and their vectors.

    Attributes:
        ids: (n,) unique ids.
        vectors: (n, d) float32, finite; unit vectors where they are compared by cosine.
        texts: (n,) what each vector is of, where the file says; else None, and an id's text is its collection's.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Digest of ids, texts and vectors; the same in every file format."""
        hasher = hashlib.blake2b(digest_size=8)
        for part in (self.ids, self.texts or ()):
            hasher.update(json.dumps(list(part)).encode())
        hasher.update(np.ascontiguousarray(self.vectors).data)
        return hasher.hexdigest()


def read_vectors(path: str | Path, *, unit: bool, with_texts: bool = False) -> VectorTable:
    """Read a file of vectors.

    Args:
        path: ``.parquet`` (or a folder of such parts) or ``.jsonl`` with ``_id`` (``id``, ``document_id``,
            ``query_id``), ``vector`` (``embedding``) and optional ``text``; or ``NAME.npy`` (n, d) with ids in
            ``NAME.ids.txt``, one a line.
        unit: Normalize vectors to length 1, for comparison by cosine.
        with_texts: Take what vectors are of from the file where it says so.

    Raises:
        UserError: No such file, none of vectors, or empty; missing or duplicate ids; vectors of several
            widths, NaN, infinite, or zero where they are compared by cosine. Ids are named.
    """
    file = Path(path)
    parts = sorted(file.glob("*.parquet")) if file.is_dir() else []
    if not file.is_file() and not parts:
        raise UserError(f"no file of vectors {file}; give one of {', '.join(ENDINGS)}.")
    if not parts and file.suffix not in ENDINGS:
        raise UserError(f"{file} is no file of vectors: it ends in {file.suffix!r}, wanted {', '.join(ENDINGS)}.")
    readers = {".parquet": _parquet, ".jsonl": _lines, ".npy": _array}
    ids, vectors, said = _parquet(file) if parts else readers[file.suffix](file)
    if not len(ids) or not vectors.shape[1]:
        raise UserError(f"{file} holds no vector; wanted one for each document.")
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{file}: id {sample_of(twice)} stands more than once; give each one vector.")
    check_finite(vectors, ids, str(file))
    texts = _texts(said, ids, file) if with_texts and any(text is not None for text in said) else None
    return VectorTable(ids, _unit(vectors, ids, file) if unit else vectors, texts)


def _unit(vectors: np.ndarray, ids: list[str], file: Path) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)
    zero = np.flatnonzero(lengths == 0)
    if len(zero):
        raise UserError(
            f"{file}: {len(zero)} vectors are zero ({sample_of(ids[row] for row in zero)}), which have no cosine; "
            "embed these again, or leave them out where the text is empty."
        )
    if np.allclose(lengths, 1, rtol=0, atol=1e-5):
        return vectors  # as they lie on disk: nothing is copied
    return (vectors / lengths[:, None]).astype(np.float32, copy=False)


def _parquet(file: Path) -> _Read:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is no Parquet file or cut short ({reason}); write it again.") from error
    id_, vector = _column(table.column_names, _ID, file), _column(table.column_names, _VECTOR, file)
    ids = [_id(one, f"{file}, row {row}") for row, one in enumerate(table[id_].to_pylist(), start=1)]
    lists = table[vector].combine_chunks()
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{file}: column {vector!r} is {kind}; wanted a list of numbers in each row.")
    _check_widths(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), ids, file)
    flat = lists.flatten()
    if flat.null_count or not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise UserError(f"{file}: column {vector!r} holds {'nulls' if flat.null_count else flat.type}; wanted numbers.")
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    texts = table["text"].to_pylist() if "text" in table.column_names else []
    return ids, values.reshape(len(ids), -1) if ids else np.zeros((0, 0), np.float32), texts


def _lines(file: Path) -> _Read:
    ids: list[str] = []
    rows: list[np.ndarray] = []
    texts: list[Any] = []
    for where, record in _records(file):
        id_, vector = _column(list(record), _ID, where), _column(list(record), _VECTOR, where)
        ids.append(_id(record[id_], where))
        try:
            row = np.asarray(record[vector], dtype=np.float32)
            is_list = row.ndim == 1 and not any(isinstance(number, str) for number in record[vector])
        except (TypeError, ValueError):
            is_list = False
        if not is_list:
            raise UserError(f"{where}: {vector!r} of {ids[-1]!r} is no list of numbers.")
        rows.append(row)
        texts.append(record.get("text"))
    _check_widths(np.array([len(row) for row in rows], dtype=np.int64), ids, file)
    return ids, np.stack(rows) if rows else np.zeros((0, 0), np.float32), texts


def _array(file: Path) -> _Read:
    beside = file.with_suffix(".ids.txt")
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{file} is no .npy file or cut short ({str(error).splitlines()[0]}); write it again."
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(f"{file} holds {vectors.dtype} of shape {vectors.shape}; wanted numbers of shape (n, d).")
    if not beside.is_file():
        raise UserError(f"{file} has no ids: wanted {beside.name} beside it, one id a line.")
    try:
        lines = beside.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{beside} is not UTF-8; write it again.") from error
    ids = [_id(one, f"{beside}, line {line}") for line, one in enumerate(lines, start=1)]
    if len(ids) != len(vectors):
        raise UserError(f"{beside} has {len(ids)} ids for {len(vectors)} vectors; wanted one a line, in their order.")
    return ids, vectors.astype(np.float32, copy=False), []


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in read_objects(file, '{"_id": ..., "vector": [...]}'):
        yield f"{file}, line {number}", record


def _column(names: Sequence[str], wanted: Sequence[str], where: str | Path) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise UserError(
            f"{where}: no {wanted[0]!r} (fields: {', '.join(map(repr, names)) or 'none'}); each vector needs an id "
            "('_id') and its numbers ('vector')."
        )
    return found


def _id(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: the id is {value!r}; wanted a string that is not empty, or an integer.")
    return value


def _texts(texts: Sequence[Any], ids: Sequence[str], file: Path) -> list[str]:
    lacking = [id_ for id_, text in zip(ids, texts, strict=True) if not isinstance(text, str)]
    if lacking:
        raise UserError(
            f"{file}: {len(lacking)} rows have no 'text' ({sample_of(lacking)}), others have; give all or none."
        )
    return list(texts)


def _check_widths(widths: np.ndarray, ids: Sequence[str], file: Path) -> None:
    if not len(widths):
        return
    usual = Counter(widths.tolist()).most_common(1)[0][0]
    others = np.flatnonzero(widths != usual)
    if len(others):
        named = sample_of(ids[int(row)] for row in others)
        raise UserError(
            f"{file}: {len(others)} vectors have another width than {usual} ({named}, the first {widths[others[0]]}); "
            "all are by one model and of one width."
        )


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
