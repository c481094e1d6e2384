"""Vectors made elsewhere, such as by an API: files of ids and vectors, and an encoder that looks them up."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from retrodistill.core.arrays import foreign_table, read_array, values_of
from retrodistill.core.checksums import check_files
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, first_line, sample_of
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.settings import Settings
from retrodistill.core.stores import KeyIndex, text_keys
from retrodistill.data.collection import Collection
from retrodistill.data.records import not_utf8
from retrodistill.data.tables import read_lines, read_objects
from retrodistill.data.texts import Texts, blank_rows
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.names import found_from
from retrodistill.encoders.vectors import check_finite

ENDINGS = (".parquet", ".jsonl", ".npy")
ABOUT_FILE = "about.json"
_ID_COLUMNS = ("_id", "id", "document_id", "query_id")
_VECTOR_COLUMNS = ("vector", "embedding")
_SAME = 0.99  # least cosine of two vectors of one text: APIs vary a little from call to call, but not more
_Rows = tuple[list[str], np.ndarray, list[Any]]  # ids, (n, d) vectors, texts (empty if the file has none)
_Lookup = tuple[KeyIndex, np.ndarray, np.ndarray]  # position of a text's key -> one of `rows`, which are of `vectors`


@dataclass(frozen=True)
class VectorTable:
    """Unique ids and their vectors."""

    ids: Sequence[str]
    vectors: np.ndarray  # (n, d) float32, finite; unit vectors if they are compared by cosine
    texts: Sequence[str] | None = None  # of each vector; None if a collection supplies the text of each id

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
    """Read a file of vectors, scaled to length 1 if `unit` (for cosine), and its texts if wanted and there.

    The file is ``.parquet`` (or a folder of such parts) or ``.jsonl`` with ``_id`` (``id``, ``document_id``,
    ``query_id``), ``vector`` (``embedding``) and optional ``text``; or ``NAME.npy`` (n, d) with ids in
    ``NAME.ids.txt``, one per line.

    Raises:
        UserError: The file is missing, damaged or empty; ids are missing or repeated; vectors differ in width, are not
            finite, or are zero when compared by cosine. Names the ids.
    """
    file = path_of(path)
    is_parts = file.is_dir() and any(file.glob("*.parquet"))
    if not file.is_file() and not is_parts:
        raise UserError(f"vector file {file} does not exist; give one of {', '.join(ENDINGS)}.")
    if not is_parts and file.suffix not in ENDINGS:
        raise UserError(f"{file} ends in {file.suffix!r}; a vector file ends in {', '.join(ENDINGS)}.")
    readers = {".parquet": _read_parquet, ".jsonl": _read_lines, ".npy": _read_array}
    ids, vectors, texts = _read_parquet(file) if is_parts else readers[file.suffix](file)
    if not len(ids) or not vectors.shape[1]:
        raise UserError(f"{file} has no vectors; it needs one per document.")
    repeated = [id_ for id_, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: id {sample_of(repeated)} appears more than once; give each id one vector.")
    check_finite(vectors, ids, str(file))
    has_texts = with_texts and any(text is not None for text in texts)
    without = [id_ for id_, text in zip(ids, texts, strict=True) if not isinstance(text, str)] if has_texts else []
    if without:
        raise UserError(f"{file}: {len(without)} rows have no 'text' ({sample_of(without)}); give all a text or none.")
    return VectorTable(ids, _unit(vectors, ids, file) if unit else vectors, texts if has_texts else None)


def _unit(vectors: np.ndarray, ids: list[str], file: Path) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1)
    zero = np.flatnonzero(lengths == 0)
    if len(zero):
        problem = f"{len(zero)} vectors are zero ({sample_of(ids[row] for row in zero)}) and have no cosine"
        raise UserError(f"{file}: {problem}; embed these again, or leave them out if the text is empty.")
    if np.allclose(lengths, 1, rtol=0, atol=1e-5):
        return vectors  # keeps a memory map as it is, without a copy
    return (vectors / lengths[:, None]).astype(np.float32, copy=False)


def _read_parquet(file: Path) -> _Rows:
    parts = sorted(file.glob("*.parquet")) if file.is_dir() else [file]
    try:
        tables = []
        for part in parts:
            tables.append(foreign_table(part))
        table = pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{part} is not a whole Parquet file ({reason}); write it again.") from error
    names = table.column_names
    is_export = names[:1] == ["document_id"]  # whose documents may have a field called id
    id_column = names[0] if is_export else _column(names, _ID_COLUMNS, file)
    column = _column(table.column_names, _VECTOR_COLUMNS, file)
    ids = [_id(id_, f"{file}, row {row}") for row, id_ in enumerate(values_of(table[id_column]), start=1)]
    lists = table[column].combine_chunks()
    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    if not any(is_kind(lists.type) for is_kind in kinds):
        given = lists.type.value_type if pa.types.is_dictionary(lists.type) else lists.type
        raise UserError(f"{file}: column {column!r} is {given}; each row needs a list of numbers.")
    _check_widths(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), ids, file)
    flat = lists.flatten()
    if flat.null_count or not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise UserError(f"{file}: column {column!r} has {'nulls' if flat.null_count else flat.type}; give numbers.")
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    texts = values_of(table["text"]) if "text" in table.column_names else []
    return ids, values.reshape(len(ids), -1) if ids else np.zeros((0, 0), np.float32), texts


def _read_lines(file: Path) -> _Rows:
    ids: list[str] = []
    rows: list[np.ndarray] = []
    texts: list[Any] = []
    for number, record in read_objects(file, '{"_id": ..., "vector": [...]}'):
        place = f"{file}, line {number}"
        ids.append(_id(record[_column(list(record), _ID_COLUMNS, place)], place))
        column = _column(list(record), _VECTOR_COLUMNS, place)
        try:
            row = np.asarray(record[column], dtype=np.float32)
            is_list = row.ndim == 1 and not any(isinstance(value, str) for value in record[column])
        except (TypeError, ValueError):
            is_list = False
        if not is_list:
            raise UserError(f"{place}: {column!r} of {ids[-1]!r} is not a list of numbers.")
        rows.append(row)
        texts.append(record.get("text"))
    _check_widths(np.array([len(row) for row in rows], dtype=np.int64), ids, file)
    return ids, np.stack(rows) if rows else np.zeros((0, 0), np.float32), texts


def _read_array(file: Path) -> _Rows:
    id_file = file.with_suffix(".ids.txt")
    vectors = read_array(file, memory_map=True)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(f"{file} has {vectors.dtype} of shape {vectors.shape}; give numbers of shape (n, d).")
    if not id_file.is_file():
        raise UserError(f"{file} has no ids: put them in {id_file.name} in the same folder, one id per line.")
    lines = dict(read_lines(id_file))  # without blank lines, which are ids that are missing
    numbers = range(1, max(lines, default=0) + 1)
    ids = [_id(lines.get(number, ""), f"{id_file}, line {number}") for number in numbers]
    if len(ids) != len(vectors):
        raise UserError(f"{id_file} has {len(ids)} ids for {len(vectors)} vectors; give one per line, in their order.")
    return ids, vectors.astype(np.float32, copy=False), []


def _column(names: Sequence[str], accepted: Sequence[str], place: str | Path) -> str:
    column = next((name for name in accepted if name in names), None)
    if column is None:
        problem = f"no {accepted[0]!r} (fields: {', '.join(map(repr, names)) or 'none'})"
        raise UserError(f"{place}: {problem}; each vector needs an id ('_id') and its numbers ('vector').")
    return column


def _id(value: Any, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: the id is {value!r}; give an integer or a string that is not empty.")
    if problem := not_utf8(value):
        raise UserError(f"{place}: the id {problem}; give it as UTF-8.")
    return value


def _check_widths(widths: np.ndarray, ids: Sequence[str], file: Path) -> None:
    usual = Counter(widths.tolist()).most_common(1)[0][0] if len(widths) else 0
    others = np.flatnonzero(widths != usual)
    if len(others):
        named = f"{sample_of(ids[int(row)] for row in others)}, the first has {widths[others[0]]}"
        problem = f"{len(others)} vectors do not have {usual} dimensions ({named})"
        raise UserError(f"{file}: {problem}; all must be from one model and of one width.")


class About(Settings):
    """A description of the model that made the vectors of a folder."""

    model: Annotated[str, Field(pattern=r"\S")] | None = None
    """Its name, e.g. ``openai/text-embedding-3-small``; files from one model share a space, and a file without a model
    name is a space of its own."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How its vectors are compared."""
    prompts: dict[Role, str] = Field(default_factory=dict)
    """Prefix of the texts of each role, or the API's word for the role (``input_type``). If both roles have the same, a
    document's vector also serves the same text as a query."""

    @classmethod
    def read(cls, path: Path) -> About:
        """Read and check ``about.json``."""
        form = '{"model": its name, "similarity": "cosine" or "dot", "prompts": {"query": "...", "document": "..."}}'
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            mistake = error.errors()[0]
            key = ".".join(map(str, mistake["loc"][:2])) or "content"
            raise UserError(f"{path}: {key} is {mistake['input']!r}; give {form}, all optional.") from error

    @classmethod
    def of_export(cls, folder: Path) -> About:
        """The document encoder of a Parquet export, from its manifest; defaults if there is no manifest."""
        if not (folder / FILE_NAME).is_file():
            return cls()
        manifest = Manifest.read(folder)
        check_files(folder, manifest.about.get("checksums", {}), "export again")
        if manifest.settings.get("kind") != "dense":
            raise UserError(f"{folder} has {manifest.settings.get('kind')} vectors; 'vectors:' reads dense ones.")
        space = manifest.about["space"]
        contracts: dict[Role, str] = {"document": "contract", "query": "query_contract"}
        prompts = {role: space.get(key, {}).get("prompt") or "" for role, key in contracts.items()}
        return cls(model=found_from(space["documents_by"], folder), similarity=space["similarity"], prompts=prompts)


def _lookup(table: VectorTable, texts: Texts, name: str) -> _Lookup:
    """By the table's own texts if it has them, else by a collection's texts for the ids."""
    row_of = {id_: row for row, id_ in enumerate(table.ids)}
    known = (table.ids, table.texts) if table.texts is not None else (texts.ids, texts.texts)
    pairs = [(id_, text) for id_, text in zip(*known, strict=True) if id_ in row_of]
    rows = np.array([row_of[id_] for id_, _ in pairs], dtype=np.int64)
    pair_keys = text_keys([text for _, text in pairs])
    keys = KeyIndex(pair_keys)
    first = keys.find(pair_keys)
    for place in np.flatnonzero(first != np.arange(len(pairs))):
        a, b = table.vectors[rows[first[place]]], table.vectors[rows[place]]
        if a @ b < _SAME * np.linalg.norm(a) * np.linalg.norm(b):
            same = f"{pairs[first[place]][0]!r} and {pairs[place][0]!r} have the same text and different vectors"
            advice = "ids and vectors may be out of step: embed these again, or leave one out"
            raise UserError(f"{name}: {same}; {advice}.")
    return keys, rows, table.vectors


class VectorFile(Encoder):
    """An encoder of precomputed vectors, which it looks up by text.

    An opened file knows its space and accepts query encoders. `bind` adds the texts of a collection, so that it can
    also encode. Its name is ``vectors:PATH``; vectors of queries come with or without their texts.
    """

    kind = "vectors"
    is_static = False
    is_recorded = True
    has_weights = False

    def __init__(self, name: str, documents: VectorTable, queries: VectorTable | None, about: About) -> None:
        super().__init__(None, name)
        self.documents, self.queries, self.about = documents, queries, about
        self._lookups: dict[Role, list[_Lookup]] | None = None
        self._bound_to: tuple[str, str] | None = None

    @classmethod
    def open(cls, path: str | Path) -> VectorFile:
        """Open a file of document vectors, or a folder with ``documents.*`` and optional ``queries.*``, ``about.json``.

        It also opens a folder written by ``export --to parquet``, whose manifest replaces ``about.json``. Errors are
        those of `read_vectors`, a folder without documents, and queries of another width.
        """
        place = path_of(path)
        if not place.is_dir():
            return cls(f"vectors:{path}", read_vectors(place, unit=True), None, About())
        about = About.read(place / ABOUT_FILE) if (place / ABOUT_FILE).exists() else About.of_export(place)
        unit = about.similarity == "cosine"
        document_file, query_file = _single_file(place, "documents"), _single_file(place, "queries")
        if document_file is None:
            raise UserError(f"folder {place} has no documents{{{','.join(ENDINGS)}}}; put the vectors there.")
        documents = read_vectors(document_file, unit=unit)
        queries = None if query_file is None else read_vectors(query_file, unit=unit, with_texts=True)
        width = documents.vectors.shape[1]
        if queries is not None and queries.vectors.shape[1] != width:
            widths = f"vectors of {queries.vectors.shape[1]} dimensions, {document_file.name} of {width}"
            raise UserError(f"{query_file} has {widths}; both must be from one model.")
        return cls(f"vectors:{path}", documents, queries, about)

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return int(self.documents.vectors.shape[1])

    @property
    def similarity(self) -> str:
        """``cosine`` or ``dot``."""
        return self.about.similarity

    def prompt(self, role: Role) -> str:
        """Prefix that the model was given before a text, from ``about.json``."""
        return self.about.prompts.get(role, "")

    def contract(self, role: Role) -> dict[str, Any]:
        """Model name (or the digest of the vectors, if the model is unnamed), prompt, similarity and dimension."""
        return {
            "model": self.about.model or f"vectors {self.documents.digest}",
            "prompt": self.prompt(role),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of the contract and of the vectors themselves."""
        tables = [self.documents] if self.queries is None else [self.documents, self.queries]
        return digest(self.contract(role), [table.digest for table in tables])

    def bind(self, collection: Collection) -> VectorFile:
        """Find the same vectors by a collection's texts of their ids; an empty text needs none and gets zeros."""
        texts = (collection.documents.fingerprint, collection.queries.fingerprint)
        if self._bound_to == texts:
            return self
        documents = _lookup(self.documents, collection.documents, self.name)
        queries = [] if self.queries is None else [_lookup(self.queries, collection.queries, self.name)]
        bound = VectorFile(self.name, self.documents, self.queries, self.about)
        bound._bound_to, bound.loaded_from = texts, self.loaded_from
        bound._lookups = {"document": [documents], "query": [*queries, *([documents] if self.is_symmetric else [])]}
        bound.require(collection.documents, "document")
        return bound

    def missing(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(m,) int64 positions of texts that need a vector and have none."""
        return np.flatnonzero(self._find(texts, role)[1])

    def require(self, texts: Texts, role: Role) -> None:
        """Check, before work starts, that all texts have vectors; the error names the first few without."""
        places = self.missing(texts.texts, role)
        if len(places):
            table, noun = (self.queries or (), "queries") if role == "query" else (self.documents, "documents")
            without = f"{len(places)} of {len(texts)} {noun} ({sample_of(texts.ids[row] for row in places)})"
            advice = f"it has {len(table)}: embed these with the same model and add them"
            raise UserError(f"{self.name} has no vectors for {without}; {advice}.")

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """(n, dimension) float32; unit vectors if they are compared by cosine, zeros for a text without words."""
        vectors, missing = self._find(texts, role)
        if missing.any():
            first = sample_of(texts[row][:40] for row in np.flatnonzero(missing)[:2])
            without = f"no vectors for {int(missing.sum())} of {len(texts)} texts ({first})"
            advice = "embed them there and add them, or use a query encoder distilled into its space"
            raise UserError(f"{self.name} has {without}, and its model is not available here; {advice}.")
        return vectors

    def _find(self, texts: Sequence[str], role: Role) -> tuple[np.ndarray, np.ndarray]:
        """(n, dimension) vectors, zeros if not found, and (n,) whether a needed vector is missing."""
        if self._lookups is None:
            problem = f"{self.name} has vectors by id, and only a collection has the texts of the ids"
            raise UserError(f"{problem}; give the collection, or a query encoder distilled into its space.")
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        keys, missing = text_keys(texts), np.ones(len(texts), dtype=bool)
        for index, rows, stored in self._lookups[role]:
            places = index.find(keys)
            hits = missing & (places >= 0)
            vectors[hits] = stored[rows[places[hits]]]
            missing &= ~hits
        missing[[row for row in blank_rows(texts) if missing[row]]] = False
        return vectors, missing

    def __repr__(self) -> str:
        model = self.about.model or "an unnamed model"
        return f"VectorFile({self.name}, {len(self.documents)} documents by {model}, {self.dimension} dimensions)"


def _single_file(folder: Path, stem: str) -> Path | None:
    files = [folder / f"{stem}{ending}" for ending in ENDINGS if (folder / f"{stem}{ending}").is_file()]
    if not files and any((folder / stem).glob("*.parquet")):
        return folder / stem  # the parts of an export
    if len(files) > 1:
        raise UserError(f"folder {folder} has {' and '.join(file.name for file in files)}; keep one of them.")
    return files[0] if files else None
