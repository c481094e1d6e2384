"""Cross-encoder students: small ones that learn from a large one, an ensemble's run or labels, to re-rank or teach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.turns import in_turn
from retrodistill.encoders.contract import STUDENT_MANIFEST, Role
from retrodistill.encoders.layers import longest_text
from retrodistill.encoders.loading import load_bi_encoder, load_cross_encoder, scores_pairs
from retrodistill.encoders.modules import keep_first_layers, weights_digest
from retrodistill.rankers.cross_encoder import CrossEncoderRanker, decisive_settings
from retrodistill.students.pruning import pruned
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.students.segment_head import Head, SegmentHead
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

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return decisive_settings(self.model)

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of what decides a score; the same for both roles, since the texts are read together."""
        return digest(self.weights_digest, self.model.max_seq_length, self.prompt(role), self._settings)

    def prompt(self, role: Role) -> str:
        """The model's own prompt, the prefix of a pair; empty if it has none."""
        return str((self.model.prompts or {}).get(self.model.default_prompt_name or "", ""))

    def score(self, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32) -> np.ndarray:
        """(n,) float32 raw logits of (query, document) pairs, higher is better."""
        if not len(pairs):
            return np.zeros(0, dtype=np.float32)
        with in_turn(self.model[0]):
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
    source: str,
    *,
    head: Head | None = None,
    layers: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> CrossEncoder:
    """A cross-encoder to start from, in float32, with one raw logit per pair.

    Args:
        source: Folder or hub name of a cross-encoder, which keeps its head, or of a bi-encoder or another transformer,
            which gets a new one.
        head: The new one: ``segments`` (default), see `SegmentHead`, or ``cls``, the library's, which is random.
        layers: Number of transformer layers to keep, from the first; all by default.
        max_length: Maximum number of tokens of a pair; the model's own by default.
        seed: Seed of the head's random values.

    Raises:
        UserError: The model is not found or not a transformer, has too few layers, reads fewer tokens, or has a head
            where ``segments`` is wanted.
    """
    torch.manual_seed(seed)
    has_head = scores_pairs(source)
    if has_head and head == "segments":
        raise UserError(f"head: segments is for models without a head; {source} has one, so leave head out to keep it.")
    by_segments = not has_head and head != "cls"
    model: Any = _with_segment_head(source) if by_segments else load_cross_encoder(source, max_length=max_length)
    if layers is not None:
        keep_first_layers(model, layers)
    transformer: Any = getattr(model[0], "auto_model", None)
    longest = None if transformer is None else longest_text(transformer)
    if max_length is not None and longest is not None and max_length > longest:
        raise UserError(f"max_length={max_length}: model {source} reads 1 to {longest} tokens.")
    if by_segments and max_length is not None:
        model.max_seq_length = max_length
    cross_encoder: CrossEncoder = model
    return cross_encoder


def _with_segment_head(source: str) -> CrossEncoder:
    """The transformer of a bi-encoder, with a `SegmentHead` instead of its pooling."""
    model = load_bi_encoder(source)
    transformer: Any = model[0]
    separator = getattr(model.tokenizer, "sep_token_id", None)
    if getattr(transformer, "auto_model", None) is None or separator is None:
        found = type(transformer).__name__
        raise UserError(f"model {source} ({found}) does not read pairs; start from a transformer such as a BERT.")
    transformer.auto_model.config.num_labels = 1  # the library reads there how many scores a pair has
    head = SegmentHead(transformer.get_embedding_dimension(), separator)
    return CrossEncoder(modules=[transformer, head], device=str(model.device), activation_fn=nn.Identity())


def train_pairs(run: StageRun) -> History:
    """Train all weights of a student that scores pairs."""
    return train_both(run, BothEncoders(PairScorer()))


def _start(settings: Any, data: Any) -> CrossEncoder:
    source = settings.model.partition(":")[2]
    options = {name: getattr(settings, name) for name in ("head", "layers", "max_length")}
    return pruned(cross_encoder_student(source, seed=data.seed, **options), settings, data)


def _load(folder: str) -> CrossEncoderStudent:
    is_student = (path_of(folder) / STUDENT_MANIFEST).exists()
    manifest = Manifest.read(folder, STUDENT_MANIFEST) if is_student else None
    return CrossEncoderStudent(load_cross_encoder(folder), f"cross-encoder:{folder}", manifest)


def check_head(settings: Any) -> None:
    """Refuse a head of sparse students, as a ValueError."""
    if settings.head not in (None, *get_args(Head)):
        raise ValueError(f"head: {settings.head} is for sparse students; set head: {' or '.join(get_args(Head))}")


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
    options=frozenset({"head", "keep", "trim"}),
    check=check_head,
    can_search=False,
    can_teach=True,
)
