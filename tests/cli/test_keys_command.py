import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from retrodistill.cli.recipes import keys_text
from retrodistill.core.errors import UserError
from retrodistill.core.settings import OneOf, Settings
from retrodistill.recipes import load_recipe
from retrodistill.recipes.keys import recipe_keys, recipe_schema

CONFIGS = Path(__file__).parents[2] / "configs"
SECTIONS = recipe_keys()
KEYS = {".".join(key.path): key for section in SECTIONS for key in section.keys}


def mistake_with(settings, name):
    """What a settings class says to nonsense in one of its keys; nothing where it is taken."""
    try:
        settings.model_validate({name: "no-such-thing"})
    except ValueError as error:
        return next((one["msg"] for one in error.errors() if one["loc"] == (name,)), "")
    return ""


class TestKeys:
    def test_every_field_of_every_class_is_there_with_a_meaning(self):
        for section in SECTIONS:
            assert {key.path[-1] for key in section.keys} == set(section.settings.model_fields)
            assert [key.path for key in section.keys if key.meaning in ("", "None")] == []

    def test_all_that_recipes_set_is_a_key(self):
        def paths(content, path=()):
            if isinstance(content, dict):
                for name, inner in content.items():
                    yield from paths(inner, (*path, "NAME" if path == ("students",) else name))
            elif isinstance(content, list) and content and isinstance(content[0], dict):
                for inner in content:
                    yield from paths(inner, (*path, "N"))
            else:
                yield path

        for file in CONFIGS.glob("*.yaml"):
            for path in paths(load_recipe(file).model_dump(mode="json")):
                key = ".".join(path)
                assert key in KEYS or ".".join(path[:-1]).endswith("exit_weights"), key

    def test_a_closed_choice_is_what_its_validator_knows(self):
        listed = {}
        for section in SECTIONS:
            for key in section.keys:
                message = mistake_with(section.settings, key.path[-1])
                if "Known: " in message and "model kind" not in message:
                    known = sorted(message.partition("Known: ")[2].rstrip(".").split(", "))
                    assert sorted(key.options) == known
                    listed[key.path[-1]] = section.settings.__name__
        fields = [field for section in SECTIONS for field in section.settings.model_fields.values()]
        choices = {each.home for field in fields for each in field.metadata if isinstance(each, OneOf)}
        assert len(choices) == 8
        assert listed.keys() == {"fusion", "initialize", "labels", "name", "budget_by", "sampler", "kind", "by"}

    def test_default_settings_have_the_defaults_of_their_class(self):
        for section in SECTIONS:
            for field in section.settings.model_fields.values():
                if isinstance(field.default, Settings):
                    assert field.default == type(field.default)()

    @pytest.mark.parametrize(
        ("key", "values", "default"),
        [
            ("name", "text", None),
            (
                "fusion",
                "zscore | zscore-per-query | minmax | reciprocal-rank | entropy | agreement",
                "zscore-per-query",
            ),
            ("students", "settings by name", {}),
            (
                "students.NAME.control",
                "untrained | fitted | contrastive | contrastive-labels | settings | null",
                "untrained",
            ),
            ("students.NAME.dimension", "integer | space | null", None),
            ("students.NAME.stages", "list of settings (at least 1)", None),
            ("students.NAME.stages.N.exit_weights", "numbers by integer", {}),
            ("students.NAME.stages.N.candidates.sources", "list of text | null", None),
            ("students.NAME.stages.N.selection.ranks", "list of 2 integers", [2, 15]),
            ("index.encoder.training.warmup", "number ≥ 0 and < 1", 0.1),
            ("evaluation.exhaustive", "true or false", False),
        ],
    )
    def test_types_bounds_and_defaults_in_words(self, key, values, default):
        assert (KEYS[key].values, KEYS[key].default) == (values, default)
        assert KEYS[key].needed == (key in ("name", "students.NAME.stages"))

    def test_meanings_are_the_strings_below_the_fields(self):
        class Example(Settings):
            """A."""

            low: int = 0
            """Of the `base`,
            on two lines."""

        assert Example.model_fields["low"].description == "Of the `base`,\non two lines."
        assert "\n" not in KEYS["students.NAME.model"].meaning


class TestSchema:
    """What an editor is told: it accepts what the package accepts, and knows every name of a closed choice."""

    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_it_accepts_every_recipe(self, path):
        jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), recipe_schema())

    @pytest.mark.parametrize(
        "change", [{"teachr": "bm25"}, {"fusion": "zscor"}, {"teacher": 5}, {"students": {"s": {"model": "static"}}}]
    )
    def test_it_refuses_mistakes(self, change):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"name": "x", **change}, recipe_schema())

    def test_the_command_prints_it(self, call):
        status, out, _ = call("keys", "--json-schema")
        assert status == 0
        assert json.loads(out) == json.loads(json.dumps(recipe_schema()))
        assert "margin-balanced" in out


class TestPrefixes:
    @pytest.mark.parametrize("prefix", ["students.stages.training", "students.mine.stages.0.training"])
    def test_names_and_places_may_be_left_out(self, prefix):
        first, second = recipe_keys(prefix)
        assert [".".join(key.path) for key in first.keys] == ["students.NAME.stages.N.training"]
        assert "epochs" in [key.path[-1] for key in second.keys]

    def test_one_key_alone(self):
        (section,) = recipe_keys("index.factory")
        assert [key.path for key in section.keys] == [("index", "factory")]

    @pytest.mark.parametrize(
        ("prefix", "message"),
        [
            ("teachr", "unknown key 'teachr'. Did you mean 'teacher'?"),
            ("students.stages.trian", "unknown key below students.NAME.stages 'trian'. Did you mean 'train'?"),
            ("index.factory.first", "index.factory has no keys below it"),
        ],
    )
    def test_an_unknown_key(self, prefix, message):
        with pytest.raises(UserError) as error:
            recipe_keys(prefix)
        assert str(error.value).startswith(message)


class TestCommand:
    def test_no_line_is_wider_than_a_hundred_columns(self):
        assert max(map(len, keys_text(SECTIONS).splitlines())) <= 100

    def test_settings_in_two_places_are_listed_once(self, call):
        status, out, _ = call("keys")
        assert status == 0
        assert "\nindex.encoder: the keys of students.NAME.stages.N\n" in out
        assert out.count("\nlearning_rate ") == 2

    def test_a_prefix_lists_them_in_full(self, call):
        _, out, _ = call("keys", "index.encoder")
        assert "\nindex.encoder.training\n" in out

    def test_for_programs(self, call):
        status, out, _ = call("keys", "--json", "students.stages.groups.sampler")
        (key,) = json.loads(out)["keys"]
        assert status == 0
        assert (key["key"], key["default"]) == ("students.NAME.stages.N.groups.sampler", "stratified")
        assert "margin-balanced" in key["options"]

    def test_a_mistake_is_one_line(self, call):
        status, _, err = call("keys", "studnets")
        assert status == 2
        assert "Did you mean 'students'?" in err
