"""No file is code: nothing is unpickled, and no model, recipe or checkpoint runs code that the user did not allow."""

import ast
import builtins
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from children import Child

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import write_checksums
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import (
    load_bi_encoder,
    load_cross_encoder,
    load_multi_vector,
    load_seq2seq,
    load_sparse,
    load_tokenizer,
)
from retrodistill.encoders.remote_code import VARIABLE
from retrodistill.rankers import load_ranker

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "tests" / "fixtures" / "saved_at_0.1.0"
SOURCES = [*ROOT.glob("*.py"), *(file for room in ("retrodistill", "evaluation", "examples", ".ci", "tests")
                                 for file in (ROOT / room).rglob("*.py") if file != Path(__file__))]  # fmt: skip
CALLS = ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "os.system", "os.popen", "tempfile.mktemp")
PICKLES = ("pickle", "_pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "dbm")
# qdrant-client keeps an embedded folder's points as pickles: they are read as data classes, see below.
READS_POINTS = ROOT / "retrodistill" / "exports" / "qdrant.py"


def named(node):
    """The dotted name of a function that is called."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def option(node, name):
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((ast.unparse(keyword.value) for keyword in keywords if keyword.arg == name), None)


def dangerous(tree):
    """What a module does that reads code from data, as (line, what)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.split(".")[0] in PICKLES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield from ((node.lineno, name.name) for name in node.names if name.name != "UnpicklingError")
        call = named(node)
        if call.endswith("torch.load") and option(node, "weights_only") != "True":
            yield node.lineno, call
        if call.rpartition(".")[2] in ("load", "save") and option(node, "allow_pickle") == "True":
            yield node.lineno, call
        if call in (
            "yaml.load",
            "yaml.full_load",
            "yaml.unsafe_load",
            "eval",
            "os.system",
            "os.popen",
            "tempfile.mktemp",
        ):
            yield node.lineno, call
        if call.rpartition(".")[2] in ("extractall", "unpack_archive") or option(node, "shell") == "True":
            yield node.lineno, call
        if option(node, "verify") == "False" or (
            option(node, "trust_remote_code") == "True" and "retrodistill" in call
        ):
            yield node.lineno, call


class TestSources:
    @pytest.mark.parametrize(
        "line",
        [
            "import pickle", "from joblib import load", "import cloudpickle as c", "torch.load(f)",
            "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.load(f, Loader)", "eval(x)",
            "zipfile.ZipFile(f).extractall()", "subprocess.run(x, shell=True)", "requests.get(u, verify=False)",
        ],
    )  # fmt: skip
    def test_what_reads_code_is_found(self, line):
        assert list(dangerous(ast.parse(line)))

    def test_no_module_reads_code_from_data(self):
        found = {
            (str(file.relative_to(ROOT)), *what)
            for file in SOURCES
            if file != READS_POINTS and "tests/faults" not in str(file)
            for what in dangerous(ast.parse(file.read_text(encoding="utf-8")))
        }
        assert found == set()

    def test_only_points_of_qdrant_are_unpickled(self):
        calls = [named(node) for node in ast.walk(ast.parse(READS_POINTS.read_text(encoding="utf-8")))]
        assert not [call for call in calls if call in ("pickle.load", "pickle.loads", "pickle.Unpickler")]


NO_PICKLES = """
import pickle, sys
allowed = []
def refuse(event, arguments):
    if event == 'pickle.find_class':
        raise AssertionError(f'unpickled: {arguments}')
def refused(*arguments, **options):
    raise AssertionError('unpickled')
class Refused:
    def __init__(self, *arguments, **options):
        raise AssertionError('unpickled')
pickle.load = pickle.loads = refused
pickle.Unpickler = pickle._Unpickler = Refused
sys.addaudithook(refuse)
from pathlib import Path
"""
LOADED = """
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.indexes import load_index
from retrodistill.rankers import load_ranker
from retrodistill.runs import read_run
from retrodistill.students import load_student
saved, made, model = map(Path, sys.argv[1:])
corpus = load_collection(saved / 'collection')
students = sorted(file.parent for file in saved.glob('*/retrodistill.json'))
for folder in students:
    student = load_student(folder)
    if hasattr(student, 'encode'):
        student.encode(corpus.queries.texts, 'query')
    else:
        student.score([('heart', 'artery')])
for folder in [*saved.glob('*-index'), *made.glob('*-index')]:
    index = load_index(folder)
    assert len(index.search('heart', k=3))
assert read_run(made / 'run.parquet').to_dict() == read_run(made / 'run.run').to_dict()
for folder in [made / 'bin', model]:  # weights as pytorch_model.bin, which torch reads with weights_only
    load_encoder(f'dense:{folder}').encode(['heart'], 'query')
print(len(students))
"""


@pytest.mark.xdist_group("children")
class TestLoading:
    def test_the_check_sees_a_pickle(self):
        status, _, error = Child(NO_PICKLES + "import _pickle\n_pickle.loads(b'cos\\nsystem\\n.')").wait()
        assert status == 1
        assert "unpickled" in error

    @pytest.mark.slow
    def test_no_artifact_is_unpickled(self, tiny, tiny_model, tmp_path):
        from retrodistill.indexes import build_index
        from retrodistill.runs import Run, write_run

        dense = f"dense:{tiny_model}"
        for factory in ("IVF2,Flat", "HNSW8,Flat", "SQ8"):
            build_index(tiny, documents=dense, factory=factory).save(tmp_path / f"{factory}-index")
        run = Run.from_dict({"q": {"a": 2.0, "b": 1.0}})
        write_run(run, tmp_path / "run.parquet")
        write_run(run, tmp_path / "run.run")
        shutil.copytree(tiny_model, tmp_path / "bin")
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "bin" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
        (tmp_path / "bin" / "model.safetensors").unlink()
        status, out, error = Child(NO_PICKLES + LOADED, SAVED, tmp_path, tiny_model).wait(300)
        assert status == 0, error
        assert int(out) == 8

    @pytest.mark.slow
    def test_no_checkpoint_is_unpickled(self, tiny_model, tmp_path):
        status, _, error = Child(NO_PICKLES + TRAINED, tiny_model, tmp_path / "work").wait(300)
        assert (status, error) == (0, "")


TRAINED = """
import shutil
import numpy as np
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.training.loss import DistillationLoss, Term, TeacherVectors
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import TextColumns, train
folder, work = sys.argv[1], Path(sys.argv[2])
targets = np.random.default_rng(0).standard_normal((40, 32)).astype('f4')
def trained(epochs):
    model = load_bi_encoder(folder)
    loss = DistillationLoss(model, [Term('leaf')], StoredVectorScorer(True), None, TeacherVectors(targets))
    settings = TrainingSettings(epochs=epochs, batch_size=4)
    return train(model, loss, TextColumns({'text': ['heart'] * 40}, range(40)), settings, work)
trained(1)
shutil.rmtree(work / 'checkpoint-10')  # as if it was killed before the last one
assert (work / 'checkpoint-8' / 'optimizer.pt').is_file()
assert trained(1).steps == 10
"""


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class TestAttacks:
    def test_weights_that_are_code_are_refused(self, tiny_model, tmp_path):
        shutil.copytree(tiny_model, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        torch.save({"embeddings.weight": Attack(tmp_path / "ran")}, tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(UserError) as caught:
            load_bi_encoder(str(tmp_path / "model"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
    def test_a_checkpoint_that_is_code_is_refused(self, file, tiny_model, tmp_path):
        namespace = {}
        code = TRAINED.partition("trained(1)\n")[0].replace("sys.argv[1]", repr(tiny_model))
        exec(
            "import sys\nfrom pathlib import Path\n" + code.replace("sys.argv[2]", repr(str(tmp_path / "work"))),
            namespace,
        )
        namespace["trained"](1)
        shutil.rmtree(tmp_path / "work" / "checkpoint-10")  # as if it was killed before the last one
        checkpoints = list((tmp_path / "work").glob("checkpoint-*"))
        assert checkpoints
        for checkpoint in checkpoints:
            torch.save({"state": Attack(tmp_path / "ran")}, checkpoint / file)
            (checkpoint / "checksums.json").unlink()
            write_checksums(checkpoint, but="rng_state")  # as an attacker would
        with pytest.raises(UserError):
            namespace["trained"](1)
        assert not (tmp_path / "ran").exists()

    def test_a_point_of_qdrant_that_is_code_is_refused(self, tmp_path, tiny, tiny_model):
        import sqlite3

        from retrodistill.exports import export_index, load_store
        from retrodistill.indexes import build_index

        export_index(build_index(tiny, documents=f"dense:{tiny_model}"), f"qdrant:{tmp_path / 'q'}#c")
        [file] = (tmp_path / "q").rglob("storage.sqlite")
        with sqlite3.connect(file) as content:
            content.execute("UPDATE points SET point = ?", (pickle.dumps(Attack(tmp_path / "ran")),))
        content.close()
        with pytest.raises(UserError, match="is damaged"):
            load_store(f"qdrant:{tmp_path / 'q'}#c")
        assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path, tiny_model, monkeypatch):
    """A copy of the tiny model, for which nothing is allowed; to be asked is a failure."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def asked(*_):
        raise AssertionError("a prompt asked whether to run code")

    monkeypatch.setattr(builtins, "input", asked)
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def changed(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def own_code(folder, mark):
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: pass\n")


class TestModels:
    """A model's folder names code in many ways; none is imported."""

    LOADERS = (load_bi_encoder, load_sparse, load_multi_vector, load_cross_encoder, load_seq2seq)

    def refused(self, model, load=load_bi_encoder):
        with pytest.raises(UserError) as caught:
            load(str(model))
        assert "\n" not in str(caught.value)
        assert not (model.parent / "ran").exists()

    @pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
    def test_a_configuration_with_its_own_classes(self, load, model):
        own_code(model, model.parent / "ran")
        names = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM")
        changed(model / "config.json", model_type="own", auto_map=dict.fromkeys(("AutoConfig", *names), "own.Own"))
        (model / "tokenizer.json").unlink()
        self.refused(model, load)

    @pytest.mark.parametrize("load", [load_bi_encoder, load_tokenizer], ids=lambda load: load.__name__)
    def test_a_tokenizer_of_its_own(self, load, model):
        own_code(model, model.parent / "ran")
        changed(model / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
        (model / "tokenizer.json").unlink()
        self.refused(model, load)

    @pytest.mark.parametrize("name", ["own.Own", "os.system", "subprocess.Popen", "retrodistill.cli.main", "this.s"])
    def test_a_module_that_is_any_class(self, name, model):
        own_code(model, model.parent / "ran")
        modules = json.loads((model / "modules.json").read_text())
        modules[1]["type"] = name
        (model / "modules.json").write_text(json.dumps(modules))
        self.refused(model)
        self.refused(model, load_multi_vector)

    @pytest.mark.parametrize("own", [False, True])
    def test_an_activation_that_is_any_function(self, own, model, monkeypatch):
        """Also beside a module of this package."""
        ran = []
        monkeypatch.setattr(os, "getlogin", lambda: ran.append(1))
        modules = json.loads((model / "modules.json").read_text())
        (model / "2_Dense").mkdir()
        dense = {"in_features": 32, "out_features": 32, "bias": True, "activation_function": "os.getlogin"}
        (model / "2_Dense" / "config.json").write_text(json.dumps(dense))
        from safetensors.torch import save_file

        weights = {"linear.weight": torch.eye(32), "linear.bias": torch.zeros(32)}
        save_file(weights, model / "2_Dense" / "model.safetensors")
        library = "sentence_transformers.models.Dense"
        modules = [*modules, {"idx": 2, "name": "2", "path": "2_Dense", "type": library}]
        load = load_bi_encoder
        if own:
            pooled = "retrodistill.students.token_pooling.FixedTokenPooling"
            modules = [modules[0], {**modules[-1], "idx": 1}, {"idx": 2, "name": "3", "path": "3_P", "type": pooled}]
            (model / "3_P").mkdir()
            (model / "3_P" / "config.json").write_text(json.dumps({"vectors": 2}))
            changed(model / "config_sentence_transformers.json", model_type="MultiVectorEncoder")
            load = load_multi_vector
        (model / "modules.json").write_text(json.dumps(modules))
        dense = [part for part in load(str(model)) if type(part).__name__ == "Dense"]
        assert dense[0].linear.weight.shape == (32, 32)
        assert ran == []

    @pytest.mark.parametrize("key", ["model_args", "model_kwargs", "config_args", "tokenizer_args", "processor_kwargs"])
    def test_a_configuration_that_trusts_itself(self, key, model):
        own_code(model, model.parent / "ran")
        changed(model / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
        changed(model / "sentence_bert_config.json", **{key: {"trust_remote_code": True}}, trust_remote_code=True)
        self.refused(model)

    def test_an_adapter_whose_base_is_code(self, model, tmp_path):
        pytest.importorskip("peft")
        own_code(model, tmp_path / "ran")
        changed(model / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        lora = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": 2, "target_modules": ["query"]}
        changed(adapter / "adapter_config.json", **lora, auto_mapping={"parent_library": "own"})
        with pytest.raises(UserError):
            load_bi_encoder(str(adapter))
        assert not (tmp_path / "ran").exists()


class TestRecipes:
    @pytest.mark.parametrize("name", ["function:os:system", "function:antigravity:fly", "function:idlelib.idle:x"])
    def test_a_teacher_of_pythons_own_library_is_not_imported(self, name):
        import sys

        with pytest.raises(UserError, match="Python's own library"):
            load_ranker(name)
        assert "antigravity" not in sys.modules

    def test_a_name_of_a_model_is_never_code(self, tmp_path):
        for name in ("dense:os.system", "static:__import__('os')", "dense:$(touch ran)", "dense:;touch ran"):
            with pytest.raises(UserError):
                load_encoder(name)
        assert not (tmp_path / "ran").exists()
