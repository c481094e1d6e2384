"""PyTerrier, as its users call it."""

import pytest

pytest.importorskip("pyterrier")
import numpy as np
import pandas as pd
import pyterrier as pt

from retrodistill import evaluate
from retrodistill.core.errors import UserError
from retrodistill.indexes import build_index, load_index
from retrodistill.integrations.pyterrier import RetrodistillReranker, RetrodistillRetriever
from retrodistill.rankers import load_ranker


@pytest.fixture(scope="module")
def retriever(folder):
    return RetrodistillRetriever(folder, num_results=3)


def topics_of(collection):
    queries = collection.split("test")
    return pd.DataFrame({"qid": queries.ids, "query": queries.texts})


def qrels_of(collection):
    table = collection.relevance("test").table.to_pandas()
    return table.set_axis(["qid", "docno", "label"], axis=1)


class TestRetriever:
    def test_a_search_gives_ranked_documents(self, retriever, folder):
        found = retriever.search("moon and star")
        wanted = load_index(folder).search("moon and star", k=3)
        assert found.columns.tolist() == ["qid", "query", "docno", "score", "rank"]
        assert found["docno"].tolist() == wanted.document_ids.tolist()
        assert found["score"].tolist() == wanted.scores.tolist()
        assert found["rank"].tolist() == [0, 1, 2]

    def test_queries_keep_their_order_and_columns_and_blank_ones_find_nothing(self, retriever):
        asked = pd.DataFrame({"qid": ["9", "1", "5"], "query": ["moon", " ", "bread"], "query_0": ["x", "y", "z"]})
        found = retriever(asked)
        assert found["qid"].tolist() == ["9"] * 3 + ["5"] * 3
        assert found["query_0"].tolist() == ["x"] * 3 + ["z"] * 3
        assert retriever(asked[:0]).columns.tolist() == found.columns.tolist()

    def test_operators(self, retriever, folder):
        every = RetrodistillRetriever(folder)
        assert (every % 2).search("moon").equals(RetrodistillRetriever(folder, num_results=2).search("moon"))
        assert (every >> retriever).search("moon").equals(retriever.search("moon"))
        doubled = (every + every).search("moon")
        assert doubled["score"].tolist() == pytest.approx((2 * every.search("moon")["score"]).tolist())

    def test_a_filter(self, folder):
        assert RetrodistillRetriever(folder, filter="year>=2021").search("moon")["docno"].isin(["c", "d"]).all()

    def test_an_experiment_measures_what_evaluate_measures(self, tiny, tiny_model):
        index = build_index(tiny, f"dense:{tiny_model}")
        systems = [RetrodistillRetriever(index, num_results=60), RetrodistillRetriever("bm25", tiny, num_results=60)]
        names, measures = ["dense", "bm25"], ["ndcg_cut_10", "recip_rank"]
        found = pt.Experiment(systems, topics_of(tiny), qrels_of(tiny), measures, names=names)
        own = evaluate({"dense": index, "bm25": "bm25"}, tiny, measures=["ndcg@10", "RR"])
        for name, measured in found.set_index("name").to_dict("index").items():
            wanted = {"ndcg@10": measured["ndcg_cut_10"], "RR": measured["recip_rank"]}
            assert own.means[name] == pytest.approx(wanted, abs=1e-4)
        assert not pt.java.started()

    def test_an_experiment_s_table_names_index_and_judge(self, small, folder, tiny_cross_encoder):
        judge = f"cross-encoder:{tiny_cross_encoder}"
        systems = [RetrodistillRetriever(folder) >> RetrodistillReranker(judge, small)]
        topics, qrels = pd.DataFrame({"qid": ["1"], "query": ["moon"]}), pd.DataFrame([["1", "d", 1]])
        found = pt.Experiment(systems, topics, qrels.set_axis(["qid", "docno", "label"], axis=1), ["recip_rank"])
        assert folder in found["name"][0]
        assert judge in found["name"][0]

    def test_pipelines_know_its_columns(self, retriever):
        outputs = pt.inspect.transformer_outputs(retriever, ["qid", "query"])
        assert outputs == ["qid", "query", "docno", "score", "rank"]

    def test_wrong_input_is_refused(self, retriever, folder):
        with pytest.raises(pt.validate.InputValidationError):
            retriever(pd.DataFrame({"qid": ["1"]}))
        with pytest.raises(UserError, match="k=0"):
            RetrodistillRetriever(folder, num_results=0).search("moon")


class TestReranker:
    def test_the_top_documents_in_the_order_of_a_cross_encoder(self, tiny, tiny_cross_encoder):
        name = f"cross-encoder:{tiny_cross_encoder}"
        pipeline = RetrodistillRetriever("bm25", tiny) % 10 >> RetrodistillReranker(name, tiny)
        found = pipeline(topics_of(tiny))
        wanted = load_ranker(f"rerank@10:{name}@bm25").search(tiny.split("test"), tiny, 10)
        for query, documents, scores in wanted:
            own = found[found["qid"] == query].sort_values("rank")
            assert own["docno"].tolist() == documents.tolist()
            np.testing.assert_allclose(own["score"], scores)

    def test_no_documents(self, small, tiny_cross_encoder):
        pipeline = RetrodistillRetriever("bm25", small) >> RetrodistillReranker(
            f"cross-encoder:{tiny_cross_encoder}", small
        )
        found = pipeline.search("zebra")
        assert found.columns.tolist() == ["qid", "query", "docno", "score", "rank"]
        assert not len(found)

    def test_wrong_input_is_refused(self, small, folder, tiny_cross_encoder):
        with pytest.raises(UserError, match="cannot score pairs"):
            RetrodistillReranker(folder, small)
        results = pd.DataFrame({"qid": ["1"], "query": ["moon"], "docno": ["z"], "score": [0.0], "rank": [0]})
        with pytest.raises(UserError, match="not in the collection"):
            RetrodistillReranker(f"cross-encoder:{tiny_cross_encoder}", small)(results)
