import json

import pytest

from retrodistill.runs import Run, write_run


@pytest.fixture
def evaluated(call, tiny_folder, tiny_model, tmp_path):
    """An evaluated folder of two systems on the tiny collection."""
    systems = ["bm25", f"dense:{tiny_model}"]
    assert call("evaluate", *systems, "--collection", tiny_folder, "--out", tmp_path / "out")[0] == 0
    return tmp_path / "out" / tiny_folder.name


class TestCompare:
    def test_all_systems_of_a_folder(self, call, evaluated, tiny_folder, tiny_model):
        status, out, _ = call("compare", evaluated, "--collection", tiny_folder, "--json")
        made = json.loads(out)
        assert status == 0
        assert (made["measure"], made["queries"]) == ("ndcg@10", 12)
        (one,) = made["comparisons"]
        assert (one["a"], one["b"]) == (f"dense:{tiny_model}", "bm25")
        assert {"difference", "interval", "p", "p_holm", "smallest", "wins", "ties", "losses"} <= one.keys()
        assert all(row["text"] for row in one["changed"])

    def test_systems_of_a_folder_by_name_though_it_holds_colons(self, call, evaluated, tiny_model):
        named = [f"{evaluated}:dense:{tiny_model}", f"{evaluated}:bm25"]
        status, out, _ = call("compare", *named, "--measure", "map@1000", "--json")
        assert status == 0
        assert [row["name"] for row in json.loads(out)["systems"]] == [f"dense:{tiny_model}", "bm25"]

    def test_a_recorded_system_with_one_that_is_measured_now(self, call, evaluated, tiny_folder, tmp_path):
        write_run(Run.from_dict({"t0": {"d0": 1.0}}), tmp_path / "mine.run")
        asked = ["compare", f"{evaluated}:bm25", f"run:{tmp_path / 'mine.run'}", "--collection", tiny_folder]
        status, out, _ = call(*asked, "--shown", 1)
        assert status == 0
        assert "mine.run − bm25" in out
        assert "queries that changed most" in out
        assert "11 of 12 queries have no results and count 0 (" in " ".join(out.split())

    def test_one_name_in_two_folders_is_told_apart(self, call, evaluated, tiny_folder, tmp_path):
        again = ["evaluate", "bm25", "--collection", tiny_folder, "--depth", 1, "--out", tmp_path / "second"]
        assert call(*again)[0] == 0
        second = tmp_path / "second" / tiny_folder.name
        status, out, _ = call("compare", f"{evaluated}:bm25", second, "--json")
        assert status == 0
        assert [row["name"] for row in json.loads(out)["systems"]] == [f"{evaluated}:bm25", f"{second}:bm25"]

    def test_agreement_reads_the_folders_runs(self, call, evaluated, tiny_folder, tiny_model):
        asked = ["--collection", tiny_folder, "--teacher", f"dense:{tiny_model}"]
        status, out, _ = call("compare", evaluated, *asked, "--json")
        assert status == 0
        found = json.loads(out)["agreement"]
        assert found[f"dense:{tiny_model}"]["overlap@10"] == 1
        assert found["bm25"]["overlap@10"] < 1
        assert "rank-biased" in call("compare", evaluated, *asked)[1]

    def test_the_folder_of_a_recipe(self, call, quick, tmp_path):
        assert call("run", quick, "--out", tmp_path / "made", "--json")[0] == 0
        status, out, _ = call("compare", f"{tmp_path / 'made'}:bm25", f"{tmp_path / 'made'}:student", "--json")
        assert status == 0
        assert json.loads(out)["queries"] == 12


class TestMistakes:
    @pytest.mark.parametrize(
        ("named", "message"),
        [
            (["{}:bm25"], "1 system to compare ('bm25'); give at least two"),
            (["{}:bm52", "{}:bm25"], "Did you mean 'bm25'?"),
            (["bm25", "{}"], "bm25 is not an evaluated folder and would be measured now; give --collection"),
            (["{}/.."], "choose one of its collections: "),
            (["{}/runs"], "no per-query.parquet in "),
            (["{}", "--measure", "ndcg@7"], "Did you mean 'ndcg@10'?"),
            (["{}", "--teacher", "bm25"], "agreement with a teacher needs the documents; give --collection"),
        ],
    )
    def test_one_line_and_status_2(self, call, evaluated, named, message):
        status, out, err = call("compare", *(one.format(evaluated) for one in named))
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert message in err

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            (["{}:bm52", "bm25"], "Did you mean 'bm25'?"),
            (["{}", "bm25", "--measure", "ndcg@7"], "Did you mean 'ndcg@10'?"),
        ],
    )
    def test_mistakes_are_found_before_anything_is_measured(self, call, evaluated, tiny_folder, named, message):
        status, _, err = call("compare", *(one.format(evaluated) for one in named), "--collection", tiny_folder)
        assert (status, message in err, "measuring" in err) == (2, True, False)

    def test_two_systems_on_different_queries(self, call, evaluated, tiny_folder, tmp_path):
        on_dev = ["evaluate", "bm25", "--collection", tiny_folder, "--split", "dev", "--out", tmp_path / "dev"]
        assert call(*on_dev)[0] == 0
        status, out, err = call("compare", f"{evaluated}:bm25", tmp_path / "dev" / tiny_folder.name)
        assert (status, out) == (2, "")
        assert "were measured on different queries: 12 only in" in err
        assert "'q54'" in err

    def test_a_folder_that_is_cut_short(self, call, evaluated):
        file = evaluated / "per-query.parquet"
        file.write_bytes(file.read_bytes()[:50])
        status, _, err = call("compare", evaluated)
        assert status == 2
        assert "per-query.parquet is damaged" in err
