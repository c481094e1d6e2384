"""The recipe's key `bm25`: one setting wherever BM25 is used, and the warning without it."""

import pytest

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.stage_teachers import student_manifest
from retrodistill.recipes.systems import baselines, teacher_row
from retrodistill.training.scoring import candidate_sources

GERMAN = "Die Verteidigung der Mannschaft gab im ganzen Jahr nur wenige Punkte ab und belegte den sechsten Platz."


@pytest.fixture
def job_of(dense_content, tmp_path):
    def job_of(**more):
        return open_job(parse_recipe({**dense_content, **more}), tmp_path / "job")

    return job_of


@pytest.fixture
def german(tiny_folder, tmp_path):
    """The tiny collection with documents in German."""
    folder = tmp_path / "german"
    (folder / "qrels").mkdir(parents=True)
    for name in ("queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"):
        (folder / name).write_text((tiny_folder / name).read_text())
    (folder / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "d{row}", "title": "", "text": "{GERMAN} {row}"}}\n' for row in range(60))
    )
    return str(folder)


class TestTheKey:
    def test_it_is_what_bm25_means_in_the_whole_recipe(self, job_of, dense_content):
        stage = dense_content["students"]["student"]["stages"][0]
        stage["candidates"] = {"depth": 10, "sources": ["bm25", "bm25:english"]}
        job = job_of(bm25="german", teacher="bm25")
        student = job.recipe.students["student"]
        assert candidate_sources(student.stages[0], job.training_data) == ["bm25:german", "bm25:english"]
        assert (job.teacher.name, teacher_row(job)) == ("bm25:german", "bm25")
        baseline = baselines(job)[0]
        assert (baseline.name, baseline.ranker.documents_by, baseline.source) == ("bm25", "bm25:german", "bm25:german")

    def test_it_proposes_the_default_candidates(self, job_of):
        job = job_of(bm25="characters")
        assert candidate_sources(job.recipe.students["student"].stages[0], job.training_data)[0] == "bm25:characters"

    def test_auto_is_the_language_of_the_documents(self, job_of, german):
        assert job_of(bm25="auto", collection=german).bm25.name == "bm25:german"

    def test_students_of_another_setting_are_trained_again(self, job_of):
        plain, characters = job_of(), job_of(bm25="characters")
        made_from = [student_manifest(job.recipe.students["student"], job.training_data) for job in (plain, characters)]
        assert made_from[0].fingerprint != made_from[1].fingerprint

    def test_an_unknown_setting_is_refused_before_anything_is_loaded(self, job_of):
        with pytest.raises(UserError, match=r"bm25:germna.* Did you mean 'german'\?"):
            job_of(bm25="germna", document_encoder="dense:nowhere")

    def test_results_keep_the_name_of_the_system(self, dense_content, tmp_path):
        dense_content |= {"bm25": "characters", "evaluation": {"latency_queries": 0}}
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        assert results.system("bm25").documents_by == "bm25:characters"

    def test_distill_takes_it_too(self, tiny, tiny_model, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr("retrodistill.api.train_student", lambda name, settings, data, folder: seen.append(data))
        with pytest.raises(AttributeError):  # nothing was trained
            rd.distill(
                tiny, "bm25", document_encoder=f"dense:{tiny_model}", training={"bm25": "english"}, out=tmp_path / "s"
            )
        assert seen[0].bm25 == "bm25:english"


class TestTheWarning:
    def test_documents_in_another_language_have_one(self, job_of, german):
        assert any(note.startswith("warning: ") and "bm25: german" in note for note in job_of(collection=german).notes)

    def test_a_setting_needs_none(self, job_of, german):
        assert not any("bm25: german" in note for note in job_of(collection=german, bm25="german").notes)

    def test_english_documents_have_none(self, job_of):
        assert not any("bm25 is for" in note for note in job_of().notes)
