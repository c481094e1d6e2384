"""Students of parallel texts: they read translations, and the teacher reads the sources."""

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.texts import GENERATED
from retrodistill.encoders import load_encoder
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.job import open_job
from retrodistill.recipes.stage_teachers import student_manifest
from retrodistill.students.static import static_student, trained_tokenizer
from retrodistill.training.scoring import stage_texts


def translated(text):
    """In a language that writes each word backwards, and in Cyrillic."""
    letters = {latin: chr(ord("а") + place) for place, latin in enumerate("abcdefghijklmnopqrstuvwxyz")}
    return " ".join("".join(letters.get(letter, letter) for letter in reversed(word)) for word in text.split())


@pytest.fixture
def pairs(tiny, tmp_path):
    """The training queries and titles, and their translations."""
    path = tmp_path / "pairs.tsv"
    texts = [*tiny.split("train").texts, *tiny.titles.texts]
    path.write_text("".join(f"{text}\t{translated(text)}\n" for text in dict.fromkeys(texts)))
    return str(path)


@pytest.fixture
def recipe_of(dense_content, pairs):
    def recipe_of(**more):
        leaf = {"objectives": "leaf", "texts": {"queries": False, "titles": False, "sentences": 1}}
        training = {"epochs": 10, "batch_size": 16, "learning_rate": 0.2, "max_gradient_norm": 0}
        student = {"model": "static", "tokenizer": "trained", "initialize": "random", "control": None}
        student |= {"stages": [{**leaf, "training": training}], **more.pop("student", {})}
        content = {**dense_content, "parallel": pairs, "students": {"student": student}}
        return parse_recipe({**content, "teacher": [], "evaluation": {"latency_queries": 0, "examples": 0}, **more})

    return recipe_of


def cosine_of_translations(student, job):
    """Mean cosine of the student's vectors of translations with the teacher's of their sources."""
    sources = job.parallel.sources
    ours = student.encode([job.parallel.texts[id_] for id_ in sources.ids], "query")
    return float(np.sum(ours * job.space.encode(sources.texts, "query"), axis=1).mean())


class TestTheJob:
    def test_a_stage_reads_both_texts_and_the_teacher_the_source(self, recipe_of, tmp_path):
        job = open_job(recipe_of(), tmp_path / "out")
        stage, data = job.recipe.students["student"].stages[0], job.training_data
        texts = stage_texts(stage, data)
        read, taught = dict(texts.texts), dict(data.teacher_queries(texts.texts))
        assert set(job.parallel.texts.ids) < set(read)
        source, translation = f"{GENERATED}source:0", f"{GENERATED}translation:0"
        assert taught[translation] == taught[source] == read[source]
        assert read[translation] == translated(read[source])
        assert len(texts) == len(job.parallel.texts) + 60

    def test_pairs_near_a_test_query_are_left_out(self, recipe_of, tiny, tmp_path):
        test = tiny.split("test").texts[0]
        path = tmp_path / "leak.tsv"
        path.write_text(f"{test}\t{translated(test)}\nanother text here\t{translated('another text here')}\n")
        job = open_job(recipe_of(parallel=str(path)), tmp_path / "out")
        assert job.parallel.sources.texts == ["another text here"]
        path.write_text(f"{test}\t{translated(test)}\n")
        with pytest.raises(UserError, match="all 1 pairs"):
            open_job(recipe_of(parallel=str(path)), tmp_path / "out")

    def test_students_of_other_pairs_are_trained_again(self, recipe_of, tmp_path):
        jobs = [open_job(recipe_of(**more), tmp_path / "out") for more in ({}, {"parallel": None})]
        made_from = [student_manifest(job.recipe.students["student"], job.training_data) for job in jobs]
        assert made_from[0].fingerprint != made_from[1].fingerprint

    def test_a_missing_file_is_named(self, recipe_of, tmp_path):
        with pytest.raises(UserError, match=r"nowhere\.tsv"):
            open_job(recipe_of(parallel="nowhere.tsv"), tmp_path / "out")


class TestStudents:
    def test_translations_approach_the_teachers_vectors_of_sources(self, recipe_of, tmp_path):
        job = open_job(recipe_of(), tmp_path / "out")
        results = run_recipe(job.recipe, tmp_path / "out")
        trained = cosine_of_translations(load_encoder(f"static:{tmp_path / 'out' / 'students' / 'student'}"), job)
        assert trained > 0.9
        assert any("translations" in note for note in results.notes)

    def test_fitted_is_fitted_to_translations(self, recipe_of, tmp_path):
        job = open_job(recipe_of(), tmp_path / "out")
        documents, tokenizer = job.collection.documents, trained_tokenizer(job.collection.documents, job.parallel)
        with_pairs, without = (
            static_student(job.space, documents, initialize="fitted", tokenizer=tokenizer, parallel=parallel)
            for parallel in (job.parallel, None)
        )
        cosines = [cosine_of_translations(load_encoder(student), job) for student in (with_pairs, without)]
        assert cosines[0] > cosines[1] + 0.05

    @pytest.mark.parametrize("initialize", ["teacher", "words"])
    def test_other_tokens_have_no_vectors_of_the_teacher(self, recipe_of, tmp_path, initialize):
        with pytest.raises(UserError, match="set initialize: fitted"):
            run_recipe(recipe_of(student={"initialize": initialize}), tmp_path / "out")


class TestTheTrainedTokenizer:
    def test_it_is_the_same_each_time_and_knows_all_scripts(self, tiny, recipe_of, tmp_path):
        parallel = open_job(recipe_of(), tmp_path / "out").parallel
        first, second = (trained_tokenizer(tiny.documents, parallel) for _ in range(2))
        assert first.to_str() == second.to_str()
        star = translated("star")
        assert first.encode(f"Star {star}").tokens == ["star", star]
        assert trained_tokenizer(tiny.documents).encode(star).tokens == ["[UNK]"]
