import pytest

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.indexes import build_index
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.reranker import Reranker
from retrodistill.runs import Run, write_run


class TestReranker:
    def test_orders_the_sources_first_documents_by_the_teacher(self, tiny, space):
        queries = tiny.split("test")
        found = Reranker(load_ranker(space), BM25Ranker(), 5).search(queries, tiny, 10)
        candidates = BM25Ranker().search(queries, tiny, 60).top(5)
        wanted = load_ranker(space).score(queries, tiny, candidates)
        assert found.fingerprint == wanted.fingerprint
        assert set(found.top(1).document_ids) != set(candidates.top(1).document_ids)

    def test_gives_no_more_than_asked(self, tiny, space):
        found = Reranker(load_ranker(space), BM25Ranker(), 5).search(tiny.split("test"), tiny, 2)
        assert all(len(documents) <= 2 for _, documents, _ in found)

    def test_a_cross_encoder_over_a_run_file_by_name(self, tiny, tiny_cross_encoder, tmp_path):
        write_run(Run.from_dict({"t0": {"d0": 2.0, "d6": 1.0, "d12": 0.5}}), tmp_path / "first@stage.run")
        name = f"rerank@2:cross-encoder:{tiny_cross_encoder}@run:{tmp_path / 'first@stage.run'}"
        made = evaluate(name, tiny)
        assert set(made.runs[name].document_ids) == {"d0", "d6"}
        assert made.results.systems[0].name == name

    def test_an_index_on_disk_proposes_candidates(self, tiny, space, tmp_path):
        build_index(tiny, space).save(tmp_path / "an@index")
        found = evaluate([f"rerank@5:bm25@{tmp_path / 'an@index'}", f"rerank@5:bm25@{space}"], tiny)
        one, other = found.runs.values()
        assert one.fingerprint == other.fingerprint

    def test_what_decides_its_results_is_known(self, tiny, space, tiny_model):
        prints = [
            load_ranker(name).fingerprint(tiny)
            for name in (
                f"rerank:{space}@bm25",
                f"rerank@50:{space}@bm25",
                f"rerank:{space}@{space}",
                f"rerank:bm25@{space}",
            )
        ]
        assert None not in prints
        assert len(set(prints)) == 4
        assert load_ranker(f"rerank:{space}@bm25").fingerprint(tiny) == prints[0]

    def test_it_has_the_sources_size_and_no_latency(self, tiny, space):
        reranker = load_ranker(f"rerank:bm25@{space}")
        assert reranker.bytes_per_document(tiny) == load_ranker(space).bytes_per_document(tiny)
        with pytest.raises(UserError, match="has no latency"):
            reranker.query_fn(tiny, 10)


class TestNames:
    def test_the_depth_stands_behind_the_verb(self):
        found = load_ranker("rerank@7:bm25@bm25")
        assert (found.depth, found.name) == (7, "rerank@7:bm25@bm25")
        assert load_ranker("rerank:bm25@bm25").depth == 100

    @pytest.mark.parametrize(
        "name", ["rerank:bm25", "rerank:bm25@", "rerank@x:bm25@bm25", "rerank:@bm25", "rerank:a@b:c"]
    )
    def test_another_form_is_refused_with_the_form(self, name):
        with pytest.raises(UserError, match="write rerank:TEACHER@SOURCE"):
            load_ranker(name)

    def test_a_depth_of_nothing(self):
        with pytest.raises(UserError, match="top 0; give at least 1"):
            load_ranker("rerank@0:bm25@bm25")
