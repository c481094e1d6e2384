"""Plan a recipe without running it: the steps that are left, with their time, memory and disk.

Nothing of the job is trained or stored. Time comes from rates that earlier runs on this machine left in the cache, or
that are measured now: on up to 64 of the texts that a step embeds, on 32 of the pairs that a cross-encoder scores, and
on a few steps of each stage's training (`retrodistill.recipes.pace`). Memory and disk come from shapes
(`retrodistill.recipes.sizes`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retrodistill.candidates.samplers import random_documents
from retrodistill.candidates.selection import pairs_within
from retrodistill.core.cache import throw_away_cache
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import muted
from retrodistill.core.spending import Bill
from retrodistill.core.stores import text_keys
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.data.texts import Texts
from retrodistill.encoders.adapters import LoraShape
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST, Role, encode_with, tokens_per_pass
from retrodistill.encoders.embeddings import seconds_to_embed, store_of
from retrodistill.encoders.names import parse_model_name
from retrodistill.rankers.analyzers import load_analyzer
from retrodistill.rankers.bi_encoder import HELD
from retrodistill.recipes import sizes
from retrodistill.recipes.job import Job, open_job, texts_of_index
from retrodistill.recipes.loading import load_recipe
from retrodistill.recipes.measuring import index_needs, index_seconds, learning_steps, measuring_seconds, ranking_rows
from retrodistill.recipes.pace import repeated, stage_pace, start_model
from retrodistill.recipes.resources import Machine, Needs, Plan, Step, held_memory, joined
from retrodistill.recipes.stage_teachers import finished_manifest, manifest_after_stage
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import work_folder
from retrodistill.recipes.systems import MADE_FROM, planned_variants, students_to_train
from retrodistill.students.registry import weights_to_start_from
from retrodistill.training.prepared import Prepared, held_out_rows, training_rows
from retrodistill.training.scoring import candidate_pairs, candidate_sources, scores_file, stage_texts
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, TextSettings, is_student, parse_student
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.trainer import optimizer_steps
from retrodistill.training.training_data import TrainingData

_SAMPLE = 64  # texts whose candidates are counted
_PAIRS = 32  # pairs that measure an untrained student that scores pairs
FEWER_DOCUMENTS = "take a smaller collection, or a document encoder with fewer dimensions"
FEWER_TEXTS = "set texts.limit or candidates.depth lower"
FEWER_IN_A_STEP = "set training.batch_size, texts.limit, or candidates.depth lower, with candidates.shared for more"
SMALLER_STUDENT = "take a student with fewer layers or dimensions"
SMALLER_INDEX = "set index.factory to a smaller one, such as SQ8, or evaluation.depth lower"


def plan_recipe(recipe: str | os.PathLike[str], out: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Plan:
    """The steps of a recipe that are left, each with items, seconds, disk, and peak memory; nothing of it is done.

    Raises:
        UserError: As `run_recipe`; also what would not fit in memory or on disk.
    """
    settings = load_recipe(recipe, overrides)
    with encode_with(settings.encoding):
        started = time.perf_counter()
        job = open_job(settings, out)
        loaded = Step("load models and texts", seconds=time.perf_counter() - started, phase="load")
        check_job(job)
        plan = _plan(job, is_timed=True)
        return replace(plan, steps=[loaded, *plan.steps])


def check_job(job: Job) -> None:
    """Refuse, before anything is computed, a job that would not fit in memory or on disk."""
    try:
        _plan(job, is_timed=False, counts_texts=False).check()
    except UserError:  # bounds of the texts do not fit, which the texts may
        _plan(job, is_timed=False).check()


def _plan(job: Job, *, is_timed: bool, counts_texts: bool = True) -> Plan:
    planner = _Planner(job, is_timed=is_timed, counts_texts=counts_texts)
    return Plan(list(planner.steps()), Machine.now(job.out))


class _Planner:
    """Makes the steps of a job. Without times, nothing is encoded.

    Gathering a stage's texts and looking texts up in a store take seconds, so that without `counts_texts` the numbers
    are bounds.
    """

    def __init__(self, job: Job, *, is_timed: bool, counts_texts: bool) -> None:
        self.job, self.is_timed, self.counts_texts = job, is_timed, counts_texts
        self.held = held_memory()
        self.documents = len(job.collection.documents)
        self.corpus = sizes.strings(job.collection.documents)
        self.tokens = sizes.longest_in_batch(job.collection.documents)
        self._planned: dict[str, np.ndarray] = {}  # keys of texts that earlier steps embed, by encoder and role
        self._models: dict[str, Any] = {}  # by the settings that decide them
        self._texts: dict[str, tuple[TrainingTexts, int]] = {}
        self._has_started = False
        self._loaded = 0.0  # bytes of students, which are loaded when all are trained
        self._kept = 0.0  # bytes of students after each of their stages, which are on disk until the job is done
        # Stages that several students share, by fingerprint, and stages with the same pairs: the first one of each.
        self._trained: dict[str, str] = {}
        self._scored: dict[str, str] = {}

    def steps(self) -> Iterator[Step]:
        """The steps in the order in which they are done."""
        job, recipe = self.job, self.job.recipe
        space = job.space.name
        embedding = self._embed(f"embed documents with {space}", job.space, job.collection.documents, "document")
        yield replace(embedding, phase="learn") if recipe.index.learn and not recipe.students else embedding
        systems: list[tuple[str, StudentSettings]] = []
        indexes: list[tuple[str, StudentSettings]] = []
        for name, student, _ in students_to_train(recipe):
            variants = planned_variants(job, name, student)
            manifest = finished_manifest(student, job.training_data, job.teachers)
            is_done = manifest.matches(job.out / "students" / name, STUDENT_MANIFEST)
            systems += [(each, student) for each in (name, *variants)]
            if student.kind.can_search and not (recipe.evaluation.exhaustive and student.kind.has_own_documents):
                names = [each for each in (name, *variants) if not (is_done and self._is_built(each))]
                indexes += [(each, student) for each in names]
            if self.is_timed and not is_done:
                yield from self._start(name, student)
            if is_done:
                files = (job.out / "students" / name).rglob("*")
                self._loaded += sum(file.stat().st_size for file in files if file.is_file())
                if student.stages:  # otherwise it is a control before training
                    yield Step(f"{name}: already distilled")
                continue
            size = sizes.FLOAT * sizes.parameters(self._model(student), whole=True).all
            self._loaded += size
            if student.stages:
                yield from self._distilling(name, student)
            needs = Needs(self.held + 2 * size, out=size, scratch=self._kept, advice=SMALLER_STUDENT)
            yield Step(f"{name}: save", 1, "students", needs=needs)
            for variant in variants:
                yield Step(f"{variant}: also measured")
        if recipe.index.learn:
            yield from self._learning(recipe.index.texts)
        built = [job.out / "indexes" / name for name, _ in systems if self._is_built(name)]
        held = float(sum(file.stat().st_size for folder in built for file in folder.iterdir()))
        if systems:
            index = self._index(indexes)
            held += index.needs.out
            yield index
        yield self._measuring(systems, held)

    def _start(self, name: str, student: StudentSettings) -> Iterator[Step]:
        """What students that are made from the document encoder encode first; they share it."""
        tokens, seconds = student.kind.start_left(student, self.job.training_data)
        if tokens and not self._has_started:
            self._has_started = True
            memory = self.held + sizes.FLOAT * tokens * self.job.space.dimension
            cache = sizes.FLOAT * tokens * self.job.space.dimension
            yield Step(f"{name}: token table", tokens, "tokens", seconds, Needs(memory, cache=cache))

    def _distilling(self, name: str, student: StudentSettings) -> Iterator[Step]:
        """A student's stages, without those that an earlier student shares."""
        job = self.job
        if (job.out / "students" / name / STUDENT_MANIFEST).exists():
            yield Step(f"{name}: its settings or inputs have changed, so it is trained again")
        for number, stage in enumerate(student.stages, start=1):
            title = f"{name}, stage {number}"
            fingerprint = manifest_after_stage(student, job.training_data, number, job.teachers).fingerprint
            first = self._trained.setdefault(fingerprint, title)
            # Everything that determines a stage's texts and pairs, which are made once per key.
            pairs = stage.model_dump_json(include={"teacher", "labels", "texts", "candidates", "positives"})
            pairs += str((stage.aligns, stage.needs_lists, stage.needs_own_document, student.bought_before(number)))
            same_pairs = self._scored.setdefault(pairs, title)
            if first != title:
                yield Step(f"{title}: the same as {first}")
            else:
                yield from self._stage(name, student, number, same_pairs)

    def _embed(self, title: str, encoder: Any, texts: Texts, role: Role, size: int | None = None) -> Step:
        """The step that embeds texts which no earlier step embeds; `size` is their number if only some are given."""
        count, seconds = self._left_to_embed(encoder, texts, role) if self.counts_texts else (len(texts), 0.0)
        size = len(texts) if size is None else size
        scale = size / max(1, len(texts))
        count = round(count * scale)
        tokens = sizes.characters(texts) / sizes.CHARACTERS
        vectors = sizes.stored_vectors(encoder, size, tokens)
        memory = self.held + scale * sizes.strings(texts) + self._activations(encoder, texts, size)
        if size <= HELD or encoder.kind == "sparse":  # a larger number of dense vectors is read in blocks
            memory += vectors
        needs = Needs(memory, cache=sizes.stored_vectors(encoder, count, tokens), advice=FEWER_DOCUMENTS)
        bill = encoder.bill(texts.column, role).times(count / max(1, len(texts)))
        return Step(title, count, "texts", seconds, needs, bill=bill)

    def _activations(self, encoder: Any, texts: Texts, size: int) -> float:
        """Bytes of a forward pass of an encoder in this machine's memory; `size` is the number of texts."""
        shape = None if not encoder.has_weights else sizes.Shape.of(encoder.model)
        if shape is None or not sizes.is_in_memory(encoder.model.device):
            return 0.0
        longest, chosen = sizes.longest_in_batch(texts), self.job.recipe.encoding.batch_size
        of_tokens = tokens_per_pass(encoder.model.device) // (2 + min(longest, shape.longest))
        at_once = max(1, int(of_tokens)) if chosen == "auto" else chosen
        return shape.batch(min(at_once, size), longest, is_trained=False)

    def _left_to_embed(self, encoder: Any, texts: Texts, role: Role) -> tuple[int, float]:
        """Number of texts that neither the store has nor earlier steps embed, and seconds, 0 without times."""
        key = f"{role} {encoder.fingerprint(role)}"
        keys, planned = text_keys(texts.texts), self._planned.get(key, np.zeros(0, dtype=np.uint64))
        new = (
            texts.texts
            if not len(planned)
            else [text for text, is_old in zip(texts.texts, np.isin(keys, planned), strict=True) if not is_old]
        )
        self._planned[key] = np.union1d(planned, keys)
        if self.is_timed:
            return seconds_to_embed(encoder, new, role)
        return len(store_of(encoder, role).missing(new)) if encoder.needs_store(role) else 0, 0.0

    def _stage(self, name: str, student: StudentSettings, number: int, same_pairs: str) -> Iterator[Step]:
        """What a stage's teachers have left to do, and its training."""
        job, stage, title = self.job, student.stages[number - 1], f"{name}, stage {number}"
        what = f"{title}: teacher {' + '.join(member.model for member in stage.teacher) or job.teacher.name}"
        data = replace(self._data(stage), own_documents=student.documents == "student")
        if stage.start is not None:  # refused here, before work starts, if it does not fit
            giver = job.recipe.students[parse_student(stage.start)[0]]
            weights_to_start_from(self._model(student), self._model(giver), stage.start)
        texts, count = self._stage_texts(stage, data)
        if job.teachers.needs_students(stage):
            yield self._student_teacher(what, stage, data, texts)
        elif stage.candidates.by_student and self._is_trained(student, number):
            yield Step(what, unit="pairs")
        elif CURRENT_STUDENT in (stage.candidates.sources or []):
            yield Step(f"{what}, candidates known when the student is trained so far", unit="pairs")
        elif same_pairs != title and not stage.candidates.by_student:
            yield Step(f"{what}, the same texts and pairs as {same_pairs}", unit="pairs")
        else:
            if stage.candidates.by_student and self.is_timed:
                # Those parts' vectors are made from stored halves and hidden states, at next to no cost.
                stored: dict[str, tuple[Role, ...]] = {"lexical": ("query", "document"), "head": ("document",)}
                scoring = self._student_scores(student, texts, self._width(stage, data), stored.get(stage.train, ()))
                items, seconds, unit = scoring
                yield Step(f"{title}: choose pairs, known when the student is trained so far", items, unit, seconds)
            yield from self._teaching(what, stage, data, texts, count, student.bought_before(number).values())
        yield self._training(name, student, number, data, texts, count)

    def _stage_texts(self, stage: StageSettings, data: TrainingData) -> tuple[TrainingTexts, int]:
        """A stage's texts and their number, or some of the texts and a bound of the number."""
        recorded = None if data.teacher.run is None else data.teacher.fingerprint(data.collection)
        key = f"{stage.texts.model_dump_json()} {stage.aligns} {recorded}"
        if key not in self._texts:
            if self.counts_texts:
                texts = stage_texts(stage, data)
                self._texts[key] = texts, len(texts)
            else:
                few = stage.texts.model_copy(update={"limit": _SAMPLE})
                texts = stage_texts(stage.model_copy(update={"texts": few}), data)
                translated = 0 if data.parallel is None else len(data.parallel.texts)
                most = self._most_texts(stage.texts, data.queries) + translated
                self._texts[key] = texts, max(len(texts), most)
        return self._texts[key]

    def _most_texts(self, settings: TextSettings, queries: Texts) -> int:
        """A bound of the number of training texts."""
        per_document = settings.per_document * (1 if settings.word_dropout is None else 2)
        count = len(queries) * settings.queries + per_document * self.documents
        if settings.generated is not None:
            count += len(load_generated(settings.generated, self.job.collection))
        return count if settings.limit is None else min(count, settings.limit)

    def _learning(self, settings: TextSettings) -> Iterator[Step]:
        """Embedding the texts that an index is learned from, by the document encoder and by teachers, and learning."""
        job = self.job
        given = settings if self.counts_texts else settings.model_copy(update={"limit": _SAMPLE})
        texts = texts_of_index(job, given)
        count = len(texts) if self.counts_texts else max(len(texts), self._most_texts(settings, job.train))
        learning = list(learning_steps(job, self.held + self._loaded, texts, count, is_timed=self.is_timed))
        if any(step.items for step in learning):
            encoders = {job.space.name: job.space}
            encoders |= {member.name: member.queries for member in job.teacher.members if member.queries is not None}
            title = "embed texts to learn from"
            steps = [self._embed(title, encoder, texts.texts, "query", count) for encoder in encoders.values()]
            yield replace(joined(title, steps), phase="learn")
        yield from learning
        self._loaded += sum(step.needs.out for step in learning)

    def _data(self, stage: StageSettings) -> TrainingData:
        """The stage's data; with the job's teacher if students teach, which are not trained yet."""
        job = self.job
        needs_students = job.teachers.needs_students(stage)
        return job.training_data if needs_students else job.teachers.data_of(stage, job.training_data)

    def _teaching(
        self,
        what: str,
        stage: StageSettings,
        data: TrainingData,
        texts: TrainingTexts,
        count: int,
        bought: Collection[int | str],
    ) -> Iterator[Step]:
        """The texts to embed, to align with or to mine and score with, and the pairs that a slow teacher scores.

        `bought` are the budgets of earlier stages whose pairs count.
        """
        job, queries = self.job, data.teacher_queries(texts.texts)
        encoders = {job.space.name: job.space}
        if stage.needs_lists:
            encoders = {member.name: member.queries for member in data.teacher.members if member.queries is not None}
            for source in stage.candidates.sources or []:
                if source not in encoders and parse_model_name(source).kind in ("dense", "static", "concat"):
                    is_space = source == job.recipe.document_encoder
                    encoders[source] = job.space if is_space else load_encoder(source, DENSE)
        steps = [self._embed(what, encoder, queries, "query", count) for encoder in encoders.values()]
        others = [encoder for encoder in encoders.values() if encoder is not job.space]
        steps += [self._embed(what, encoder, job.collection.documents, "document") for encoder in others]
        is_embedded = not any(step.items for step in steps)
        if not is_embedded or not stage.needs_lists or stage.any_document:
            yield joined(what, steps) if steps else Step(what, unit="texts")
            is_embedded = False
        if stage.needs_lists and not stage.any_document:
            pairs = self._pairs(what, stage, data, texts, count, bought, is_embedded=is_embedded)
            if pairs.items or is_embedded:
                yield pairs

    def _pairs(
        self,
        what: str,
        stage: StageSettings,
        data: TrainingData,
        texts: TrainingTexts,
        size: int,
        bought: Collection[int | str],
        *,
        is_embedded: bool,
    ) -> Step:
        """The pairs that the teacher has left to score, by those of a few texts."""
        rows = np.unique(np.linspace(0, len(texts) - 1, _SAMPLE, dtype=int))
        some = texts.texts.select([texts.texts.ids[row] for row in rows])
        is_slow = data.teacher.run is None and not data.teacher.is_cheap
        budget, random = stage.candidates.budget, stage.candidates.random
        is_known = not bought and not stage.candidates.by_student  # otherwise the choice depends on earlier stages
        if is_slow and self.is_timed and is_known and scores_file(stage, data, texts.texts).exists():
            return Step(what, 0, "pairs")
        if budget is not None:  # it does not buy random documents
            unlimited = stage.candidates.model_copy(update={"budget": None, "random": 0})
            stage = stage.model_copy(update={"candidates": unlimited})
        width: float = self._width(stage, data)
        share, seconds, bill, sampled = 1.0, 0.0, Bill(), 0
        if is_slow and self.is_timed:
            if is_embedded:
                pool = candidate_pairs(stage, data, some).run
            else:
                pool = random_documents(some.ids, self.job.collection.documents.ids, int(width), data.seed)
            work = data.teacher.remaining(data.teacher_queries(some), self.job.collection, pool)
            width, share = len(pool) / len(some), work.items / len(pool)
            seconds, bill, sampled = work.seconds / max(1, work.items), work.bill, work.items
        mined = count = listed = round(size * width)
        if budget is not None:
            count = min(mined, pairs_within(budget, mined))
            listed = count + size * random
        needs = Needs(self.held + self.corpus + sizes.lists(listed), out=sizes.stored_pairs(listed), advice=FEWER_TEXTS)
        before = max((pairs_within(earlier, mined) for earlier in bought), default=0)
        left = round(max(0, count - before) * share) if is_slow else 0
        return Step(what, left, "pairs", left * seconds, needs, bill=bill.times(left / max(1, sampled)))

    def _width(self, stage: StageSettings, data: TrainingData) -> int:
        """Most candidates of a text, without those that a batch shares."""
        if data.teacher.run is not None:
            return int(np.ceil(len(data.teacher.run) / max(1, len(data.teacher.run.query_ids))))
        return sizes.candidates(stage, len(candidate_sources(stage, data)), self.documents)

    def _student_teacher(self, what: str, stage: StageSettings, data: TrainingData, texts: TrainingTexts) -> Step:
        """What students that are not trained yet have left to do as teachers, at the rates of their start models."""
        items, seconds, unit = 0, 0.0, "texts"
        for member in stage.teacher:
            if not is_student(member.model) or not self.is_timed:
                continue
            settings = self.job.recipe.students[parse_student(member.model)[0]]
            count, more, unit = self._student_scores(settings, texts, self._width(stage, data))
            items, seconds = items + count, seconds + more
        return Step(f"{what}, known when that student is trained", items, unit, seconds)

    def _student_scores(
        self, settings: StudentSettings, texts: TrainingTexts, width: int, stored: Sequence[Role] = ()
    ) -> tuple[int, float, str]:
        """What a student embeds, or scores, for `width` candidates of each text: items, seconds, and their unit.

        The seconds are those of its start model; sides whose vectors are `stored` take none.
        """
        student = settings.kind.wrap(self._model(settings), f"{settings.kind.name}:student", None)
        with throw_away_cache(), muted():
            if not settings.kind.can_search:
                pairs = len(texts) * width
                document = self.job.collection.documents.slice(0, 1)[0]
                probe = [(text, document) for text in texts.texts.texts[:_PAIRS]]
                started = time.perf_counter()
                student.score(probe)
                return pairs, (time.perf_counter() - started) / len(probe) * pairs, "pairs"
            sides: list[tuple[Texts, Role]] = [(texts.texts, "query")]
            if settings.documents == "student":
                sides.append((self.job.collection.documents, "document"))
            embedded = [seconds_to_embed(student, side.texts, role) for side, role in sides if role not in stored]
            return sum(count for count, _ in embedded), sum(seconds for _, seconds in embedded), "texts"

    def _training(
        self, name: str, student: StudentSettings, number: int, data: TrainingData, texts: TrainingTexts, size: int
    ) -> Step:
        job, stage, title = self.job, student.stages[number - 1], f"{name}, stage {number}: train"
        if self._is_trained(student, number):
            return Step(f"{name}, stage {number}: already trained")
        # About as many as if every list taught something; of a selection, no more than that.
        prepared = Prepared(texts, None, [], held_out_rows(texts, None, job.recipe.seed))
        draws = stage.groups.draws if stage.draws_groups else 1
        rows = len(training_rows(prepared, stage)) * draws
        if stage.selection is not None:
            rows = max(1, round(rows * (stage.selection.share or 1.0)))
        count = optimizer_steps(rows, stage.training)
        if stage.selection is not None and not stage.training.max_steps:
            title += ", at most"
        seconds = 0.0
        if self.is_timed:
            seconds = stage_pace(student, number, data, self._model(student)).seconds(count, len(texts))
        return Step(title, count, "steps", seconds, self._training_needs(student, stage, data, size))

    def _is_trained(self, student: StudentSettings, number: int) -> bool:
        """Whether the student after this stage is kept."""
        data = self.job.training_data
        manifest = manifest_after_stage(student, data, number, self.job.teachers)
        return manifest.matches(work_folder(data) / manifest.fingerprint, STUDENT_MANIFEST)

    def _training_needs(self, student: StudentSettings, stage: StageSettings, data: TrainingData, texts: int) -> Needs:
        model, width, batch = self._model(student), self._width(stage, data), stage.training.batch_size
        parts = _parameters(model, stage)
        shape, dimension = sizes.Shape.of(model), self.job.space.dimension
        memory, on_device = self.held + self.corpus, sizes.optimizer(parts.trained) + sizes.FLOAT * parts.all
        memory += sizes.lists(texts * width)
        vectors = sizes.FLOAT * dimension
        if stage.train in ("query_encoder", "lexical"):
            memory += vectors * self.documents
        if stage.aligns or stage.any_document or stage.train == "lexical":
            memory += vectors * texts
        if stage.any_document:
            memory += vectors * self.documents * sum(member.queries is not None for member in data.teacher.members)
            memory += sizes.postings(self.job.collection.documents, load_analyzer(self.job.bm25.setting))
        is_whole = stage.candidates.depth == "all"
        listed = self.documents if is_whole else width + min(stage.candidates.shared, self.documents)
        if stage.draws_groups:
            listed = stage.groups.documents + stage.groups.random
        gathered = dimension if stage.train == "query_encoder" and not is_whole else 0
        on_device += sizes.matrices(batch, listed, gathered)
        if stage.train == "lexical":  # vectors of the documents of all lists, with gradients
            documents = self.documents if is_whole else min(self.documents, batch * listed)
            on_device += sizes.matrices(documents, dimension + (student.lexical_dim or 0), 0)
            on_device += 2 * sizes.FLOAT * parts.trained  # gradients by documents and by queries, which are added
        elif shape is not None and stage.train == "both_encoders":
            pairs = batch * (1 + listed)
            on_device += shape.batch(pairs, self.tokens, is_trained=True)
        elif shape is not None and stage.train == "query_encoder":
            on_device += shape.batch(batch, sizes.QUERY_TOKENS, is_trained=True)
        memory += on_device if sizes.is_in_memory(model.device) else 0.0
        advice = FEWER_IN_A_STEP if stage.needs_lists else FEWER_TEXTS
        self._kept += sizes.FLOAT * parts.all
        return Needs(memory, scratch=self._kept + sizes.checkpoints(parts.all, parts.trained), advice=advice)

    def _model(self, student: StudentSettings) -> Any:
        """The student before training, made once for it and its control; its values do not matter."""
        key = student.model_dump_json(exclude={"stages", "control"})
        if key not in self._models:
            with throw_away_cache(), muted():
                data = replace(self.job.training_data, collection=repeated(self.job.collection, 1))
                self._models[key] = start_model(student, data)
        return self._models[key]

    def _is_built(self, name: str) -> bool:
        return (self.job.out / "indexes" / name / MADE_FROM).exists()

    def _index(self, names: Sequence[tuple[str, StudentSettings]]) -> Step:
        """Embedding documents by students that encode their own, and building the indexes."""
        seconds, memory, before, out, cache, documents = 0.0, 0.0, 0.0, 0.0, 0.0, self.job.collection.documents
        for _, student in names:
            encoder = self._document_encoder(student)
            needs = index_needs(self.job, encoder, self._stored(encoder))
            encoding = self._activations(encoder, documents, self.documents) if student.documents == "student" else 0.0
            memory = max(memory, before + needs.memory, before + encoding)
            before += needs.out  # indexes stay in memory
            out += needs.out
            cache += needs.cache if student.documents == "student" else 0.0
            if self.is_timed:
                seconds += index_seconds(self.job, student, encoder)
        memory += self.held + self._loaded + self.corpus
        together = Needs(memory, out, cache, self._kept, SMALLER_INDEX)
        return Step("index students' documents", len(names), "indexes", seconds, together, "index")

    def _document_encoder(self, student: StudentSettings) -> Any:
        if student.documents != "student":
            return self.job.space
        return student.kind.wrap(self._model(student), f"{student.kind.name}:student", None)

    def _stored(self, encoder: Any) -> float:
        """Bytes of the stored vectors of all documents."""
        tokens = sizes.characters(self.job.collection.documents) / sizes.CHARACTERS
        return sizes.stored_vectors(encoder, self.documents, tokens)

    def _measuring(self, systems: Sequence[tuple[str, StudentSettings]], indexes: float) -> Step:
        """Measuring all systems; `indexes` is the bytes of their indexes."""
        job, recipe = self.job, self.job.recipe
        rows = ranking_rows(job, len(systems))
        memory = self.held + self._loaded + self.corpus + indexes
        if recipe.evaluation.latency_queries:  # throughput is measured
            memory += self._activations(job.space, job.collection.documents, self.documents)
        if self.documents <= HELD or recipe.evaluation.latency_queries:  # exact search of the document encoder
            memory += 2 * sizes.FLOAT * job.space.dimension * self.documents
        files = sizes.stored_run(rows, job.test, job.collection.whole.documents)
        needs = Needs(memory + sizes.run_rows(rows), files, 0.0, self._kept, SMALLER_INDEX)
        seconds = 0.0
        if self.is_timed:
            seconds = measuring_seconds(job, [(student, self._model(student)) for _, student in systems])
        title = "measure students and what they are compared with"
        return Step(title, len(systems), "systems", seconds, needs, "evaluate")


def _parameters(model: Any, stage: StageSettings) -> sizes.Parameters:
    """Numbers of a student's parameters in a stage, those of its adapters among them."""
    is_whole = stage.train in ("query_encoder", "both_encoders") and stage.lora is None
    parts = sizes.parameters(model, whole=is_whole)
    adapters = 0 if stage.lora is None else LoraShape(**stage.lora.model_dump()).parameters(model)
    return sizes.Parameters(parts.all + adapters, parts.trained + adapters)
