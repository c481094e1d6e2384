"""Rankers of passages are measured on documents."""

import pytest

from retrodistill.api import evaluate
from retrodistill.data import load_collection
from retrodistill.evaluation.agreement import agreements
from retrodistill.evaluation.comparing import compare_named
from retrodistill.evaluation.evaluating import search
from retrodistill.indexes import build_index
from retrodistill.rankers import Ensemble, load_ranker
from retrodistill.rankers.documents import score_documents
from retrodistill.runs import Run

RULE = "12,4"


@pytest.fixture
def cut_up(tiny_folder):
    return load_collection(tiny_folder, passages=RULE)


def best_by_hand(passages: Run) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {}
    for query, scores in passages.to_dict().items():
        for passage, score in scores.items():
            of_query, document = best.setdefault(query, {}), passage.rpartition("#")[0]
            of_query[document] = max(score, of_query.get(document, score))
    return best


class TestSearching:
    def test_a_model_finds_documents_by_their_best_passage(self, cut_up, space):
        ranker, queries = load_ranker(space), cut_up.split("test")
        found = search(ranker, cut_up, queries, 60).to_dict()
        wanted = best_by_hand(ranker.search(queries, cut_up, len(cut_up.documents)))
        assert found.keys() == wanted.keys()
        for query in wanted:
            assert found[query] == pytest.approx(wanted[query])

    def test_bm25_searches_whole_documents(self, cut_up, tiny):
        assert evaluate("bm25", cut_up).means == evaluate("bm25", tiny).means

    def test_bm25_searches_passages_if_the_rule_says_so(self, tiny_folder, tiny):
        by_passages = load_collection(tiny_folder, passages="words=12,overlap=4,bm25=passages")
        queries = tiny.split("test")
        bm25 = load_ranker("bm25")
        found = search(bm25, by_passages, queries, 10)
        assert set(found.document_ids) <= set(tiny.documents.ids)
        assert found.to_dict() != search(bm25, tiny, queries, 10).to_dict()

    def test_members_of_an_ensemble_score_passages(self, cut_up, space):
        queries = cut_up.split("test")
        ensemble = Ensemble([load_ranker("bm25"), load_ranker(space)])
        assert set(search(ensemble, cut_up, queries, 10).document_ids) <= set(cut_up.whole.documents.ids)
        assert set(ensemble.search(queries, cut_up, 10).document_ids) <= set(cut_up.documents.ids)

    def test_runs_over_documents_are_measured_as_they_are(self, cut_up, tiny):
        run = search(load_ranker("bm25"), tiny, tiny.split("test"), 20).renamed("recorded")
        assert evaluate(run, cut_up).means["recorded"] == evaluate(run, tiny).means["recorded"]

    def test_a_run_over_documents_proposes_all_of_their_passages(self, cut_up):
        run = Run.from_dict({"t0": {"d0": 2.0, "d6": 1.0}})
        found = load_ranker(run).search(cut_up.split("test"), cut_up, 10).to_dict()["t0"]
        own = [id_ for id_ in cut_up.documents.ids if id_.rpartition("#")[0] in ("d0", "d6")]
        assert sorted(found) == sorted(own)
        assert found["d0#1"] == 2.0

    def test_a_reranker_judges_passages(self, cut_up, space):
        found = search(load_ranker(f"rerank@20:{space}@bm25"), cut_up, cut_up.split("test"), 10)
        assert set(found.document_ids) <= set(cut_up.whole.documents.ids)


class TestMeasuring:
    def test_an_index_of_passages_and_its_model_are_alike(self, cut_up, tiny, space):
        index = build_index(cut_up, space)
        made = evaluate({"index": index, "model": space}, cut_up).means
        assert made["index"] == pytest.approx(made["model"])
        assert evaluate({"index": index}, tiny).means["index"] == pytest.approx(made["model"])

    def test_bytes_are_those_of_all_passages_of_a_document(self, cut_up, space):
        made = evaluate({"index": build_index(cut_up, space), "model": space}, cut_up, cost_threads=1).results
        share = len(cut_up.documents) / 60
        index, model = made.systems
        assert model.bytes_per_document == pytest.approx(4 * 32 * share)
        assert index.bytes_per_document == pytest.approx(model.bytes_per_document, rel=0.05)
        assert index.cost.total_bytes == pytest.approx(60 * index.bytes_per_document, rel=0.01)

    def test_results_say_how_documents_were_searched(self, cut_up):
        made = evaluate("bm25", cut_up).results
        assert made.provenance["documents"] == "60"
        assert any("12 words" in note and "whole documents" in note for note in made.notes)

    def test_what_was_measured_by_another_rule_is_measured_again(self, tiny_folder, space, tmp_path):
        means = []
        for rule in ("12,4", "words=12,overlap=4,aggregate=mean@3"):
            collection = load_collection(tiny_folder, passages=rule)
            means.append(evaluate(space, collection, out=tmp_path).means[space])
        assert means[0] != means[1]

    def test_systems_are_compared_on_documents(self, tiny_folder, space):
        collection = load_collection(tiny_folder, passages=RULE)
        made = compare_named(["bm25", space], collection, measure="recall@10")
        assert made.means[space] == evaluate(space, collection).means[space]["recall@10"]


class TestAgreement:
    def test_a_teacher_agrees_with_itself(self, cut_up, space):
        queries = cut_up.split("test")
        runs = {"own": search(load_ranker(space), cut_up, queries, 60)}
        found = agreements(space, runs, cut_up, queries, cut_up.relevance("test").to_dict())["own"]
        assert (found.overlap10, found.kendall_tau) == (1.0, pytest.approx(1.0))
        assert found.ceiling == pytest.approx(found.reached)

    def test_pairs_of_documents_have_the_scores_of_their_best_passages(self, cut_up, tiny, space):
        queries, ranker = cut_up.split("test"), load_ranker(space)
        pairs = Run.from_dict({"t0": {"d0": 0.0, "d7": 0.0}})
        wanted = best_by_hand(ranker.search(queries, cut_up, len(cut_up.documents)))["t0"]
        scored = score_documents(ranker, queries, cut_up, pairs).to_dict()["t0"]
        assert scored == pytest.approx({name: wanted[name] for name in ("d0", "d7")})

    def test_a_recorded_teacher_may_be_over_documents_or_passages(self, cut_up, space):
        queries, ranker = cut_up.split("test"), load_ranker(space)
        runs = {"own": search(ranker, cut_up, queries, 60)}
        for recorded in (runs["own"], ranker.search(queries, cut_up, len(cut_up.documents))):
            assert agreements(recorded, runs, cut_up, queries, None)["own"].overlap10 == 1.0
