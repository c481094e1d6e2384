"""Training of students that score pairs: cross-encoders, PreTT and TK."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from retrodistill.core.distributed import main_first
from retrodistill.core.errors import UserError
from retrodistill.students.document_states import below_stored
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import ColumnScorer
from retrodistill.training.stages import BothEncoders, StageRun, train_both
from retrodistill.training.trainer import History


def train_pairs(run: StageRun) -> History:
    """Train a scorer of pairs. With ``train: head``, PreTT and TK train what compares query and document.

    Documents' states below that are stored.

    Raises:
        UserError: Nothing to learn from.
    """
    both = BothEncoders(PairScorer())
    if run.stage.train != "head":
        return train_both(run, both)
    with contextlib.ExitStack() as stack:
        with main_first():
            stack.enter_context(below_stored(run.student, run.data.collection.documents.texts))
        return train_both(run, both)


class PairScorer(ColumnScorer):
    """Logits of pairs by a cross-encoder; its columns are texts, which it reads together."""

    has_vectors = False

    def encode(self, model: nn.Module, columns: Sequence[Any], texts: np.ndarray) -> list[Tensor]:
        """One (batch, n) tensor of raw logits, from one forward pass over all pairs of the batch."""
        from sentence_transformers.util import batch_to_device

        queries, *sides = columns
        pairs = [pair for side in sides for pair in zip(queries, side, strict=True)]
        inner: Any = getattr(model, "module", model)  # torchrun's wrapper has no tokenizer
        prompt = (inner.prompts or {}).get(inner.default_prompt_name or "", None)
        features = batch_to_device(inner.preprocess(pairs, prompt=prompt), inner.device)
        logits = model(features)["scores"].float().view(len(sides), len(queries))
        return [logits.T]

    def lists(self, encoded: Sequence[Tensor], batch: ListBatch | None = None) -> Tensor:
        """The logits."""
        return encoded[0]

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """There are none: every pair would be a forward pass of its own.

        Raises:
            UserError: Always.
        """
        raise UserError("objective 'in-batch' needs vectors, and a cross-encoder has none; take contrastive.")

    def features(self, student: Any, columns: Sequence[list[str]]) -> list[Any]:
        """The texts: pairs are tokenized in `encode`."""
        return list(columns)
