"""The systems that a job measures: baselines, students and their variants, each with what searches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from retrodistill.core.checksums import checked
from retrodistill.core.files import check_replaceable
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.length_adaptive import length_adaptive_settings
from retrodistill.encoders.modules import KEEP, ROUTE, exit_model, exits_of
from retrodistill.evaluation.results import REWRITES, Role
from retrodistill.evaluation.systems import System
from retrodistill.indexes import FaissSettings, build_index, load_index
from retrodistill.indexes.base import Index
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.reranker import Reranker
from retrodistill.recipes.job import Job
from retrodistill.recipes.settings import Recipe
from retrodistill.recipes.student_settings import (
    StudentSettings,
    comparison_names,
    control_of,
    without_clusters,
)
from retrodistill.recipes.students import Distilled
from retrodistill.students.registry import AnyStudent, kind_of, load_student, save_student
from retrodistill.students.token_pooling import with_pooling
from retrodistill.students.vdr import own_token_queries, vocabulary_pooling

MADE_FROM = "made-from.json"  # manifest of what a job's index was made from
AnyIndex = TypeVar("AnyIndex", bound=Index)
_OWN_TOKENS = "own-tokens"


def students_to_train(recipe: Recipe) -> Iterator[tuple[str, StudentSettings, Role]]:
    """Every student with its name and role, each after its control and after the same student without clusters.

    The control is called ``control``, or ``NAME-control`` if there are several students and this one is not called
    ``student``.
    """
    compared = comparison_names(recipe.students)
    for name, student in recipe.students.items():
        control = control_of(student)
        if control is not None:
            yield "control" if len(recipe.students) == 1 or name == "student" else f"{name}-control", control, "control"
        if name in compared:
            yield compared[name].unclustered, without_clusters(student), "baseline"
        yield name, student, "student"


def variants_of(job: Job, students: Iterable[Distilled]) -> list[Distilled]:
    """Every student with its variants, in the order of the table.

    Variants are its exits, its shares of tokens, its truncations, the one with its own tokens as queries, so that no
    model runs for them, and the one whose documents are pooled after training to the number of vectors of the clustered
    student.
    """
    pooled = _pooled(job.recipe.students)
    variants = []
    for student in students:
        model: Any = student.encoder.model
        kind = kind_of(model)
        variants += [student, *([*_exits(student), *_shares(student)] if kind.is_dense else [])]
        if kind.has_terms and vocabulary_pooling(model) is not None:
            name, inputs = f"{student.name}@{_OWN_TOKENS}", {"student": student.encoder.fingerprint("document")}
            made_from = Manifest("student", inputs, {"queries": "own tokens"})
            encoder = _saved(job.out / "forms" / name, made_from, partial(own_token_queries, model))
            variants.append(replace(student, name=name, encoder=encoder))
        width = student.encoder.dimension if kind.has_vector else 0  # type: ignore[union-attr]  # of dense ones
        cuts = [cut for cut in job.recipe.evaluation.truncations if cut < width]
        variants += [replace(student, name=f"{student.name}@{cut}", truncate=cut) for cut in cuts]
        if student.name in pooled:
            name, vectors = pooled[student.name]
            inputs = {"unclustered": student.encoder.fingerprint("document")}
            made_from = Manifest("student", inputs, {"pooled": vectors})
            encoder = _saved(job.out / "forms" / name, made_from, partial(with_pooling, model, vectors))
            variants.append(replace(student, name=name, encoder=encoder, documents=encoder))
    return variants


def planned_variants(job: Job, name: str, student: StudentSettings) -> list[str]:
    """Names of the variants of a student, as far as its settings tell."""
    names = [f"{name}@{ROUTE}{layer}" for layer in sorted(student.exits) if layer != student.layers]
    names += [f"{name}@{KEEP}{keep:g}" for keep in (student.length_adaptive.keep if student.length_adaptive else [])]
    if student.head == "vdr":
        names.append(f"{name}@{_OWN_TOKENS}")
    if student.kind.has_vector:
        width = student.dimension if isinstance(student.dimension, int) else None
        width = job.space.dimension if student.documents == "frozen" else width
        names += [f"{name}@{cut}" for cut in job.recipe.evaluation.truncations if width is None or cut < width]
    return names + [pooled for unclustered, (pooled, _) in _pooled(job.recipe.students).items() if unclustered == name]


def _pooled(students: Mapping[str, StudentSettings]) -> dict[str, tuple[str, int | float]]:
    """By unclustered student: the name of the pooled one, and its vectors of a document."""
    return {
        names.unclustered: (names.pooled, clusters.document)
        for clustered, names in comparison_names(students).items()
        if (clusters := students[clustered].clusters) is not None and clusters.document is not None
    }


def _exits(student: Distilled) -> Iterator[Distilled]:
    """All exits except the deepest, which is the student itself."""
    whole: Any = student.encoder
    for layer in exits_of(whole.model)[:-1]:
        yield _variant(student, f"@{ROUTE}{layer}", exit_model(whole.model, layer))


def _shares(student: Distilled) -> Iterator[Distilled]:
    """A length-adaptive student with each share of its tokens that its settings name."""
    from retrodistill.encoders.token_dropping import keep_share

    model: Any = student.encoder.model
    settings = length_adaptive_settings(model)
    for keep in [] if settings is None else settings.keep:
        yield _variant(student, f"@{KEEP}{keep:g}", keep_share(model, keep))


def _variant(student: Distilled, end: str, model: Any) -> Distilled:
    """A model inside a student's as a student of its own, which encodes documents if the student does."""
    whole: Any = student.encoder
    encoder = Encoder(model, f"{whole.name}{end}", whole.student)
    documents = encoder if student.documents is whole else student.documents
    return replace(student, name=f"{student.name}{end}", encoder=encoder, documents=documents)


def _saved(folder: Path, made_from: Manifest, make: Callable[[], Any]) -> AnyStudent:
    """A variant with its own model, loaded from its folder, where it is saved first if necessary."""
    if not made_from.matches(check_replaceable(folder, STUDENT_MANIFEST), STUDENT_MANIFEST):
        save_student(make(), made_from, folder)
    return load_student(folder)


def baselines(job: Job) -> list[System]:
    """BM25, the document encoder, and the teacher if that is another model that can rank."""
    space = job.space.name
    systems = [System("bm25", job.bm25, source=job.bm25.name)]
    if job.space_answers:
        own = DenseRanker(job.space)
        systems.append(System(space_row(job), own, "teacher", space, space, space, is_served=own.can_be_timed))
    teacher = teacher_row(job)
    if teacher == "target" and job.teacher.can_search:
        by = job.teacher.name  # by itself, as users would search with it
        systems.append(System("target", load_ranker(job.teacher.queries), "teacher", by, by, by))
    elif teacher == "target":
        ranker = Reranker(job.teacher, job.bm25, job.recipe.evaluation.rerank, "target")
        by = ranker.documents_by
        systems.append(System("target", ranker, "teacher", by, job.teacher.name, is_served=False))
    if teacher == "ensemble":
        systems.append(_ensemble(job.teacher, "teacher"))
    elif job.ensemble is not None and len(job.teacher.members) == 1 and len(job.ensemble.members) > 1:
        systems.append(_ensemble(job.ensemble, "baseline"))
    return [_with_rewrites(job, system) if system.role == "teacher" else system for system in systems]


def truncated_teachers(job: Job) -> list[System]:
    """The document encoder at fewer dimensions, by exact search, for comparison with truncated students."""
    if not job.space_answers:
        return []
    systems, space, by = [], job.space, job.space.name
    for cut in job.recipe.evaluation.truncations:
        if cut < space.dimension:
            name, settings = f"{space_row(job)}@{cut}", FaissSettings(truncate=cut)
            index = build_index(job.collection, space, space, name=name, settings=settings)
            system = System(name, index, "teacher", by, by, is_served=space.has_weights)
            systems.append(_with_rewrites(job, system))
    return systems


def student_system(job: Job, student: Distilled) -> System:
    """A student with what searches for it: an index, its stored states, or BM25 whose documents it re-ranks."""
    role, kind = student.role, kind_of(student.encoder.model)
    prefix, _, folder = student.encoder.name.partition(":")
    own = f"{prefix}:{Path(folder).name}"  # without the folders above it
    documents = own if student.documents is student.encoder else student.documents.name
    if not kind.can_search:
        scorer, depth = kind.ranker(student.encoder, None), job.recipe.evaluation.rerank
        reranker = Reranker(scorer, job.bm25, depth, student.name)
        source = f"rerank@{depth}:{job.out / 'students' / student.name}@{job.bm25.name}"
        return System(student.name, reranker, role, reranker.documents_by, f"{kind.name}:{student.name}", source)
    if job.recipe.evaluation.exhaustive and kind.exhaustive is not None:
        ranker = kind.exhaustive(student.encoder, student.name)
        return System(student.name, ranker, role, documents, own, is_served=False)
    source = str(job.out / "indexes" / student.name)
    return System(student.name, _index(job, student), role, documents, own, source)


def rewritten_student(job: Job, systems: Sequence[System]) -> System | None:
    """The first student with the rewrites as its queries; None if the job has no students or no rewrites."""
    if job.rewrites is None or not job.recipe.students:
        return None
    first = next(system for system in systems if system.name == next(iter(job.recipe.students)))
    return _with_rewrites(job, replace(first, name=REWRITES, role="baseline"))


def space_row(job: Job) -> str:
    """The system that searches with the document encoder: ``teacher``, or ``exact`` if an index is learned."""
    return "exact" if job.recipe.index.learn else "teacher"


def teacher_row(job: Job) -> str | None:
    """The system that the students learn from.

    That is the document encoder's, ``bm25``, ``ensemble``, or ``target`` for any other model, which searches by itself
    or orders BM25's documents. None if it cannot answer test queries, as recorded runs cannot.
    """
    teacher = job.teacher
    if teacher.is_recorded or not (teacher.can_search or teacher.can_time_pairs):
        return None
    if len(teacher.members) > 1:
        return "ensemble"
    if teacher.fingerprint(job.collection) == job.bm25.fingerprint(job.collection):
        return "bm25"
    if teacher.queries_by == job.space.name and not job.space_answers:
        return None
    return space_row(job) if job.space_teaches else "target"


def vectors_note(systems: Sequence[System]) -> str | None:
    """A note on the number of vectors per document in each multi-vector index; None for fewer than two indexes."""
    counts = [(system.name, getattr(system.ranker, "vectors_per_document", None)) for system in systems]
    shown = [f"{name} {count:.1f}" for name, count in counts if count is not None]
    return f"vectors per document: {', '.join(shown)}" if len(shown) > 1 else None


def _ensemble(ensemble: Any, role: Role) -> System:
    members = zip(ensemble.members, ensemble.weights, strict=True)
    by = " + ".join(f"{weight:g} {member.name}" for member, weight in members)
    return System("ensemble", ensemble, role, by, by, is_served=ensemble.can_be_timed)


def _with_rewrites(job: Job, system: System) -> System:
    if job.rewrites is None:
        return system
    return replace(system, queries=job.teacher_test_queries, queries_by=f"{system.queries_by} ({job.rewritten_as})")


def with_columns(index: AnyIndex, folder: Path, columns: pa.Table | None) -> AnyIndex:
    """The index of a folder, saved with these columns if it holds others, such as fields that have changed since."""
    both = [checked(table) for table in (columns, index.columns) if table is not None]
    if len(both) == 1 or (len(both) == 2 and not both[0].equals(both[1])):
        made_from = Manifest.read(folder, MADE_FROM)
        index.columns = columns
        index.save(folder)
        made_from.write(folder, MADE_FROM)
    return index


def _index(job: Job, student: Distilled) -> Ranker:
    """The student's index, built or loaded."""
    options = job.recipe.index
    folder, kind = job.out / "indexes" / student.name, kind_of(student.encoder.model)
    if student.truncate is not None:
        options = options.model_copy(update={"truncate": student.truncate})
    inputs = {
        "documents": job.collection.documents.fingerprint,
        "space": student.documents.fingerprint("document"),
        "queries": student.encoder.fingerprint("query"),
    }
    decisive = options.model_dump(mode="json", exclude={"fields", "store_texts"})
    made_from, columns = Manifest("index of a student", inputs, decisive), options.columns_of(job.collection)
    if made_from.matches(folder, MADE_FROM):
        return with_columns(load_index(folder, student.encoder), folder, columns)
    if student.documents is student.encoder:
        kind.store_documents(student.encoder, job.collection.documents.column)
    settings = options.of(options.kind_for([student.documents.kind]))
    index = build_index(job.collection, student.documents, student.encoder, name=student.name, settings=settings)
    index.columns = columns
    index.save(folder)
    made_from.write(folder, MADE_FROM)
    return index
