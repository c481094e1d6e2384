import inspect
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from children import MAIN, Child

from retrodistill import cli
from retrodistill.core.json_files import read_json
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.runs import Run, read_run, write_run

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "demo",
    "run",
    "keys",
    "mine",
    "score",
    "distill",
    "index",
    "check",
    "search",
    "export",
    "push",
    "evaluate",
    "compare",
    "methods",
)


def program(*arguments, **options):
    command = [sys.executable, "-m", "retrodistill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_lists_its_options(self, call, command):
        status, out, _ = call(command, "--help")
        assert status == 0
        function = "run_command" if command == "run" else command
        parameters = next(one.callback for one in cli.app.registered_commands if one.callback.__name__ == function)
        for name in inspect.signature(parameters).parameters:
            option = {"as_json": "json", "place": "index", "bytes_wanted": "bytes", "filter_by": "filter"}.get(
                name, name
            ).replace("_", "-")
            if name != "context":  # typer's own
                assert re.search(rf"--{option}\b|{option.upper()}", out, re.IGNORECASE), name

    def test_it_loads_no_heavy_library(self):
        heavy = "'torch', 'faiss', 'transformers', 'datasets'"
        checked = f"import sys, retrodistill.cli; print([name for name in ({heavy}) if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_the_command_itself_lists_its_verbs(self):
        done = program("--help")
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)

    def test_methods_lists_every_kind_with_a_line(self, call):
        from retrodistill.encoders.names import KINDS
        from retrodistill.objectives.registry import OBJECTIVES

        status, out, _ = call("methods")
        assert status == 0
        for name in (*KINDS, *OBJECTIVES, "zscore", "reciprocal-rank", "stratified"):
            assert re.search(rf"^  {re.escape(name)} +\S", out, re.MULTILINE), name


class TestTheWayThrough:
    def test_from_candidates_to_measures(self, call, tiny_folder, tiny_model, tmp_path):
        space, base = f"dense:{tiny_model}", ["--collection", tiny_folder]
        mined, scored = tmp_path / "mined.run", tmp_path / "mined-scored.run"
        set_quiet(False)

        def following(*arguments):
            """The commands that a command ends with, as arguments."""
            status, _, err = call(*arguments)
            assert status == 0, err
            return [shlex.split(line)[2:] for line in err.splitlines() if line.startswith("next: ")]

        [then] = following("mine", *base, "--source", "bm25", "--source", space, "--depth", 10, "--out", mined)
        assert then == [
            "score",
            *map(str, base),
            "--candidates",
            str(mined),
            "--teacher",
            "TEACHER",
            "--out",
            str(scored),
        ]
        pool = read_run(mined)
        assert len(pool.query_ids) == 42

        teachers = ["--teacher", "bm25", "--teacher", space, "--weight", 0.3, "--weight", 0.7]
        store = ["--store", tmp_path / "store"]
        status, out, _ = call("score", *base, "--candidates", mined, *teachers, "--out", scored, *store, "--dry-run")
        assert status == 0
        assert re.search(r"^bm25: 0 pairs left, about 0 s$", out, re.MULTILINE)
        assert re.search(rf"^{re.escape(space)}: \d+ texts left, about \d+ s$", out, re.MULTILINE)
        assert not scored.exists()
        [then] = following("score", *base, "--candidates", mined, *teachers, "--out", scored, *store)
        assert len(read_run(scored)) == len(pool)

        student, index = tmp_path / "student", tmp_path / "student-index"
        [then] = following(*then, "--document-encoder", space, "--out", student)
        [then, last] = following(*then)
        assert following(*then) == []
        assert last == ["serve", str(index)]

        status, out, _ = call("search", index, "star planet", "violin", "--k", 2, "--json")
        rows = json.loads(out)
        assert status == 0
        assert [row["query"] for row in rows] == ["star planet"] * 2 + ["violin"] * 2
        status, out, _ = call("search", index, "star planet", "--k", 1, "--collection", tiny_folder)
        assert re.fullmatch(r"0\.\d{4}  d\d+  \w.*\n", out)

        status, out, _ = call("evaluate", index, "bm25", space, *base, "--json")
        result = json.loads(out)
        assert status == 0
        assert [row["name"] for row in result["systems"]] == [str(index), "bm25", space]
        assert result["queries"] == 12
        status, out, _ = call("evaluate", index, *base, "--measure", "ndcg@3")
        assert "nDCG@3" in out

    def test_the_next_command_is_of_the_same_passages(self, call, tiny_folder, tmp_path):
        set_quiet(False)
        cut = ["--passages", "4,1"]
        mined = ["mine", "--collection", tiny_folder, "--source", "bm25", "--depth", 3, "--out", tmp_path / "a.run"]
        _, _, err = call(*mined, *cut)
        then = shlex.split(err.rpartition("next: retrodistill ")[2])
        assert then[-2:] == cut
        status, _, err = call(*["bm25" if word == "TEACHER" else word for word in then])
        assert status == 0, err
        assert shlex.split(err)[-2:] == cut

    def test_a_recipe_is_tuned(self, call, quick, tmp_path):
        pytest.importorskip("optuna")
        key = "students.student.stages.0.training.learning_rate"
        set_quiet(False)
        tuned = ["tune", quick, "--vary", f"{key}=[0.01, 0.1]", "--out", tmp_path / "out"]
        status, out, err = call(*tuned, "--trials", 2)
        assert status == 0, err
        rows = re.findall(r"^trial +(\d) +agreement (0\.\d{4}) +learning_rate=(0\.01|0\.1)$", out, re.MULTILINE)
        assert sorted(rows, key=lambda row: -float(row[1])) == rows
        assert err.splitlines()[-1] == f"next: retrodistill run {tmp_path / 'out' / 'best.yaml'} --out out/quick-best"
        status, out, _ = call(*tuned, "--trials", 1, "--json")
        assert [trial["number"] for trial in json.loads(out)["trials"]] == [0, 1]

    @pytest.mark.parametrize("rule", ["margin=0.02", "relative=0.9"])
    def test_a_filter_of_false_negatives(self, call, rule, tiny, tiny_folder, tiny_model, tmp_path):
        space, pool = load_encoder(f"dense:{tiny_model}"), tmp_path / "pool.run"
        write_run(Run.from_dict({query: {f"d{at}": 1.0 for at in range(12)} for query in ("q0", "q20", "t0")}), pool)
        asked = ["--collection", tiny_folder, "--candidates", pool, "--out", tmp_path / "a.run"]
        set_quiet(False)
        status, _, err = call("score", *asked, "--teacher", space.name, "--store", tmp_path / "store", "--filter", rule)
        assert status == 0
        kept = read_run(tmp_path / "a.run").to_dict()
        assert len(kept["t0"]) == 12  # a test query: its labels are not used
        dropped = 0
        for query, positive in (("q0", "d0"), ("q20", "d20")):  # d20 joins the candidates
            listed = sorted({positive, *(f"d{at}" for at in range(12))})
            documents = [tiny.documents[document] for document in listed]
            scores = space.encode(documents, "document") @ space.encode([tiny.queries[query]], "query")[0]
            best = scores[listed.index(positive)]
            limit = best - 0.02 if rule.startswith("margin") else 0.9 * best
            expected = {document for document, score in zip(listed, scores, strict=True) if score <= limit}
            assert set(kept[query]) == expected | {positive}
            dropped += len(listed) - len(kept[query])
        assert dropped > 0
        assert f"dropped {dropped} of 37 candidates; 2 of 3 queries have a labeled document" in err

    def test_a_filter_of_recorded_scores(self, call, tiny_folder, tmp_path):
        recorded = {"q0": {"d0": 0.5, "d1": 0.6, "d2": 0.1}, "q1": {"d2": 0.5, "d3": 0.6}}
        write_run(Run.from_dict(recorded), tmp_path / "pool.run")
        asked = ["--collection", tiny_folder, "--candidates", tmp_path / "pool.run", "--out", tmp_path / "a.run"]
        assert call("score", *asked, "--teacher", f"run:{tmp_path / 'pool.run'}", "--filter", "margin=0")[0] == 0
        assert {query: set(kept) for query, kept in read_run(tmp_path / "a.run").to_dict().items()} == {
            "q0": {"d0", "d2"},
            "q1": {"d2", "d3"},  # its labeled document has no score
        }

    def test_a_recipe_and_its_plan(self, call, quick, tmp_path):
        status, out, _ = call("run", quick, "--out", tmp_path / "out", "--dry-run")
        assert status == 0
        assert re.search(r"^embed documents with .*: 60 texts left, about \d+ s, ", out, re.MULTILINE)
        assert re.search(r"^total: about \d+ s, ", out, re.MULTILINE)
        status, out, _ = call("run", quick, "--out", tmp_path / "out", "index.factory=SQ8", "--json")
        assert status == 0
        assert json.loads(out) == read_json(tmp_path / "out" / "results.json")
        assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["index"]["factory"] == "SQ8"
        set_quiet(False)
        status, out, err = call("run", quick, "--out", tmp_path / "out", "index.factory=SQ8")
        assert status == 0
        assert "student" in out
        assert out.splitlines()[-1].endswith("report.html")
        assert err.splitlines()[-1] == f"next: retrodistill serve {tmp_path / 'out'}"
        status, out, _ = call("run", quick, "--out", tmp_path / "out", "--dry-run", "--json")
        assert json.loads(out)["steps"][1]["items"] == 0


class TestMistakes:
    @pytest.mark.slow
    def test_in_a_process_of_its_own_nothing_else_is_said(self, tiny_folder, tmp_path):
        done = program(
            "index", "--collection", tiny_folder, "--documents", "dense:nobody/none", "--out", tmp_path / "made"
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: model 'nobody/none' is not a folder here")
        assert not (tmp_path / "made").exists()


@pytest.mark.xdist_group("children")
class TestStopping:
    def test_control_c_says_how_to_resume(self, quick, tmp_path):
        slow = quick.read_text().replace("epochs: 1", "epochs: 4000")
        (tmp_path / "slow.yaml").write_text(slow)
        process = Child(MAIN, "run", tmp_path / "slow.yaml", "--out", tmp_path / "o", "--json")
        deadline = time.monotonic() + 90
        while not list((tmp_path / "o").glob(".training/*")):
            assert time.monotonic() < deadline, "training did not begin"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        status, _, err = process.wait()
        assert status == 130
        assert err.splitlines()[-1].startswith("stopped; run the same command again")
        assert "Traceback" not in err
