"""Hostile lines for everything that is read from text files: collections, runs, judgments, queries, vectors, turns."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hostile_runner import Case

LONG = 10_000_000  # characters of a long field
# JSON as it stands in a file; what a value means, and whether it fits, depends on the key.
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative zero": "-0.0",
    "a fraction": "0.5",
    "infinity by overflow": "1e999",
    "NaN": "NaN",
    "minus infinity": "-Infinity",
    "beyond 64 bits": "123456789012345678901234567890",
    "five thousand digits": "9" * 5000,
    "the smallest number": "5e-324",
    "an empty string": '""',
    "blanks": '" \\t "',
    "half a surrogate pair": '"a\\ud800"',
    "a NUL": '"a\\u0000b"',
    "a tab and a line end": '"a\\tb\\nc"',
    "line separators": '"a\\u2028b\\u0085c\\rd"',
    "a mark of right to left": '"\\u202ea\\ufeff"',
    "HTML": '"<script>alert(1)</script>"',
    "a path": '"../../etc/passwd"',
    "a list": '["a", 1]',
    "an empty list": "[]",
    "lists in lists": "[" * 500 + "]" * 500,
    "an object": '{"a": {"b": null}}',
    "numbers": "[1, NaN, 1e999]",
}
LINES = {
    "not UTF-8": b'{"_id": "\xff\xfe"}',
    "half a character of UTF-8": b'{"_id": "\xe2\x82"}',
    "an overlong character": b'{"_id": "\xc0\xaf"}',
    "a surrogate as UTF-8": b'{"_id": "\xed\xa0\x80"}',
    "a NUL byte": b"\0",
    "only NUL bytes": b"\0" * 4096,
    "half a line": b'{"_id": "a", "te',
    "two objects": b'{"_id": "a"}{"_id": "b"}',
    "an array": b'["a", "b"]',
    "a string": b'"text"',
    "a number": b"7",
    "null": b"null",
    "no keys": b"{}",
    "deep nesting": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list without an end": b"[" * 1_000_000,
    "a key of 10 MB": b'{"' + b"k" * LONG + b'": 1}',
    "a number of 10 MB": b'{"_id": ' + b"9" * LONG + b"}",
    "a comment": b"# a comment",
    "single quotes": b"{'_id': 'a'}",
    "a trailing comma": b'{"_id": "a",}',
    "a byte order mark in the middle": b'\xef\xbb\xbf{"_id": "zz"}',
    "UTF-16": '{"_id": "a"}'.encode("utf-16"),
    "a line of 10 MB": b"x" * LONG,
    "quotes without an end": b'"a\t"b\t1',
    "one cell": b"a",
    "many cells": b"\t".join([b"a"] * 5000),
    "ten million cells": b"\t" * LONG,
}
RUN_LINES = {
    "a score that is not a number": b"q0 Q0 d0 1 high x",
    "NaN": b"q0 Q0 d0 1 nan x",
    "overflow": b"q0 Q0 d0 1 1e999 x",
    "hexadecimal": b"q0 Q0 d0 1 0x1p3 x",
    "digits with underscores": b"q9 Q0 d0 1 1_000 x",
    "other digits": "q9 Q0 d0 1 \u0661\u0662 x".encode(),
    "four columns": b"q0 Q0 d0 1",
    "seven columns": b"q0 Q0 d0 1 2.0 x y",
    "an id with a NUL": b"q\0 Q0 d0 1 2.0 x",
    "other spaces": "q9\u00a0Q0\u2003d0\x1c1\x1d2.0\x1ex".encode(),
    "a pair that comes twice": b"q0 Q0 d0 1 2.0 x\nq0 Q0 d0 2 1.0 x",
    "only one query, of 10 MB": b"q" * LONG + b" Q0 d0 1 2.0 x",
}
GRADES = [
    "nan", "1e999", "1.5", "-0", "0x1", "99999999999", "9" * 5000, "-2147483648", "+1", "1.", "1.0", "True", "", "²",
    "١",
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads a text file: a good line, how to write the file, and a command that reads it."""

    name: str
    line: dict[str, object]
    write: Callable[[Path, bytes], object]
    work: object
    is_json: bool = True


def readers() -> list[Reader]:
    """All readers of JSON lines."""
    evaluate = ("evaluate", "bm25", "--collection", "c", "--json")
    judged = ("evaluate", "bm25", "--collection", "tiny", "--json", "--qrels")
    dry = ("run", "small.yaml", "--out", "made", "--dry-run")
    turn = {
        "conversation_id": "c",
        "turn": 1,
        "utterance": "star",
        "rewrite": "a star",
        "response": "no",
        "query_id": "q0",
    }
    return [
        Reader(
            "corpus.jsonl",
            {"_id": "new", "title": "t", "text": "star", "year": 7},
            collection("corpus.jsonl"),
            evaluate,
        ),
        Reader("queries.jsonl", {"_id": "new", "text": "star"}, collection("queries.jsonl"), evaluate),
        Reader(
            "qrels.jsonl", {"query-id": "t0", "corpus-id": "d0", "score": 1}, collection("qrels/test.jsonl"), evaluate
        ),
        Reader(
            "run.jsonl",
            {"query_id": "t0", "document_id": "d1", "score": 2.5, "run": "x"},
            added("good.jsonl"),
            ("evaluate", "run:good.jsonl", "--collection", "tiny", "--json"),
        ),
        Reader(
            "judgments.jsonl", {"query-id": "t0", "corpus-id": "d0", "score": 1}, alone("j.jsonl"), (*judged, "j.jsonl")
        ),
        Reader(
            "vectors.jsonl",
            {"_id": "new", "vector": [0.1] * 8, "text": "star"},
            in_folder("vectors", "queries.jsonl"),
            ("evaluate", "vectors:vectors", "--collection", "tiny", "--json"),
        ),
        Reader("rewrites.jsonl", {"query_id": "q0", "text": "star"}, alone("r.jsonl"), (*dry, "rewrites=r.jsonl")),
        Reader("turns.jsonl", turn, alone("t.jsonl"), (*dry, "conversations=t.jsonl")),
        Reader(
            "parallel.jsonl", {"source": "star", "translation": "Stern"}, alone("p.jsonl"), (*dry, "parallel=p.jsonl")
        ),
        Reader(
            "generated.jsonl",
            {"_id": "g", "text": "star in orbit", "document_id": "d0"},
            alone("g.jsonl"),
            ("generate", "--collection", "tiny", "--from", "g.jsonl", "--round-trip", "bm25", "--out", "made.jsonl"),
        ),
    ]


def own(folder: Path, name: str) -> Path:
    """A copy of an artifact in the case's folder, in place of the link to it."""
    import shutil

    place = folder / name
    source = place.resolve()
    place.unlink()
    shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    return place


def collection(name: str) -> Callable[[Path, bytes], object]:
    """Adds lines to a file of a copy of the collection; judgments get a file of another ending."""

    def write(folder: Path, lines: bytes) -> None:
        import shutil

        shutil.copytree((folder / "tiny").resolve(), folder / "c")
        path = folder / "c" / name
        if name.startswith("qrels"):
            (folder / "c" / "qrels" / "test.tsv").unlink()
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before + lines)

    return write


def added(name: str) -> Callable[[Path, bytes], object]:
    """Adds lines to a copy of a file."""

    def write(folder: Path, lines: bytes) -> None:
        path = own(folder, name)
        path.write_bytes(path.read_bytes() + lines)

    return write


def in_folder(name: str, file: str) -> Callable[[Path, bytes], object]:
    """Adds lines to a file in a copy of a folder."""

    def write(folder: Path, lines: bytes) -> None:
        path = own(folder, name) / file
        path.write_bytes(path.read_bytes() + lines)

    return write


def alone(name: str) -> Callable[[Path, bytes], object]:
    """A file of these lines alone."""
    return lambda folder, lines: (folder / name).write_bytes(lines)


def value_cases(_: Path | None = None) -> Iterator[Case]:
    """A wrong value at each key of each kind of JSON line."""
    for reader in readers():
        good = json.dumps(reader.line).encode()
        for key in reader.line:
            for what, value in VALUES.items():
                parts = [
                    f"{json.dumps(name)}: {value if name == key else json.dumps(given)}"
                    for name, given in reader.line.items()
                ]
                bad = ("{" + ", ".join(parts) + "}").encode()
                yield Case(f"{reader.name}: {key} is {what}", reader.work, partial(_write, reader, bad + b"\n"))
            twice = good[:-1] + f', {json.dumps(key)}: "again"}}'.encode()
            yield Case(
                f"{reader.name}: {key} comes twice in a line", reader.work, partial(_write, reader, twice + b"\n")
            )
            left = json.dumps({name: given for name, given in reader.line.items() if name != key}).encode()
            yield Case(f"{reader.name}: no {key}", reader.work, partial(_write, reader, left + b"\n"))
            long = json.dumps(reader.line | {key: "x" * LONG}).encode()
            yield Case(f"{reader.name}: {key} of 10 MB", reader.work, partial(_write, reader, long + b"\n"))


def line_cases(_: Path | None = None) -> Iterator[Case]:
    """A wrong line, or a wrong ending or encoding, in each kind of file."""
    for reader in readers():
        good = json.dumps(reader.line).encode()
        for what, line in LINES.items():
            if what in ("quotes without an end", "one cell", "many cells", "ten million cells"):
                continue
            yield Case(f"{reader.name}: {what}", reader.work, partial(_write, reader, good + b"\n" + line + b"\n"))
        for what, lines in {
            "an empty file": b"",
            "only blank lines": b"\n \n\r\n",
            "line ends of Windows": good + b"\r\n",
            "line ends of old computers": good + b"\r" + good + b"\r",
            "a byte order mark": b"\xef\xbb\xbf" + good + b"\n",
            "no last line end": good,
            "the same line twice": good + b"\n" + good + b"\n",
        }.items():
            yield Case(f"{reader.name}: {what}", reader.work, partial(_write, reader, lines))
    yield from id_cases()


def id_cases() -> Iterator[Case]:
    """Wrong lines in the ids of an array of vectors."""
    write, work = in_folder("vectors", "documents.ids.txt"), ("evaluate", "vectors:vectors", "--collection", "tiny")
    for what, line in LINES.items():
        yield Case(f"ids.txt: {what}", work, partial(_call, write, line + b"\n"))


def table_cases(_: Path | None = None) -> Iterator[Case]:
    """Wrong lines in tables of cells, and in runs."""
    evaluate = ("evaluate", "bm25", "--collection", "c", "--json")
    dry = ("run", "small.yaml", "--out", "made", "--dry-run")
    tables = {
        "qrels.tsv": (collection("qrels/test.tsv"), b"query-id\tcorpus-id\tscore\nt0\td0\t1\n", evaluate),
        "qrels.csv": (collection("qrels/test.csv"), b"query-id,corpus-id,score\nt0,d0,1\n", evaluate),
        "corpus.tsv": (_other_corpus("corpus.tsv"), b"_id\ttext\nd0\tstar\nd1\tmoon\n", evaluate),
        "corpus.csv": (_other_corpus("corpus.csv"), b'_id,text\nd0,star\nd1,"moon, sun"\n', evaluate),
        "corpus.json": (_other_corpus("corpus.json"), b'[{"_id": "d0", "text": "star"},\n', evaluate),
        "parallel.tsv": (alone("p.tsv"), b"star\tStern\n", (*dry, "parallel=p.tsv")),
    }  # fmt: skip
    for name, (write, good, work) in tables.items():
        for what, line in LINES.items():
            yield Case(f"{name}: {what}", work, lambda folder, w=write, g=good, li=line: w(folder, g + li + b"\n"))
        for what, content in {
            "an empty file": b"",
            "only a header": good.split(b"\n")[0] + b"\n",
            "line ends of Windows": good.replace(b"\n", b"\r\n"),
            "a byte order mark": b"\xef\xbb\xbf" + good,
            "two headers": good.split(b"\n")[0] + b"\n" + good,
            "quotes": good.replace(b"star", b'"star ""and"" moon"'),
            "a quote that never ends": good + b'"',
        }.items():
            yield Case(f"{name}: {what}", work, lambda folder, w=write, c=content: w(folder, c))
    for grade in GRADES:
        content = f"query-id\tcorpus-id\tscore\nt0\td0\t{grade}\n".encode()
        write = tables["qrels.tsv"][0]
        yield Case(f"qrels.tsv: grade {grade[:20]!r}", evaluate, lambda folder, c=content, w=write: w(folder, c))
    for name in ("good.run",):
        work = ("evaluate", f"run:{name}", "--collection", "tiny", "--json")
        for what, line in {**LINES, **RUN_LINES}.items():
            yield Case(f"{name}: {what}", work, partial(_call, added(name), line + b"\n"))


def compressed_cases(_: Path | None = None) -> Iterator[Case]:
    """Damaged and hostile compressed files."""
    import zlib

    evaluate = ("evaluate", "bm25", "--collection", "c", "--json")
    good = gzip.compress(b'{"_id": "d0", "text": "star"}\n')
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"".join([*(bomb.compress(b" " * (1 << 24)) for _ in range(256)), bomb.flush()])  # 4 GiB of spaces
    contents = {
        "cut short": good[:-9],
        "another checksum": good[:-8] + b"\0" * 8,
        "not gzip": b'{"_id": "d0", "text": "star"}\n',
        "something after the end": good + b"garbage",
        "two members": good + gzip.compress(b'{"_id": "d1", "text": "moon"}\n'),
        "empty": b"",
        "a line of 4 GiB of spaces": zeros,
    }
    for what, content in contents.items():
        yield Case(f"corpus.jsonl.gz: {what}", evaluate, partial(_call, _other_corpus("corpus.jsonl.gz"), content))
        yield Case(
            f"run.run.gz: {what}",
            ("evaluate", "run:r.run.gz", "--collection", "tiny", "--json"),
            partial(_call, alone("r.run.gz"), content),
        )
    yield Case("corpus.json.gz: 4 GiB of spaces", evaluate, partial(_call, _other_corpus("corpus.json.gz"), zeros))
    yield Case("corpus.csv.gz: 4 GiB of spaces", evaluate, partial(_call, _other_corpus("corpus.csv.gz"), zeros))
    yield Case("corpus.jsonl.zst: not zstandard", evaluate, partial(_call, _other_corpus("corpus.jsonl.zst"), good))


def _write(reader: Reader, lines: bytes, folder: Path) -> None:
    reader.write(folder, lines)


def _call(write: Callable[[Path, bytes], object], content: bytes, folder: Path) -> None:
    write(folder, content)


def _other_corpus(name: str) -> Callable[[Path, bytes], object]:
    """A copy of the collection with another corpus."""

    def write(folder: Path, content: bytes) -> None:
        import shutil

        shutil.copytree((folder / "tiny").resolve(), folder / "c")
        (folder / "c" / "corpus.jsonl").unlink()
        (folder / "c" / name).write_bytes(content)

    return write
