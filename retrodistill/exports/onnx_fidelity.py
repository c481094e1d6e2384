"""How close the results of an int8 graph are to those of the float32 one, on texts that are not test queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import spread, spread_rows
from retrodistill.encoders.contract import Role
from retrodistill.encoders.onnx_runtime import OnnxExport
from retrodistill.encoders.vectors import cosines
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.protocol import pair_texts
from retrodistill.runs.agreement import overlap
from retrodistill.runs.run import Run, top_k
from retrodistill.training.texts import tuning_queries

_ROLES: tuple[Role, Role] = ("query", "document")
DEPTH = 10  # ranks that are compared, or half of the documents where these are fewer than 20
_DOCUMENTS = 500  # that encoders rank
_MOST_COMPARED = 100  # documents whose vectors are compared where queries are what is searched with
_PAIR_QUERIES, _CANDIDATES = 50, 20  # that cross-encoders order: BM25's documents for each query
_PROBES = 32  # texts of each role, or pairs, that tell how much a single matrix loses


@dataclass(frozen=True)
class Fidelity:
    """How close an int8 graph is to the float32 one."""

    agreement: float  # mean share of the ten best documents that both have, 0 to 1
    similarity: float  # mean cosine to the float32 vectors; of a cross-encoder, the correlation of scores
    kept: int = 0  # matrices that stayed in float32
    matrices: int = 0  # of the graph, without embeddings


class Comparison(Protocol):
    """Compares graphs of a model with its float32 graph."""

    def similarity(self, export: OnnxExport) -> float:
        """On a few texts: mean cosine of vectors, or correlation of scores."""

    def fidelity(self, export: OnnxExport) -> Fidelity:
        """On all texts."""


class VectorComparison:
    """Of an encoder: its queries search documents of the float32 graph.

    Where the graph encodes only documents, the queries are the model's own and search documents of the int8 graph.
    `running` makes the encoder of a graph.
    """

    def __init__(self, export: OnnxExport, collection: Collection, running: Callable[[OnnxExport], Any]) -> None:
        self._running = running
        self._roles: list[Role] = [role for role in _ROLES if role in export.roles]
        whole = running(export)
        texts = {"query": tuning_queries(collection).texts, "document": spread(collection.documents.column, _DOCUMENTS)}
        self._texts: dict[Role, list[str]] = texts  # type: ignore[assignment]
        if len(self._texts["document"]) < 2:
            raise UserError("int8 is checked by the order of documents, and this collection has too few; give another.")
        self._whole = {role: as_array(whole.encode(own, role)) for role, own in self._texts.items()}

    def similarity(self, export: OnnxExport) -> float:
        """As `Comparison.similarity`."""
        graph, means = self._running(export), []
        for role in self._roles:
            rows = spread_rows(len(self._texts[role]), _PROBES)
            vectors = as_array(graph.encode([self._texts[role][row] for row in rows], role))
            means.append(cosines(vectors, self._whole[role][rows]).mean())
        return float(np.mean(means))

    def fidelity(self, export: OnnxExport) -> Fidelity:
        """As `Comparison.fidelity`."""
        graph = self._running(export)
        role: Role = "query" if "query" in self._roles else "document"
        changed = {**self._whole, role: as_array(graph.encode(self._texts[role], role))}
        means = [cosines(changed[role], self._whole[role]).mean()]
        if role == "query":
            some = as_array(graph.encode(self._texts["document"][:_MOST_COMPARED], "document"))
            means.append(cosines(some, self._whole["document"][: len(some)]).mean())
        return Fidelity(_agreement(changed, self._whole), float(np.mean(means)))


class PairComparison:
    """Of a cross-encoder: it orders the documents that BM25 finds. `running` makes the ranker of a graph."""

    def __init__(self, export: OnnxExport, collection: Collection, running: Callable[[OnnxExport], Any]) -> None:
        self._running = running
        queries = tuning_queries(collection)
        queries = queries.select(spread(queries.ids, _PAIR_QUERIES))
        self._run = BM25Ranker().search(queries, collection, _CANDIDATES)
        self._depths = dict(zip(self._run.query_ids, np.minimum(DEPTH, np.diff(self._run.bounds) // 2), strict=True))
        if not any(self._depths.values()):
            raise UserError(
                "int8 is checked on what BM25 finds, which is less than two documents for each query of this "
                "collection; give another."
            )
        self._pairs = list(zip(*pair_texts(queries, collection, self._run), strict=True))
        self._whole = running(export).logits(self._pairs)

    def similarity(self, export: OnnxExport) -> float:
        """As `Comparison.similarity`."""
        rows = spread_rows(len(self._pairs), _PROBES)
        return _correlation(self._running(export).logits([self._pairs[row] for row in rows]), self._whole[rows])

    def fidelity(self, export: OnnxExport) -> Fidelity:
        """As `Comparison.fidelity`."""
        scores = self._running(export).logits(self._pairs)
        runs = self._run.with_scores(scores), self._run.with_scores(self._whole)
        shares = {depth: overlap(*runs, int(depth)) for depth in set(self._depths.values()) - {0}}
        agreement = np.mean([shares[depth][query] for query, depth in self._depths.items() if depth])
        return Fidelity(float(agreement), _correlation(scores, self._whole))


def as_array(vectors: Any) -> np.ndarray:
    """(n, d) vectors of a few texts, dense or CSR, as an array."""
    array: np.ndarray = vectors.toarray() if hasattr(vectors, "toarray") else vectors
    return array


def _agreement(found: dict[Role, np.ndarray], wanted: dict[Role, np.ndarray]) -> float:
    queries, documents = ([str(number) for number in range(len(wanted[role]))] for role in _ROLES)
    depth = min(DEPTH, len(documents) // 2)

    def best(vectors: dict[Role, np.ndarray]) -> Run:
        scores = vectors["query"] @ vectors["document"].T
        rows = top_k(scores, depth)
        return Run.from_matrix(queries, documents, rows, np.take_along_axis(scores, rows, axis=1))

    return float(np.mean(list(overlap(best(found), best(wanted), depth).values())))


def _correlation(found: np.ndarray, wanted: np.ndarray) -> float:
    """0 where one of them is constant."""
    if min(found.std(), wanted.std()) == 0:
        return 0.0
    return float(np.corrcoef(found, wanted)[0, 1])
