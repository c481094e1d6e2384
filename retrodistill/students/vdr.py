"""The head of VDR (ICLR 2024): a text is weights of the vocabulary, and its own tokens always count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import Router
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.modules import with_modules
from retrodistill.students.lexical_terms import counted


class VocabularyPooling(Module):
    """``elu(logit) + 1``, maximum over tokens, then the highest terms united with the text's own tokens.

    A model with it loads where retrodistill is installed, by `load_sparse`, or with ``trust_remote_code=True``.

    Args:
        dimension: Size of the vocabulary.
        terms: How many of a text's highest terms are kept, besides its own tokens.
        special: The model's special tokens, which never have weight.
    """

    config_keys: list[str] = ["dimension", "terms", "special"]  # noqa: RUF012 - the base's

    def __init__(self, dimension: int, terms: int = 768, special: Sequence[int] = ()) -> None:
        super().__init__()
        if terms < 1:
            raise UserError(f"terms={terms}: a text keeps at least 1.")
        self.dimension, self.terms, self.special = dimension, terms, [int(token) for token in special]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Pool (batch, tokens, vocabulary) logits to (batch, vocabulary) weights, 0 or more."""
        logits, mask = features["token_embeddings"], features["attention_mask"].bool()
        highest = logits.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)  # elu keeps the order
        weights = nn.functional.elu(highest) + 1
        weights = weights.index_fill(1, torch.tensor(self.special, dtype=torch.int64, device=weights.device), 0.0)
        kept = self.own_tokens(features)
        highest_terms = weights.detach().topk(min(self.terms, self.dimension), dim=1).indices
        features["sentence_embedding"] = weights * kept.scatter(1, highest_terms, True)
        return features

    def own_tokens(self, features: dict[str, Tensor]) -> Tensor:
        """(batch, vocabulary) bool: the tokens that each text of a tokenized batch contains, without special ones."""
        counts = counted(features, self.dimension)
        return counts.index_fill_(1, torch.tensor(self.special, dtype=torch.int64, device=counts.device), 0.0) > 0

    def get_embedding_dimension(self) -> int:
        """Size of the vocabulary."""
        return self.dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the settings; there are no weights."""
        self.save_config(output_path)


def vocabulary_pooling(model: Any) -> VocabularyPooling | None:
    """The pooling of a model with this head; None where it has another."""
    return next((module for module in model if isinstance(module, VocabularyPooling)), None)


def own_token_queries(model: Any) -> Any:
    """A model with the same documents, and queries that need no model: each of a query's tokens has weight 1."""
    pooling = vocabulary_pooling(model)
    if pooling is None:
        raise UserError("queries of a text's own tokens are for sparse students of head: vdr; this one has another.")
    weights = torch.ones(pooling.dimension).index_fill_(0, torch.tensor(pooling.special, dtype=torch.int64), 0.0)
    return with_query_weights(model, weights, list(model))


def with_query_weights(model: Any, weights: Tensor, documents: list[Any]) -> Any:
    """A sparse encoder of (vocabulary,) weights of queries' tokens, and of modules for documents."""
    query: list[Any] = [SparseStaticEmbedding(model.tokenizer, weight=weights)]
    router = Router({"query": query, "document": documents}, default_route=None, allow_empty_key=False)
    return with_modules(model, [router], "SparseEncoder")


def with_vdr_head(model: Any) -> Any:
    """A sparse encoder with this head after its logits, which shares its weights with the given one."""
    if vocabulary_pooling(model) is not None:
        return model
    modules = list(model)
    if type(modules[-1]).__name__ != "SpladePooling":
        raise UserError("head: vdr follows logits over a vocabulary; start from a bi-encoder or a SPLADE model.")
    size = int(model.get_embedding_dimension() or len(model.tokenizer))
    pooling = VocabularyPooling(size, special=model.tokenizer.all_special_ids)
    return with_modules(model, [*modules[:-1], pooling], "SparseEncoder")
