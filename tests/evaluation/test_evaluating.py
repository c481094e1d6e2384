import copy
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.evaluation.results import Results
from retrodistill.evaluation.systems import read_folder, read_per_query
from retrodistill.indexes import build_index
from retrodistill.report.tables import evaluation_text
from retrodistill.runs import Run, read_run


class TestFigures:
    def test_all_of_beirs_measures_equal_its_own_evaluation(self, tiny, space):
        made = evaluate(space, tiny)
        qrels = tiny.relevance("test").to_dict()
        wanted = EvaluateRetrieval.evaluate(copy.deepcopy(qrels), made.runs[space].to_dict(), [10, 100, 1000])
        theirs = {name.lower(): value for part in wanted for name, value in part.items()}
        for name in ("ndcg@10", "map@1000", "recall@10", "recall@100", "recall@1000"):
            assert made.means[space][name] == pytest.approx(theirs[name], abs=1e-5), name

    def test_a_run_with_more_queries_and_documents_is_measured_as_by_trec_eval(self, tiny):
        scores = {"t0": {"deleted": 3.0, "d0": 2.0}, "t1": {"d1": 1.0}}
        run, more = Run.from_dict(scores), Run.from_dict({**scores, "topic": {"d5": 1.0}})
        made = evaluate({"run": run, "more": more}, tiny, measures=["mrr@10"], teacher="bm25")
        values = dict(zip(*made.per_query["more"].to_pydict().values(), strict=True))
        assert (values["t0"], values["t1"]) == (0.5, 1.0)
        assert made.means["more"] == made.means["run"]
        noted = [note for note in made.results.notes if "'deleted'" in note]
        assert ["'topic'" in note for note in noted] == [False, True]

    def test_shown_queries_may_have_documents_of_another_corpus(self, tiny, tmp_path):
        run = Run.from_dict({query: {"deleted": 2.0, "d0": 1.0} for query in tiny.split("test").ids})
        evaluate({"run": run, "bm25": "bm25"}, tiny, out=tmp_path)
        shown = json.loads((tmp_path / "results.json").read_text())["examples"][0]["teacher"]
        assert [(hit["document_id"], bool(hit["text"])) for hit in shown] == [("deleted", False), ("d0", True)]

    def test_a_document_that_is_the_query_takes_no_place(self):
        documents = {"a": "star planet", "b": "star", "c": "bread"}
        collection = Collection.from_parts("self", documents, {"a": "star planet"}, {"test": {"a": {"b": 1}}})
        made = evaluate("bm25", collection, depth=1, measures=["recall@1"])
        assert made.runs["bm25"].to_dict()["a"].keys() == {"b"}
        assert made.means["bm25"]["recall@1"] == 1
        assert [note for note in made.results.notes if "1 of 1 queries" in note]

    @pytest.mark.parametrize(("same_id", "value"), [(None, 1.0), ("auto", 1.0), ("keep", 1.0), ("drop", 0.0)], ids=str)
    def test_a_document_that_shares_an_id_with_its_query_counts(self, same_id, value):
        documents = {str(number): f"star{number} planet" for number in range(3)}
        queries = {str(number): f"star{number}" for number in range(3)}
        judged = {query: {query: 1} for query in queries}
        collection = Collection.from_parts("apart", documents, queries, {"test": judged})
        systems = {"bm25": "bm25", "run": Run.from_dict({query: {query: 1.0} for query in queries})}
        systems["rerank"] = "rerank:bm25@bm25"
        if same_id == "drop":  # everything but BM25's other documents is left out
            systems = {"bm25": "bm25"}
        made = evaluate(systems, collection, measures=["recall@1", "AP"], same_id=same_id)
        assert {name: means["recall@1"] for name, means in made.means.items()} == dict.fromkeys(systems, value)
        assert any("3 of 3 queries" in note for note in made.results.notes) == (same_id == "drop")

    def test_an_unknown_value_of_same_id(self, tiny):
        with pytest.raises(UserError, match="keep"):
            evaluate("bm25", tiny, same_id="keeps")

    def test_measures_deeper_than_the_run_are_not_claimed(self, tiny):
        assert "recall@1000" not in evaluate("bm25", tiny, depth=100).means["bm25"]
        assert "recall@100" in evaluate("bm25", tiny, depth=100).means["bm25"]

    def test_one_that_is_asked_for_all_the_same_has_a_note(self, tiny):
        made = evaluate("bm25", tiny, measures=["recall@1000", "ndcg@10"], depth=20)
        assert made.results.notes == [
            "recall@1000: only 20 documents a query were retrieved (depth), so it counts no deeper."
        ]

    def test_queries_without_results_count_0(self, tiny):
        made = evaluate({"one": Run.from_dict({"t0": {"d0": 1.0}})}, tiny)
        lacking = [query for query in tiny.split("test").ids if query != "t0"][:3]
        assert len(made.per_query["one"]) == made.results.queries == 12
        assert made.results.notes == [
            f"one: 11 of 12 queries have no results and count 0 ({', '.join(map(repr, lacking))} and 8 more)."
        ]
        assert np.count_nonzero(made.per_query["one"]["ndcg@10"].to_numpy()) <= 1


class TestResults:
    def test_have_the_form_of_a_results_json(self, tiny, space):
        content = evaluate(["bm25", space], tiny, measures=["ndcg@10", "map@1000", "ndcg@3"]).results
        content = json.loads(json.dumps(content.to_json()))
        again = Results.from_json(content)
        assert (again.collection, again.split, again.queries) == (tiny.name, "test", 12)
        assert content["systems"][0]["map@1000"] == again.system("bm25").map1000 > 0
        assert set(content["systems"][0]["measures"]) == {"ndcg@3"}
        assert again.system(space).documents_by == again.system(space).queries_by == space
        assert again.system(space).bytes_per_document == 4 * 32

    def test_an_index_names_both_its_models(self, tiny, space):
        row = evaluate({"index": build_index(tiny, space)}, tiny).results.systems[0]
        assert (row.documents_by, row.queries_by) == (space, space)

    def test_the_text_has_a_row_a_system(self, tiny, space):
        lines = evaluation_text(evaluate(["bm25", space], tiny)).splitlines()
        assert lines[0].split()[:3] == ["system", "nDCG@10", "MRR@10"]
        assert lines[2].startswith("bm25")  # after the rule

    def test_say_what_is_odd_in_the_data_and_what_they_were_made_from(self, space):
        documents = {"a": "star planet", "b": "star", "c": "bread"}
        judged = {"test": {"q": {"a": 1, "elsewhere": 1}}}
        collection = Collection.from_parts("odd", documents, {"q": "star"}, judged)
        made = evaluate(["bm25", space], collection, teacher="bm25")
        assert collection.warnings
        assert made.results.notes == collection.warnings
        assert {"collection", "depth", "system bm25", f"system {space}", "teacher"} <= made.results.provenance.keys()


class TestFolder:
    def test_holds_runs_values_and_results(self, tiny, space, tmp_path):
        made = evaluate({"bm25": "bm25", "a model": space}, tiny, out=tmp_path)
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a-model.run", "bm25.run"]
        assert read_run(tmp_path / "runs" / "bm25.run").fingerprint == made.runs["bm25"].fingerprint
        values = pq.read_table(tmp_path / "per-query.parquet")
        assert values.column_names[:3] == ["system", "query_id", "ndcg@10"]
        assert read_per_query(tmp_path)["a model"].equals(made.per_query["a model"])
        assert Results.from_json(json.loads((tmp_path / "results.json").read_text())).queries == 12

    def test_systems_that_were_measured_before_stay_beside_the_new_ones(self, tiny, space, tmp_path):
        first = evaluate({"bm25": "bm25"}, tiny, out=tmp_path)
        second = evaluate({"model": space}, tiny, out=tmp_path, cost_threads=1)
        values = read_per_query(tmp_path)
        assert list(values) == ["bm25", "model"]
        assert values["bm25"].equals(first.per_query["bm25"])
        assert values["model"].equals(second.per_query["model"])
        assert [row.name for row in second.results.systems] == ["model"]
        written = Results.from_json(json.loads((tmp_path / "results.json").read_text()))
        assert written.systems == [*first.results.systems, *second.results.systems]
        assert [(one["a"], one["b"]) for one in written.comparisons] == [("model", "bm25")]
        assert written.sides == ["bm25", "model"]

    def test_agreement_is_of_all_that_stand_there(self, tiny, space, tmp_path):
        evaluate({"bm25": "bm25"}, tiny, out=tmp_path)
        made = evaluate({"model": space}, tiny, teacher=space, out=tmp_path)
        before, now = Results.from_json(json.loads((tmp_path / "results.json").read_text())).systems
        assert now == made.results.systems[0]
        assert now.agreement.overlap10 == 1 > before.agreement.overlap10

    def test_one_whose_run_is_gone_is_left_out(self, tiny, space, tmp_path):
        evaluate({"bm25": "bm25"}, tiny, out=tmp_path)
        (tmp_path / "runs" / "bm25.run").unlink()
        evaluate({"model": space}, tiny, out=tmp_path)
        assert list(read_per_query(tmp_path)) == ["model"]
        assert len(json.loads((tmp_path / "results.json").read_text())["systems"]) == 1

    def test_those_of_another_split_or_by_other_measures_do_not(self, tiny, space, tmp_path):
        evaluate({"bm25": "bm25"}, tiny, "dev", out=tmp_path)
        evaluate({"shallow": "bm25"}, tiny, measures=["mrr@10"], out=tmp_path)
        evaluate({"model": space}, tiny, out=tmp_path)
        assert list(read_per_query(tmp_path)) == ["model"]

    def test_a_system_that_finds_nothing_counts_0_and_is_known_again(self, tmp_path):
        strange = Collection.from_parts(
            "strange", {"a": "star", "b": "planet"}, {"q": "zzz"}, {"test": {"q": {"a": 1}}}
        )
        for _ in range(2):
            assert evaluate({"bm25": "bm25"}, strange, out=tmp_path).means["bm25"]["ndcg@10"] == 0

    def test_the_written_run_gives_the_same_figures(self, tiny, space, tmp_path):
        made = evaluate({"model": space}, tiny, out=tmp_path)
        again = evaluate({"again": f"run:{tmp_path / 'runs' / 'model.run'}"}, tiny)
        assert again.means["again"] == made.means["model"]

    def test_what_was_measured_is_not_measured_again(self, tiny, space, tmp_path, monkeypatch):
        first = evaluate(["bm25", space], tiny, out=tmp_path)
        monkeypatch.setattr("retrodistill.evaluation.evaluating.search", lambda *_: pytest.fail("searched again"))
        again = evaluate(["bm25", space], tiny, out=tmp_path)
        assert again.means == first.means
        assert again.runs[space].fingerprint == first.runs[space].fingerprint
        assert [row.bytes_per_document for row in again.results.systems] == [
            row.bytes_per_document for row in first.results.systems
        ]

    @pytest.mark.parametrize("change", ["depth", "measures", "system", "collection", "run", "half"])
    def test_anything_else_is_measured_anew(self, tiny, small, space, tmp_path, change):
        run = Run.from_dict({"t0": {"d0": 1.0, "d6": 0.5}}, "x")
        evaluate({"x": run}, tiny, out=tmp_path)
        options = {"depth": 1} if change == "depth" else {"measures": ["ndcg@3"]} if change == "measures" else {}
        collection, system = small("other") if change == "collection" else tiny, run
        if change == "system":
            system = Run.from_dict({"t0": {"d0": 1.0, "d6": 5.0}})
        if change == "collection":
            system = Run.from_dict({"q0": {"d0": 1.0}})
        if change == "run":
            (tmp_path / "runs" / "x.run").write_text("t0 Q0 d0 1 3.0 x\n")
        if change == "half":
            (tmp_path / "systems" / "x" / "manifest.json").unlink()
        made = evaluate({"x": system}, collection, out=tmp_path, **options)
        assert made.means == evaluate({"x": system}, collection, **options).means
        assert made.runs["x"].fingerprint == evaluate({"x": system}, collection, **options).runs["x"].fingerprint

    def test_an_index_in_memory_is_measured_every_time(self, tiny, space, tmp_path):
        index = build_index(tiny, space)
        before = evaluate({"index": index}, tiny, out=tmp_path).means
        index.remove(["d0", "d1", "d2"])
        assert evaluate({"index": index}, tiny, out=tmp_path).means != before

    def test_an_index_on_disk_is_known_by_its_manifest(self, tiny, space, tmp_path, monkeypatch):
        build_index(tiny, space).save(tmp_path / "index")
        evaluate({"index": str(tmp_path / "index")}, tiny, out=tmp_path / "out")
        index = build_index(tiny, space)
        index.remove(["d0"])
        index.save(tmp_path / "index")
        made = evaluate({"index": str(tmp_path / "index")}, tiny, out=tmp_path / "out")
        assert "d0" not in set(made.runs["index"].document_ids)

    def test_ids_that_no_trec_line_can_hold_are_kept_as_parquet(self, tmp_path):
        collection = Collection.from_parts(
            "odd", {"a b": "star", "c": "sun"}, {"q": "star"}, {"test": {"q": {"a b": 1}}}
        )
        assert evaluate("bm25", collection, out=tmp_path).means["bm25"]["recall@10"] == 1
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["bm25.parquet"]
        assert evaluate("bm25", collection, out=tmp_path).runs["bm25"].document_ids.tolist() == ["a b"]

    def test_names_that_would_share_a_file_are_refused(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r"'a:b' and 'a-b' would both be written to a-b\.run"):
            evaluate({"a:b": "bm25", "a-b": "bm25"}, tiny, out=tmp_path / "out")
        assert len(evaluate({"a:b": "bm25", "a-b": "bm25"}, tiny).means) == 2


class TestWithoutJudgments:
    def test_it_says_so_in_one_line(self, unjudged):
        with pytest.raises(UserError, match=r"unjudged has no relevance judgments.* give a teacher") as error:
            evaluate("bm25", unjudged)
        assert "\n" not in str(error.value)

    def test_agreement_needs_none(self, unjudged, space, tmp_path):
        made = evaluate({"model": space, "lexical": "bm25"}, unjudged, teacher="bm25", out=tmp_path)
        assert made.means == {}
        assert (made.results.split, made.results.queries) == ("all", 2)
        assert made.results.systems[1].agreement.overlap10 == 1
        assert made.results.systems[0].ndcg10 is made.results.systems[0].agreement.ceiling is None
        assert "unjudged has no relevance judgments" in evaluation_text(made)
        assert Results.from_json(json.loads((tmp_path / "results.json").read_text())).notes == made.results.notes
        again = evaluate({"model": space, "lexical": "bm25"}, unjudged, teacher="bm25", out=tmp_path)
        assert again.results.systems == made.results.systems


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "holdout"}, "has no split 'holdout'; splits: "),
            ({"split": "all"}, "has no judgments for split 'all'"),
            ({"depth": 0}, "depth 0: give at least 1"),
            ({"cost_threads": 0}, "threads 0: give at least 1"),
            ({"measures": ["ndgc@10"]}, "Did you mean 'ndcg@k'"),
            ({"teacher": "dens:x"}, "unknown model kind 'dens'"),
        ],
    )
    def test_each_is_refused_before_any_work(self, tiny, tmp_path, monkeypatch, options, message):
        monkeypatch.setattr("retrodistill.evaluation.evaluating.search", lambda *_: pytest.fail("searched"))
        with pytest.raises(UserError, match=message):
            evaluate("bm25", tiny, out=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    def test_a_system_given_twice(self, tiny):
        with pytest.raises(UserError, match="'bm25' is given twice"):
            evaluate(["bm25", "bm25"], tiny)

    @pytest.mark.parametrize(
        ("scores", "named"), [({"z": {"d0": 1.0}}, "'z'"), ({"t0": {"x": 1.0}}, "'x'"), ({"q0": {"d0": 1.0}}, "'q0'")]
    )
    def test_a_run_that_matches_nothing(self, tiny, scores, named):
        """q0 is a training query, z and x are not in the collection."""
        with pytest.raises(UserError, match=named):
            evaluate({"strange": Run.from_dict(scores)}, tiny)

    def test_a_run_with_a_pair_twice(self, tiny, tmp_path):
        (tmp_path / "twice.run").write_text("t0 Q0 d0 1 2.0 x\nt0 Q0 d0 2 1.0 x\n")
        with pytest.raises(UserError, match="1 pairs appear twice, first query 't0' with document 'd0'"):
            evaluate(f"run:{tmp_path / 'twice.run'}", tiny)


@pytest.mark.parametrize("damage", ["gone", "altered"])
@pytest.mark.parametrize("name", ["runs/bm25.run", "systems/bm25/per-query.parquet"])
def test_what_is_damaged_is_named_and_measured_again(tiny, tmp_path, name, damage, capsys):
    wanted = evaluate("bm25", tiny, measures=["ndcg@10"], out=tmp_path)
    file = next(tmp_path.rglob(name.partition("/")[2]))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink() if damage == "gone" else file.write_bytes(content)
    assert evaluate("bm25", tiny, measures=["ndcg@10"], out=tmp_path).means == wanted.means
    assert f"{file} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["per-query.parquet", "results.json"])
def test_a_file_of_another_evaluation_is_refused(tiny, tmp_path, name):
    evaluate("bm25", tiny, measures=["ndcg@10"], out=tmp_path / "one")
    evaluate("bm25", tiny, measures=["ndcg@5"], out=tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(UserError, match=rf"{name} is damaged.*evaluate again"):
        read_folder(tmp_path / "one")
    evaluate("bm25", tiny, measures=["ndcg@10"], out=tmp_path / "one")
    assert list(read_folder(tmp_path / "one")["bm25"].per_query.columns[1].to_pylist())
