"""Cross-encoder students: a small one from a large one, an ensemble's run or labels; re-ranker and teacher after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.loading import load_cross_encoder
from retrodistill.encoders.modules import keep_first_layers
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.students.pairs import CrossEncoderStudent, load_pairs, train_pairs
from retrodistill.students.registry import Kind, StageDefaults

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


def cross_encoder_student(
    source: str, *, layers: int | None = None, max_length: int | None = None, seed: int = 0
) -> CrossEncoder:
    """A cross-encoder to start from, in float32, with one raw logit per pair.

    Args:
        source: Folder or hub name: a cross-encoder, or any transformer or bi-encoder, which gets a fresh last layer.
        layers: Keep the first so many transformer layers.
        max_length: Tokens of a pair; the model's own limit by default.
        seed: Of a fresh last layer.

    Raises:
        UserError: Not to be found, more than one score per pair, more layers than there are, or a longer text than it
            reads.
    """
    import torch

    torch.manual_seed(seed)
    model = load_cross_encoder(source, max_length=max_length)
    if layers is not None:
        keep_first_layers(model, layers)  # type: ignore[arg-type]
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if max_length is not None and longest is not None and max_length > longest:
        raise UserError(f"max_length={max_length}: model {source} reads 1 to {longest} tokens.")
    return model


KIND = Kind(
    "cross-encoder",
    library_class="CrossEncoder",
    written="cross-encoder:NAME",
    start=lambda settings, data: cross_encoder_student(
        settings.model.partition(":")[2], layers=settings.layers, max_length=settings.max_length, seed=data.seed
    ),
    load=load_pairs,
    wrap=CrossEncoderStudent,
    train=train_pairs,
    ranker=lambda student, documents: CrossEncoderRanker(student.model, student.name),
    parts=("both_encoders",),
    defaults=lambda _: StageDefaults("both_encoders", {"learning_rate": 5e-5, "batch_size": 16}, 1.0),
    can_search=False,
    can_teach=True,
    card="cross-encoder",
)
