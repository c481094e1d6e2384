from pathlib import Path

import pytest

from retrodistill.core.errors import UserError
from retrodistill.recipes import load_recipe, parse_recipe
from retrodistill.recipes.loading import recipe_names, recipe_needs, recipe_text

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.yaml")}


class TestPackagedRecipes:
    def test_the_packaged_recipes_are_those_of_configs(self):
        assert recipe_names() == sorted(CONFIGS)

    @pytest.mark.parametrize("name", sorted(CONFIGS))
    def test_each_loads_by_its_name_and_has_a_description_and_cost(self, name):
        recipe = load_recipe(name, ["collection=my-folder"])
        assert (recipe.name, recipe.collection) == (name, "my-folder")
        assert recipe.about
        assert recipe.cost.startswith(("low", "medium", "high"))
        assert recipe_text(name) == CONFIGS[name].read_text(encoding="utf-8")

    def test_a_file_wins_over_a_packaged_recipe(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tk").write_text(recipe_text("static-leaf"))
        assert load_recipe("tk").name == "static-leaf"

    @pytest.mark.parametrize("name", ["static-laef", "configs/static-leaf"])
    def test_the_nearest_is_named(self, name):
        with pytest.raises(UserError, match=f"'{name}'. Did you mean 'static-leaf'"):
            recipe_text(name)


class TestNeeds:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("static-leaf", ["retrodistill[demo]"]),
            ("trans-encoder", ["retrodistill[demo]"]),
            ("disco", ["retrodistill[demo]", "training queries"]),
            ("prod", ["retrodistill[demo]", "training labels"]),
            ("tas-b", ["retrodistill[demo]", "training queries", "training labels"]),
            ("recorded-teacher", ["retrodistill[demo]", "run:FILE"]),
        ],
    )
    def test_models_queries_labels_and_files(self, name, words):
        needs = recipe_needs(load_recipe(name))
        assert len(needs) == len(words)
        assert all(word in need for word, need in zip(words, needs, strict=True))

    def test_every_model_is_named_once(self):
        stage = {"objectives": "kl", "teacher": ["cross-encoder:slow", "student:s@0"], "candidates": {"depth": 8}}
        student = {"model": "dense:small", "stages": [stage]}
        recipe = parse_recipe({"name": "x", "document_encoder": "dense:large", "students": {"s": student}})
        assert recipe_needs(recipe) == ["large", "slow", "small"]
