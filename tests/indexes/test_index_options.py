"""The options of all kinds of indexes: the same from recipes, the command line and Python."""

import importlib.util
import json
import sys

import pytest
import rounded_index
from sparse_models import inference_free

from retrodistill.cli import main
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.indexes import IndexOptions, build_index, load_index, registry
from retrodistill.indexes.registry import KINDS, get_kind
from retrodistill.recipes import parse_recipe, run_recipe


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("models")
    inference_free(folder / "bert").save_pretrained(str(folder / "sparse"))
    token_encoder(tiny_model).save_pretrained(str(folder / "tokens"))
    return {
        "faiss": f"dense:{tiny_model}",
        "inverted": f"sparse:{folder / 'sparse'}",
        "multi-vector": f"multi-vector:{folder / 'tokens'}",
    }


class TestRegistry:
    def test_every_option_of_a_kind_is_one_of_all_options_or_its_seed(self):
        for name in KINDS:
            assert set(get_kind(name).options) <= {*IndexOptions.model_fields, "seed"}

    def test_every_option_is_one_of_a_kind(self):
        assert set(IndexOptions.model_fields) - {"kind", "fields", "store_texts"} <= {
            option for name in KINDS for option in get_kind(name).options
        }

    def test_an_unknown_kind_lists_the_known(self):
        with pytest.raises(UserError, match="multi-vector"):
            get_kind("multivector")

    def test_an_encoder_without_a_kind_lists_the_known(self):
        with pytest.raises(UserError, match=r"graph.*sparse"):
            IndexOptions().kind_for(["graph"])


class TestAnotherKind:
    """A kind beside FAISS: its module, and a line in the registry."""

    @pytest.fixture(autouse=True)
    def rounded(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "retrodistill.indexes.rounded", rounded_index)
        monkeypatch.setattr(registry, "_MODULES", {**registry._MODULES, "rounded": "rounded"})
        monkeypatch.setattr(registry, "KINDS", tuple(registry._MODULES))

    def test_it_is_chosen_by_name_and_loads(self, tiny, models, tmp_path):
        assert build_index(tiny, models["faiss"]).index_kind == "faiss"
        index = build_index(tiny, models["faiss"], kind="rounded")
        index.save(tmp_path / "index")
        loaded = load_index(tmp_path / "index")
        assert isinstance(loaded, rounded_index.RoundedIndex)
        assert loaded.search("a question", k=3).to_dict() == index.search("a question", k=3).to_dict()

    def test_its_settings_choose_it(self, tiny, models):
        index = build_index(tiny, models["faiss"], settings=rounded_index.RoundedSettings())
        assert index.index_kind == "rounded"

    def test_the_command_line_and_recipes_take_it(self, tiny_folder, tiny_model, tmp_path):
        place = tmp_path / "command"
        arguments = ["--collection", str(tiny_folder), "--documents", f"dense:{tiny_model}", "--out", str(place)]
        with pytest.raises(SystemExit) as ended:
            main(["index", *arguments, "kind=rounded"])
        assert ended.value.code == 0
        assert load_index(place).index_kind == "rounded"
        run_recipe(
            parse_recipe(recipe(tiny_folder, tiny_model, STUDENTS["faiss"], kind="rounded")), tmp_path / "recipe"
        )
        assert load_index(tmp_path / "recipe" / "indexes" / "student").index_kind == "rounded"

    def test_a_student_of_another_space_keeps_its_own(self, tiny_folder, tiny_model, tmp_path):
        student = {**STUDENTS["inverted"], "model": f"sparse:{tiny_model}"}
        with pytest.raises(UserError, match=r"kind=rounded.*inverted"):
            run_recipe(parse_recipe(recipe(tiny_folder, tiny_model, student, kind="rounded")), tmp_path / "out")


class TestPython:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("faiss", {"factory": "SQ8", "truncate": 8}),
            ("faiss", {"bytes": 60}),
            ("inverted", {"bits": 32, "prune": 4}),
            ("multi-vector", {"codec": "residual", "bits": 4, "muvera": True}),
        ],
    )
    def test_an_index_is_saved_with_them(self, tiny, models, tmp_path, kind, options):
        index = build_index(tiny, models[kind], **options)
        index.save(tmp_path / "index")
        assert load_index(tmp_path / "index").bytes_per_document() == index.bytes_per_document()

    @pytest.mark.parametrize(
        ("kind", "options", "words"),
        [
            ("faiss", {"bits": 8}, r"'bits'.*faiss takes factory"),
            ("faiss", {"codec": "float16"}, r"'codec'.*faiss takes"),
            ("faiss", {"kind": "inverted"}, r"kind=inverted.*faiss"),
            ("faiss", {"kind": "fiass"}, r"kind.*'fiass'.*faiss"),
            ("inverted", {"truncate": 8}, r"'truncate'.*inverted takes backend"),
            ("inverted", {"bits": 4}, "bits.*dropped"),
            ("inverted", {"bits": 16}, "bits.*dropped"),
            ("multi-vector", {"factory": "SQ8"}, r"'factory'.*multi-vector takes"),
            ("multi-vector", {"codec": "sq8"}, r"'sq8' was dropped.*residual"),
            ("multi-vector", {"nonsense": 1}, "nonsense"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_work(self, tiny, models, monkeypatch, kind, options, words):
        encoder = load_encoder(models[kind])
        monkeypatch.setattr(type(encoder), "encode", lambda *_, **__: pytest.fail("encoded first"))
        with pytest.raises(UserError, match=words) as refused:
            build_index(tiny, encoder, **options)
        assert "\n" not in str(refused.value)


def recipe(tiny_folder, tiny_model, student, **index):
    return {
        "name": "options",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "students": {"student": {**student, "control": None}},
        "index": index,
    }


SEISMIC = {"backend": "seismic", "query_cut": 5, "heap_factor": 0.9}
installed = pytest.mark.skipif(importlib.util.find_spec("seismic") is None, reason="Seismic is not installed")
STUDENT = {"inverted": "sparse", "multi-vector": "multi-vector"}
STUDENTS = {
    "faiss": {"model": "static", "stages": [{"objectives": "leaf", "training": {"epochs": 1}}]},
    "inverted": {
        "queries": "inference-free",
        "stages": [{"objectives": "kl", "train": "head", "training": {"epochs": 1}}],
    },
    "multi-vector": {"dimension": 16, "stages": [{"objectives": "kl", "train": "head", "training": {"epochs": 1}}]},
}


class TestRecipes:
    @pytest.mark.parametrize(
        ("kind", "options", "settings"),
        [
            ("faiss", {"factory": "SQ8"}, {"factory": "SQ8"}),
            ("faiss", {"truncate": 8}, {}),
            ("inverted", {"bits": 32}, {"bits": None}),
            ("inverted", {"prune": 4}, {"prune": 4, "bits": 8}),
            pytest.param("inverted", SEISMIC, SEISMIC, marks=installed),
            ("multi-vector", {"codec": "residual", "bits": 4, "sample": 30}, {"codec": "residual", "bits": 4}),
            ("multi-vector", {"codec": "float32", "muvera": {"candidates": 20}}, {"codec": "float32"}),
        ],
    )
    def test_each_option_is_in_the_index_and_its_bytes_in_the_results(
        self, tiny_folder, tiny_model, tmp_path, kind, options, settings
    ):
        student = STUDENTS[kind] if kind == "faiss" else {**STUDENTS[kind], "model": f"{STUDENT[kind]}:{tiny_model}"}
        run_recipe(parse_recipe(recipe(tiny_folder, tiny_model, student, **options)), tmp_path / "out")
        place = tmp_path / "out" / "indexes" / "student"
        kept = json.loads((place / "manifest.json").read_text())["settings"]
        assert kept["kind"] == kind
        assert {name: kept[name] for name in settings} == settings
        assert (kept.get("muvera") or {}).get("candidates") == options.get("muvera", {}).get("candidates")
        assert load_index(place).space.truncation == options.get("truncate")
        systems = json.loads((tmp_path / "out" / "results.json").read_text())["systems"]
        row = next(system for system in systems if system["name"] == "student")
        assert row["bytes_per_document"] == pytest.approx(load_index(place).bytes_per_document(), rel=0.01)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"codec": "float32"}, r"'codec'.*faiss takes"),
            ({"codec": "distilled-pq"}, "'distilled-pq' was dropped.*residual"),
            ({"bits": 16}, "16-bit impacts were dropped"),
            ({"prune": 4}, r"'prune'.*faiss takes"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_training(self, tiny_folder, tiny_model, tmp_path, options, words):
        with pytest.raises(UserError, match=words):
            run_recipe(parse_recipe(recipe(tiny_folder, tiny_model, STUDENTS["faiss"], **options)), tmp_path / "out")
        assert not (tmp_path / "out" / "students").exists()

    def test_a_missing_seismic_is_refused_before_training(self, tiny_folder, tiny_model, tmp_path, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "seismic" else find(name))
        student = {**STUDENTS["inverted"], "model": f"sparse:{tiny_model}"}
        with pytest.raises(UserError, match=r"retrodistill\[seismic\]"):
            run_recipe(parse_recipe(recipe(tiny_folder, tiny_model, student, **SEISMIC)), tmp_path / "out")
        assert not (tmp_path / "out" / "students").exists()
