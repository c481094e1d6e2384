"""Hybrid students: one vector per text joins a dense model's pooled vector and a learned lexical part.

A dense vector of a frozen model cannot express what a lexical teacher knows, and training all its layers is expensive.
The lexical half is a token table, summed over the tokens that the transformer reads anyway. What the transformer gives
is stored, and only the table and a linear map of the pooled vector are trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WordEmbeddings
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import average_gradients, main_first
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import EmbeddingStore, embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.students.dense import KIND as DENSE
from retrodistill.students.dense import held_out_monitor, start_dense, train_on_texts
from retrodistill.students.static import fast_tokenizer, inverse_document_frequencies, token_matrix
from retrodistill.students.stored_states import only_trained
from retrodistill.training.lists import ListBatch
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.scorers import Scorer
from retrodistill.training.stages import StageRun
from retrodistill.training.trainer import History

_BLOCK = 4096
_ADDED = ["WordEmbeddings", "Dense", "Pooling", "Normalize"]  # modules after the dense model's own


def hybrid_student(base: SentenceTransformer, width: int, corpus: Texts, *, seed: int = 0) -> SentenceTransformer:
    """Add a lexical half to a dense model; all modules are stock modules.

    ``v(x) = normalize([W dense(x) ; sum_i table[x_i] / sqrt(n)])`` over the n tokens of x. W starts as the identity.
    The table starts as Gaussian rows of expected length 1 times inverse document frequencies in 0..1: inner products of
    the lexical halves are then a random projection (Johnson and Lindenstrauss 1984) of IDF-weighted term overlap.

    Args:
        base: The dense model; cosine.
        width: Of the lexical half; the sum with the dense half's width must be even.
        corpus: Texts that document frequencies are counted on.
        seed: Of the table.
    """
    dense = Encoder(base, "dense:student")
    size = dense.dimension
    if dense.similarity != "cosine":
        raise UserError("a lexical half is added to cosine models; this one uses the dot product.")
    if width < 1 or (size + width) % 2:  # Pooling gives two vectors of one width
        raise UserError(f"lexical_dim={width}: with the dense half's {size} dimensions the sum must be even.")
    weights = inverse_document_frequencies(fast_tokenizer(dense), corpus)
    weights[base.tokenizer.all_special_ids] = 0.0
    rows = np.random.default_rng(seed).standard_normal((len(weights), width)) / np.sqrt(width)
    table = torch.from_numpy((rows * weights[:, None]).astype(np.float32))
    modules: list[Any] = list(base)
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    hand_over = Dense(
        size,
        size,
        bias=False,
        activation_function=nn.Identity(),
        init_weight=torch.eye(size),
        module_input_name="sentence_embedding",
        module_output_name="cls_token_embeddings",
    )
    pooling = Pooling((size + width) // 2, ["cls", "mean_sqrt_len_tokens"])
    modules += [WordEmbeddings(base.tokenizer, table, update_embeddings=True), hand_over, pooling, Normalize()]
    hybrid: SentenceTransformer = with_modules(base, modules, "SentenceTransformer", "cosine")
    return hybrid


def is_hybrid(model: SentenceTransformer) -> bool:
    """Whether a model has a lexical half."""
    return [type(module).__name__ for module in model][-len(_ADDED) :] == _ADDED


def dense_half(model: SentenceTransformer, name: str) -> Encoder:
    """The dense model inside a hybrid: its embeddings are those of the model that the student started from."""
    if not is_hybrid(model):
        raise UserError(f"model {name} has no lexical half; set student.lexical_dim to its width.")
    return Encoder(with_modules(model, list(model)[: -len(_ADDED)], "SentenceTransformer", "cosine"), name)


def lexical_table(model: SentenceTransformer) -> Any:
    """The (vocabulary, width) parameter of a hybrid's lexical half."""
    module: Any = list(model)[-len(_ADDED)]
    return module.emb_layer.weight


def dense_map(model: SentenceTransformer) -> Any:
    """The (d, d) parameter W of a hybrid's dense half."""
    module: Any = list(model)[1 - len(_ADDED)]
    return module.linear.weight


class Parts(NamedTuple):
    """What is trained of a hybrid student."""

    table: Tensor  # (vocabulary, width) of the lexical half
    map: Tensor  # (d, d) of the dense half


class LexicalBatch(NamedTuple):
    """A batch's tokens, and its (batch,) int64 rows among the stage's texts and (batch, d + width) unit vectors."""

    features: dict[str, Tensor]
    texts: np.ndarray
    queries: Tensor


class LexicalHalfScorer(Scorer):
    """Scores by whole vectors, with gradients for the token table and the dense half's map.

    The corpus is a sparse matrix of `token_bags`, so that its lexical halves are one product per step, whatever the
    length of the documents. The stored dense halves are (texts, d) of the training texts and (corpus, d) of the corpus.
    """

    def __init__(
        self, model: SentenceTransformer, queries: np.ndarray, documents: np.ndarray, bags: scipy.sparse.csr_array
    ) -> None:
        self.trained = Parts(lexical_table(model), dense_map(model))
        self._start: Parts | None = None
        self._queries, self._documents, self._bags = queries, documents, bags

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> LexicalBatch:
        """The tokens of the one text column, and the texts' vectors."""
        return LexicalBatch(columns[0], texts, self._encode(self.trained, columns[0], texts))

    def lists(self, encoded: LexicalBatch, batch: ListBatch) -> Tensor:
        """(batch, n) scores."""
        return self._score(self.trained, encoded.queries, batch)

    def own_documents(self, encoded: LexicalBatch, batch: ListBatch) -> Tensor:
        """(batch, batch) scores."""
        return encoded.queries @ self._vectors(self.trained, np.maximum(batch.own, 0)).T

    def keep_start(self, model: Any) -> None:
        """Keep a copy of the parts."""
        self._start = Parts(*(part.detach().clone() for part in self.trained))

    def start_lists(self, encoded: LexicalBatch, batch: ListBatch) -> Tensor:
        """(batch, n) scores by the parts of the stage's start."""
        start = self._start or self.trained
        return self._score(start, self._encode(start, encoded.features, encoded.texts), batch)

    def document_vectors(self) -> np.ndarray:
        """(corpus, d + width) float32 unit vectors with the current table."""
        rows = np.arange(self._bags.shape[0])
        blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        with torch.no_grad():
            return np.concatenate([self._vectors(self.trained, block).cpu().numpy() for block in blocks])

    def _encode(self, parts: Parts, features: dict[str, Tensor], rows: np.ndarray) -> Tensor:
        mask = features["attention_mask"].float()
        summed = (nn.functional.embedding(features["input_ids"], parts.table) * mask[:, :, None]).sum(dim=1)
        lexical = summed / mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
        return _joined(parts, self._queries[rows], lexical)

    def _score(self, parts: Parts, queries: Tensor, batch: ListBatch) -> Tensor:
        needed, places = np.unique(np.maximum(batch.documents, 0), return_inverse=True)
        rows = torch.from_numpy(places.reshape(batch.documents.shape)).to(queries.device)
        own = torch.einsum("bd,bnd->bn", queries, self._vectors(parts, needed)[rows])
        return torch.cat([own, queries @ self._vectors(parts, batch.shared).T], dim=1)

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
    def forward(ctx: Any, bags: scipy.sparse.csr_array, table: Tensor) -> Tensor:
        ctx.bags = bags
        return _csr(bags, table) @ table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _csr(ctx.bags.T.tocsr(), gradient) @ gradient.contiguous()


def token_bags(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> scipy.sparse.csr_array:
    """(texts, vocabulary) float32: how often a token occurs in the text as the model reads it, over sqrt(n)."""
    lengths, parts = [], []
    for start in range(0, len(texts), _BLOCK):
        block = [prompt + text for text in texts[start : start + _BLOCK]]
        ids = model.tokenizer(block, truncation=True, max_length=model.max_seq_length)["input_ids"]
        parts.append(token_matrix(ids, np.ones(len(ids)), lexical_table(model).shape[0]))
        lengths += [max(len(tokens), 1) for tokens in ids]
    bags = scipy.sparse.vstack(parts, format="csr")
    bags.data = (bags.data / np.repeat(np.sqrt(lengths), np.diff(bags.indptr))).astype(np.float32)
    return bags


def store_vectors(student: Encoder, texts: Sequence[str], role: Role) -> None:
    """Put a hybrid's vectors of texts into its embedding store, from stored dense halves, without encoding again."""
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


def _csr(matrix: scipy.sparse.csr_array, like: Tensor) -> Tensor:
    starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(matrix.data.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that CSR is in beta; its result is tested here
        return torch.sparse_csr_tensor(starts, columns, values, size=list(matrix.shape)).to(like.device)


def train_hybrid(run: StageRun) -> History:
    """Train the lexical half and the dense half's map, for queries and documents."""
    student, _, data, prepared = run[:4]
    if prepared.lists is None:
        raise UserError("a stage with train: lexical needs a list objective.")
    dense, texts = dense_half(student.model, student.name), prepared.texts.texts.texts
    corpus = data.collection.documents.column
    with main_first():
        queries, documents = embed(dense, texts, "query"), embed(dense, corpus, "document")
    bags = token_bags(student.model, corpus, student.prompt("document"))
    scorer = LexicalHalfScorer(student.model, queries, documents, bags)
    with only_trained(student.model, scorer.trained):
        average_gradients(scorer.trained)  # the wrapped model's forward would do it, and does not run
        loss = DistillationLoss(student.model, prepared.terms, scorer, prepared.lists)
        return train_on_texts(run, loss, held_out_monitor(run, scorer.document_vectors))


def _start(settings: Any, data: Any) -> SentenceTransformer:
    base = start_dense(settings, data)
    return hybrid_student(base, settings.lexical_dim, data.collection.documents, seed=data.seed)


def _check(settings: Any) -> None:
    if any(stage.train != "lexical" for stage in settings.stages):
        raise ValueError("a lexical half is for dense students, and all their stages have train: lexical")


KIND = replace(
    DENSE,
    name="hybrid",
    written="",
    start=_start,
    owns=is_hybrid,
    train=train_hybrid,
    transformer=None,
    store_documents=lambda student, texts: store_vectors(student, texts, "document"),
    store_queries=lambda student, texts: store_vectors(student, texts, "query"),
    parts=("lexical",),
    defaults=lambda settings: replace(DENSE.defaults(settings), train="lexical"),
    options=frozenset({"dimension", "lexical_dim", "keep", "trim"}),
    check=_check,
    has_vector=False,
)
