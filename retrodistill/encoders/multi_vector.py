"""Multi-vector encoders: a vector per token, compared by MaxSim (ColBERT, arXiv 2004.12832)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role, TextModel
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.runs.run import top_k

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

_FITTED_ON = 256
_OTHER_ROLE = {"document": ("query_length", "query_expansion"), "query": ("document_length",)}


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """The token vectors of several texts, one text after the other, without padding.

    Attributes:
        vectors: (total, d) float32.
        bounds: (n + 1,) int64: text i has ``vectors[bounds[i]:bounds[i + 1]]``.
    """

    vectors: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray], dimension: int) -> Tokens:
        """Join one (tokens, dimension) array per text."""
        found = [np.asarray(array, dtype=np.float32).reshape(-1, dimension) for array in arrays]
        vectors = np.concatenate(found) if found else np.zeros((0, dimension), dtype=np.float32)
        return cls(vectors, np.concatenate([[0], np.cumsum([len(array) for array in found])]).astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each text."""
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
    """Turns queries and documents into a vector per token; the score is MaxSim, sum_i max_j <q_i, d_j>.

    A model whose similarity is ``meanmaxsim`` divides that by the query's tokens, which changes no ranking but makes
    scores of queries of different length comparable.

    Args:
        model: The sentence-transformers model.
        name: ``kind:name`` as the user wrote it.
        student: The manifest of a student that retrodistill trained, if it is one.
    """

    kind = "multi-vector"
    similarities: Sequence[str] = ("maxsim", "meanmaxsim")

    def contract(self, role: Role) -> dict[str, Any]:
        """As `TextModel.contract`, without what touches the other role only: expanding queries moves no document."""
        contract = super().contract(role)
        modules = [
            [kind, {key: value for key, value in settings.items() if key not in _OTHER_ROLE[role]}]
            for kind, settings in contract["modules"]
        ]
        return {**contract, "modules": modules}

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> Tokens:
        """Encode texts by the tower, prompt, length, expansion and mask of the role.

        Returns:
            The tokens of each text, in order; as many of each as the model's mask and pooling leave.

        Raises:
            UserError: A vector is not finite.
        """
        if not len(texts):
            return Tokens.of([], self.dimension)
        with self.encoding.autocast(self.model.device):
            found = self.model.encode(
                list(texts),
                prompt=self.prompt(role),
                task=role,  # without it there is neither mask nor expansion, and no tower of a Router
                batch_size=batch_size or self.encoding.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        tokens = Tokens.of(found, self.dimension)
        broken = ~np.isfinite(tokens.vectors).all(axis=1)
        if broken.any():
            row = int(np.searchsorted(tokens.bounds, np.flatnonzero(broken)[0], side="right")) - 1
            raise UserError(f"model {self.name} gives a token vector that is not finite for {texts[row][:60]!r}.")
        return tokens


def token_encoder(
    source: str | Path,
    dimension: int | None = None,
    *,
    texts: Sequence[str] = (),
    document_length: int | None = None,
    seed: int = 0,
) -> MultiVectorEncoder:
    """A multi-vector encoder of a bi-encoder's contextual token embeddings, without training: a start or a control.

    The bi-encoder's transformer, a projection where fewer dimensions are wanted, and unit length per token; pooling
    and all that follows it is left out.

    Args:
        source: Folder or hub name of a bi-encoder.
        dimension: Width of a token vector; the transformer's by default.
        texts: What the projection is fitted on: the directions of largest second moment of their tokens' vectors, which
            keep inner products best (PCA without centering). Without any: random orthogonal directions.
        document_length: Cut documents to so many tokens; the transformer's own limit by default.
        seed: Of the random directions.

    Raises:
        UserError: The bi-encoder has no transformer, or fewer dimensions than wanted.
    """
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    dense = load_bi_encoder(str(source))
    transformer: Any = dense[0]
    if not isinstance(transformer, Transformer):
        raise UserError(
            f"model {source} is {type(transformer).__name__} and has no contextual tokens; a multi-vector encoder is "
            "made from a transformer."
        )
    width = int(transformer.get_embedding_dimension())
    if dimension is not None and not 1 <= dimension <= width:
        raise UserError(f"dimension={dimension}: tokens by {source} have {width}; choose from 1 to {width}.")
    if document_length is not None:
        transformer.document_length = document_length

    def model(*projection: Any) -> MultiVectorEncoder:
        behind = [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
        made: MultiVectorEncoder = with_modules(
            dense, [transformer, *projection, *behind], "MultiVectorEncoder", "maxsim"
        )
        return made

    if dimension is None or dimension == width:
        return model()
    directions = _random_directions(width, seed)
    if len(texts):
        plain = MultiVectorModel(model(), f"multi-vector:{source}")
        directions = principal_directions(plain.encode(texts, "document").vectors)
    projection = Dense(width, dimension, bias=False, activation_function=None, module_input_name="token_embeddings")
    projection.linear.weight.data.copy_(_tensor(directions[:dimension]))
    return model(projection.to(dense.device))


def fitted_on(corpus: Sequence[str]) -> list[str]:
    """The documents that a projection's directions are fitted on: at most 256, evenly drawn."""
    return [corpus[row] for row in np.unique(np.linspace(0, len(corpus) - 1, min(_FITTED_ON, len(corpus)), dtype=int))]


def principal_directions(vectors: np.ndarray) -> np.ndarray:
    """(d, d) orthonormal rows: directions of (n, d) vectors by falling second moment, uncentered; signs are fixed."""
    moments = vectors.astype(np.float64).T @ vectors
    rows = np.linalg.eigh(moments)[1].T[::-1]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return (rows * signs[:, None]).astype(np.float32)


def _random_directions(width: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].astype(np.float32)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


_QUERY_TOKENS, _DOCUMENT_TOKENS = 1024, 16384  # of a block, whose products take 64 MiB


def maxsim(queries: Tokens, documents: Tokens) -> np.ndarray:
    """Score every query with every document: sum_i max_j <q_i, d_j> (ColBERT, arXiv 2004.12832, equation 3).

    Args:
        queries: Each with at least one token.
        documents: Each with at least one token.

    Returns:
        (queries, documents) float32.
    """
    scores = np.empty((len(queries), len(documents)), dtype=np.float32)
    for first, last in blocks_of(documents.bounds, _DOCUMENT_TOKENS):
        found = documents.slice(first, last)
        for start, stop in blocks_of(queries.bounds, _QUERY_TOKENS):
            asked = queries.slice(start, stop)
            nearest = np.maximum.reduceat(asked.vectors @ found.vectors.T, found.bounds[:-1], axis=1)
            scores[start:stop, first:last] = np.add.reduceat(nearest, asked.bounds[:-1], axis=0)
    return scores


def best_documents(queries: Tokens, blocks: Iterable[tuple[int, Tokens]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k documents of highest MaxSim of each query, over blocks of documents; memory grows with k, not with them.

    Args:
        queries: (q) texts' tokens.
        blocks: Row of the first document and the tokens of a few documents, until all were given.
        k: At most as many as there are documents.

    Returns:
        rows (q, k) int64 and scores (q, k) float32, best first, ties by row.
    """
    scores = np.zeros((len(queries), 0), dtype=np.float32)
    rows = np.zeros((len(queries), 0), dtype=np.int64)
    for first, documents in blocks:
        found = maxsim(queries, documents)
        scores = np.concatenate([scores, found], axis=1)
        here = np.broadcast_to(np.arange(first, first + len(documents)), found.shape)
        rows = np.concatenate([rows, here], axis=1)
        if scores.shape[1] > 8 * k:
            rows, scores = _top(rows, scores, k)
    return _top(rows, scores, k)


def blocks_of(bounds: np.ndarray, tokens: int) -> Iterable[tuple[int, int]]:
    """Cut texts into (start, stop) blocks within a maximum number of tokens; a longer text is its own block."""
    start = 0
    while start < len(bounds) - 1:
        stop = int(np.searchsorted(bounds, bounds[start] + tokens, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _top(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows come in ascending order or already cut best first, so that a stable sort keeps ties by row."""
    order = top_k(scores, k)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
