import copy
import re
from pathlib import Path

import pytest
import yaml

from retrodistill.core.errors import UserError
from retrodistill.core.settings import validated
from retrodistill.recipes import Recipe, StudentSettings, load_recipe, parse_recipe, recipe_yaml
from retrodistill.recipes.systems import students_to_train

ROOT = Path(__file__).parents[1]
PLAIN = {"name": "x", "students": {"s": {"model": "static", "stages": [{"objectives": "kl"}]}}}


@pytest.fixture
def content():
    return copy.deepcopy(PLAIN)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    return path


def stage_of(content):
    return content["students"]["s"]["stages"][0]


def put(content, path, value):
    *parents, last = path
    for key in parents:
        if isinstance(content, dict) and not isinstance(content.get(key), (dict, list)):
            content[key] = [{"name": content[key]}] if key in content else {}
        content = content[key]
    content[last] = value


class TestPackagedConfigs:
    @pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
    def test_each_in_configs_parses_and_is_called_what_its_file_is(self, path):
        assert load_recipe(path).name == path.stem

    @pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
    def test_each_measures_a_student_and_its_control(self, path):
        recipe = load_recipe(path)
        names = {name for name, _, _ in students_to_train(recipe)}
        assert recipe.index.learn or {"control", "student"} <= names or {"static-control", "static"} <= names

    @pytest.mark.parametrize("source", sorted((ROOT / "configs").glob("*.yaml")), ids=str)
    def test_the_resolved_recipe_reads_back_equal(self, source):
        recipe = load_recipe(source)
        assert parse_recipe(yaml.safe_load(recipe_yaml(recipe))) == recipe


class TestShortForms:
    def test_a_single_teacher(self, content):
        for given in ("bm25", ["bm25"], {"model": "bm25"}, [{"model": "bm25"}]):
            recipe = parse_recipe({**content, "teacher": given})
            assert [(one.model, one.weight) for one in recipe.teacher] == [("bm25", 1.0)]

    def test_numbers_may_be_written_as_yaml_reads_them_as_text(self, content):
        stage_of(content)["training"] = yaml.safe_load("{learning_rate: 2e-3}")
        assert parse_recipe(content).students["s"].stages[0].training.learning_rate == 0.002


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("path", "nearest", "where"),
        [
            (["teachr"], "teacher", "the recipe's top level"),
            (["split", "trian"], "train", "split"),
            (["index", "factry"], "factory", "index"),
            (["evaluation", "dept"], "depth", "evaluation"),
            (["students", "s", "initalize"], "initialize", "students.s"),
            (["students", "s", "stages", 0, "trainig"], "training", "students.s.stages.0"),
            (["students", "s", "stages", 0, "training", "epoch"], "epochs", "students.s.stages.0.training"),
            (["students", "s", "stages", 0, "texts", "title"], "titles", "students.s.stages.0.texts"),
            (["students", "s", "stages", 0, "candidates", "source"], "sources", "students.s.stages.0.candidates"),
            (["students", "s", "stages", 0, "groups", "draw"], "draws", "students.s.stages.0.groups"),
        ],
    )
    def test_each_level_names_the_nearest_and_the_place(self, content, path, nearest, where):
        put(content, path, 1)
        with pytest.raises(UserError) as error:
            parse_recipe(content, "my.yaml")
        assert str(error.value).startswith(f"my.yaml: unknown key {path[-1]!r}. Did you mean {nearest!r}? Known: ")
        assert f" in {where}" in str(error.value)

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            (["space"], "document_encoder"),
            (["students", "s", "lexical"], "lexical_dim"),
            (["students", "s", "initialise"], "initialize"),
            (["students", "s", "stages", 0, "towers"], "train"),
            (["students", "s", "stages", 0, "regularisers"], "regularizers"),
            (["students", "s", "stages", 0, "objectives", 0, "sharpness"], "target_std"),
            (["index", "learn", "sharpness"], "target_std"),
        ],
    )
    def test_a_renamed_key_names_its_new_name(self, content, path, name):
        put(content, path, 1)
        where = ".".join(map(str, path))
        with pytest.raises(UserError, match=re.escape(f"my.yaml: {where} was renamed to {name}.")):
            parse_recipe(content, "my.yaml")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            (["students", "s", "stages", 0, "towers"], "both", ["towers was renamed to train", "train: both_encoders"]),
            (["students", "s", "stages", 0, "train"], "query", ["query was renamed to query_encoder"]),
            (["students", "s", "documents"], "space", ["space was renamed to frozen"]),
            (["students", "s", "stages", 0, "positives"], "own", ["own was renamed to source_document"]),
            (["teacher"], "judgements:train", ["judgements: was renamed to judgments:"]),
            (["students", "s", "stages", 0, "teacher"], ["judgements:dev"], ["judgements: was renamed to judgments:"]),
        ],
    )
    def test_a_renamed_value_names_its_new_name(self, content, path, value, words):
        put(content, path, value)
        with pytest.raises(UserError) as error:
            parse_recipe(content, "my.yaml")
        assert all(word in str(error.value) for word in words)
        assert "\n" not in str(error.value)

    def test_in_an_objective(self, content):
        stage_of(content)["objectives"] = [{"name": "kl", "student_temprature": 1}]
        with pytest.raises(UserError, match=r"Did you mean 'student_temperature'\? .*in students.s.stages.0.object"):
            parse_recipe(content)

    def test_in_a_teacher(self, content):
        content["teacher"] = ["bm25", {"model": "bm25", "wieght": 1}]
        with pytest.raises(UserError, match=r"Did you mean 'weight'\? Known: model, weight. It is in teacher.1"):
            parse_recipe(content)

    def test_in_a_student_that_is_called_like_a_key(self, content):
        content["students"] = {"teacher-2": {**content["students"]["s"], "modle": 1}}
        with pytest.raises(UserError, match=r"Did you mean 'model'\?"):
            parse_recipe(content)


class TestWrongValues:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (["name"], None, "x.yaml: name: Input should be a valid string, not None"),
            (["teacher"], 5, "x.yaml: teacher: Input should be a valid list, not 5"),
            (["teacher"], "bm26", "x.yaml: teacher.0.model: unknown model kind 'bm26'. Did you mean 'bm25'?"),
            (["fusion"], "zscor", "x.yaml: fusion: unknown fusion method 'zscor'. Did you mean 'zscore'?"),
            (
                ["document_encoder"],
                "bm25",
                "x.yaml: document_encoder: the document encoder must be a 'dense:NAME', 'vectors:PATH', "
                "'embeddings-api:FILE' or 'concat:dense:A+dense:B', not 'bm25'",
            ),
            (["students"], {}, "x.yaml: recipe: give either students, or index.learn to compress"),
            (["students"], ["s"], "x.yaml: students: Input should be a valid dictionary"),
            (
                ["students", "s", "model"],
                "bm25",
                "x.yaml: students.s.model: a student starts from 'static', 'dense:NAME', 'sparse",
            ),
            (["students", "s", "stages"], [], "x.yaml: students.s.stages: List should have at least 1 item"),
            (
                ["students", "s", "dimension"],
                "wide",
                "x.yaml: students.s.dimension: Input should be a valid integer, u",
            ),
            (
                ["students", "s", "initialize"],
                "techer",
                "x.yaml: students.s.initialize: unknown initialization 'techer'",
            ),
            (
                ["students", "s", "control"],
                "no",
                "x.yaml: students.s.control: Input should be 'untrained', 'fitted', 'contras",
            ),
            (
                ["evaluation", "depth"],
                1,
                "x.yaml: evaluation.depth: Input should be greater than or equal to 10, not 1",
            ),
            (["seed"], "one", "x.yaml: seed: Input should be a valid integer"),
        ],
    )
    def test_the_line_says_where_and_what(self, content, path, value, message):
        put(content, path, value)
        with pytest.raises(UserError) as error:
            parse_recipe(content, "x.yaml")
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("objectives", "kll", "unknown objective 'kll'. Did you mean 'kl'?"),
            ("objectives", 5, "Input should be a valid list, not 5"),
            ("objectives", [], "List should have at least 1 item"),
            ("train", "sideways", "Input should be 'query_encoder', 'both_encoders'"),
            (
                "train",
                "both_encoders",
                "train: both_encoders changes the student's document vectors; set documents: student",
            ),
            (
                "candidates",
                {"depth": "alll"},
                "Input should be a valid integer, unable to parse string as an integer or",
            ),
            ("candidates", {"depth": 0}, "depth is at least 1, or 'all'"),
            ("candidates", {"sources": ["bm26"]}, "unknown model kind 'bm26'"),
            ("groups", {"sampler": "top"}, "unknown sampler 'top'. Did you mean 'top-k'?"),
            (
                "training",
                {"learning_rate": "fast"},
                "Input should be a valid number, unable to parse string as a number",
            ),
            ("training", {"learning_rate": float("inf")}, "Input should be a finite number"),
        ],
    )
    def test_in_a_stage(self, content, key, value, message):
        stage_of(content)[key] = value
        with pytest.raises(UserError) as error:
            parse_recipe(content, "x.yaml")
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_documents_that_training_would_change(self, content):
        content["students"]["s"]["documents"] = "student"
        with pytest.raises(UserError, match=r"learns against stored document vectors.*documents: student"):
            parse_recipe(content)

    def test_a_contrastive_control_needs_source_documents(self, content):
        content["students"]["s"]["control"] = "contrastive"
        parse_recipe(content)
        stage_of(content)["texts"] = {"titles": False, "sentences": 0}
        with pytest.raises(UserError, match=r"x.yaml: students.s: control: contrastive learns from pseudo-queries"):
            parse_recipe(content, "x.yaml")

    @pytest.mark.parametrize("name", ["bm25", "teacher", "ensemble", "control", "a/b", "..", "", "s-control"])
    def test_names_that_a_student_cannot_have(self, content, name):
        content["students"][name] = content["students"]["s"]
        with pytest.raises(UserError, match=rf"a student cannot be called '{name}'"):
            parse_recipe(content)

    def test_other_settings_are_checked_the_same_way(self):
        with pytest.raises(UserError, match=r"^distill: unknown key 'stage'. Did you mean 'stages'\?"):
            validated(StudentSettings, {"model": "static", "stages": [{"objectives": "kl"}], "stage": 1}, "distill")


class TestOverrides:
    def test_they_reach_everywhere(self, written):
        recipe = load_recipe(
            written,
            [
                "collection=some/where",
                "index.factory=SQ8",
                "students.s.stages.0.training.epochs=3.5",
                "students.s.stages.0.objectives=[leaf, {name: kl, weight: 2}]",
                "teacher=[bm25, {model: 'dense:x', weight: 0.5}]",
                "teacher.1.weight=0.7",
                "students.s.control=null",
                "split.train=",
            ][:-1],
        )
        student = recipe.students["s"]
        assert (recipe.collection, recipe.index.factory) == ("some/where", "SQ8")
        assert student.stages[0].training.epochs == 3.5
        assert [(one.name, one.weight) for one in student.stages[0].objectives] == [("leaf", 1), ("kl", 2)]
        assert [one.weight for one in recipe.teacher] == [1, 0.7]
        assert student.control is None

    def test_the_value_may_contain_an_equals_sign(self, written):
        assert load_recipe(written, ["index.parameters=nprobe=16"]).index.parameters == "nprobe=16"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("index.factory", "expected key.path=value, e.g. index.factory=SQ8"),
            ("=5", "expected key.path=value"),
            ("students.s.stages.1.train=both", "'1' is not an item of a list of 1"),
            ("students.s.stages.first.train=both", "'first' is not an item of a list of 1"),
            ("students.s.stages.3=x", "'3' is not an item of a list of 1"),
            ("name.first=x", "the value before 'first' has no keys"),
            ("name.first.second=x", "the value before 'first' has no keys"),
            ("name=[1", "the value is not YAML"),
        ],
    )
    def test_paths_that_lead_nowhere(self, written, override, message):
        with pytest.raises(UserError) as error:
            load_recipe(written, [override])
        assert str(error.value).startswith(f"override {override!r}: ")
        assert message in str(error.value)

    def test_an_unknown_key_is_found_as_in_the_file(self, written):
        with pytest.raises(UserError, match=r"unknown key 'idnex'. Did you mean 'index'\?"):
            load_recipe(written, ["idnex.factory=SQ8"])

    @pytest.mark.parametrize("key", ["a[0]", "int", "", "["])
    def test_an_unknown_key_of_any_name(self, written, key):
        content = yaml.safe_load(written.read_text())
        with pytest.raises(UserError, match=f"unknown key {key!r}".replace("[", r"\[")):
            parse_recipe({**content, key: 1})

    def test_the_same_file_can_be_read_again_without_them(self, written):
        load_recipe(written, ["index.factory=SQ8"])
        assert load_recipe(written).index.factory == "Flat"


class TestFiles:
    def test_a_missing_file(self):
        with pytest.raises(UserError, match=r"^unknown recipe 'nowhere.yaml'.* demo, "):
            load_recipe("nowhere.yaml")

    @pytest.mark.parametrize("text", ["a: [1", "\tx: 1", "{", "a: b: c"])
    def test_what_is_not_yaml(self, tmp_path, text):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UserError, match=r"r.yaml is not YAML: ") as error:
            load_recipe(tmp_path / "r.yaml")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "5"])
    def test_what_holds_no_keys(self, tmp_path, text):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(
            UserError, match=r"r.yaml is not a recipe: it needs keys such as name, collection, students"
        ):
            load_recipe(tmp_path / "r.yaml")

    def test_what_is_not_text(self, tmp_path):
        (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(UserError, match=r"cannot read .*r.yaml: .*utf-8"):
            load_recipe(tmp_path / "r.yaml")

    @pytest.mark.parametrize("given", [{"evaluation": {"truncations": [2**63]}}, {"passages": f"{'9' * 30},1"}])
    def test_integers_beyond_64_bits(self, content, given):
        with pytest.raises(UserError, match=r"(truncations|words) holds .*64 bits"):
            parse_recipe(content | given)

    def test_settings_are_frozen(self, content):
        with pytest.raises(ValueError, match=r"frozen"):
            parse_recipe(content).name = "y"

    def test_it_is_a_recipe(self, content):
        assert isinstance(parse_recipe(content), Recipe)
