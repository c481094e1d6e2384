import json
import shutil

import pytest

from retrodistill.evaluation.results import Results
from retrodistill.runs import Run, read_run, write_run


@pytest.fixture
def other_folder(tiny_folder, tmp_path):
    """The tiny collection under another name."""
    return shutil.copytree(tiny_folder, tmp_path / "other")


class TestOneCollection:
    def test_json_is_a_results_json(self, call, tiny_folder, tiny_model):
        status, out, err = call("evaluate", "bm25", f"dense:{tiny_model}", "--collection", tiny_folder, "--json")
        assert (status, err) == (0, "")
        results = Results.from_json(json.loads(out))
        assert [system.name for system in results.systems] == ["bm25", f"dense:{tiny_model}"]
        assert results.queries == 12
        assert results.command.startswith("retrodistill ")
        assert {"ndcg@10", "map@1000", "recall@1000", "hole@10"} <= json.loads(out)["systems"][0].keys()

    def test_a_folder_holds_trec_runs(self, call, tiny_folder, tmp_path):
        asked = ["evaluate", "bm25", "--collection", tiny_folder, "--out", tmp_path / "out"]
        status, out, _ = call(*asked)
        assert status == 0
        run = read_run(tmp_path / "out" / tiny_folder.name / "runs" / "bm25.run")
        assert len(run.query_ids) == 12
        assert "retrodistill " in (tmp_path / "out" / tiny_folder.name / "report.html").read_text()
        assert call(*asked)[1] == out

    def test_a_reranker_agreement_and_cost(self, call, tiny_folder, tiny_model):
        space = f"dense:{tiny_model}"
        asked = ["--collection", tiny_folder, "--teacher", space, "--cost", "--threads", 1]
        status, out, _ = call("evaluate", f"rerank@5:{space}@bm25", "bm25", *asked)
        assert status == 0
        assert "rank-biased" in out
        assert "queries/s" in out


class TestSeveral:
    def test_beirs_table_and_its_mean(self, call, tiny_folder, other_folder):
        asked = ["evaluate", "bm25", "--collection", tiny_folder, "--collection", other_folder]
        status, out, _ = call(*asked)
        assert status == 0
        assert [line.split()[0] for line in out.splitlines()[:5] if "─" not in line] == [
            "nDCG@10", tiny_folder.name, "other", "mean",
        ]  # fmt: skip
        content = json.loads(call(*asked, "--json")[1])
        assert set(content) == {"collections", "table", "means"}
        assert content["table"]["other"] == content["means"] == content["table"][tiny_folder.name]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["bm25", "--split", "holdout"], "has no split 'holdout'; splits: train (42 queries), dev (6 queries)"),
            (["bm25", "bm25"], "system 'bm25' is given twice"),
            (["rerank:bm25"], "write rerank:TEACHER@SOURCE"),
            (["cross-encoder:x"], "scores pairs and cannot search"),
            (["bm25", "--teacher", "dens:x"], "Did you mean 'dense'?"),
            (["run:{}/strange.run"], "the collection, which lacks 1 queries ('nobody')"),
            (["run:{}/twice.run"], "1 pairs appear twice"),
            (["run:{}/nan.run"], "score nan of query 't0'"),
        ],
    )
    def test_one_line_and_status_2(self, call, tiny_folder, tmp_path, options, message):
        write_run(Run.from_dict({"nobody": {"d0": 1.0}}), tmp_path / "strange.run")
        (tmp_path / "twice.run").write_text("t0 Q0 d0 1 2.0 x\nt0 Q0 d0 2 1.0 x\n")
        (tmp_path / "nan.run").write_text("t0 Q0 d0 1 nan x\n")
        said = [option.format(tmp_path) for option in options]
        status, out, err = call("evaluate", *said, "--collection", tiny_folder, "--out", tmp_path / "made")
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith("error: ")
        assert err.count("error") == 1
        assert message in err
        assert not (tmp_path / "made" / tiny_folder.name / "results.json").exists()

    def test_no_judgments_at_all(self, call, tiny_folder, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "bare")
        shutil.rmtree(folder / "qrels")
        status, out, err = call("evaluate", "bm25", "--collection", folder)
        assert (status, out) == (2, "")
        assert err == (
            "error: collection bare has no relevance judgments, so there is no quality to measure; give a teacher for "
            "agreement with it, or ask for cost.\n"
        )
        status, out, _ = call("evaluate", "bm25", "--collection", folder, "--teacher", "bm25")
        assert status == 0
        assert "note: bare has no relevance judgments" in out
