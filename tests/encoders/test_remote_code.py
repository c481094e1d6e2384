"""Models that bring their own code: refused, unless the user allows them by name."""

import json
import shutil
from pathlib import Path

import pytest

from retrodistill import build_index, load_index
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection
from retrodistill.encoders import load_encoder, trust_remote_code
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector
from retrodistill.encoders.remote_code import VARIABLE, code_of, files_of
from retrodistill.recipes.job import open_job
from retrodistill.recipes.loading import parse_recipe

CODE = """from pathlib import Path
from transformers import BertConfig, BertModel
Path({mark!r}).touch()
class OwnConfig(BertConfig):
    model_type = 'own'
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path, tiny_model, monkeypatch):
    """The tiny model with code of its own, which leaves a file ``ran`` when it runs."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("retrodistill.encoders.remote_code._run", {})
    folder = tmp_path / "own-model"
    shutil.copytree(tiny_model, folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    file.write_text(json.dumps({**content, "model_type": "own", "auto_map": auto_map}))
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return folder


def ran(own):
    return (own.parent / "ran").exists()


class TestRefusal:
    @pytest.mark.parametrize("load", [load_bi_encoder, lambda name: load_encoder(f"dense:{name}")])
    def test_names_the_model_its_files_and_the_option(self, own, load):
        with pytest.raises(UserError) as caught:
            load(str(own))
        for fact in (str(own), "own.py", f"--trust-remote-code {own}", VARIABLE):
            assert fact in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not ran(own)

    def test_another_model_that_is_allowed_does_not_count(self, own, tiny_model):
        with trust_remote_code(tiny_model), pytest.raises(UserError, match=r"own\.py"):
            load_bi_encoder(str(own))
        assert not ran(own)

    def test_a_module_of_this_package_allows_no_other_code(self, own):
        modules = json.loads((own / "modules.json").read_text())
        added = {"idx": 9, "name": "9", "path": "", "type": "retrodistill.students.vdr.VocabularyPooling"}
        (own / "modules.json").write_text(json.dumps([*modules, added]))
        about = json.loads((own / "config_sentence_transformers.json").read_text())
        (own / "config_sentence_transformers.json").write_text(
            json.dumps({**about, "model_type": "MultiVectorEncoder"})
        )
        (own / "0_Transformer").mkdir()
        for file in ("config.json", "own.py"):
            (own / file).rename(own / "0_Transformer" / file)
        modules[0]["path"] = "0_Transformer"
        (own / "modules.json").write_text(json.dumps([*modules, added]))
        with pytest.raises(UserError):
            load_multi_vector(str(own))
        assert not ran(own)

    def test_files_of_another_repository_are_named(self):
        assert files_of(["own.A", "own.B", "someone/impl--deep.model.C"]) == ["own.py", "deep/model.py of someone/impl"]


class TestConsent:
    @pytest.mark.parametrize("written", ["{}", "dense:{}", "{}/../own-model"])
    def test_by_name(self, own, written):
        with trust_remote_code(written.format(own)):
            encoder = load_encoder(f"dense:{own}")
        assert encoder.encode(["heart"], "query").shape == (1, 32)
        assert list(encoder.code["files"]) == ["own.py"]
        with pytest.raises(UserError):
            load_encoder(f"dense:{own}")

    def test_by_the_environment(self, own, monkeypatch):
        monkeypatch.setenv(VARIABLE, f"nobody/none,{own}")
        assert load_encoder(f"dense:{own}").dimension == 32

    def test_other_models_have_no_code(self, tiny_model):
        assert load_encoder(f"dense:{tiny_model}").code == {}
        assert code_of(None) == {}

    def test_a_copy_of_allowed_code_is_allowed_in_this_process(self, own, tmp_path):
        with trust_remote_code(str(own)):
            load_bi_encoder(str(own)).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
            assert list((tmp_path / "saved").rglob("own.py"))
            assert load_bi_encoder(str(tmp_path / "saved"))
            for place in ("elsewhere", "changed"):
                shutil.copytree(tmp_path / "saved", tmp_path / place)
            config = next((tmp_path / "elsewhere").rglob("config.json"))
            config.write_text(config.read_text().replace("own.OwnModel", "someone/impl--own.OwnModel"))
            with pytest.raises(UserError, match="elsewhere"):
                load_bi_encoder(str(tmp_path / "elsewhere"))
            with next((tmp_path / "changed").rglob("own.py")).open("a") as file:
                file.write("x = 1\n")
            with pytest.raises(UserError, match="changed"):
                load_bi_encoder(str(tmp_path / "changed"))
        with pytest.raises(UserError, match="saved"):
            load_bi_encoder(str(tmp_path / "saved"))


class TestArtifacts:
    def test_an_index_records_the_code_and_names_the_model(self, own, tmp_path, monkeypatch):
        corpus = Collection.from_parts("c", {"a": "heart", "b": "star"}, {}, {})
        with trust_remote_code(str(own)):
            build_index(corpus, documents=f"dense:{own}").save(tmp_path / "index")
            assert len(load_index(tmp_path / "index").search("heart", k=2)) == 2
        code = Manifest.read(tmp_path / "index").about["code"]
        assert {name: list(about["files"]) for name, about in code.items()} == {f"dense:{own}": ["own.py"]}
        monkeypatch.setattr("retrodistill.encoders.remote_code._run", {})  # as in a new process
        with pytest.raises(UserError, match="--trust-remote-code") as caught:
            load_index(tmp_path / "index")
        option = str(caught.value).partition("--trust-remote-code ")[2].split(",")[0]
        with trust_remote_code(option):
            assert len(load_index(tmp_path / "index")) == 2

    def test_a_student_records_the_code(self, own, tmp_path, tiny, monkeypatch):
        from retrodistill import distill

        with trust_remote_code(str(own)):
            distill(
                tiny,
                f"dense:{own}",
                student=f"dense:{own}",
                objective="leaf",
                document_encoder=f"dense:{own}",
                training={"epochs": 1, "train": "query_encoder"},
                out=tmp_path / "student",
            )
        assert list(Manifest.read(tmp_path / "student", STUDENT_MANIFEST).about["code"]["files"]) == ["own.py"]
        assert "trust_remote_code=True" in (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
        monkeypatch.setattr("retrodistill.encoders.remote_code._run", {})
        with pytest.raises(UserError, match=f"--trust-remote-code {tmp_path / 'student'}"):
            load_encoder(f"dense:{tmp_path / 'student'}")


class TestRecipes:
    def test_one_states_what_it_needs_and_allows_nothing(self, own, tiny_folder, tmp_path):
        content = {
            "name": "r",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{own}",
            "trust_remote_code": [str(own)],
            "students": {"s": {"model": "static", "stages": [{"objectives": "leaf"}]}},
        }
        recipe = parse_recipe(content)
        with pytest.raises(UserError, match=f"recipe r .*--trust-remote-code {own}"):
            open_job(recipe, tmp_path / "out")
        assert not ran(own)
        with trust_remote_code(str(own)):
            assert Path(open_job(recipe, tmp_path / "out").space.name.partition(":")[2]) == own
