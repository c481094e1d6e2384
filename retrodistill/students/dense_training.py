"""Training of students with one dense vector a text: the query encoder or both, at all exits and truncations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrodistill.core.distributed import main_first
from retrodistill.core.errors import UserError
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.exits import exits_of
from retrodistill.students.matryoshka import LeadingVectors, MatryoshkaLoss
from retrodistill.students.multi_exit import MultiExitLoss
from retrodistill.training.group_stages import BothEncoders, StageRun, fit, train_both
from retrodistill.training.losses import StoredTargetsLoss
from retrodistill.training.monitors import HeldOutMonitor
from retrodistill.training.prepared import teacher_rows, training_rows
from retrodistill.training.scorers import VectorScorer
from retrodistill.training.settings import StageSettings
from retrodistill.training.trainer import History

_AGREEMENT_DEPTH = 10
Make = Callable[[int, bool], Any]


def train_dense(run: StageRun) -> History:
    """Train a dense or static student through a stage.

    Raises:
        UserError: Nothing to learn from.
    """
    student: Encoder = run.student
    if run.stage.train == "query_encoder":
        return _train_query_encoder(run)

    def watch(queries: Sequence[str], documents: Sequence[str], ranked: np.ndarray) -> HeldOutMonitor:
        return HeldOutMonitor(student, queries, ranked, None)

    both = BothEncoders(
        VectorScorer(student.similarity == "cosine"),
        loss_of=lambda make: loss_of_variants(student, run.stage, make),
        watch=watch,
    )
    return train_both(run, both)


def _train_query_encoder(run: StageRun) -> History:
    student, stage, data, prepared = run[:4]
    texts = prepared.texts.texts
    if data.student is None:
        raise UserError("a stage's data lacks the student as it is at its start.")
    with main_first():
        stored = data.student.vectors(data.collection)
    teacher_vectors = None
    aligning = [term.name for term in prepared.terms if not term.sees_lists]
    if aligning:
        if data.space is None:
            raise UserError(f"objective {aligning[0]!r} needs a dense teacher to align to; set 'document_encoder'.")
        teacher_vectors = embed(data.space, data.teacher_queries(texts).texts, "query")
    unit = student.similarity == "cosine"

    def leading(vectors: np.ndarray | None, cut: int) -> Any:
        return vectors if vectors is None or cut == vectors.shape[1] else LeadingVectors(vectors, cut, unit=unit)

    def make(cut: int, alone: bool) -> StoredTargetsLoss:
        return StoredTargetsLoss(
            student.model,
            prepared.terms,
            embeddings=leading(teacher_vectors, cut),
            documents=leading(stored, cut),
            lists=prepared.lists,
            alone=alone,
        )

    monitor = held_out_monitor(run, lambda: stored, teacher_vectors, stored)
    return train_on_texts(run, loss_of_variants(student, stage, make), monitor)


def train_on_texts(run: StageRun, loss: Any, monitor: HeldOutMonitor | None) -> History:
    """Train on single texts, each labeled with its row: what it is scored against is stored."""
    rows, texts = training_rows(run.prepared, run.stage), run.prepared.texts.texts.texts
    return fit(run, loss, {"text": [texts[row] for row in rows]}, rows, rows.tolist(), monitor)


def held_out_monitor(
    run: StageRun,
    documents: Callable[[], np.ndarray],
    teacher_vectors: np.ndarray | None = None,
    stored: np.ndarray | None = None,
) -> HeldOutMonitor | None:
    """Agreement with the teacher on held-out texts; None where there are fewer than two.

    Args:
        run: The stage.
        documents: Gives (corpus, d) document vectors.
        teacher_vectors: (texts, d) teacher embeddings, for stages without lists.
        stored: (corpus, d) document vectors, for stages without lists.
    """
    prepared, texts = run.prepared, run.prepared.texts.texts.texts
    if len(prepared.held_out) < 2:
        return None
    ranked = teacher_rows(prepared, _AGREEMENT_DEPTH, teacher_vectors, stored)
    return HeldOutMonitor(run.student, [texts[row] for row in prepared.held_out], ranked, documents)


def loss_of_variants(student: Encoder, stage: StageSettings, make: Make) -> Any:
    """The loss of a stage at all exits and truncations that the student and the stage have; itself where there is none.

    Args:
        student: Dense or static.
        stage: Says which truncations, and what exits weigh.
        make: Gives the loss on so many leading dimensions; its second argument is False for all but the first of
            several, see ``alone`` of `retrodistill.training.losses.StoredTargetsLoss`.

    Returns:
        A `TermsLoss`, `MatryoshkaLoss` or `MultiExitLoss`.
    """
    exits = exits_of(student.model) if not student.is_static else []
    if not exits:
        return _at_exit(student, stage, make, True)[0]
    made = {layer: _at_exit(student, stage, make, layer == exits[-1]) for layer in exits}
    return MultiExitLoss(
        student.model,
        {layer: loss for layer, (loss, _) in made.items()},
        weights=stage.exit_weights,
        kl_weight=1.0 if stage.exit_kl is None else stage.exit_kl,
        start=made[exits[-1]][1],
    )


def _at_exit(student: Encoder, stage: StageSettings, make: Make, alone: bool) -> tuple[Any, Any]:
    """The loss behind one exit, and the student of the stage's start, where a term compares with it."""
    whole = student.dimension
    plain = make(whole, alone)
    if not stage.matryoshka:
        return plain, plain.start
    losses = {cut: plain if cut == whole else make(cut, False) for cut in {*stage.matryoshka, whole}}
    return MatryoshkaLoss(student.model, losses, start=plain.start), plain.start
