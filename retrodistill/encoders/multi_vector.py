"""Multi-vector encoders: a vector per token, compared by MaxSim (ColBERT, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.encoders.vectors import best_of_blocks
from retrodistill.runs.run import TieOrder

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

_FITTED_ON = 256  # documents
_QUERY_TOKENS, _DOCUMENT_TOKENS = 128, 8192  # of a block, whose products take 4 MiB


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """The token vectors of several texts, one text after the other, without padding."""

    vectors: np.ndarray  # (total, d) float32
    bounds: np.ndarray  # (n + 1,) int64: text i has ``vectors[bounds[i]:bounds[i + 1]]``

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray], dimension: int) -> Tokens:
        """Join one (tokens, dimension) array per text."""
        parts = [np.asarray(array, dtype=np.float32).reshape(-1, dimension) for array in arrays]
        vectors = np.concatenate(parts) if parts else np.zeros((0, dimension), dtype=np.float32)
        return cls(vectors, np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) number of tokens of each text."""
        return np.diff(self.bounds)

    @property
    def dimension(self) -> int:
        """Width of a token vector."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.vectors[self.bounds[row] : self.bounds[row + 1]]

    def __repr__(self) -> str:
        return f"Tokens({len(self)} texts, {len(self.vectors)} vectors of {self.dimension} dimensions)"

    def slice(self, start: int, stop: int) -> Tokens:
        """Texts start to stop (exclusive), without copying their vectors."""
        bounds = self.bounds[start : stop + 1]
        return Tokens(self.vectors[bounds[0] : bounds[-1]], bounds - bounds[0])


class MultiVectorModel(TextModel):
    """Encodes queries and documents as a vector per token; the score is MaxSim, sum_i max_j <q_i, d_j>.

    A model with similarity ``meanmaxsim`` divides that by the number of query tokens, which keeps rankings and makes
    scores of queries of different lengths comparable.
    """

    kind = "multi-vector"
    similarities: Sequence[str] = ("maxsim", "meanmaxsim")
    ignored_settings: ClassVar[Mapping[Role, Sequence[str]]] = {
        "document": ("query_length", "query_expansion"),
        "query": ("document_length",),
    }

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> Tokens:
        """The tokens of each text that the role's tower, prompt, length, expansion, mask and pooling keep, in order."""
        if not len(texts):
            return Tokens.of([], self.dimension)
        tokens = Tokens.of(self._run(texts, role, batch_size, convert_to_numpy=True), self.dimension)
        self._require_finite(~np.isfinite(tokens.vectors).all(axis=1), tokens.bounds, texts, "token vector")
        return tokens


def maxsim(queries: Tokens, documents: Tokens) -> np.ndarray:
    """(queries, documents) float32 scores of all pairs: sum_i max_j <q_i, d_j> (ColBERT, equation 3).

    It works in blocks and without padding. Each query and document needs at least one token.
    """
    scores = np.empty((len(queries), len(documents)), dtype=np.float32)
    for first, last in blocks_of(documents.bounds, _DOCUMENT_TOKENS):
        block = documents.slice(first, last)
        for start, stop in blocks_of(queries.bounds, _QUERY_TOKENS):
            query = queries.slice(start, stop)
            nearest = np.maximum.reduceat(query.vectors @ block.vectors.T, block.bounds[:-1], axis=1)
            scores[start:stop, first:last] = np.add.reduceat(nearest, query.bounds[:-1], axis=0)
    return scores


def best_documents(
    queries: Tokens, blocks: Iterable[tuple[int, Tokens]], k: int, ties: TieOrder | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) int64 rows and float32 scores of the documents of highest MaxSim, best first, ties as in `exact_search`.

    A block is the row of its first document and the tokens of a few documents. Memory grows with k only, which is at
    most the number of documents.
    """
    return best_of_blocks(((first, maxsim(queries, documents)) for first, documents in blocks), len(queries), k, ties)


def blocks_of(bounds: np.ndarray, tokens: int) -> Iterable[tuple[int, int]]:
    """Cut texts into (start, stop) blocks within a maximum number of tokens; a longer text is its own block."""
    start = 0
    while start < len(bounds) - 1:
        stop = max(int(np.searchsorted(bounds, bounds[start] + tokens, side="right")) - 1, start + 1)
        yield start, stop
        start = stop


def token_encoder(
    source: str | Path,
    dimension: int | None = None,
    *,
    texts: Sequence[str] = (),
    layers: int | None = None,
    document_length: int | None = None,
    seed: int = 0,
) -> MultiVectorEncoder:
    """Make a multi-vector encoder from a bi-encoder's contextual token embeddings, untrained: a start or a control.

    It has the bi-encoder's transformer, a projection if fewer dimensions are wanted, and unit length per token. Pooling
    and all later modules are dropped.

    Args:
        source: Folder or hub name of a bi-encoder; one without a transformer is a UserError.
        dimension: Width of a token vector, at most the transformer's, which is the default.
        texts: Fit the projection to the tokens of these, by directions of largest second moment, which keep inner
            products best (PCA without centering). Without texts the directions are random and orthogonal.
        layers: Number of transformer layers to keep, from the first.
        document_length: Maximum tokens per document; the transformer's own limit by default.
        seed: Of the random directions.
    """
    import torch
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    dense = load_bi_encoder(str(source), layers=layers)
    transformer: Any = dense[0]
    if not isinstance(transformer, Transformer):
        found = f"{type(transformer).__name__} and has no contextual tokens"
        raise UserError(f"model {source} is {found}; a multi-vector encoder is made from a transformer.")
    width = int(transformer.get_embedding_dimension())
    if dimension is not None and not 1 <= dimension <= width:
        raise UserError(f"dimension={dimension}: tokens by {source} have {width}; choose from 1 to {width}.")
    if document_length is not None:
        transformer.document_length = document_length

    def model(*projection: Any) -> MultiVectorEncoder:
        modules = [transformer, *projection, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
        return with_modules(dense, modules, "MultiVectorEncoder", "maxsim")

    if dimension is None or dimension == width:
        return model()
    if len(texts):
        tokens = MultiVectorModel(model(), f"multi-vector:{source}").encode(texts, "document")
        directions = principal_directions(tokens.vectors)
    else:
        random = np.random.default_rng(seed).standard_normal((width, width))
        directions = np.linalg.qr(random)[0].astype(np.float32)
    projection = Dense(width, dimension, bias=False, activation_function=None, module_input_name="token_embeddings")
    projection.linear.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(directions[:dimension])))
    return model(projection.to(dense.device))


def fitted_on(corpus: Sequence[str]) -> list[str]:
    """The documents that a projection is fitted on: at most 256, evenly spaced."""
    return [corpus[row] for row in np.unique(np.linspace(0, len(corpus) - 1, min(_FITTED_ON, len(corpus)), dtype=int))]


def principal_directions(vectors: np.ndarray) -> np.ndarray:
    """(d, d) orthonormal rows: directions of (n, d) vectors by falling second moment, uncentered; signs are fixed."""
    moments = vectors.astype(np.float64).T @ vectors
    rows = np.linalg.eigh(moments)[1].T[::-1]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return (rows * signs[:, None]).astype(np.float32)
