"""A cross-encoder as a ranker: raw logits, kept in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodistill.core.manifest import Manifest
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import current_encoding
from retrodistill.encoders.modules import weights_digest
from retrodistill.rankers.protocol import Ranker, Work, pair_texts
from retrodistill.rankers.score_store import ScoreStore
from retrodistill.runs.run import Run

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class CrossEncoderRanker(Ranker):
    """Raw float32 logits of a sentence-transformers cross-encoder (no sigmoid: it saturates and ties the top).

    Args:
        model: The cross-encoder, with an identity activation.
        name: ``cross-encoder:NAME``.
        root: Folder of score stores; the shared cache by default.
        batch_size: Pairs per forward pass.
    """

    kind = "cross-encoder"
    can_score_pairs = can_time_pairs = True

    def __init__(self, model: CrossEncoder, name: str, root: Path | None = None, batch_size: int | None = None) -> None:
        self.model, self.name, self.root = model, name, root
        self.encoding = current_encoding()
        self.batch_size = batch_size or self.encoding.batch_size

    @cached_property
    def _owner(self) -> Manifest:
        settings = {
            "max_length": self.model.max_seq_length,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "activation": "identity",
            "prompt": (self.model.prompts or {}).get(self.model.default_prompt_name or "", ""),
        }
        if self.encoding.precision != "float32":  # keys of scores in float32 stay as they are
            settings["precision"] = self.encoding.precision
        return Manifest("teacher", {"weights": weights_digest(self.model)}, settings, {"name": self.name})

    def fingerprint(self, collection: Collection) -> str:
        """Weights, maximum length, prompt, dtype, activation."""
        return self._owner.fingerprint

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with logits; pairs in the store are not scored again."""
        store = ScoreStore(self.name, self._owner, self.root)
        texts = pair_texts(queries, collection, pairs)
        store.fill(*texts, self._logits)
        return pairs.with_scores(store.gather(*texts), self.name)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Pairs that are not in the store."""
        store = ScoreStore(self.name, self._owner, self.root)
        items, seconds = store.seconds(*pair_texts(queries, collection, pairs), self._logits)
        return Work(items, "pairs", seconds)

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """Reads the query with each document; the store is not used."""
        documents = collection.documents
        ids = documents.ids

        def score(query: str, rows: np.ndarray) -> np.ndarray:
            texts = documents.select([ids[row] for row in rows]).texts
            return self._logits([(query, text) for text in texts]) if texts else np.zeros(0, dtype=np.float32)

        return score

    @property
    def queries_by(self) -> str:
        """Its own name: it reads queries and documents together."""
        return self.name

    def _logits(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        import torch

        with self.encoding.autocast(self.model.device):
            logits = self.model.predict(
                list(pairs),
                batch_size=self.batch_size,
                activation_fn=torch.nn.Identity(),
                show_progress_bar=False,
                convert_to_tensor=True,
            )
        return logits.float().cpu().numpy()
