"""A recipe that cuts long documents into passages."""

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.indexes import load_index
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.recipes.plan import plan_recipe
from retrodistill.runs import read_run

pytestmark = pytest.mark.usefixtures("given_pace")


@pytest.fixture(scope="module")
def done(tiny_folder, tiny_model, tmp_path_factory):
    training = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01}
    stage = {"objectives": ["kl", "contrastive"], "positives": "all", "candidates": {"depth": 20}, "training": training}
    recipe = {
        "name": "passages",
        "collection": str(tiny_folder),
        "passages": "12,4",
        "document_encoder": f"dense:{tiny_model}",
        "teacher": [{"model": "bm25", "weight": 0.3}, {"model": f"dense:{tiny_model}", "weight": 0.7}],
        "students": {"student": {"model": "static", "control": None, "stages": [stage]}},
        "evaluation": {"latency_queries": 2, "examples": 2, "memory": False},
    }
    place = tmp_path_factory.mktemp("passages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(place / "cache"))
        return run_recipe(parse_recipe(recipe), place / "out"), place / "out"


class TestAJob:
    def test_everything_is_measured_on_documents(self, done, tiny):
        results, out = done
        assert [system.name for system in results.systems] == ["bm25", "teacher", "ensemble", "student"]
        for system in results.systems:
            run = read_run(out / "runs" / f"{system.name}.run")
            assert set(run.document_ids) <= set(tiny.documents.ids)
            if system.name != "bm25":
                assert [len(documents) for _, documents, _ in run] == [60] * 12
        assert results.provenance["documents"] == "60"
        assert results.provenance["passages"] == "180"

    def test_students_are_compared_and_agree_on_documents(self, done):
        results, _ = done
        assert all(0 < system.agreement.overlap10 <= 1 for system in results.systems if system.name != "ensemble")
        assert results.examples[0].student[0].document_id.startswith("d")
        assert "#" not in results.examples[0].student[0].document_id

    def test_the_index_finds_documents(self, done, tiny_folder):
        _, out = done
        index = load_index(out / "indexes" / "student")
        cut_up = load_collection(tiny_folder, passages="12,4")
        assert index.ids == cut_up.documents.ids
        assert index.size == 60

    def test_the_note_says_what_bm25_searches(self, done):
        assert any("whole documents" in note for note in done[0].notes)


class TestSettings:
    def test_short_and_long_forms_are_the_same(self, content):
        rules = [
            parse_recipe({**content, "passages": given}).passages for given in ("90,10", {"words": 90, "overlap": 10})
        ]
        assert rules[0] == rules[1]

    @pytest.mark.parametrize("given", ["90,90", {"words": 0}, {"size": 3}, "many"])
    def test_what_does_not_fit_is_refused(self, content, given):
        with pytest.raises(UserError, match="passages"):
            parse_recipe({**content, "passages": given})

    def test_a_plan_counts_passages_of_the_corpus(self, content, write_recipe, tmp_path):
        content["passages"] = "12,4"
        plan = plan_recipe(write_recipe(content), tmp_path / "out")
        embedded = next(step for step in plan.steps if step.step.startswith("embed documents"))
        assert embedded.items == len(load_collection(content["collection"], passages="12,4").documents)
