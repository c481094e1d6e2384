"""Passages: documents cut into short texts at the ends of sentences, kept in the cache as the collection itself is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import regex

from retrodistill.core.cache import cache_folder, open_once
from retrodistill.core.checksums import checked, write_arrow
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection, full_text
from retrodistill.data.languages import UNSPACED
from retrodistill.data.parents import Parents, PassageSettings, passage_id
from retrodistill.data.sentences import sentences
from retrodistill.data.stored import DOCUMENT_SCHEMA, LAZY, open_table
from retrodistill.data.texts import Texts, row_batches

FORMAT = 2  # part of the cache's key: raise it when documents are cut in another way
_LONGEST = 40  # characters of what counts as a word: addresses and encoded data are many tokens
_WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]{{1,{_LONGEST}}}")
_SCHEMA = DOCUMENT_SCHEMA.append(pa.field("parent", pa.int32()))


def with_passages(collection: Collection, passages: Any) -> Collection:
    """A collection whose documents are the passages of another's; queries and judgments, of documents, are the same.

    Every document has at least one passage, ``ID#1``. Titles are those of the document.

    Args:
        collection: What to cut.
        passages: `PassageSettings`, a mapping of its keys, or ``"120,20"``.

    Raises:
        UserError: The settings do not fit, or the documents are passages already.
    """
    settings = PassageSettings.of(passages)
    if collection.parents is not None:
        raise UserError(f"collection {collection.name} has passages already; load it without, or with others.")
    key = digest("passages", FORMAT, settings.cut, collection.documents.fingerprint, collection.titles.fingerprint)
    folder = make_folder(cache_folder() / "passages") / key
    file = folder / "documents.arrow"

    def make(temporary: Path) -> None:
        write_arrow(temporary / file.name, _SCHEMA, row_batches(_rows(collection, settings), _SCHEMA), lazy=LAZY)

    table = open_once(folder, make, lambda: open_table(file))
    titles, bodies = (Texts(pa.table({"id": table["id"], "text": table[part]})) for part in ("title", "body"))
    parents = Parents(collection.documents.table["id"], table["parent"].to_numpy(), settings)
    cut_up = replace(collection, documents=Texts(table), titles=titles, bodies=bodies, fields=None)
    return replace(cut_up, parents=parents, uncut=collection)


def untitled(texts: Texts) -> Collection:
    """A collection of texts without titles, queries or judgments."""
    titles = Texts(pa.table({"id": texts.table["id"], "text": pa.array([""] * len(texts), pa.large_string())}))
    return Collection("texts", texts, titles=titles, bodies=texts, queries=Texts.from_pairs([]), qrels={})


def cut_documents(collection: Collection, settings: PassageSettings) -> tuple[list[str], Texts]:
    """The passages of a few documents, in memory: the document's id of each, and their texts."""
    table = pa.Table.from_batches(list(row_batches(_rows(collection, settings), _SCHEMA)), schema=_SCHEMA)
    return collection.documents.table["id"].take(table["parent"]).to_pylist(), Texts(table)


def cut(text: str, words: int, overlap: int) -> list[str]:
    """Cut a text into passages of at most `words` words; at least one, which is empty for an empty text.

    Whole sentences are packed. A passage repeats the last sentences of the one before that have at most `overlap`
    words together. A sentence of more than `words` is cut into parts that overlap by this number of words.
    """
    parts = [part for sentence in sentences(text, minimum_words=0) for part in _parts(sentence, words, overlap)]
    pieces, sizes = [part for part, _ in parts], [size for _, size in parts]
    passages, first, last = [], 0, 0
    while last < len(pieces):
        begin, size = last, sum(sizes[first:last])
        while last < len(pieces) and (last == begin or size + sizes[last] <= words):
            size += sizes[last]
            last += 1
        passages.append(" ".join(pieces[first:last]))
        earliest, first, repeated = first + 1, last, 0
        following = sizes[last] if last < len(pieces) else 0
        while first > earliest and repeated + sizes[first - 1] <= min(overlap, words - following):
            first -= 1
            repeated += sizes[first]
    return passages or [""]


def _parts(sentence: str, words: int, overlap: int) -> Iterator[tuple[str, int]]:
    """A sentence, or its parts of at most `words` words, and their numbers of words."""
    marks = list(_WORD.finditer(sentence))
    if len(marks) <= words:
        yield sentence, len(marks)
        return
    for start in range(0, len(marks) - overlap, words - overlap):
        end = min(start + words, len(marks))
        yield sentence[marks[start].start() : marks[end - 1].end()], end - start


def _rows(collection: Collection, settings: PassageSettings) -> Iterator[tuple[str, str, str, str, int]]:
    """Passage id, title, body, whole text, and the document's row."""
    batches = zip(collection.titles.table.to_batches(), collection.bodies.table.to_batches(), strict=True)
    row = 0
    with bar(len(collection.documents), "cutting passages", "documents") as progress:
        for titles, bodies in batches:
            columns = (titles["id"], checked(titles["text"]), checked(bodies["text"]))
            for id_, title, body in zip(*(column.to_pylist() for column in columns), strict=True):
                for number, passage in enumerate(cut(body, settings.words, settings.overlap), start=1):
                    yield passage_id(id_, number), title, passage, full_text(title, passage), row
                row += 1
            progress.update(len(titles))
