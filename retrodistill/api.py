"""Distil and evaluate from Python, in one call each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from retrodistill.collections import Collection, load_collection
from retrodistill.distributed import is_main
from retrodistill.evaluation.evaluating import Evaluation, evaluate
from retrodistill.files import check_replaceable, exclusive
from retrodistill.models import Encoder, load_encoder
from retrodistill.models.contract import STUDENT_MANIFEST
from retrodistill.models.vector_files import bound
from retrodistill.pipeline.cards import write_student_card
from retrodistill.pipeline.students import distil
from retrodistill.progress import say
from retrodistill.recipe import StudentSettings, validated
from retrodistill.students.kinds import AnyStudent
from retrodistill.teachers import load_teacher
from retrodistill.training.material import Material, check_recorded
from retrodistill.training.settings import CandidateSettings, StageSettings, TextSettings, TrainingSettings
from retrodistill.training.texts import training_queries

__all__ = ["Evaluation", "distill", "evaluate"]

_STATIC_TRAINING = TrainingSettings(epochs=12, learning_rate=1e-3, batch_size=64)
_DENSE_TRAINING = TrainingSettings(epochs=4, learning_rate=5e-5, batch_size=32)


def distill(  # noqa: PLR0913 - one call for what a recipe says
    collection: Collection | str,
    target: Any,
    *,
    student: str = "static",
    objective: str | Sequence[str] = "kl",
    space: str | Encoder = "dense:all-MiniLM-L6-v2",
    queries: str = "auto",
    towers: str = "query",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    stages: Sequence[StageSettings] | None = None,
    out: str | os.PathLike[str] = "out/student",
    seed: int = 0,
) -> AnyStudent:
    """Distil a student; killed at any moment, the same call goes on where it stopped.

    Args:
        collection: A collection or what `load_collection` takes.
        target: What teaches: a run of teacher scores (from `score` and `fuse`), a teacher, or a model name.
        student: ``static`` or ``dense:NAME``.
        objective: ``kl``, ``margin-mse``, ``margin-mse-all`` (on lists), ``leaf`` (aligns to the space), or several,
            summed.
        space: The dense model whose document vectors the student's queries search.
        queries: Split that trains; ``auto`` takes train, else queries that stand in no split. Test queries are left out
            whatever the split, and a recorded run teaches by its rows for these queries alone.
        towers: ``query``: documents stay as they are; ``both``: the student encodes its own documents.
        training: How long and how fast; defaults that suit the kind of student.
        stages: A curriculum in place of the one stage that the arguments above describe.
        out: Folder of the student, an ordinary sentence-transformers folder.
        seed: Of everything that draws.

    Returns:
        The student, ready for `build_index`.

    Raises:
        UserError: Something does not fit; nothing is half-written.
    """
    names = [objective] if isinstance(objective, str) else list(objective)
    default = _STATIC_TRAINING if student == "static" else _DENSE_TRAINING
    stage = {
        "objectives": names,
        "towers": towers,
        "training": training if isinstance(training, Mapping) else (training or default).model_dump(),
        "texts": TextSettings().model_dump(),
        "candidates": CandidateSettings(depth=100).model_dump(),
    }
    curriculum = [one.model_dump() for one in stages] if stages else [stage]
    settings = validated(
        StudentSettings,
        {
            "model": student,
            "stages": curriculum,
            "documents": "student" if any(one["towers"] in ("both", "head") for one in curriculum) else "space",
            "control": None,
        },
        "distill",
    )
    folder = check_replaceable(out, STUDENT_MANIFEST)
    corpus, teacher = load_collection(collection), load_teacher(target)
    test = corpus.split("test") if "test" in corpus.split_sizes else None
    asked, warning = training_queries(corpus, queries, test)
    if warning:
        say(warning)
    check_recorded(teacher, corpus, asked, settings.stages)
    work = folder.with_name(f".{folder.name}.work")  # its own, since another student may be in training beside it
    material = Material(corpus, asked, teacher, bound(load_encoder(space), corpus), work, seed, barred=test)
    with exclusive(work / ".lock"):
        made = distil(folder.name, settings, material, folder)
        if is_main():
            write_student_card(folder, folder.name, material, encoder=made.encoder)
            shutil.rmtree(work, ignore_errors=True)
    return made.encoder
