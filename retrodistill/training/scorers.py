"""Scorers: from the encoded columns of a batch to the scores of its lists, one for each kind of student.

Every list objective sees (batch, n) float32 scores, whoever made them: that is why any of them trains any student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.students.kinds import kind_of

_NOTHING = torch.finfo(torch.float32).min  # of a token that is not there: loses every maximum, and stays finite


class TokenBatch(NamedTuple):
    """Token vectors of a batch of texts.

    Attributes:
        vectors: (batch, tokens, d), of unit length where the model normalizes.
        mask: (batch, tokens) bool, true where a token counts.
    """

    vectors: Tensor
    mask: Tensor


class Scorer(Protocol):
    """Turns a batch's columns, the query and its n documents, into scores."""

    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[Any]:
        """What the model makes of each column."""
        ...

    def lists(self, encoded: Sequence[Any]) -> Tensor:
        """(batch, n) float32 scores of each query with its own documents."""
        ...

    def across(self, encoded: Sequence[Any], places: Tensor) -> Tensor:
        """(batch, batch) float32 scores of each query with the document at each other query's place.

        Args:
            encoded: As `encode` gives.
            places: (batch,) int64 column of each query's own document, from 0.
        """
        ...


class VectorScorer:
    """Inner products of single vectors: dense students, and sparse ones over the vocabulary.

    Args:
        cosine: Make the vectors unit vectors, whether or not the model's last module does.
    """

    def __init__(self, cosine: bool) -> None:
        self.cosine = cosine

    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[Tensor]:
        """(batch, d) of each column."""
        return [model(features)["sentence_embedding"] for features in columns]

    def lists(self, encoded: Sequence[Tensor]) -> Tensor:
        """(batch, n) inner products."""
        queries, *sides = (self.unit(side) for side in encoded)
        return torch.stack([(queries * side).sum(dim=1) for side in sides], dim=1)

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """(batch, batch) inner products."""
        queries, *sides = (self.unit(side) for side in encoded)
        return queries @ torch.stack(sides, dim=1)[torch.arange(len(places)), places].T

    def unit(self, embeddings: Tensor) -> Tensor:
        """float32, of length 1 for cosine students."""
        return nn.functional.normalize(embeddings.float(), dim=1) if self.cosine else embeddings.float()


class TokenScorer:
    """MaxSim of token vectors: ``sum_i max_j <q_i, d_j>`` (ColBERT, arXiv 2004.12832), or its mean over i.

    Args:
        mean: Divide by the query's tokens. Raw MaxSim grows with the query's length, and lists of different queries
            meet one temperature in training, so that the mean is the default; no ranking depends on it.
    """

    def __init__(self, mean: bool = True) -> None:
        self.mean = mean

    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[TokenBatch]:
        """Token vectors and scoring masks of each column: the first is the query's, whatever it is called."""
        found = []
        for place, features in enumerate(columns):
            out = model(features, task=features.get("task", "document" if place else "query"))
            found.append(TokenBatch(out["token_embeddings"], out["attention_mask"].bool()))
        return found

    def lists(self, encoded: Sequence[TokenBatch]) -> Tensor:
        """(batch, n) MaxSim scores."""
        queries, *sides = encoded
        return torch.stack([max_sim(queries, side, mean=self.mean) for side in sides], dim=1)

    def across(self, encoded: Sequence[TokenBatch], places: Tensor) -> Tensor:
        """(batch, batch) MaxSim scores."""
        queries, *sides = encoded
        longest = max(side.mask.shape[1] for side in sides)
        rows = torch.arange(len(places))
        padded = [nn.functional.pad(side.vectors, (0, 0, 0, longest - side.mask.shape[1])) for side in sides]
        masks = [nn.functional.pad(side.mask, (0, longest - side.mask.shape[1])) for side in sides]
        own = TokenBatch(torch.stack(padded, dim=1)[rows, places], torch.stack(masks, dim=1)[rows, places])
        scores = [
            max_sim(queries, TokenBatch(own.vectors[one : one + 1], own.mask[one : one + 1]), mean=self.mean)
            for one in range(len(places))
        ]
        return torch.stack(scores, dim=1)


class PairScorer:
    """Logits of pairs by a cross-encoder; its columns are texts, which it reads together."""

    def encode(self, model: nn.Module, columns: Sequence[Any]) -> list[Tensor]:
        """One (batch, n) tensor of raw logits, from one forward pass over all pairs of the batch."""
        from sentence_transformers.util import batch_to_device

        queries, *sides = columns
        pairs = [pair for side in sides for pair in zip(queries, side, strict=True)]
        inner: Any = getattr(model, "module", model)  # torchrun's wrapper has no tokenizer
        prompt = (inner.prompts or {}).get(inner.default_prompt_name or "", None)
        features = batch_to_device(inner.preprocess(pairs, prompt=prompt), inner.device)
        logits = model(features)["scores"].float().view(len(sides), len(queries))
        return [logits.T]

    def lists(self, encoded: Sequence[Tensor]) -> Tensor:
        """The logits."""
        return encoded[0]

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """There are none: every pair would be a forward pass of its own.

        Raises:
            UserError: Always.
        """
        raise UserError("objective 'in-batch' needs vectors, and a cross-encoder has none; take contrastive.")


def max_sim(queries: TokenBatch, documents: TokenBatch, *, mean: bool) -> Tensor:
    """(batch,) MaxSim of matched texts, float32; a query without tokens, or a document without, scores 0.

    Args:
        queries: (batch, tokens, d) and their mask.
        documents: (batch or 1, tokens, d) and their mask.
        mean: Divide by the query's tokens.
    """
    products = queries.vectors.float() @ documents.vectors.float().transpose(1, 2)
    best = products.masked_fill(~documents.mask[:, None, :], _NOTHING).amax(dim=2)
    counts = queries.mask & documents.mask.any(dim=1, keepdim=True)
    total = torch.where(counts, best, torch.zeros_like(best)).sum(dim=1)
    return total / counts.sum(dim=1).clamp(min=1) if mean else total


def scorer_of(model: Any) -> Scorer:
    """The scorer of a student.

    Raises:
        UserError: Not a kind of student.
    """
    kind = kind_of(model)
    if kind == "multi-vector":
        return TokenScorer()
    if kind == "cross-encoder":
        return PairScorer()
    return VectorScorer(str(model.similarity_fn_name) == "cosine")
