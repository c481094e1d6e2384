"""What retrodistill 0.1.0 saved loads, encodes and searches as it did: see tests/fixtures/saved_at_0.1.0."""

import json
from pathlib import Path

import numpy as np
import pytest

from retrodistill.core.json_files import read_json
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import encode_with
from retrodistill.evaluation.results import Results
from retrodistill.indexes import load_index
from retrodistill.runs import read_run
from retrodistill.students import load_student
from retrodistill.students.registry import get_kind, kind_of

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
MORE = json.loads((SAVED / "expected-more.json").read_text())
OF_STUDENT = {"exact-weights": "sparse", "residual": "multi-vector", "muvera": "multi-vector"}
EXPECTED = json.loads((SAVED / "expected.json").read_text())
ENCODERS = ["static", "hybrid", "sparse", "vdr", "multi-vector", "pooled"]
KINDS = {"vdr": "sparse", "pooled": "multi-vector"}


@pytest.fixture(scope="module")
def collection():
    return load_collection(SAVED / "collection")


def rows(vectors):
    """One array a text, whatever the kind."""
    if hasattr(vectors, "bounds"):
        return [vectors[row] for row in range(len(vectors))]
    return list(vectors.toarray() if hasattr(vectors, "toarray") else vectors)


class TestStudents:
    @pytest.mark.parametrize("name", [*ENCODERS, "prett", "tk"])
    def test_each_is_of_its_kind(self, name):
        assert kind_of(load_student(SAVED / name).model) is get_kind(KINDS.get(name, name))

    @pytest.mark.parametrize("role", ["query", "document"])
    @pytest.mark.parametrize("name", ENCODERS)
    def test_it_encodes_as_it_did(self, name, role, collection):
        texts = collection.queries.texts if role == "query" else collection.documents.texts
        vectors, expected = rows(load_student(SAVED / name).encode(texts, role)), EXPECTED["encoded"][f"{name} {role}"]
        for ours, theirs in zip(vectors, expected, strict=True):
            np.testing.assert_allclose(ours, np.array(theirs), atol=1e-5)

    @pytest.mark.parametrize("role", ["query", "document"])
    @pytest.mark.parametrize("name", ENCODERS)
    def test_it_encodes_in_bfloat16(self, name, role, collection):
        with encode_with(precision="bfloat16"):
            vectors = rows(load_student(SAVED / name).encode(collection.documents.texts, role))
        assert all(np.isfinite(vector).all() and np.abs(vector).max() > 0 for vector in vectors)

    @pytest.mark.parametrize("name", ["prett", "tk"])
    def test_it_scores_pairs_as_it_did(self, name, collection):
        pairs = [(query, document) for query in collection.queries.texts for document in collection.documents.texts]
        scores = load_student(SAVED / name).score(pairs)
        np.testing.assert_allclose(scores, EXPECTED["pairs"][name], atol=1e-4)

    def test_a_static_one_still_searches_the_space_it_was_aligned_to(self):
        assert load_encoder(f"static:{SAVED / 'static'}").query_space == load_index_space()


def load_index_space():
    manifest = json.loads((SAVED / "static-index" / "manifest.json").read_text())
    return manifest["about"]["space"]["fingerprint"]


class TestIndexes:
    @pytest.mark.parametrize("name", ["static", "sparse", "multi-vector"])
    def test_it_finds_what_it_found(self, name, collection):
        index = load_index(SAVED / f"{name}-index", load_student(SAVED / name))
        found = index.search(collection.queries, collection, 3).to_dict()
        expected = EXPECTED["found"][name]
        assert {query: list(documents) for query, documents in found.items()} == {
            query: list(documents) for query, documents in expected.items()
        }
        for query, documents in expected.items():
            assert found[query] == pytest.approx(documents, abs=1e-4)

    @pytest.mark.parametrize("memory_map", [False, True])
    @pytest.mark.parametrize("name", MORE)
    def test_one_of_each_other_kind_finds_what_it_found(self, name, memory_map, collection):
        student = load_student(SAVED / OF_STUDENT.get(name, "hybrid"))
        index = load_index(SAVED / f"{name}-index", student, memory_map=memory_map)
        found = index.search(collection.queries, collection, 3).to_dict()
        assert found.keys() == MORE[name].keys()
        for query, documents in MORE[name].items():
            assert found[query] == pytest.approx(documents, abs=1e-4)


class TestOthers:
    @pytest.mark.parametrize("ending", ["run", "jsonl", "parquet"])
    def test_runs(self, ending):
        run = read_run(SAVED / f"found.{ending}").to_dict()
        for query, documents in MORE["muvera"].items():
            assert run[query] == pytest.approx(documents)

    def test_exports(self, collection):
        exported = load_index(f"parquet:{SAVED / 'exported'}", load_student(SAVED / "hybrid"))
        found = exported.search(collection.queries, k=3).to_dict()
        for query, documents in MORE["ivf"].items():
            assert found[query] == pytest.approx(documents, abs=1e-4)

    def test_evaluations(self):
        results = Results.from_json(read_json(SAVED / "evaluated" / "results.json"))
        assert [(row["name"], row["ndcg@10"]) for row in results.to_json()["systems"]] == [("bm25", 1.0)]
