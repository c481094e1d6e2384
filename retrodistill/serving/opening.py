"""What is served: the folder of a job, indexes, exported stores, and models, opened as systems."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import FILE_NAME
from retrodistill.core.names import is_file_name
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import log
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import IN_MEMORY, encode_with
from retrodistill.encoders.names import KINDS, check_can_search, parse_model_name
from retrodistill.evaluation.examples import MEASURE
from retrodistill.evaluation.measures import Grades
from retrodistill.evaluation.results import Results, SystemResult
from retrodistill.evaluation.systems import PER_QUERY, read_per_query, run_file, split_of
from retrodistill.indexes import build_index, load_index
from retrodistill.indexes.base import Index
from retrodistill.indexes.columns import records_of
from retrodistill.indexes.hub import is_on_hub
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import is_store, load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.rankers.reranker import Reranker
from retrodistill.recipes.job import Job, open_job
from retrodistill.recipes.loading import load_recipe
from retrodistill.recipes.systems import baselines
from retrodistill.report.headline import best_student
from retrodistill.report.text import short_name, with_short_names
from retrodistill.runs.formats import read_run
from retrodistill.serving.batching import Worker
from retrodistill.serving.systems import (
    CompositeSystem,
    IndexSystem,
    LexicalSystem,
    ModelSystem,
    PairJudge,
    RecordedSystem,
    Request,
    System,
)
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.registry import kind_of, load_student

_RESULTS, _RECIPE = "results.json", "recipe.yaml"


@dataclass
class Served:
    """Systems with what is known about their documents and test queries.

    Attributes:
        name: Of the job, the index, or the model.
        systems: By name, in the order of the table.
        collection: Where texts and fields of documents are; None for those that an index stores.
        queries: Test queries.
        grades: Judgments of the test queries; empty without any.
        values: By system, its nDCG@10 of each test query; only for a job with judgments.
        pair: Names of the systems that the page shows first, the reference before the student.
        judgments: The folder to which judgments are appended by default.
    """

    name: str
    systems: dict[str, System]
    collection: Collection | None = None
    queries: Texts = field(default_factory=lambda: Texts.from_pairs([]))
    grades: Grades = field(default_factory=dict)
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pair: Sequence[str] = ()
    judgments: Path = Path("judgments")
    workers: dict[str, Worker[Request]] = field(default_factory=dict, repr=False)

    def start(self, *, batch: int = 32, waiting: int = 256) -> Served:
        """Start a thread for each system; systems that share a model take turns."""
        locks: dict[int, threading.Lock] = {}
        for name, system in self.systems.items():
            shared = sorted({id(model) for model in system.models})  # one order everywhere: no deadlock
            own = [locks.setdefault(model, threading.Lock()) for model in shared]
            self.workers[name] = Worker(system.answer, f"system {name}", most=batch, waiting=waiting, locks=own)
        return self

    def stop(self) -> None:
        """Answer what waits, and end the threads."""
        for worker in self.workers.values():
            worker.close()

    def close(self) -> None:
        """Stop, and release stores; no answer may be under way, since it may still read texts."""
        self.stop()
        for system in self.systems.values():
            system.close()

    def system(self, name: str | None, can: str, is_able: Callable[[System], bool]) -> System:
        """The system of a name, or the first that is able to do what `can` says; else a UserError or KeyError.

        KeyError is for a name that no system has.
        """
        if name is not None and name not in self.systems:
            raise KeyError(str(unknown("system", name, self.systems)))
        able = [system for system in self.systems.values() if is_able(system)]
        if name is not None and self.systems[name] not in able:
            names = ", ".join(system.name for system in able)
            raise UserError(
                f"system {name!r} does not {can}; " + (f"those that do: {names}." if able else "none does.")
            )
        if not able:
            raise UserError(f"no system here can {can}.")
        preferred = [system for system in able if system.name in self.pair[1:]]
        preferred += [system for system in able if system.role == "student"]
        return self.systems[name] if name is not None else [*preferred, *able][0]

    def records(self, system: System, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Title, text, and fields of documents or passages, as far as they are known."""
        if self.collection is None:
            return [{} for _ in ids] if system.index is None else system.index.fields_of(ids)
        found = records_of(self.collection, ids)
        if self.collection.parents is None:
            return found
        whole = records_of(self.collection.whole, ids)  # a system may search whole documents
        return [own or other for own, other in zip(found, whole, strict=True)]

    def holds(self, document_id: str) -> bool:
        """Whether there is a document of this id."""
        if self.collection is not None:
            return document_id in self.collection.whole.documents
        for system in self.systems.values():
            with suppress(UserError):
                if system.index is not None and len(system.index.fields_of([document_id])) == 1:
                    return True
        return False

    @property
    def has_texts(self) -> bool:
        """Whether titles and texts of documents can be shown."""
        stored = (system.schema.names for system in self.systems.values() if system.can_search)
        return self.collection is not None or any("text" in names for names in stored)

    @cached_property
    def ids_by_text(self) -> dict[str, str]:
        """The id of each test query by its text."""
        return {text: id_ for id_, text in zip(self.queries.ids, self.queries.texts, strict=True)}

    def by_difference(self, first: str, second: str) -> tuple[list[str], np.ndarray | None]:
        """All test queries, and (n,) differences of nDCG@10, second minus first; None where it was not measured."""
        ids = self.queries.ids
        sides = [self.values.get(name, {}) for name in (first, second)]
        if not all(sides):
            return ids, None
        return ids, np.array([sides[1].get(id_, 0.0) - sides[0].get(id_, 0.0) for id_ in ids])


def open_places(places: Sequence[str], *, collection: str | None = None, queries: str | None = None) -> Served:
    """Open what is served.

    Args:
        places: A folder of a job, the folder of an index, an exported store, the folder of a student, or anything else
            that `load_ranker` takes, which then needs a collection to search. Several are served side by side.
        collection: Of the documents' texts and the test queries; a job knows its own, which this one replaces.
        queries: Query encoder of indexes, in place of their own.

    Raises:
        UserError: There is no such place, a file or a model is missing or damaged, or two systems have one name.
    """
    corpus: Collection | None = None
    parts = []
    for place in places:
        folder = path_of(place)
        if is_job(folder):
            if queries is not None:
                raise UserError(
                    f"{place} is the folder of a job, whose students have their encoders; leave --queries out."
                )
            parts.append(_of_job(folder, collection))
            continue
        if collection is not None and corpus is None:
            corpus = load_collection(collection)
        parts.append(open_place(place, corpus, queries))
    served, *others = sorted(parts, key=lambda part: not len(part.queries))  # test queries are those of the first
    for other in others:
        if twice := served.systems.keys() & other.systems.keys():
            raise UserError(
                f"two systems are called {sorted(twice)[0]!r}; serve them one at a time, or rename a folder."
            )
        served.systems |= other.systems
        served.name += f", {other.name}"
        served.collection = served.collection or other.collection
    if len(served.pair) < 2:
        served.pair = [name for name, system in served.systems.items() if system.can_search][:2]
    return served


def is_job(folder: Path) -> bool:
    """Whether this is the folder of a job."""
    return (folder / _RECIPE).is_file()


def open_place(place: str, corpus: Collection | None, queries: Any = None, *, teacher: bool = True) -> Served:
    """Open one thing that is not a job: an index, an exported store, a student, or a model by its name.

    Args:
        place: As `open_places` takes it.
        corpus: Of the documents' texts and the test queries; None for none.
        queries: Query encoder of an index, in place of its own.
        teacher: Whether the documents' own model is opened, too, where the queries of an index are by another one.

    Raises:
        UserError: As `open_places`.
    """
    folder = path_of(place)
    if is_store(place) or is_on_hub(place) or (folder / FILE_NAME).is_file():
        return _of_index(place, corpus, queries, teacher=teacher)
    if folder.is_dir() and place.partition(":")[0] not in KINDS:
        return _of_student(folder)
    return _of_name(place, corpus)


def _of_job(folder: Path, collection: str | None) -> Served:
    """All systems of a job: alive where their models are here, otherwise by their recorded runs."""
    if not (folder / _RESULTS).is_file():
        raise UserError(f"{folder} holds a job that is not finished (no {_RESULTS}); run it again to resume it.")
    content = Results.from_json(read_json(folder / _RESULTS))
    recipe = load_recipe(folder / _RECIPE, [f"collection={collection}"] if collection else [])
    with encode_with(recipe.encoding):
        job = open_job(recipe, folder)
        systems = _JobSystems(job, folder)
        short = with_short_names(content).systems
        opened = {row.name: systems.open(row, shown) for row, shown in zip(content.systems, short, strict=True)}
    tables = read_per_query(folder) if (folder / PER_QUERY).is_file() else {}
    values = {
        name: dict(zip(table["query_id"].to_pylist(), table[MEASURE].to_pylist(), strict=True))
        for name, table in tables.items()
        if MEASURE in table.column_names
    }
    student = best_student(content.systems)
    first = next((name for name in (content.taught_by, "exact", "teacher", "bm25") if name in opened), None)
    pair = content.sides or [name for name in (first, student and student.name) if name]
    return Served(
        content.name or folder.name,
        opened,
        job.collection,
        job.test,
        job.task.grades or {},
        values,
        [name for name in pair if name in opened],
        folder / "judgments",
    )


class _JobSystems:
    """Opens the systems of a job's table; models that several of them use are loaded once."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._baselines = {system.name: system for system in baselines(job)}
        self._lexical = LexicalSystem(job.bm25, job.collection, "bm25")
        self._dense: dict[str, Index] = {}

    def open(self, row: SystemResult, shown: SystemResult) -> System:
        """A system by its row of the table."""
        about: dict[str, Any] = {"documents_by": shown.documents_by, "queries_by": shown.queries_by}
        opened = self._open(row, about)
        asked = self._baselines[row.name].queries if row.name in self._baselines else None
        if asked is not None and not opened.is_recorded:
            opened.rewrites = asked
        return opened

    def _open(self, row: SystemResult, about: dict[str, Any]) -> System:
        name, role = row.name, row.role
        index, student = (self._folder / kind / name for kind in ("indexes", "students"))
        has_folder = is_file_name(name)  # unlike ``run:a/b``, or a name in results that somebody else wrote
        if has_folder and (index / FILE_NAME).is_file():
            return IndexSystem(load_index(index), name, role, **about)
        if name in self._baselines:
            opened = self._alive(self._baselines[name].ranker, name, role, about)
        elif has_folder and student.is_dir():
            loaded: Any = load_student(student)
            kind = kind_of(loaded.model)
            opened = None
            if not kind.can_search:
                depth = self._job.recipe.evaluation.rerank
                ranker = Reranker(kind.ranker(loaded, None), self._job.bm25, depth, name)
                opened = self._alive(ranker, name, role, about)
        else:
            opened = None
        return opened or self._recorded(name, role, about)

    def _recorded(self, name: str, role: Any, about: dict[str, Any]) -> System:
        file = run_file(self._folder, name)
        if not file.is_file():
            raise UserError(f"{self._folder} has neither an index nor a run of {name}; run the job again.")
        return RecordedSystem(partial(read_run, file), self._job.test, self._job.collection, name, role, **about)

    def _alive(self, ranker: Ranker, name: str, role: Any, about: dict[str, Any]) -> System | None:
        """The system of a ranker; None if it can only be recorded."""
        return alive(ranker, self._job.collection, name, role, self._member, about)

    def _member(self, ranker: Ranker) -> System | None:
        """A member of an ensemble, or the source of a re-ranker."""
        if ranker.kind == "bm25" and ranker.fingerprint(self._job.collection) == self._job.bm25.fingerprint(
            self._job.collection
        ):
            return self._lexical
        return alive(ranker, self._job.collection, ranker.name, "baseline", self._member, {}, self._dense)


def alive(
    ranker: Ranker,
    collection: Collection,
    name: str,
    role: Any,
    member: Callable[[Ranker], System | None],
    about: Mapping[str, Any],
    indexes: dict[str, Index] | None = None,
) -> System | None:
    """The system of a ranker, which answers new queries and stores nothing; None if the ranker cannot.

    Encoders search an index in memory of the vectors that are stored. Ensembles and re-rankers search whole documents.

    Args:
        ranker: Any.
        collection: What it searches.
        name: Of the system.
        role: Of the system.
        member: The same for the members of an ensemble and for the source of a re-ranker.
        about: Encoders' names.
        indexes: By name, those that are built already.
    """
    given: Any = ranker
    if getattr(ranker, "index_kind", None):
        return IndexSystem(given, name, role, **about)
    if ranker.kind == "bm25":
        return LexicalSystem(given, collection, name, role) if ranker.ranks_documents(collection) else None
    if ranker.documents is not None and ranker.can_search and ranker.can_be_timed:
        built = {} if indexes is None else indexes
        if ranker.name not in built:
            built[ranker.name] = build_index(collection, ranker.documents, ranker.queries, name=ranker.name)
        return IndexSystem(built[ranker.name], name, role, **about)
    return None if collection.parents is not None else _composite(ranker, collection, name, role, member, about)


def _composite(
    ranker: Any,
    collection: Collection,
    name: str,
    role: Any,
    member: Callable[[Ranker], System | None],
    about: Mapping[str, Any],
) -> System | None:
    """An ensemble or a re-ranker of systems that are alive; None for any other ranker."""
    if len(ranker.members) > 1 and ranker.method is not None:
        members = [member(each) for each in ranker.members]
        return None if None in members else _ensemble(ranker, members, collection, name, role, about)
    source, judge = getattr(ranker, "source", None), getattr(ranker, "judge", None)
    if source is None or judge is None or not judge.can_time_pairs or (finder := member(source)) is None:
        return None
    scorer, depth = PairJudge(judge, collection), ranker.depth
    system = CompositeSystem(
        [finder], lambda found: Reranker(scorer, found[0], depth, name), collection, name, role, **about
    )
    model = getattr(judge, "student", judge).model  # a student that stores its documents is inside its ranker
    system.judge = CrossEncoderStudent(model, judge.name)
    system.models = [*finder.models, model]
    return system


def _ensemble(
    ranker: Any, members: Sequence[Any], collection: Collection, name: str, role: Any, about: Mapping[str, Any]
) -> System:
    def make(found: Sequence[Ranker]) -> Ranker:
        return Ensemble(
            found, ranker.weights, ranker.method, calibrations=ranker.calibrations, depth=ranker.depth, name=name
        )

    return CompositeSystem(members, make, collection, name, role, **about)


def _of_index(place: str, corpus: Collection | None, queries: Any, *, teacher: bool) -> Served:
    """An index, and next to it, if wanted, the documents' own model on it where the index has other queries."""
    index = load_index(place, queries)
    name = path_of(place.rpartition("#")[2] or place).resolve().name
    index.name = name
    by = short_name(index.documents_by)
    own = IndexSystem(index, name, documents_by=by, queries_by=short_name(getattr(index.queries, "name", "")))
    systems: dict[str, System] = {name: own}
    # Token weights without a model are those of the documents' own model.
    asked_by = index.queries
    if teacher and asked_by is not None and asked_by.has_model and not index.space.holds_documents_of(asked_by):
        model = _documents_model(index)
        if model is not None:
            other = copy.copy(index)
            other.queries = model
            names = {"documents_by": by, "queries_by": short_name(model.name)}
            both = IndexSystem(other, f"{name}, teacher's queries", "teacher", **names)
            both.models = (index, *both.models)  # one index behind both
            systems = {both.name: both, **systems}
    served = Served(name, systems, pair=list(systems))
    if not is_store(place) and not is_on_hub(place):
        folder = path_of(place)
        served.judgments = folder.with_name(f"{folder.resolve().name}.judgments")
    return served if corpus is None else _with_collection(served, index.as_indexed(corpus), index.changes(corpus))


def _documents_model(index: Index) -> Any:
    """The model of the documents, if it is here; a log line says why it is not."""
    if index.documents_by.partition(":")[2] in ("", IN_MEMORY):
        return None
    try:
        teacher = load_encoder(index.documents_by, index.encoder_kinds)
        index.space.check_query_encoder(teacher)
    except UserError as error:
        log(f"the documents' own model is not served next to the index: {error}")
        return None
    return teacher if teacher.can_be_timed else None


def _with_collection(served: Served, corpus: Collection, changed: str | None) -> Served:
    if changed:
        log(changed)
    served.collection = corpus
    if len(corpus.queries):
        split = split_of(corpus, None)
        chosen = split if split in (*corpus.qrels, "all") else "all"
        served.queries = corpus.split(chosen)
        served.grades = corpus.relevance(chosen).to_dict() if chosen in corpus.qrels else {}
    return served


def _of_student(folder: Path) -> Served:
    """A student alone."""
    if not any(
        (folder / name).is_file() for name in ("modules.json", "config_sentence_transformers.json", "config.json")
    ):
        raise UserError(
            f"{folder} is none of what can be served: a job's folder ({_RECIPE}), an index ({FILE_NAME}), or a student."
        )
    student: Any = load_student(folder)
    name = folder.resolve().name
    is_encoder = kind_of(student.model).can_search
    system = ModelSystem(name, encoder=student if is_encoder else None, judge=None if is_encoder else student)
    system.documents_by = system.queries_by = short_name(student.name)
    return Served(name, {name: system}, judgments=folder.with_name(f"{name}.judgments"))


def _of_name(place: str, corpus: Collection | None) -> Served:
    """A model or a re-ranker by its name, on a collection if there is one."""
    name = short_name(place)
    if corpus is None:
        parsed = parse_model_name(place)
        if parsed.kind == "cross-encoder":
            judge: Any = load_ranker(place, needs="score")
            system = ModelSystem(name, judge=CrossEncoderStudent(judge.model, judge.name))
        else:
            check_can_search(parsed)
            if parsed.kind == "bm25":
                raise UserError("bm25 searches documents; give them with --collection.")
            system = ModelSystem(name, encoder=load_encoder(parsed))
        return Served(name, {name: system})

    def member(ranker: Ranker) -> System | None:
        return alive(ranker, corpus, ranker.name, "baseline", member, {})

    ranker = load_ranker(place, needs="search")
    opened = alive(ranker, corpus, name, "student", member, {"queries_by": short_name(ranker.queries_by)})
    if opened is None:
        raise UserError(f"{place} does not answer new queries by itself, so it cannot be served; serve an index.")
    return _with_collection(Served(name, {name: opened}, pair=[name]), corpus, None)
