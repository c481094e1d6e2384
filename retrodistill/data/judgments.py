"""Judgments that are added to a collection, and the folder to which `serve` appends them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import RLock

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.json_files import parse_json
from retrodistill.core.locks import lock_file, locked
from retrodistill.core.paths import path_of
from retrodistill.data.beir import judgments_in, records_in
from retrodistill.data.collection import PSEUDO_SPLITS, Collection, Qrels, check_parts, last_judgments
from retrodistill.data.records import QUERY_COLUMNS, query_of
from retrodistill.data.tables import JUDGMENTS, table_at
from retrodistill.data.texts import Texts

QRELS, QUERIES = "qrels.tsv", "queries.jsonl"
TYPED = "typed-"  # begins the ids of queries that were typed and are not in the collection
_HEADER = b"query-id\tcorpus-id\tscore\n"
_SEPARATORS = frozenset('\t\n\r"')  # of cells and lines of a TSV file


class JudgmentLog:
    """A folder of judgments: ``qrels.tsv`` in BEIR's format, and ``queries.jsonl`` with queries that were typed.

    Both files are appended to only. The last judgment of a pair counts. Each judgment is one write of a whole line,
    under a lock that processes share, and on disk when `append` returns: a kill loses nothing that was confirmed.
    The folder is made for the first judgment.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = path_of(folder)
        self._grades: dict[str, dict[str, int]] = {}
        self._read = 0  # bytes of qrels.tsv that are in `_grades`
        self._thread = RLock()

    def append(self, query_id: str, document_id: str, relevance: int, text: str | None = None) -> None:
        """Add a judgment: 0 for not relevant, a higher grade for relevant.

        Args:
            query_id: Of the collection, or of `typed_id`.
            document_id: A document.
            relevance: A grade of at least 0.
            text: The query's text, where it is not in the collection.

        Raises:
            UserError: An id cannot stand in a TSV file.
            OSError: The folder cannot be written to; nothing half-written stays there.
        """
        for what, id_ in (("query", query_id), ("document", document_id)):
            if not id_.strip() or id_ != id_.strip() or not _SEPARATORS.isdisjoint(id_):
                raise UserError(f"{what} id {id_!r} cannot be written to a TSV file; rename it.")
        line = f"{query_id}\t{document_id}\t{relevance}\n".encode()
        with self._thread, self._locked():
            if text is not None and query_id not in _ids_of(self.folder / QUERIES):
                query = json.dumps({"_id": query_id, "text": text}, ensure_ascii=False)
                _append(self.folder / QUERIES, query.encode() + b"\n")
            _append(self.folder / QRELS, line, _HEADER)

    def of(self, query_id: str) -> dict[str, int]:
        """The grades of a query's documents, with what other processes have appended meanwhile."""
        with self._thread:
            self._catch_up()
            return dict(self._grades.get(query_id, {}))

    def __len__(self) -> int:
        with self._thread:
            self._catch_up()
            return sum(map(len, self._grades.values()))

    def _catch_up(self) -> None:
        path = self.folder / QRELS
        size = path.stat().st_size if path.is_file() else 0
        if size < self._read:  # it was replaced
            self._grades, self._read = {}, 0
        if size == self._read:
            return
        with path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        try:
            for line in whole.decode().split("\n")[:-1]:
                query, document, grade = line.split("\t")
                if grade != "score":
                    self._grades.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); mend its lines, query, document, and grade.") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(lock_file(self.folder / ".lock")))
            except UserError as error:
                raise error.__cause__ or error  # noqa: B904 - the system's own error, as for the other files
            yield


def typed_id(text: str) -> str:
    """The id of a query that is in no collection: the same for the same text."""
    return TYPED + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def with_judgments(collection: Collection, place: str | os.PathLike[str], split: str = "test") -> Collection:
    """A collection with more judgments of a split, which count where it has one of the same pair.

    Args:
        collection: What they are of.
        place: A folder of `JudgmentLog`, whose queries are added to the split, or a file of judgments.
        split: ``all`` or ``unjudged`` mean ``test``.

    Raises:
        UserError: There are no judgments, they cannot be read, or none is of a query of the collection.
    """
    path = path_of(place)
    file = path / QRELS if path.is_dir() else path
    table = table_at(file, JUDGMENTS) if file.is_file() else None
    if table is None:
        raise UserError(f"no judgments in {path}; give the folder that 'retrodistill serve' names, or a qrels file.")
    added = [(row.query_id, row.document_id, row.relevance) for row in judgments_in(table)]
    typed = [row for row in _typed_queries(path) if row[0] not in collection.queries]
    queries = collection.queries + Texts.from_pairs(typed) if typed else collection.queries
    strange = dict.fromkeys(query for query, _, _ in added if query not in queries)
    if len(strange) == len({query for query, _, _ in added}):
        raise UserError(
            f"{file}: none of its {len(strange)} queries ({sample_of(strange)}) is in {collection.name}; give the "
            "collection that was judged."
        )
    split = "test" if split in PSEUDO_SPLITS else split
    before = [collection.qrels[split].table] if split in collection.qrels else []
    merged = last_judgments([*before, Qrels.from_rows(added).table])
    known, warnings = check_parts(collection.whole.documents, queries, {split: merged})
    said = [f"{split}: {len(added)} judgments of {path} were added."]
    said += [warning for warning in warnings if warning not in collection.warnings]
    qrels = {**collection.qrels, **known}
    return replace(collection, queries=queries, qrels=qrels, warnings=[*collection.warnings, *said])


def _typed_queries(folder: Path) -> list[tuple[str, str]]:
    """(id, text) of a folder's queries."""
    table = table_at(folder / QUERIES) if (folder / QUERIES).is_file() else None
    if table is None:
        return []
    return [(row.id, row.text) for row in records_in(table, QUERY_COLUMNS, query_of, "query")]


def _ids_of(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    with path.open(encoding="utf-8") as file:
        try:
            return {parse_json(line)["_id"] for line in file if line.endswith("\n")}
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f'{path} is damaged ({error}); mend its lines, {{"_id": ..., "text": ...}}.') from error


def _append(path: Path, line: bytes, header: bytes = b"") -> None:
    """Append a whole line by one write, and wait until it is on disk; called under the lock."""
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":  # a disk was full: the half line was never confirmed
            file.seek(0)
            size = file.readall().rfind(b"\n") + 1
            file.truncate(size)
        line = line if size else header + line
        if (written := file.write(line)) < len(line):
            file.truncate(size)
            raise OSError(f"only {written} of {len(line)} bytes were written")
        os.fsync(file.fileno())
