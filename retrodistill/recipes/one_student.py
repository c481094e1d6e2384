"""A student by its name alone, for a call instead of a recipe: the rest is what fits its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.students.registry import WHOLE_TRANSFORMER, StageDefaults, get_kind, kind_names, kind_of_settings
from retrodistill.training.settings import StageSettings


def one_student(
    given: str | Mapping[str, Any], objectives: Sequence[Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a student, for `StudentSettings`; what is not given is chosen by its kind.

    Args:
        given: Its model, or a mapping of `StudentSettings` without ``control``.
        objectives: Of its one stage; a bare name gets the temperature that the scores of this kind need. Not read where
            `given` has stages.
        training: `TrainingSettings` of its one stage, and ``train``, the part that it trains.

    Raises:
        UserError: No model is named, or the settings contradict each other.
    """
    settings = {"model": given} if isinstance(given, str) else dict(given)
    if not isinstance(settings.get("model"), str):
        raise UserError("distill: a student needs a model, e.g. student={'model': 'dense:all-MiniLM-L6-v2'}.")
    if "control" in settings:
        raise UserError("distill: control is not a setting of student here; a recipe has controls: see run_recipe.")
    name, _, base = settings["model"].partition(":")
    if name not in kind_names():
        return {**settings, "stages": [{"objectives": objectives}]}  # for `StudentSettings` to refuse
    if base:
        settings = {**get_kind(name).complete(settings, base), **settings}
    kind = kind_of_settings(settings["model"], settings.get("lexical_dim"))  # type: ignore[arg-type]
    if "stages" in settings:
        stages = _curriculum(settings["stages"], training)
    else:
        stages = [_stage(kind.defaults(settings), objectives, training)]
    own = kind.has_own_documents or any(_moves_documents(stage) for stage in stages)
    return {"documents": "student" if own else "frozen", **settings, "stages": stages, "control": None}


def _curriculum(stages: Any, training: Mapping[str, Any]) -> list[Any]:
    """Stages as mappings, for `StudentSettings` to check.

    Raises:
        UserError: There is none, or `training` has what belongs to a stage.
    """
    if not isinstance(stages, (list, tuple)) or not stages:
        raise UserError("distill: student.stages: wanted a list of at least one stage; without the key there is one.")
    if training:
        raise UserError(
            f"distill: training.{next(iter(training))}: each of the student's stages has its own; set it there."
        )
    return [stage.model_dump() if isinstance(stage, StageSettings) else stage for stage in stages]


def _moves_documents(stage: Any) -> bool:
    return isinstance(stage, Mapping) and stage.get("train", "query_encoder") != "query_encoder"


def _stage(defaults: StageDefaults, objectives: Sequence[Any], training: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(training)
    part = given.pop("train", None) or defaults.train
    if defaults.temperature is not None:
        objectives = [
            {"name": term, "student_temperature": defaults.temperature} if isinstance(term, str) else term
            for term in objectives
        ]
    chosen = WHOLE_TRANSFORMER if part == "both_encoders" and defaults.train == "head" else defaults.training
    return {
        "objectives": list(objectives),
        "train": part,
        "training": {**chosen, **given},
        "regularizers": defaults.regularizers,
    }
