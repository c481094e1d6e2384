"""Indexes of every kind from the command line: built, checked, searched, exported."""

import json
import re
import shlex

import numpy as np
import pytest
from sparse_models import inference_free

from retrodistill.core.runtime import set_quiet
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.indexes import FaissIndex, InvertedIndex, MultiVectorIndex, load_index

pytest.importorskip("qdrant_client")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    inference_free(folder / "bert").save_pretrained(str(folder / "model"))
    return f"sparse:{folder / 'model'}"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("tokens")
    token_encoder(tiny_model).save_pretrained(str(folder / "model"))
    return f"multi-vector:{folder / 'model'}"


@pytest.fixture(scope="module")
def models(tiny_model, sparse, tokens):
    """A model of each kind, by its kind of index."""
    return {"faiss": f"dense:{tiny_model}", "inverted": sparse, "multi-vector": tokens}


@pytest.fixture
def build(call, tiny_folder, tmp_path):
    """Build an index at tmp_path/index."""

    def run(documents, *options):
        place = tmp_path / "index"
        made = call("index", "--collection", tiny_folder, "--documents", documents, "--out", place, *options)
        return place, made

    return run


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "options", "made"),
        [
            ("faiss", ["--factory", "SQ8"], FaissIndex),
            ("inverted", ["--bits", "8"], InvertedIndex),
            ("multi-vector", ["--codec", "residual", "muvera.candidates=20", "sample=30"], MultiVectorIndex),
        ],
    )
    def test_the_encoder_decides_and_each_is_searched_and_measured_alike(
        self, build, call, tiny_folder, models, kind, options, made
    ):
        place, (status, _, _) = build(models[kind], *options)
        assert status == 0
        assert isinstance(load_index(place), made)
        status, out, _ = call("search", place, "star planet", "--k", 3, "--collection", tiny_folder)
        assert status == 0
        assert len(re.findall(r"^-?\d+\.\d{4}  d\d+  \w", out, re.MULTILINE)) == 3
        status, out, _ = call("evaluate", place, "--collection", tiny_folder, "--json")
        assert status == 0
        assert json.loads(out)["systems"][0]["ndcg@10"] > 0

    def test_a_quantizer_is_learned_and_compared_with_opq(self, build, tiny_model):
        place, (status, out, _) = build(f"dense:{tiny_model}", "--learn-queries", "--factory", "OPQ4,PQ4x4")
        assert status == 0
        assert re.search(r"held-out queries \(0 to 1\): 0\.\d{4}, OPQ at the same bytes \(OPQ4,PQ4x4\) 0\.\d{4}", out)
        assert load_index(place).factory == "OPQ4,PQ4x4"

    def test_bits_are_learned_and_compared_with_itq(self, build, tiny_model):
        place, (status, out, _) = build(f"dense:{tiny_model}", "--learn", "--bits", "1", "--bytes", "2")
        assert status == 0
        assert re.search(r"\(0 to 1\): 0\.\d{4}, ITQ at the same bytes \(ITQ16,PQ16x1\) 0\.\d{4}", out)
        assert load_index(place).factory == "ITQ16,PQ16x1"

    def test_exact_weights_pruned_documents_and_no_default_depth_beyond_the_index(self, build, call, sparse):
        place, (status, _, _) = build(sparse, "--bits", "32", "--prune", "4")
        assert status == 0
        settings = load_index(place).settings
        assert (settings.bits, settings.prune) == (None, 4)
        load = load_index(place)
        load.remove(load.ids[5:])
        load.save(place)
        status, out, _ = call("search", place, "star planet blood heart bread cheese", "--json")
        assert status == 0
        assert 0 < len(json.loads(out)) <= 5

    def test_options_of_seismic_are_for_seismic(self, build, sparse):
        _, (status, _, err) = build(sparse, "--query-cut", "5")
        assert status == 2
        assert "query_cut is not a setting of the backend 'exact'" in err

    def test_a_quantizer_of_vectors_from_a_file_learns_from_what_they_are_of(
        self, build, call, tiny, tiny_model, tmp_path
    ):
        from retrodistill.encoders import load_encoder

        vectors = load_encoder(f"dense:{tiny_model}").encode(tiny.documents.texts, "document")
        (tmp_path / "vectors").mkdir()
        np.save(tmp_path / "vectors" / "documents.npy", vectors)
        (tmp_path / "vectors" / "documents.ids.txt").write_text("\n".join(tiny.documents.ids) + "\n")
        place, (status, out, _) = build(f"vectors:{tmp_path / 'vectors'}", "--learn", "--factory", "OPQ4,PQ4x4")
        assert status == 0
        assert "agreement with exact search" in out
        assert len(load_index(place)) == len(tiny.documents)

    def test_search_is_tuned_to_a_recall(self, build, tiny_model):
        place, (status, _, _) = build(f"dense:{tiny_model}", "--factory", "IVF8,Flat", "--recall", "1.0")
        assert status == 0
        assert re.fullmatch(r"nprobe=\d", load_index(place).parameters)

    def test_leading_dimensions(self, build, tiny_model):
        place, _ = build(f"dense:{tiny_model}", "--truncate", "8")
        assert load_index(place).index.d == 8


class TestChecking:
    def test_what_an_admitted_encoder_keeps(self, build, call, tiny_folder, tiny_model):
        place, _ = build(f"dense:{tiny_model}")
        status, out, _ = call("check", place, "--collection", tiny_folder, "--latency-queries", 2)
        assert status == 0
        assert "it is their own model" in out
        status, out, _ = call("check", place, "--collection", tiny_folder, "--latency-queries", 0, "--json")
        assert json.loads(out)["shared"]["10"] == 1.0

    @pytest.mark.parametrize("kind", ["inverted", "multi-vector"])
    def test_of_every_kind(self, build, call, tiny_folder, models, kind):
        place, _ = build(models[kind])
        status, out, _ = call("check", place, "--collection", tiny_folder, "--latency-queries", 0, "--json")
        assert status == 0
        assert json.loads(out)["shared"]["10"] > 0.9  # impacts of 8 bits

    def test_a_stranger_is_told_what_differs(self, build, call, tiny_folder, tiny_model, tiny_static):
        place, _ = build(f"dense:{tiny_model}")
        status, out, err = call("check", place, "--collection", tiny_folder, "--queries", f"static:{tiny_static}")
        assert (status, out) == (2, "")
        assert "other weights" in err


class TestExporting:
    @pytest.mark.parametrize("kind", ["faiss", "inverted", "multi-vector"])
    def test_to_qdrant_and_back(self, build, call, tiny_folder, models, tmp_path, kind):
        place, _ = build(models[kind])
        options = ["--to", "qdrant", "--collection", tiny_folder, "--out", tmp_path / "my store", "--name", "tiny"]
        set_quiet(False)
        status, _, err = call("export", place, *options)
        assert status == 0
        command, address, question = shlex.split(err.rpartition("next: retrodistill ")[2])  # the command to paste
        assert (command, question) == ("search", "a question")
        exported = json.loads(call("search", address, "star planet", "--k", 3, "--json")[1])
        original = json.loads(call("search", place, "star planet", "--k", 3, "--json")[1])
        assert [row["document_id"] for row in exported] == [row["document_id"] for row in original]

    @pytest.mark.parametrize("options", [["--to", "parquet", "--out", "{}"], ["--out", "parquet:{}"]])
    def test_to_parquet(self, build, call, tiny_model, tmp_path, options):
        place, _ = build(f"dense:{tiny_model}")
        status, out, _ = call("export", place, *(option.format(tmp_path / "parquet") for option in options))
        assert status == 0
        assert out.startswith(f"60 documents (dense) in parquet:{tmp_path / 'parquet'}, 60 written now")
        found, original = (
            json.loads(call("search", address, "star planet", "--k", 3, "--json")[1])
            for address in (f"parquet:{tmp_path / 'parquet'}", place)
        )
        assert [row["document_id"] for row in found] == [row["document_id"] for row in original]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--bits", "8"], "'bits' does not fit this kind of index: faiss takes factory"),
            (["--learn", "--truncate", "8"], "--learn takes --bytes and --bits, or --factory"),
            (["--bytes", "8", "--factory", "SQ8"], "bytes chooses the factory"),
            (["--learn"], "needs at least 256"),
            (["--learn", "--bits", "1", "--factory", "PQ8"], "factory PQ8 already says how many a code has"),
            (["--learn", "--bits", "2"], "codes have 1, 4 or 8 bits"),
            (["--learn-queries", "--factory", "OPQ4,PQ4x4,RFlat"], "leave the refinement or the query map out"),
            (["--learn", "--factory", "HNSW32"], "cannot be learned"),
            (["--truncate", "40"], "choose from 1 to 32"),
            (["--recall", "1.5"], "recall: Input should be less than or equal to 1"),
            (["codec=residual"], "'codec' does not fit"),
            (["--codec", "pq"], "'pq' was dropped"),
            (["nonsense=1"], "nonsense"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_options_that_do_not_fit(self, build, tiny_model, options, said):
        place, (status, _, err) = build(f"dense:{tiny_model}", *options)
        assert status == 2
        assert said in err
        assert not place.exists()

    def test_an_unknown_target(self, call, tmp_path):
        status, _, err = call("export", tmp_path, "--to", "qdrnt", "--out", tmp_path / "x")
        assert (status, err) == (
            2,
            "error: unknown target 'qdrnt'. Did you mean 'qdrant'? Known: elasticsearch, lancedb, opensearch, parquet, "
            "pgvector, qdrant.\n",
        )

    def test_parameters_for_an_index_that_is_not_faiss(self, build, call, sparse):
        place, _ = build(sparse)
        status, _, err = call("search", place, "star", "--parameters", "nprobe=4")
        assert status == 2
        assert "are for FAISS" in err
