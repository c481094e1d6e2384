"""Export an index to a store: in batches, continued after an interruption, compared with its source at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports.protocol import StoreSettings, VectorStore, open_store
from retrodistill.exports.records import Answers, Batch, Records, Vectors, exact_search, records_from, run_of
from retrodistill.runs.agreement import overlap

_DEPTH = 10  # of the rankings that are compared
_QUERY_TOKENS = 32  # a query's length: of a document that is used as a multi-vector query, the first tokens
_TIE = 1e-4  # of a query's best score: closer scores are a tie, and either document may be in the top 10


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    address: str  # ``PREFIX:PLACE``, for searching it
    kind: str  # ``dense``, ``sparse`` or ``multi-vector``
    documents: int  # in the store, which are those of the source
    written: int  # by this export: fewer documents where an interrupted one had written some
    seconds: float  # wall time, verification included
    facts: Mapping[str, Any]
    """By kind of store. Where a sample is verified: ``sampled`` documents, the largest ``difference`` of a number, and
    ``agreement``, the mean share of the exact top 10 that the store found for them."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values, facts among the others."""
        content = vars(self).copy()
        return content | content.pop("facts")


def export_index(
    source: Any,
    target: str | VectorStore,
    collection: Collection | None = None,
    settings: StoreSettings | Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export an index to a store; the same call continues an export that was interrupted.

    Args:
        source: What `records_from` takes: an index, its folder, an encoder or its name (with a collection), `Records`.
        target: Address such as ``qdrant:FOLDER#NAME`` or ``parquet:FOLDER``, or an open store.
        collection: Titles, texts, and fields; None to export those that the index stores.
        settings: Options of the kind of store that the address names.

    Raises:
        UserError: The store cannot be reached, holds something else (names what differs), or in the end does not hold
            the source.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        # The store comes first: it may be out of reach, and embedding may take hours.
        if isinstance(target, str):
            target = stack.enter_context(contextlib.closing(open_store(target, settings, create=True)))
        chosen = target.settings
        records = records_from(source, collection).with_payload(collection, texts=chosen.texts, fields=chosen.fields)
        target.create(records)
        with bar(len(records), f"exporting ({target.address})", "documents") as progress:
            written = target.upload(_counted(records.batches(target.batch_size), progress))
        facts = _verify(target, records) if target.sample else {}
        facts |= target.finish()
        address = target.address
    return ExportReport(address, records.kind, len(records), written, time.perf_counter() - start, facts)


def _counted(batches: Iterable[Batch], progress: Any) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        progress.update(len(batch))


def _verify(store: VectorStore, records: Records) -> dict[str, Any]:
    """Compare a store with its source: the count, and of a sample ids, vectors and rankings for them as queries."""
    if store.count() != len(records):
        raise UserError(
            f"{store.address} holds {store.count()} points, the source {len(records)} documents; something else writes "
            "to it: delete the collection and export again."
        )
    # Spread evenly: the same documents every time.
    rows = np.unique(np.linspace(0, len(records) - 1, min(store.sample, len(records))).astype(np.int64)).tolist()
    ids, vectors = [records.ids[row] for row in rows], records.take(rows)
    difference = _largest_difference(store, ids, vectors)
    queries = vectors
    if isinstance(vectors, Tokens):
        queries = Tokens.of((vectors[row][:_QUERY_TOKENS] for row in range(len(vectors))), vectors.dimension)
    found = _rescored(store.best(queries, _DEPTH), records, queries)
    exact = exact_search(((batch.ids, batch.vectors) for batch in records.batches()), queries, _DEPTH)
    shares = overlap(run_of(found, ids), run_of(exact, ids), _DEPTH, tie=_TIE)
    # A document without entries or tokens finds nothing, which is all that there is to find.
    agreement = float(np.mean([shares.get(document, 1.0) for document in ids]))
    if agreement < store.min_agreement:
        raise UserError(
            f"{store.address} finds {agreement:.1%} of the exact top {_DEPTH} of {len(rows)} documents, wanted "
            f"{store.min_agreement:.0%}; wait until it has indexed them and export again, or accept less agreement."
        )
    return {"sampled": len(rows), "difference": difference, "agreement": agreement}


def _largest_difference(store: VectorStore, ids: list[str], vectors: Any) -> float:
    """Largest difference of a number in the store from the source's; refuses other vectors and ids."""

    def row(block: Any, place: int) -> np.ndarray:
        return block[place] if isinstance(block, (np.ndarray, Tokens)) else block[[place]].toarray()

    differences: dict[str, float] = {}
    stored_ids, stored = store.stored(ids)
    for place, document in enumerate(stored_ids):
        left, right = row(stored, place), row(vectors, ids.index(document))
        difference = np.abs(left - right).max(initial=0.0) if left.shape == right.shape else np.inf
        if difference <= store.tolerance * np.abs(right).max(initial=0.0):
            differences[document] = float(difference)
    altered = [document for document in ids if document not in differences]
    if altered:
        raise UserError(
            f"{store.address} holds other vectors or ids than the source for {len(altered)} of {len(ids)} documents "
            f"({sample_of(altered)}); delete the collection and export again."
        )
    return max(differences.values())


def _rescored(answers: Answers, records: Records, queries: Vectors) -> Answers:
    """The documents that a store found, with their exact scores; those that are not of the source are left out."""
    wanted = {document for pairs in answers for document, _ in pairs}
    rows = [row for row, document in enumerate(records.ids) if document in wanted]
    documents = [records.ids[row] for row in rows]
    exact = map(dict, exact_search([(documents, records.take(rows))], queries, max(1, len(rows))))
    return [
        [(document, scores[document]) for document, _ in pairs if document in scores]
        for pairs, scores in zip(answers, exact, strict=True)
    ]
