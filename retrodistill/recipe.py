"""Recipes: YAML, typed; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, field_validator, model_validator

from retrodistill.errors import UserError, unknown
from retrodistill.models.names import parse_model_name
from retrodistill.students.static import INITIALISATIONS
from retrodistill.training.settings import Settings, StageSettings


class SplitSettings(Settings):
    """Which queries train and which test.

    Attributes:
        train: A split; ``auto`` takes train, else queries that stand in no split, else none (pseudo-queries only).
        test: The split that is measured, by its judgements.
    """

    train: str = "auto"
    test: str = "test"


class TeacherSettings(Settings):
    """One member of the teacher.

    Attributes:
        model: ``kind:name``.
        weight: In the fusion.
    """

    model: str
    weight: float = Field(default=1.0, ge=0)

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        return _model_name(model)


class StudentSettings(Settings):
    """One student.

    Attributes:
        model: ``static`` (a token table made from the space's model) or ``dense:NAME`` to start from.
        initialise: How a token table starts.
        layers: First transformer layers of a dense student to keep.
        dimension: Width of its vectors, or ``space`` for that of the documents.
        max_length: Tokens of a text that a dense student reads.
        documents: Who encodes the documents of its index: ``space``, or the ``student`` itself.
        stages: Its training, in order.
        control: The control beside it: ``untrained`` (as it starts), or ``contrastive`` (the same stages, list
            objectives replaced by InfoNCE on pseudo-queries and their own documents).
    """

    model: str
    initialise: str = "teacher"
    layers: int | None = Field(default=None, ge=1)
    dimension: int | Literal["space"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    documents: Literal["space", "student"] = "space"
    stages: list[StageSettings] = Field(min_length=1)
    control: Literal["untrained", "contrastive"] | None = "untrained"

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        if model == "static":
            return model
        if parse_model_name_or_error(model).kind != "dense":
            raise ValueError(f"a student starts from 'static' or 'dense:NAME', not {model!r}")
        return model

    @field_validator("initialise")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in INITIALISATIONS:
            raise ValueError(str(unknown("initialisation", name, INITIALISATIONS)))
        return name

    @model_validator(mode="after")
    def _documents_fit(self) -> StudentSettings:
        if self.documents == "space" and any(stage.towers == "both" for stage in self.stages):
            raise ValueError("a stage with towers: both moves the student's documents; set documents: student")
        return self


class IndexSettings(Settings):
    """How the index is built.

    Attributes:
        factory: A FAISS factory string.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
    """

    factory: str = "Flat"
    parameters: str | None = None


class EvaluationSettings(Settings):
    """How systems are measured.

    Attributes:
        depth: Documents retrieved per query; cut to the corpus.
        latency_queries: Test queries whose answering is timed; 0 for none.
        examples: Searches shown, teacher beside student.
    """

    depth: int = Field(default=1000, ge=10)
    latency_queries: int = Field(default=100, ge=0)
    examples: int = Field(default=5, ge=0)


class Recipe(Settings):
    """A whole job, from collection to report.

    Attributes:
        name: Of the recipe.
        about: A sentence or two for people.
        collection: What `load_collection` takes.
        split: Training and test queries.
        space: The dense model whose documents are indexed and whose space static students search.
        teacher: Who scores lists; one model or several, fused. By default the space's model.
        fusion: How several are fused.
        students: By name; the names become systems in results.json.
        index: How the students' indexes are built.
        evaluation: How systems are measured.
        seed: Of everything that draws.
    """

    name: str
    about: str = ""
    collection: str = "demo"
    split: SplitSettings = SplitSettings()
    space: str = "dense:all-MiniLM-L6-v2"
    teacher: list[TeacherSettings] = Field(default_factory=list)
    fusion: str = "zscore-per-query"
    students: dict[str, StudentSettings] = Field(min_length=1)
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    seed: int = 0

    @field_validator("space")
    @classmethod
    def _is_dense(cls, space: str) -> str:
        if parse_model_name_or_error(space).kind not in ("dense", "static"):
            raise ValueError(f"the space is a 'dense:NAME', not {space!r}")
        return space

    @field_validator("teacher", mode="before")
    @classmethod
    def _members(cls, given: Any) -> Any:
        members = [given] if isinstance(given, (str, dict)) else given
        return [{"model": member} if isinstance(member, str) else member for member in members or []]

    @field_validator("fusion")
    @classmethod
    def _fusion(cls, method: str) -> str:
        from retrodistill.runs.fusion import METHODS

        if method not in METHODS:
            raise ValueError(str(unknown("fusion method", method, METHODS)))
        return method

    @field_validator("students")
    @classmethod
    def _free_names(cls, students: dict[str, StudentSettings]) -> dict[str, StudentSettings]:
        reserved = {"bm25", "teacher", "ensemble", "recorded", "control"} & set(students)
        if reserved:
            raise ValueError(f"a student cannot be called {reserved.pop()!r}, the name of another system")
        return students


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a packaged recipe (``demo``).
        overrides: ``key.path=value`` each; the value is YAML. Lists are reached by number: ``stages.0.training...``.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    path = Path(source)
    if not path.is_file():
        packaged = resources.files("retrodistill") / "recipes" / f"{source}.yaml"
        if not packaged.is_file():
            raise UserError(f"no recipe {source}: no such file, and no packaged recipe of that name (there is: demo).")
        text = packaged.read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no recipe: wanted keys such as name, collection, students.")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, str(source))


def parse_recipe(content: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its dictionary.

    Raises:
        UserError: An unknown key or a value that does not fit; where it stands is named.
    """
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise _first_mistake(error, source) from error


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_model_name_or_error(text: str) -> Any:
    """As `parse_model_name`, raising ValueError, which pydantic collects."""
    try:
        return parse_model_name(text)
    except UserError as error:
        raise ValueError(str(error)) from error


def _model_name(text: str) -> str:
    return str(parse_model_name_or_error(text))


def _override(content: Any, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"override {override!r}: wanted key.path=value, e.g. index.factory=SQ8.")
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = _step(place, key, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML.") from error
    if isinstance(place, list):
        _step(place, last, override)
        place[int(last)] = value
    else:
        place[last] = value


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        if not key.isdigit() or int(key) >= len(place):
            raise UserError(f"override {override!r}: {key!r} is no place of a list of {len(place)}.")
        return place[int(key)]
    if not isinstance(place, dict):
        raise UserError(f"override {override!r}: there is nothing below the value before {key!r}.")
    if place.get(key) is None:
        place[key] = {}
    return place[key]


def _first_mistake(error: pydantic.ValidationError, source: str) -> UserError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "literal[")))
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        known = _keys_at(Recipe, [str(part) for part in parents])
        return UserError(
            f"{source}: {unknown('key', key, known)} It stands in {'.'.join(map(str, parents)) or 'top'}{more}."
        )
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = (
        "" if isinstance(given, (dict, list)) or first["type"] in ("missing", "value_error") else f", came {given!r}"
    )
    return UserError(f"{source}: {where or 'recipe'}: {message}{shown}{more}.".replace("..", "."))


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    """The known keys of the settings that a path of keys leads to."""
    for part in path:
        if isinstance(model, type) and issubclass(model, Settings) and part in model.model_fields:
            model = _settings_within(model.model_fields[part].annotation)
    return list(model.model_fields)


def _settings_within(annotation: Any) -> Any:
    """The settings class inside ``X``, ``list[X]`` or ``dict[str, X]``."""
    arguments = getattr(annotation, "__args__", ())
    inner = [argument for argument in arguments if isinstance(argument, type) and issubclass(argument, Settings)]
    return inner[0] if inner else annotation
