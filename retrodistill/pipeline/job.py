"""What a recipe names, loaded and checked before any work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from retrodistill.collections import Collection, Texts, load_collection
from retrodistill.errors import UserError
from retrodistill.indexes.building import resolved
from retrodistill.indexes.factory import empty_index
from retrodistill.models.encoder import Encoder, load_encoder
from retrodistill.models.loading import quiet_libraries
from retrodistill.models.vector_files import VectorFile, bound
from retrodistill.quantisers.start import factory_for, read_form
from retrodistill.recipe import Recipe, StudentSettings, TeacherSettings
from retrodistill.teachers.corpus_scores import require_corpus_teacher
from retrodistill.teachers.cross_encoder import CrossEncoderTeacher
from retrodistill.teachers.ensemble import Ensemble
from retrodistill.teachers.loading import load_teacher
from retrodistill.teachers.protocol import Teacher
from retrodistill.training.material import Material, check_recorded
from retrodistill.training.texts import training_queries

_RERANKED = 100  # candidates per member of an ensemble with a cross-encoder, where test queries are measured


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names at hand.

    Attributes:
        recipe: The recipe.
        out: Where results go.
        collection: Documents, queries, judgements.
        train: Training queries, none of them a test query.
        test: Test queries.
        space: Encodes the documents of static students' indexes.
        teacher: Scores lists.
        notes: What a reader of the results should know.
        beside: An ensemble that is measured and does not teach.
    """

    recipe: Recipe
    out: Path
    collection: Collection
    train: Texts
    test: Texts
    space: Encoder
    teacher: Teacher
    notes: list[str]
    beside: Teacher | None = None

    @property
    def material(self) -> Material:
        """What the stages of a student that searches the space draw on."""
        return Material(
            self.collection, self.train, self.teacher, self.space, self.out, self.recipe.seed, barred=self.test
        )


def open_job(recipe: Recipe, out: str | os.PathLike[str]) -> Job:
    """Load and check all that a recipe names; nothing is written.

    Raises:
        UserError: Something is missing or does not fit.
    """
    collection = load_collection(recipe.collection)
    test = collection.split(recipe.split.test)
    collection.relevance(recipe.split.test)
    train, warning = training_queries(collection, recipe.split.train, test)
    notes = [*collection.warnings, *([warning] if warning else [])]
    with quiet_libraries():
        space = bound(load_encoder(recipe.space), collection)
        teacher = _teacher(recipe, recipe.teacher, space)
        beside = _teacher(recipe, recipe.ensemble, space) if recipe.ensemble else None
    _check(recipe, collection, train, space, teacher)
    job = Job(recipe, Path(out), collection, train, test, space, teacher, notes, beside)
    _check_vectors(job)
    return job


def _check_vectors(job: Job) -> None:
    """Where the space is a file, what its students learn from must be in it."""
    if isinstance(job.space, VectorFile):
        for student in job.recipe.students.values():
            for stage in student.stages:
                if stage.aligns:
                    job.space.require(job.material.texts(stage).texts, "query")
        if not can_answer(job):
            job.notes.append(f"{job.space.name} has no vectors for the test queries; the teacher is not in the table.")


def can_answer(job: Job) -> bool:
    """Whether the space's own model can be asked the test queries."""
    return not (isinstance(job.space, VectorFile) and len(job.space.missing(job.test.texts, "query")))


def _teacher(recipe: Recipe, named: list[TeacherSettings], space: Encoder) -> Teacher:
    members = [load_teacher(space if one.model == recipe.space else one.model) for one in named]
    if not members:
        return load_teacher(space)
    if len(members) == 1:
        return members[0]
    slow = any(isinstance(member, CrossEncoderTeacher) for member in members)
    depth = _RERANKED if slow else recipe.evaluation.depth
    return Ensemble(members, [one.weight for one in named], recipe.fusion, depth=depth)


def _check_control(student: StudentSettings) -> None:
    listed = [stage for stage in student.stages if stage.needs_lists]
    if student.control == "contrastive" and any(not (one.texts.titles or one.texts.sentences) for one in listed):
        raise UserError(
            "control: contrastive learns from pseudo-queries and their own documents; set texts.titles or "
            "texts.sentences, or control: untrained."
        )


def _check_index(recipe: Recipe, collection: Collection, space: Encoder) -> None:
    index, documents = recipe.index, len(collection.documents)
    if index.learn:
        form = read_form(learned_factory(recipe, space), space.dimension)
        if documents < form.vectors_to_train:
            raise UserError(
                f"learning a quantiser takes at least {form.vectors_to_train} documents, there are {documents}; set "
                "index.factory to one with 4-bit codes, e.g. 'OPQ16,PQ16x4', or leave index.learn out."
            )
        return
    width = min(index.truncate or space.dimension, space.dimension)
    factory, parameters = resolved(index.faiss, documents, width)
    empty_index(factory, width, documents, parameters)


def learned_factory(recipe: Recipe, space: Encoder) -> str:
    """The factory that learning starts from: as written, or OPQ of the bytes wanted (16 by default)."""
    written = recipe.index.factory not in ("Flat", "auto")
    return recipe.index.factory if written else factory_for(recipe.index.bytes or 16, space.dimension)


def _check(recipe: Recipe, collection: Collection, train: Texts, space: Encoder, teacher: Teacher) -> None:
    """What would otherwise fail after long work."""
    _check_index(recipe, collection, space)
    for student in recipe.students.values():
        _check_control(student)
        check_recorded(teacher, collection, train, student.stages)
        if any(stage.needs_lists and stage.candidates.depth == "all" for stage in student.stages):
            require_corpus_teacher(teacher)
