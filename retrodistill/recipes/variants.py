"""Variants of a job's students, each a system of its own: exits, truncations, what clusters are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from retrodistill.core.files import check_replaceable
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.modules import ROUTE, exit_model, exits_of
from retrodistill.recipes.job import Job
from retrodistill.recipes.settings import Recipe, StudentSettings
from retrodistill.recipes.student_settings import VariantNames, beside_names, unclustered
from retrodistill.recipes.students import Distilled, contrastive_twin, untrained
from retrodistill.students.clustering import cluster_sizes
from retrodistill.students.registry import AnyStudent, kind_of, kind_of_settings, load_student, save_student
from retrodistill.students.token_pooling import with_pooling
from retrodistill.students.vdr import own_token_queries, vocabulary_pooling

_OWN_TOKENS = "own-tokens"  # behind the name of a student with VDR's head


class Variant(NamedTuple):
    """A student as it is measured.

    Attributes:
        student: The student, or a variant of it, under the system's name.
        role: The system's.
        truncate: Leading dimensions that its index keeps; None for what the recipe says.
    """

    student: Distilled
    role: str
    truncate: int | None = None


def entries(recipe: Recipe) -> Iterator[tuple[str, StudentSettings, str]]:
    """Every student with its name and role, after its control, and after the same student without clusters.

    The control is called ``control``, or ``NAME-control`` if there are several students and this one is not called
    ``student``.
    """
    beside = beside_names(recipe.students)
    for name, student in recipe.students.items():
        if student.control:
            control = untrained(student) if student.control == "untrained" else contrastive_twin(student)
            yield "control" if len(recipe.students) == 1 or name == "student" else f"{name}-control", control, "control"
        if name in beside:
            yield beside[name].unclustered, unclustered(student), "baseline"
        yield name, student, "student"


def variants_of(job: Job, distilled: Iterable[tuple[Distilled, str]]) -> list[Variant]:
    """Every student with its exits and truncations, and the one whose vectors are pooled after training.

    They come in the order of the table.
    """
    pooled = {names.unclustered: (names.pooled, clustered) for clustered, names in _beside(job).items()}
    variants = []
    for student, role in distilled:
        kind = kind_of(student.encoder.model)
        variants.append(Variant(student, role))
        variants += [Variant(shallow, role) for shallow in (_exits(student) if kind.is_dense else [])]
        if kind.has_terms and vocabulary_pooling(student.encoder.model) is not None:
            variants.append(Variant(_own_tokens(job, student), role))
        width = student.encoder.dimension if kind.has_vector else 0  # type: ignore[union-attr]  # of dense ones
        for cut in job.recipe.evaluation.truncations:
            if cut < width:
                variants.append(Variant(replace(student, name=f"{student.name}@{cut}", notes=[]), role, cut))
        if student.name in pooled:
            name, clustered = pooled[student.name]
            variants.append(Variant(_pooled(job, student, name, job.recipe.students[clustered]), role))
    return variants


def planned_variants(job: Job, name: str, student: StudentSettings) -> list[str]:
    """Names of the variants that a student will be measured in besides, as far as its settings tell."""
    kind = kind_of_settings(student.model, student.lexical_dim)
    names = [f"{name}@{ROUTE}{layer}" for layer in sorted(student.exits) if layer != student.layers]
    if student.head == "vdr":
        names.append(f"{name}@{_OWN_TOKENS}")
    if kind.has_vector:
        width = student.dimension if isinstance(student.dimension, int) else None
        width = job.space.dimension if student.documents == "frozen" else width
        names += [f"{name}@{cut}" for cut in job.recipe.evaluation.truncations if width is None or cut < width]
    return names + [beside.pooled for beside in _beside(job).values() if beside.unclustered == name]


def _beside(job: Job) -> dict[str, VariantNames]:
    return beside_names(job.recipe.students)


def _exits(student: Distilled) -> list[Distilled]:
    """Exits but the deepest, which is the student itself; without a training of their own."""
    whole: Any = student.encoder
    exits = []
    for layer in exits_of(whole.model)[:-1]:
        at = f"@{ROUTE}{layer}"
        encoder = Encoder(exit_model(whole.model, layer), f"{whole.name}{at}", whole.student)
        documents = encoder if student.documents is whole else student.documents
        exits.append(replace(student, name=f"{student.name}{at}", encoder=encoder, documents=documents, notes=[]))
    return exits


def _own_tokens(job: Job, student: Distilled) -> Distilled:
    """A student of VDR's head whose queries are their own tokens: no model runs for them."""
    name = f"{student.name}@{_OWN_TOKENS}"
    manifest = Manifest("student", {"student": student.encoder.fingerprint("document")}, {"queries": "own tokens"})
    encoder = _saved(job, name, lambda: own_token_queries(student.encoder.model), manifest)
    return replace(student, name=name, encoder=encoder, notes=[])


def _pooled(job: Job, student: Distilled, name: str, clustered: StudentSettings) -> Distilled:
    """An unclustered student whose documents are pooled after training to as many vectors as the clustered one has."""
    vectors = cluster_sizes(str(clustered.clusters))[1]
    manifest = Manifest("student", {"unclustered": student.encoder.fingerprint("document")}, {"pooled": vectors})
    model: Any = student.encoder.model
    encoder = _saved(job, name, lambda: with_pooling(model, vectors), manifest)
    return Distilled(name, encoder, encoder, 0.0)


def _saved(job: Job, name: str, make: Callable[[], Any], manifest: Manifest) -> AnyStudent:
    """A variant that is a model of its own, from its folder, written where it is not there."""
    folder = check_replaceable(job.out / "forms" / name, STUDENT_MANIFEST)
    if not manifest.matches(folder, STUDENT_MANIFEST):
        save_student(make(), manifest, folder)
    with quiet_libraries():
        return load_student(folder)
