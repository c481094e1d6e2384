from dataclasses import replace

import pytest
import yaml

from retrodistill.core.errors import UserError
from retrodistill.data.survey import Survey
from retrodistill.recipes.loading import load_recipe, parse_recipe
from retrodistill.recipes.starting import GOALS, first_recipe, write_recipe

ENGLISH = Survey(
    documents=1000, blank=0, copies=0, titled=1.0, words={"median": 80.0, "p95": 200.0, "max": 900.0},
    languages={"en": 200}, fields=[], queries=400, splits={"test": {"queries": 100, "judgments": 300}}, unjudged=300,
    query_words=6.0, near_test=0,
)  # fmt: skip


def made(found, goal="speed"):
    return yaml.safe_load(first_recipe(found, "my-folder", "mine", goal))


class TestGoals:
    @pytest.mark.parametrize("goal", GOALS)
    def test_an_english_collection_of_short_texts_gets_the_packaged_recipe(self, goal):
        packaged = load_recipe(GOALS[goal], ["name=mine", "collection=my-folder"]).model_dump(exclude={"about", "cost"})
        text = first_recipe(ENGLISH, "my-folder", "mine", goal)
        assert parse_recipe(yaml.safe_load(text)).model_dump(exclude={"about", "cost"}) == packaged

    def test_another_is_refused_with_those_there_are(self):
        with pytest.raises(UserError, match=r"'quick'.*no-model, quality, size, speed"):
            first_recipe(ENGLISH, "my-folder", "mine", "quick")


class TestFit:
    @pytest.mark.parametrize("goal", GOALS)
    def test_other_languages_get_a_multilingual_model_everywhere(self, goal):
        content = made(replace(ENGLISH, languages={"de": 190, "en": 10}), goal)
        assert "MiniLM" not in yaml.safe_dump(content)
        assert (content["bm25"], content["document_encoder"]) == ("auto", "dense:intfloat/multilingual-e5-small")

    def test_long_documents_are_cut(self):
        assert made(replace(ENGLISH, words={"median": 301.0, "p95": 1.0, "max": 1.0}))["passages"]["words"] == 120
        assert "passages" not in made(replace(ENGLISH, words={"median": 300.0, "p95": 9e3, "max": 9e3}))

    def test_many_documents_limit_the_training_texts(self):
        stages = made(replace(ENGLISH, documents=10**6))["students"]["student"]["stages"]
        assert {stage["texts"]["limit"] for stage in stages} == {100_000}
        assert made(replace(ENGLISH, documents=10**6), "size")["index"]["texts"]["limit"] == 100_000

    def test_another_split_is_measured_if_there_is_no_test(self):
        splits = {name: {"queries": 9, "judgments": 9} for name in ("train", "dev")}
        assert made(replace(ENGLISH, splits=splits))["split"] == {"test": "dev"}


class TestWriting:
    def test_a_file_that_exists_is_kept_unless_forced(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("mine")
        with pytest.raises(UserError, match="--force"):
            write_recipe("new", path)
        assert path.read_text() == "mine"
        write_recipe("new", path, force=True)
        assert path.read_text() == "new"
