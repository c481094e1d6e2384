"""Recipes whose students train on phrases and on queries that were generated for documents."""

import json

import pytest

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.plan import plan_recipe
from retrodistill.recipes.stage_teachers import student_manifest

pytestmark = pytest.mark.usefixtures("given_pace")


@pytest.fixture
def generated(tiny, tmp_path):
    def write(name="generated", documents=None):
        path = tmp_path / f"{name}.jsonl"
        ids = documents or tiny.documents.ids[:20]
        rows = ({"_id": f"{id_}-1", "text": f"tell me of {id_} and more", "document_id": id_} for id_ in ids)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def with_texts(content):
    def with_texts(generated):
        texts = {"titles": False, "sentences": 0, "phrases": 2, "generated": generated}
        for stage in content["students"]["student"]["stages"]:
            stage["texts"] = texts
        return content

    return with_texts


def fingerprint(content, out):
    job = open_job(parse_recipe(content), out)
    return student_manifest(job.recipe.students["student"], job.training_data, job.teachers).fingerprint


class TestRecipe:
    @pytest.mark.slow
    def test_trains_on_them_and_plans_as_many(self, with_texts, write_recipe, generated, tmp_path):
        path = write_recipe(with_texts(generated()))
        plan = plan_recipe(path, tmp_path / "out")
        run_recipe(path, tmp_path / "out")
        stage = json.loads((tmp_path / "out/students/student/retrodistill.json").read_text())["about"]["stages"][0]
        assert stage["queries"] == 35
        assert stage["texts"] > 35 + 20 + 60
        [teaching] = [step for step in plan.steps if step.step.startswith("student, stage 1: teacher")]
        assert teaching.items == stage["texts"]

    def test_the_content_of_the_file_decides_and_not_its_place(self, with_texts, generated, tmp_path):
        given = fingerprint(with_texts(generated("a")), tmp_path / "out")
        assert fingerprint(with_texts(generated("b")), tmp_path / "out") == given
        assert fingerprint(with_texts(generated("b", ["d0"])), tmp_path / "out") != given

    def test_an_unknown_document_is_refused_before_work(self, with_texts, write_recipe, generated, tmp_path):
        path = write_recipe(with_texts(generated(documents=["d0", "elsewhere"])))
        with pytest.raises(UserError, match=r"generated.jsonl, line 2: .* has no document 'elsewhere'"):
            run_recipe(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_students_without_them_have_the_settings_of_before(self, content):
        [stage, _] = parse_recipe(content).students["student"].stages
        assert set(stage.texts.model_dump()) == {
            "queries", "repeat_queries", "titles", "sentences", "documents", "limit",
        }  # fmt: skip


class TestDistill:
    def test_takes_texts(self, tiny, tiny_model, generated, tmp_path):
        training = {"max_steps": 2, "texts": {"titles": False, "sentences": 0, "generated": generated()}}
        out = tmp_path / "student"
        rd.distill(tiny, f"dense:{tiny_model}", document_encoder=f"dense:{tiny_model}", training=training, out=out)
        [stage] = json.loads((out / "retrodistill.json").read_text())["about"]["stages"]
        assert (stage["queries"], stage["texts"]) == (35, 55)  # seven are nearly test queries

    def test_refuses_an_unknown_document_before_work(self, tiny, tiny_model, generated, tmp_path):
        training = {"texts": {"generated": generated(documents=["elsewhere"])}}
        with pytest.raises(UserError, match="no document 'elsewhere'"):
            rd.distill(tiny, "bm25", document_encoder=f"dense:{tiny_model}", training=training, out=tmp_path / "s")
