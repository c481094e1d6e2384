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
from retrodistill.students.lexical_terms import LexicalTerms
from retrodistill.students.sparse_training import regularized, store_documents
from retrodistill.students.stored_states import only_trained, sampled_monitor
from retrodistill.training.lists import ListBatch
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.prepared import training_rows
from retrodistill.training.scorers import Scorer
from retrodistill.training.settings import RegularizerSettings
from retrodistill.training.stages import StageRun, evaluating, fit
from retrodistill.training.trainer import History


def with_query_encoder(model: Any, documents: Sequence[Any], weights: np.ndarray) -> SparseEncoder:
    """A sparse encoder with these modules for documents, and a copy of them for queries, without lexical terms.

    Lexical terms weigh a token alike wherever it stands, and a query encoder is there to tell from the context. Instead
    the copy's logits are multiplied by (vocabulary,) ``weights``, such as inverse document frequencies, since documents
    have no such factor. A masked language model's own head stays as it is.
    """
    query = [copy.deepcopy(module) for module in documents if not isinstance(module, LexicalTerms)]
    factors = torch.from_numpy(weights)
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

    def prepared(self, encoded: Sequence[Tensor]) -> Tensor:
        """(batch, vocabulary) float32 queries."""
        return encoded[0].float()

    def lists(self, encoded: Tensor, batch: ListBatch) -> Tensor:
        """(batch, n) inner products; those of padding are 0."""
        rows, places = np.unique(np.maximum(batch.documents, 0), return_inverse=True)
        scores = self._products(encoded, rows)
        own = scores.gather(1, torch.from_numpy(places.reshape(batch.documents.shape)).to(scores.device))
        own = own.masked_fill(torch.from_numpy(batch.documents < 0).to(scores.device), 0.0)
        return torch.cat([own, self._products(encoded, batch.shared)], dim=1)

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
        chosen = self._documents[rows]
        places = np.stack([np.repeat(np.arange(len(rows)), np.diff(chosen.indptr)), chosen.indices])
        parts = (torch.from_numpy(places).to(queries.device), torch.from_numpy(chosen.data).to(queries.device))
        # Not CSR, of which torch warns that it is in beta. A CSR matrix of scipy's is coalesced, and has been checked.
        matrix = torch.sparse_coo_tensor(*parts, size=chosen.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(matrix, queries.T).T


def train_query_encoder(run: StageRun) -> History:
    """Train the query encoder of a sparse student against its documents, which stay as they are."""
    student, stage, data, prepared = run[:4]
    corpus, texts = data.collection.documents.column, prepared.texts.texts.texts
    with main_first():
        store_documents(student, corpus)
        documents = embed(student, corpus, "document")
    scorer = StoredTermsScorer(documents, stage.regularizers)
    held_out = [texts[row] for row in prepared.held_out]

    def encoded() -> csr_array:
        with evaluating(student.model):
            return student.encode(held_out, "query")

    def scores(sample: np.ndarray) -> np.ndarray:
        return np.asarray((encoded() @ documents[sample].T).todense(), dtype=np.float32)

    def terms() -> dict[str, float]:
        return {"query_terms": float(np.diff(encoded().indptr).mean())}

    monitor = sampled_monitor(run, documents.shape[0], scores, lambda sample: terms())
    loss = DistillationLoss(student.model, prepared.terms, scorer, prepared.lists)
    rows = training_rows(prepared, stage)
    with only_trained(student.model, list(nn.ModuleList(student.modules("query")).parameters())):
        return fit(run, loss, {"query": [texts[row] for row in rows]}, rows, rows.tolist(), monitor)
