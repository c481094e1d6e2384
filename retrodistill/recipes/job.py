"""What a recipe names, loaded and checked before any work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import processes
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.collection import Qrels, judgments_of
from retrodistill.data.conversations import (
    Conversations,
    check_rewrites,
    load_conversations,
    load_rewrites,
    make_turns,
    with_rewrites,
)
from retrodistill.data.leaks import ExcludedQueries, without_leaks
from retrodistill.data.parallel import Parallel, load_parallel
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.data.texts import GENERATED
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.reading import length_warning, warn_of_length
from retrodistill.encoders.remote_code import require_trusted
from retrodistill.evaluation.cost import CostConfig
from retrodistill.evaluation.evaluating import EvaluationConfig
from retrodistill.evaluation.measures import measures_within
from retrodistill.evaluation.results import WARNING
from retrodistill.evaluation.systems import Task, own_documents_note, passages_note
from retrodistill.indexes.factory import empty_index
from retrodistill.indexes.faiss_index import FaissSettings, resolve_factory
from retrodistill.indexes.registry import get_kind
from retrodistill.quantizers.codes import factory_for, read_form
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.recipes.settings import ConversationSettings, Recipe, check_truncations
from retrodistill.recipes.splits import Queries, queries_of_split, split_queries
from retrodistill.recipes.stage_teachers import StageTeachers
from retrodistill.recipes.student_settings import control_of
from retrodistill.training.scoring import check_teacher, stage_texts
from retrodistill.training.settings import StageSettings, TeacherSettings, TextSettings
from retrodistill.training.texts import TrainingTexts, training_queries, training_texts
from retrodistill.training.tracking import check_trackers
from retrodistill.training.training_data import TrainingData

MADE = "made"  # in the place of a path: conversations made from the collection's queries
_RERANKED = 100  # candidates per member of an ensemble that a cross-encoder makes too slow for the whole depth


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names loaded."""

    recipe: Recipe
    out: Path  # the folder of the results
    collection: Collection  # with the queries that students get
    train: Texts  # none of them is barred, or nearly, by its id, its text, or its rewrite
    test: Texts
    barred: Texts  # what nothing is trained on: the test queries, and more where others are measured on, and rewrites
    parallel: Parallel | None  # translations to train on; none is a test query, or nearly
    rewrites: Texts | None  # what teachers get instead of queries, by the queries' ids; None if they get the same
    notes: list[str]  # what a reader of the results should know
    space: Encoder  # the document encoder, whose vectors static and dense students search
    bm25: BM25Ranker  # the recipe's lexical search, `auto` resolved
    teacher: Ranker
    ensemble: Ranker | None  # it is measured and does not teach
    teachers: StageTeachers

    @property
    def rewritten_as(self) -> str:
        """What the queries are that teachers get in place of the students'."""
        return self.recipe.conversations.teacher[0] if self.recipe.conversations else "rewrites"

    @property
    def teacher_test_queries(self) -> Texts:
        """The test queries as teachers get them."""
        return self.test if self.rewrites is None else with_rewrites(self.test, self.rewrites)

    @cached_property
    def space_answers(self) -> bool:
        """Whether the document encoder can encode the test queries; a file of vectors may not contain them."""
        return not (self.space.is_recorded and len(self.space.missing(self.teacher_test_queries.texts, "query")))

    @property
    def space_teaches(self) -> bool:
        """Whether the document encoder is the teacher."""
        queries = self.teacher.queries if len(self.teacher.members) == 1 else None
        return queries is not None and queries.contract("query") == self.space.contract("query")

    @cached_property
    def task(self) -> Task:
        """What systems are measured on; the split is called ``unjudged`` if the collection has no judgments."""
        split = self.recipe.split.test if self.recipe.split.test in self.collection.qrels else "unjudged"
        grades = None if split == "unjudged" else self.collection.relevance(split).to_dict()
        return Task(self.collection, split, self.test, grades)

    @property
    def evaluation(self) -> EvaluationConfig:
        """How systems are measured: by BEIR's measures up to the recipe's depth, and by the recipe's own."""
        settings = self.recipe.evaluation
        measures = list(dict.fromkeys([*measures_within(settings.depth), *settings.measures]))
        place = self.recipe.collection if settings.memory else None
        cost = CostConfig(settings.threads, settings.latency_queries, place=place) if settings.latency_queries else None
        return EvaluationConfig(self.recipe.split.test, measures, settings.depth, cost=cost)

    @property
    def training_qrels(self) -> list[Qrels]:
        """Judgments of documents, of all splits except the test split."""
        return [judged for split, judged in self.collection.qrels.items() if split != self.recipe.split.test]

    @cached_property
    def training_data(self) -> TrainingData:
        """What the stages of students read. Neither test queries nor their rewrites are trained on."""
        labels = self.collection.passage_labels(judgments_of(self.train, self.training_qrels))
        return TrainingData(
            self.collection,
            self.train,
            self.teacher,
            self.space,
            self.out,
            self.recipe.seed,
            excluded=ExcludedQueries(self.barred, self.recipe.split.leaks),
            rewrites=self.rewrites,
            parallel=self.parallel,
            labels=labels,
            labeler=self.ensemble,
            bm25=self.bm25.name,
        )


def open_job(recipe: Recipe, out: str | os.PathLike[str]) -> Job:
    """Load and check everything that a recipe names; nothing is written, and what does not fit is a `UserError`."""
    check_trackers(recipe.tracking)
    lexical = BM25Ranker(recipe.bm25 or "")
    require_trusted(recipe.trust_remote_code, f"recipe {recipe.name}")
    queries, versions = _queries(recipe)
    first, *others = versions or ["raw"]
    rewrites = versions.get(first) if first != "raw" else None
    collection, notes = replace(queries.collection, same_id=recipe.evaluation.same_id), queries.notes
    parallel = _parallel(recipe, queries.barred, notes) if recipe.parallel else None
    bm25 = lexical.of(collection)
    if warning := bm25.warning(collection):
        notes.append(f"{WARNING}{warning}")
    if own := own_documents_note(collection, queries.test):
        notes.append(own)
    with quiet_libraries():
        space = load_encoder(recipe.document_encoder, DENSE).bind(collection)
        teachers = StageTeachers(recipe, space, bm25.name, {name: versions[name] for name in others})
        teacher = _teacher(teachers, recipe.teacher)
        ensemble = _teacher(teachers, recipe.ensemble) if recipe.ensemble else None
        for stage in _stages(recipe):
            teachers.load(stage)
    encoders = {space.name: space}
    encoders |= {member.documents.name: member.documents for member in teacher.members if member.documents is not None}
    for encoder in encoders.values():
        warn_of_length(encoder, collection)
        notes += filter(None, [length_warning(encoder, collection)])
    folder = path_of(out)
    job = Job(
        recipe,
        folder,
        collection,
        queries.train,
        queries.test,
        queries.barred,
        parallel,
        rewrites,
        notes,
        space,
        bm25,
        teacher,
        ensemble,
        teachers,
    )
    _check(job)
    return job


def _parallel(recipe: Recipe, barred: Texts, notes: list[str]) -> Parallel:
    """The recipe's parallel texts, without pairs that would tell a test query."""
    given = load_parallel(recipe.parallel or "")
    parallel, leaked = given.without_leaks(ExcludedQueries(barred, recipe.split.leaks))
    if not len(parallel):
        raise UserError(f"{recipe.parallel}: all {len(given)} pairs are test queries, or nearly; give other texts.")
    left_out = f"; {leaked} are left out, which are test queries, or nearly" if leaked else ""
    notes.append(f"students also learned {len(parallel)} translations of {recipe.parallel}{left_out}.")
    return parallel


def learned_factory(recipe: Recipe, space: Encoder) -> str:
    """The factory that index.learn starts from: the recipe's, or that of its bytes per document and bits per code."""
    is_written = recipe.index.factory not in ("Flat", "auto")
    if is_written:
        return recipe.index.factory
    return factory_for(recipe.index.bytes, space.dimension, bits=recipe.index.bits or 8)


def texts_of_index(job: Job, settings: TextSettings) -> TrainingTexts:
    """The queries and pseudo-queries that index.learn learns from; `settings` are those of index.texts, or fewer."""
    queries = job.train if settings.queries else job.train.select([])
    return training_texts(
        job.collection, queries, **settings.of_documents, seed=job.recipe.seed, excluded=job.training_data.excluded
    )


def _queries(recipe: Recipe) -> tuple[Queries, dict[str, Texts]]:
    """The queries of a job, and what teachers get in their place: versions by name, none where they get the same."""
    loaded = collection = load_collection(recipe.collection, passages=recipe.passages)
    versions: dict[str, Texts] = {}
    barred: dict[str, Texts] = {}  # versions in which no test query is trained on, no matter who reads them
    notes: list[str] = []
    if recipe.conversations:
        conversations = _conversations(recipe, recipe.conversations, loaded)
        collection, count = conversations.of(loaded), len(conversations.raw)
        versions = _versions(recipe.conversations, conversations, loaded)
        barred = {"rewrite": conversations.rewrites, "utterance": conversations.utterances}
        if recipe.conversations.path == MADE:
            notes.append(
                f"the conversations are artificial: {count} of the collection's {len(loaded.queries)} queries were "
                "chained, and words of earlier turns were dropped, so their rewrites are perfect."
            )
        else:
            total = conversations.conversations
            notes.append(f"{count} queries of {total} conversations replace the collection's queries.")
    elif recipe.rewrites:
        versions["rewrites"] = barred["rewrite"] = load_rewrites(recipe.rewrites)
        notes.append(check_rewrites(versions["rewrites"], collection.queries, recipe.rewrites))
    queries = split_queries(collection, recipe.split, recipe.seed)
    notes, train, all_barred = [*queries.notes, *notes], queries.train, queries.barred
    for name, texts in barred.items():
        rewritten = with_rewrites(queries.barred, texts)
        kept, leaks = without_leaks(with_rewrites(train, texts), ExcludedQueries(rewritten, recipe.split.leaks))
        all_barred += Texts.from_pairs((f"{GENERATED}{name}:{id_}", text) for id_, text in rewritten.items())
        if leaks:
            train = train.select(kept.ids)
            notes.append(f"{len(leaks)} training queries are left out: their {name} is near that of a test query.")
    if recipe.rewrites and not any(query in versions["rewrites"] for query in train.ids):
        raise UserError("no training query has a rewrite; give rewrites of training queries, or remove rewrites.")
    if recipe.conversations and recipe.conversations.teacher == ["raw"]:
        notes.append("as a control, teachers got the conversations as the students do, not the rewrites.")
    elif recipe.conversations and recipe.conversations.teacher != ["rewrites"]:
        notes.append(f"the teacher got the {' and the '.join(versions)} of the conversations.")
    of_collection = [*queries.collection.warnings, *filter(None, [passages_note(queries.collection)])]
    return replace(queries, train=train, barred=all_barred, notes=[*of_collection, *notes]), versions


def _conversations(recipe: Recipe, settings: ConversationSettings, collection: Collection) -> Conversations:
    if settings.path != MADE:
        return load_conversations(settings.path, history=settings.history, responses=settings.responses)
    if not len(collection.queries):
        raise UserError("conversations: made chains queries, and there are none; give a JSONL of turns.")
    test = queries_of_split(collection, recipe.split.test)
    train, _ = training_queries(collection, recipe.split.train, ExcludedQueries(test, recipe.split.leaks))
    if not len(train):
        raise UserError("conversations: made chains training queries, and there are none; give a JSONL of turns.")
    turns = [turn for queries in (train, test) for turn in make_turns(queries, seed=recipe.seed)]
    return Conversations.from_turns(turns, history=settings.history, responses=settings.responses)


def _versions(settings: ConversationSettings, conversations: Conversations, collection: Collection) -> dict[str, Texts]:
    """What the teacher gets, by name."""
    versions: dict[str, Texts] = {}
    for name in settings.teacher:
        if name == "expansions":
            versions[name] = conversations.expansions(collection.documents.column, settings.expansion_words)
        elif name == "utterances":
            versions[name] = conversations.utterances
        elif name == "rewrites":
            lacking = [id_ for id_ in conversations.raw.ids if id_ not in conversations.rewrites]
            if lacking:
                raise UserError(
                    f"{settings.path}: {len(lacking)} turns after the first of a conversation have no 'rewrite' "
                    f"({sample_of(lacking)}); give them one, or set conversations.teacher to [expansions, utterances]."
                )
            versions[name] = conversations.rewrites
        else:
            versions[name] = conversations.raw
    return versions


def _teacher(teachers: StageTeachers, named: list[TeacherSettings]) -> Ranker:
    """The document encoder, a model, or an ensemble of several."""
    members = [teachers.model(teacher.model) for teacher in named] or [load_ranker(teachers.space)]
    weights = [teacher.weight for teacher in named] or [1.0]
    members, weights = teachers.of_versions(members, weights)
    if len(members) == 1:
        return members[0]
    recipe = teachers.recipe
    depth = recipe.evaluation.depth if all(member.is_cheap for member in members) else _RERANKED
    return Ensemble(members, weights, recipe.fusion, depth=depth)


def _stages(recipe: Recipe) -> list[StageSettings]:
    students = [each for student in recipe.students.values() for each in (student, control_of(student))]
    stages = [stage for student in students if student is not None for stage in student.stages]
    return stages if recipe.index.encoder is None else [*stages, recipe.index.encoder]


def _check(job: Job) -> None:
    """Checks of everything that would otherwise fail after long work."""
    _check_index(job.recipe, job.collection, job.space)
    settings = [*(stage.texts for stage in _stages(job.recipe)), job.recipe.index.texts]
    for generated in dict.fromkeys(each.generated for each in settings if each.generated is not None):
        load_generated(generated, job.collection)  # refuses what is not of these documents
    for stage in _stages(job.recipe):
        if stage.needs_labels:
            job.training_data.qrels()
        if job.teachers.needs_students(stage):
            continue
        teacher = job.teachers.data_of(stage, job.training_data).teacher
        check_teacher(teacher, job.collection, job.train, [stage])
    if not job.space.is_recorded:
        return
    # A file of vectors must contain what its students learn from.
    for stage in (stage for student in job.recipe.students.values() for stage in student.stages):
        if stage.aligns or stage.batches == "topics":
            texts = stage_texts(stage, job.training_data).texts
            job.space.require(job.training_data.teacher_queries(texts), "query")
    if not job.space_answers:
        job.notes.append(f"{job.space.name} has no vectors for the test queries; the teacher is not in the table.")


def _check_index(recipe: Recipe, collection: Collection, space: Encoder) -> None:
    index, documents = recipe.index, len(collection.documents)
    index.columns_of(collection)  # refuses unknown fields
    if index.encoder is not None and processes() > 1:
        raise UserError(
            "index.encoder trains in one process; train the students under torchrun without index.encoder, then run "
            "the recipe with it and without torchrun."
        )
    if index.learn:
        form = read_form(learned_factory(recipe, space), space.dimension)
        if documents < form.vectors_to_train:
            raise UserError(
                f"learning a quantizer needs at least {form.vectors_to_train} documents, and there are {documents}; "
                "set index.factory to one with 4-bit codes, e.g. 'OPQ16,PQ16x4', or remove index.learn."
            )
        return
    # Each option has to fit the index of at least one student. Re-rankers have none.
    names = sorted({student.kind.index for student in recipe.students.values() if student.kind.index} or {"faiss"})
    kinds = [index.kind_for(get_kind(name).encoders) for name in names]
    index.check(kinds)
    check_truncations(recipe, space.dimension)
    faiss = cast("FaissSettings", index.of(get_kind("faiss")))
    for cut in (index.truncate, *recipe.evaluation.truncations):
        width = min(cut or space.dimension, space.dimension)
        factory, parameters = resolve_factory(faiss, documents, width)
        empty_index(factory, width, documents, parameters)
