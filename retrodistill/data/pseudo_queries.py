"""Pseudo-queries: texts of the documents, and queries that a model wrote for them, each with its source document."""

from __future__ import annotations

import os
import random
from collections.abc import Collection as Container
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.core.checksums import checked
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file
from retrodistill.core.json_files import json_text
from retrodistill.core.paths import path_of
from retrodistill.core.stores import text_keys
from retrodistill.data.collection import Collection
from retrodistill.data.passages import cut
from retrodistill.data.phrases import phrase_places
from retrodistill.data.records import id_of, text_of
from retrodistill.data.sentences import sentences
from retrodistill.data.tables import read_records
from retrodistill.data.texts import BATCH, GENERATED, SCHEMA, Texts, duplicates, is_blank, row_batches

# How an id begins. The id of the source document follows; then, of sentences and phrases, a colon and a number, and of
# generated queries a NUL and the query's own id: no id of users has a NUL.
_SENTENCE, _PHRASE, _TITLE, _DOCUMENT, _GENERATED, _JOINED, _SHORTENED = (
    f"{GENERATED}{kind}:" for kind in ("sentence", "phrase", "title", "document", "generated", "joined", "shortened")
)
_KEYS = ("_id", "text", "document_id")
_ROWS = pa.schema([*SCHEMA, ("document", pa.string()), ("line", pa.int64())])
_PHRASE_LENGTHS = (1, 1, 2, 2, 3)  # numbers of words to draw from: most logged queries have one or two


def sample_sentences(collection: Collection, per_document: int, seed: int, rows: np.ndarray | None = None) -> Texts:
    """Draw sentences of each document as pseudo-queries.

    They come from the bodies, at most `per_document` from each, in document order. Ids are `GENERATED` and
    ``sentence:<document id>:<place of the sentence in the document>``. The draw depends only on the seed and the
    document's id, so adding or reordering documents does not affect others. Here and below, ascending `rows` leave
    other documents out.
    """
    if per_document < 1:
        raise UserError(f"per_document is {per_document}; expected at least 1 sentence per document.")

    def drawn() -> Iterator[tuple[str, str]]:
        for id_, body in _pairs(collection.bodies, rows):
            candidates = sentences(body)
            # A string seed is hashed with SHA-512, so it gives the same draws in every process.
            chosen = random.Random(f"{seed}:{id_}").sample(range(len(candidates)), min(per_document, len(candidates)))
            yield from ((f"{_SENTENCE}{id_}:{place}", candidates[place]) for place in sorted(chosen))

    return Texts.from_pairs(drawn())


def title_texts(collection: Collection, rows: np.ndarray | None = None) -> Texts:
    """Each document's title as a pseudo-query, unless title or body is empty.

    Ids are `GENERATED` and ``title:<document id>``. Of a document in passages, it is the title of the first.
    """
    if collection.parents is not None:
        first = collection.parents.bounds[:-1]
        rows = first if rows is None else np.intersect1d(first, rows)
    return Texts.from_pairs(
        (f"{_TITLE}{id_}", title)
        for (id_, title), (_, body) in zip(
            _pairs(collection.titles, rows), _pairs(collection.bodies, rows), strict=True
        )
        if not is_blank(title) and not is_blank(body)
    )


def document_texts(collection: Collection, rows: np.ndarray | None = None, words: int | None = None) -> Texts:
    """Each document's whole text as a pseudo-query, unless it is empty; or its first sentences of up to `words` words.

    Ids are `GENERATED` and ``document:<document id>``.
    """
    pairs = ((id_, text) for id_, text in _pairs(collection.documents, rows) if not is_blank(text))
    if words is not None:
        pairs = ((id_, cut(text, words, 0)[0]) for id_, text in pairs)
    return Texts.from_pairs((f"{_DOCUMENT}{id_}", text) for id_, text in pairs)


def sample_phrases(
    collection: Collection, per_document: int, seed: int, rows: np.ndarray | None = None, stopwords: Container[str] = ()
) -> Texts:
    """Draw phrases of one to three words from titles and bodies: many logged queries are as short.

    At most `per_document` of each, so a shorter document may have fewer. None begins or ends with one of the
    `stopwords` (in lower case), or has a number that is not part of a word (see `phrase_places`). Each phrase is drawn
    once, for the first of several documents, whatever its case. Ids are `GENERATED` and
    ``phrase:<document id>:<number of the draw>``. The draw depends only on the seed and the document's id.
    """
    if per_document < 1:
        raise UserError(f"per_document is {per_document}; expected at least 1 phrase per document.")

    def drawn() -> Iterator[tuple[str, str]]:
        for (id_, title), (_, body) in zip(
            _pairs(collection.titles, rows), _pairs(collection.bodies, rows), strict=True
        ):
            draw = random.Random(f"phrase:{seed}:{id_}")
            of_title, of_body = (phrase_places(text, stopwords) for text in (title, body))
            for number in range(per_document):
                length = draw.choice(_PHRASE_LENGTHS) - 1
                found = [(title, place) for place in of_title[length]] + [(body, place) for place in of_body[length]]
                if found:
                    text, place = draw.choice(found)
                    yield f"{_PHRASE}{id_}:{number}", " ".join(text[place].split())

    phrases = Texts.from_pairs(drawn())
    keys = text_keys([phrase.casefold() for phrase in phrases.column])
    return phrases.without(np.setdiff1d(np.arange(len(keys)), np.unique(keys, return_index=True)[1]))


def joined_sentences(firsts: Texts, seconds: Texts, seed: int) -> Texts:
    """Each sentence of the first texts followed by one of the second, of another document: texts on two topics.

    Augmentation matters for distillation (Distiller, arXiv 2109.11105). Both are pseudo-queries; the second are drawn
    by the seed, each as often as the others. Ids are `GENERATED` and ``joined:<document id>``, of the document that
    comes first. A sentence without another document's to follow it is left out.
    """

    def joined() -> Iterator[tuple[str, str]]:
        order = np.random.default_rng(seed).permutation(len(seconds))
        ids = seconds.ids
        for number, (id_, text) in enumerate(_pairs(firsts, None)):
            document = source_document(id_)
            for place in (order[(number + shift) % len(order)] for shift in range(min(2, len(order)))):
                if source_document(ids[place]) != document:
                    yield f"{_JOINED}{document}", f"{text} {seconds.column[int(place)]}"
                    break

    return Texts.from_pairs(joined())


def without_words(texts: Texts, share: float, seed: int) -> Texts:
    """A copy of each text without a share of its words, drawn by the seed and the text's id: word dropout.

    At least one word is left out, and one is left; a text of a single word has no copy, nor has one in a script without
    spaces. Ids are `GENERATED` and ``shortened:<id>``.
    """
    if not 0 < share < 1:
        raise UserError(f"share={share:g}: the share of words that are left out is between 0 and 1.")

    def shortened() -> Iterator[tuple[str, str]]:
        for id_, text in _pairs(texts, None):
            words = text.split()
            if len(words) > 1:
                count = min(len(words) - 1, max(1, round(share * len(words))))
                left_out = set(random.Random(f"shortened:{seed}:{id_}").sample(range(len(words)), count))
                yield f"{_SHORTENED}{id_}", " ".join(word for row, word in enumerate(words) if row not in left_out)

    return Texts.from_pairs(shortened())


def load_generated(path: str | os.PathLike[str], collection: Collection) -> Texts:
    """Read queries that were generated for documents of a collection: JSONL with _id, text, and document_id.

    A document may have any number of queries. Where the documents are passages, a document_id names a passage, or a
    document, which means its first passage, as for titles. Ids are `GENERATED` and
    ``generated:<document id><NUL><id in the file>``.

    Raises:
        UserError: There is no such file, or a line lacks a key, or has a blank text, the id of another line, or an
            unknown document.
    """
    where = f"{path}, line"

    def rows() -> Iterator[tuple[str, str, str, int]]:
        for number, record in read_records(path_of(path), "generated query", _KEYS, ("metadata",)):
            text = text_of(record["text"], "text", where, number)
            if is_blank(text):
                raise UserError(f"{where} {number}: 'text' is empty; leave out queries without a text.")
            id_, document = (id_of(record[key], key, where, number) for key in ("_id", "document_id"))
            yield id_, text, document, number

    table = pa.Table.from_batches(list(row_batches(rows(), _ROWS)), _ROWS)
    if twice := duplicates(table["id"]):
        first, second, *_ = table.filter(pc.equal(table["id"], twice[0]))["line"].to_pylist()
        raise UserError(f"{where} {second}: id {twice[0]!r} is in line {first} already; give every query its own.")
    coded = table["document"].combine_chunks().dictionary_encode()
    positions = _positions(collection, coded.dictionary)[coded.indices.to_numpy()]
    if (unknown := np.flatnonzero(positions < 0)).size:
        at = int(unknown[0])
        raise UserError(
            f"{where} {table['line'][at]}: {collection.name} has no document {table['document'][at].as_py()!r} "
            f"({unknown.size} of {len(table)} queries have unknown documents); give the collection that they were "
            "generated for."
        )
    documents = collection.documents.table["id"].take(pa.array(positions))
    ids = pc.binary_join_element_wise(pa.scalar(_GENERATED), documents, pa.scalar("\0"), table["id"], "")
    return Texts(pa.table({"id": ids, "text": table["text"]}))


def _positions(collection: Collection, ids: pa.Array) -> np.ndarray:
    """(n,) int64 rows of documents, or of the first passages of documents; -1 for an unknown id."""
    positions = collection.documents.positions(ids.to_pylist())
    if collection.parents is not None:
        whole = pc.index_in(ids, value_set=collection.parents.ids).fill_null(-1).to_numpy()
        is_whole = (positions < 0) & (whole >= 0)
        positions[is_whole] = collection.parents.bounds[whole[is_whole]]
    return positions


def generated_id(document: str, own: str) -> str:
    """The id of a generated query, from those of its source document and of the query itself."""
    return f"{_GENERATED}{document}\0{own}"


def write_generated(path: str | os.PathLike[str], queries: Texts) -> None:
    """Write generated queries as `load_generated` reads them, atomically."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for id_, text in _pairs(queries, None):
            document, _, own = id_.removeprefix(_GENERATED).partition("\0")
            file.write(json_text(dict(zip(_KEYS, (own, text, document), strict=True))) + "\n")


def source_document(id_: str) -> str | None:
    """The document that a pseudo-query is of; None for any other query, whose id is not `GENERATED`."""
    if id_.startswith(_SHORTENED):
        return source_document(id_.removeprefix(_SHORTENED))
    for whole in (_TITLE, _DOCUMENT, _JOINED):
        if id_.startswith(whole):
            return id_.removeprefix(whole)
    for part in (_SENTENCE, _PHRASE):
        if id_.startswith(part):
            return id_.removeprefix(part).rpartition(":")[0] or None
    if id_.startswith(_GENERATED):
        return id_.removeprefix(_GENERATED).partition("\0")[0]
    return None


def is_phrase(texts: Texts) -> np.ndarray:
    """(n,) bool, which of the texts are phrases of documents, or copies of these: other documents may hold them."""
    own, copied = (pc.starts_with(texts.table["id"], start).to_numpy() for start in (_PHRASE, _SHORTENED + _PHRASE))
    return np.asarray(own | copied)


def _pairs(texts: Texts, rows: np.ndarray | None) -> Iterator[tuple[str, str]]:
    first = 0
    for batch in texts.table.to_batches(max_chunksize=BATCH):
        chosen, last = checked(batch), first + batch.num_rows
        if rows is not None:
            chosen = batch.take(pa.array(rows[slice(*np.searchsorted(rows, (first, last)))] - first))
        yield from zip(chosen.column("id").to_pylist(), chosen.column("text").to_pylist(), strict=True)
        first = last
