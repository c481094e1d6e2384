"""Training hybrid students on both sides at once: the token table and the dense half's map; all else is stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from retrodistill.core.distributed import average_gradients
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import EmbeddingStore
from retrodistill.encoders.encoder import Encoder
from retrodistill.students.hybrid import dense_half, dense_map, lexical_table
from retrodistill.training.in_batch import across_corpus, in_batch_of
from retrodistill.training.lists import Lists
from retrodistill.training.terms import (
    ListView,
    Term,
    TermsLoss,
    check_positives_known,
    list_view,
    lists_only,
    unusable_counts,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BLOCK = 4096


class Parts(NamedTuple):
    """What learns of a hybrid student.

    Attributes:
        table: (vocabulary, width) of the lexical half.
        map: (d, d) of the dense half.
    """

    table: Tensor
    map: Tensor


class LexicalHalfLoss(TermsLoss):
    """Scores by whole vectors, gradients for the token table and the dense half's map.

    The corpus is a sparse matrix of token counts, so that its lexical halves are one product per step, whatever the
    length of the documents.

    Args:
        model: A hybrid student; all but its table and map is frozen by this.
        terms: List objectives.
        queries: (texts, d) stored dense halves of the training texts.
        documents: (corpus, d) stored dense halves of the corpus.
        bags: (corpus, vocabulary) token counts over the root of the text's length, see `token_bags`.
        lists: Candidates and teacher scores.

    Raises:
        UserError: An embedding objective among the terms, or one that lacks what it learns from.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        terms: Sequence[Term],
        queries: np.ndarray,
        documents: np.ndarray,
        bags: scipy.sparse.csr_matrix,
        lists: Lists,
    ) -> None:
        super().__init__()
        self.terms = lists_only(terms)
        check_positives_known(terms, lists.positives)
        if any(term.reads_scores for term in terms):
            self._report(unusable_counts(lists))
        model.requires_grad_(False)
        self._trained = Parts(lexical_table(model).requires_grad_(True), dense_map(model).requires_grad_(True))
        self._began: Parts | None = None
        if any(term.name == "lwf" for term in terms):
            self._began = Parts(*(part.detach().clone() for part in self._trained))
        self.model = model
        self._queries, self._documents, self._bags, self._lists = queries, documents, bags, lists
        average_gradients(self._trained)  # used outside the wrapped model's forward, which would do it

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms by name, from the tokens of the one text column and the rows of the texts (batch,)."""
        features = next(iter(sentence_features))
        rows = labels.cpu().numpy().astype(np.int64)
        view = list_view(self._lists, rows, self._trained.table.device)
        queries = self._queries_by(self._trained, features, rows)
        began = in_batch = None
        if self._began is not None:
            with torch.no_grad():
                began = self._score(self._began, self._queries_by(self._began, features, rows), view)
        own = self._lists.positives[rows]
        if self.asks("own_scores"):
            in_batch = in_batch_of(queries @ self._vectors(self._trained, np.maximum(own, 0)).T, own)
        scores = self._score(self._trained, queries, view)
        across = None
        if self.asks("batch_scores") and self._lists.documents is None:
            across = across_corpus(scores, view.targets, view.mask, own)
        return self.list_terms(
            scores,
            view.targets,
            view.mask,
            view.positives,
            start_scores=began,
            in_batch=in_batch,
            across=across,
        )

    def document_vectors(self) -> np.ndarray:
        """(corpus, d + width) float32 unit vectors with the table as it stands."""
        with torch.no_grad():
            blocks = [
                self._vectors(self._trained, np.arange(start, min(start + _BLOCK, self._bags.shape[0]))).cpu().numpy()
                for start in range(0, self._bags.shape[0], _BLOCK)
            ]
        return np.concatenate(blocks)

    def _queries_by(self, parts: Parts, features: dict[str, Tensor], rows: np.ndarray) -> Tensor:
        """(batch, d + width) unit vectors of the texts."""
        mask = features["attention_mask"].float()
        summed = (nn.functional.embedding(features["input_ids"], parts.table) * mask[:, :, None]).sum(dim=1)
        lexical = summed / mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
        return _joined(parts, self._queries[rows], lexical)

    def _score(self, parts: Parts, queries: Tensor, view: ListView) -> Tensor:
        """(batch, n) scores of the lists."""
        if self._lists.documents is None:
            return queries @ self._vectors(parts, np.arange(self._bags.shape[0])).T
        needed, places = np.unique(np.maximum(view.candidates, 0), return_inverse=True)
        rows = torch.from_numpy(places.reshape(view.candidates.shape)).to(queries.device)
        return torch.einsum("bd,bnd->bn", queries, self._vectors(parts, needed)[rows])

    def _vectors(self, parts: Parts, rows: np.ndarray) -> Tensor:
        """(rows, d + width) unit vectors of documents."""
        bags = self._bags if len(rows) == self._bags.shape[0] else self._bags[rows]
        lexical: Tensor = _SparseProduct.apply(bags, parts.table)
        return _joined(parts, self._documents[rows], lexical)


def _joined(parts: Parts, dense: np.ndarray, lexical: Tensor) -> Tensor:
    mapped = torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)).to(lexical.device) @ parts.map.T
    return nn.functional.normalize(torch.cat([mapped, lexical], dim=1), dim=1)


class _SparseProduct(torch.autograd.Function):
    """bags @ table, with the gradient for the table; torch has none for its CSR products on every device."""

    @staticmethod
    def forward(ctx: Any, bags: scipy.sparse.csr_matrix, table: Tensor) -> Tensor:
        ctx.bags = bags
        return _csr(bags, table) @ table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _csr(ctx.bags.T.tocsr(), gradient) @ gradient.contiguous()


def token_bags(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> scipy.sparse.csr_matrix:
    """(texts, vocabulary) float32: how often each token stands in the text as the model reads it, over sqrt(n).

    Args:
        model: A hybrid student; its maximum length cuts.
        texts: Documents.
        prompt: Put before each.
    """
    indptr, indices, values = [0], [], []
    for start in range(0, len(texts), _BLOCK):
        block = [prompt + text for text in texts[start : start + _BLOCK]]
        encoded = model.tokenizer(block, truncation=True, max_length=model.max_seq_length)["input_ids"]
        for ids in encoded:
            tokens, counts = np.unique(ids, return_counts=True)
            indices.append(tokens)
            values.append(counts / np.sqrt(max(len(ids), 1)))
            indptr.append(indptr[-1] + len(tokens))
    shape = (len(texts), lexical_table(model).shape[0])
    return scipy.sparse.csr_matrix(
        (np.concatenate(values).astype(np.float32), np.concatenate(indices).astype(np.int64), indptr), shape=shape
    )


def store_vectors(student: Encoder, texts: Sequence[str], role: Role) -> None:
    """Put a hybrid's vectors of texts into its embedding store, from stored dense halves: nothing is encoded again."""
    store = EmbeddingStore(student, role)
    missing = store.missing(texts)
    if not missing:
        return
    dense = EmbeddingStore(dense_half(student.model, student.name), role)
    dense.fill(missing)
    table, turn = (part.detach().cpu().numpy() for part in (lexical_table(student.model), dense_map(student.model)))
    for start in range(0, len(missing), _BLOCK):
        block = missing[start : start + _BLOCK]
        lexical = token_bags(student.model, block, student.prompt(role)) @ table
        joined = np.concatenate([dense.gather(block) @ turn.T, lexical], axis=1)
        store.put(block, (joined / np.linalg.norm(joined, axis=1, keepdims=True)).astype(np.float32))


def _csr(matrix: scipy.sparse.csr_matrix, like: Tensor) -> Tensor:
    starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that CSR is in beta; its result is tested here
        return torch.sparse_csr_tensor(starts, columns, values, size=list(matrix.shape)).to(like.device)
