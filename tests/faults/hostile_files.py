"""Damaged and hostile files of indexes, models, runs, stores, vectors, and jobs: mutations of bytes and of JSON."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_artifacts import renew_checksums
from hostile_runner import Case
from hostile_texts import own

_NUMBERS = (
    0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, 10**12,
)  # fmt: skip
_SEARCH = ("search", "--json")
_EVALUATE = ("evaluate", "--collection", "tiny", "--json")
_INDEX = ("index", "--collection", "tiny", "--out", "made", "--documents")
_SCORE = ("score", "--collection", "tiny", "--candidates", "good.run", "--out", "made.run", "--teacher")
Work = Sequence[str]
# Good tables of each kind, by column, and commands that read them.
_TABLES: dict[str, dict[str, list[Any]]] = {
    "corpus": {"_id": ["d0", "d1", "d2"], "title": ["a", "b", ""], "text": ["sea", "sun", "x"], "year": [1, 2, 3]},
    "queries": {"_id": ["t0", "t1", "t2"], "text": ["star", "moon", "bread"]},
    "qrels": {"query-id": ["t0", "t1", "t2"], "corpus-id": ["d0", "d1", "d2"], "score": [1, 1, 2]},
    "run": {"query_id": ["t0", "t1", "t2"], "document_id": ["d0", "d1", "d2"], "score": [1.0, 2.0, 3.0]},
    "vectors": {"_id": ["d0", "d1", "d2"], "vector": [[0.1] * 8, [0.2] * 8, [0.3] * 8], "text": ["a", "b", "c"]},
    "parallel": {"source": ["star", "moon", "sea"], "translation": ["Stern", "Mond", "Meer"]},
}  # fmt: skip
_READERS: dict[str, Work] = {
    "corpus": ("evaluate", "bm25", "--collection", "c", "--json"),
    "queries": ("evaluate", "bm25", "--collection", "c", "--json"),
    "qrels": ("evaluate", "bm25", "--collection", "c", "--json"),
    "run": (*_EVALUATE, "run:new.parquet"),
    "vectors": (*_EVALUATE, "vectors:new.parquet"),
    "parallel": ("run", "small.yaml", "--out", "made", "--dry-run", "parallel=new.parquet"),
}


def targets() -> list[tuple[str, str, Work]]:
    """(folder, file in it, command that reads it): every file that is not text."""
    found: list[tuple[str, str, Work]] = []
    for index in ("index-flat", "index-ivf", "index-product", "index-hnsw", "index-scalar", "index-passages"):
        found.append((index, "index.faiss", (*_SEARCH, index, "star in orbit", "bread")))
    found.append(("index-flat", "index.faiss", ("export", "index-flat", "--to", "parquet", "--out", "made")))
    for file in ("ids.parquet", "documents.arrow"):
        found.append(("index-flat", file, (*_SEARCH, "index-flat", "star", "--filter", "year>=2000")))
    found.append(("index-passages", "ids.parquet", (*_SEARCH, "index-passages", "star", "--aggregate", "mean@2")))
    for index in ("index-sparse", "index-tokens", "index-muvera"):
        found += [(index, file, (*_SEARCH, index, "star in orbit")) for file in ("*",)]
    found.append(("vectors", "documents.npy", (*_EVALUATE, "vectors:vectors")))
    found.append(("export", "*.parquet", (*_EVALUATE, "vectors:export")))
    found.append(("store", "*.parquet", (*_SCORE, "cross-encoder:cross", "--store", "store")))
    found.append((".", "good.parquet", (*_EVALUATE, "run:good.parquet")))
    found += [
        ("model", "*.safetensors", (*_INDEX, "dense:model")),
        ("static", "*.safetensors", (*_INDEX, "static:static")),
    ]
    found += [("sparse", "*.safetensors", (*_INDEX, "sparse:sparse"))]
    found += [("cross", "*.safetensors", (*_SCORE, "cross-encoder:cross"))]
    found.append(("job", "per-query.parquet", ("compare", "job")))
    found.append(("job/students/student", "*.safetensors", (*_EVALUATE, "static:job/students/student")))
    return found


def json_targets() -> list[tuple[str, str, Work]]:
    """(folder, JSON file in it, command that reads it)."""
    found: list[tuple[str, str, Work]] = []
    for index in ("index-flat", "index-ivf", "index-sparse", "index-tokens", "index-muvera", "index-passages"):
        found.append((index, "manifest.json", (*_SEARCH, index, "star in orbit")))
    found.append(("index-tokens", "tokens.codec.json", (*_SEARCH, "index-tokens", "star in orbit")))
    for model, work in (
        ("model", (*_INDEX, "dense:model")),
        ("static", (*_INDEX, "static:static")),
        ("sparse", (*_INDEX, "sparse:sparse")),
        ("tokens", (*_INDEX, "multi-vector:tokens")),
        ("cross", (*_SCORE, "cross-encoder:cross")),
        ("job/students/student", (*_EVALUATE, "static:job/students/student")),
    ):
        found.append((model, "*.json", work))
    found.append(("vectors", "about.json", (*_EVALUATE, "vectors:vectors")))
    found.append(("export", "manifest.json", (*_EVALUATE, "vectors:export")))
    found.append(("store", "manifest.json", (*_SCORE, "cross-encoder:cross", "--store", "store")))
    found.append(("job", "results.json", ("compare", "job")))
    found.append(("job", "results.json", (*_EVALUATE, "--out", "job", "bm25")))
    found.append(("job", "manifest.json", ("run", "small.yaml", "--out", "job")))
    found.append(("job", "results.json", ("run", "small.yaml", "--out", "job")))
    return found


def byte_cases(base: Path) -> Iterator[Case]:
    """Mutations of each file that is not text."""
    for folder, pattern, work in targets():
        for file in _files(base, folder, pattern):
            if file.suffix == ".json":
                continue
            name = f"{folder}/{file.name} by {work[0]}"
            for what, mutate in mutations(file.read_bytes(), name):
                place = str(Path(folder) / file.relative_to(base / folder))
                yield Case(f"{name}: {what}", work, partial(_mutated, folder, place, mutate))


def json_cases(base: Path) -> Iterator[Case]:
    """A wrong value at each place of each JSON file, and no value."""
    for folder, pattern, work in json_targets():
        for file in _files(base, folder, pattern):
            content = json.loads(file.read_text())
            if isinstance(content, dict):
                content.pop("checksum", None)  # which an attacker leaves out
            place = str(Path(folder) / file.relative_to(base / folder))
            draw = random.Random(place)
            for path in _paths(content):
                shown = ".".join(map(str, path)) or "all"
                for what, value in draw.sample(_VALUES, 3):
                    changed = _changed(content, path, value)
                    text = json.dumps(changed).encode("utf-8", "surrogatepass")
                    make = partial(_mutated, folder, place, lambda _, text=text: text)
                    yield Case(f"{place} by {work[0]} of {work[-1]}: {shown} is {what}", work, make)
                if path:
                    text = json.dumps(_without(content, path)).encode()
                    make = partial(_mutated, folder, place, lambda _, text=text: text)
                    yield Case(f"{place} by {work[0]} of {work[-1]}: no {shown}", work, make)


def column_cases(base: Path) -> Iterator[Case]:
    """Parquet files whose columns have other types, and are missing, and .npy files of other arrays."""
    columns = {
        "nulls": pa.nulls(3), "integers": pa.array([1, 2, 3]), "floats": pa.array([0.5, float("nan"), float("inf")]),
        "booleans": pa.array([True, False, None]), "dates": pa.array([0, 1, 2], pa.date32()),
        "lists": pa.array([["a"], [], None]), "structs": pa.array([{"a": 1}, {"a": 2}, None]),
        "binary": pa.array([b"\xff", b"", None]), "decimals": pa.array([1, 2, 3]).cast(pa.decimal128(38, 2)),
        "large strings": pa.array(["a", "b", "c"], pa.large_string()),
        "views": pa.array(["a", "b", "c"], pa.string_view()),
        "a dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
        "numbers that are texts": pa.array(["1", "x", ""]), "NULs": pa.array(["\0", "a\0", ""]),
        "vectors": pa.array([[0.1] * 8, [0.2] * 8, [0.3] * 8]),
        "vectors of other widths": pa.array([[0.1] * 8, [0.2] * 3, []]),
        "vectors with nulls": pa.array([[0.1, None], None, [1.0, 2.0]]),
        "fixed vectors": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(24, dtype=np.float32)), 8),
        "lists of lists": pa.array([[[1.0]], [[2.0]], []]),
        "huge integers": pa.array([2**63, 2**64 - 1, 0], pa.uint64()),
        "maps": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "times": pa.array([0, 2**62, -(2**62)], pa.timestamp("ns")),
        "durations": pa.array([1, 2, 3], pa.duration("s")),
    }  # fmt: skip
    for kind, table in _TABLES.items():
        for key in table:
            for what, column in columns.items():
                changed = {**{name: pa.array(values) for name, values in table.items()}, key: column}
                yield Case(f"{kind}.parquet: {key} of {what}", _READERS[kind], partial(_table, kind, changed))
            left = {name: pa.array(values) for name, values in table.items() if name != key}
            yield Case(f"{kind}.parquet: no {key}", _READERS[kind], partial(_table, kind, left))
        empty = {name: pa.array(values)[:0] for name, values in table.items()}
        yield Case(f"{kind}.parquet: no rows", _READERS[kind], partial(_table, kind, empty))
    arrays: dict[str, Any] = {
        "objects": np.array([{}, 1], dtype=object), "texts": np.array(["a", "b"]),
        "one dimension": np.zeros(60, np.float32), "no columns": np.zeros((60, 0), np.float32),
        "complex numbers": np.ones((60, 8), complex), "booleans": np.ones((60, 8), bool),
        "big-endian": np.ones((60, 8), ">f4"), "half": np.ones((60, 8), np.float16),
        "Fortran": np.asfortranarray(np.random.default_rng(0).normal(size=(60, 8))),
        "records": np.zeros(60, dtype=[("a", "f4")]), "dates": np.zeros((60, 8), "datetime64[s]"),
        "NaN": np.full((60, 8), np.nan, np.float32), "infinity": np.full((60, 8), np.inf),
        "beyond float32": np.full((60, 8), 1e300), "zeros": np.zeros((60, 8)), "no dimensions": np.float32(1),
        "three dimensions": np.zeros((60, 2, 4)), "one row": np.ones((1, 8)),
        "tiny numbers": np.full((60, 8), 1e-45, np.float32), "huge numbers": np.full((60, 8), 3e38, np.float32),
        "integers": np.ones((60, 8), np.int64),
    }  # fmt: skip
    for what, array in arrays.items():
        yield Case(f"documents.npy: {what}", (*_EVALUATE, "vectors:vectors"), partial(_array, array))
    for what, header in {
        "a shape of terabytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 384)}",
        "a shape beyond 64 bits": "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 8)}",
        "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8)}",
        "a shape that is a text": "{'descr': '<f4', 'fortran_order': False, 'shape': 'x'}",
        "code in the header": "__import__('os').system('touch hacked')",
        "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (60,)}",
        "deep brackets": "(" * 9000 + ")" * 9000,
        "no keys": "{}",
        "a dtype of 2 GB": "{'descr': '|V2147483647', 'fortran_order': False, 'shape': (60,)}",
        "NULs": "\0" * 64,
    }.items():
        yield Case(f"documents.npy: {what} in the header", (*_EVALUATE, "vectors:vectors"), partial(_npy, header))


_VALUES: list[tuple[str, Any]] = [
    ("null", None), ("true", True), ("zero", 0), ("minus one", -1), ("huge", 10**30), ("2**40", 2**40),
    ("a fraction", 0.5), ("an empty text", ""), ("a text", "nonsense"), ("a path", "../../../etc/passwd"),
    ("an absolute path", "/dev/zero"), ("a NUL", "a\0b"), ("half a character", "\ud800"),
    ("a long text", "x" * 100_000), ("an empty list", []), ("a list", [1, "a", None]), ("an empty object", {}),
    ("an object", {"a": {"b": 1}}), ("NaN", float("nan")), ("infinity", float("inf")),
]  # fmt: skip


def mutations(content: bytes, seed: str, number: int = 14) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """(what is wrong, function of the bytes): cuts, flipped bits, and numbers, mostly in the header, by a seed."""
    draw, size = random.Random(seed), len(content)
    yield "empty", lambda _: b""
    yield "random", lambda before: random.Random(0).randbytes(len(before))
    yield "zeros", lambda before: bytes(len(before))
    yield "text", lambda _: b"this is a text\n" * 9
    yield "twice", lambda before: before + before
    yield "more at the end", lambda before: before + b"\0" * 99
    for at in sorted({1, 4, 12, size // 2, size - 1}):
        if at < size:
            yield f"cut to {at} bytes", lambda before, at=at: before[:at]
    for place in range(number):
        at = draw.randrange(min(size, (16, 64, 256, size)[place % 4]))
        if place % 2:
            bit = draw.randrange(8)
            yield f"bit {8 * at + bit} flipped ({place})", partial(_flipped, at, bit)
        else:
            wrong = draw.choice(_NUMBERS)
            yield f"{wrong} at byte {at} ({place})", partial(_overwritten, at, struct.pack("<Q", wrong))
    at = max(0, size - 12)
    for wrong in (0, 2**31 - 1, 2**32 - 1):  # where Arrow and Parquet have the length of their footer
        yield f"a footer of {wrong} bytes", partial(_overwritten, size - 8, struct.pack("<I", wrong))
    yield "another magic number", partial(_overwritten, at, b"\xff" * 12)


def _flipped(at: int, bit: int, before: bytes) -> bytes:
    changed = bytearray(before)
    changed[at] ^= 1 << bit
    return bytes(changed)


def _overwritten(at: int, value: bytes, before: bytes) -> bytes:
    return (before[:at] + value + before[at + len(value) :])[: len(before)]


def _files(base: Path, folder: str, pattern: str) -> list[Path]:
    files = sorted(file for file in (base / folder).rglob(pattern) if file.is_file() and file.stat().st_size)
    assert files, (folder, pattern)
    return files


def _mutated(folder: str, place: str, mutate: Callable[[bytes], bytes], case: Path) -> None:
    """Copy an artifact and change a file of it; checksums fit the changed file, as an attacker's would."""
    copied = own(case, place if folder == "." else folder.split("/", maxsplit=1)[0])
    file = case / place
    file.write_bytes(mutate(file.read_bytes()))
    if folder.startswith("index") and file.name != "manifest.json":
        renew_checksums(copied)


def _paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = (
        content.items() if isinstance(content, dict) else enumerate(content[:3]) if isinstance(content, list) else ()
    )
    if len(path) < 5:
        for number, (key, value) in enumerate(inside):
            if number < 40:
                yield from _paths(value, (*path, key))


def _changed(content: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    copied = content.copy()
    copied[first] = _changed(content[first], rest, value)
    return copied


def bomb_cases(_: Path) -> Iterator[Case]:
    """Small Parquet files with 268 million equal rows, with one row of as many numbers, and with long equal texts."""
    count, long = 100, pa.array(["x" * (32 << 20)])
    for kind, values in _TABLES.items():
        first = {name: column[0] for name, column in values.items()}
        rows = {name: pa.array([value] * (1 << 20)) for name, value in first.items() if name != "vector"}
        if kind != "vectors":
            make = partial(_repeated_table, kind, rows, 256)
            yield Case(f"{kind}.parquet: 268 million rows", _READERS[kind], make)
        for name in rows:
            if not isinstance(first[name], str):
                continue
            texts = {key: pa.array([value] * count) for key, value in first.items()}
            texts[next(iter(texts))] = pa.array([f"{number}" for number in range(count)])
            texts[name] = pa.DictionaryArray.from_arrays(pa.array([0] * count), long)
            make = partial(_repeated_table, kind, texts, 1)
            yield Case(f"{kind}.parquet: {count} times a {name} of 32 MiB", _READERS[kind], make)
    zeros = pa.ListArray.from_arrays([0, 1 << 24], pa.array(np.zeros(1 << 24, dtype=np.float32)))
    rows = {**{name: pa.array(column[:1]) for name, column in _TABLES["vectors"].items()}, "vector": zeros}
    make = partial(_repeated_table, "vectors", rows, 64)
    yield Case("vectors.parquet: a billion zeros in 64 rows", _READERS["vectors"], make)


def _without(content: Any, path: Sequence[Any]) -> Any:
    first, *rest = path
    copied = content.copy()
    if rest:
        copied[first] = _without(content[first], rest)
    else:
        del copied[first]
    return copied


def _table(kind: str, columns: dict[str, pa.Array], folder: Path) -> None:
    pq.write_table(pa.table(columns), _table_file(kind, folder))


def _repeated_table(kind: str, columns: dict[str, pa.Array], times: int, folder: Path) -> None:
    """A small file of many groups of the same rows."""
    table, file = pa.table(columns), _table_file(kind, folder)
    with pq.ParquetWriter(file, table.schema, compression="zstd", dictionary_pagesize_limit=1 << 30) as writer:
        for _ in range(times):
            writer.write_table(table)


def _table_file(kind: str, folder: Path) -> Path:
    """Where a command of `_READERS` finds a table."""
    import shutil

    if kind not in ("corpus", "queries", "qrels"):
        return folder / "new.parquet"
    shutil.copytree((folder / "tiny").resolve(), folder / "c")
    (folder / "c" / ("qrels/test.tsv" if kind == "qrels" else f"{kind}.jsonl")).unlink()
    return folder / "c" / ("qrels/test.parquet" if kind == "qrels" else f"{kind}.parquet")


def _array(array: Any, folder: Path) -> None:
    np.save(own(folder, "vectors") / "documents.npy", array, allow_pickle=True)


def _npy(header: str, folder: Path) -> None:
    text = header.encode().ljust(118) + b"\n"
    place = own(folder, "vectors") / "documents.npy"
    place.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + os.urandom(64))
