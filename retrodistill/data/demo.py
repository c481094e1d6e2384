"""The demo collection, made from the docstrings of Python's standard library, without a download.

The first sentence of a docstring becomes the query and the rest the document: a realistic search among a few thousand
similar texts. A document ends with the sentence that reaches 64 words, so that embedding all of them is quick.

Documents have no title. The qualified name would be the obvious title, but summaries repeat its words ("Return the
absolute path" in `os.path.abspath`): lexical search would be near perfect and nothing could be learned. The name is
the document's id instead, which no ranker sees. For the same reason, a document that contains its query word for word
gives no query. Docstrings that are too short to split, or whose summary other objects share, remain whole documents
and make the search harder.

Sources are parsed, never imported: no code runs, and the result depends only on the source files of the Python in use.
"""

from __future__ import annotations

import ast
import bisect
import hashlib
import itertools
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from retrodistill.core.digests import file_digest
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection, normalized
from retrodistill.data.records import Document, Judgment, Query, Source
from retrodistill.data.sentences import sentences
from retrodistill.data.stored import cached

# Raise it when the rules below change, so that cached copies are made again.
_RULES = 2
# Tests, toys, graphical shells, and modules that later Python versions removed.
_LEFT_OUT = {
    "__main__", "antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter",
    "turtledemo",
}  # fmt: skip
_DOCUMENT_WORDS = 12
_LONGEST = 64
_QUERY_WORDS = range(4, 41)
_SIGNATURE = re.compile(r"^[\w.]+\s*\(")
# A doctest with its output, up to the next empty line.
_DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n(?![ \t]*$).*)*", re.MULTILINE)


class Entry(NamedTuple):
    """A docstring, split in two. `query` is '' if the first sentence is unsuitable; the document is then whole."""

    id: str
    query: str
    document: str


def load_demo() -> Collection:
    """Load the demo collection with splits train, dev and test; made in seconds, then cached."""
    files = modules()
    if not files:
        raise UserError(
            f"the demo is made from the source of Python's standard library, and {_home()} holds none; use a "
            "Python with its .py files, or another collection."
        )
    digests = {name: file_digest(path) for name, path in files.items()}
    return cached("demo", ("demo", _RULES, digests), lambda: _source(entries(files)))


def entries(modules: dict[str, Path]) -> list[Entry]:
    """Split the docstrings of modules (source files by name) into queries and documents.

    There is one entry per distinct text, in order of module name and line. Every query appears once.
    """
    by_text: dict[str, Entry] = {}
    for name in sorted(modules):
        for owner, text in _docstrings(name, modules[name]):
            if entry := _entry(owner, text):
                by_text.setdefault(normalized(entry.document), entry)
    # An id can occur twice (a property and its setter, two branches of an `if`): keep the first.
    unique = list({entry.id: entry for entry in reversed(by_text.values())}.values())[::-1]
    counts = Counter(normalized(entry.query) for entry in unique)
    return [
        entry if counts[normalized(entry.query)] == 1 or not entry.query
        else entry._replace(query="", document=f"{entry.query} {entry.document}")
        for entry in unique
    ]  # fmt: skip


def split_of(document_id: str) -> str:
    """80% train, 5% dev, 15% test, by a hash of the id, so that a document keeps its split when others change."""
    share = int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=4).digest()) % 100
    return "train" if share < 80 else "dev" if share < 85 else "test"


def _source(all_entries: list[Entry]) -> Source:
    placed = list(enumerate(all_entries, start=1))
    with_query = [(place, entry) for place, entry in placed if entry.query]

    def judgments(split: str) -> Iterator[Judgment]:
        return (Judgment(place, _query_id(e.id), e.id, 1) for place, e in with_query if split_of(e.id) == split)

    return Source(
        documents=lambda: (Document(place, e.id, "", e.document) for place, e in placed),
        queries=lambda: (Query(place, _query_id(e.id), e.query) for place, e in with_query),
        qrels={split: partial(judgments, split) for split in ("train", "dev", "test")},
    )


def _query_id(document_id: str) -> str:
    # Not the document's id itself, because beir's evaluation drops results with the id of the query.
    return f"q:{document_id}"


def _home() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def modules() -> dict[str, Path]:
    """Source files of the standard library by module name, subpackages included."""
    home, files = _home(), {}
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        alone, package = home / f"{name}.py", home / name
        found = [alone] if alone.is_file() else sorted(package.rglob("*.py")) if package.is_dir() else []
        for file in found:
            parts = file.relative_to(home).with_suffix("").parts
            dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not {"test", "tests", "__main__"} & set(parts) and not name.startswith("_sysconfigdata"):
                files[dotted] = file
    return files


def _docstrings(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of a module and of all classes and functions in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template or a broken file among the sources
        return
    open_nodes: list[tuple[str, ast.AST]] = [(module, tree)]
    while open_nodes:
        name, node = open_nodes.pop()
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield name, text
        for child in reversed(list(ast.iter_child_nodes(node))):
            own = getattr(child, "name", None) if isinstance(child, ast.stmt) else None
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                open_nodes.append((f"{name}.{own}" if own else name, child))


def _entry(owner: str, text: str) -> Entry | None:
    """Split a docstring; None if it has too few words for a document."""
    prose = _DOCTEST.sub("", text)
    pieces = sentences(prose, minimum_words=1)
    if not pieces:
        return None
    whole, query, document = _beginning(pieces), pieces[0], _beginning(pieces[1:])
    long_enough = len(query.split()) in _QUERY_WORDS and len(document.split()) >= _DOCUMENT_WORDS
    if long_enough and not _SIGNATURE.match(query) and normalized(query) not in normalized(document):
        return Entry(owner, query, document)
    return Entry(owner, "", whole) if len(whole.split()) >= _DOCUMENT_WORDS else None


def _beginning(pieces: list[str]) -> str:
    """The first sentences, up to the one that reaches the length of a document."""
    words = list(itertools.accumulate(len(piece.split()) for piece in pieces))
    return " ".join(pieces[: bisect.bisect_left(words, _LONGEST) + 1])
