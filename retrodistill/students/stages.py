"""Stages: one objective, one set of texts, one training run; several in a row make a curriculum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import main_first
from retrodistill.encoders.vectors import check_dimensions
from retrodistill.students.registry import as_student, kind_of
from retrodistill.training.prepared import learned_from, prepare
from retrodistill.training.settings import StageSettings
from retrodistill.training.snapshot import StudentSnapshot
from retrodistill.training.stages import StageRun
from retrodistill.training.trainer import History
from retrodistill.training.training_data import TrainingData


def run_stage(model: Any, stage: StageSettings, data: TrainingData, folder: Path, what: str) -> History:
    """Train a student through one stage, in place.

    Args:
        model: The student: a sentence-transformers model of any kind.
        stage: What to do.
        data: Texts, teacher and document encoder.
        folder: For checkpoints.
        what: Title of the progress bar.

    Raises:
        UserError: The kind of student does not train that part or has no such vectors, or the stage lacks what an
            objective learns from.
    """
    kind, student = kind_of(model), as_student(model)
    if stage.train not in kind.parts:
        raise UserError(f"train: {stage.train} does not train {kind.name} students; set {' or '.join(kind.parts)}.")
    if stage.regularizers and not kind.has_terms:
        raise UserError(
            f"regularizer {stage.regularizers[0].name!r} sees term weights; {kind.name} students have none."
        )
    if stage.matryoshka:
        if not kind.has_vector:
            raise UserError(f"matryoshka cuts vectors of dense and static students; this one is {kind.name}.")
        check_dimensions(stage.matryoshka, student.dimension)
    space = None if data.own_documents else data.space
    # A student of its own: the snapshot digests the weights as they are before training.
    snapshot = StudentSnapshot(as_student(model), kind, space, data.stored)
    data = replace(data, student=snapshot)
    with main_first():
        prepared = prepare(stage, data)
    history = kind.train(StageRun(student, stage, data, prepared, folder, what))
    history.notes = [*prepared.notes, *history.notes]
    learned = learned_from(prepared, stage, data)
    history.learned = {**learned, "steps": history.steps, "seconds": history.seconds}
    return history
