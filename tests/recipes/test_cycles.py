"""Stages with their own teachers, and students that teach each other (Trans-Encoder)."""

import copy
import shutil

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.rankers.cross_encoder import CrossEncoderRanker
from retrodistill.rankers.ensemble import Ensemble, SoftLabels
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes import students as pipeline_students
from retrodistill.recipes.job import open_job
from retrodistill.recipes.plan import plan_recipe
from retrodistill.recipes.stage_teachers import manifest_after_stage
from retrodistill.recipes.student_settings import StudentSettings, teaching_students, training_order
from retrodistill.recipes.students import _Training, train_students
from retrodistill.students.registry import load_student, weights_to_start_from
from retrodistill.training.scoring import scored_candidates, stage_texts

pytestmark = [pytest.mark.usefixtures("given_pace"), pytest.mark.slow]

LISTS = {"candidates": {"depth": 4, "sources": ["bm25"]}, "texts": {"titles": False, "sentences": 0}}
QUICK = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}


def to_cross(teacher):
    bce = {"name": "bce", "student_temperature": 1.0}
    return {
        **LISTS,
        "objectives": bce,
        "train": "both_encoders",
        "teacher": teacher,
        "labels": "cosine",
        "training": QUICK,
    }


def to_bi(teacher):
    mse = {"name": "mse", "student_temperature": 1.0, "teacher_temperature": 1.0}
    return {**LISTS, "objectives": mse, "teacher": teacher, "labels": "sigmoid", "training": QUICK}


@pytest.fixture
def cycle(content, tiny_model, tiny_cross_encoder):
    """Two cycles without labels: the bi-encoder as it starts, then each other."""
    changed = copy.deepcopy(content)
    changed["teacher"] = []
    changed["students"] = {
        "cross": {
            "model": f"cross-encoder:{tiny_cross_encoder}",
            "control": None,
            "stages": [to_cross("student:bi@0"), to_cross("student:bi@1")],
        },
        "bi": {
            "model": f"dense:{tiny_model}",
            "control": None,
            "stages": [to_bi("student:cross@1"), to_bi("student:cross")],
        },
    }
    return changed


def trained_order(monkeypatch):
    seen, run_stage = [], pipeline_students.run_stage

    def listening(model, stage, data, folder, what):
        seen.append(what)
        return run_stage(model, stage, data, folder, what)

    monkeypatch.setattr(pipeline_students, "run_stage", listening)
    return seen


def workshop(job):
    folders = {name: job.out / "students" / name for name in job.recipe.students}
    return _Training(job.recipe.students, job.training_data, folders, job.teachers)


def stage_data(job, stage):
    """The stage's data; students that teach it are trained as far as that."""
    made, needed = workshop(job), {state for state in teaching_students(stage, job.recipe.students) if state[1]}
    for state in made.pending():
        if needed and not all(made.is_saved(state) for state in needed):
            made.advance(*state)
    return job.teachers.data_of(stage, job.training_data, made.student_after)


class TestOrder:
    def test_each_stage_follows_what_it_needs(self, cycle):
        order = training_order(parse_recipe(cycle).students)
        assert order == [
            ("cross", 0), ("bi", 0), ("cross", 1), ("bi", 1), ("cross", 2), ("bi", 2),
        ]  # fmt: skip

    def test_it_is_logged_before_training(self, cycle, tmp_path, capsys):
        set_quiet(False)
        run_recipe(parse_recipe(cycle), tmp_path / "out")
        assert "training order: cross@1, bi@1, cross@2, bi@2" in capsys.readouterr().err


class TestCycle:
    def test_stages_run_in_the_order_in_which_they_need_each_other_each_once(self, cycle, tmp_path, monkeypatch):
        seen = trained_order(monkeypatch)
        results = run_recipe(parse_recipe(cycle), tmp_path / "out")
        assert seen == [f"{name}, stage {number} of 2" for number in (1, 2) for name in ("cross", "bi")]
        assert {"cross", "bi"} <= {one.name for one in results.systems}
        run_recipe(parse_recipe(cycle), tmp_path / "out")
        assert len(seen) == 4  # nothing is trained again

    def test_a_lost_student_is_trained_again_to_the_same_bytes(self, cycle, tmp_path, monkeypatch):
        recipe = parse_recipe(cycle)
        run_recipe(recipe, tmp_path / "out")
        bi = tmp_path / "out" / "students" / "bi"
        before = load_encoder(f"dense:{bi}").weights_digest
        shutil.rmtree(bi)
        seen = trained_order(monkeypatch)
        run_recipe(recipe, tmp_path / "out")
        assert load_encoder(f"dense:{bi}").weights_digest == before
        assert "bi, stage 2 of 2" in seen

    def test_the_bi_encoder_labels_by_mapped_cosines_with_the_spaces_documents(self, cycle, tmp_path):
        job = open_job(parse_recipe(cycle), tmp_path / "out")
        stage = job.recipe.students["cross"].stages[0]
        taught = stage_data(job, stage)
        assert isinstance(taught.teacher, SoftLabels)
        texts = stage_texts(stage, taught).texts
        run = scored_candidates(stage, taught, texts)[0]
        query, documents, labels = next(iter(run))
        space = job.space
        cosines = (
            space.encode([texts[query]], "query")
            @ space.encode([job.collection.documents[document] for document in documents], "document").T
        )
        assert labels.tolist() == pytest.approx(((1 + cosines[0]) / 2).tolist(), abs=1e-5)

    def test_a_student_teaches_as_it_was_after_that_stage(self, cycle, tmp_path):
        job = open_job(parse_recipe(cycle), tmp_path / "out")
        students = job.recipe.students
        for number, stage in enumerate(students["bi"].stages, start=1):
            member = stage_data(job, stage).teacher.members[0]
            assert isinstance(member, CrossEncoderRanker)
            standing = workshop(job).student_after("cross", number)
            pairs = [("what star", "star and planet"), ("what bread", "court and judge")]
            assert np.allclose(member.logits(pairs), standing.score(pairs))

    def test_mutual_is_the_mean_of_two_students_labels(self, cycle, tiny_cross_encoder, tmp_path):
        other = copy.deepcopy(cycle["students"]["cross"])
        cycle["students"]["cross-2"] = {**other, "stages": [to_cross("student:bi@0")]}
        cycle["students"]["bi"]["stages"] = [to_bi(["student:cross@1", "student:cross-2"])]
        cycle["students"]["cross"]["stages"] = [to_cross("student:bi@0")]
        job = open_job(parse_recipe(cycle), tmp_path / "out")
        stage = job.recipe.students["bi"].stages[0]
        taught = stage_data(job, stage)
        texts = stage_texts(stage, taught).texts
        found = scored_candidates(stage, taught, texts)[0]
        scores = [member.score(texts, job.collection, found).scores for member in taught.teacher.members]
        wanted = np.mean([1 / (1 + np.exp(-one)) for one in scores], axis=0)
        assert found.scores.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)

    def test_the_fingerprint_of_a_student_includes_the_teachers_of_its_stages(self, cycle, tmp_path):
        prints = []
        for rate in (1e-3, 2e-3):
            cycle["students"]["cross"]["stages"][1]["training"] = {**QUICK, "learning_rate": rate}
            job = open_job(parse_recipe(cycle), tmp_path / "out")
            prints.append(
                [
                    manifest_after_stage(job.recipe.students["bi"], job.training_data, n, job.teachers).fingerprint
                    for n in (1, 2)
                ]
            )
        assert prints[0][0] == prints[1][0]  # the first stage was taught by the cross-encoder behind its first
        assert prints[0][1] != prints[1][1]

    def test_a_plan_tells_what_it_cannot_count(self, cycle, tmp_path, write_recipe):
        steps = [one["step"] for one in plan_recipe(write_recipe(cycle), tmp_path / "out").to_json()["steps"][1:]]
        assert "cross, stage 1: teacher student:bi@0, known when that student is trained" in steps


@pytest.fixture
def started(cycle):
    """The cycle, in which each model starts from the other's transformer as it is after its last stage."""
    for name, starts in (("cross", ["student:bi@0", "student:bi@1"]), ("bi", ["student:cross@1", "student:cross"])):
        for stage, start in zip(cycle["students"][name]["stages"], starts, strict=True):
            stage["start"] = start
    return cycle


def weights_of_stages(monkeypatch):
    """Weights before and after each stage that is trained, by state."""
    before, after, run_stage = {}, {}, pipeline_students.run_stage

    def kept(model):
        return {key.removeprefix("0.model."): value.clone() for key, value in model.state_dict().items()}

    def listening(model, stage, data, folder, what):
        state = what.split(",")[0], int(what.split()[2])
        before[state] = kept(model)
        history = run_stage(model, stage, data, folder, what)
        after[state] = kept(model)
        return history

    monkeypatch.setattr(pipeline_students, "run_stage", listening)
    return before, after


def same(one, other, keys):
    return all(torch.equal(one[key], other[key]) for key in keys)


def transformer(weights):
    """The weights of a transformer without its pooler, by their names in the bi-encoder."""
    named = {key.removeprefix("bert."): value for key, value in weights.items()}
    return {key: value for key, value in named.items() if key.startswith(("embeddings.", "encoder."))}


class TestStart:
    def test_each_model_starts_from_the_others_transformer_and_keeps_its_head(self, started, tmp_path, monkeypatch):
        before, after = weights_of_stages(monkeypatch)
        run_recipe(parse_recipe(started), tmp_path / "out")
        taken = [(("bi", 1), ("cross", 1)), (("cross", 2), ("bi", 1)), (("bi", 2), ("cross", 2))]
        for taker, giver in taken:
            wanted = transformer(after[giver])
            assert len(wanted) > 30
            assert same(transformer(before[taker]), wanted, wanted)
        assert not same(transformer(after["bi", 1]), transformer(after["cross", 1]), transformer(after["bi", 1]))
        head = [key for key in after["cross", 1] if "pooler" in key or "classifier" in key]
        assert len(head) == 4
        assert same(before["cross", 2], after["cross", 1], head)

    def test_a_student_may_return_to_its_own_start(self, cycle, tiny_model, tmp_path, monkeypatch):
        cycle["students"]["bi"]["stages"][1]["start"] = "student:bi@0"
        before, after = weights_of_stages(monkeypatch)
        run_recipe(parse_recipe(cycle), tmp_path / "out")
        assert same(before["bi", 2], before["bi", 1], before["bi", 1])
        assert not same(after["bi", 1], before["bi", 1], before["bi", 1])

    def test_a_student_with_fewer_layers_takes_the_first_ones(self, started, tmp_path, monkeypatch):
        started["students"]["cross"]["layers"] = 1
        for stage in started["students"]["bi"]["stages"]:
            del stage["start"]
        before, after = weights_of_stages(monkeypatch)
        run_recipe(parse_recipe(started), tmp_path / "out")
        taken = transformer(before["cross", 2])
        assert {key.split(".")[2] for key in taken if key.startswith("encoder.")} == {"0"}
        assert same(taken, transformer(after["bi", 1]), taken)

    def test_a_stopped_job_ends_with_the_same_bytes(self, started, tmp_path, monkeypatch):
        recipe = parse_recipe(started)
        run_recipe(recipe, tmp_path / "whole")
        run_stage = pipeline_students.run_stage

        def stopping(model, stage, data, folder, what):
            history = run_stage(model, stage, data, folder, what)
            if what.startswith("cross, stage 2"):
                raise KeyboardInterrupt  # when the stage is trained but not kept
            return history

        monkeypatch.setattr(pipeline_students, "run_stage", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "out")
        monkeypatch.setattr(pipeline_students, "run_stage", run_stage)
        seen = trained_order(monkeypatch)
        run_recipe(recipe, tmp_path / "out")
        assert seen == ["cross, stage 2 of 2", "bi, stage 2 of 2"]
        for name in ("cross", "bi"):
            whole, resumed = (load_student(tmp_path / run / "students" / name) for run in ("whole", "out"))
            assert resumed.weights_digest == whole.weights_digest

    def test_the_fingerprint_includes_whose_weights_a_stage_starts_with(self, cycle, tmp_path):
        def manifests():
            job = open_job(parse_recipe(cycle), tmp_path / "out")
            bi = job.recipe.students["bi"]
            return [manifest_after_stage(bi, job.training_data, number, job.teachers) for number in (1, 2)]

        plain = manifests()
        assert all("start" not in stage for stage in plain[1].settings["stages"])  # as before there was the key
        cycle["students"]["bi"]["stages"][1]["start"] = "student:other@1"
        prints = []
        for rate in (1e-3, 2e-3):
            other = to_cross("student:bi@0") | {"training": {**QUICK, "learning_rate": rate}}
            cycle["students"]["other"] = {**cycle["students"]["cross"], "stages": [other]}
            prints.append([one.fingerprint for one in manifests()])
        assert prints[0][0] == prints[1][0] == plain[0].fingerprint
        assert len({plain[1].fingerprint, prints[0][1], prints[1][1]}) == 3

    def test_heads_are_in_the_fingerprint_of_students_that_choose_one(self, cycle, tmp_path):
        job = open_job(parse_recipe(cycle), tmp_path / "out")
        first = [
            manifest_after_stage(job.recipe.students[name], job.training_data, 0, job.teachers)
            for name in ("bi", "cross")
        ]
        assert [one.settings["head"] for one in first] == ["splade", None]  # the first as before there was a choice

    def test_training_waits_for_the_student_to_start_from(self, cycle, tmp_path, write_recipe):
        cycle["students"]["cross"]["stages"] = cycle["students"]["cross"]["stages"][:1]
        cycle["students"]["cross"]["stages"][0]["start"] = "student:early@1"
        cycle["students"]["early"] = {**cycle["students"]["bi"], "stages": [{"objectives": "leaf", "training": QUICK}]}
        assert training_order(parse_recipe(cycle).students)[:4] == [("cross", 0), ("bi", 0), ("early", 0), ("early", 1)]
        steps = [one["step"] for one in plan_recipe(write_recipe(cycle), tmp_path / "out").to_json()["steps"]]
        assert "cross, stage 1: train" in steps

    def test_a_transformer_that_does_not_fit_is_refused_before_any_work(self, started, tmp_path):
        started["students"]["cross"]["layers"] = 1
        with pytest.raises(UserError, match=r"start: student:cross@1 does not fit .*: encoder.layer.1.* is missing"):
            run_recipe(parse_recipe(started), tmp_path / "out")
        assert not (tmp_path / "out" / "students").exists()

    def test_another_width_or_vocabulary_does_not_fit(self, tiny_model):
        model, narrow, other = (load_encoder(f"dense:{tiny_model}").model for _ in range(3))
        norm = narrow[0].auto_model.embeddings.LayerNorm
        norm.weight = torch.nn.Parameter(norm.weight[:16])
        with pytest.raises(UserError, match=r"embeddings.LayerNorm.weight has shape \(16,\) instead of \(32,\)"):
            weights_to_start_from(model, narrow, "student:narrow")
        other.tokenizer.add_tokens("sundial")
        with pytest.raises(UserError, match=r"another vocabulary"):
            weights_to_start_from(model, other, "student:other")

    def test_without_a_recipe_there_is_no_other_student(self, cycle, tmp_path):
        job = open_job(parse_recipe(cycle), tmp_path / "out")
        stages = [{"objectives": "leaf", "start": "student:bi@0"}]
        settings = StudentSettings.model_validate({"model": cycle["students"]["bi"]["model"], "stages": stages})
        with pytest.raises(UserError, match=r"needs a recipe"):
            train_students({"bi": settings}, job.training_data, {"bi": tmp_path / "bi"})

    @pytest.mark.parametrize(
        ("model", "start", "message"),
        [
            (None, "student:bj", "unknown student 'bj'. Did you mean 'bi'"),
            (None, "student:cross@3", "cross has 2 stages"),
            (None, "cross@1", "write student:NAME, or student:NAME@2"),
            (None, "student:bi@1", "students wait for each other: bi@1 -> bi@1"),
            (None, "student:table", "bi: start 'student:table': table is a static student, without a transformer"),
            ("static", "student:cross@1", "bi: start 'student:cross@1': bi is a static student, without a transformer"),
        ],
    )
    def test_students_that_cannot_lend_or_take_weights(self, cycle, model, start, message):
        bi = cycle["students"]["bi"]
        cycle["students"]["table"] = {"model": "static", "control": None, "stages": [{"objectives": "leaf"}]}
        bi["model"] = model or bi["model"]
        bi["stages"][0]["start"] = start
        with pytest.raises(UserError) as error:
            parse_recipe(cycle)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class TestTeachersOfStages:
    def test_a_stage_may_have_its_own_teacher(self, dense_content, tiny_model, tmp_path):
        stage = dense_content["students"]["student"]["stages"][0]
        stages = [stage, {**stage, "teacher": "bm25"}, {**stage, "teacher": ["bm25", f"dense:{tiny_model}"]}]
        stages.append({**stage, "labels": "mean"})
        dense_content["students"]["student"]["stages"] = stages
        job = open_job(parse_recipe(dense_content), tmp_path / "out")
        teachers = [stage_data(job, one).teacher for one in job.recipe.students["student"].stages]
        assert teachers[0] is job.teacher
        assert [teachers[1].name, teachers[2].name] == ["bm25", "ensemble"]
        assert isinstance(teachers[2], Ensemble)
        assert isinstance(teachers[2].members[1], DenseRanker)
        assert teachers[2].members[1].queries is job.space
        assert [member.name for member in teachers[3].members] == ["bm25", f"dense:{tiny_model}"]
        folder = {"student": tmp_path / "out" / "student"}
        made = train_students(job.recipe.students, job.training_data, folder, job.teachers)["student"]
        assert len(made.curves["losses"]) >= 4
        manifest = (tmp_path / "out" / "student" / STUDENT_MANIFEST).read_text()
        assert "teacher of stage 2" in manifest
        assert "teacher of stage 1" not in manifest

    def test_a_teacher_of_pairs_is_refused_for_a_whole_corpus_before_any_work(
        self, dense_content, tiny_cross_encoder, tmp_path
    ):
        dense_content["students"]["student"]["stages"][0] |= {
            "teacher": f"cross-encoder:{tiny_cross_encoder}",
            "candidates": {"depth": "all"},
        }
        with pytest.raises(UserError, match=r"scores pairs and cannot score a whole corpus"):
            open_job(parse_recipe(dense_content), tmp_path / "out")

    @pytest.mark.parametrize(
        ("where", "teacher", "message"),
        [
            (("bi", 0), "student:bj", "unknown student 'bj'. Did you mean 'bi'"),
            (("bi", 0), "student:cross@3", "cross has 2 stages"),
            (("cross", 0), "student:bi", "students wait for each other: "),
            (("bi", 1), "student:bi", "students wait for each other: bi@2 -> bi@2"),
        ],
    )
    def test_students_that_cannot_teach(self, cycle, where, teacher, message):
        name, number = where
        cycle["students"][name]["stages"][number]["teacher"] = teacher
        with pytest.raises(UserError) as error:
            parse_recipe(cycle)
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_student_cannot_teach_the_whole_recipe(self, cycle):
        with pytest.raises(UserError, match=r"name it in a stage's teacher"):
            parse_recipe({**cycle, "teacher": "student:bi"})

    def test_an_ensemble_cannot_judge_its_own_stage(self, dense_content):
        dense_content["students"]["student"]["stages"][0]["selection"] = {"positives": "ensemble"}
        with pytest.raises(UserError, match=r"selection.positives: ensemble"):
            parse_recipe(dense_content)
        dense_content["students"]["student"]["stages"][0]["teacher"] = "bm25"
        parse_recipe(dense_content)
