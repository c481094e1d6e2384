"""Distill, trim and evaluate from Python, in one call each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from retrodistill.core.errors import UserError
from retrodistill.core.files import check_replaceable
from retrodistill.core.json_files import read_json
from retrodistill.core.locks import exclusive
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import is_main, log
from retrodistill.core.settings import validated
from retrodistill.data import Collection, load_collection
from retrodistill.data.collection import judgments_of
from retrodistill.data.leaks import LeakRule, excluded_queries
from retrodistill.data.pseudo_queries import load_generated
from retrodistill.data.records import text_of
from retrodistill.data.tables import read_lines, read_objects
from retrodistill.data.texts import Texts
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.contract import STUDENT_MANIFEST, searched_space
from retrodistill.encoders.loading import (
    load_bi_encoder,
    load_cross_encoder,
    load_multi_vector,
    load_sparse,
    require_scoring_head,
    student_manifest,
)
from retrodistill.encoders.modules import weights_digest
from retrodistill.encoders.names import parse_model_name, split_variant
from retrodistill.encoders.reading import warn_of_length
from retrodistill.evaluation import evaluating
from retrodistill.evaluation.cost import CostConfig
from retrodistill.evaluation.evaluating import Evaluation, EvaluationConfig
from retrodistill.evaluation.results import Results
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.recipes import StudentSettings
from retrodistill.recipes.cards import write_student_card
from retrodistill.recipes.student_settings import TrimSettings, complete_student
from retrodistill.recipes.students import train_student
from retrodistill.report import write_page
from retrodistill.students.registry import AnyStudent, save_student
from retrodistill.training.scoring import check_teacher
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.texts import training_queries
from retrodistill.training.tracking import check_trackers, track
from retrodistill.training.training_data import TrainingData

_TRIMMED: dict[str, Callable[[str], Any]] = {  # kinds that can be trimmed, and what loads them with merged adapters
    "static": load_bi_encoder,
    "dense": load_bi_encoder,
    "sparse": load_sparse,
    "multi-vector": load_multi_vector,
    "cross-encoder": load_cross_encoder,
}

__all__ = ["Evaluation", "distill", "evaluate", "trim"]


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
              ``query_encoder`` for static and dense students and sparse ones of ``queries: separate-model``, ``head``
              for multi-vector, prett and tk students and sparse students from a bi-encoder, and ``both_encoders`` for
              the rest.
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


def trim(  # noqa: PLR0913 - one option each
    model: str,
    collection: Collection | str | None = None,
    *,
    texts: Sequence[str | os.PathLike[str]] = (),
    split: str = "auto",
    min_count: int = 1,
    dimension: float | None = None,
    precision: str = "float32",
    queries_only: bool = False,
    out: str | os.PathLike[str] = "out/trimmed",
) -> AnyStudent:
    """Write a copy of a model that has only the tokens that texts use, and those that any other word needs.

    A text whose tokens are all kept has the vector that it had. A student keeps the document space that its queries
    search, and indexes of that space accept it. Another model has a space of its own, since it may give other texts
    other vectors: documents are encoded with it, unless `queries_only` says that it is for queries alone.

    Args:
        model: ``kind:NAME``: static, dense, sparse, multi-vector, or cross-encoder, with a WordPiece, BPE, or Unigram
            tokenizer.
        collection: A collection, or what `load_collection` takes, whose documents and queries are used; or None.
        texts: Files of queries or other texts: one per line, or JSON lines with ``text``; also with .gz or .zst.
        split: The queries of the collection: ``auto`` uses train, or else those in no split. Test queries are left out
            of every split, as in training.
        min_count: Fewest texts that have a token which is kept for them.
        dimension: Of a static model: dimensions of its table, or the share of the texts' squared vectors that they
            keep. A linear map follows, so that vectors stay in their space.
        precision: Of a static model: that of its table on disk, ``float32`` or ``int8``.
        queries_only: For a model that encodes documents, too: the trimmed one searches the documents of `model`.
        out: Folder, an ordinary sentence-transformers folder.

    Returns:
        The trimmed model, as it is loaded from there.

    Raises:
        UserError: Something does not fit; nothing is half-written.
    """
    from retrodistill.students.trimming import trim_model

    given = {"min_count": min_count, "dimension": dimension, "precision": precision}
    settings, folder = validated(TrimSettings, given, "trim", "option"), check_replaceable(out, STUDENT_MANIFEST)
    if collection is None and not texts:
        raise UserError("trim needs texts whose tokens are kept; give a collection, or files of texts.")
    if path_of(parse_model_name(model).name).absolute() == folder.absolute():
        raise UserError(f"{folder} is the folder of {model} itself, which would be lost; choose another.")
    loaded, manifest = _to_trim(model, settings, queries_only=queries_only)
    documents = queries = Texts.from_pairs([])
    if collection is not None:
        corpus = load_collection(collection)
        documents, (queries, warning) = corpus.documents, training_queries(corpus, split, excluded_queries(corpus))
        if warning:
            log(warning)
    queries = queries + _texts_of(texts)
    options = settings.model_dump(include={"min_count", "dimension"})
    trimmed = trim_model(loaded, documents.column, queries.column, **options, name=f"model {model}")
    if trimmed.warning:
        log(f"warning: {trimmed.warning}")
    # beside those of its training
    inputs = {"corpus of trim": documents.fingerprint, "queries of trim": queries.fingerprint}
    inputs["weights before trim"] = weights_digest(loaded)
    made = replace(
        manifest,
        inputs={**manifest.inputs, **inputs},
        settings={**manifest.settings, "trim": settings.model_dump(mode="json")},
        about={**manifest.about, "trimmed": trimmed.about},
    )
    return save_student(trimmed.model, made, folder, settings.precision)


def _to_trim(model: str, settings: TrimSettings, *, queries_only: bool) -> tuple[Any, Manifest]:
    """A model by its name, and its manifest, with the space that its queries search if it is for them alone."""
    named = parse_model_name(model)
    if named.kind not in _TRIMMED:
        raise UserError(f"trim works for {', '.join(_TRIMMED)}; {model} is of another kind.")
    if named.kind != "static" and (settings.dimension is not None or settings.precision != "float32"):
        raise UserError(
            f"dimension and precision are for the table of a static model; {model} is {named.kind}: leave them out."
        )
    if queries_only and named.kind in ("sparse", "cross-encoder"):
        raise UserError(
            f"{model} is {named.kind}: trimmed, it cannot search documents of the whole model; encode anew."
        )
    manifest = student_manifest(split_variant(named.name)[0]) or Manifest("student", settings={"model": model})
    if queries_only and "query_space" not in manifest.about:
        space = searched_space(load_encoder(model))
        manifest = replace(manifest, about={**manifest.about, **space})
    loaded = _TRIMMED[named.kind](named.name)
    if named.kind == "cross-encoder":
        require_scoring_head(named.name)
    if named.kind == "static" and type(loaded[0]).__name__ != "StaticEmbedding":
        raise UserError(f"model {named.name} is not a token table; name it 'dense:{named.name}'.")
    return loaded, manifest


def _texts_of(files: Sequence[str | os.PathLike[str]]) -> Texts:
    """The texts of files: one per line, or of JSON lines."""
    return Texts.from_pairs(
        (f"{place}:{number}", text) for place, file in enumerate(files) for number, text in _lines_of(path_of(file))
    )


def _lines_of(file: Path) -> Iterator[tuple[int, str]]:
    if not file.is_file():
        raise UserError(f"no file {file}; give a file with a text per line.")
    if ".jsonl" not in file.suffixes:
        yield from read_lines(file)
        return
    for number, record in read_objects(file, '{"text": ...}'):
        yield number, text_of(record.get("text"), "text", f"{file}, line", number)


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
