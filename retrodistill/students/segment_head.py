"""The head of re-rankers that start from a bi-encoder: the cosine of their segments' means, and a correction."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn

Head = Literal["segments", "cls"]
_SCALE = 20.0  # that of cosines in the losses of sentence-transformers


class SegmentHead(Module):
    """Scores a pair that a transformer reads in one sequence, ``[CLS] query [SEP] document [SEP]``.

    q and d are the means of the last hidden states of ``[CLS] query [SEP]`` and of ``document [SEP]``, and h is that of
    [CLS]::

        s = scale cos(q, d) + w . tanh(W h + b) + c

    w and c start at 0, so the transformer of a bi-encoder ranks by meaning before it is trained; a head on [CLS] alone
    (``cls``, BERT's) starts as noise. A model with it loads where retrodistill is installed, by `load_cross_encoder` or
    with sentence-transformers' ``trust_remote_code=True``.

    Args:
        width: Dimensions of a hidden state.
        separator: Token that ends a segment.
    """

    config_keys: list[str] = ["width", "separator"]  # noqa: RUF012 - the base's

    def __init__(self, width: int, separator: int) -> None:
        super().__init__()
        self.width, self.separator = width, separator
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        self.dense, self.correction = nn.Linear(width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Features with ``scores``, (pairs,) raw: the document begins after the first separator."""
        mask, separators = features["attention_mask"].bool(), (features["input_ids"] == self.separator).long()
        after = separators.cumsum(dim=1) > separators
        scores = self.score(features["token_embeddings"], mask & ~after, mask & after)
        return {**features, "scores": scores}

    def score(self, states: Tensor, query: Tensor, document: Tensor) -> Tensor:
        """(n,) scores of (n, tokens, width) states, [CLS] first, and (n, tokens) bool masks of the two segments."""
        cosine = nn.functional.cosine_similarity(_mean(states, query), _mean(states, document))
        return self.scale * cosine + self.correction(torch.tanh(self.dense(states[:, 0])))[:, 0]

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write settings and weights."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> SegmentHead:  # type: ignore[override]
        """Read settings and weights."""
        hub: dict[str, Any] = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = kwargs.get("local_files_only", False)
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    counted = mask[:, :, None].to(states.dtype)
    return (states * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
