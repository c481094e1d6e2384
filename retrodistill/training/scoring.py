"""A stage's texts, candidates and teacher scores: mined, scored, and stored in the job's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodistill.candidates.mining import distinct_documents, mine, with_positives
from retrodistill.candidates.samplers import random_documents
from retrodistill.candidates.selection import Budget, choose_pairs, labeled
from retrodistill.core.checksums import map_sealed
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.data.pseudo_queries import is_phrase, source_document
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import content_of, parse_model_name
from retrodistill.encoders.reading import unknown_to
from retrodistill.objectives.lists import check_trainable, temperature_for
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.fusion import union
from retrodistill.runs.run import Run, align, look_up
from retrodistill.training.lists import (
    Lists,
    below_positives,
    lists_from_run,
    lists_over_corpus,
    with_labels,
    without_siblings,
)
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, is_student
from retrodistill.training.texts import TrainingTexts, training_texts
from retrodistill.training.training_data import TrainingData

WHOLE = 30_000  # documents of a corpus of which a list may be all: a step costs its vectors' products with each
_SPREAD_SAMPLE = 512  # rows of a corpus matrix on which its spread is measured
_SCORES = "scores"  # in a job's folder
_FREE = "not scored"  # in the place of a source: documents that are drawn at random and that the teacher did not score
_CHEAP = ("bm25", "dense", "static", "vectors", "concat")  # they score any pair at no cost once texts are embedded


class ScoredLists(NamedTuple):
    """Lists with teacher scores."""

    lists: Lists
    spread: float  # mean over the lists of the standard deviation of a list's scores
    run: Run | None  # the scores as a run; None if a list is the whole corpus
    notes: list[str]  # what a reader of the results should know
    free: int = 0  # random documents among them that the teacher did not score


class CandidatePairs(NamedTuple):
    """Candidates of a stage."""

    run: Run  # what the teacher scores
    notes: list[str]  # on the choice
    free: Run | None = None  # random documents of the same queries that count as the lowest of their list


def stage_texts(stage: StageSettings, data: TrainingData) -> TrainingTexts:
    """The stage's texts; a recorded teacher knows real queries only."""
    queries = data.queries if stage.texts.queries else data.queries.select([])
    pseudo = stage.texts.of_documents
    recorded = None if stage.aligns else data.teacher.known_run(data.collection)
    if recorded is not None:
        known = set(recorded.query_ids)
        queries = queries.select([query for query in queries.ids if query in known])
        pseudo = {"titles": False, "sentences": 0, "limit": stage.texts.limit}
    elif data.parallel is not None:
        queries = queries + data.parallel.texts
    return training_texts(data.collection, queries, **pseudo, seed=data.seed, excluded=data.excluded)


def scored_lists(stage: StageSettings, data: TrainingData, texts: TrainingTexts) -> ScoredLists:
    """Candidates with teacher scores, and the measured spread of the scores."""
    hide, documents = not stage.needs_own_document, data.collection.documents
    # A phrase's source is a positive like that of another pseudo-query where the stage needs one. Elsewhere it is a
    # candidate like any other, and no measure for false negatives: others may be as relevant.
    sources = texts.hidden if hide else texts.sources
    run: Run | None = None
    notes: list[str] = []
    free = 0
    if stage.any_document:
        teacher = data.teacher.corpus_scores(data.teacher_queries(texts.texts), data.collection)
        sample = np.linspace(0, len(texts) - 1, min(_SPREAD_SAMPLE, len(texts)), dtype=int)
        deviations = [scores.std(axis=1) for scores in teacher.blocks(sample, teacher.reference())]
        spread = float(np.mean(np.concatenate(deviations)))
        if spread == 0:
            raise UserError(f"teacher {data.teacher.name} scores all documents equal; there is nothing to learn.")
        if stage.candidates.depth == "all":
            lists = lists_over_corpus(teacher, sources, hide_source=hide)
            lists = replace(lists, copies=documents.copies, text_codes=texts.texts.originals)
        else:
            run, notes = scored_candidates(stage, data, texts.texts, teacher)
            free = len(run) - len(scored_by_teacher(run))
            lists = lists_from_run(run, texts.texts, documents, sources, hide_source=hide)
            shared = 0 if stage.draws_groups else min(stage.candidates.shared, len(documents))
            lists = replace(lists, teacher=teacher, shared=shared, seed=data.seed)
    else:
        scored, notes = scored_candidates(stage, data, texts.texts)
        run, dropped = check_trainable(scored_by_teacher(scored))
        if any(dropped.values()):
            log(f"left out: {dropped['single']} queries with one candidate, {dropped['flat']} with equal scores")
        spread, labeled = temperature_for(run, 1.0), len(run)
        if stage.candidates.budget is not None:
            run = scored.select(run.query_ids)
        elif data.teacher.run is not None and stage.candidates.random:
            # The run leaves these out because they were worse than what it lists.
            drawn = random_documents(run.query_ids, documents.ids, stage.candidates.random, data.seed)
            run = _with_lowest(run, distinct_documents(drawn, documents))
        free = len(run) - labeled
        lists = lists_from_run(run, texts.texts, documents, sources, hide_source=hide)
    lists = _without_own(lists, data.collection, texts.texts)
    if stage.reads_labels:
        lists = with_labels(lists, texts, documents, data.qrels())
    if data.collection.parents is not None:
        labels = data.qrels() if stage.reads_labels else None
        lists = without_siblings(lists, texts, documents, data.collection.parents, labels)
    if stage.candidates.filter is not None:
        lists, note = below_positives(lists, stage.candidates.filter, data.teacher.name)
        log(note)
        notes = [*notes, note]
    return ScoredLists(lists, spread, run, notes, free)


def _without_own(lists: Lists, collection: Collection, texts: Texts) -> Lists:
    """The lists, where a query that is a document itself does not have this one."""
    own = collection.own_documents(texts.ids)
    places = collection.documents.positions(own.values())
    known = places >= 0  # a document in passages is not
    if not known.any():
        return lists
    hidden = lists.hidden.copy()
    hidden[texts.positions(own)[known]] = collection.documents.originals[places[known]]
    return replace(lists, hidden=hidden)


def scored_candidates(
    stage: StageSettings, data: TrainingData, texts: Texts, scores: CorpusScores | None = None
) -> tuple[Run, list[str]]:
    """Candidates with the teacher's scores and notes on their choice; read from the folder if nothing changed.

    Random documents that a budget does not buy are among them (see `scored_by_teacher`). `scores` are those of the
    texts with any document, where the stage needs them; those of candidates are among them.
    """
    queries, path = data.teacher_queries(texts), scores_file(stage, data, texts)
    about = path.with_suffix(".json")
    if path.exists():
        try:
            run, said = read_run(path), read_json(about) if about.exists() else {}
            is_old = "run" not in said and map_sealed(path, advice="").blocks is None  # of version 0.1.0
            if is_old or said.get("run") == run.fingerprint:
                return run, said.get("notes", [])
            log(f"{path} and {about.name} do not belong together; candidates are chosen again", always=True)
        except UserError as error:  # one is cut short or altered
            log(str(error), always=True)
    pairs, notes, free = candidate_pairs(stage, data, texts)
    if scores is None:
        scored = data.teacher.score(queries, data.collection, pairs)
        run = distinct_documents(scored, data.collection.documents)  # a recorded run may score copies differently
    else:
        found = scores.pairs(*pairs.positions(texts, data.collection.documents))
        run = pairs.with_scores(found, data.teacher.name)
    if free is not None:
        run = _with_lowest(run, free)
    write_json(about, {"notes": notes, "run": run.fingerprint})
    write_run(run, path)  # last, so that its presence means that the notes are complete
    return run, notes


def scores_file(stage: StageSettings, data: TrainingData, texts: Texts) -> Path:
    """The file of the job's folder for a stage's candidates with the teacher's scores; it is there if they are done."""
    settings, queries, sources = stage.candidates, data.teacher_queries(texts), candidate_sources(stage, data)
    teacher, corpus = data.teacher.fingerprint(data.collection), data.collection.documents.fingerprint
    key: list[object] = [corpus, texts.fingerprint, teacher, sources, settings.depth, settings.random, data.seed]
    if queries is not texts:
        key += ["asked", queries.fingerprint]
    if data.student is not None and (CURRENT_STUDENT in sources or settings.by_student):
        key += [CURRENT_STUDENT, data.student.fingerprint]
    if stage.reads_labels:
        key += ["labels", data.qrels().fingerprint]
    key += [["content", name, content_of(name)] for name in sources if not is_student(name) and content_of(name)]
    if settings.filter is not None:
        key += ["with positives"]
    if settings.budget is not None:
        key += ["budget", settings.budget, settings.budget_by, stage.needs_own_document]
        key += ["random documents are free"] if settings.random else []
        key += ["bought", *data.bought] if data.bought else []
        key += [stage.list_temperature] if settings.by_student else []
    if unreadable := _unreadable(data):
        key += ["without", *unreadable]
    if stage.any_document:
        key += ["standardized over the corpus"]
    return data.folder / _SCORES / f"{digest(*key)}.parquet"


def candidate_pairs(stage: StageSettings, data: TrainingData, texts: Texts) -> CandidatePairs:
    """The stage's candidates, mined or recorded, and within the budget."""
    pool, random = _mined(stage, data, texts), stage.candidates.random
    if stage.candidates.budget is None:
        return CandidatePairs(pool, [])
    chosen = _within_budget(stage, data, texts, pool)
    log(chosen.summary)
    if not random:
        return CandidatePairs(chosen.run, [chosen.summary])
    # Mined documents may be relevant, bought or not, and so is a text's own: none of them is a free negative.
    documents = data.collection.documents
    drawn = random_documents(texts.ids, documents.ids, random, data.seed).select(chosen.run.query_ids)
    drawn = distinct_documents(drawn, documents)
    free = drawn.filter(np.isnan(look_up(pool, drawn))).without(_own_documents(texts.ids, documents))
    return CandidatePairs(chosen.run, [chosen.summary], free)


def scored_by_teacher(run: Run) -> Run:
    """The rows of `scored_candidates` that the teacher scored: all but random documents beside a budget."""
    if "sources" not in run.table.column_names:
        return run
    return run.filter(pc.not_equal(run.table["sources"].cast(pa.string()), _FREE).to_numpy())


def _with_lowest(run: Run, drawn: Run) -> Run:
    """The run, and documents of its queries that it lacks, which get the lowest score of their list."""
    pairs, aligned = align([run, drawn], run.name)
    lowest, is_free = np.minimum.reduceat(run.scores, run.bounds[:-1])[pairs.query_codes], np.isnan(aligned[:, 0])
    scored = pairs.with_scores(np.where(is_free, lowest, aligned[:, 0]))
    sources = pa.DictionaryArray.from_arrays(pa.array(is_free.astype(np.int32)), pa.array([run.name, _FREE]))
    return Run(scored.table.append_column("sources", sources), run.name)


def candidate_sources(stage: StageSettings, data: TrainingData) -> list[str]:
    """Names of the retrievers that propose the stage's candidates: by default bm25 and the teacher's dense members."""
    if stage.candidates.sources:
        return [data.bm25 if name == "bm25" else name for name in stage.candidates.sources]
    dense = [member.name for member in data.teacher.members if member.queries is not None and member.can_search]
    return [data.bm25, *(name for name in dense if not is_student(name))]


def check_teacher(teacher: Ranker, collection: Collection, queries: Texts, stages: Sequence[StageSettings]) -> None:
    """Check, before any stage runs, that the teacher can score what the stages' lists hold.

    Raises:
        UserError: It scores pairs only and some stage needs scores of any document; a list would be a whole corpus of
            more than `WHOLE` documents; or it is recorded and names unknown ids only, lacks these queries, or teaches
            nothing (one candidate each, equal scores).
    """
    documents = len(collection.documents)
    if documents > WHOLE and any(stage.needs_lists and stage.candidates.depth == "all" for stage in stages):
        raise UserError(
            f"candidates.depth: all takes each of {documents} documents in every step, and is for at most {WHOLE}; "
            "set candidates to {depth: 100, shared: 2000}."
        )
    any_document = any(stage.any_document for stage in stages)
    if teacher.run is None:
        if any_document:
            teacher.require_corpus_scores()
        return
    if collection.parents is not None and teacher.ranks_documents(collection):
        raise UserError(
            f"{teacher.name} has scores of whole documents, and these are cut into passages; record scores of "
            "passages, or leave passages out."
        )
    run = teacher.known_run(collection)
    if not any(stage.needs_lists for stage in stages):
        return
    if any_document:
        keys = "candidates.depth: all, candidates.shared, groups.random and in-batch-margin-mse"
        raise UserError(f"{teacher.name} is recorded and does not score every document: leave {keys} out.")
    known = None if run is None else run.select(queries.ids)
    if not known:
        raise UserError(f"{teacher.name} has rows for none of the {len(queries)} training queries; record some.")
    check_trainable(known)


def _within_budget(stage: StageSettings, data: TrainingData, texts: Texts, pool: Run) -> Budget:
    """The pairs within the stage's budget, those of earlier stages among them.

    They are chosen by the student, or by the fused scores of the sources that score any pair cheaply. Without such a
    source, the pool's reciprocal ranks decide. Pairs of a pseudo-query with the document that it was taken from are
    hidden in training and not chosen, unless an objective needs them.
    """
    settings, budget, bought = stage.candidates, stage.candidates.budget or 0, _bought(data, texts)
    if bought is not None:  # earlier stages may have had other sources
        pool = union([pool, bought], pool.name, weights=[1.0, 0.0])
    if not stage.needs_own_document:
        hidden = texts.without(np.flatnonzero(is_phrase(texts)))
        pool = pool.without(_own_documents(hidden.ids, data.collection.documents))
    if settings.by_student:
        if data.student is None:
            raise UserError("pairs that the current student chooses are known when its stage begins, not before.")
        pool, temperature = data.student.score(data.collection, texts, pool), stage.list_temperature
        return choose_pairs(pool, budget, "uncertain", seed=data.seed, temperature=temperature, bought=bought)
    sources = [name for name in candidate_sources(stage, data) if name != CURRENT_STUDENT]
    cheap = [name for name in sources if parse_model_name(name).kind in _CHEAP]
    if cheap:
        space = data.space  # already loaded
        scorers = [load_ranker(space if space is not None and name == space.name else name) for name in cheap]
        pool = Ensemble(scorers).score(data.teacher_queries(texts), data.collection, pool)
    return choose_pairs(pool, budget, settings.budget_by, seed=data.seed, bought=bought)


def _bought(data: TrainingData, texts: Texts) -> Run | None:
    """The pairs of the texts that the student's earlier stages bought from the teacher; None for none."""
    runs = [scored_by_teacher(read_run(data.folder / _SCORES / name)).select(texts.ids) for name in data.bought]
    return align(runs, "bought")[0] if runs else None


def _own_documents(text_ids: Sequence[str], documents: Texts) -> dict[str, str]:
    """The document that each pseudo-query was taken from, by its id; of copies the first."""
    own = ((text, source_document(text)) for text in text_ids)
    sources = {text: document for text, document in own if document is not None}
    if documents.copies is None or not sources:
        return sources
    rows = documents.originals[documents.positions(sources.values())]
    return dict(zip(sources, documents.table["id"].take(pa.array(rows)).to_pylist(), strict=True))


def _unreadable(data: TrainingData) -> list[str]:
    """Ids of the documents that are not blank and that the document encoder cannot read."""
    return [] if data.space is None else unknown_to(data.space, data.collection.documents)


def _mined(stage: StageSettings, data: TrainingData, texts: Texts) -> Run:
    """Every pair that the teacher might score; retrievers get the rewritten queries if there are any."""
    recorded = data.teacher.known_run(data.collection)
    if recorded is not None:
        return recorded.select(texts.ids)  # of labeled documents it knows only those that it lists
    collection = data.collection
    random = stage.candidates.random if stage.candidates.budget is None else 0
    depth = min(int(stage.candidates.depth), len(collection.documents))
    sources: list[object] = list(candidate_sources(stage, data))
    if CURRENT_STUDENT in sources:
        if data.student is None:
            raise UserError("candidates of the current student are known when its stage begins, not before.")
        found = data.student.search(collection, texts, depth)
        sources = [found if source == CURRENT_STUDENT else source for source in sources]
    pool = mine(collection, data.teacher_queries(texts), sources, depth, random=random, seed=data.seed)
    pool = pool.without_documents(_unreadable(data))  # bm25 and random draws propose them
    listed: list[tuple[str, list[str]]] = []
    if stage.reads_labels:
        listed += [(query, sorted(named)) for query, named in labeled(data.qrels()).items() if query in texts]
    if stage.candidates.filter is not None:
        listed += [(text, [document]) for text, document in _own_documents(texts.ids, collection.documents).items()]
    return distinct_documents(with_positives(pool, collection.documents, listed), collection.documents)
