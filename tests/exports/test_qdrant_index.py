import shutil

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from records_of import IDS, dense, export_qdrant, multi_vector, space, sparse

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.evaluation import evaluate
from retrodistill.exports import StoreIndex, load_store, vector_records
from retrodistill.exports.qdrant import QdrantSettings, QdrantStore
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import Ranker, load_ranker


@pytest.fixture(scope="module")
def exported(tiny_folder, tiny_static, tmp_path_factory):
    """An embedded Qdrant of the tiny collection, made once."""
    place = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(place / "cache"))
        collection = load_collection(tiny_folder)
        index = build_index(collection, f"static:{tiny_static}")
        export_qdrant(index, collection, place / "qdrant", QdrantSettings(name="tiny"))
    return place / "qdrant"


@pytest.fixture
def address(exported, tmp_path):
    return f"qdrant:{shutil.copytree(exported, tmp_path / 'qdrant')}#tiny"


@pytest.fixture
def client():
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def index(tiny, tiny_static):
    return build_index(tiny, f"static:{tiny_static}")


class TestSearching:
    def test_it_finds_what_the_exported_index_finds(self, tiny, index, address):
        queries = tiny.split("test")
        with load_store(address) as there:
            found, wanted = there.search(queries, tiny, 10), index.search(queries, tiny, 10)
            assert found.query_ids == wanted.query_ids
            assert list(found.document_ids) == list(wanted.document_ids)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
            assert list(there.search("star planet", k=3).document_ids) == list(
                index.search("star planet", k=3).document_ids
            )

    def test_it_is_a_ranker_by_its_address(self, tiny, index, address):
        wanted = evaluate({"here": index}, tiny).means["here"]
        for load in (load_index, load_ranker):
            with load(address) as there:
                assert there.can_search
                assert evaluate({"there": there}, tiny).means["there"] == pytest.approx(wanted)
        assert evaluate({"there": address}, tiny).means["there"] == pytest.approx(wanted)

    def test_vectors_that_were_cut_short(self, tiny, tiny_static, client):
        index = build_index(tiny, f"static:{tiny_static}", truncate=8)
        export_qdrant(index, tiny, client, QdrantSettings(name="c"))
        there = StoreIndex(QdrantStore(client, QdrantSettings(name="c")))
        found, wanted = there.search("star planet", k=5), index.search("star planet", k=5)
        assert list(found.document_ids) == list(wanted.document_ids)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)

    def test_it_is_a_retriever(self, tiny, address):
        with load_store(address) as there:
            assert isinstance(there, Ranker)
            assert len(there) == 60
            assert repr(there).startswith("StoreIndex(60 documents by static:")
            with pytest.raises(UserError, match="is an exported store"):
                there.add(tiny.documents)
            assert there.bytes_per_document(tiny) is None
            answer = there.query_fn(tiny, 4)("star planet")[0]
            assert [document for document, _ in answer] == list(there.search("star planet", k=4).document_ids)

    def test_k_is_cut_for_a_collection_and_refused_for_a_query(self, tiny, address):
        with load_store(address) as there:
            assert len(there.search(tiny.split("test"), tiny, 1000)) == 60 * 12
            with pytest.raises(UserError, match="k=61: the corpus has 60 documents"):
                there.search("star", k=61)
            with pytest.raises(UserError, match="is empty"):
                there.search(" ")


class TestKinds:
    def exported(self, client, records):
        export_qdrant(records, None, client, QdrantSettings(name="c"))
        return StoreIndex(QdrantStore(client, QdrantSettings(name="c")))

    def test_sparse_queries(self, client):
        records, rows = sparse()
        run = self.exported(client, records).search_vectors(rows[[0, 3, 9]], 10, ["a", "without entries", "b"])
        assert run.query_ids == ["a", "b"]
        for query, row in (("a", 0), ("b", 9)):
            scores = (rows @ rows[[row]].T).toarray().ravel()
            best = [IDS[place] for place in np.argsort(-scores)[: min(10, (scores > 0).sum())]]
            assert list(run.select([query]).document_ids) == best

    def test_scores_per_query_token(self, client):
        tokens = multi_vector()[1]
        queries = Tokens.of([np.eye(4)[:2], np.eye(4)[:3]], 4)
        means = self.exported(client, vector_records(IDS, tokens, space(4, "meanmaxsim")))
        run = means.search_vectors(queries, 39)
        nearest = {one: tokens[row].max(axis=0) for row, one in enumerate(IDS) if len(tokens[row])}
        for query, length in (("0", 2), ("1", 3)):
            found = run.select([query])
            wanted = [nearest[one][:length].mean() for one in found.document_ids]
            np.testing.assert_allclose(found.scores, wanted, rtol=1e-5)

    def test_without_an_encoder_vectors_only(self, client):
        index = self.exported(client, dense()[0])
        assert len(index.search_vectors(np.ones((2, 6), dtype=np.float32), 3)) == 6
        with pytest.raises(UserError, match="has no query encoder"):
            index.search("star")

    def test_a_filter(self, client):
        index = self.exported(client, dense()[0])
        run = index.search_vectors(dense()[1][:1], 5, filter={"document_id": ["d7", "d9", "none"]})
        assert sorted(run.document_ids) == ["d7", "d9"]

    def test_points_of_others_are_named(self, client):
        index = self.exported(client, dense()[0])
        client.upsert("c", [models.PointStruct(id=1, vector={"dense": [100.0] * 6})])
        with pytest.raises(UserError, match="holds point 1, which names no document"):
            index.search_vectors(np.ones((1, 6), dtype=np.float32), 3)


class TestContract:
    def test_queries_of_another_space_are_refused(self, address, tiny_model):
        with pytest.raises(UserError, match="do not belong among documents by static:"):
            load_store(address, f"dense:{tiny_model}")

    def test_a_refusal_lets_go_of_the_folder(self, address, tiny_model):
        for _ in range(2):
            with pytest.raises(UserError, match="do not belong"):
                load_store(address, f"dense:{tiny_model}")
        load_store(address).close()

    def test_a_collection_that_was_not_exported(self, tmp_path):
        client = QdrantClient(path=str(tmp_path))
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.close()
        with pytest.raises(UserError, match="was not exported by retrodistill"):
            load_store(f"qdrant:{tmp_path}#c")


class TestAddresses:
    def test_the_only_collection_needs_no_name(self, address):
        with load_store(address.partition("#")[0]) as there:
            assert there.store.name == "tiny"

    def test_one_process_at_a_time(self, address):
        with load_store(address), pytest.raises(UserError, match="in use by another process"):
            load_store(address)

    def test_a_name_that_is_not_there(self, address):
        with pytest.raises(UserError, match=r"has no collection 'tinny'; there are: 'tiny'. Write 'qdrant:.*#NAME'"):
            load_store(address.replace("#tiny", "#tinny"))

    def test_several_and_none_named(self, address):
        place = address.partition("#")[0]
        other = QdrantClient(path=place.removeprefix("qdrant:"))
        other.create_collection("c", vectors_config={})
        other.close()
        with pytest.raises(UserError, match="holds 2 collections; there are: 'c', 'tiny'"):
            load_store(place)

    def test_no_folder_is_made_by_looking(self, tmp_path):
        with pytest.raises(UserError, match="no Qdrant folder"):
            load_store(f"qdrant:{tmp_path / 'absent'}#c")
        assert not (tmp_path / "absent").exists()

    @pytest.mark.parametrize("text", ["qdrant:", "qdrant:#c"])
    def test_one_without_a_place(self, text):
        with pytest.raises(UserError, match="names no place; write 'qdrant:FOLDER#NAME'"):
            load_store(text)
