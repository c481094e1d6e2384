"""Curricula of a stage: budgets, topics, selections, labeled positives, candidates of the student itself."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from retrodistill.candidates.selection import choose_pairs
from retrodistill.core.errors import UserError
from retrodistill.data.collection import Qrels
from retrodistill.data.pseudo_queries import source_document
from retrodistill.encoders import load_encoder
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.recipes.students import build_student, train_student
from retrodistill.runs import Run, read_run
from retrodistill.students.registry import as_student, kind_of, run_stage
from retrodistill.training import trainer
from retrodistill.training.groups import draw_groups
from retrodistill.training.loss import DistillationLoss, Term
from retrodistill.training.prepared import planned_batches, prepare, selected, training_rows
from retrodistill.training.scoring import (
    candidate_pairs,
    scored_by_teacher,
    scored_candidates,
    scored_lists,
    scores_file,
    stage_texts,
)
from retrodistill.training.settings import GroupSettings, SelectionSettings, StageSettings
from retrodistill.training.training_data import StudentSnapshot, TrainingData


class Scored(NamedTuple):
    run: Run
    notes: list[str]


SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}
QUERIES_ONLY = {"titles": False, "sentences": 0}


@pytest.fixture
def data(tiny, tiny_model, tmp_path):
    space = load_encoder(f"dense:{tiny_model}")
    return TrainingData(
        tiny, tiny.split("train"), load_ranker("bm25"), space, tmp_path / "out", labels=tiny.relevance("train")
    )


def changed(data, **more):
    from dataclasses import replace

    return replace(data, **more)


def stage(**more):
    given = {"objectives": "kl", "texts": QUERIES_ONLY, "candidates": {"depth": 10}, "training": SHORT}
    return StageSettings.model_validate({**given, **more})


def standing(data):
    model = load_encoder(data.space).model
    return StudentSnapshot(as_student(model), kind_of(model), data.space)


def pairs_of(run):
    return {(query, document) for query, documents, _ in run for document in documents}


class TestBudget:
    def select_within_budget(self, data, **budget):
        one = stage(candidates={"depth": 10, "sources": ["bm25"], **budget})
        return Scored(*scored_candidates(one, data, stage_texts(one, data).texts))

    def test_the_teacher_scores_exactly_the_budget(self, data):
        every = self.select_within_budget(data)
        some = self.select_within_budget(data, budget="25%")
        assert len(every.run) > len(some.run) == round(len(every.run) / 4)
        assert every.notes == []
        assert some.notes[0].startswith(f"budget: {len(some.run)} of {len(every.run)} pairs (24.9%)")

    def test_they_are_chosen_by_the_scores_of_the_cheap_sources(self, data):
        one = stage(candidates={"depth": 10, "sources": ["bm25"]})
        texts = stage_texts(one, data).texts
        scored = Ensemble([load_ranker("bm25")]).score(texts, data.collection, candidate_pairs(one, data, texts)[0])
        wanted = choose_pairs(scored, 60, "robust", seed=data.seed).run
        found = self.select_within_budget(data, budget=60).run
        pairs = [set(zip(run.table["query_id"].to_pylist(), run.document_ids, strict=True)) for run in (found, wanted)]
        assert pairs[0] == pairs[1]

    def test_each_method_and_size_has_its_own_file_and_notes_are_repeated(self, data):
        robust, random = (self.select_within_budget(data, budget=60, budget_by=by) for by in ("robust", "random"))
        assert robust.run.fingerprint != random.run.fingerprint
        assert "by random" in random.notes[0]
        assert self.select_within_budget(data, budget=60, budget_by="random").notes == random.notes  # from the folder
        assert len(list((data.folder / "scores").glob("*.parquet"))) == 2

    def test_pairs_that_training_hides_are_not_scored(self, data):
        one = stage(candidates={"depth": 10, "sources": ["bm25"], "budget": "100%"}, texts={"sentences": 0})
        found = scored_candidates(one, data, stage_texts(one, data).texts)[0]
        for query, documents, _ in found:
            assert source_document(query) not in documents

    def test_the_stages_notes_report_it(self, data, tiny_model, tmp_path):
        one = stage(candidates={"depth": 10, "sources": ["bm25"], "budget": "50%"})
        student = StudentSettings.model_validate({"model": f"dense:{tiny_model}", "stages": [one], "control": None})
        history = run_stage(build_student(student, data), one, data, tmp_path / "work", "training")
        assert history.notes[0].startswith("budget: ")


BY_STUDENT = {"depth": 10, "sources": ["bm25"], "budget": "25%", "budget_by": "uncertain"}


class TestStudentsBudget:
    def chosen(self, data, **more):
        one = stage(candidates={**BY_STUDENT, **more})
        return one, stage_texts(one, data)

    def test_its_own_scores_and_temperature_choose(self, data):
        data = changed(data, student=standing(data))
        one, texts = self.chosen(data)
        every = candidate_pairs(stage(candidates={"depth": 10, "sources": ["bm25"]}), data, texts.texts).run
        rows, columns = every.positions(texts.texts, data.collection.documents)
        queries = data.space.encode(texts.texts.texts, "query")
        documents = data.space.encode(data.collection.documents.texts, "document")
        own = every.with_scores((queries[rows] * documents[columns]).sum(axis=1).astype(np.float64))
        wanted = choose_pairs(own, "25%", "uncertain", seed=data.seed, temperature=0.05).run
        found = candidate_pairs(one, data, texts.texts).run
        assert (
            pairs_of(found)
            == pairs_of(wanted)
            != pairs_of(candidate_pairs(stage(candidates={**BY_STUDENT, "budget_by": "robust"}), data, texts.texts).run)
        )

    @pytest.mark.parametrize("kind", ["sparse", "multi-vector", "cross-encoder", "tk", "hybrid", "static"])
    def test_every_kind_of_student_chooses(self, kind, data, tiny_model, tiny_cross_encoder):
        name = tiny_cross_encoder if kind == "cross-encoder" else tiny_model
        model = {"hybrid": f"dense:{name}", "static": "static"}.get(kind, f"{kind}:{name}")
        part = {"hybrid": "lexical", "static": "query_encoder"}.get(kind, "both_encoders")
        one = stage(train=part, groups={"documents": 3}, candidates=BY_STUDENT)
        given = {"model": model, "stages": [one], "control": None}
        given |= {"lexical_dim": 8, "documents": "student"} if kind == "hybrid" else {}
        settings = StudentSettings.model_validate(given)
        data = changed(data, own_documents=settings.documents == "student")
        history = run_stage(build_student(settings, data), one, data, data.folder / "work", "training")
        assert "by uncertain" in history.notes[0]
        assert history.learned["scores"] == next((data.folder / "scores").glob("*.parquet")).name
        assert history.learned["pairs"] == len(
            scored_by_teacher(read_run(next((data.folder / "scores").glob("*.parquet"))))
        )

    def test_another_student_chooses_anew(self, data):
        one, texts = self.chosen(data)
        paths = []
        for shift in (0.0, 0.5):
            student = standing(data)
            with torch.no_grad():
                next(student.student.model.parameters()).add_(shift * torch.randn(32, generator=torch.Generator()))
            paths.append(scores_file(one, changed(data, student=student), texts.texts))
        assert paths[0] != paths[1]

    def test_earlier_pairs_are_kept_and_count(self, data):
        data = changed(data, student=standing(data))
        first, texts = self.chosen(data, budget="10%", budget_by="random", random=3)
        before = scored_by_teacher(scored_candidates(first, data, texts.texts)[0])
        data = changed(data, bought=(scores_file(first, data, texts.texts).name,))
        one, _ = self.chosen(data, budget="25%")
        after, notes = scored_candidates(one, data, texts.texts)
        every = candidate_pairs(stage(candidates={"depth": 10, "sources": ["bm25"]}), data, texts.texts).run
        assert pairs_of(before) <= pairs_of(after)
        assert len(after) == round(len(every) / 4)
        assert f"{len(before)} of them were bought before" in notes[0]

    def test_before_a_stage_nobody_chooses(self, data):
        one, texts = self.chosen(data)
        with pytest.raises(UserError, match=r"pairs that the current student chooses are known when its stage begins"):
            candidate_pairs(one, data, texts.texts)


class TestFreeRandomDocuments:
    def lists(self, data, **more):
        one = stage(candidates={"depth": 10, "sources": ["bm25"], "budget": "25%", **more})
        texts = stage_texts(one, data)
        return scored_lists(one, data, texts), texts

    def test_they_are_not_bought_and_count_as_the_lowest_of_their_list(self, data):
        plain, texts = self.lists(data)
        scored, _ = self.lists(data, random=6)
        bought = scored_by_teacher(
            scored_candidates(
                stage(candidates={"depth": 10, "sources": ["bm25"], "budget": "25%", "random": 6}), data, texts.texts
            )[0]
        )
        assert pairs_of(bought) == pairs_of(
            scored_candidates(stage(candidates={"depth": 10, "sources": ["bm25"], "budget": "25%"}), data, texts.texts)[
                0
            ]
        )
        assert scored.spread == plain.spread
        assert scored.free == len(scored.run) - len(plain.run) > len(scored.run.query_ids)
        labels = plain.run.to_dict()
        for query, listed in scored.run.to_dict().items():
            for document, score in listed.items():
                assert score == labels[query].get(document, min(labels[query].values()))

    def test_mined_and_own_documents_are_not_among_them(self, data):
        titles = {"titles": True, "sentences": 0}
        candidates = {"depth": 10, "sources": ["bm25"], "budget": "25%", "random": 40}
        one = stage(texts=titles, candidates=candidates)
        texts = stage_texts(one, data).texts
        pool = candidate_pairs(stage(texts=titles, candidates={"depth": 10, "sources": ["bm25"]}), data, texts).run
        run, _, free = candidate_pairs(one, data, texts)
        assert not pairs_of(free) & pairs_of(pool)
        assert set(free.query_ids) <= set(run.query_ids)
        assert not any(source_document(query) == document for query, document in pairs_of(free))

    def test_without_a_budget_the_teacher_scores_them(self, data):
        scored, _ = self.lists(data, random=6, budget=None)
        plain, _ = self.lists(data, budget=None)
        assert scored.free == 0
        assert len(scored.run) > len(plain.run) + 3 * len(plain.run.query_ids)
        assert scored.spread != plain.spread

    def test_a_recorded_run_has_them_too(self, data):
        listed = {query: {"d1": 2.0, "d2": 1.0, "d3": 0.5, "d4": 0.1} for query in data.queries.ids}
        data = changed(data, teacher=RecordedRanker(Run.from_dict(listed)))
        for budget in (None, "50%"):
            scored, _ = self.lists(data, random=6, budget=budget)
            assert scored.free > 0
            assert all(min(scores) == scores[-1] for _, _, scores in scored.run.ranked())
            rest = scored.run.filter(~np.isin(scored.run.document_ids, ["d1", "d2", "d3", "d4"]))
            assert len(rest) == scored.free if budget else len(rest) <= scored.free


class TestRecordedTeachers:
    def test_what_they_have_no_scores_of_is_said(self, data):
        listed = {query: {"d1": 2.0, "d2": 1.0, "d3": 0.5} for query in data.queries.ids[3:]}
        recorded = changed(data, teacher=RecordedRanker(Run.from_dict(listed, "old")))
        one = stage(texts={"titles": True, "sentences": 1, "limit": 5})
        prepared = prepare(one, recorded)
        assert prepared.notes[:2] == [
            "old has no scores of 3 training queries, which are left out.",
            "old is recorded and has no scores of texts of documents, which are left out.",
        ]
        assert len(prepared.texts) == 5
        assert set(prepared.texts.texts.ids) <= set(listed)
        queries_alone = stage(texts={"titles": False, "sentences": 0})
        every = {query: {"d1": 2.0, "d2": 1.0} for query in data.queries.ids}
        assert not prepare(queries_alone, changed(data, teacher=RecordedRanker(Run.from_dict(every)))).notes


class TestTopics:
    def test_batches_follow_clusters_of_the_trained_rows_and_are_stored(self, data, monkeypatch):
        one = stage(batches="topics", topics=6)
        texts = stage_texts(one, data).texts
        rows = np.array([0, 3, 3, 7, 12, 20, 31, 40])
        first = planned_batches(one, data, texts, rows)
        assert len(first.values) == len(rows)
        assert first.values[1] == first.values[2]
        monkeypatch.setattr("retrodistill.training.prepared.cluster_topics", lambda *_: pytest.fail("clustered again"))
        assert planned_batches(one, data, texts, rows).values.tolist() == first.values.tolist()

    def test_none_if_batches_are_shuffled(self, data):
        one = stage()
        assert planned_batches(one, data, stage_texts(one, data).texts, np.arange(8)) is None

    def test_lengths_are_those_of_the_trained_rows(self, data):
        one = stage(batches="length")
        texts, rows = stage_texts(one, data).texts, np.array([3, 0, 3, 7])
        assert planned_batches(one, data, texts, rows).values.tolist() == [len(texts.texts[row]) for row in rows]

    def test_more_topics_than_texts_are_refused(self, data):
        one = stage(batches="topics", topics=9)
        with pytest.raises(UserError, match=r"9 topics of 8 training texts"):
            planned_batches(one, data, stage_texts(one, data).texts, np.arange(8))

    def test_a_resumed_training_sees_the_same_batches_in_every_epoch(self, data, tiny_model, tmp_path):
        one = stage(batches="topics", topics=4, training={**SHORT, "epochs": 3, "max_steps": 0})
        student = StudentSettings.model_validate({"model": f"dense:{tiny_model}", "stages": [one], "control": None})

        def trained(folder, killed_after=None):
            seen, model = [], build_student(student, data)
            forward = DistillationLoss.forward

            def listening(self, features, labels):
                if killed_after is not None and len(seen) == killed_after:
                    raise KeyboardInterrupt
                seen.append(labels.tolist())
                return forward(self, features, labels)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(DistillationLoss, "forward", listening)
                patch.setattr(trainer, "_CHECKPOINTS", 6)
                run_stage(model, one, data, folder, "training")
            return seen, load_encoder(model).weights_digest

        whole, weights = trained(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed", killed_after=17)
        rest, again = trained(tmp_path / "killed")
        assert 0 < len(rest) < len(whole)
        assert rest == whole[-len(rest) :]
        assert again == weights
        steps = len(whole) // 3
        first, second = (
            sorted(row for batch in part for row in batch) for part in (whole[:steps], whole[steps:][:steps])
        )
        assert first == second
        assert whole[:steps] != whole[steps : 2 * steps]

    @pytest.mark.parametrize("train", ["head", "both_encoders"])
    def test_groups_are_batched_by_their_texts(self, train, data, tiny_model, tmp_path, monkeypatch):
        from retrodistill.training import stages

        made = []
        monkeypatch.setattr(stages, "planned_batches", lambda *given: made.append(planned_batches(*given)) or made[-1])
        one = stage(
            train=train,
            objectives="margin-mse",
            batches="topics",
            topics=4,
            groups={"documents": 3, "sampler": "margin-balanced", "draws": 2},
        )
        student = StudentSettings.model_validate(
            {"model": f"multi-vector:{tiny_model}", "dimension": 8, "stages": [one], "control": None}
        )
        history = run_stage(build_student(student, data), one, data, tmp_path / "work", "training")
        assert history.steps == 2
        assert len(made[0].values) > len(data.queries)  # a topic for each of a text's groups


class TestSelection:
    def taught(self, data, one):
        texts = stage_texts(one, data)
        return texts, scored_lists(one, data, texts)

    def test_the_teacher_is_right_and_the_student_wrong_within_the_ranks(self, data):
        data = changed(data, student=standing(data))
        texts, taught = self.taught(data, stage())
        rows, note = selected(SelectionSettings(ranks=(2, 6)), data, texts, taught)
        right = data.qrels().to_dict()
        own = data.student.search(data.collection, texts.texts, 60)
        best = {query: documents for query, documents, _ in taught.run.top(1)}
        ranks = {query: documents.tolist() for query, documents, _ in own}
        for row, query in enumerate(texts.texts.ids):
            places = [ranks[query].index(document) + 1 for document in right[query]]
            wanted = query in best and best[query][0] in right[query] and 2 <= min(places) <= 6
            assert rows[row] == wanted
        assert 0 < rows.sum() < len(rows)
        assert note.startswith(f"selection: {rows.sum()} of ")

    def test_lists_over_the_corpus_select_the_same_texts(self, data):
        data = changed(data, student=standing(data))
        texts, taught = self.taught(data, stage(candidates={"depth": "all"}))
        assert taught.run is None
        rows, _ = selected(SelectionSettings(ranks=(2, 6)), data, texts, taught)
        same, _ = selected(SelectionSettings(ranks=(2, 6)), data, *self.taught(data, stage()))
        assert rows.tolist() == same.tolist()

    def test_an_ensemble_replaces_labels(self, data):
        data = changed(data, student=standing(data), labels=None, labeler=load_ranker("bm25"))
        texts, taught = self.taught(data, stage())
        rows, note = selected(SelectionSettings(positives="ensemble"), data, texts, taught)
        assert "teacher wrong 0" in note  # bm25 agrees with itself
        assert rows.any()

    def test_only_selected_texts_are_trained_on(self, data):
        one = stage(selection={"ranks": [2, 6]})
        prepared = prepare(one, changed(data, student=standing(data)))
        rows = training_rows(prepared, one)
        assert prepared.chosen[rows].all()
        assert not set(rows.tolist()) & set(prepared.held_out.tolist())
        assert prepared.notes[-1].startswith("selection: ")

    def test_an_empty_selection_is_one_line(self, data):
        teacher = RecordedRanker(
            Run.from_dict({query: {"d1": 2.0, "d2": 1.0} for query in data.queries.ids if query != "q1"})
        )
        data = changed(data, student=standing(data), teacher=teacher)
        with pytest.raises(UserError, match=r"^nothing is selected to train on; widen selection.*teacher wrong 4"):
            prepare(stage(selection={}), data)

    def test_missing_labels_are_an_error(self, data):
        with pytest.raises(UserError, match=r"the training queries have no labels"):
            prepare(stage(selection={}), changed(data, student=standing(data), labels=Qrels.from_dict({})))

    def test_a_cross_encoder_ranks_the_candidates(self, data, tiny_cross_encoder, tmp_path):
        one = stage(train="both_encoders", groups={"documents": 3}, selection={"ranks": [2, 10]})
        student = StudentSettings.model_validate(
            {"model": f"cross-encoder:{tiny_cross_encoder}", "stages": [one], "control": None}
        )
        history = run_stage(
            build_student(student, data), one, changed(data, own_documents=True), tmp_path / "work", "training"
        )
        assert "not ranked" not in history.notes[0]


class TestSelectionByGap:
    @pytest.mark.parametrize("by", ["disagreement", "topics", "random"])
    def test_a_share_of_the_texts_is_trained_on(self, by, data):
        one = stage(selection={"by": by, "share": 0.5, **({"topics": 3} if by == "topics" else {})})
        prepared = prepare(one, changed(data, student=standing(data), labels=None))
        pool = len(prepared.texts) - len(prepared.held_out)
        assert len(prepared.held_out) > 0
        assert prepared.chosen.sum() == round(0.5 * pool)
        assert sorted(training_rows(prepared, one)) == np.flatnonzero(prepared.chosen).tolist()
        assert prepared.notes[-1].startswith(f"selection: {prepared.chosen.sum()} of {pool} texts, by {by}")

    def test_disagreement_is_that_of_the_students_scores_of_the_candidates(self, data):
        data = changed(data, student=standing(data), labels=None)
        one = stage(selection={"by": "disagreement", "share": 0.25})
        prepared = prepare(one, data)
        run = scored_lists(one, data, stage_texts(one, data)).run
        own = data.student.score(data.collection, prepared.texts.texts, run)
        term = prepared.terms[0]
        gaps = {}
        for (query, _, by_teacher), (_, _, by_student) in zip(run, own, strict=True):
            of, to = (
                np.exp(scores / t) / np.exp(scores / t).sum()
                for scores, t in ((by_teacher, term.teacher_temperature), (by_student, term.student_temperature))
            )
            gaps[query] = float((of * np.log(of / to)).sum())
        held_out = {prepared.texts.texts.ids[row] for row in prepared.held_out}
        gaps = {query: gap for query, gap in gaps.items() if query not in held_out}
        chosen = {query for query, is_in in zip(prepared.texts.texts.ids, prepared.chosen, strict=True) if is_in}
        assert min(gaps[query] for query in chosen) >= max(gaps[query] for query in gaps.keys() - chosen)

    @pytest.mark.parametrize("depth", [8, "all"])
    def test_stages_in_a_row_choose_anew(self, depth, data):
        rule = {"by": "random", "share": 0.5}
        candidates = {"depth": depth}
        stages = [stage(selection=rule, candidates=candidates, training={**SHORT, "learning_rate": 1e-1}) for _ in "ab"]
        settings = StudentSettings.model_validate({"model": "static", "stages": stages, "control": None})
        model = build_student(settings, data)
        notes = [
            run_stage(model, one, data, data.folder / str(at), "training").held_out for at, one in enumerate(stages)
        ]
        assert notes[0] == notes[1]  # what is held out stays
        snapshots = [
            changed(data, student=standing(data)),
            changed(data, student=StudentSnapshot(as_student(model), kind_of(model), data.space)),
        ]
        first, second = (prepare(stages[0], each).chosen for each in snapshots)
        assert (first != second).any()


class TestProd:
    @pytest.mark.parametrize(
        ("model", "train"),
        [("static", "query_encoder"), ("dense", "query_encoder"), ("multi-vector", "head"), ("sparse", "head")],
    )
    def test_it_trains_any_student_that_can_search(self, model, train, data, tiny_model, tmp_path):
        one = stage(
            objectives=[
                {"name": "contrastive", "weight": 0.1},
                {"name": "kl", "weight": 0.9, "target_std": 0.25},
                {"name": "lwf", "weight": 1.0},
            ],
            train=train,
            positives="labels",
            candidates={"sources": ["bm25", "student"], "depth": 8},
            groups={"documents": 4},
            selection={"ranks": [2, 60]},
        )
        given = {"model": model if model == "static" else f"{model}:{tiny_model}", "stages": [one], "control": None}
        if model in ("multi-vector", "sparse"):
            given |= {"documents": "student"}
        given |= {"multi-vector": {"dimension": 8}, "sparse": {"queries": "inference-free"}}.get(model, {})
        settings = StudentSettings.model_validate(given)
        data = changed(data, own_documents=settings.documents == "student")
        student = build_student(settings, data)
        before = [value.detach().clone() for value in student.parameters()]
        history = run_stage(student, one, data, tmp_path / "work", "training")
        assert {"contrastive", "kl", "lwf"} <= set(history.losses[-1])
        assert any(not torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))


ITS_OWN = {"candidates": {"sources": ["student"], "depth": 5}}


class TestCandidatesOfTheStudent:
    def test_they_are_its_results_among_the_spaces_documents(self, data):
        data = changed(data, student=standing(data))
        texts = stage_texts(stage(**ITS_OWN), data).texts
        found = candidate_pairs(stage(**ITS_OWN), data, texts)[0]
        queries, documents = (
            data.space.encode(side, role)
            for side, role in ((texts.texts, "query"), (data.collection.documents.texts, "document"))
        )
        best = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :5]
        ids = data.collection.documents.ids
        wanted = {query: {ids[row] for row in rows} for query, rows in zip(texts.ids, best, strict=True)}
        assert {query: set(named) for query, named, _ in found} == wanted
        assert set(found.table["sources"].to_pylist()) == {"student"}

    def test_scores_of_another_student_are_not_reused(self, data):
        one, paths = stage(**ITS_OWN), []
        for shift in (0.0, 0.5):
            student = standing(data)
            with torch.no_grad():
                next(student.student.model.parameters()).add_(shift * torch.randn(32, generator=torch.Generator()))
            data = changed(data, student=student)
            scored_candidates(one, data, stage_texts(one, data).texts)
            paths.append(len(list((data.folder / "scores").glob("*.parquet"))))
        assert paths == [1, 2]

    def test_before_a_stage_there_is_no_current_student(self, data):
        with pytest.raises(UserError, match=r"candidates of the current student are known when its stage begins"):
            candidate_pairs(stage(**ITS_OWN), data, stage_texts(stage(**ITS_OWN), data).texts)


class TestLabeledPositives:
    def test_the_best_by_grade_then_by_the_teacher(self, data):
        queries = data.queries
        labels = {queries.ids[0]: {"d5": 1, "d6": 2, "d7": 2}, queries.ids[1]: {"d8": 0}, queries.ids[2]: {"gone": 1}}
        data = changed(data, labels=Qrels.from_dict(labels))
        one = stage(objectives=["kl", "contrastive"], positives="labels", texts={"sentences": 0})
        texts = stage_texts(one, data)
        lists = scored_lists(one, data, texts).lists
        corpus = data.collection.documents
        scores = dict(zip(lists.documents[0].tolist(), lists.scores[0].tolist(), strict=True))
        best = max(("d6", "d7"), key=lambda document: scores[corpus.position(document)])
        assert lists.positives[0] == corpus.position(best)
        assert lists.positives[1:3].tolist() == [-1, -1]
        assert (lists.hidden == texts.sources).all()  # a pseudo-query's own document is still shown to nobody
        rows = training_rows(prepare(one, changed(data, student=standing(data))), one)
        assert (texts.sources[rows] < 0).any()
        assert (texts.sources[rows] >= 0).any()

    @pytest.mark.parametrize("train", ["query_encoder", "both_encoders"])
    def test_other_relevant_documents_are_no_negatives_of_contrastive_objectives(self, train, data):
        labels = {data.queries.ids[0]: {"d5": 1, "d6": 2, "d7": 1}, data.queries.ids[1]: {"d6": 1}}
        data = changed(data, labels=Qrels.from_dict(labels))
        one = stage(objectives=["kl", "contrastive"], positives="labels", train=train, candidates={"depth": 8})
        lists = scored_lists(one, data, stage_texts(one, data)).lists
        if train == "both_encoders":
            lists = draw_groups(lists, GroupSettings(documents=lists.width, depth=lists.width), seed=0)
        batch = lists.batch(np.arange(2))
        corpus, relevant = data.collection.documents, [{"d5", "d7"}, set()]
        for row in range(2):
            left_out = batch.documents[row][(batch.mask & ~batch.own_mask)[row].numpy()]
            listed = {corpus.ids[place] for place in batch.documents[row]}
            assert {corpus.ids[place] for place in left_out} == relevant[row] & listed
            assert relevant[row] <= listed  # labeled documents join the candidates
        d6, d7 = corpus.position("d6"), corpus.position("d7")
        assert lists.relevant(np.arange(2), np.array([d6, d7])).tolist() == [[False, True], [False, False]]

    def test_contrastive_loss_without_other_relevant_documents(self):
        scores = torch.tensor([[2.0, 1.0, 0.5]])
        inputs = {"scores": scores, "positives": torch.tensor([0]), "own_mask": torch.tensor([[True, False, True]])}
        value = Term("contrastive", student_temperature=1.0).value(inputs)
        assert value.item() == pytest.approx(np.log(1 + np.exp(0.5 - 2.0)), rel=1e-6)

    def test_they_join_the_candidates(self, data):
        one = stage(objectives=["kl", "contrastive"], positives="labels", candidates={"depth": 1, "sources": ["bm25"]})
        pool = candidate_pairs(one, data, stage_texts(one, data).texts)[0].to_dict()
        for query, judged in data.qrels().to_dict().items():
            assert set(judged) <= set(pool[query])

    def test_a_control_alone_trains_only_on_labeled_queries(self, data):
        labels = Qrels.from_dict({data.queries.ids[row]: {"d5": 1} for row in range(20)})
        one = stage(objectives="contrastive", positives="labels")
        prepared = prepare(one, changed(data, labels=labels, student=standing(data)))
        assert set(training_rows(prepared, one).tolist()) <= set(range(20))


class TestKeysThatDoNotFit:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"objectives": "leaf", "teacher": "bm25"}, "teacher is about candidates, and no objective of this stage"),
            ({"objectives": "leaf", "selection": {}}, "selection is about candidates"),
            ({"candidates": {"depth": "all", "budget": 5}}, "set candidates.depth to a number"),
            ({"candidates": {"budget": "120%"}}, "budget '120%': give a number of pairs"),
            ({"candidates": {"budget": 9, "budget_by": "robst"}}, "Did you mean 'robust'"),
            ({"labels": "sigmoid", "candidates": {"depth": "all"}}, "labels are made of pairs' scores"),
            ({"labels": "logits"}, "unknown kind of labels 'logits'"),
            ({"objectives": "bce"}, "bce learns labels from 0 to 1: set labels"),
            ({"positives": "labels"}, "positives: labels is for margin-mse, lelp, contrastive and in-batch objectives"),
            ({"topics": 4}, "topics is for batches: topics"),
            ({"texts": {"document_words": 90}}, "document_words is for documents: true"),
            ({"batches": "length", "train": "both_encoders"}, "batches: length is for train: query_encoder"),
            ({"selection": {"ranks": [1, 5]}}, "ranks are a first, at least 2"),
            ({"selection": {"by": "random"}}, "by: random chooses a share of the texts; give it"),
            ({"selection": {"share": 0.5}}, "share is for other rules than prod"),
            ({"selection": {"by": "random", "share": 0.5, "topics": 3}}, "topics is for by: topics"),
            ({"selection": {"by": "gap", "share": 0.5}}, "unknown rule of selection 'gap'"),
            ({"selection": {"by": "random", "share": 0.5, "ranks": [3, 9]}}, "ranks is for by: prod; remove it"),
            ({"objectives": "calibrated-kl"}, "calibrated-kl corrects the teacher by labels; set positives: labels"),
            ({"objectives": ["kl", "attention"], "lora": {}}, "attention reads attention heads, which lora wraps"),
            ({"objectives": [{"name": "kl", "layers": {}}]}, "layers is for objectives that compare layers"),
            ({"teacher": "student:"}, "write student:NAME"),
            ({"teacher": "student:bi@two"}, "write student:NAME"),
        ],
    )
    def test_each_is_rejected_with_its_reason(self, change, message):
        with pytest.raises(ValueError, match=r".") as error:
            stage(**change)
        assert message in str(error.value)

    def test_labels_outside_0_to_1_are_rejected_before_training(self, data):
        teacher = RecordedRanker(Run.from_dict({query: {"d1": 2.0, "d2": 1.0} for query in data.queries.ids}))
        with pytest.raises(UserError, match=r"bce learns labels from 0 to 1, and the teacher's go from 1 to 2"):
            prepare(stage(objectives="bce", labels="mean"), changed(data, teacher=teacher))

    def test_a_teacher_of_its_own_is_for_recipes(self, data, tiny_model, tmp_path):
        settings = StudentSettings.model_validate({"model": f"dense:{tiny_model}", "stages": [stage(teacher="bm25")]})
        with pytest.raises(UserError, match=r"own teacher, labels or start needs a recipe"):
            train_student("student", settings, data, tmp_path / "student")
