"""--passages, and searching an index of passages, from the command line."""

import json

import pytest

from retrodistill.data import load_collection
from retrodistill.indexes import load_index
from retrodistill.runs import read_run


@pytest.fixture
def index(call, tiny_folder, tiny_static, tmp_path):
    place = tmp_path / "index"
    status, _, _ = call(
        *("index", "--collection", tiny_folder, "--documents", f"static:{tiny_static}", "--passages", "12,4"),
        *("--out", place),
    )
    assert status == 0
    return place


def test_search_shows_documents_and_their_best_passage(call, index, tiny_folder):
    _, out, _ = call("search", index, "heart star", "--k", 4, "--collection", tiny_folder, "--json")
    rows = json.loads(out)
    passages = load_collection(tiny_folder, passages="12,4")
    assert len({row["document_id"] for row in rows}) == 4
    for row in rows:
        assert row["passage_id"].rpartition("#")[0] == row["document_id"]
        assert row["text"] == passages.bodies[row["passage_id"]]
        assert row["title"] == passages.titles[row["passage_id"]]


def test_search_takes_another_aggregate(call, index):
    scores = []
    for aggregate in ("max", "mean@3"):
        _, out, _ = call("search", index, "heart star", "--aggregate", aggregate, "--json")
        scores.append([row["score"] for row in json.loads(out)])
    assert scores[0] != scores[1]
    status, _, err = call("search", index, "heart", "--aggregate", "median")
    assert status != 0
    assert "mean@" in err


def test_an_index_of_passages_is_checked_and_measured_on_documents(call, index, tiny_folder):
    status, out, _ = call("check", index, "--collection", tiny_folder, "--latency-queries", 0, "--json")
    assert (status, json.loads(out)["shared"]["10"]) == (0, 1.0)
    _, out, _ = call("evaluate", index, "--collection", tiny_folder, "--json")
    measured = json.loads(out)["systems"][0]
    _, out, _ = call(
        "evaluate", load_index(index).queries.name, "--collection", tiny_folder, "--passages", "12,4", "--json"
    )
    assert json.loads(out)["systems"][0]["ndcg@10"] == pytest.approx(measured["ndcg@10"])


def test_passages_are_mined_and_scored(call, tiny_folder, tiny_model, tmp_path):
    options = ("--collection", tiny_folder, "--passages", "12,4")
    call("mine", *options, "--source", "bm25", "--depth", 5, "--out", tmp_path / "c.run")
    status, _, _ = call(
        *("score", *options, "--candidates", tmp_path / "c.run", "--teacher", f"dense:{tiny_model}"),
        *("--filter", "relative=0.95", "--out", tmp_path / "s.run"),
    )
    assert status == 0
    assert all("#" in document for document in read_run(tmp_path / "s.run").document_ids)


def test_what_does_not_fit_is_refused_before_work(call, tiny_folder):
    status, _, err = call("evaluate", "bm25", "--collection", tiny_folder, "--passages", "5,9")
    assert status != 0
    assert "overlap" in err
