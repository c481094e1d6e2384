"""The demonstration collection, made at run time from the documentation strings of Python's standard library.

The first sentence of a documentation string is the query and the rest the document: finding a function's details from
its summary is a real search among a few thousand real texts that resemble one another, and needs no download.

Documents have no title. The qualified name would be the natural one, but summaries repeat its words ("Return the
absolute path" in `os.path.abspath`), so that any lexical search would score near perfect and nothing could be learned;
it is the document's id, which no ranker sees. For the same reason a document that holds its query word for word gives
no query. Strings that are too short to be split, or whose summary other objects share, stay as documents, whole: they
are what makes the search hard.

Sources are parsed, never imported: nothing runs, and the result depends only on the files of the Python in use.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retrodistill.core.errors import UserError
from retrodistill.core.files import file_digest
from retrodistill.data.collection import Collection, normalized
from retrodistill.data.records import Document, Judgment, Query, Source
from retrodistill.data.sentences import sentences
from retrodistill.data.stored import cached

# Raise it when the rules below change, so that older copies in a cache are made again.
_RULES = 1
# Tests, toys, graphical shells, and what later Pythons no longer have.
_LEFT_OUT = {
    "__main__", "antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter",
    "turtledemo",
}  # fmt: skip
_DOCUMENT_WORDS = 12
_QUERY_WORDS = range(4, 41)
_SIGNATURE = re.compile(r"^[\w.]+\s*\(")
# A doctest with what it prints, up to the next empty line: not prose.
_DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n(?![ \t]*$).*)*", re.MULTILINE)


class Entry(NamedTuple):
    """A documentation string: its owner and its parts.

    `query` is '' where it has no fit first sentence; the document is then the whole string.
    """

    id: str
    query: str
    document: str


def load_demo() -> Collection:
    """The demonstration collection, splits train, dev and test; made in seconds, then kept in the cache.

    Raises:
        UserError: This Python has no standard library source files.
    """
    modules = _modules()
    if not modules:
        raise UserError(
            f"the demo is made from the source of Python's standard library, and {_home()} holds none; use a "
            "Python with its .py files, or another collection."
        )
    digests = {name: file_digest(path) for name, path in modules.items()}
    return cached("demo", ("demo", _RULES, digests), lambda: _source(entries(modules)))


def entries(modules: dict[str, Path]) -> list[Entry]:
    """Take the documentation strings of modules apart.

    Args:
        modules: Source file by module name.

    Returns:
        One entry per distinct text, in order of module name and line; every query appears once.
    """
    found: dict[str, Entry] = {}
    for name in sorted(modules):
        for owner, text in _strings(name, modules[name]):
            entry = _entry(owner, text)
            if entry is not None:
                found.setdefault(normalized(entry.document), entry)
    # An id may come twice (a property and its setter, two branches of an `if`): the first is kept.
    unique = list({entry.id: entry for entry in reversed(found.values())}.values())[::-1]
    asked = Counter(normalized(entry.query) for entry in unique)
    return [
        entry if asked[normalized(entry.query)] == 1 or not entry.query
        else entry._replace(query="", document=f"{entry.query} {entry.document}")
        for entry in unique
    ]  # fmt: skip


def split_of(document_id: str) -> str:
    """80% train, 5% dev, 15% test, by a hash of the id: a document stays where it is when others come or go."""
    share = int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=4).digest()) % 100
    return "train" if share < 80 else "dev" if share < 85 else "test"


def _source(found: list[Entry]) -> Source:
    asked = [(place, entry) for place, entry in enumerate(found, start=1) if entry.query]

    def judged(split: str) -> Iterator[Judgment]:
        return (Judgment(place, _query_id(e.id), e.id, 1) for place, e in asked if split_of(e.id) == split)

    return Source(
        documents=lambda: (Document(place, e.id, "", e.document) for place, e in enumerate(found, start=1)),
        queries=lambda: (Query(place, _query_id(e.id), e.query) for place, e in asked),
        qrels={split: lambda split=split: judged(split) for split in ("train", "dev", "test")},  # type: ignore[misc]
    )


def _query_id(document_id: str) -> str:
    # Not the document's own id: evaluation after beir drops results whose id is the query's.
    return f"q:{document_id}"


def _home() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> dict[str, Path]:
    """Source files of the standard library by module name, packages with all that is below them."""
    home, found = _home(), {}
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        alone, package = home / f"{name}.py", home / name
        files = [alone] if alone.is_file() else sorted(package.rglob("*.py")) if package.is_dir() else []
        for file in files:
            parts = file.relative_to(home).with_suffix("").parts
            dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not {"test", "tests", "__main__"} & set(parts) and not name.startswith("_sysconfigdata"):
                found[dotted] = file
    return found


def _strings(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Qualified name and documentation string of a module and all classes and functions in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a broken file among the sources: not a text to learn from
        return
    open_nodes: list[tuple[str, ast.AST]] = [(module, tree)]
    while open_nodes:
        name, node = open_nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, inspect.cleandoc(text)
        for child in reversed(list(ast.iter_child_nodes(node))):
            own = getattr(child, "name", None) if isinstance(child, ast.stmt) else None
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                open_nodes.append((f"{name}.{own}" if own else name, child))


def _entry(owner: str, text: str) -> Entry | None:
    """Take one string apart; None if it has too few words to be a document."""
    prose = _DOCTEST.sub("", text)
    whole = " ".join(prose.split())
    pieces = sentences(prose, minimum_words=1)
    if not pieces:
        return None
    query, document = pieces[0], " ".join(pieces[1:])
    fit = (
        len(query.split()) in _QUERY_WORDS
        and not _SIGNATURE.match(query)
        and len(document.split()) >= _DOCUMENT_WORDS
        and normalized(query) not in normalized(document)
    )
    if fit:
        return Entry(owner, query, document)
    return Entry(owner, "", whole) if len(whole.split()) >= _DOCUMENT_WORDS else None
