"""Jobs that compress: learned quantizers are kept and loaded again."""

from __future__ import annotations

import json
import shutil

import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import load_collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.indexes import load_index
from retrodistill.recipes import parse_recipe, run_recipe, sizes
from retrodistill.recipes.job import open_job
from retrodistill.recipes.plan import _plan
from retrodistill.recipes.systems import MADE_FROM
from retrodistill.training.texts import training_texts


@pytest.fixture
def recipe(tiny_folder, tiny_model):
    def make(**index):
        content = {
            "name": "compressed",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{tiny_model}",
            "index": {"factory": "OPQ4,PQ4x4", "learn": {"steps": 20}, **index},
            "evaluation": {"latency_queries": 0, "examples": 1},
        }
        return parse_recipe(content)

    return make


ENCODER = {
    "objectives": {"name": "kl", "target_std": 2.0},
    "candidates": {"depth": "all"},
    "training": {"max_steps": 2, "learning_rate": 1e-3},
}


class TestTexts:
    def test_whole_documents_are_among_the_texts_if_the_recipe_says_so(self, recipe, tmp_path):
        made = recipe(texts={"queries": False, "titles": False, "sentences": 0, "documents": True})
        run_recipe(made, tmp_path / "out")
        collection = load_collection(made.collection)
        nothing = collection.queries.select([])
        texts = training_texts(collection, nothing, titles=False, sentences=0, documents=True)
        inputs = Manifest.read(tmp_path / "out" / "indexes" / "distilled", MADE_FROM).inputs
        assert inputs["texts"] == texts.texts.fingerprint


class TestTheStart:
    def test_it_is_the_same_for_both_and_lost_files_change_no_other(self, recipe, tmp_path):
        run_recipe(recipe(), tmp_path / "out")
        folder = tmp_path / "out" / "indexes"
        before = (folder / "opq" / MADE_FROM).read_bytes()
        shutil.rmtree(folder / "distilled")  # learned first, and now again after the other one
        run_recipe(recipe(), tmp_path / "out")
        manifests = [json.loads(content) for content in (before, (folder / "opq" / MADE_FROM).read_bytes())]
        assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]


class TestDocumentsWithoutContent:
    def test_are_in_no_learned_index(self, recipe, tiny_folder, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "holes")
        lines = (folder / "corpus.jsonl").read_text().splitlines()
        holes = [
            json.dumps({"_id": id_, "text": text, "year": 1}) for id_, text in (("blank", " "), ("greek", "κόσμε"))
        ]
        (folder / "corpus.jsonl").write_text("\n".join([*holes, *lines]))
        made = recipe(encoder=ENCODER).model_copy(update={"collection": str(folder)})
        run_recipe(made, tmp_path / "out")
        for name in ("opq", "distilled", "distilled-queries"):
            index = load_index(tmp_path / "out" / "indexes" / name)
            assert index.ids == load_collection(tiny_folder).documents.ids
            assert index.columns.num_rows == 60
        assert load_index(tmp_path / "out" / "indexes" / "distilled").changes(load_collection(folder)) is None


class TestBits:
    def test_a_bit_per_dimension_starts_from_itq(self, recipe, tmp_path):
        results = run_recipe(recipe(factory="Flat", bits=1), tmp_path / "out")
        assert [one.name for one in results.systems][-3:] == ["itq", "distilled", "distilled-queries"]
        index = load_index(tmp_path / "out" / "indexes" / "itq")
        assert index.factory == "ITQ32,PQ32x1"

    def test_the_plan_knows_the_time_and_the_files_of_bits(self, recipe, tmp_path):
        made, out = recipe(factory="Flat", bits=1), tmp_path / "out"
        step = next(step for step in _plan(open_job(made, out), is_timed=True).steps if step.step == "learn distilled")
        run_recipe(made, out)
        indexes = [out / "indexes" / name / "index.faiss" for name in ("itq", "distilled")]
        assert step.seconds > 0
        assert step.needs.out == pytest.approx(sum(file.stat().st_size for file in indexes), rel=0.25)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({"bits": 1}, "bits goes with bytes; factory OPQ4,PQ4x4 already says"),
            ({"factory": "Flat", "bits": 2}, "bits: 2: codes that are learned have 1, 4, or 8 bits"),
        ],
    )
    def test_bits_that_do_not_fit(self, recipe, index, message):
        with pytest.raises(UserError, match=message):
            recipe(**index)


class TestRefinement:
    def test_documents_are_ranked_again_by_their_vectors_and_queries_are_not_mapped(self, recipe, tmp_path):
        made = recipe(factory="OPQ4,PQ4x4,RFlat")
        results = run_recipe(made, tmp_path / "out")
        assert [one.name for one in results.systems][-3:] == ["exact", "opq", "distilled"]
        assert results.system("distilled").ndcg10 == results.system("exact").ndcg10  # 600 of 60 documents
        assert load_index(tmp_path / "out" / "indexes" / "distilled").parameters == "k_factor_rf=10"

    def test_a_query_encoder_learns_the_codes_and_keeps_the_parameters(self, recipe, tmp_path):
        run_recipe(recipe(factory="OPQ4,PQ4x4,RFlat", encoder=ENCODER), tmp_path / "out")
        assert load_index(tmp_path / "out" / "indexes" / "distilled-queries").parameters == "k_factor_rf=10"

    def test_the_plan_knows_the_vectors(self, recipe, tmp_path):
        made, out = recipe(factory="OPQ4,PQ4x4,RFlat"), tmp_path / "out"
        step = next(step for step in _plan(open_job(made, out), is_timed=False).steps if step.step == "learn distilled")
        run_recipe(made, out)
        indexes = sum(file.stat().st_size for file in (out / "indexes").rglob("index.faiss"))
        assert step.needs.out == pytest.approx(indexes, rel=0.25)


class TestTheQueryEncoder:
    def test_it_is_trained_against_the_codes_and_kept_if_it_is_better(self, recipe, tmp_path):
        results = run_recipe(recipe(encoder=ENCODER), tmp_path / "out")
        assert [one.name for one in results.systems][-3:] == ["opq", "distilled", "distilled-queries"]
        index = load_index(tmp_path / "out" / "indexes" / "distilled-queries")
        kept = results.system("distilled-queries").queries_by == "dense:distilled-queries"
        assert index.queries.name.endswith("students/distilled-queries") == kept
        assert len(index.search("star planet", k=3)) == 3

    def test_it_needs_a_learned_index_and_lists(self, recipe, tiny_folder):
        with pytest.raises(Exception, match="encoder trains queries for a learned index; set learn"):
            recipe(encoder=ENCODER, learn=None)
        with pytest.raises(Exception, match="encoder must be a stage with train: query_encoder and a list objective"):
            recipe(encoder={**ENCODER, "objectives": "leaf"})


class TestPlanning:
    def test_the_plan_counts_the_texts_and_what_learning_saves(self, recipe, tmp_path):
        made, out = recipe(), tmp_path / "out"
        steps = {step.step: step for step in _plan(open_job(made, out), is_timed=True).steps}
        run_recipe(made, out)
        embedded, first, second = (
            steps[name] for name in ("embed texts to learn from", "learn distilled", "learn distilled-queries")
        )
        assert embedded.items > 42
        assert embedded.needs.cache == embedded.items * 32 * 4
        assert (embedded.phase, first.items, first.unit) == ("learn", 20, "steps")
        assert first.seconds > 0
        indexes = sum(file.stat().st_size for file in (out / "indexes").rglob("index.faiss"))
        assert 1.5 * first.needs.out == pytest.approx(indexes, rel=0.25)
        student = sizes.FLOAT * sizes.parameters(load_encoder(made.document_encoder).model, whole=True).all
        assert second.needs.out == first.needs.out / 2 + student

    def test_what_is_learned_is_not_planned_again(self, recipe, tmp_path):
        made, out = recipe(), tmp_path / "out"
        run_recipe(made, out)
        left = [step for step in _plan(open_job(made, out), is_timed=False).steps if step.step.startswith("learn")]
        assert [(step.step, step.items) for step in left] == [
            (f"learn {name}: already learned", 0) for name in ("distilled", "distilled-queries")
        ]


class TestResuming:
    def test_a_second_run_learns_nothing_again(self, recipe, tmp_path):
        first = run_recipe(recipe(), tmp_path / "out")
        again = run_recipe(recipe(), tmp_path / "out")
        assert [one.ndcg10 for one in again.systems] == [one.ndcg10 for one in first.systems]
        assert again.seconds["learn distilled"] == first.seconds["learn distilled"]

    def test_both_indexes_know_how_long_building_took(self, recipe, tmp_path):
        run_recipe(recipe(), tmp_path / "out")
        start, learned = (
            Manifest.read(tmp_path / "out" / "indexes" / name).about["build_seconds"] for name in ("opq", "distilled")
        )
        assert start > 0
        assert learned > 0
