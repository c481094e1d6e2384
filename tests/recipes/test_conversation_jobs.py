"""Better queries teach: conversations with rewrites, and rewrites of any kind (DiSCo)."""

import json
from pathlib import Path

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Texts, load_collection
from retrodistill.data.conversations import with_rewrites
from retrodistill.encoders import load_encoder
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.plan import plan_recipe
from retrodistill.recipes.stage_teachers import student_manifest
from retrodistill.training.scoring import scored_candidates, stage_texts
from retrodistill.training.settings import TeacherSettings

pytestmark = pytest.mark.usefixtures("given_pace")


@pytest.fixture
def written(tmp_path):
    def written(lines, name="asked.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return written


@pytest.fixture
def turns(tiny_folder):
    """Two turns a conversation: the second asks for "more" of what the first named; train and test apart."""
    loaded, found = load_collection(tiny_folder), []
    for split in ("train", "test"):
        queries = loaded.split(split)
        for number in range(0, len(queries) - 1, 2):
            for place in (0, 1):
                id_, text = queries.ids[number + place], queries.texts[number + place]
                said = text if place == 0 else "what about all of that"
                found.append(
                    {"conversation_id": f"{split}{number}", "turn": place, "utterance": said, "rewrite": text}
                    | {"query_id": id_, "response": "today."}
                )
    return found


@pytest.fixture
def job_of(dense_content, tmp_path):
    def job_of(**more):
        return open_job(parse_recipe({**dense_content, **more}), tmp_path / "job")

    return job_of


class TestConversations:
    def test_students_get_them_and_teachers_get_their_rewrites(self, job_of, written, turns):
        job = job_of(conversations=written(turns))
        rewrites = {one["query_id"]: one["rewrite"] for one in turns}
        assert all(job.rewrites[query] == rewrites[query] for query in [*job.train.ids, *job.test.ids])
        second = next(one for one in turns if one["turn"] == 1)
        assert job.collection.queries[second["query_id"]].startswith("what about all of that | today. | what ")
        told = f"{len(turns)} queries of {len(turns) // 2} conversations"
        assert any(told in note for note in job.notes)
        stage = job.recipe.students["student"].stages[0]
        texts = stage_texts(stage, job.training_data).texts
        assert texts.texts == job.train.texts
        run = scored_candidates(stage, job.training_data, texts)[0]
        by_rewrites = job.teacher.score(with_rewrites(texts, job.rewrites), job.collection, run).to_dict()
        for query, scores in run.to_dict().items():
            assert scores == pytest.approx(by_rewrites[query], abs=1e-6)

    def test_history_can_be_limited(self, job_of, written, turns):
        path = written(turns)
        job = job_of(conversations={"path": path, "history": 0})
        assert set(job.train.texts) == {one["utterance"] for one in turns if one["query_id"] in job.train}

    def test_without_rewrites_the_scores_of_two_versions_are_fused(self, job_of, written, turns):
        lines = [{key: value for key, value in one.items() if key != "rewrite"} for one in turns]
        job = job_of(conversations={"path": written(lines), "teacher": ["expansions", "utterances"]})
        said = {one["query_id"]: one["utterance"] for one in turns}
        second = next(one["query_id"] for one in turns if one["turn"] == 1 and one["query_id"] in job.test)
        assert job.rewrites[second].startswith("what about all of that ")
        assert len(job.rewrites[second]) > len(said[second]) + 1
        plain, again = job.teacher.members[::2], job.teacher.members[1::2]
        assert [f"{member.name} (utterances)" for member in plain] == [member.name for member in again]
        assert job.teacher.weights == pytest.approx(np.repeat(np.array(job.teacher.weights[::2]), 2))

        pairs = job.bm25.search(job.test, job.collection, 9)
        utterances = with_rewrites(job.test, Texts.from_pairs(said.items()))
        for plain_member, member in zip(plain, again, strict=True):
            expected = plain_member.score(utterances, job.collection, pairs)
            assert np.allclose(member.score(job.test, job.collection, pairs).scores, expected.scores)
        assert any("got the expansions and the utterances" in note for note in job.notes)

        stage = job.recipe.students["student"].stages[0]
        texts = stage_texts(stage, job.training_data).texts
        assert len(scored_candidates(stage, job.training_data, texts)[0])

    def test_later_turns_without_a_rewrite_are_an_error_that_names_another_teacher(self, job_of, written, turns):
        lines = [{**one, "rewrite": None} if one["turn"] == 1 else one for one in turns]
        with pytest.raises(UserError, match=r"conversations.teacher to \[expansions, utterances\]"):
            job_of(conversations=written(lines))
        assert job_of(conversations={"path": written(lines), "teacher": "utterances"}).rewrites is not None

    @pytest.mark.parametrize("given", [[], ["raw", "raw"], "rewrite", ["expansions", "none"]])
    def test_versions_are_known_and_named_once(self, job_of, written, turns, given):
        with pytest.raises(UserError, match=r"conversations\.teacher"):
            job_of(conversations={"path": written(turns), "teacher": given})

    @pytest.mark.parametrize("teacher", ["rewrites", "utterances", "raw", ["expansions", "utterances"]])
    @pytest.mark.parametrize("version", ["utterance", "rewrite"])
    def test_test_queries_are_barred_in_every_version_whoever_reads_it(self, job_of, written, turns, teacher, version):
        """Second turns have histories of their own, so that their raw queries differ."""
        lines = [{**one, "utterance": f"{one['query_id']} x{one['query_id']}"} for one in turns]
        seconds = [one for one in lines if one["turn"] == 1]
        train, test = (
            next(one for one in seconds if one["conversation_id"].startswith(split)) for split in ("train", "test")
        )
        train[version] = test[version]
        job = job_of(conversations={"path": written(lines), "teacher": teacher})
        assert test["query_id"] in job.test
        assert train["query_id"] not in job.train
        assert len(job.train) > 5
        assert test[version] in job.training_data.excluded.queries.texts

    def test_another_version_is_another_student_where_the_recipes_teacher_is_recorded(self, job_of, written, turns):
        """The run has scores by ID, whatever the version, and a stage's own teacher reads it."""
        run = "".join(f"{one['query_id']} Q0 d{place} 1 {place}.5 t\n" for one in turns for place in (0, 1))
        (Path(written([])).parent / "t.run").write_text(run)
        prints = set()
        for more in ("", " today"):
            lines = [{**one, "rewrite": one["rewrite"] + more} for one in turns]
            given = {"path": written(lines), "teacher": ["utterances", "rewrites"]}
            job = job_of(conversations=given, teacher=f"run:{Path(written([], 'empty')).parent / 't.run'}")
            student = job.recipe.students["student"]
            stage = student.stages[0].model_copy(update={"teacher": [TeacherSettings(model="bm25")]})
            student = student.model_copy(update={"stages": [stage]})
            prints.add(student_manifest(student, job.training_data, job.teachers).fingerprint)
        assert len(prints) == 2

    def test_versions_that_begin_with_the_conversation_itself_have_no_rewrites(self, job_of, written, turns):
        job = job_of(conversations={"path": written(turns), "teacher": ["raw", "utterances"]})
        assert job.rewrites is None
        assert [member.name.endswith("(utterances)") for member in job.teacher.members] == [False, True] * 2

    def test_in_the_control_teachers_get_the_queries_of_students(self, job_of, written, turns):
        job = job_of(conversations={"path": written(turns), "teacher": "raw"})
        assert job.rewrites is None
        assert job.teacher_test_queries.texts == job.test.texts
        assert any("as a control" in note for note in job.notes)

    def test_artificial_ones_are_noted(self, job_of):
        job = job_of(conversations="made")
        assert any("conversations are artificial" in note for note in job.notes)
        assert not set(job.train.ids) & set(job.test.ids)
        assert any(" | " in text for text in job.test.texts)

    def test_other_rewrites_change_the_fingerprint_of_a_student(self, job_of, written, turns):
        prints = []
        for shown in (turns, [{**one, "rewrite": one["rewrite"] + " today"} for one in turns]):
            job = job_of(conversations=written(shown))
            prints.append(student_manifest(job.recipe.students["student"], job.training_data).fingerprint)
        assert prints[0] != prints[1]

    def test_test_rewrites_are_not_trained_on(self, job_of, written, turns):
        stolen = next(one["rewrite"] for one in turns if one["conversation_id"].startswith("test"))
        train = next(one for one in turns if one["conversation_id"].startswith("train"))
        job = job_of(conversations=written([{**one, "rewrite": stolen} if one is train else one for one in turns]))
        assert train["query_id"] not in job.train
        assert any("left out: their rewrite is near that of a test query" in note for note in job.notes)
        assert stolen in job.training_data.excluded.queries.texts

    def test_teachers_are_measured_with_rewrites_and_students_without(
        self, dense_content, written, turns, tmp_path, tiny_model
    ):
        recipe = parse_recipe({**dense_content, "conversations": written(turns)})
        results = run_recipe(recipe, tmp_path / "out")
        rows = {one.name: one for one in results.systems}
        assert list(rows) == ["bm25", "teacher", "ensemble", "student", "rewrites"]
        assert rows["teacher"].queries_by.endswith("(rewrites)")
        assert rows["rewrites"].queries_by.endswith("(rewrites)")
        assert not rows["student"].queries_by.endswith("(rewrites)")
        job = open_job(recipe, tmp_path / "out")
        space = load_encoder(f"dense:{tiny_model}")
        asked, documents = space.encode(job.teacher_test_queries.texts, "query"), job.collection.documents
        best = np.argsort(-(asked @ space.encode(documents.texts, "document").T), axis=1, kind="stable")[:, 0]
        lines = (tmp_path / "out" / "runs" / "teacher.run").read_text().splitlines()
        first = {line.split()[0]: line.split()[2] for line in lines if line.split()[3] == "1"}
        assert first == {query: documents.ids[row] for query, row in zip(job.test.ids, best, strict=True)}

    def test_the_plan_counts_the_queries_of_the_teacher(self, dense_content, written, turns, tmp_path, write_recipe):
        path = write_recipe({**dense_content, "conversations": written(turns)})
        steps = plan_recipe(path, tmp_path / "out").to_json()["steps"][1:]
        assert any(step["items"] > 0 for step in steps)
        assert not (tmp_path / "out").exists()


class TestRewrites:
    def test_some_queries_have_rewrites(self, job_of, written, tiny):
        better = [
            {"query_id": query, "text": f"all about {tiny.queries[query]}"} for query in tiny.split("train").ids[:9]
        ]
        job = job_of(rewrites=written(better))
        assert any("rewrites for 9 of 60 queries" in note for note in job.notes)
        assert set(job.train.texts) < set(tiny.split("train").texts)  # some are near test queries
        assert job.teacher_test_queries.texts == job.test.texts
        assert sum(text.startswith("all about") for text in job.training_data.teacher_queries(job.train).texts) == sum(
            one["query_id"] in job.train for one in better
        )

    def test_alignment_is_to_the_embedding_of_the_rewrite(self, dense_content, written, tiny, tmp_path, monkeypatch):
        from retrodistill.students import dense

        better = [{"query_id": query, "text": "heart artery blood"} for query in tiny.split("train").ids]
        changed = dense_content
        changed["students"]["student"]["stages"][0] |= {"objectives": "leaf", "training": {"max_steps": 1}}
        seen = []

        class Listening(dense.DistillationLoss):
            def __init__(self, model, terms, scorer, lists, teacher, **named):
                seen.append(teacher.embeddings)
                super().__init__(model, terms, scorer, lists, teacher, **named)

        monkeypatch.setattr(dense, "DistillationLoss", Listening)
        run_recipe(parse_recipe({**changed, "rewrites": written(better)}), tmp_path / "out")
        assert np.ptp(seen[0], axis=0).max() < 1e-6  # all of one text

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([{"query_id": "nobody", "text": "x"}], "1 rewrites belong to queries that are not in the collection"),
            ([{"query_id": "t0", "text": "x"}], "no training query has a rewrite"),
        ],
    )
    def test_rewrites_that_do_not_fit_are_refused(self, job_of, written, lines, message):
        with pytest.raises(UserError) as error:
            job_of(rewrites=written(lines))
        assert message in str(error.value)

    def test_conversations_have_their_own_rewrites(self, job_of, written, turns):
        with pytest.raises(UserError, match="remove rewrites"):
            job_of(conversations=written(turns), rewrites="any.jsonl")
