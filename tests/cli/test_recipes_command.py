import json

from retrodistill.recipes.loading import recipe_names, recipe_text


class TestCommand:
    def test_it_lists_them_with_needs_and_cost(self, call):
        status, out, _ = call("recipes")
        assert status == 0
        assert [line for line in out.splitlines() if not line.startswith(" ")] == recipe_names()
        assert out.count("\n  needs ") == out.count("\n  cost  ") == len(recipe_names())
        assert max(map(len, out.splitlines())) <= 100

    def test_it_prints_one_unchanged(self, call):
        _, out, _ = call("recipes", "static-leaf")
        assert out == recipe_text("static-leaf")

    def test_for_programs(self, call):
        _, out, _ = call("recipes", "--json")
        assert set(json.loads(out)["tk"]) == {"about", "needs", "cost"}
        _, out, _ = call("recipes", "tk", "--json")
        assert json.loads(out)["yaml"] == recipe_text("tk")

    def test_an_unknown_recipe(self, call):
        status, out, err = call("recipes", "static-laef")
        assert (status, out) == (2, "")
        assert "static-leaf" in err


class TestEncodingOptions:
    def test_they_reach_the_recipe_of_run(self, call, quick, tmp_path):
        assert call("--batch-size", 8, "--precision", "bfloat16", "run", quick, "--out", tmp_path / "out")[0] == 0
        assert "encoding:\n  batch_size: 8\n  precision: bfloat16" in (tmp_path / "out" / "recipe.yaml").read_text()

    def test_they_reach_the_recipe_of_demo(self, call, monkeypatch):
        given = []
        monkeypatch.setattr("retrodistill.recipes.run_recipe", lambda *a, **_: given.extend(a[2]))
        assert call("--precision", "float32", "demo")[0] == 0
        assert given == ["encoding.precision=float32"]

    def test_a_mistake_is_one_line(self, call):
        status, _, err = call("--precision", "float8", "recipes")
        assert status == 2
        assert "precision" in err
