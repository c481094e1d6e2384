import json
import subprocess

import numpy as np
import pytest
import torch
from sparse_models import inference_free

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.evaluation import CostConfig, cost
from retrodistill.evaluation.cost import peak_memory
from retrodistill.evaluation.results import Results
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import Ensemble, Ranker, bi_encoder, load_ranker
from retrodistill.report.tables import evaluation_text
from retrodistill.runs import Run


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The mathematics of the clock is held elsewhere."""
    monkeypatch.setattr("retrodistill.evaluation.cost._machine_rate", lambda _: 1e9)


def measure_cost(ranker, collection, texts, threads=1):
    return cost.measure_cost(ranker, collection, texts, CostConfig(threads, queries=2))


def of(system):
    return load_ranker(system, needs="search")


class TestWhatIsMeasured:
    def test_of_a_dense_model_both_stages_in_both_batches(self, tiny, space):
        found = measure_cost(of(space), tiny, tiny.split("test").texts, threads=1)
        assert [one.batch for one in found.timings] == [1, 32]
        for one in found.timings:
            assert set(one.encode) == set(one.search) == set(one.total) == {"p50", "p95", "p99"}
            assert 0 < one.search["p50"] <= one.total["p99"]
        assert found.total_bytes == 60 * 4 * 32
        assert found.encoder == space
        assert found.tokens_per_second > 0
        assert found.matrix_share > 0
        assert found.encode_seconds >= 0

    def test_of_bm25_there_is_no_encoder(self, tiny):
        found = measure_cost(of("bm25"), tiny, tiny.split("test").texts)
        assert found.encoder is found.tokens_per_second is found.encode_seconds is None
        assert len(found.timings) == 2

    def test_of_an_index_its_query_encoder(self, tiny, space, tiny_static, tmp_path):
        build_index(tiny, space, factory="SQ8").save(tmp_path / "index")
        found = measure_cost(of(tmp_path / "index"), tiny, tiny.split("test").texts)
        assert found.encoder.startswith("dense:")
        assert found.encode_seconds is None
        assert found.timings[0].search["p50"] > 0

    def test_of_a_retriever_that_only_answers_the_whole(self, tiny, space):
        inner = of(space)

        class Opaque(Ranker):
            name = "opaque"
            can_search = can_be_timed = True
            search, query_fn, bytes_per_document = inner.search, inner.query_fn, inner.bytes_per_document

        found = measure_cost(of(Opaque()), tiny, tiny.split("test").texts)
        assert [(one.batch, one.encode, one.search) for one in found.timings] == [(1, None, None), (32, None, None)]

    def test_of_one_that_tells_its_stages_these(self, tiny, space):
        inner = of(space)

        class Telling(Ranker):
            name = "telling"
            can_search = can_be_timed = True
            search, query_fn, bytes_per_document = inner.search, inner.query_fn, inner.bytes_per_document

            def timed_stages(self, collection, k):
                return list, len

        assert measure_cost(of(Telling()), tiny, ["a"]).timings[1].search is not None

    def test_what_answers_no_new_query_has_none(self, tiny, space):
        run = Run.from_dict({"t0": {"d0": 1.0}})
        assert measure_cost(of(run), tiny, ["a"]) is None
        assert measure_cost(of(f"rerank:{space}@bm25"), tiny, ["a"]) is None
        recorded = Ensemble([load_ranker("bm25"), load_ranker(run)])
        assert measure_cost(recorded, tiny, ["a"]) is None
        with pytest.raises(UserError, match="new quer"):
            recorded.query_fn(tiny, 3)

    def test_recorded_vectors_answer_no_new_query_and_are_searched_all_the_same(
        self, tiny, space, tmp_path, monkeypatch
    ):
        encoder = load_encoder(space)
        np.save(tmp_path / "documents.npy", encoder.encode(tiny.documents.texts, "document"))
        (tmp_path / "documents.ids.txt").write_text("".join(f"{one}\n" for one in tiny.documents.ids))
        np.save(tmp_path / "queries.npy", encoder.encode(tiny.queries.texts, "query"))
        (tmp_path / "queries.ids.txt").write_text("".join(f"{one}\n" for one in tiny.queries.ids))
        wanted = evaluate(space, tiny).means[space]
        for held in (10**6, 0):  # a large corpus goes by in blocks
            monkeypatch.setattr(bi_encoder, "HELD", held)
            made = evaluate({"recorded": f"vectors:{tmp_path}"}, tiny, cost_threads=1)
            assert made.means["recorded"] == pytest.approx(wanted)
            assert made.results.systems[0].cost is None

    def test_exact_search_of_a_large_corpus_is_not_held_for_it(self, tiny, space, monkeypatch):
        monkeypatch.setattr(bi_encoder, "HELD", 59)
        assert measure_cost(of(space), tiny, ["a"]) is None
        assert measure_cost(build_index(tiny, space), tiny, ["a"]) is not None

    @pytest.mark.parametrize("kind", ["sparse", "multi-vector"])
    def test_of_other_encoders_the_throughput_too(self, tiny, tiny_model, tmp_path, kind):
        model = inference_free(tmp_path / "bert") if kind == "sparse" else token_encoder(tiny_model)
        model.save_pretrained(str(tmp_path / "model"))
        found = measure_cost(of(f"{kind}:{tmp_path / 'model'}"), tiny, tiny.split("test").texts)
        assert found.tokens_per_second > 0
        assert found.encode_seconds > 0

    def test_one_encoder_of_several_systems_is_measured_once(self, tiny, space, monkeypatch):
        monkeypatch.setattr(cost, "_RATES", {})
        first = measure_cost(of(space), tiny, ["a"])
        monkeypatch.setattr(cost, "_rates", lambda *_: pytest.fail("measured again"))
        assert measure_cost(of(space), tiny, ["a"]).tokens_per_second == first.tokens_per_second
        index = measure_cost(build_index(tiny, space), tiny, ["a"])
        assert (index.tokens_per_second, index.encode_seconds) == (first.tokens_per_second, None)

    def test_tokens_are_those_that_the_model_reads(self, tiny, space):
        from retrodistill.evaluation.cost import _tokenizer

        encoder = of(space).documents
        count = _tokenizer(encoder)
        assert count(["star planet", "star"]) == (2 + 2) + (1 + 2)  # [CLS] and [SEP] each
        assert count(["star " * 500]) == encoder.model.max_seq_length


class TestMemory:
    def test_is_that_of_a_process_of_its_own(self, tiny_folder):
        found = peak_memory("bm25", str(tiny_folder), ["star"], 1)
        assert 20e6 < found["peak_bytes"] < 4e9
        assert ("gpu_peak_bytes" in found) == torch.cuda.is_available()

    def test_where_it_fails_there_is_no_figure(self, tiny_folder, monkeypatch):
        failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
        assert peak_memory("bm25", str(tiny_folder), ["star"], 1) == {}


class TestInAnEvaluation:
    def test_it_stands_in_results_json_and_is_kept(self, tiny, tiny_folder, space, tmp_path, monkeypatch):
        monkeypatch.setattr("retrodistill.evaluation.cost.peak_memory", lambda *_: {"peak_bytes": 12345})
        made = evaluate(["bm25", space], str(tiny_folder), cost_threads=1, out=tmp_path)
        again = Results.from_json(json.loads((tmp_path / "results.json").read_text()))
        assert again.system(space).cost == made.results.systems[1].cost
        assert again.system(space).query_ms == made.results.systems[1].cost.timings[0].total
        assert again.system("bm25").cost.peak_bytes == 12345
        monkeypatch.setattr("retrodistill.evaluation.evaluating.measure_cost", lambda *_: pytest.fail("measured again"))
        assert (
            evaluate(["bm25", space], str(tiny_folder), cost_threads=1, out=tmp_path).results.systems
            == made.results.systems
        )
        assert "tokens/s" in evaluation_text(made)
        assert "12.3 kB" in evaluation_text(made)  # not 0 MB

    def test_without_judgments_too(self, unjudged):
        made = evaluate("bm25", unjudged, cost_threads=1)
        assert made.results.systems[0].cost.timings[0].queries_per_second > 0
        assert made.results.systems[0].cost.peak_bytes is None  # a collection in memory: no other process has it


class TestStagesOfEveryKind:
    @pytest.mark.parametrize("kind", ["sparse", "multi-vector"])
    def test_retriever_and_index_tell_encoding_and_search_apart(self, tiny, tiny_model, tmp_path, kind):
        model = inference_free(tmp_path / "bert") if kind == "sparse" else token_encoder(tiny_model)
        model.save_pretrained(str(tmp_path / "model"))
        name, texts = f"{kind}:{tmp_path / 'model'}", tiny.split("test").texts
        for system in (load_ranker(name), build_index(tiny, name)):
            encode, search = system.timed_stages(tiny, 3)
            rows, scores = search(encode(texts[:2]))
            found = system.search(tiny.split("test"), tiny, 3)
            query, documents, wanted = next(iter(found))
            assert query == tiny.split("test").ids[0]
            assert [tiny.documents.ids[row] for row in rows[0][: len(documents)]] == list(documents)
            if getattr(getattr(system, "queries", None), "similarity", "") != "meanmaxsim":
                assert scores[0][: len(wanted)] == pytest.approx(wanted, rel=1e-3)  # stored queries are float16

    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_the_manifest_of_an_index_says_how_long_building_took(self, tiny, tiny_model, tmp_path, kind):
        if kind != "dense":
            model = inference_free(tmp_path / "bert") if kind == "sparse" else token_encoder(tiny_model)
            model.save_pretrained(str(tmp_path / "model"))
        name = f"dense:{tiny_model}" if kind == "dense" else f"{kind}:{tmp_path / 'model'}"
        index = build_index(tiny, name)
        index.save(tmp_path / "index")
        said = Manifest.read(tmp_path / "index").about["build_seconds"]
        assert said == pytest.approx(index.build_seconds, abs=1e-3)
        load_index(tmp_path / "index").save(tmp_path / "copy")
        assert Manifest.read(tmp_path / "copy").about["build_seconds"] == said
