"""Lexical terms: what a text's own tokens weigh, as BM25 counts them, next to what the head finds in the hidden states.

A head that reads hidden states alone has too few examples to find a text's rare words again. Here they are given, and
the head adds what the words mean (expansion). Untrained, the sum is BM25 over word pieces and the head's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

from retrodistill.encoders.sparse import SparseTextEncoder

_BLOCK = 256  # texts tokenized at once


class LexicalTerms(Module):
    """Adds ``relu(c_t) tf (k1 + 1) / (tf + k1 (1 - b + b n / average))`` to the weight of each token t of a text.

    tf is how often t occurs in the text, n its number of tokens, c_t learned and 1 at first; the saturation is that of
    BM25 (Robertson and Zaragoza 2009). A model with it loads where retrodistill is installed, by `load_sparse` or with
    sentence-transformers' ``trust_remote_code=True``.

    Args:
        dimension: Size of the vocabulary.
        average: Mean number of tokens of a document.
        special: Tokens that never have weight.
        k1: Saturation: the larger, the more a repetition counts.
        b: From 0 to 1, how much length counts.
        limited: Whether the head before it expands texts to some terms only; see `expand_to`.
    """

    config_keys: list[str] = ["dimension", "average", "special", "k1", "b", "limited"]  # noqa: RUF012 - the base's
    expanded: Tensor | None

    def __init__(
        self,
        dimension: int,
        average: float,
        special: Sequence[int] = (),
        k1: float = 0.9,
        b: float = 0.4,
        limited: bool = False,
    ) -> None:
        super().__init__()
        self.dimension, self.average, self.k1, self.b = dimension, float(average), float(k1), float(b)
        self.special = [int(token) for token in special]
        self.weight = nn.Parameter(torch.ones(dimension).index_fill(0, torch.tensor(self.special, dtype=torch.long), 0))
        self.register_buffer("expanded", torch.zeros(dimension, dtype=torch.bool) if limited else None)

    @property
    def limited(self) -> bool:
        """Whether texts are expanded to some terms only."""
        return self.expanded is not None

    def expand_to(self, terms: Tensor) -> None:
        """Expand texts to (terms,) places in the vocabulary, besides those that were given before, and to no others.

        Terms that no training query has get no gradient. Their expansions are those of the start, which nothing tested.
        """
        if self.expanded is None:
            self.expanded = torch.zeros(self.dimension, dtype=torch.bool, device=self.weight.device)
        self.expanded[terms.to(self.expanded.device)] = True

    def get_config_dict(self) -> dict[str, Any]:
        """Settings; those of students that have no limit are as they were before there was one."""
        settings: dict[str, Any] = super().get_config_dict()
        return settings if self.limited else {key: value for key, value in settings.items() if key != "limited"}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Add to the (batch, vocabulary) weights of ``sentence_embedding``."""
        lengths = features["attention_mask"].sum(dim=1, keepdim=True)
        own = torch.relu(self.weight) * self.saturated(counted(features, self.dimension), lengths)
        expansions = features["sentence_embedding"]
        if self.expanded is not None:
            expansions = expansions * self.expanded
        features["sentence_embedding"] = expansions + own
        return features

    def saturated(self, counts: Any, lengths: Any) -> Any:
        """BM25's part of a count, 0 of 0; arrays or tensors that broadcast."""
        return counts * (self.k1 + 1) / (counts + self.k1 * (1 - self.b + self.b * lengths / self.average))

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write settings and weights."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> LexicalTerms:  # type: ignore[override]
        """Read settings and weights."""
        hub: dict[str, Any] = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = kwargs.get("local_files_only", False)
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)


def lexical_terms_of(student: SparseTextEncoder) -> LexicalTerms | None:
    """The module of a student; None where it has none."""
    return next((module for module in student.modules("document") if isinstance(module, LexicalTerms)), None)


def saturated_terms(student: SparseTextEncoder, own: LexicalTerms, texts: Sequence[str]) -> csr_array:
    """(texts, vocabulary) float32 of what `LexicalTerms` adds, before the learned weights."""
    blocks = []
    for start in range(0, len(texts), _BLOCK):
        ids, lengths = token_ids(student, texts[start : start + _BLOCK])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        counts = csr_array((np.ones(len(ids), dtype=np.float32), (rows, ids)), shape=(len(lengths), student.dimension))
        counts.sum_duplicates()
        rows = np.repeat(np.arange(len(lengths)), np.diff(counts.indptr))
        counts.data = own.saturated(counts.data, lengths[rows]).astype(np.float32)
        blocks.append(counts)
    return csr_array(vstack(blocks)) if blocks else csr_array((0, student.dimension), dtype=np.float32)


def counted(features: Mapping[str, Tensor], dimension: int) -> Tensor:
    """(batch, vocabulary) float32: how often each token occurs in each text of a tokenized batch."""
    ids, mask = features["input_ids"], features["attention_mask"]
    return torch.zeros((len(ids), dimension), device=ids.device).scatter_add_(1, ids, mask.float())


def token_ids(student: SparseTextEncoder, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) int64 ids of texts, concatenated, and (texts,) int64 numbers of tokens."""
    prompt = student.prompt("document") or None
    ids, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(texts), _BLOCK):
        features = student.model.preprocess(list(texts[start : start + _BLOCK]), prompt=prompt, task="document")
        mask = features["attention_mask"].bool()
        ids.append(features["input_ids"][mask].numpy())
        lengths.append(mask.sum(dim=1).numpy())
    return np.concatenate(ids), np.concatenate(lengths)
