import json

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.evaluation import EvaluationConfig, benchmark
from retrodistill.evaluation.benchmark import FORUMS, sources
from retrodistill.evaluation.systems import split_of, version_note
from retrodistill.report.tables import benchmark_text, evaluation_text
from retrodistill.runs import Run, write_run


def write_folder(folder, relevant):
    """A BEIR folder of three documents and a query whose relevant document is given."""
    (folder / "qrels").mkdir(parents=True)
    words = {"a": "star", "b": "star star planet", "c": "bread"}
    lines = (json.dumps({"_id": id_, "text": text}) for id_, text in words.items())
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "star planet"}))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{relevant}\t1\n")
    return folder


@pytest.fixture
def forums(tmp_path):
    """CQADupStack as a folder: BM25 finds the relevant document first in 3 forums of 12, and never in the others."""
    for number, forum in enumerate(FORUMS):
        write_folder(tmp_path / "cqadupstack" / forum, "b" if number < 3 else "c")
    return tmp_path / "cqadupstack"


class TestTable:
    def test_a_row_a_collection_and_the_mean_over_rows(self, small):
        made = benchmark("bm25", [small("one"), small("two", shift=1)])
        assert list(made.table) == ["one", "two"]
        assert made.table["one"]["bm25"]["ndcg@10"] == 1
        assert made.means["bm25"]["recall@10"] == pytest.approx((1 + 2 / 3) / 2)

    def test_cqadupstack_is_one_row_the_mean_of_its_forums_and_counts_once(self, forums, small):
        made = benchmark("bm25", [str(forums), small("other")])
        assert list(made.table) == ["cqadupstack", "other"]
        assert made.table["cqadupstack"]["bm25"]["ndcg@10"] == pytest.approx(3 / 12)
        assert made.means["bm25"]["ndcg@10"] == pytest.approx((3 / 12 + 1) / 2)
        assert [one.results.collection for one in made.evaluations][:2] == [
            "cqadupstack-android",
            "cqadupstack-english",
        ]
        assert "cqadupstack (mean of 12)" in benchmark_text(made)

    def test_the_text_is_beirs_table(self, small, space):
        lines = benchmark_text(benchmark(["bm25", space], [small("one"), small("two", shift=1)])).splitlines()
        assert lines[0].split()[:2] == ["nDCG@10", "bm25"]
        assert [line.split()[0] for line in lines[2:4]] == ["one", "two"]
        assert lines[4].startswith("mean of 2")

    def test_one_collection_reads_as_itself(self, small):
        made = benchmark("bm25", [small("one")])
        assert benchmark_text(made) == evaluation_text(made.evaluations[0])
        assert len(made.evaluations[0].runs) == 1

    def test_a_collection_without_judgments_has_no_row(self, small, unjudged):
        made = benchmark("bm25", [small("one"), unjudged], EvaluationConfig(teacher="bm25"))
        assert list(made.table) == ["one"]
        assert "note: unjudged has no relevance judgments" in benchmark_text(made)

    def test_runs_of_several_collections_are_not_held(self, small):
        assert all(not one.runs for one in benchmark("bm25", [small("one"), small("two")]).evaluations)


class TestFolder:
    def test_each_collection_has_its_own_and_the_table_stands_above(self, small, tmp_path):
        made = benchmark("bm25", [small("one"), small("two")], out=tmp_path)
        assert (tmp_path / "one" / "runs" / "bm25.run").is_file()
        assert (tmp_path / "two" / "results.json").is_file()
        written = json.loads((tmp_path / "benchmark.json").read_text())
        assert written["means"] == made.means
        assert [one["collection"] for one in written["collections"]] == ["one", "two"]

    def test_it_goes_on_where_it_was_killed(self, small, tmp_path, monkeypatch):
        from retrodistill.evaluation import evaluating

        searched, search = [], evaluating.search

        def killed(ranker, collection, queries, k):
            searched.append(collection.name)
            if len(searched) == 2:
                raise KeyboardInterrupt
            return search(ranker, collection, queries, k)

        monkeypatch.setattr(evaluating, "search", killed)
        with pytest.raises(KeyboardInterrupt):
            benchmark("bm25", [small("one"), small("two"), small("three")], out=tmp_path)
        benchmark("bm25", [small("one"), small("two"), small("three")], out=tmp_path)
        assert searched == ["one", "two", "two", "three"]

    def test_a_model_is_loaded_once_for_all(self, small, space, monkeypatch):
        from retrodistill.evaluation import systems

        loads, load = [], systems.load_ranker
        monkeypatch.setattr(
            systems, "load_ranker", lambda source, **needs: loads.append(source) or load(source, **needs)
        )
        benchmark(space, [small("one"), small("two"), small("three")])
        assert loads == [space]

    def test_runs_are_named_by_their_collection(self, small, tmp_path):
        for name, found in (("one", "d0"), ("two", "d5")):
            write_run(Run.from_dict({"q0": {found: 1.0}}), tmp_path / f"{name}.run")
        made = benchmark({"mine": f"run:{tmp_path}/{{collection}}.run"}, [small("one"), small("two")])
        assert [made.table[name]["mine"]["recall@10"] for name in ("one", "two")] == [pytest.approx(1 / 3), 0]


class TestRules:
    def test_msmarco_is_measured_on_dev_and_others_on_test(self, small):
        assert split_of(small("msmarco", split="dev"), None) == "dev"
        assert split_of(small("msmarco"), None) == "test"
        assert split_of(small("nq"), None) == "test"
        assert split_of(small("msmarco", split="dev"), "train") == "train"

    def test_a_data_set_is_the_same_wherever_it_came_from(self, small):
        assert split_of(small("beir-msmarco", split="dev"), None) == "dev"
        assert "BEIR's version 2" in version_note(small("beir-webis-touche2020-v2"), "test")
        found = sources(["ir_datasets:beir/cqadupstack"])
        assert found[0].place == "ir_datasets:beir/cqadupstack/android"
        assert [source.row for source in found] == ["cqadupstack"] * 12

    def test_without_judgments_every_query_is_asked(self, unjudged):
        assert split_of(unjudged, None) == "all"

    def test_the_version_of_touche_is_said(self, small):
        assert "BEIR's version 2 has 2,214" in version_note(small("webis-touche2020"), "test")
        assert version_note(small("scifact"), "test") is None

        class Counted:
            name, qrels = "webis-touche2020", {"test": range(2214)}

        assert "is version 2" in version_note(Counted(), "test")

    def test_cqadupstack_by_name_is_its_twelve_forums(self):
        found = sources(["beir/cqadupstack", "beir/scifact"])
        assert [source.place for source in found[:2]] == ["beir/cqadupstack/android", "beir/cqadupstack/english"]
        assert [source.row for source in found] == ["cqadupstack"] * 12 + [None]

    def test_a_single_forum_is_a_collection_like_others(self, forums):
        (source,) = sources([str(forums / "android")])
        assert source.row is None
        assert source.load().name == load_collection(forums / "android").name == "android"


class TestMistakes:
    def test_a_forum_is_lacking(self, forums):
        (forums / "gis").rename(forums.parent / "gis")
        with pytest.raises(UserError, match="lacks gis of CQADupStack's 12 forums"):
            benchmark("bm25", [str(forums)])

    def test_two_collections_of_one_name(self, small):
        with pytest.raises(UserError, match="two collections are named one"):
            benchmark("bm25", [small("one"), small("one")])

    @pytest.mark.parametrize(
        ("last", "split", "message"),
        [("one", None, "named one"), ("nowhere", None, "nowhere"), ("two", "holdout", "holdout")],
    )
    def test_are_found_before_anything_is_measured(self, small, tmp_path, monkeypatch, last, split, message):
        measured = []
        monkeypatch.setattr("retrodistill.evaluation.evaluating.evaluate_systems", lambda *_: measured.append(1))
        second = str(tmp_path / last) if last == "nowhere" else small(last)
        first = small("one", split="holdout") if split else small("one")
        with pytest.raises(UserError, match=message):
            benchmark("bm25", [first, second], EvaluationConfig(split))
        assert not measured

    def test_no_collection(self):
        with pytest.raises(UserError, match="no collection to measure on"):
            benchmark("bm25", [])
