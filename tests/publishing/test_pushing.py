import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import check_student
from retrodistill.indexes import build_index, load_index
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.serving.opening import open_places
from retrodistill.students import load_student

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
KINDS = {
    "static": "static",
    "hybrid": "dense",
    "sparse": "sparse",
    "vdr": "sparse",
    "multi-vector": "multi-vector",
    "pooled": "multi-vector",
}
MADE = (STUDENT_MANIFEST, "README.md")


@pytest.fixture(scope="module")
def job(tiny_folder, tiny_model, tmp_path_factory):
    """A job with two students, whose base model and collection are folders of this machine."""
    quick = {"epochs": 1, "batch_size": 32, "learning_rate": 0.01}
    static = {"model": "static", "control": None, "stages": [{"objectives": "leaf", "training": quick}]}
    dense = {**static, "model": f"dense:{tiny_model}", "layers": 1}
    content = {
        "name": "small",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "students": {"small": static, "cut": dense},
        "evaluation": {"latency_queries": 0, "examples": 1},
    }
    folder = tmp_path_factory.mktemp("jobs") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        run_recipe(parse_recipe(content), folder)
    return folder


@pytest.fixture
def cut(job, tmp_path):
    """The folder of a student that a test may change."""
    return Path(shutil.copytree(job / "students" / "cut", tmp_path / "cut"))


def contents(folder):
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def files(hub, name):
    return hub.repositories[name]["files"]


def front_matter(hub, name):
    return yaml.safe_load(files(hub, name)["README.md"].decode().split("---\n")[1])


class TestStudents:
    def test_all_files_arrive_as_they_are(self, hub, cut):
        published = rd.push_to_hub(cut, "me/cut", license="mit")
        arrived = files(hub, "me/cut")
        assert set(published.files) == set(arrived) - {".gitattributes"}
        for name in set(published.files).difference(MADE):
            assert arrived[name] == (cut / name).read_bytes()
        assert published.files == {name: len(arrived[name]) for name in published.files}
        assert published.url.endswith(hub.repositories["me/cut"]["sha"])

    def test_the_manifest_arrives_with_checksums_that_hold(self, hub, cut, tmp_path):
        rd.push_to_hub(cut, "me/cut", license="mit")
        for name, content in files(hub, "me/cut").items():
            path = tmp_path / "again" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        check_student(tmp_path / "again")
        sent, own = (json.loads((folder / STUDENT_MANIFEST).read_text()) for folder in (tmp_path / "again", cut))
        assert sent["about"]["curves"] == own["about"]["curves"]
        assert sent["fingerprint"] == Manifest.read(tmp_path / "again", STUDENT_MANIFEST).fingerprint

    def test_no_folder_of_this_machine_arrives(self, hub, cut, tiny_model):
        assert str(Path(tiny_model).parent) in (cut / STUDENT_MANIFEST).read_text()
        rd.push_to_hub(cut, "me/cut", license="mit")
        for name, content in files(hub, "me/cut").items():
            assert b"/tmp" not in content, name
            assert str(Path(tiny_model).parent).encode() not in content, name
        assert json.loads(files(hub, "me/cut")[STUDENT_MANIFEST])["settings"]["model"] == "dense:bi-encoder"

    def test_where_a_library_loaded_a_model_from_is_cut_in_its_files(self, hub, cut):
        config = json.loads((cut / "config.json").read_text()) | {"_name_or_path": "/home/me/models/base"}
        (cut / "config.json").write_text(json.dumps(config))
        manifest = json.loads((cut / STUDENT_MANIFEST).read_text())
        del manifest["files"]["config.json"], manifest["checksum"]
        (cut / STUDENT_MANIFEST).write_text(json.dumps(manifest))
        assert "config.json" not in rd.push_to_hub(cut, "me/cut", license="mit", dry_run=True).files
        manifest["files"] = Manifest.read(cut, STUDENT_MANIFEST).with_files(cut).files
        del manifest["files"][STUDENT_MANIFEST]
        (cut / STUDENT_MANIFEST).write_text(json.dumps(manifest))
        rd.push_to_hub(cut, "me/cut", license="mit")
        assert json.loads(files(hub, "me/cut")["config.json"]) == {**config, "_name_or_path": "base"}
        rd.load_encoder("dense:me/cut")

    def test_only_the_files_of_the_manifest_go(self, hub, cut):
        (cut / "checkpoint-5").mkdir()
        for name in ("checkpoint-5/optimizer.pt", ".env", "notes.txt"):
            (cut / name).write_text("mine")
        published = rd.push_to_hub(cut, "me/cut", license="mit")
        assert not {"checkpoint-5/optimizer.pt", ".env", "notes.txt"}.intersection(published.files)
        assert set(files(hub, "me/cut")) == {*published.files, ".gitattributes"}

    def test_it_is_loaded_by_its_name_with_its_space(self, hub, job, tiny, tiny_model):
        own = load_student(job / "students" / "small")
        rd.push_to_hub(own, "me/small", license="mit")
        loaded = rd.load_encoder("static:me/small")
        texts = tiny.queries.texts
        assert (loaded.encode(texts, "query") == own.encode(texts, "query")).all()
        assert loaded.query_space == own.query_space
        index = build_index(tiny, f"dense:{tiny_model}", "static:me/small")  # refuses an encoder of another space
        found = index.search(texts[:3]).to_dict()
        assert found == build_index(tiny, f"dense:{tiny_model}", own).search(texts[:3]).to_dict()

    @pytest.mark.parametrize("folder", KINDS)
    def test_every_kind_of_encoder_comes_back(self, folder, hub):
        rd.push_to_hub(SAVED / folder, f"me/{folder}", license="mit")
        names = {f"{KINDS[folder]}:me/{folder}", f"{KINDS[folder]}:{SAVED / folder}"}
        first, second = (rd.load_encoder(name).encode(["one text", "another"], "query") for name in names)
        first, second = (getattr(vectors, "vectors", vectors) for vectors in (first, second))
        assert abs(first - second).max() < 1e-6

    @pytest.mark.parametrize("kind", ["prett", "tk"])
    def test_every_kind_of_reranker_comes_back(self, kind, hub, tiny):
        rd.push_to_hub(SAVED / kind, f"me/{kind}", license="mit")
        names = [f"rerank:{kind}:{place}@bm25" for place in (f"me/{kind}", SAVED / kind)]
        means = rd.evaluate(dict(zip("ab", names, strict=True)), tiny).means
        assert means["a"] == means["b"]


class TestCards:
    def test_it_names_the_repository_and_has_what_the_hub_filters_by(self, hub, cut):
        rd.push_to_hub(cut, "me/cut", license="mit")
        text, front = files(hub, "me/cut")["README.md"].decode(), front_matter(hub, "me/cut")
        assert front["license"] == "mit"
        assert front["library_name"] == "sentence-transformers"
        assert {"retrodistill", "knowledge-distillation"} <= set(front["tags"])
        assert "ndcg@10" in front["metrics"]
        assert 'SentenceTransformer("me/cut")' in text
        assert 'queries="dense:me/cut"' in text
        assert "model_id" not in text

    def test_the_license_is_that_of_the_base_model(self, hub, cut):
        card = (cut / "README.md").read_text()
        (cut / "README.md").write_text(card.replace("---\n", "---\nbase_model: org/base\n", 1))
        hub.add("org/base", {}, tags=["bert", "license:apache-2.0"])
        rd.push_to_hub(cut, "me/cut")
        assert front_matter(hub, "me/cut")["license"] == "apache-2.0"

    def test_without_a_license_nothing_is_uploaded(self, hub, cut):
        with pytest.raises(UserError, match=r"no license .*--license"):
            rd.push_to_hub(cut, "me/cut")
        assert hub.repositories == {}

    def test_metadata_that_is_not_yaml(self, hub, cut):
        (cut / "README.md").write_text("---\na: [\n---\n# T\n")
        with pytest.raises(UserError, match=r"README.md has no valid metadata"):
            rd.push_to_hub(cut, "me/cut", license="mit")

    def test_a_student_without_a_card_gets_one(self, hub, cut):
        (cut / "README.md").unlink()
        rd.push_to_hub(cut, "me/cut", license="mit")
        assert front_matter(hub, "me/cut")["library_name"] == "retrodistill"


class TestIndexes:
    @pytest.fixture
    def folder(self, job):
        return job / "indexes" / "small"

    def test_one_comes_back_with_its_query_encoder(self, hub, job, folder, tiny):
        rd.push_to_hub(job, "me/small", student="small", license="mit")
        published = rd.push_to_hub(folder, "me/index", queries="static:me/small", license="cc-by-4.0")
        assert published.kind == "index"
        assert files(hub, "me/index")["index.faiss"] == (folder / "index.faiss").read_bytes()
        assert "made-from.json" not in published.files
        assert b"../" not in files(hub, "me/index")["manifest.json"]
        loaded, own = load_index("hf:me/index"), load_index(folder)
        queries = tiny.queries.texts[:5]
        assert loaded.search(queries).to_dict() == own.search(queries).to_dict()
        assert loaded.queries.name == "static:me/small"
        text = files(hub, "me/index")["README.md"].decode()
        assert 'rd.load_index("hf:me/index")' in text
        assert (
            "- factory: Flat\n- documents encoded by: `dense:bi-encoder`\n- queries encoded by: `static:me/small`\n"
            in text
        )
        assert front_matter(hub, "me/index")["license"] == "cc-by-4.0"

    def test_an_encoder_of_another_space_is_refused(self, hub, job, folder, tiny_static):
        hub.add("me/table", contents(tiny_static))
        with pytest.raises(UserError, match="space"):
            rd.push_to_hub(folder, "me/index", queries="static:me/table", license="mit")
        rd.push_to_hub(job, "me/small", student="small", license="mit")
        rd.push_to_hub(folder, "me/index", queries="static:me/small", license="mit")
        with pytest.raises(UserError, match="space"):
            load_index("hf:me/index", "static:me/table")

    def test_a_query_encoder_of_this_machine_needs_a_name(self, hub, job, folder):
        with pytest.raises(UserError, match="is on this machine; upload it"):
            rd.push_to_hub(
                folder, "me/index", queries=f"static:{folder.parents[1] / 'students' / 'small'}", license="mit"
            )
        with pytest.raises(UserError, match=r"dense:.*this machine only.*--queries"):
            rd.push_to_hub(folder, "me/index", license="mit")

    def test_one_in_memory_whose_encoder_is_on_the_hub(self, hub, tiny, tiny_model):
        hub.add("me/base", contents(tiny_model))
        index = build_index(tiny, "dense:me/base")
        rd.push_to_hub(index, "me/index", license="mit")
        assert front_matter(hub, "me/index")["base_model"] == "me/base"
        names = {"hub": "hf:me/index", "here": index, "reranked": "rerank:dense:me/base@hf:me/index"}
        means = rd.evaluate(names, tiny).means
        assert means["hub"] == means["here"] == means["reranked"]

    def test_one_is_served_by_its_name(self, hub, tiny, tiny_model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        hub.add("me/base", contents(tiny_model))
        rd.push_to_hub(build_index(tiny, "dense:me/base"), "me/index", license="mit")
        served = open_places(["hf:me/index"])
        assert list(served.systems) == ["index"]
        assert served.judgments == Path("judgments")  # not below a name of the hub

    def test_names_in_its_card_are_only_text(self, hub, tiny, tiny_model):
        hub.add("me/base", contents(tiny_model))
        index = build_index(replace(tiny, name="<script>x</script> [a](http://x.y)"), "dense:me/base")
        rd.push_to_hub(index, "me/index", license="mit")
        text = files(hub, "me/index")["README.md"].decode()
        assert "<script>" not in text
        assert "](http" not in text

    def test_a_damaged_file_is_named(self, hub, folder, tmp_path):
        copy = Path(shutil.copytree(folder, tmp_path / "index"))
        content = bytearray((copy / "index.faiss").read_bytes())
        content[-3] ^= 1
        (copy / "index.faiss").write_bytes(content)
        with pytest.raises(UserError, match=r"index\.faiss is damaged"):
            rd.push_to_hub(copy, "me/index", queries="static:me/small", license="mit")

    def test_what_is_not_an_index_or_not_there(self, hub, cut):
        rd.push_to_hub(cut, "me/cut", license="mit")
        with pytest.raises(UserError, match=r"me/cut does not hold an index.*dense:me/cut"):
            load_index("hf:me/cut")
        with pytest.raises(UserError, match=r"404 for me/none"):
            load_index("hf:me/none")
        with pytest.raises(UserError, match="USER/NAME"):
            load_index("hf:none")

    def test_what_was_downloaded_is_there_offline(self, hub, tiny, tiny_model, monkeypatch):
        from huggingface_hub import constants

        hub.add("me/base", contents(tiny_model))
        rd.push_to_hub(build_index(tiny, f"dense:{tiny_model}"), "me/index", queries="dense:me/base", license="mit")
        first = load_index("hf:me/index")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load_index("hf:me/index").ids == first.ids
        with pytest.raises(UserError, match=r"me/other is not in the hub's cache"):
            load_index("hf:me/other")


class TestUploads:
    def test_one_that_was_interrupted_goes_on(self, hub, cut):
        hub.fault = lambda method, path: 422 if "/commit/" in path else None
        with pytest.raises(UserError, match=r"422 for me/cut"):
            rd.push_to_hub(cut, "me/cut", license="mit")
        assert set(files(hub, "me/cut")) == {".gitattributes"}  # all or nothing
        hub.fault = lambda method, path: None
        sent = list(hub.puts)
        assert len(sent) == 1
        rd.push_to_hub(cut, "me/cut", license="mit")
        assert hub.puts == sent
        assert "model.safetensors" in files(hub, "me/cut")

    def test_the_same_again_is_no_commit(self, hub, cut):
        for _ in range(2):
            rd.push_to_hub(cut, "me/cut", license="mit", message="First one")
        assert hub.repositories["me/cut"]["commits"] == ["added", "First one"]

    def test_files_of_an_earlier_version_go_and_those_of_others_stay(self, hub, job, cut):
        rd.push_to_hub(cut, "me/cut", license="mit")
        files(hub, "me/cut")["onnx/model.onnx"] = b"mine"
        rd.push_to_hub(job / "students" / "small", "me/cut", license="mit")
        arrived = set(files(hub, "me/cut"))
        assert "model.safetensors" not in arrived
        assert {"onnx/model.onnx", "0_StaticEmbedding/model.safetensors", ".gitattributes"} <= arrived

    def test_a_dry_run_asks_nobody(self, hub, cut):
        published = rd.push_to_hub(cut, "me/cut", license="mit", dry_run=True)
        assert published.url is None
        assert published.files["model.safetensors"] == (cut / "model.safetensors").stat().st_size
        assert hub.requests == []

    def test_private(self, hub, cut):
        rd.push_to_hub(cut, "me/cut", license="mit", private=True)
        assert hub.repositories["me/cut"]["private"] is True
        hub.add("me/open", {})
        with pytest.raises(UserError, match="exists and is public"):
            rd.push_to_hub(cut, "me/open", license="mit", private=True)


class TestRefusals:
    def test_a_repository_of_something_else(self, hub, cut):
        hub.add("me/other", {"manifest.json": b"{}", "index.faiss": b"x"})
        with pytest.raises(UserError, match=r"me/other holds something else than a student"):
            rd.push_to_hub(cut, "me/other", license="mit")

    @pytest.mark.parametrize("name", ["cut", "me/cut/more", "me/..", "", "me/a b", "-me/cut", "hf:me/cut"])
    def test_names(self, hub, cut, name):
        with pytest.raises(UserError, match=r"USER/NAME"):
            rd.push_to_hub(cut, name, license="mit")
        assert hub.requests == []

    def test_no_token(self, hub, cut, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(UserError, match="no token of the Hugging Face hub"):
            rd.push_to_hub(cut, "me/cut", license="mit")
        assert hub.requests == []

    def test_a_wrong_token_is_not_repeated(self, hub, cut):
        hub.readers = set()
        with pytest.raises(UserError, match=r"401 for me/cut") as caught:
            rd.push_to_hub(cut, "me/cut", license="mit")
        assert TOKEN not in str(caught.value)

    def test_a_token_that_may_not_write(self, hub, cut):
        hub.writers = set()
        with pytest.raises(UserError, match=r"403 for me/cut"):
            rd.push_to_hub(cut, "me/cut", license="mit")

    def test_offline(self, hub, cut, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            rd.push_to_hub(cut, "me/cut", license="mit")

    def test_what_is_not_an_artifact(self, hub, tmp_path, tiny_folder):
        with pytest.raises(UserError, match="holds neither a student"):
            rd.push_to_hub(tiny_folder, "me/cut")
        with pytest.raises(UserError, match="no folder"):
            rd.push_to_hub(tmp_path / "none", "me/cut")
        with pytest.raises(UserError, match="list is not a student"):
            rd.push_to_hub([], "me/cut")

    def test_a_damaged_student(self, hub, cut):
        (cut / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            rd.push_to_hub(cut, "me/cut", license="mit")

    def test_a_key_in_a_file(self, hub, cut):
        card = cut / "README.md"
        card.write_text(card.read_text() + "\nuse hf_abcdefghijklmnopqrstuvwxyz0123\n")
        with pytest.raises(UserError, match=r"README\.md holds what looks like a key") as caught:
            rd.push_to_hub(cut, "me/cut", license="mit")
        assert "abcdefghij" not in str(caught.value)

    def test_a_control_is_not_a_choice(self, hub, job, tmp_path):
        copied = shutil.copytree(job, tmp_path / "job")
        (copied / "students" / "cut").rename(copied / "students" / "control")
        content = yaml.safe_load((copied / "recipe.yaml").read_text())
        del content["students"]["cut"]
        (copied / "recipe.yaml").write_text(yaml.safe_dump(content))
        assert (
            "0_StaticEmbedding/model.safetensors" in rd.push_to_hub(copied, "me/x", license="mit", dry_run=True).files
        )

    def test_the_students_of_a_job(self, hub, job, tmp_path):
        with pytest.raises(UserError, match=r"students cut, small; choose one"):
            rd.push_to_hub(job, "me/x", license="mit")
        with pytest.raises(UserError, match="student of this job"):
            rd.push_to_hub(job, "me/x", student="smal", license="mit")
        with pytest.raises(UserError, match="leave it out"):
            rd.push_to_hub(job / "students" / "cut", "me/x", student="cut", license="mit")
        with pytest.raises(UserError, match="leave it out"):
            rd.push_to_hub(job / "students" / "cut", "me/x", queries="static:x", license="mit")
