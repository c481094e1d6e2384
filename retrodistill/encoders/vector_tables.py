"""Precomputed vectors with their ids, read from Parquet, JSONL or .npy and checked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.records import read_objects
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
