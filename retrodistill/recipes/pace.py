"""How fast a stage trains: as remembered from its last run on this machine, or measured in a few of its own steps.

A measurement runs the stage's real training on a throw-away student and a small collection in a temporary folder, which
is the cache meanwhile. The collection has as many documents as a step needs, and their texts repeat: stores encode each
distinct text once, so the measurement encodes few texts and multiplies matrices of the real size.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrodistill.core.cache import throw_away_cache
from retrodistill.core.rates import rate_key, remember, remembered
from retrodistill.core.runtime import muted
from retrodistill.data.collection import Collection, Qrels
from retrodistill.data.texts import Texts
from retrodistill.rankers.ensemble import soft_labels
from retrodistill.rankers.loading import load_ranker
from retrodistill.recipes.stage_teachers import space_of
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.students.registry import run_stage
from retrodistill.training.scoring import WHOLE, candidate_sources, scored_lists, stage_texts
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, TextSettings
from retrodistill.training.texts import TrainingTexts
from retrodistill.training.trainer import History, Pace
from retrodistill.training.training_data import TrainingData

_STEPS, _MORE_STEPS, _FAST = 4, 24, 0.1  # steps that are measured, and more where a step takes less than this
_DISTINCT = 64  # texts of documents that a measurement encodes
_FEWEST = 256  # documents of its collection
_FEW_TEXTS = 16  # texts whose lists are made twice: the difference to more texts is the time of a text
_NOT_PACE = {"epochs", "max_steps", "learning_rate", "warmup", "schedule", "weight_decay", "max_gradient_norm"}


@dataclass(frozen=True)
class StagePace:
    """How fast a stage is."""

    training: Pace
    lists: float  # seconds to find and score the candidates of a text, once all embeddings are stored

    def seconds(self, steps: int, texts: int) -> float:
        """Seconds of the stage, without embedding texts and scoring pairs with a cross-encoder."""
        return self.training.seconds(steps) + self.lists * texts


def remember_pace(student: StudentSettings, stage: StageSettings, data: TrainingData, history: History) -> None:
    """Keep the rates of a stage that was trained."""
    if history.pace is not None:
        remember(_key(student, stage, data, "training"), asdict(history.pace))


def stage_pace(student: StudentSettings, number: int, data: TrainingData, model: Any) -> StagePace:
    """The rates of a student's stage, from 1, as remembered or as measured now, those of a run before measured ones.

    The data is the stage's. A copy of `model`, the student before training, is trained if the rates are measured.
    """
    stage = student.stages[number - 1]
    keys = {what: _key(student, stage, data, what) for what in ("training", "measured training", "lists")}
    trained, measured, listed = map(remembered, keys.values())
    trained = trained or measured
    if trained is None or (listed is None and stage.needs_lists):
        now = _measured(student, number, data, model)
        listed = {"lists": now.lists}
        remember(keys["lists"], listed)
        if trained is None:
            trained = asdict(now.training)
            remember(keys["measured training"], trained)
    return StagePace(Pace(**trained), (listed or {"lists": 0.0})["lists"])


def _key(student: StudentSettings, stage: StageSettings, data: TrainingData, what: str) -> str:
    """Key of a stage's rates: all that decides the work of a step or of a text, but not how many there are."""
    kept = stage.model_dump(mode="json", exclude={"teacher", "start", "selection", "training", "texts"})
    kept["training"] = stage.training.model_dump(mode="json", exclude=_NOT_PACE)
    kept["texts"] = stage.texts.model_dump(mode="json", exclude={"limit", "repeat_queries"})
    if stage.any_document:
        kept["teacher"] = [member.name for member in data.teacher.members]
    model = student.model_dump(mode="json", exclude={"stages", "control", "initialize"})
    return rate_key(what, model, kept, space_of(data).document_space, data.collection.documents.fingerprint)


def _measured(student: StudentSettings, number: int, data: TrainingData, model: Any) -> StagePace:
    documents = len(data.collection.documents)
    with throw_away_cache() as folder, muted():
        stage, small = _small(student.stages[number - 1], data, folder)
        model = student.kind.at_stage(copy.deepcopy(model), student, number - 1)
        history = run_stage(model, stage, small, folder / "training", "measuring")
        if history.pace is not None and history.pace.step < _FAST:
            longer = stage.training.model_copy(update={"max_steps": _MORE_STEPS})
            again = stage.model_copy(update={"training": longer})
            history = run_stage(model, again, small, folder / "training-longer", "measuring")
        lists = 0.0
        if stage.needs_lists:
            lists = _seconds_of_lists(stage, small) * documents / len(small.collection.documents)
    return StagePace(history.pace or Pace(history.seconds), lists)


def start_model(student: StudentSettings, data: TrainingData) -> Any:
    """A student as large as the one that is trained, before training; its values are drawn where that is faster."""
    drawn = {"initialize": "random" if student.model == "static" else "teacher", "project_exits": False}
    dimension = "space" if student.initialize == "fitted" and student.model != "static" else student.dimension
    keep = student.keep and student.keep.model_copy(update={"texts": 0})
    return student.kind.start(student.model_copy(update={**drawn, "dimension": dimension, "keep": keep}), data)


def _small(stage: StageSettings, data: TrainingData, folder: Path) -> tuple[StageSettings, TrainingData]:
    """A stage of a few steps, and its data, of which a step has as much as in training."""
    size, corpus, groups = stage.training.batch_size, len(data.collection.documents), stage.draws_groups
    sources = 1 if data.teacher.run is not None else len(candidate_sources(stage, data))
    is_whole = stage.candidates.depth == "all"
    width = stage.groups.depth if is_whole else int(stage.candidates.depth) * sources + stage.candidates.random
    needed = _FEWEST if groups else size * width + stage.candidates.shared
    documents = corpus if is_whole and not groups else min(corpus, WHOLE, max(needed, width, _FEWEST))
    collection = repeated(data.collection, documents)
    texts = max(_STEPS * size * 10 // 9 + 10, 2 * _FEW_TEXTS)
    queries = data.queries.select(data.queries.ids[: texts if stage.texts.queries else 0])
    settings: dict[str, Any] = {
        "selection": None,
        "batches": "shuffled",
        "topics": None,
        "training": stage.training.model_copy(update={"max_steps": _STEPS, "epochs": 1e6}),
        "texts": _texts_of_any(stage.texts).model_copy(update={"limit": texts}),
    }
    teacher = data.teacher
    if stage.needs_lists and not stage.any_document and not stage.needs("teacher_tokens"):
        # The document encoder scores as many candidates in place of the teacher, whose scores a step only reads.
        teacher = load_ranker(space_of(data))
        if stage.labels != "scores":
            teacher = soft_labels([teacher], "cosine")
        name, depth = space_of(data).name, min(documents, width)
        changes = {"sources": [name], "depth": depth, "random": 0, "budget": None}
        settings["candidates"] = stage.candidates.model_copy(update=changes)
    elif stage.needs_lists and not is_whole:
        named = [name for name in candidate_sources(stage, data) if name != CURRENT_STUDENT] or [data.bm25]
        settings["candidates"] = stage.candidates.model_copy(update={"sources": named})
    labels = Qrels.from_rows((query, collection.documents.ids[0], 1) for query in queries.ids)
    small = replace(
        data,
        collection=collection,
        queries=queries,
        teacher=teacher,
        space=space_of(data),
        folder=folder,
        excluded=None,
        stored=None,
        labels=labels,
        labeler=None,
    )
    return stage.model_copy(update=settings), small


def repeated(collection: Collection, size: int) -> Collection:
    """A collection of `size` documents with few distinct texts, evenly spread over those of another; no queries."""
    rows = np.unique(np.linspace(0, len(collection.documents) - 1, _DISTINCT, dtype=int))
    places = pa.array(np.arange(size) % len(rows))
    ids = pa.array([str(row) for row in range(size)])

    def texts(given: Texts) -> Texts:
        few = pa.array([given.column[row] for row in rows], pa.large_string())
        return Texts(pa.table({"id": ids, "text": few.take(places)}))

    documents, titles, bodies = map(texts, (collection.documents, collection.titles, collection.bodies))
    return Collection(collection.name, documents, titles=titles, bodies=bodies, queries=Texts.from_pairs([]), qrels={})


def _texts_of_any(texts: TextSettings) -> TextSettings:
    """Texts with sentences in place of generated queries, whose documents are not those of another collection."""
    if texts.generated is None:
        return texts
    return texts.model_copy(update={"generated": None, "sentences": max(1, texts.sentences)})


def _seconds_of_lists(stage: StageSettings, data: TrainingData) -> float:
    """Seconds that finding and scoring a text's candidates takes, by the difference between more and fewer texts."""
    texts = stage_texts(stage, data)
    taken = []
    for count in (1, _FEW_TEXTS, len(texts)):  # the first loads what all need
        rows = np.unique(np.linspace(0, len(texts) - 1, count, dtype=int))
        some = TrainingTexts(texts.texts.select([texts.texts.ids[row] for row in rows]), texts.sources[rows])
        start = time.perf_counter()
        scored_lists(stage, data, some)
        taken.append(time.perf_counter() - start)
    return max(0.0, taken[2] - taken[1]) / max(1, len(texts) - _FEW_TEXTS)
