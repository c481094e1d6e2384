"""Recipes: YAML, typed; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import Field, field_validator, model_validator

from retrodistill.errors import UserError, unknown
from retrodistill.models.names import parse_model_name
from retrodistill.students.static import INITIALISATIONS
from retrodistill.training.settings import Settings, StageSettings

Checked = TypeVar("Checked", bound=Settings)
SYSTEMS = ("bm25", "teacher", "ensemble", "target", "recorded", "control")  # names in results.json


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
        lexical: Width of a lexical half that is put beside a dense student's vector; for stages with towers: lexical.
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
    lexical: int | None = Field(default=None, ge=1)
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
        moving = [stage.towers for stage in self.stages if stage.towers != "query"]
        if self.documents == "space" and (moving or self.lexical):
            what = f"a stage with towers: {moving[0]}" if moving else "a lexical half"
            raise ValueError(f"{what} moves the student's documents; set documents: student")
        if self.lexical is None and "lexical" in moving:
            raise ValueError(
                "a stage with towers: lexical needs a lexical half; set the student's lexical to its width"
            )
        if self.lexical is not None and (
            self.model == "static" or set(moving) != {"lexical"} or len(moving) < len(self.stages)
        ):
            raise ValueError("a lexical half is for dense students, and all their stages have towers: lexical")
        if self.documents == "student" and any(one.towers == "query" and one.needs_lists for one in self.stages):
            raise ValueError(
                "a list objective with towers: query learns against stored documents, which documents: student moves "
                "away; set towers: both, or documents: space"
            )
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
        ensemble: Members of an ensemble that is measured beside the students without teaching them; where the teacher
            has several members, it is that ensemble.
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
    ensemble: list[TeacherSettings] = Field(default_factory=list)
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

    @field_validator("teacher", "ensemble", mode="before")
    @classmethod
    def _members(cls, given: Any) -> Any:
        members = [given] if isinstance(given, (str, dict)) else given or []
        if not isinstance(members, (list, tuple)):
            return members  # pydantic says what is wanted
        return [{"model": member} if isinstance(member, str) else member for member in members]

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
        controls = {f"{name}-control" for name, student in students.items() if student.control}
        for name in students:
            if name in SYSTEMS or name in controls:
                raise ValueError(f"a student cannot be called {name!r}, the name of another system")
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
                raise ValueError(f"a student cannot be called {name!r}; its name is a folder's: letters, digits, . + -")
        return students


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a packaged recipe (``demo``).
        overrides: ``key.path=value`` each; the value is YAML. Lists are reached by number: ``stages.0.training...``.

    Raises:
        UserError: Missing file, not YAML, an unknown key (the nearest is named), or a value that does not fit.
    """
    try:
        content = yaml.safe_load(_text_of(source))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no recipe: wanted keys such as name, collection, students.")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, str(source))


def _text_of(source: str | os.PathLike[str]) -> str:
    path = Path(source)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    packaged = resources.files("retrodistill") / "recipes"
    names = sorted(entry.name.removesuffix(".yaml") for entry in packaged.iterdir() if entry.name.endswith(".yaml"))
    if str(source) not in names:
        raise UserError(
            f"no recipe {source}: no such file, and no packaged recipe of that name (there is: {', '.join(names)})."
        )
    return (packaged / f"{source}.yaml").read_text(encoding="utf-8")


def parse_recipe(content: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its dictionary.

    Raises:
        UserError: An unknown key or a value that does not fit; where it stands is named.
    """
    return validated(Recipe, content, source)


def validated(model: type[Checked], content: dict[str, Any], source: str) -> Checked:
    """Settings of any kind from their dictionary; errors as for `parse_recipe`."""
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise _first_mistake(error, model, source) from error


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
    _step(place, last, override)
    place[int(last) if isinstance(place, list) else last] = value


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


def _first_mistake(error: pydantic.ValidationError, model: type[Settings], source: str) -> UserError:
    first = error.errors()[0]
    path = _place(first)
    others = len({tuple(_place(one)) for one in error.errors()}) - 1
    more = f" ({others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        *parents, key = path
        known = _keys_at(model, parents)
        return UserError(f"{source}: {unknown('key', key, known)} It stands in {'.'.join(parents) or 'top'}{more}.")
    # One value that fits none of several types fails once for each.
    alternatives = [one["msg"].removeprefix("Value error, ") for one in error.errors() if _place(one) == path]
    message = " or ".join([alternatives[0], *(one.removeprefix("Input should be ") for one in alternatives[1:])])
    given = first.get("input")
    shown = (
        "" if isinstance(given, (dict, list)) or first["type"] in ("missing", "value_error") else f", came {given!r}"
    )
    return UserError(f"{source}: {'.'.join(path) or 'recipe'}: {message.rstrip('.')}{shown}{more}.")


def _place(mistake: Any) -> list[str]:
    """Keys and numbers that lead to a mistake, without pydantic's names of the types that it tried."""
    return [str(part) for part in mistake["loc"] if part not in ("int", "str") and "[" not in str(part)]


def _keys_at(model: Any, path: Sequence[str]) -> list[str]:
    """The known keys of the settings that a path of keys leads to; names of students and numbers are passed over."""
    for part in path:
        if part in model.model_fields:
            model = _settings_within(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _settings_within(annotation: Any) -> Any:
    """The settings class that is ``X``, or stands inside ``list[X]`` or ``dict[str, X]``; else None."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((one for one in options if isinstance(one, type) and issubclass(one, Settings)), None)
