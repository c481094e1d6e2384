"""A student by its name alone, for a call instead of a recipe: the rest is what fits its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.students.registry import WHOLE_TRANSFORMER, StageDefaults, get_kind, kind_names, kind_of_settings
from retrodistill.training.settings import TrainingSettings

_NOT_HERE = {"stages": "give stages as an argument of distill", "control": "a recipe has controls: see run_recipe"}


def one_student(
    given: str | Mapping[str, Any],
    *,
    objectives: list[Any],
    train: str | None,
    training: TrainingSettings | Mapping[str, Any] | None,
    stages: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """Settings of a student, for `StudentSettings`; what is not given is chosen by its kind.

    Args:
        given: Its model, or a mapping of `StudentSettings` without ``stages`` and ``control``.
        objectives: Of its one stage; a bare name gets the temperature that the scores of this kind need.
        train: Of its one stage.
        training: Of its one stage; keys that are left out are chosen, too.
        stages: A curriculum in place of that stage.

    Raises:
        UserError: No model is named, or the settings have a key that an argument has.
    """
    settings = {"model": given} if isinstance(given, str) else dict(given)
    if not isinstance(settings.get("model"), str):
        raise UserError("distill: a student needs a model, e.g. student={'model': 'dense:all-MiniLM-L6-v2'}.")
    for key, advice in _NOT_HERE.items():
        if key in settings:
            raise UserError(f"distill: {key} is not a setting of student here; {advice}.")
    name, _, base = settings["model"].partition(":")
    if name not in kind_names():
        return {**settings, "stages": [{"objectives": objectives}]}  # for `StudentSettings` to refuse
    if base:
        settings = {**get_kind(name).complete(settings, base), **settings}
    kind = kind_of_settings(settings["model"], settings.get("lexical_dim"))  # type: ignore[arg-type]
    curriculum = stages or [_stage(kind.defaults(settings), objectives, train, training)]
    own = kind.has_own_documents or any(stage["train"] != "query_encoder" for stage in curriculum)
    return {"documents": "student" if own else "frozen", **settings, "stages": curriculum, "control": None}


def _stage(
    defaults: StageDefaults,
    objectives: list[Any],
    train: str | None,
    training: TrainingSettings | Mapping[str, Any] | None,
) -> dict[str, Any]:
    part = train or defaults.train
    if defaults.temperature is not None:
        objectives = [
            {"name": term, "student_temperature": defaults.temperature} if isinstance(term, str) else term
            for term in objectives
        ]
    chosen = WHOLE_TRANSFORMER if part == "both_encoders" and defaults.train == "head" else defaults.training
    given = training.model_dump() if isinstance(training, TrainingSettings) else {**chosen, **(training or {})}
    return {"objectives": objectives, "train": part, "training": given, "regularizers": defaults.regularizers}
