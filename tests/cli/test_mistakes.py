import re
import shlex
import shutil
from pathlib import Path

import pytest
from children import Child

from retrodistill import cli
from retrodistill.core.json_files import read_json, write_json
from retrodistill.encoders import load_encoder
from retrodistill.runs import Run, write_run

ROOT = Path(__file__).parents[2]


def done(*arguments):
    """Run the command line, which succeeds."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert not stopped.value.code


@pytest.fixture(scope="module")
def places(tiny_folder, tiny_model, tiny_static, tiny_cross_encoder, quick, tmp_path_factory):
    """Everything that the table of mistakes below refers to by name."""
    tmp_path, space = tmp_path_factory.mktemp("places"), f"dense:{tiny_model}"
    queries = [f"q{number}" for number in range(42)]
    whole, single, flat = {f"d{number}": float(number) for number in range(5)}, {"d0": 1.0}, {"d0": 1.0, "d1": 1.0}
    for name, row in (("good", whole), ("single", single), ("flat", flat)):
        write_run(Run.from_dict({query: dict(row) for query in queries}), tmp_path / f"{name}.run")
    write_run(Run.from_dict({"t0": dict(whole)}), tmp_path / "tests.run")
    write_run(Run.from_dict({"q0": {"elsewhere": 1.0, "nowhere": 2.0}}), tmp_path / "strange.run")
    (tmp_path / "nan.run").write_text("q0 Q0 d0 1 nan x\nq0 Q0 d1 2 1.0 x\n")
    (tmp_path / "empty.run").write_text("")
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(tmp_path / "cache"))
        done("index", "--collection", tiny_folder, "--documents", space, "--out", tmp_path / "index")
        scored = ["--candidates", tmp_path / "good.run", "--out", tmp_path / "made.run"]
        cross = ["--store", tmp_path / "store", "--teacher", f"cross-encoder:{tiny_cross_encoder}"]
        done("score", "--collection", tiny_folder, *scored, *cross)
    shutil.copytree(tmp_path / "index", tmp_path / "cut")
    content = (tmp_path / "cut" / "index.faiss").read_bytes()
    (tmp_path / "cut" / "index.faiss").write_bytes(content[:-9])
    (tmp_path / "made.run").unlink()
    folder = next(path.parent for path in (tmp_path / "store").rglob("part-*.parquet"))
    manifest = read_json(folder / "manifest.json")
    manifest["inputs"] = dict.fromkeys(manifest["inputs"], "0" * 16)
    write_json(folder / "manifest.json", manifest)
    return {
        "tiny": tiny_folder,
        "encoder": space,
        "static": f"static:{tiny_static}",
        "dir": tmp_path,
        "recipe": quick,
        "cross": f"cross-encoder:{tiny_cross_encoder}",
    }


MISTAKES = {
    "an unknown model kind": ("mine --collection {tiny} --source dens:x --out {dir}/made.run", "Did you mean 'dense'?"),
    "an unknown recipe key": (
        "run {recipe} --out {dir}/made idnex.factory=SQ8",
        "unknown key 'idnex'. Did you mean 'index'?",
    ),
    "an unknown objective": (
        "distill --collection {tiny} --target bm25 --document-encoder {encoder} --objective kll --out {dir}/made",
        "unknown objective 'kll'",
    ),
    "an unknown student": (
        "distill --collection {tiny} --target bm25 --document-encoder {encoder} --student bm25 --out {dir}/made",
        "a student starts from",
    ),
    "no such recipe": ("run nowhere.yaml --out {dir}/made", "unknown recipe 'nowhere.yaml'"),
    "no such collection": ("mine --collection nowhere --source bm25 --out {dir}/made.run", "no collection 'nowhere'"),
    "a model that cannot be found offline": (
        "index --collection {tiny} --documents dense:nobody/none --out {dir}/made",
        "the hub does not provide it",
    ),
    "a model folder that is not there": ("evaluate dense:{dir}/none --collection {tiny}", "no model folder"),
    "a recipe whose test split has no queries": (
        "run {recipe} --out {dir}/made split.test=holdout",
        "has no split 'holdout'",
    ),
    "a recipe whose training split has no queries": (
        "run {recipe} --out {dir}/made split.train=unjudged",
        "has no queries in split 'unjudged'",
    ),
    "a split without queries": (
        "mine --collection {tiny} --split holdout --source bm25 --out {dir}/made.run",
        "has no split 'holdout'",
    ),
    "a run with NaN": (
        "distill --collection {tiny} --target run:{dir}/nan.run --document-encoder {encoder} --out {dir}/made",
        "line 1: score nan",
    ),
    "a run with NaN to evaluate": ("evaluate run:{dir}/nan.run --collection {tiny}", "line 1: score nan"),
    "a run with unknown ids": (
        "distill --collection {tiny} --target run:{dir}/strange.run --document-encoder {encoder} --out {dir}/made",
        "which lacks 2 documents",
    ),
    "candidates with unknown ids": (
        "score --collection {tiny} --candidates {dir}/strange.run --teacher bm25 --out {dir}/made.run",
        "which lacks 2 documents",
    ),
    "an empty run": ("evaluate run:{dir}/empty.run --collection {tiny}", "is empty"),
    "one candidate per query": (
        "distill --collection {tiny} --target run:{dir}/single.run --document-encoder {encoder} --out {dir}/made",
        "needs at least two",
    ),
    "one candidate per query in a recipe": (
        "run {recipe} --out {dir}/made teacher=run:{dir}/single.run students.student.stages.0.objectives=kl",
        "needs at least two",
    ),
    "all scores equal": (
        "distill --collection {tiny} --target run:{dir}/flat.run --document-encoder {encoder} --out {dir}/made",
        "equal",
    ),
    "all scores equal in a recipe": (
        "run {recipe} --out {dir}/made teacher=run:{dir}/flat.run students.student.stages.0.objectives=kl",
        "equal",
    ),
    "queries of another model": ("search {dir}/index star --queries {static}", "do not belong among documents by"),
    "an index for queries of another model": (
        "index --collection {tiny} --documents {encoder} --queries {static} --out {dir}/made",
        "do not belong among documents by",
    ),
    "a factory that does not parse": (
        "index --collection {tiny} --documents {encoder} --factory Flatt --out {dir}/made",
        "does not parse",
    ),
    "too few documents for a factory": (
        "index --collection {tiny} --documents {encoder} --factory OPQ4,PQ4 --out {dir}/made",
        "needs at least 256 vectors",
    ),
    "an index that was cut": ("search {dir}/cut star", "cut short or altered"),
    "no index": ("search {dir}/none star", "no index folder"),
    "a store of another teacher": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher {cross} --store {dir}/store "
        "--out {dir}/made.run",
        "belongs to another",
    ),
    "k larger than the corpus": (
        "search {dir}/index star --k 61",
        "k=61: the corpus has 60 documents; choose k from 1 to 60",
    ),
    "k of nothing": ("search {dir}/index star --k 0", "k=0: the corpus has 60 documents"),
    "an empty query": ("search {dir}/index star ''", "query 2 of 2 is empty"),
    "a blank query": ("search {dir}/index '  '", "query 1 of 1 is empty"),
    "weights that are not one each": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher bm25 --weight 1 --weight 2 "
        "--out {dir}/made.run",
        "2 weights for 1 teachers",
    ),
    "a filter that is none": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher bm25 --filter share=0.9 --out {dir}/made.run",
        "--filter share=0.9: unknown rule 'share'",
    ),
    "a filter without a number": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher bm25 --filter margin --out {dir}/made.run",
        "--filter margin: margin: Input should be a valid number",
    ),
    "a filter and a budget": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher bm25 --filter margin=1 --budget 9 "
        "--out {dir}/made.run",
        "which --budget may not buy",
    ),
    "a share of logits": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher {cross} --filter relative=0.9 "
        "--out {dir}/made.run",
        "a share has no meaning for a cross-encoder's logits",
    ),
    "a filter of unlabeled queries": (
        "score --collection {tiny} --candidates {dir}/tests.run --teacher bm25 --filter margin=1 --out {dir}/made.run",
        "no query of the candidates has labels in",
    ),
    "an unknown fusion": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher bm25 --teacher {encoder} "
        "--fusion zscor --out {dir}/made.run",
        "Did you mean 'zscore'?",
    ),
    "an unknown measure": ("evaluate bm25 --collection {tiny} --measure ndgc@10", "unknown measure 'ndgc@10'"),
    "a run file of another ending": (
        "mine --collection {tiny} --source bm25 --out {dir}/made.csv",
        "unknown run file ending '.csv'",
    ),
    "an unwritable place for a recipe": ("run {recipe} --out {dir}/file/made", "cannot write to"),
    "an unwritable place for a run": (
        "mine --collection {tiny} --source bm25 --out {dir}/file/made.run",
        "cannot write to",
    ),
    "an unwritable place for a student": (
        "distill --collection {tiny} --target bm25 --document-encoder {encoder} --out {dir}/file/made",
        "cannot write to",
    ),
    "an unwritable place for an index": (
        "index --collection {tiny} --documents {encoder} --out {dir}/file/made",
        "cannot write to",
    ),
    "an unwritable place for scores": (
        "score --collection {tiny} --candidates {dir}/good.run --teacher {cross} "
        "--store {dir}/file/s --out {dir}/made.run",
        "cannot write to",
    ),
}


class TestMistakes:
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_one_line_and_status_2_and_nothing_is_left(self, places, call, mistake):
        line, message = MISTAKES[mistake]
        before = sorted(path.name for path in places["dir"].iterdir())
        status, out, err = call(*(word.format(**places) for word in shlex.split(line)))
        assert status == 2, (out, err)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err
        assert [path for path in (places["dir"] / "made").rglob("*") if path.is_file()] == []
        shutil.rmtree(places["dir"] / "made", ignore_errors=True)
        assert sorted(path.name for path in places["dir"].iterdir()) == before

    def test_vectors_of_another_dimension(self, places, call, tmp_path, capsys):
        from retrodistill.core.manifest import Manifest
        from retrodistill.students import dense_student, save_student

        space = load_encoder(places["encoder"])
        narrow = dense_student(places["encoder"].removeprefix("dense:"), dimension=8)
        save_student(narrow, Manifest("student", about={"query_space": space.document_space}), tmp_path / "narrow")
        capsys.readouterr()
        status, out, err = call("search", places["dir"] / "index", "star", "--queries", f"dense:{tmp_path / 'narrow'}")
        assert (status, out) == (2, "")
        assert "have 8 dimensions, the documents by" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments",
        [["search"], ["index", "--factry", "Flat"], ["nothing"], ["mine", "--depth", "many"], ["mine", "--depth", "0"]],
        ids=" ".join,
    )
    def test_a_command_that_is_not_understood_is_status_2_too(self, call, arguments):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert "Traceback" not in err


class TestFullDisks:
    @pytest.fixture
    def full(self, monkeypatch):
        """Every rename into place fails, as it does where nothing more can be written."""

        def replace(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("retrodistill.core.files.os.replace", replace)

    @pytest.mark.parametrize("command", ["mine", "index", "distill", "run"])
    def test_one_line_and_nothing_half_written(self, call, tiny_folder, tiny_model, quick, tmp_path, full, command):
        space = f"dense:{tiny_model}"
        asked = {
            "mine": ["--collection", tiny_folder, "--source", space, "--out", tmp_path / "made.run"],
            "index": ["--collection", tiny_folder, "--documents", space, "--out", tmp_path / "made"],
            "distill": [
                "--collection",
                tiny_folder,
                "--target",
                space,
                "--document-encoder",
                space,
                "--out",
                tmp_path / "made",
            ],
            "run": [quick, "--out", tmp_path / "made"],
        }[command]
        status, out, err = call(command, *asked)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert re.match(r"error: cannot write .*: no space left on device; nothing half-written was left there\.$", err)
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".lock", ".yaml")]
        assert left == []

    def test_an_error_that_no_check_has_caught(self, call, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device", "/somewhere/file")

        monkeypatch.setattr("retrodistill.data.load_collection", full)
        status, _, err = call("mine", "--collection", "demo", "--source", "bm25", "--out", "x.run")
        assert (status, err) == (2, "error: cannot read or write /somewhere/file: no space left on device.\n")

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("malloc of size 33554432 failed"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ],
        ids=["Arrow", "torch", "CUDA"],
    )
    def test_too_little_memory(self, call, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("retrodistill.data.load_collection", fail)
        status, _, err = call("mine", "--collection", "demo", "--source", "bm25", "--out", "x.run")
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: there is not enough memory ({error}")

    @pytest.mark.xdist_group("children")
    def test_a_real_limit_on_files(self, quick, tmp_path):
        """The system refuses every file beyond 16 KB: stores, checkpoints, students."""
        limited = (
            "import resource, signal, sys\n"
            "from retrodistill.cli import main\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
            "main(sys.argv[1:])\n"
        )
        status, out, err = Child(limited, "run", quick, "--out", tmp_path / "out", "--json").wait()
        assert (status, out) == (2, ""), err
        assert err.count("\n") == 1
        assert err.startswith("error: cannot write ")
        assert not (tmp_path / "out" / "results.json").exists()
