"""Query encoders of sparse students: a copy of the documents' encoder that is trained while the documents stay fixed.

An index of frozen documents serves several query encoders, such as one for conversations (DiSCo, arXiv 2410.14609).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from torch import Tensor, nn

from retrodistill.core.runtime import main_first
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.modules import with_modules
from retrodistill.objectives.sparsity import whole_batch
from retrodistill.students.dense import train_on_texts
from retrodistill.students.lexical_terms import LexicalTerms
from retrodistill.students.sparse_training import SparsityAlarm, regularized, store_documents
from retrodistill.students.stored_states import only_trained, sampled_monitor
from retrodistill.training.lists import ListBatch
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.scorers import Scorer
from retrodistill.training.settings import RegularizerSettings
from retrodistill.training.stages import StageRun, evaluating
from retrodistill.training.trainer import History

_LEAST = 0.01  # factor of a logit


def with_query_encoder(model: Any, documents: Sequence[Any], weights: np.ndarray) -> SparseEncoder:
    """A sparse encoder with these modules for documents, and a copy of them for queries, without lexical terms.

    Lexical terms weigh a token alike wherever it stands, and a query encoder is there to tell from the context. Instead
    the copy's logits are multiplied by (vocabulary,) ``weights``, such as inverse document frequencies, since documents
    have no such factor. Weights below .01 count as that: a negative factor would give a text the terms that it lacks. A
    masked language model's own head stays as it is.
    """
    query = [copy.deepcopy(module) for module in documents if not isinstance(module, LexicalTerms)]
    factors = torch.from_numpy(weights).clamp(min=_LEAST)
    for head in (module.linear for module in query if type(module).__name__ == "Dense"):
        with torch.no_grad():
            head.weight.mul_(factors.to(head.weight)[:, None])
            head.bias.mul_(factors.to(head.bias))
    router = Router({"query": query, "document": list(documents)}, default_route=None, allow_empty_key=False)
    made: SparseEncoder = with_modules(model, [router], "SparseEncoder")
    return made


class StoredTermsScorer(Scorer):
    """Inner products of one encoded column of queries with (corpus, vocabulary) stored term weights of documents."""

    def __init__(self, documents: csr_array, regularizers: Sequence[RegularizerSettings] = ()) -> None:
        self._documents, self._regularizers = documents, list(regularizers)
        self._corpus: Tensor | None = None

    def prepared(self, encoded: Sequence[Tensor]) -> Tensor:
        """(batch, vocabulary) float32 queries."""
        return encoded[0].float()

    def lists(self, encoded: Tensor, batch: ListBatch) -> Tensor:
        """(batch, n) inner products; those of padding are 0."""
        rows, places = np.unique(np.maximum(batch.documents, 0), return_inverse=True)
        scores = self._products(encoded, rows)
        own = scores.gather(1, torch.from_numpy(places.reshape(batch.documents.shape)).to(scores.device))
        own = own.masked_fill(torch.from_numpy(batch.documents < 0).to(scores.device), 0.0)
        if not batch.is_whole:
            return torch.cat([own, self._products(encoded, batch.shared)], dim=1)
        if self._corpus is None:  # kept, because it is the same in every step
            self._corpus = _matrix(self._documents, encoded.device)
        return torch.cat([own, torch.sparse.mm(self._corpus, encoded.T).T], dim=1)

    def own_documents(self, encoded: Tensor, batch: ListBatch) -> Tensor:
        """(batch, batch) inner products."""
        return self._products(encoded, np.maximum(batch.own, 0))

    def own_terms(self, encoded: Any, batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Regularizers of the batch's queries."""
        if not self._regularizers:
            return {}
        queries = whole_batch(self.prepared(encoded))
        return regularized(self._regularizers, queries, queries, progress)

    def _products(self, queries: Tensor, rows: np.ndarray) -> Tensor:
        """(batch, n) inner products with the documents at (n,) corpus positions."""
        return torch.sparse.mm(_matrix(self._documents[rows], queries.device), queries.T).T


def _matrix(rows: csr_array, device: Any) -> Tensor:
    """As a sparse tensor: not CSR, of which torch warns that it is in beta."""
    places = np.stack([np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.indices])
    parts = (torch.from_numpy(places).to(device), torch.from_numpy(rows.data).to(device))
    # A canonical CSR matrix of scipy's is coalesced, and the store has checked it.
    return torch.sparse_coo_tensor(*parts, size=rows.shape, is_coalesced=True, check_invariants=False)


def train_query_encoder(run: StageRun) -> History:
    """Train the query encoder of a sparse student against its documents, which stay as they are."""
    student, stage, data, prepared = run[:4]
    corpus, texts = data.collection.documents.column, prepared.texts.texts.texts
    with main_first():
        store_documents(student, corpus)
        documents = embed(student, corpus, "document")
    scorer = StoredTermsScorer(documents, stage.regularizers)
    held_out = [texts[row] for row in prepared.held_out]

    alarm, terms = SparsityAlarm("held-out queries"), {}

    def scores(sample: np.ndarray) -> np.ndarray:
        with evaluating(student.model):
            queries = student.encode(held_out, "query")
        counts = np.diff(queries.indptr)
        alarm(counts.tolist(), queries.shape[1])
        terms["query_terms"] = float(counts.mean())
        return np.asarray((queries @ documents[sample].T).todense(), dtype=np.float32)

    monitor = sampled_monitor(run, documents.shape[0], scores, lambda sample: dict(terms))
    loss = DistillationLoss(student.model, prepared.terms, scorer, prepared.lists)
    # With adapters, the weights that they adapt are frozen already.
    parameters = nn.ModuleList(student.modules("query")).parameters()
    with only_trained(student.model, [parameter for parameter in parameters if parameter.requires_grad]):
        history = train_on_texts(run, loss, monitor)
    history.notes = alarm.notes
    return history
