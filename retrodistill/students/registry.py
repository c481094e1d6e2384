"""Kinds of students, and what is done with a student of any kind: wrap, train through a stage, save, load.

To add a kind, write its module, which ends with ``KIND = Kind(...)``, and add a line to `MODEL_KINDS`. Callers ask a
`Kind` what they need and do not compare names of kinds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_folder, check_replaceable, read_whole
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import main_first
from retrodistill.encoders.adapters import LoraShape, require_peft, training_adapters
from retrodistill.encoders.classic_names import write_classic_names
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.layers import transformers_in
from retrodistill.encoders.length_adaptive import length_adaptive_settings
from retrodistill.encoders.loading import check_student, quiet_libraries
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.names import MODEL_KINDS
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import check_dimensions
from retrodistill.rankers.protocol import Ranker
from retrodistill.training.layer_loss import Transformers
from retrodistill.training.prepared import learned_from, prepare
from retrodistill.training.settings import StageSettings
from retrodistill.training.stages import StageRun
from retrodistill.training.trainer import History
from retrodistill.training.training_data import StudentSnapshot, TrainingData

if TYPE_CHECKING:  # the module of a kind imports this one
    from torch import Tensor, nn

    from retrodistill.students.cross_encoder import CrossEncoderStudent
    from retrodistill.students.small_tables import TablePrecision

AnyStudent: TypeAlias = "Encoder | SparseTextEncoder | MultiVectorModel | CrossEncoderStudent"
Part = Literal["query_encoder", "both_encoders", "lexical", "head"]

# Name to module. A hybrid student has no model name of its own: it is `dense` with a lexical half.
_MODULES = {"hybrid": "hybrid", **{name: kind.student for name, kind in MODEL_KINDS.items() if kind.student}}
WHOLE_TRANSFORMER = {"learning_rate": 2e-5, "batch_size": 8}  # training settings where a whole transformer learns


@dataclass(frozen=True)
class StageDefaults:
    """How a student is trained by default, with the values of the recipes in configs/."""

    train: Part
    training: Mapping[str, Any]  # keys of `TrainingSettings`
    temperature: float | None = None  # student scores are divided by it; None is the default for cosines
    regularizers: list[dict[str, Any]] = field(default_factory=list)  # `RegularizerSettings`


@dataclass(frozen=True)
class Kind:
    """What the package needs to know about one kind of student; ``settings`` are a recipe's `StudentSettings`."""

    name: str  # as users write it, e.g. sparse in sparse:NAME
    library_class: str  # the class of sentence-transformers that its models are, e.g. SparseEncoder
    start: Callable[[Any, Any], Any]  # (settings, TrainingData) -> model before training
    load: Callable[[str], Any]  # folder of its library class -> student
    wrap: Callable[[Any, str, Manifest | None], Any]  # (model, name, manifest) -> encoder or pair scorer for users
    train: Callable[[StageRun], History]
    # (student, document encoder) -> ranker; a student with documents of its own ignores the encoder.
    ranker: Callable[[Any, Any], Ranker]
    parts: tuple[Part, ...]  # what a stage can train, as values of its key train
    defaults: Callable[[Mapping[str, Any]], StageDefaults]  # of the settings as a mapping
    # (settings, TrainingData) -> tokens that `start` has left to encode, and about how many seconds that takes.
    start_left: Callable[[Any, Any], tuple[int, float]] = lambda settings, data: (0, 0.0)
    options: frozenset[str] = frozenset()  # settings that this kind has and some kinds have not
    # (settings as a mapping, NAME) -> settings that are added where the user names a model alone.
    complete: Callable[[Mapping[str, Any], str], dict[str, Any]] = lambda settings, name: {}
    check: Callable[[Any], None] = lambda settings: None  # ValueError where settings contradict each other
    owns: Callable[[Any], bool] = lambda model: True  # whether a model of its library class is of this kind
    # model -> its transformer without a head, whose weights students can take over; None where there is no such part.
    transformer: Callable[[Any], nn.Module] | None = None
    # (model, settings, stage) -> the model as a stage, from 0, finds it.
    at_stage: Callable[[Any, Any, int], Any] = lambda model, settings, stage: model
    # (student, texts): stores document vectors where training kept what gives them.
    store_documents: Callable[[Any, Sequence[str]], None] = lambda student, texts: None
    # (student, texts): the same for queries.
    store_queries: Callable[[Any, Sequence[str]], None] = lambda student, texts: None
    # (student, name) -> retriever without an index, by what training stored.
    exhaustive: Callable[[Any, str], Any] | None = None
    # (student, TrainingData) -> (about, notes): further entries of a trained student's manifest.
    describe: Callable[[Any, Any], tuple[dict[str, Any], list[str]]] = lambda student, data: ({}, [])
    index: str | None = None  # kind of index that its documents go into; None where they are re-ranked
    written: str = ""  # how users write a student of it: static, dense:NAME; empty for hybrid
    has_own_documents: bool = True  # whether it always encodes its own documents, in no space of another model
    is_dense: bool = False  # whether a text is one dense vector
    has_vector: bool = False  # whether leading dimensions of that vector are a vector, too
    has_terms: bool = False  # whether a text is weights of terms, which regularizers see
    can_search: bool = True  # whether it ranks a whole corpus; otherwise it scores pairs and re-ranks
    can_teach: bool = False  # whether it may be the teacher of another student's stage


def kind_names() -> list[str]:
    """Names of all kinds, in the order in which messages list them."""
    return list(_MODULES)


def get_kind(name: str) -> Kind:
    """The kind of a name; an unknown one is a UserError that lists all kinds."""
    if name not in _MODULES:
        raise unknown("kind of student", name, _MODULES)
    kind: Kind = importlib.import_module(f"retrodistill.students.{_MODULES[name]}").KIND
    return kind


def all_kinds() -> list[Kind]:
    """Every kind, in the order of `kind_names`."""
    return [get_kind(name) for name in _MODULES]


def kind_of(model: Any) -> Kind:
    """The kind of a sentence-transformers model; a model of another class is a UserError."""
    classes = {base.__name__ for base in type(model).__mro__}
    for kind in all_kinds():
        if kind.library_class in classes and kind.owns(model):
            return kind
    raise unknown("class of student", type(model).__name__, {kind.library_class: None for kind in all_kinds()})


def kind_of_settings(model: str, lexical_dim: int | None = None) -> Kind:
    """The kind of a student as a recipe writes it: ``sparse:NAME`` is sparse; dense with a lexical half is hybrid."""
    name = model.partition(":")[0]
    return get_kind("hybrid" if name == "dense" and lexical_dim else name)


def as_student(model: Any, name: str | None = None, manifest: Manifest | None = None) -> Any:
    """The encoder or pair scorer around a model of any kind; its name is ``kind:student`` by default."""
    kind = kind_of(model)
    return kind.wrap(model, name or f"{kind.name}:student", manifest)


def weights_to_start_from(model: Any, other: Any, name: str) -> dict[str, Tensor]:
    """The weights that a model's transformer can take over from that of another student, called `name`.

    They are those of all its layers; `other` may have more. A pooler, as BERT has it, is part of the head. Another
    architecture, width, or vocabulary, and too few layers, are a UserError. Both kinds have a transformer.
    """
    own, given = (kind_of(each).transformer(each).state_dict() for each in (model, other))  # type: ignore[misc]
    wanted = {key: weights for key, weights in own.items() if not key.startswith("pooler.")}
    advice = "start from a student of the same model that has as many layers or more"
    for key, weights in wanted.items():
        shape = tuple(given[key].shape) if key in given else None
        if shape != tuple(weights.shape):
            problem = "is missing" if shape is None else f"has shape {shape} instead of {tuple(weights.shape)}"
            raise UserError(f"start: {name} does not fit this student: {key} {problem}; {advice}.")
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UserError(f"start: {name} does not fit this student: it has another vocabulary; {advice}.")
    return {key: given[key] for key in wanted}


def run_stage(model: Any, stage: StageSettings, data: TrainingData, folder: Path, what: str) -> History:
    """Train a sentence-transformers model of any kind through one stage, in place.

    ``folder`` is for checkpoints, ``what`` titles the progress bar. A kind of student that does not train that part or
    lacks what an objective needs is a UserError.
    """
    kind = kind_of(model)
    student, initial = (kind.wrap(model, f"{kind.name}:student", None) for _ in range(2))
    _check_stage(kind, student, stage)
    # Another student than the trained one: its digest of the weights is that before training.
    snapshot = StudentSnapshot(initial, kind, None if data.own_documents else data.space, data.stored)
    data = replace(data, student=snapshot)
    transformers = _compared_transformers(kind, model, stage, data)
    with main_first():
        prepared = prepare(stage, data)
    with contextlib.ExitStack() as stack:
        if stage.lora is not None:
            require_peft("a stage with lora trains adapters")
            for role in ("query", "document"):  # of the weights before the adapters, by which its vectors are stored
                initial.fingerprint(role)
            stack.enter_context(training_adapters(model, LoraShape(**stage.lora.model_dump()), data.seed))
        history = kind.train(StageRun(student, stage, data, prepared, folder, what, transformers))
    history.notes = [*prepared.notes, *history.notes]
    history.held_out = prepared.held_out_queries
    history.learned = {**learned_from(prepared, stage, data), "steps": history.steps, "seconds": history.seconds}
    return history


def _compared_transformers(kind: Kind, model: Any, stage: StageSettings, data: TrainingData) -> Transformers | None:
    """The student's transformer and a teacher's, whose layers an objective compares; None where none does.

    The teacher is the first member of the stage's teacher, or the document encoder, that reads what the student reads,
    single texts or pairs, with the same tokens.
    """
    name = next((term.name for term in stage.objectives if term.objective.sees == "layers"), None)
    if name is None:
        return None
    own = transformers_in(model)
    if len(own) != 1:
        raise UserError(f"objective {name!r} compares the layers of a transformer, and this student has {len(own)}.")
    if kind.is_dense and length_adaptive_settings(model) is not None:
        raise UserError(
            f"objective {name!r} compares layers that read the same tokens, and a length_adaptive student drops some; "
            "leave length_adaptive out."
        )
    models = {member.name: member.library_model for member in data.teacher.members}
    if data.space is not None:
        models[data.space.name] = data.space.model
    vocabulary = model.tokenizer.get_vocab()
    for teacher in models.values():
        inner = [] if teacher is None else transformers_in(teacher)
        if len(inner) != 1 or kind_of(teacher).can_search != kind.can_search:
            continue
        if teacher.tokenizer.get_vocab() == vocabulary:
            return Transformers(own[0].base_model, inner[0].base_model)
    raise UserError(
        f"objective {name!r} needs a teacher that is a transformer and reads {'texts' if kind.can_search else 'pairs'} "
        f"with the student's tokens, and none of {', '.join(models)} is; name one as a teacher of the stage, or as "
        "document_encoder."
    )


def _check_stage(kind: Kind, student: Any, stage: StageSettings) -> None:
    if stage.train not in kind.parts:
        raise UserError(f"train: {stage.train} does not train {kind.name} students; set {' or '.join(kind.parts)}.")
    if stage.regularizers and not kind.has_terms:
        raise UserError(
            f"regularizer {stage.regularizers[0].name!r} sees term weights; {kind.name} students have none."
        )
    if (stage.matryoshka or stage.quantize) and not kind.has_vector:
        changes = "matryoshka cuts" if stage.matryoshka else "quantize codes"
        raise UserError(f"{changes} vectors of dense and static students; this one is {kind.name}.")
    if stage.matryoshka:
        check_dimensions(stage.matryoshka, student.dimension)


def save_student(
    model: Any, manifest: Manifest, folder: str | os.PathLike[str], precision: TablePrecision = "float32"
) -> AnyStudent:
    """Save a student, whole or not at all, and load it back as the encoder that users will load.

    The folder is an ordinary sentence-transformers folder, with names that versions 3 to 5 read, too, and a manifest,
    whose ``about.query_space`` names the document space that its queries search. The token table of a static student
    is stored in a `precision`, and is float32 again when it is loaded. A folder that is not writable or holds
    something else, and a full disk, are a UserError.
    """
    with atomic_folder(check_replaceable(folder, STUDENT_MANIFEST)) as temporary, quiet_libraries():
        save_pretrained(model, temporary)
        write_classic_names(temporary)
        if precision == "int8":
            from retrodistill.students.small_tables import store_rows

            store_rows(temporary)
        manifest.with_files(temporary).write(temporary, STUDENT_MANIFEST)
    return load_student(folder)


def load_student(folder: str | os.PathLike[str]) -> AnyStudent:
    """Load a student of any kind from its sentence-transformers folder; another folder or class is a UserError."""
    return read_whole(folder, lambda: _load_student(folder))


def _load_student(folder: str | os.PathLike[str]) -> AnyStudent:
    path = path_of(folder) / "config_sentence_transformers.json"
    check_student(path.parent)
    # Folders of old versions of the library do not name their class.
    library_class = read_json(path).get("model_type", "SentenceTransformer") if path.exists() else "SentenceTransformer"
    kinds = {kind.library_class: kind for kind in all_kinds()}  # the most general kind of each class
    if library_class not in kinds:
        raise unknown("class of student", library_class, kinds)
    with quiet_libraries():
        student: AnyStudent = kinds[library_class].load(str(path.parent))
    kind = kind_of(student.model)
    if kind.written:
        student.name = f"{kind.name}:{path.parent}"
    return student
