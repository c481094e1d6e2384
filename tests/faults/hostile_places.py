"""Hostile places: paths that are missing, folders, pipes, devices, loops, and long, unreadable, or strange names."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hostile_runner import Case

_TINY = ("--collection", "tiny")


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # the name of a socket is short
    socket.socket(socket.AF_UNIX).bind(path.name)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _deep(path: Path) -> None:
    path.mkdir()
    (path / "corpus.jsonl").symlink_to(path / "corpus.jsonl")


PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a folder of itself": lambda path: (path.mkdir(), (path / "inside").symlink_to(path)),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to itself": _loop,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a link to /dev/tty": lambda path: path.symlink_to("/dev/tty"),
    "a link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
    "a link to a folder of the system": lambda path: path.symlink_to("/sys/kernel"),
    "an empty file": lambda path: path.write_bytes(b""),
    "a binary file": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a sparse file of 300 MiB": lambda path: (path.write_bytes(b""), os.truncate(path, 300 << 20)),
}


def commands() -> dict[str, tuple[str, Callable[[str], tuple[str, ...]]]]:
    """What takes a path: (the ending that its file has, arguments with a path)."""
    run = ("run", "small.yaml", "--out", "made", "--dry-run")
    scored = ("score", *_TINY, "--candidates")
    return {
        "a collection": ("", lambda path: ("evaluate", "bm25", "--collection", path, "--json")),
        "a corpus": (
            "/corpus.jsonl",
            lambda path: ("evaluate", "bm25", "--collection", str(Path(path).parent), "--json"),
        ),
        "a run": (".run", lambda path: ("evaluate", f"run:{path}", *_TINY)),
        "a Parquet run": (".parquet", lambda path: ("evaluate", f"run:{path}", *_TINY)),
        "candidates": (".run", lambda path: (*scored, path, "--teacher", "bm25", "--out", "made.run")),
        "a store": (
            "",
            lambda path: (
                *scored,
                "good.run",
                "--teacher",
                "cross-encoder:cross",
                "--store",
                path,
                "--out",
                "made.run",
            ),
        ),
        "a model": ("", lambda path: ("index", *_TINY, "--documents", f"dense:{path}", "--out", "made")),
        "vectors": (".npy", lambda path: ("evaluate", f"vectors:{path}", *_TINY)),
        "vectors of JSON": (".jsonl", lambda path: ("evaluate", f"vectors:{path}", *_TINY)),
        "vectors of Parquet": (".parquet", lambda path: ("evaluate", f"vectors:{path}", *_TINY)),
        "an index": ("", lambda path: ("search", path, "star")),
        "an index to check": ("", lambda path: ("check", path, *_TINY)),
        "an index to export": ("", lambda path: ("export", path, "--to", "parquet", "--out", "made")),
        "a recipe": (".yaml", lambda path: ("run", path, "--out", "made", "--dry-run")),
        "an output folder": ("", lambda path: ("index", *_TINY, "--documents", "dense:model", "--out", path)),
        "an output folder of a recipe": ("", lambda path: ("run", "small.yaml", "--dry-run", "--out", path)),
        "an output run": (".run", lambda path: ("mine", *_TINY, "--source", "bm25", "--out", path)),
        "judgments": (".tsv", lambda path: ("evaluate", "bm25", *_TINY, "--qrels", path)),
        "an evaluated folder": ("", lambda path: ("compare", path)),
        "generated queries": (
            ".jsonl",
            lambda path: ("generate", *_TINY, "--from", path, "--round-trip", "bm25", "--out", "made.jsonl"),
        ),
        "a prompt": (
            ".txt",
            lambda path: (
                "generate",
                *_TINY,
                "--model",
                "llm:http://localhost:9#m",
                "--dry-run",
                "--prompt",
                path,
                "--out",
                "made.jsonl",
            ),
        ),
        "settings of an API": (
            ".yaml",
            lambda path: (*scored, "good.run", "--teacher", f"llm:{path}", "--out", "made.run"),
        ),
        "rewrites": (".jsonl", lambda path: (*run, f"rewrites={path}")),
        "conversations": (".jsonl", lambda path: (*run, f"conversations={path}")),
        "translations": (".tsv", lambda path: (*run, f"parallel={path}")),
        "something to serve": ("", lambda path: ("serve", path, "--port", "0")),
    }


def place_cases(_: Path | None = None) -> Iterator[Case]:
    """Each kind of place for each thing that is read or written."""
    for what, (ending, arguments) in commands().items():
        for kind, make in PLACES.items():
            path = f"place{ending}"
            yield Case(f"{what}: {kind}", arguments(path), partial(_make, make, path))
        for name, path in {
            "a long name": "x" * 300 + ending,
            "a very long path": "x/" * 3000 + "y" + ending,
            "a name that is not UTF-8": f"\udcff{ending}",
            "a NUL": f"a\0b{ending}",
            "a line end": f"a\nb{ending}",
            "nothing": "",
            "a point": ".",
            "two points": "..",
            "the root": "/",
            "somebody's home": f"~nobody-at-all/x{ending}",
            "a file as a folder": f"good.run/x{ending}",
            "an option": f"--x{ending}",
            "a device": "/dev/full",
        }.items():
            yield Case(f"{what}: {name}", arguments(path))
    for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels", "qrels.tsv", "README.md", "test.qrels"):
        for kind, make in PLACES.items():
            work = ("evaluate", "bm25", "--collection", "c", "--json")
            yield Case(f"{file} of a collection: {kind}", work, partial(_in_collection, make, file))
    for folder, file, work in (
        ("index-flat", "manifest.json", ("search", "index-flat", "star")),
        ("index-flat", "index.faiss", ("search", "index-flat", "star")),
        ("index-flat", "ids.parquet", ("search", "index-flat", "star")),
        ("model", "modules.json", ("index", *_TINY, "--documents", "dense:model", "--out", "made")),
        ("model", "config.json", ("index", *_TINY, "--documents", "dense:model", "--out", "made")),
        ("model", "tokenizer.json", ("index", *_TINY, "--documents", "dense:model", "--out", "made")),
        ("model", "model.safetensors", ("index", *_TINY, "--documents", "dense:model", "--out", "made")),
        ("vectors", "documents.npy", ("evaluate", "vectors:vectors", *_TINY)),
        ("vectors", "documents.ids.txt", ("evaluate", "vectors:vectors", *_TINY)),
        ("vectors", "about.json", ("evaluate", "vectors:vectors", *_TINY)),
        ("job", "results.json", ("compare", "job")),
        ("job", "per-query.parquet", ("compare", "job")),
        ("job", "recipe.yaml", ("serve", "job", "--port", "0")),
    ):
        for kind, make in PLACES.items():
            if folder != "job" or kind != "missing":
                yield Case(f"{folder}/{file}: {kind}", work, partial(_in_artifact, make, folder, file))


def _make(make: Callable[[Path], object], path: str, folder: Path) -> None:
    place = folder / path
    place.parent.mkdir(exist_ok=True)
    make(place)


def _in_collection(make: Callable[[Path], object], file: str, folder: Path) -> None:
    import shutil

    shutil.copytree((folder / "tiny").resolve(), folder / "c")
    _replace(make, folder / "c" / file)


def _in_artifact(make: Callable[[Path], object], name: str, file: str, folder: Path) -> None:
    from hostile_texts import own

    _replace(make, own(folder, name) / file)


def _replace(make: Callable[[Path], object], path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)
