"""Dense students: any bi-encoder, possibly cut to its first layers and mapped to the document encoder's width."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import batch_to_device

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar, main_first
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.data.texts import spread
from retrodistill.encoders.any_encoder import DENSE, load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.layers import longest_text
from retrodistill.encoders.length_adaptive import length_adaptive_settings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import behind_exit, exits_of, with_modules
from retrodistill.encoders.token_dropping import make_length_adaptive
from retrodistill.encoders.vectors import cosines_to_others
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.runs.run import top_k
from retrodistill.students.coded_documents import CodedVectors, QuantizedLoss
from retrodistill.students.dense_variants import (
    LeadingVectors,
    LengthAdaptiveLoss,
    MatryoshkaLoss,
    MultiExitLoss,
    multi_exit,
    through_exit,
)
from retrodistill.students.pruning import pruned
from retrodistill.students.registry import Kind, StageDefaults
from retrodistill.training.loss import DistillationLoss, TeacherVectors
from retrodistill.training.prepared import labeled_places, teacher_rows, training_rows
from retrodistill.training.scorers import StoredVectorScorer, VectorScorer
from retrodistill.training.settings import StageSettings
from retrodistill.training.stages import BothEncoders, StageRun, evaluating, fit, train_both
from retrodistill.training.trainer import HeldOutMonitor, History, Monitor

_AGREEMENT_DEPTH = 10
_FITTED = 4096  # texts that a map is fitted to
_BATCH = 64  # texts of one step of that
_RIDGE = 0.01  # of the mean variance; by overlap@10 with MiniLM on held-out SciFact training queries, flat around it


def dense_student(
    source: str,
    *,
    layers: int | None = None,
    dimension: int | None = None,
    mapped: bool = False,
    similarity: Literal["cosine", "dot"] | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> SentenceTransformer:
    """A dense student to start from.

    Args:
        source: Folder or hub name of a sentence-transformers model.
        layers: Number of transformer layers to keep, from the first.
        dimension: Width of its vectors: where it differs from the model's, a linear map without bias is added before
            the normalization and saved with the model (LEAF, arXiv 2509.12539).
        mapped: Add such a map whatever the width, for `fit_map`.
        similarity: ``cosine`` or ``dot``; the model's own by default.
        max_length: Maximum number of tokens of a text; the model's own by default.
        seed: Seed of the map's initial values.
    """
    model = load_bi_encoder(source, layers=layers)
    if similarity is not None:
        model.similarity_fn_name = similarity
    if max_length is not None:
        _set_max_length(model, max_length, source)
    width = Encoder(model, f"dense:{source}").dimension
    if not mapped and dimension in (None, width):
        return model
    torch.manual_seed(seed)
    projection = Dense(width, dimension or width, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.orthogonal_(projection.linear.weight)
    modules: list[Any] = [*(module for module in model if not isinstance(module, Normalize)), projection]
    if str(model.similarity_fn_name) == "cosine":
        modules.append(Normalize())
    projected: SentenceTransformer = with_modules(model, modules, "SentenceTransformer")
    return projected


def _set_max_length(model: SentenceTransformer, max_length: int, source: str) -> None:
    transformer: Any = getattr(model[0], "auto_model", None)
    if transformer is None:
        raise UserError(f"max_length={max_length}: model {source} is not a transformer and reads texts of any length.")
    longest = longest_text(transformer)
    if max_length < 1 or (longest is not None and max_length > longest):
        raise UserError(f"max_length={max_length}: model {source} reads 1 to {longest or 'any number of'} tokens.")
    model.max_seq_length = max_length


def start_dense(settings: Any, data: Any) -> SentenceTransformer:
    """A recipe's dense student before training: cut, pruned, projected or mapped, with its exits or lengths."""
    fitted, source = settings.initialize == "fitted", settings.model.partition(":")[2]
    dimension = data.space.dimension if fitted or settings.dimension == "space" else settings.dimension
    model = dense_student(
        source,
        layers=settings.layers,
        dimension=dimension,
        mapped=fitted,
        max_length=settings.max_length,
        seed=data.seed,
    )
    pruned(model, settings, data)
    if fitted:
        texts = _fitted_texts(data)
        fit_map(model, texts, embed(data.space, texts, "query"), Encoder(model, "dense:student").prompt("query"))
    make_length_adaptive(model, settings.length_adaptive)
    if not settings.exits:
        return model
    exits = multi_exit(model, settings.exits, project=settings.project_exits)
    if settings.project_exits:
        fit_exit_maps(exits, _fitted_texts(data), Encoder(exits, "dense:student").prompt("query"))
    return exits


def _fitted_texts(data: Any) -> list[str]:
    """Training queries and titles, evenly spread, that maps are fitted to."""
    return spread([*data.queries.texts, *title_texts(data.collection).texts], _FITTED)


def fit_map(model: SentenceTransformer, texts: Sequence[str], vectors: np.ndarray, prompt: str = "") -> None:
    """Fit, in place, the map of a `dense_student` to a document encoder's (texts, d) vectors: LEAF's loss, solved.

    Ridge regression ``W = (X'X + r I)^-1 X'Y`` of unit vectors Y on the vectors X that reach the map, over some
    thousand texts of the kind that it will read. Without it, the vectors of a shallow layer say little in that space:
    the first two layers of all-MiniLM-L6-v2 find .10 of its ten best documents for a query of SciFact, and .45 with
    such a map; the first four .14 and .52 (evaluation/fitted_maps.py).
    """
    error = "the student has no map to fit; make it with a dimension of its own, or mapped."
    regression = _Regression(list(model), error)
    for rows, features in _batches(model, texts, prompt):
        regression.add(regression.before(features)["sentence_embedding"], vectors[rows])
    regression.solve()


def fit_exit_maps(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> None:
    """Fit each exit's map, in place, to the deepest exit's embeddings of texts, as `fit_map` does."""
    regressions = {}
    for layer in exits_of(model)[:-1]:
        error = f"exit {layer} has no map of its own; make exits with project_exits: true."
        regressions[layer] = _Regression(behind_exit(list(model)[-1], layer), error)
    for _, features in _batches(model, texts, prompt):
        out = model(features)
        for layer, regression in regressions.items():
            regression.add(through_exit(regression.before, out, layer), out["sentence_embedding"].cpu().numpy())
    for regression in regressions.values():
        regression.solve()


class _Regression:
    """Ridge regression of unit vectors, gathered a batch at a time, for the last linear map among some modules.

    Inputs are what the modules ``before`` the map give. Without a map, ``error`` is raised.
    """

    def __init__(self, modules: Sequence[Any], error: str) -> None:
        places = [place for place, module in enumerate(modules) if type(module).__name__ == "Dense"]
        if not places:
            raise UserError(error)
        self.before = torch.nn.Sequential(*modules[: places[-1]])
        self.weight = modules[places[-1]].linear.weight
        outputs, inputs = self.weight.shape
        self.gram, self.moment = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))

    def add(self, inputs: torch.Tensor, outputs: np.ndarray) -> None:
        vectors, targets = inputs.double().cpu().numpy(), outputs.astype(np.float64)
        lengths = np.linalg.norm(targets, axis=1, keepdims=True)
        self.gram += vectors.T @ vectors
        self.moment += vectors.T @ (targets / np.where(lengths > 0, lengths, 1.0))

    def solve(self) -> None:
        ridge = _RIDGE * np.trace(self.gram) / len(self.gram) * np.eye(len(self.gram))
        fitted = np.linalg.solve(self.gram + ridge, self.moment).T
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(fitted).to(self.weight))


def _batches(model: SentenceTransformer, texts: Sequence[str], prompt: str) -> Iterator[tuple[np.ndarray, Any]]:
    """Rows of texts and their features, shortest first, in evaluation mode."""
    if not len(texts):
        raise UserError(
            "a map is fitted to texts, and there are none: no training queries and no titles of documents; set "
            "split.train to a split with queries, or leave initialize: fitted and project_exits out."
        )
    order = np.argsort([len(text) for text in texts], kind="stable")
    with evaluating(model), bar(len(texts), "fitting maps", "texts") as progress, torch.no_grad():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            features = model.preprocess([texts[row] for row in rows], prompt=prompt or None)
            yield rows, batch_to_device(features, model.device)
            progress.update(len(rows))


def train_dense(run: StageRun) -> History:
    """Train a dense or static student through a stage, at all its exits, lengths, and truncations."""
    student, stage, data, prepared = run[:4]
    unit = student.similarity == "cosine"
    if stage.train != "query_encoder":
        both = BothEncoders(
            VectorScorer(unit),
            loss_of=lambda make: loss_of_variants(student, stage, make),
            watch=lambda queries, documents, ranked: HeldOutMonitor(student, queries, ranked, None),
        )
        return train_both(run, both)
    if data.student is None:
        raise UserError("a stage's data lacks the student as it is at its start.")
    # Without lists, nothing is trained against documents, and those that the student encodes itself change with it.
    aligns_both_sides = data.own_documents and prepared.lists is None
    stored = None
    if not aligns_both_sides:
        with main_first():
            stored = data.student.vectors(data.collection)
    teacher_vectors = _teacher_vectors(run)
    widths = data.space.widths if data.space is not None else ()

    def leading(vectors: np.ndarray | None, cut: int) -> Any:
        return vectors if vectors is None or cut == vectors.shape[1] else LeadingVectors(vectors, cut, unit=unit)

    def make(cut: int, alone: bool) -> DistillationLoss:
        scorer = StoredVectorScorer(unit, leading(stored, cut))
        # Objectives on relations among texts compare any widths, and the others need equal ones.
        fitting = teacher_vectors if cut == student.dimension else leading(teacher_vectors, cut)
        teacher = TeacherVectors(fitting, prepared.classes, whole=teacher_vectors, widths=widths)
        return DistillationLoss(student.model, prepared.terms, scorer, prepared.lists, teacher, alone=alone)

    @functools.cache  # exits share them
    def coded(cut: int) -> Any:
        return CodedVectors(leading(stored, cut), stage.quantize)  # type: ignore[arg-type]  # not None here

    def make_coded(cut: int) -> DistillationLoss:
        scorer = StoredVectorScorer(unit, coded(cut))
        terms = [term for term in prepared.terms if term.objective.needs_lists]  # others do not see documents
        return DistillationLoss(student.model, terms, scorer, prepared.lists, TeacherVectors(), alone=False)

    if stored is None:
        monitor = _monitor_of_relations(run, teacher_vectors)
    else:
        monitor = held_out_monitor(run, lambda: stored, teacher_vectors, stored)
    return train_on_texts(run, loss_of_variants(student, stage, make, make_coded), monitor)


def _teacher_vectors(run: StageRun) -> np.ndarray | None:
    """(texts, d) embeddings of the training texts by the document encoder; None if no objective needs them."""
    aligning = [term.name for term in run.prepared.terms if not term.objective.needs_lists]
    if not aligning:
        return None
    if run.data.space is None:
        raise UserError(f"objective {aligning[0]!r} needs a dense teacher to align to; set 'document_encoder'.")
    return embed(run.data.space, run.data.teacher_queries(run.prepared.texts.texts).texts, "query")


def train_on_texts(run: StageRun, loss: Any, monitor: Monitor | None) -> History:
    """Train on single texts, each labeled with its row: what it is scored against is stored."""
    rows, texts = training_rows(run.prepared, run.stage), run.prepared.texts.texts.texts
    return fit(run, loss, {"text": [texts[row] for row in rows]}, rows, rows.tolist(), monitor)


def held_out_monitor(
    run: StageRun,
    documents: Callable[[], np.ndarray],
    teacher_vectors: np.ndarray | None = None,
    stored: np.ndarray | None = None,
) -> HeldOutMonitor | None:
    """Agreement with the teacher, and with labels, on held-out texts by (corpus, d) document vectors.

    None for fewer than two texts. Stages without lists also need (texts, d) teacher embeddings and (corpus, d) stored
    document vectors.
    """
    prepared, texts = run.prepared, run.prepared.texts.texts.texts
    if len(prepared.held_out) < 2:
        return None
    ranked = teacher_rows(prepared, _AGREEMENT_DEPTH, teacher_vectors, stored)
    grades, starts = labeled_places(prepared, run.data, prepared.held_out), None
    if (parents := run.data.collection.parents) is not None:
        starts = parents.bounds[:-1]
        grades = {row: {int(parents.rows[at]): grade for at, grade in own.items()} for row, own in grades.items()}
    return HeldOutMonitor(run.student, [texts[row] for row in prepared.held_out], ranked, documents, grades, starts)


def _monitor_of_relations(run: StageRun, teacher_vectors: np.ndarray | None) -> HeldOutMonitor | None:
    """Agreement with the teacher on which held-out texts are close to each other; None for fewer than three texts."""
    held_out = run.prepared.held_out
    if len(held_out) < 3 or teacher_vectors is None:
        return None
    ranked = top_k(cosines_to_others(teacher_vectors[held_out]), min(_AGREEMENT_DEPTH, len(held_out) - 1))
    texts = run.prepared.texts.texts.texts
    return HeldOutMonitor(run.student, [texts[row] for row in held_out], ranked, None, among_texts=True)


def loss_of_variants(
    student: Encoder,
    stage: StageSettings,
    make: Callable[[int, bool], DistillationLoss],
    make_coded: Callable[[int], DistillationLoss] | None = None,
) -> Any:
    """The loss of a stage at all exits, lengths, and truncations, with and without codes; or the plain one.

    ``make`` gives the loss on a number of leading dimensions; its second argument is False for all but the first of
    several, see ``alone`` of `DistillationLoss`. ``make_coded`` gives that on coded documents where they are stored.
    """
    whole = student.dimension

    def with_codes(plain: DistillationLoss, cut: int) -> Any:
        if stage.quantize is None:
            return plain
        coded = make(cut, False) if make_coded is None else make_coded(cut)
        return QuantizedLoss(student.model, plain, coded, stage.quantize, start=plain.start)

    def truncated(alone: bool) -> tuple[Any, Any]:
        """The loss at all truncations, and the student of the stage's start that it keeps."""
        plain = make(whole, alone)
        loss = with_codes(plain, whole)
        if not stage.matryoshka:
            return loss, plain.start
        cuts = {cut: with_codes(make(cut, False), cut) for cut in {*stage.matryoshka} - {whole}}
        return MatryoshkaLoss(student.model, {**cuts, whole: loss}, start=plain.start), plain.start

    exits = exits_of(student.model) if not student.is_static else []
    if exits:
        losses, start = {}, None
        for layer in exits:
            losses[layer], start = truncated(layer == exits[-1])  # the start is that of the deepest exit in the end
        kl_weight = 1.0 if stage.exit_kl is None else stage.exit_kl
        return MultiExitLoss(student.model, losses, weights=stage.exit_weights, kl_weight=kl_weight, start=start)
    lengths = None if student.is_static else length_adaptive_settings(student.model)
    loss, start = truncated(True)
    if lengths is None:
        return loss
    shortest, random = (truncated(False)[0] for _ in range(2))
    return LengthAdaptiveLoss(student.model, lengths, loss, shortest, random, start=start)


def _check(settings: Any) -> None:
    if settings.initialize not in ("teacher", "fitted"):
        raise ValueError(f"initialize: {settings.initialize} is for static students; dense ones take fitted")
    if any(stage.train == "lexical" for stage in settings.stages):
        raise ValueError("a stage with train: lexical needs a lexical half; set the student's lexical_dim to its width")
    if settings.project_exits and not settings.exits:
        raise ValueError("project_exits is about exits; set exits, e.g. [2, 4]")
    if settings.exits and settings.length_adaptive is not None:
        raise ValueError("a student has exits or length_adaptive, not both; remove one, or train two students")
    if settings.keep is not None and settings.length_adaptive is not None:
        raise ValueError("a student is pruned (keep) or length_adaptive, not both; remove one, or train two students")


KIND = Kind(
    "dense",
    library_class="SentenceTransformer",
    written="dense:NAME",
    start=start_dense,
    load=lambda folder: load_encoder(f"dense:{folder}", DENSE),
    wrap=Encoder,
    train=train_dense,
    transformer=lambda model: model[0].auto_model.base_model,
    ranker=lambda student, documents: DenseRanker(documents, student, checked=False),
    parts=("query_encoder", "both_encoders"),
    defaults=lambda _: StageDefaults("query_encoder", {"epochs": 4, "learning_rate": 5e-5, "batch_size": 32}),
    options=frozenset(
        {"initialize", "dimension", "lexical_dim", "exits", "project_exits", "keep", "trim", "length_adaptive"}
    ),
    check=_check,
    index="faiss",
    has_own_documents=False,
    is_dense=True,
    has_vector=True,
    can_teach=True,
)
