"""MTEB, as its users call it."""

import pytest

pytest.importorskip("mteb")
import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from retrodistill import evaluate
from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.indexes import build_index
from retrodistill.integrations.mteb import RetrodistillEncoder


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
