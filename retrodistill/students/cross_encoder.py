"""Cross-encoder students: small ones that learn from a large one, an ensemble's run or labels, to re-rank or teach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST, Role
from retrodistill.encoders.loading import load_cross_encoder
from retrodistill.encoders.modules import keep_first_layers, weights_digest
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import ColumnScorer
from retrodistill.training.stages import BothEncoders, StageRun, train_both
from retrodistill.training.trainer import History


class CrossEncoderStudent:
    """Scores pairs by reading query and document together; it has no vectors and no space.

    The model has one label. ``student`` is the manifest of a student that retrodistill trained.
    """

    def __init__(self, model: CrossEncoder, name: str, student: Manifest | None = None) -> None:
        self.model, self.name, self.student = model, name, student

    @property
    def kind(self) -> str:
        """``cross-encoder``; or ``prett`` or ``tk``, which can read documents alone and store them."""
        return str(getattr(self.model[0], "kind", "cross-encoder"))

    @cached_property
    def weights_digest(self) -> str:
        """Digest of all parameters and buffers."""
        return weights_digest(self.model)

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of what decides a score; the same for both roles, since the texts are read together."""
        return digest(self.weights_digest, self.model.max_seq_length, self.prompt(role))

    def prompt(self, role: Role) -> str:
        """The model's own prompt, the prefix of a pair; empty if it has none."""
        return str((self.model.prompts or {}).get(self.model.default_prompt_name or "", ""))

    def score(self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32) -> np.ndarray:
        """(n,) float32 raw logits of (query, document) pairs, higher is better."""
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        logits = self.model.predict(
            list(pairs), batch_size=batch_size, activation_fn=nn.Identity(), show_progress_bar=False
        )
        return np.asarray(logits, dtype=np.float32)

    def __repr__(self) -> str:
        return f"CrossEncoderStudent({self.name}, {self.model.max_seq_length} tokens)"


class PairScorer(ColumnScorer):
    """Logits of pairs by a cross-encoder; its columns are texts, which it reads together."""

    has_vectors = False

    def encode(self, model: nn.Module, columns: Sequence[Any], texts: np.ndarray) -> list[Tensor]:
        """One (batch, n) tensor of raw logits, from one forward pass over all pairs of the batch."""
        queries, *sides = columns
        pairs = [pair for side in sides for pair in zip(queries, side, strict=True)]
        inner: Any = getattr(model, "module", model)  # torchrun's wrapper has no tokenizer
        prompt = (inner.prompts or {}).get(inner.default_prompt_name or "", None)
        # a dict: the wrapper finds no tensors in the tokenizer's class, and takes every parameter for unused
        features = batch_to_device(dict(inner.preprocess(pairs, prompt=prompt)), inner.device)
        return [model(features)["scores"].float().view(len(sides), len(queries)).T]

    def lists(self, encoded: Sequence[Tensor], batch: ListBatch | None = None) -> Tensor:
        """The logits."""
        return encoded[0]

    def across(self, encoded: Sequence[Tensor], places: Tensor) -> Tensor:
        """Refused: every pair would take a forward pass of its own."""
        raise UserError("objective 'in-batch' needs vectors, and a cross-encoder has none; take contrastive.")

    def features(self, student: Any, columns: Sequence[list[str]]) -> list[Any]:
        """The texts: pairs are tokenized in `encode`."""
        return list(columns)


def cross_encoder_student(
    source: str, *, layers: int | None = None, max_length: int | None = None, seed: int = 0
) -> CrossEncoder:
    """A cross-encoder to start from, in float32, with one raw logit per pair.

    ``source`` is the folder or hub name of a cross-encoder, or of any transformer or bi-encoder, which gets a fresh
    last layer, drawn by the seed. It keeps its first ``layers``, all by default, and cuts pairs to ``max_length``
    tokens, the model's own limit by default.
    """
    torch.manual_seed(seed)
    model = load_cross_encoder(source, max_length=max_length)
    if layers is not None:
        keep_first_layers(model, layers)  # type: ignore[arg-type]
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if max_length is not None and longest is not None and max_length > longest:
        raise UserError(f"max_length={max_length}: model {source} reads 1 to {longest} tokens.")
    return model


def train_pairs(run: StageRun) -> History:
    """Train all weights of a student that scores pairs."""
    return train_both(run, BothEncoders(PairScorer()))


def _start(settings: Any, data: Any) -> CrossEncoder:
    source = settings.model.partition(":")[2]
    return cross_encoder_student(source, layers=settings.layers, max_length=settings.max_length, seed=data.seed)


def _load(folder: str) -> CrossEncoderStudent:
    manifest = Manifest.read(folder, STUDENT_MANIFEST) if (Path(folder) / STUDENT_MANIFEST).exists() else None
    return CrossEncoderStudent(load_cross_encoder(folder), f"cross-encoder:{folder}", manifest)


KIND = Kind(
    "cross-encoder",
    library_class="CrossEncoder",
    written="cross-encoder:NAME",
    start=_start,
    load=_load,
    wrap=CrossEncoderStudent,
    train=train_pairs,
    transformer=lambda model: model[0].auto_model.base_model,
    ranker=lambda student, documents: CrossEncoderRanker(student.model, student.name),
    parts=("both_encoders",),
    defaults=lambda _: StageDefaults("both_encoders", {"learning_rate": 5e-5, "batch_size": 16}, 1.0),
    can_search=False,
    can_teach=True,
)
