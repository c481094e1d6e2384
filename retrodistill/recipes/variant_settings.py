"""Forms of a student, as recipes write them: clustered vectors, exits, the head of a sparse one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, field_validator

from retrodistill.core.errors import UserError
from retrodistill.core.settings import Settings

if TYPE_CHECKING:
    from retrodistill.recipes.settings import Recipe, StudentSettings
    from retrodistill.training.settings import StageSettings

_WHOSE = {"clusters": "multi-vector", "exits": "dense", "head": "sparse", "lexical_terms": "sparse"}
_CUT = ("static", "dense")  # kinds whose vectors can be truncated


class VariantSettings(Settings):
    """What a student may be besides its kind.

    Attributes:
        clusters: A multi-vector student's token vectors are replaced by the means of clusters: ``C8x32`` for 8 vectors
            a query and 32 a document, ``C25`` for a quarter of the tokens of both. Beside it stand in results.json the
            same student ``unclustered``, trained the same, and that one ``pooled`` after training to as many vectors.
        clustered_from: First stage, from 1, with clusters; those before train the plain student, for both alike.
            ``lwf`` compares with the plain student of the stage's start.
        exits: Layers behind which a dense student can be left, besides the last (which is the student itself, and is
            left out where it is named); each is a system such as ``student@exit-2``.
        project_exits: Give each exit but the deepest a linear map of its own.
        lexical_terms: A sparse student's documents weigh their own tokens as BM25 does, by a learned weight each,
            beside what the head finds; of inference-free queries only. A dense student's lexical half is `lexical`.
        head: Of a sparse student: ``splade``, or ``vdr``, whose texts keep the 768 highest terms and their own tokens;
            ``student@own-tokens`` is then measured besides: the same documents, queries without a model.
    """

    clusters: str | None = None
    clustered_from: int = Field(default=1, ge=1)
    exits: list[int] = Field(default_factory=list)
    project_exits: bool = False
    lexical_terms: bool = False
    head: Literal["splade", "vdr"] = "splade"

    @field_validator("clusters")
    @classmethod
    def _sizes(cls, sizes: str | None) -> str | None:
        from retrodistill.students.clustering import cluster_sizes

        try:
            if sizes is not None:
                cluster_sizes(sizes)
        except UserError as error:
            raise ValueError(str(error)) from error
        return sizes

    @field_validator("exits")
    @classmethod
    def _layers(cls, exits: list[int]) -> list[int]:
        if len(set(exits)) < len(exits) or min(exits, default=1) < 1:
            raise ValueError("exits are layers, counted from 1, each named once")
        return exits


class VariantNames(NamedTuple):
    """Names of the systems that stand beside a clustered student."""

    unclustered: str
    pooled: str


def beside_names(students: Mapping[str, StudentSettings]) -> dict[str, VariantNames]:
    """By clustered student; its name stands in front where there are several."""
    clustered = [name for name, student in students.items() if student.clusters]
    prefixes = {name: "" if len(clustered) == 1 else f"{name}-" for name in clustered}
    return {name: VariantNames(f"{prefix}unclustered", f"{prefix}pooled") for name, prefix in prefixes.items()}


def check_cuts(recipe: Recipe, space: int) -> None:
    """Refuse truncations that are no part of the vectors, as far as these are known before any work.

    Args:
        recipe: The recipe.
        space: Width of the space's vectors.

    Raises:
        UserError: Names the first.
    """
    given = [("evaluation.truncations", cut) for cut in recipe.evaluation.truncations]
    for name, student in recipe.students.items():
        if student.documents == "frozen":
            given += [(f"{name}: matryoshka", cut) for stage in student.stages for cut in stage.matryoshka]
    for what, cut in given:
        if not 1 <= cut <= space:
            raise UserError(
                f"{what}: {cut} dimensions, and vectors by {recipe.document_encoder} have {space}; take 1 to {space}."
            )


def unclustered(student: StudentSettings) -> StudentSettings:
    """The same student and stages without clusters."""
    return student.model_copy(update={"clusters": None, "clustered_from": 1, "control": None})


def check_variants(student: StudentSettings) -> None:
    """Refuse forms that a student of its kind, or of its stages, cannot have.

    Raises:
        ValueError: Names the first.
    """
    fields = type(student).model_fields
    for key, kind in _WHOSE.items():
        if getattr(student, key) not in (fields[key].default, []) and student.kind != kind:
            raise ValueError(f"{key} is for {kind} students; this one is {student.kind}")
    if student.clustered_from > 1 and not student.clusters:
        raise ValueError("clustered_from says when clusters begin; set clusters, e.g. C8x32")
    if student.clustered_from > max(1, len(student.stages)):
        raise ValueError(f"clustered_from: {student.clustered_from}, and there are {len(student.stages)} stages")
    if student.project_exits and not student.exits:
        raise ValueError("project_exits is about exits; set exits, e.g. [2, 4]")
    if student.exits and student.lexical_dim:
        raise ValueError("a student with a lexical half has no exits; leave one of the two out")
    if student.head == "vdr" and student.queries != "model":
        raise ValueError("head: vdr encodes queries as it does documents; leave queries out")
    if student.lexical_terms and student.queries != "inference-free":
        raise ValueError("lexical_terms is for sparse students with queries: inference-free; set both")
    for stage in student.stages:
        _check_stage(student, stage)


def _check_stage(student: StudentSettings, stage: StageSettings) -> None:
    if (stage.exit_kl is not None or stage.exit_weights) and not student.exits:
        raise ValueError("exit_kl and exit_weights are about exits, and the student has none; set exits, e.g. [2, 4]")
    if stage.matryoshka and (student.kind not in _CUT or stage.train == "lexical"):
        what = "a hybrid" if stage.train == "lexical" else f"a {student.kind}"
        raise ValueError(f"matryoshka cuts one vector a text to its leading dimensions, and {what} student has no such")
    if stage.own_tokens and student.head != "vdr":
        raise ValueError("own_tokens is for head: vdr, whose texts always keep their own tokens; leave it out")
