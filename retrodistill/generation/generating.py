"""Generate queries for the documents of a collection, and write them to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.digests import content_digest
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import log
from retrodistill.core.settings import validated
from retrodistill.core.spending import current_spending
from retrodistill.data import Collection, load_collection
from retrodistill.data.pseudo_queries import generated_id, load_generated, source_document, write_generated
from retrodistill.data.texts import Texts
from retrodistill.generation.generator import Generator, queries_in
from retrodistill.generation.round_trip import keep_round_trips
from retrodistill.generation.settings import GenerationSettings
from retrodistill.rankers.chat import Requests
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker, Work, check_k

GENERATORS = {
    "seq2seq": "a local sequence-to-sequence model, such as a doc2query T5: folder or hub name",
    "llm": "a language model behind a chat API: its settings file (YAML), or URL#MODEL",
}
_CLASSES = {"seq2seq": "seq2seq:Seq2SeqGenerator", "llm": "llm:LlmGenerator"}
_ENDING = ".jsonl"


def generate_queries(
    collection: Collection | str,
    model: str,
    out: str | os.PathLike[str],
    settings: GenerationSettings | Mapping[str, Any] | None = None,
    *,
    round_trip: Any = None,
    depth: int = 1,
    store: Path | None = None,
) -> Texts:
    """Let a model write queries for documents, and write them to a file; if it is killed, the same call resumes.

    Args:
        collection: A collection, or what `load_collection` takes. Of passages, each gets queries.
        model: ``seq2seq:NAME``, a local model (doc2query, GPL), or ``llm:FILE``, a language model behind a chat API,
            whose requests count for `retrodistill.core.spending.spend`. Equal settings give equal queries; of an API,
            because its answers are stored.
        out: The JSONL file, which recipes take as ``texts.generated``. A manifest ``NAME.manifest.json`` says how it
            was made, and how many documents have no query.
        settings: `GenerationSettings`, or a mapping of its keys.
        round_trip: A ranker that searches, such as ``bm25``: only queries that find their document are kept (see
            `keep_round_trips`).
        depth: Documents among which a query has to find its own.
        store: Folder for what the model wrote; the shared cache by default.

    Returns:
        The queries, as `retrodistill.data.pseudo_queries.load_generated` reads them.

    Raises:
        UserError: Something does not fit, the model is missing or does not answer, or there is no query.
    """
    path, corpus = _checked(out), load_collection(collection)
    finder = _finder(round_trip, corpus, depth)
    generator, chosen = _generator(model, settings, store)
    rows = _rows(corpus, chosen)
    answers = generator.answers(generator.requests(_documents(corpus, rows)))
    ids = corpus.documents.table["id"]

    def queries() -> Iterator[tuple[str, str]]:
        for row, answer in zip(rows.tolist(), answers, strict=True):
            found, document = queries_in(answer or "", chosen.per_document), ids[row].as_py()
            yield from ((generated_id(document, f"{document}-{n}"), text) for n, text in enumerate(found, start=1))

    written = Texts.from_pairs(queries())
    if not len(written):
        raise UserError(f"{generator.name} wrote no query for any of {len(rows)} documents; check its prompt.")
    without = len(rows) - len({source_document(id_) for id_ in written.ids})
    log(f"{len(written)} queries of {len(rows)} documents by {generator.name}; {without} documents have none")
    about: dict[str, Any] = {"documents": len(rows), "documents_without_queries": without, "generated": len(written)}
    if spent := current_spending().to_json():
        about["spending"] = spent
    made_from = Manifest(
        "generated queries",
        {"documents": corpus.documents.fingerprint, "model": generator.fingerprint},
        {"model": model, **chosen.model_dump(mode="json")},
        about,
    )
    return _write(path, written, corpus, finder, depth, made_from)


def filter_queries(
    generated: str | os.PathLike[str],
    collection: Collection | str,
    out: str | os.PathLike[str],
    round_trip: Any,
    depth: int = 1,
) -> Texts:
    """Write the queries of a file that find their document to another file (see `keep_round_trips`).

    Arguments, result, and errors are those of `generate_queries`; `generated` is the file.
    """
    path, corpus = _checked(out), load_collection(collection)
    finder = _finder(round_trip, corpus, depth)
    queries = load_generated(generated, corpus)
    inputs = {"documents": corpus.documents.fingerprint, "queries": content_digest(path_of(generated))}
    return _write(path, queries, corpus, finder, depth, Manifest("generated queries", inputs))


def plan_generation(
    collection: Collection | str,
    model: str,
    settings: GenerationSettings | Mapping[str, Any] | None = None,
    *,
    store: Path | None = None,
) -> Work:
    """What `generate_queries` has left to do: documents, and their time or, of an API, requests, tokens, and dollars.

    A local model writes queries for a few documents, to measure the time; nothing is stored or sent.
    """
    corpus, (generator, chosen) = load_collection(collection), _generator(model, settings, store)
    return generator.remaining(generator.requests(_documents(corpus, _rows(corpus, chosen))))


def _generator(
    model: str, settings: GenerationSettings | Mapping[str, Any] | None, store: Path | None
) -> tuple[Generator, GenerationSettings]:
    if not isinstance(settings, GenerationSettings):
        settings = validated(GenerationSettings, dict(settings or {}), "generate", "option")
    kind, _, name = model.partition(":")
    if kind not in GENERATORS:
        raise unknown("kind of generator", kind, GENERATORS)
    if not name:
        raise UserError(f"model {model!r} has no name; write '{kind}:NAME', {GENERATORS[kind]}.")
    module, _, attribute = _CLASSES[kind].partition(":")
    generator: Generator = getattr(import_module(f"{__package__}.{module}"), attribute)(name, settings, store)
    return generator, settings


def _rows(collection: Collection, settings: GenerationSettings) -> np.ndarray:
    """(n,) int64 ascending rows of the documents to write queries for: neither blank nor copies, drawn by the seed."""
    documents = collection.documents
    usable = np.setdiff1d(np.flatnonzero(documents.originals == np.arange(len(documents))), documents.blank_rows)
    if not len(usable):
        raise UserError(f"{collection.name}: all documents are blank; there is nothing to write queries for.")
    if settings.documents is None or settings.documents >= len(usable):
        return usable
    return np.sort(np.random.default_rng(settings.seed).choice(usable, settings.documents, replace=False))


def _documents(collection: Collection, rows: np.ndarray) -> Requests:
    return Requests(len(rows), lambda place: collection.documents.column[int(rows[place])])


def _checked(out: str | os.PathLike[str]) -> Path:
    """The file to write, in a folder that can be written to."""
    path = path_of(out)
    if path.suffix != _ENDING:
        raise UserError(f"{out} does not end with {_ENDING}, and queries are written as JSONL; choose such a name.")
    make_folder(path.parent)
    return path


def _finder(round_trip: Any, collection: Collection, depth: int) -> Ranker | None:
    """The ranker of the filter, loaded and checked before work starts; None without one."""
    if round_trip is None:
        return None
    check_k(depth, len(collection.documents))
    return load_ranker(round_trip, needs="search")


def _write(
    path: Path, queries: Texts, collection: Collection, finder: Ranker | None, depth: int, made_from: Manifest
) -> Texts:
    """Filter the queries if there is a ranker, and write what is left with its manifest."""
    settings, about = made_from.settings, made_from.about
    if finder is not None:
        kept = keep_round_trips(queries, collection, finder, depth)
        log(f"round trip ({finder.name}, depth {depth}): kept {len(kept)} of {len(queries)} queries")
        settings = {**settings, "round_trip": finder.name, "depth": depth}
        about, queries = {**about, "before_round_trip": len(queries)}, kept
    write_generated(path, queries)
    manifest = Manifest(made_from.artifact, made_from.inputs, settings, {**about, "queries": len(queries)})
    manifest.write(path.parent, f"{path.stem}.manifest.json")
    return queries
