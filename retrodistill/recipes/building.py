"""The student of a recipe as it starts, of any kind."""

from __future__ import annotations

from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.encoder import Encoder
from retrodistill.recipes.settings import StudentSettings
from retrodistill.students.registry import Kind, kind_of_settings
from retrodistill.training.training_data import TrainingData


def kind_of_student(settings: StudentSettings) -> Kind:
    """The kind of a recipe's student."""
    return kind_of_settings(settings.model, settings.lexical_dim)


def build_student(settings: StudentSettings, data: TrainingData) -> Any:
    """The student before training.

    Raises:
        UserError: The job has no document encoder, or the kind refuses what it starts from.
    """
    space_of(data)
    return kind_of_student(settings).start(settings, data)


def clustered_from_stage(model: Any, settings: StudentSettings, stage: int) -> Any:
    """The model as a stage, from 0, finds it: with clusters from the stage on that begins with them."""
    return kind_of_student(settings).at_stage(model, settings, stage)


def space_of(data: TrainingData) -> Encoder:
    """The space of a job.

    Raises:
        UserError: It has none.
    """
    if data.space is None:
        raise UserError("no space is given; name the dense model whose documents are searched.")
    return data.space
