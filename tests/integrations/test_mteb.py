"""MTEB, as its users call it."""

import pytest

pytest.importorskip("mteb")
import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sparse_models import splade

from retrodistill import evaluate
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import build_index
from retrodistill.integrations.mteb import RetrodistillEncoder, RetrodistillIndex


@pytest.fixture
def task(tiny):
    """The test queries of the tiny collection as a task whose data is here."""

    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="TinyRetrieval",
            description="Made up documents.",
            dataset={"path": "none/none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_):
            titles, bodies, queries = tiny.titles.texts, tiny.bodies.texts, tiny.split("test")
            corpus = {"id": tiny.documents.ids, "title": titles, "text": bodies}
            split = {
                "corpus": Dataset.from_dict(corpus),
                "queries": Dataset.from_dict({"id": queries.ids, "text": queries.texts}),
                "relevant_docs": tiny.relevance("test").to_dict(),
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Tiny()


@pytest.fixture
def sides(teacher, student, tiny_multi, tmp_path):
    """The encoders of each kind of index: of documents, and of queries."""
    sparse = load_encoder(splade(tmp_path / "sparse"))
    return {
        "student": (teacher, student),
        "sparse": (sparse, None),
        "multi-vector": (tiny_multi, None),
        "compressed": (teacher, student),
    }


@pytest.fixture
def options():
    """Options of `build_index` for some of them."""
    return {"compressed": {"factory": "SQ8"}}


def measured(model, task, **options):
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False, **options)
    return result.task_results[0].scores["test"][0]


class TestEvaluate:
    @pytest.mark.parametrize("side", ["teacher", "student"])
    def test_it_measures_what_evaluate_measures(self, side, task, tiny, teacher, student):
        queries = {"teacher": None, "student": student}[side]
        found = measured(RetrodistillEncoder(teacher, queries), task)
        index = build_index(tiny, teacher, queries)
        own = evaluate({"own": index}, tiny, measures=["ndcg@10", "recall@5"]).means["own"]
        assert found["ndcg_at_10"] == pytest.approx(own["ndcg@10"], abs=1e-4)
        assert found["recall_at_5"] == pytest.approx(own["recall@5"], abs=1e-4)

    @pytest.mark.parametrize("kind", ["student", "sparse", "multi-vector", "compressed"])
    def test_an_index_of_any_kind_is_measured_as_evaluate_measures_it(self, kind, task, tiny, sides, options):
        documents, queries = sides[kind]
        found = measured(RetrodistillIndex(documents, queries, **options.get(kind, {})), task)
        index = build_index(tiny, documents, queries, **options.get(kind, {}))
        own = evaluate({"own": index}, tiny, measures=["ndcg@10", "recall@5"]).means["own"]
        assert found["ndcg_at_10"] == pytest.approx(own["ndcg@10"], abs=1e-4)
        assert found["recall_at_5"] == pytest.approx(own["recall@5"], abs=1e-4)

    def test_a_reranking_task_is_of_its_candidates(self, task, tiny, teacher):
        task.load_data()
        split = task.dataset["default"]["test"]
        candidates = dict.fromkeys(split["queries"]["id"], tiny.documents.ids[:20])
        model = RetrodistillIndex(teacher)
        model.index(split["corpus"], task_metadata=task.metadata)
        found = model.search(split["queries"], top_k=5, top_ranked=candidates)
        index = build_index(tiny, teacher)
        for id_, text in zip(split["queries"]["id"], split["queries"]["text"], strict=True):
            everything = index.search(text, k=60).to_dict()["0"]
            among = [(one, score) for one, score in everything.items() if one in candidates[id_]]
            assert found[id_] == pytest.approx(dict(among[:5]))


class TestEncoder:
    def test_each_side_has_its_encoder(self, teacher, student):
        model = RetrodistillEncoder(teacher, student)
        batches = [{"text": ["moon", "star"]}, {"text": ["bread"]}]
        texts = ["moon", "star", "bread"]
        queries, documents = (
            load_encoder(student).encode(texts, "query"),
            load_encoder(teacher).encode(texts, "document"),
        )
        np.testing.assert_array_equal(model.encode(batches, prompt_type=mteb.types.PromptType.query), queries)
        np.testing.assert_array_equal(model.encode(batches, prompt_type=mteb.types.PromptType.document), documents)
        np.testing.assert_array_equal(model.encode(batches), queries)

    def test_stored_results_are_of_these_two_encoders(self, teacher, student):
        metas = [RetrodistillEncoder(teacher, queries).mteb_model_meta for queries in (None, student)]
        assert len({meta.revision for meta in metas}) == 2
        assert metas[0].revision == RetrodistillEncoder(teacher).mteb_model_meta.revision
        assert RetrodistillEncoder(teacher, name="mine").mteb_model_meta.name == "retrodistill/mine"

    def test_queries_of_another_space_are_refused(self, teacher, tiny_static):
        with pytest.raises(UserError, match="do not belong among documents"):
            RetrodistillEncoder(teacher, f"static:{tiny_static}")
