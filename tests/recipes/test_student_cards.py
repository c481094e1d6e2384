import json

import pytest
from huggingface_hub import ModelCard

import retrodistill as rd
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.names import hub_name
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.report.card import without_folders
from retrodistill.students import load_student
from retrodistill.training.settings import TrainingSettings


class TestCardsOfARecipe:
    def test_the_student_has_one_with_its_measures_and_keeps_its_fingerprint(self, content, tmp_path, monkeypatch):
        out = tmp_path / "out"
        results = run_recipe(parse_recipe(content), out, command="retrodistill run small")
        student = out / "students" / "student"
        card = ModelCard.load(student / "README.md")
        value = next(one.metric_value for one in card.data.eval_results if one.metric_type == "ndcg@10")
        assert value == pytest.approx(results.system("student").ndcg10, abs=1e-6)
        assert "command: `retrodistill run small`" in card.text
        assert str(tmp_path) not in card.text  # no folder of this machine
        learned = json.loads((student / STUDENT_MANIFEST).read_text())["about"]["stages"]
        assert learned[0]["pairs"] == 0
        assert learned[1]["pairs"] > learned[1]["texts"]
        assert f"{learned[1]['pairs']:,} scored pairs" in card.text
        assert "documents that it searches are encoded by `dense:bi-encoder`" in card.text
        before = load_student(student).fingerprint("query")
        (student / "README.md").unlink()
        assert load_student(student).fingerprint("query") == before
        monkeypatch.setattr("retrodistill.training.stages.train", lambda *_, **__: pytest.fail("trained again"))
        run_recipe(parse_recipe(content), out, command="retrodistill run small")
        assert (student / "README.md").exists()


class TestCardsOfOneCall:
    def test_distill_writes_one_that_claims_no_quality(self, tiny, tiny_model, tmp_path):
        pool = rd.mine(tiny, "train", ["bm25"], depth=10)
        target = rd.score(tiny, pool, ["bm25"])[0]
        quick = TrainingSettings(epochs=1, batch_size=32, learning_rate=0.01)
        rd.distill(tiny, target, document_encoder=f"dense:{tiny_model}", training=quick, out=tmp_path / "student")
        card = ModelCard.load(tmp_path / "student" / "README.md")
        assert card.data.eval_results is None
        assert "Its quality has not been measured." in card.text
        assert f"a recorded run of {len(target):,} pairs" in card.text


class TestNames:
    def test_of_a_folder_only_the_last_part_is_published(self, tmp_path):
        assert without_folders(f"dense:{tmp_path}") == f"dense:{tmp_path.name}"
        assert without_folders("dense:org/name") == "dense:org/name"
        assert without_folders("bm25") == "bm25"

    def test_only_a_hub_name_is_a_base_model(self, tmp_path):
        assert hub_name("dense:org/name") == "org/name"
        assert hub_name("dense:all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
        assert hub_name(f"dense:{tmp_path}") is None
        assert hub_name("vectors:api") is None
