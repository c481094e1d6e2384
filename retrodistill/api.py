"""Distill and evaluate from Python, in one call each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from retrodistill.core.errors import UserError
from retrodistill.core.files import check_replaceable
from retrodistill.core.json_files import read_json
from retrodistill.core.locks import exclusive
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import is_main, log
from retrodistill.core.settings import validated
from retrodistill.data import Collection, load_collection
from retrodistill.data.collection import judgments_of
from retrodistill.data.leaks import LeakRule, excluded_queries
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.reading import warn_of_length
from retrodistill.evaluation import evaluating
from retrodistill.evaluation.cost import CostConfig
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig
from retrodistill.evaluation.results import Results
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.recipes import StudentSettings
from retrodistill.recipes.cards import write_student_card
from retrodistill.recipes.student_settings import complete_student
from retrodistill.recipes.students import train_student
from retrodistill.report import write_page
from retrodistill.students.registry import AnyStudent
from retrodistill.training.scoring import check_teacher
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.texts import training_queries
from retrodistill.training.tracking import check_trackers, track
from retrodistill.training.training_data import TrainingData

__all__ = ["Evaluation", "distill", "evaluate"]


def distill(  # noqa: PLR0913 - one option each
    collection: Collection | str,
    target: Any,
    *,
    student: str | Mapping[str, Any] = "static",
    objective: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "kl",
    document_encoder: str | Encoder = "dense:all-MiniLM-L6-v2",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] = "out/student",
    seed: int = 0,
    tracking: Sequence[str] = (),
) -> AnyStudent:
    """Distill a student; if the call is killed, the same call resumes where it stopped.

    Args:
        collection: A collection, or what `load_collection` takes.
        target: The teacher: a run of teacher scores (from `score` and `fuse`), a ranker, or a model name.
        student: ``static``, or ``kind:NAME`` to start from, where kind is ``dense``, ``sparse``, ``multi-vector``,
            ``cross-encoder``, ``prett`` or ``tk``; or a mapping of `retrodistill.recipes.StudentSettings`, such as
            ``{"model": "multi-vector:all-MiniLM-L6-v2", "dimension": 128}``. Defaults depend on the kind. Static and
            dense students search the document encoder's vectors. The others encode documents themselves: a
            multi-vector student from a bi-encoder has token vectors of 128 dimensions, at most half the model's width;
            a sparse student from a bi-encoder has inference-free queries and lexical terms; the last three re-rank
            what others find. For a curriculum, give the mapping ``stages``, as in a recipe: a list of
            `retrodistill.training.settings.StageSettings` or mappings, each with its own objectives, ``train`` and
            ``training``.
        objective: ``kl``, ``margin-mse``, ``margin-mse-all`` (on lists), ``leaf`` (aligns static and dense students
            with the document encoder), or several, which are summed. Each is a name, whose student temperature then
            fits the kind, or a mapping. Ignored if the student has stages.
        document_encoder: The dense model whose document vectors the student's queries search.
        training: How long and how fast to train, as `retrodistill.training.settings.TrainingSettings`; keys missing
            from a mapping get defaults that suit the kind of student. A mapping may have five more keys:

            - ``queries``: the split to train on. The default, ``auto``, uses train, or else the queries that are in no
              split. Test queries are always left out. A recorded run only teaches queries that it has rows for.
            - ``bm25``: the setting of BM25, which proposes candidates, e.g. ``german`` or ``auto``; English by default.
            - ``texts``: the texts to train on, as `retrodistill.training.settings.TextSettings`, such as
              ``{"phrases": 3, "generated": "generated.jsonl"}``.
            - ``leaks``: what counts as a test query, as in `ExcludedQueries`: ``near`` (the default) or ``exact``.
            - ``train``: ``query_encoder``: documents stay as they are; ``both_encoders``: the student encodes its own
              documents; ``head``: only what follows a transformer learns, from its stored states. The default is
              ``query_encoder`` for static and dense students, ``head`` for multi-vector, prett and tk students and
              sparse students from a bi-encoder, and ``both_encoders`` for the rest.
        out: Folder of the student, an ordinary sentence-transformers folder.
        seed: Seed of all random draws.
        tracking: Where losses and monitors are logged: ``tensorboard`` (in the folder ``tensorboard`` next to `out`),
            ``wandb``, ``mlflow``, ``trackio``.

    Returns:
        The student, ready for `build_index`; evaluate one that scores pairs as ``rerank:FOLDER@bm25``.

    Raises:
        UserError: Something does not fit; nothing is half-written.
    """
    objectives = [objective] if isinstance(objective, (str, Mapping)) else list(objective)
    given = training.model_dump() if isinstance(training, TrainingSettings) else dict(training or {})
    queries, leaks, lexical = (given.pop(*key) for key in (("queries", "auto"), ("leaks", "near"), ("bm25", "")))
    if leaks not in get_args(LeakRule):
        raise UserError(f"leaks={leaks!r}: give near or exact.")
    settings = validated(StudentSettings, complete_student(student, objectives, given), "distill")
    folder = check_replaceable(out, STUDENT_MANIFEST)
    check_trackers(tracking)
    corpus, teacher, bm25 = load_collection(collection), load_ranker(target), BM25Ranker(lexical)
    excluded = excluded_queries(corpus, leaks)
    train, warning = training_queries(corpus, queries, excluded)
    if warning:
        log(warning)
    check_teacher(teacher, corpus, train, settings.stages)
    for stage in settings.stages:
        if stage.texts.generated is not None:
            load_generated(stage.texts.generated, corpus)  # refuses what is not of these documents
    work = folder.with_name(f".{folder.name}.work")  # of its own, since other students may be training next to it
    space = load_encoder(document_encoder, DENSE).bind(corpus)
    warn_of_length(space, corpus)
    labels = corpus.passage_labels(judgments_of(train, corpus.qrels.values()))
    data = TrainingData(
        corpus, train, teacher, space, work, seed, excluded=excluded, labels=labels, bm25=bm25.of(corpus).name
    )
    config = {"collection": corpus.name, **settings.model_dump(mode="json"), "seed": seed}
    with exclusive(work / ".lock"), track(tracking, folder.name, folder.parent, config):
        trained = train_student(folder.name, settings, data, folder)
        if is_main():
            source = None if isinstance(collection, Collection) else collection
            write_student_card(folder, folder.name, data, encoder=trained.encoder, collection=source)
            shutil.rmtree(work, ignore_errors=True)
    return trained.encoder


def evaluate(  # noqa: PLR0913 - one option each
    systems: Mapping[str, Any] | Sequence[Any] | Any,
    collection: Collection | str,
    split: str | None = None,
    *,
    measures: Sequence[str] | None = None,
    depth: int = 1000,
    teacher: Any = None,
    cost_threads: int | None = None,
    same_id: str | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Measure systems on one collection, by BEIR's rules; queries without results count as 0.

    Args:
        systems: ``{name: system}``, a list, or a single system: a model name, an index or its folder, a run, an
            encoder, an ensemble, or ``rerank:TEACHER@SOURCE``.
        collection: A collection, or what `load_collection` takes.
        split: The split whose judgments are used; by default BEIR's: test, or dev for msmarco.
        measures: Any strings of ir_measures, such as ``nDCG@10`` or ``RR(rel=2)@10``, or the short forms ``ndcg@k``,
            ``mrr@k``, ``recall@k``, ``map@k``, ``precision@k`` and ``hole@k``; BEIR's by default.
        depth: Documents retrieved per query, at most the size of the corpus.
        teacher: Also measure agreement with this teacher, which needs no judgments.
        cost_threads: Also measure cost, with this number of threads, which needs no judgments.
        same_id: What happens to a document with its query's id: ``auto`` leaves it out where it is the query itself
            (see `Collection.own_documents`), ``drop`` always, as beir does, ``keep`` never; by default as the
            collection's `same_id` says, which is ``auto``.
        out: Folder of the collection, for ``runs/NAME.run``, ``per-query.parquet``, ``results.json`` and
            ``report.html``. Systems that were already measured there with the same settings are not measured again,
            and other systems measured there on the same queries stay at the top of the table.

    Returns:
        The evaluation of the given systems.

    Raises:
        UserError: There are no judgments and nothing else to measure, or a system cannot search.
    """
    place = None if isinstance(collection, Collection) else str(collection)
    cost = None if cost_threads is None else CostConfig(cost_threads, place=place)
    config = EvaluationConfig(split, measures, depth, teacher, cost, same_id)
    evaluation = evaluating.evaluate(systems, load_collection(collection), config, out)
    if out is not None:
        write_report(out)
    return evaluation


def write_report(folder: str | os.PathLike[str]) -> None:
    """Write report.html next to the results.json of an evaluated folder."""
    place = path_of(folder)
    write_page(Results.from_json(read_json(place / "results.json")), place / "report.html")
