"""Students that a recipe trims after their last stage."""

import copy

import numpy as np
import pytest
from backbones import bi_encoder

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.recipes import parse_recipe, run_recipe, students
from retrodistill.recipes.job import open_job
from retrodistill.recipes.stage_teachers import finished_manifest, manifest_after_stage


@pytest.fixture
def trimmed_content(content):
    """The same student whole, trimmed, and trimmed with a small table."""
    table = {"initialize": "fitted", "tokenizer": "trained"}  # word pieces, not all of which the texts use
    student = {**content["students"]["student"], **table, "control": None}
    small = {"dimension": 16, "precision": "int8"}
    students = {"whole": student, "trimmed": {**student, "trim": {}}, "small": {**student, "trim": small}}
    return {**content, "students": copy.deepcopy(students)}


class TestAJob:
    def test_stages_are_trained_once_and_each_student_is_cut_at_the_end(
        self, trimmed_content, tiny, tmp_path, monkeypatch
    ):
        trained, run_stage = [], students.run_stage
        monkeypatch.setattr(students, "run_stage", lambda *given: trained.append(given[4]) or run_stage(*given))
        results = run_recipe(parse_recipe(trimmed_content), tmp_path / "out")
        assert trained == ["whole, stage 1 of 2", "whole, stage 2 of 2"]
        assert results.system("trimmed").ndcg10 == results.system("whole").ndcg10
        folder = tmp_path / "out" / "students"
        whole, trimmed, small = (load_encoder(f"static:{folder / name}") for name in ("whole", "trimmed", "small"))
        texts = tiny.split("train").texts
        np.testing.assert_array_equal(trimmed.encode(texts, "query"), whole.encode(texts, "query"))
        sizes = [len(each.model[0].embedding.weight) for each in (whole, trimmed, small)]
        assert sizes[0] > sizes[1] == sizes[2]
        assert small.model[0].embedding.weight.shape[1] == 16
        assert small.dimension == whole.dimension
        assert trimmed.query_space == whole.query_space
        about = Manifest.read(folder / "trimmed", STUDENT_MANIFEST).about["trimmed"]
        assert about["used"] <= about["tokens"] == sizes[1] < about["before"] == sizes[0]
        assert "int8" in (folder / "small" / "README.md").read_text()

        run_recipe(parse_recipe(trimmed_content), tmp_path / "out")  # nothing is left to do
        assert len(trained) == 2


class TestManifests:
    def test_only_the_finished_student_has_the_key(self, trimmed_content, tmp_path):
        job = open_job(parse_recipe(trimmed_content), tmp_path / "out")
        whole, trimmed = (job.recipe.students[name] for name in ("whole", "trimmed"))
        stages = [manifest_after_stage(student, job.training_data, 2, job.teachers) for student in (whole, trimmed)]
        assert stages[0].fingerprint == stages[1].fingerprint
        assert "trim" not in stages[0].settings
        finished = [finished_manifest(student, job.training_data, job.teachers) for student in (whole, trimmed)]
        assert finished[0].fingerprint == stages[0].fingerprint != finished[1].fingerprint


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"trim": {"precision": "int4"}}, "int4"),
            ({"trim": {"min_count": 0}}, "min_count"),
            ({"trim": {"dimension": 0}}, "dimension"),
            (
                {"model": "dense:m", "tokenizer": None, "trim": {"precision": "int8"}},
                "static student; this one is dense",
            ),
            (
                {"model": "tk:m", "initialize": "teacher", "tokenizer": None, "trim": {}},
                "trim is for .* students; this one is tk",
            ),
        ],
    )
    def test_are_told_before_work_starts(self, trimmed_content, changes, said):
        student = trimmed_content["students"]["trimmed"]
        stages = [{"objectives": "kl"}] if changes.get("model") == "tk:m" else student["stages"]
        trimmed_content["students"] = {"student": {**student, "stages": stages, **changes}}
        with pytest.raises(UserError, match=said):
            parse_recipe(trimmed_content)

    def test_a_stage_cannot_start_from_another_vocabulary(self, dense_content):
        student = dense_content["students"].pop("student")
        later = copy.deepcopy(student)
        later["stages"][0]["start"] = "student:first"
        dense_content["students"] = {"first": {**student, "trim": {}}, "second": later}
        with pytest.raises(UserError, match="first is trimmed after its last stage"):
            parse_recipe(dense_content)


class TestOtherKinds:
    @pytest.mark.parametrize(
        "settings",
        [
            {"model": "sparse", "queries": "inference-free", "lexical_terms": True},
            pytest.param({"model": "multi-vector", "dimension": 16}, marks=pytest.mark.slow),
            pytest.param({"model": "dense", "lexical_dim": 16}, marks=pytest.mark.slow),
            {"model": "cross-encoder"},
        ],
        ids=lambda settings: settings["model"],
    )
    def test_their_documents_are_of_the_trimmed_student(self, content, settings, tmp_path):
        base = bi_encoder("bert", tmp_path)
        quick = {"max_steps": 2, "batch_size": 16}
        train = {"train": "lexical"} if "lexical_dim" in settings else {"train": "both_encoders"}
        stage = {"objectives": "kl", "candidates": {"depth": 10}, "training": quick, **train}
        student = {**settings, "model": f"{settings['model']}:{base}", "documents": "student"}
        content |= {"document_encoder": f"dense:{base}", "teacher": "bm25", "evaluation": {"latency_queries": 0}}
        content["students"] = {"student": {**student, "stages": [stage], "control": None, "trim": {"min_count": 4}}}
        results = run_recipe(parse_recipe(content), tmp_path / "out")
        assert results.system("student").ndcg10 > 0
        about = Manifest.read(tmp_path / "out" / "students" / "student", STUDENT_MANIFEST).about["trimmed"]
        assert about["tokens"] < about["before"]
