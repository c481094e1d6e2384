"""What a job distills, and its forms, each a system of its own: exits, truncations, what stands beside clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from retrodistill.core.files import check_replaceable
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.exits import ROUTE, exit_model, exits_of
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.indexes import FaissSettings, MultiVectorIndex, build_index
from retrodistill.recipes.job import Job, can_answer
from retrodistill.recipes.settings import Recipe, StudentSettings
from retrodistill.recipes.student_settings import VariantNames, beside_names, unclustered
from retrodistill.recipes.students import Distilled, contrastive_twin, untrained
from retrodistill.recipes.systems import Candidate, space_row
from retrodistill.students.clustering import cluster_sizes
from retrodistill.students.hybrid import is_hybrid
from retrodistill.students.saving import AnyStudent, load_student, save_student
from retrodistill.students.token_pooling import with_pooling
from retrodistill.students.vdr import own_token_queries, vocabulary_pooling

_OWN_TOKENS = "own-tokens"  # behind the name of a student with VDR's head


class Variant(NamedTuple):
    """A form of a distilled student.

    Attributes:
        made: The student in this form, under the system's name.
        role: The system's.
        truncate: Leading dimensions that its index keeps; None for what the recipe says.
    """

    made: Distilled
    role: str
    truncate: int | None = None


def entries(recipe: Recipe) -> Iterator[tuple[str, StudentSettings, str]]:
    """Every student with its name and role, behind its control.

    That is called ``control``; of a student beside others that is not called ``student``, ``NAME-control``.
    A clustered one stands behind the same student without clusters too.
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
    """Every student with its exits, its truncations and what stands beside a clustered one, in the table's order."""
    pooled = {names.unclustered: (names.pooled, clustered) for clustered, names in _beside(job).items()}
    found = []
    for made, role in distilled:
        found.append(Variant(made, role))
        found += [Variant(one, role) for one in _exits(made)]
        if isinstance(made.encoder, SparseTextEncoder) and vocabulary_pooling(made.encoder.model) is not None:
            found.append(Variant(_own_tokens(job, made), role))
        for cut in job.recipe.evaluation.truncations:
            if cut < _can_be_cut(made):
                found.append(Variant(replace(made, name=f"{made.name}@{cut}", notes=[]), role, cut))
        if made.name in pooled:
            name, clustered = pooled[made.name]
            found.append(Variant(_pooled(job, made, name, job.recipe.students[clustered]), role))
    return found


def planned_variants(job: Job, name: str, student: StudentSettings) -> list[str]:
    """Names of the forms that a student will be measured in besides, as far as its settings tell."""
    found = [f"{name}@{ROUTE}{layer}" for layer in sorted(student.exits) if layer != student.layers]
    if student.head == "vdr":
        found.append(f"{name}@{_OWN_TOKENS}")
    if student.kind in ("static", "dense") and not student.lexical_dim:
        width = student.dimension if isinstance(student.dimension, int) else None
        width = job.space.dimension if student.documents == "frozen" else width
        found += [f"{name}@{cut}" for cut in job.recipe.evaluation.truncations if width is None or cut < width]
    return found + [names.pooled for names in _beside(job).values() if names.unclustered == name]


def truncated_teachers(job: Job) -> list[Candidate]:
    """The space's own model by leading dimensions of its vectors, exact: what students' ones are held against."""
    if not can_answer(job):
        return []
    space, name, found = job.space, space_row(job), []
    for cut in job.recipe.evaluation.truncations:
        if cut < space.dimension:
            settings, served = FaissSettings(truncate=cut), not isinstance(space, VectorFile)
            index = build_index(job.collection, space, space, name=f"{name}@{cut}", settings=settings)
            found.append(Candidate(index.name, "teacher", index, space.name, space.name, served=served))
    return found


def vectors_note(candidates: Sequence[Candidate]) -> str | None:
    """How many vectors a document has in each multi-vector index; None where there are fewer than two."""
    counts = {
        one.name: one.retriever.store.lengths.mean()
        for one in candidates
        if isinstance(one.retriever, MultiVectorIndex)
    }
    if len(counts) < 2:
        return None
    return f"vectors a document: {', '.join(f'{name} {count:.1f}' for name, count in counts.items())}"


def _beside(job: Job) -> dict[str, VariantNames]:
    return beside_names(job.recipe.students)


def _exits(made: Distilled) -> list[Distilled]:
    """Exits but the deepest, which is the student itself; without a training of their own."""
    if not isinstance(made.encoder, Encoder) or isinstance(made.encoder, VectorFile):
        return []
    whole, found = made.encoder, []
    for layer in exits_of(whole.model)[:-1]:
        at = f"@{ROUTE}{layer}"
        encoder = Encoder(exit_model(whole.model, layer), f"{whole.name}{at}", whole.student)
        documents = encoder if made.documents is whole else made.documents
        found.append(replace(made, name=f"{made.name}{at}", encoder=encoder, documents=documents, notes=[]))
    return found


def _can_be_cut(made: Distilled) -> int:
    """Width of vectors whose leading dimensions are vectors; 0 of a hybrid, whose lexical half stands last."""
    encoder = made.encoder
    return encoder.dimension if isinstance(encoder, Encoder) and not is_hybrid(encoder.model) else 0


def _own_tokens(job: Job, made: Distilled) -> Distilled:
    """A student of VDR's head whose queries are their own tokens: no model runs for them."""
    name = f"{made.name}@{_OWN_TOKENS}"
    manifest = Manifest("student", {"student": made.encoder.fingerprint("document")}, {"queries": "own tokens"})
    encoder = _saved(job, name, lambda: own_token_queries(made.encoder.model), manifest)
    return replace(made, name=name, encoder=encoder, notes=[])


def _pooled(job: Job, made: Distilled, name: str, clustered: StudentSettings) -> Distilled:
    """An unclustered student whose documents are pooled after training to as many vectors as the clustered one has."""
    vectors = cluster_sizes(str(clustered.clusters))[1]
    manifest = Manifest("student", {"unclustered": made.encoder.fingerprint("document")}, {"pooled": vectors})
    model: Any = made.encoder.model
    encoder = _saved(job, name, lambda: with_pooling(model, vectors), manifest)
    return Distilled(name, encoder, encoder, 0.0)


def _saved(job: Job, name: str, make: Callable[[], Any], manifest: Manifest) -> AnyStudent:
    """A form that is a model of its own, from its folder, written where it is not there."""
    folder = check_replaceable(job.out / "forms" / name, STUDENT_MANIFEST)
    if not manifest.matches(folder, STUDENT_MANIFEST):
        save_student(make(), manifest, folder)
    with quiet_libraries():
        return load_student(folder)
