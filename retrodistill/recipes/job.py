"""What a recipe names, loaded and checked before any work starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.collection import Qrels, leaks_between
from retrodistill.data.conversations import (
    Conversations,
    check_rewrites,
    load_conversations,
    load_rewrites,
    make_turns,
    with_rewrites,
)
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.evaluation.cost import CostConfig
from retrodistill.evaluation.evaluating import EvaluationConfig
from retrodistill.evaluation.examples import spread_out
from retrodistill.evaluation.measures import Grades, measures_within
from retrodistill.evaluation.systems import Task
from retrodistill.indexes.factory import empty_index
from retrodistill.indexes.faiss_index import FaissSettings, resolve_factory
from retrodistill.indexes.registry import get_kind
from retrodistill.quantizers.codes import factory_for, read_form
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.recipes.settings import ConversationSettings, Recipe
from retrodistill.recipes.stage_teachers import StageTeachers
from retrodistill.recipes.student_settings import StudentSettings, check_truncations
from retrodistill.recipes.students import kind_of_student
from retrodistill.training.scoring import check_recorded, stage_texts
from retrodistill.training.settings import StageSettings, TeacherSettings
from retrodistill.training.texts import training_queries
from retrodistill.training.training_data import TrainingData

MADE = "made"
_MADE_NOTE = (
    "the conversations were made by chaining {} of the collection's {} queries and dropping the words that were said "
    "before: their rewrites are perfect, and they are no conversations of people."
)


@dataclass(frozen=True)
class Questions:
    """The queries of a job.

    Attributes:
        collection: With the queries that students are asked.
        train: Training queries.
        test: Test queries.
        rewrites: What teachers are asked in the place of queries, by their ids; None where the same.
        notes: What a reader of the results should know.
    """

    collection: Collection
    train: Texts
    test: Texts
    rewrites: Texts | None
    notes: list[str]

    @property
    def excluded_queries(self) -> Texts:
        """Texts that must not be trained on: the test queries, and their rewrites."""
        if self.rewrites is None:
            return self.test
        better = with_rewrites(self.test, self.rewrites)
        return self.test + Texts.from_pairs((f"rewrite:{id_}", better[id_]) for id_ in better.ids)


def questions_of(recipe: Recipe, loaded: Collection, test_of: Callable[[Collection], Texts]) -> Questions:
    """The recipe's queries: none that trains is a test query, by id, by its text or by its rewrite's.

    Args:
        recipe: The recipe.
        loaded: Its collection.
        test_of: Gives the test queries of a collection.

    Raises:
        UserError: A split is lacking, or conversations and rewrites do not fit the collection.
    """
    collection, rewrites, notes = loaded, None, []
    if recipe.conversations:
        found = _conversations(recipe, recipe.conversations, loaded, test_of(loaded))
        collection, rewrites = found.of(loaded), found.rewrites
        if recipe.conversations.path == MADE:
            notes.append(_MADE_NOTE.format(len(found.raw), len(loaded.queries)))
        else:
            told = f"{len(found.raw)} queries of {found.conversations} conversations"
            notes.append(f"{told} in the place of the collection's; their rewrites stand for themselves.")
    elif recipe.rewrites:
        rewrites = load_rewrites(recipe.rewrites)
        notes.append(check_rewrites(rewrites, collection.queries, recipe.rewrites))
    test = test_of(collection)
    train, warning = training_queries(collection, recipe.split.train, test)
    if rewrites is not None:
        leaked = {
            leak.train_id for leak in leaks_between(with_rewrites(train, rewrites), with_rewrites(test, rewrites))
        }
        if leaked:  # whoever is asked them
            train = train.select([query for query in train.ids if query not in leaked])
            notes.append(f"{len(leaked)} training queries have the rewrite of a test query: they are dropped.")
        if not any(query in rewrites for query in train.ids):
            raise UserError("no training query has a rewrite: nothing is better about what the teacher is asked.")
    if recipe.conversations and recipe.conversations.teacher == "raw":
        rewrites = None
        notes.append("teachers were asked the conversations as the students are, not the rewrites: a control.")
    return Questions(collection, train, test, rewrites, [*([warning] if warning else []), *notes])


def _conversations(
    recipe: Recipe, settings: ConversationSettings, collection: Collection, test: Texts
) -> Conversations:
    if settings.path != MADE:
        return load_conversations(settings.path, history=settings.history, responses=settings.responses)
    train, _ = training_queries(collection, recipe.split.train, test)
    if not len(train):
        raise UserError("conversations: made chains training queries, and there are none; give a JSONL of turns.")
    turns = [turn for queries in (train, test) for turn in make_turns(queries, seed=recipe.seed)]
    return Conversations.from_turns(turns, history=settings.history, responses=settings.responses)


_RERANKED = 100  # candidates per member of an ensemble with a cross-encoder, where test queries are measured
_HELD_OUT = 300  # queries kept from training where nothing is judged: a fifth of them, at most so many
_UNJUDGED = (
    "{} has no relevance judgments, so quality is not measured; agreement and cost are, on {} of its {} queries, "
    "which are kept from training."
)


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names at hand.

    Attributes:
        recipe: The recipe.
        out: Where results go.
        collection: Documents, queries, judgments.
        train: Training queries, none of them a test query.
        test: Test queries.
        space: Encodes the documents of static students' indexes.
        teacher: Scores lists.
        notes: What a reader of the results should know.
        beside: An ensemble that is measured and does not teach.
        questions: Where the queries come from, and what the teacher is asked in their place.
        teachers: Teachers that stages name.
    """

    recipe: Recipe
    out: Path
    collection: Collection
    train: Texts
    test: Texts
    space: Encoder
    teacher: Ranker
    notes: list[str]
    beside: Ranker | None = None
    questions: Questions | None = None
    teachers: StageTeachers | None = None

    @property
    def teacher_test_queries(self) -> Texts:
        """The test queries as teachers are asked them: rewrites where there are."""
        rewrites = self.rewrites
        return self.test if rewrites is None else with_rewrites(self.test, rewrites)

    @property
    def rewrites(self) -> Texts | None:
        """What teachers are asked in the place of queries; None where the same."""
        return None if self.questions is None else self.questions.rewrites

    @cached_property
    def labels(self) -> Qrels:
        """Judgments of the training queries, of all splits but the one that is measured."""
        train = set(self.train.ids)
        return Qrels.from_rows(
            (row["query_id"], row["document_id"], row["relevance"])
            for split, judged in self.collection.qrels.items()
            if split != self.recipe.split.test
            for row in judged.table.to_pylist()
            if row["query_id"] in train
        )

    @property
    def split(self) -> str:
        """The test queries' split; ``unjudged`` where the collection has no judgments at all."""
        return self.recipe.split.test if self.collection.qrels else "unjudged"

    @cached_property
    def grades(self) -> Grades | None:
        """Judgments of the test queries; None where the collection has none at all."""
        return self.collection.relevance(self.split).to_dict() if self.collection.qrels else None

    @cached_property
    def space_answers(self) -> bool:
        """Whether the space's own model can encode the test queries: a file of vectors may lack them."""
        return not (self.space.is_recorded and len(self.space.missing(self.teacher_test_queries.texts, "query")))

    @property
    def space_teaches(self) -> bool:
        """Whether the teacher is the space's own model."""
        queries = self.teacher.queries if len(self.teacher.members) == 1 else None
        return queries is not None and queries.contract("query") == self.space.contract("query")

    @property
    def task(self) -> Task:
        """What systems are measured on."""
        return Task(self.collection, self.split, self.test, self.grades)

    @property
    def evaluation(self) -> EvaluationConfig:
        """How systems are measured: by BEIR's measures within the depth and the recipe's own."""
        settings = self.recipe.evaluation
        measures = list(dict.fromkeys([*measures_within(settings.depth), *settings.measures]))
        place = self.recipe.collection if settings.memory else None
        cost = CostConfig(settings.threads, settings.latency_queries, place=place) if settings.latency_queries else None
        return EvaluationConfig(self.recipe.split.test, measures, settings.depth, cost=cost)

    @property
    def training_data(self) -> TrainingData:
        """What the stages of a student that searches the space draw on."""
        return TrainingData(
            self.collection,
            self.train,
            self.teacher,
            self.space,
            self.out,
            self.recipe.seed,
            excluded_queries=self.test if self.questions is None else self.questions.excluded_queries,
            rewrites=self.rewrites,
            labels=self.labels if _reads_labels(self.recipe) else None,
            labeler=self.beside,
        )


def open_job(recipe: Recipe, out: str | os.PathLike[str]) -> Job:
    """Load and check all that a recipe names; nothing is written.

    Raises:
        UserError: Something is missing or does not fit.
    """
    questions = questions_of(
        recipe, load_collection(recipe.collection), lambda collection: _test_queries(collection, recipe.split.test)
    )
    collection, train, test = questions.collection, questions.train, questions.test
    notes = [*collection.warnings, *questions.notes]
    if not collection.qrels:
        notes = [*collection.warnings, _UNJUDGED.format(collection.name, len(test), len(collection.queries))]
    with quiet_libraries():
        space = load_encoder(recipe.document_encoder, DENSE).bind(collection)
        teacher = _teacher(recipe, recipe.teacher, space)
        beside = _teacher(recipe, recipe.ensemble, space) if recipe.ensemble else None
        members = teacher.members
        known = {one.model: member for one, member in zip(recipe.teacher, members, strict=False)}
        teachers = StageTeachers(recipe.teacher, recipe.fusion, space, recipe.document_encoder, recipe.students, known)
        for stage in _stages(recipe):
            teachers.load(stage)
    job = Job(recipe, Path(out), collection, train, test, space, teacher, notes, beside, questions, teachers)
    _check(job)
    _check_vectors(job)
    return job


def _test_queries(collection: Collection, split: str) -> Texts:
    """The split's queries; of a collection without any judgment, some of its queries, evenly drawn.

    Raises:
        UserError: The split has no judgments, or there is no query at all.
    """
    if collection.qrels:
        asked = collection.split(split)
        collection.relevance(split)
        return asked
    asked = collection.split("all")
    return asked.select(spread_out(asked.ids, min(_HELD_OUT, max(1, len(asked) // 5))))


def _check_vectors(job: Job) -> None:
    """Where the space is a file, what its students learn from must be in it."""
    if job.space.is_recorded:
        for student in job.recipe.students.values():
            for stage in student.stages:
                if stage.aligns or stage.batches == "topics":
                    job.space.require(
                        job.training_data.teacher_queries(stage_texts(stage, job.training_data).texts), "query"
                    )
        if not job.space_answers:
            job.notes.append(f"{job.space.name} has no vectors for the test queries; the teacher is not in the table.")


def _teacher(recipe: Recipe, named: list[TeacherSettings], space: Encoder) -> Ranker:
    members = [
        load_ranker(space if one.model == recipe.document_encoder else one.model, needs="score") for one in named
    ]
    if not members:
        return load_ranker(space)
    if len(members) == 1:
        return members[0]
    slow = not all(member.is_cheap for member in members)
    depth = _RERANKED if slow else recipe.evaluation.depth
    return Ensemble(members, [one.weight for one in named], recipe.fusion, depth=depth)


def _check_control(student: StudentSettings) -> None:
    listed = [stage for stage in student.stages if stage.needs_lists and stage.positives == "source_document"]
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
                f"learning a quantizer takes at least {form.vectors_to_train} documents, there are {documents}; set "
                "index.factory to one with 4-bit codes, e.g. 'OPQ16,PQ16x4', or leave index.learn out."
            )
        return
    _check_options(recipe)
    check_truncations(recipe, space.dimension)
    faiss = cast("FaissSettings", index.of(get_kind("faiss")))
    for cut in (index.truncate, *recipe.evaluation.truncations):
        width = min(cut or space.dimension, space.dimension)
        factory, parameters = resolve_factory(faiss, documents, width)
        empty_index(factory, width, documents, parameters)


def _check_options(recipe: Recipe) -> None:
    """Each option has to fit the index of at least one student; without students all go to FAISS."""
    kinds = {kind_of_student(student).index for student in recipe.students.values()} - {None}
    recipe.index.check([get_kind(str(name)) for name in sorted(kinds or {"faiss"}, key=str)])


def learned_factory(recipe: Recipe, space: Encoder) -> str:
    """The factory that learning starts from: as written, or OPQ of the bytes wanted (16 by default)."""
    written = recipe.index.factory not in ("Flat", "auto")
    return recipe.index.factory if written else factory_for(recipe.index.bytes or 16, space.dimension)


def _check(job: Job) -> None:
    """What would otherwise fail after long work."""
    _check_index(job.recipe, job.collection, job.space)
    for student in job.recipe.students.values():
        _check_control(student)
    for stage in _stages(job.recipe):
        if stage.needs_labels:
            job.training_data.qrels()
        if job.teachers is None or job.teachers.needs_students(stage):
            continue
        teacher = job.teachers.data_of(stage, job.training_data).teacher
        check_recorded(teacher, job.collection, job.train, [stage])
        if stage.needs_lists and stage.candidates.depth == "all":
            teacher.require_corpus_scores()


def _stages(recipe: Recipe) -> list[StageSettings]:
    stages = [stage for student in recipe.students.values() for stage in student.stages]
    return stages if recipe.index.encoder is None else [*stages, recipe.index.encoder]


def _reads_labels(recipe: Recipe) -> bool:
    return any(stage.needs_labels for stage in _stages(recipe))
