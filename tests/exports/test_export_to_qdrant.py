import sqlite3
import sys
import uuid
import warnings

import numpy as np
import pytest
from qdrant_child import killed
from qdrant_client import QdrantClient, models
from qdrant_client.local.persistence import CollectionPersistence
from records_of import IDS, dense, export_qdrant, multi_vector, of_kind, sparse

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.exports import export_index, load_store, vector_records
from retrodistill.exports import qdrant as module
from retrodistill.exports.qdrant import QUANTIZATIONS, QdrantSettings, QdrantStore, batch_size, point_id

NAME = QdrantSettings(name="c")


@pytest.fixture
def client():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the client's remarks about its embedded mode are not for users
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # a client that finds its folder in use leaves its database open
        client = QdrantClient(":memory:")
        yield client
        client.close()


@pytest.fixture
def titled():
    documents = {one: ("" if one == "0" else f"title of {row}", f"text {row}") for row, one in enumerate(IDS)}
    return Collection.from_parts("titled", documents, {}, {})


def points(client, name="c"):
    return client.scroll(name, limit=1000, with_vectors=True)[0]


class SlowConnection:
    """Not one that the store knows."""

    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def __enter__(self):
        return self.connection.__enter__()

    def __exit__(self, *error):
        return self.connection.__exit__(*error)


class TestVectors:
    @pytest.mark.parametrize(("similarity", "distance"), [("dot", "Dot"), ("cosine", "Cosine")])
    def test_dense_ones_arrive_under_their_space_s_distance(self, client, similarity, distance):
        records, vectors = dense(similarity)
        report = export_qdrant(records, None, client, NAME)
        assert (report.documents, report.written, report.facts["agreement"]) == (40, 40, 1.0)
        assert report.facts["difference"] < 1e-6
        assert client.get_collection("c").config.params.vectors["dense"].distance == distance
        stored = {point.payload["document_id"]: point.vector["dense"] for point in points(client)}
        np.testing.assert_allclose([stored[one] for one in IDS], vectors, atol=1e-6)

    def test_a_search_ranks_as_the_inner_product(self, client):
        records, vectors = dense()
        export_qdrant(records, None, client, NAME)
        query = np.ones(6)
        found = client.query_points("c", query=query.tolist(), using="dense", limit=5).points
        best = np.argsort(-(vectors @ query))[:5]
        assert [point.payload["document_id"] for point in found] == [IDS[row] for row in best]
        np.testing.assert_allclose([point.score for point in found], (vectors @ query)[best], rtol=1e-5)

    def test_sparse_ones_arrive_entry_by_entry(self, client):
        records, rows = sparse()
        assert export_qdrant(records, None, client, NAME).facts["agreement"] == 1.0
        stored = {point.payload["document_id"]: point.vector for point in points(client)}
        for row, one in enumerate(IDS):
            wanted = rows[[row]].tocoo()
            if one == "0":  # it has no entry
                assert stored[one] == {}
                continue
            assert stored[one]["sparse"].indices == wanted.coords[1].tolist()
            np.testing.assert_allclose(stored[one]["sparse"].values, wanted.data, rtol=1e-6)

    def test_token_vectors_are_compared_by_max_sim(self, client):
        records, tokens = multi_vector()
        assert export_qdrant(records, None, client, NAME).facts["agreement"] == 1.0
        query = np.eye(4, dtype=np.float32)[:2]
        found = client.query_points("c", query=query.tolist(), using="multi-vector", limit=50).points
        scores = {one: sum((tokens[row] @ query.T).max(axis=0)) for row, one in enumerate(IDS) if len(tokens[row])}
        assert len(found) == 39  # the one without tokens is a point and is never found
        assert client.count("c").count == 40
        for point in found:
            assert point.score == pytest.approx(scores[point.payload["document_id"]], rel=1e-5)
        assert [point.payload["document_id"] for point in found] == sorted(scores, key=scores.get, reverse=True)


class TestPayload:
    def test_ids_of_any_form_come_back_and_points_are_uuids(self, client):
        export_qdrant(dense()[0], None, client, NAME)
        found = {point.payload["document_id"]: point.id for point in points(client)}
        assert set(found) == set(IDS)
        assert found == {one: point_id(one) for one in IDS}
        assert all(str(uuid.UUID(point)) == point for point in found.values())

    def test_titles_but_no_texts_by_default(self, client, titled):
        export_qdrant(dense()[0], titled, client)
        found = {point.payload["document_id"]: point.payload for point in points(client, "titled")}
        assert found["plain"] == {"document_id": "plain", "title": "title of 0"}
        assert found["0"] == {"document_id": "0"}  # it has no title

    def test_texts_on_demand(self, client, titled):
        export_qdrant(dense()[0], titled, client, QdrantSettings(texts=True))
        assert all(point.payload["text"].startswith("text ") for point in points(client, "titled"))

    def test_a_collection_without_some_documents(self, client, titled):
        records = dense(ids=[*IDS[:3], "stranger", "other"])[0]
        with pytest.raises(UserError, match=r"lacks 2 documents of the index \('stranger', 'other'\)"):
            export_qdrant(records, titled, client)

    def test_texts_without_a_collection(self, client):
        with pytest.raises(UserError, match="there is no collection to take them from"):
            export_qdrant(dense()[0], None, client, QdrantSettings(texts=True))


class TestResuming:
    @pytest.mark.xdist_group("children")
    def test_a_process_that_was_killed(self, tmp_path):
        killed(
            "from qdrant_client.local.persistence import CollectionPersistence\n"
            "die_after(CollectionPersistence, 'persist', 8)\n"  # in the middle of the third transaction
            "export_qdrant(dense()[0], None, sys.argv[1], QdrantSettings(name='c', batch=3))",
            tmp_path / "qdrant",
        )
        with pytest.raises(UserError, match=r"holds 6 of 40 documents and is not verified.*run the same export again"):
            load_store(f"qdrant:{tmp_path / 'qdrant'}#c")
        report = export_qdrant(dense()[0], None, tmp_path / "qdrant", NAME)
        assert (report.documents, report.written, report.facts["agreement"]) == (40, 34, 1.0)
        again = QdrantClient(path=str(tmp_path / "qdrant"))
        assert sorted(point.payload["document_id"] for point in points(again)) == sorted(IDS)
        again.close()

    def test_a_batch_is_one_commit(self, tmp_path):
        def commits(name):
            said = []
            store = QdrantStore.open(str(tmp_path / name), QdrantSettings(name="c", batch=20), create=True)
            store.create(dense()[0])
            connection = store.client._client.collections["c"].storage.storage
            connection.set_trace_callback(said.append)
            store.upload(dense()[0].batches(20))
            assert store.client._client.collections["c"].storage.storage is connection
            store.close()
            return said.count("COMMIT")

        assert commits("q") == 2

    def test_a_batch_that_fails_is_not_there(self, tmp_path, monkeypatch):
        persist, calls = CollectionPersistence.persist, []

        def failing(self, point):
            calls.append(1)
            if len(calls) == 25:
                raise sqlite3.OperationalError("database or disk is full")
            persist(self, point)

        monkeypatch.setattr(CollectionPersistence, "persist", failing)
        with pytest.raises(UserError, match=r"cannot write .*run it again to go on"):
            export_qdrant(dense()[0], None, tmp_path / "q", QdrantSettings(name="c", batch=20))
        monkeypatch.undo()
        assert export_qdrant(dense()[0], None, tmp_path / "q", NAME).written == 20

    def test_a_client_that_keeps_its_points_otherwise(self, tmp_path):
        with module.one_transaction(object(), "c"):
            pass
        store = QdrantStore.open(str(tmp_path / "q"), NAME, create=True)
        store.create(dense()[0])
        held = store.client._client.collections["c"].storage
        held.storage, connection = SlowConnection(held.storage), held.storage
        assert store.upload(dense()[0].batches(20)) == 40
        assert type(held.storage) is SlowConnection
        assert connection.execute("SELECT count(*) FROM points").fetchone() == (40,)
        store.close()

    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_an_error_in_the_middle(self, client, kind, monkeypatch):
        put, calls = QdrantStore.put, []

        def failing(self, points):
            put(self, points[:2])
            calls.append(1)
            raise KeyboardInterrupt

        monkeypatch.setattr(QdrantStore, "put", failing)
        with pytest.raises(KeyboardInterrupt):
            export_qdrant(of_kind(kind), None, client, NAME)
        monkeypatch.undo()
        assert client.count("c").count == 2
        report = export_qdrant(of_kind(kind), None, client, QdrantSettings(name="c", batch=7))
        assert (report.written, report.documents) == (38, 40)
        assert sorted(point.payload["document_id"] for point in points(client)) == sorted(IDS)

    def test_nothing_is_written_twice(self, client):
        export_qdrant(dense()[0], None, client, NAME)
        assert export_qdrant(dense()[0], None, client, NAME).written == 0
        assert client.count("c").count == 40


class TestAnotherSource:
    def test_other_vectors(self, client):
        export_qdrant(dense()[0], None, client, NAME)
        with pytest.raises(UserError, match=r"^qdrant:.*#c holds something else \(vectors \w+"):
            export_qdrant(dense(seed=7)[0], None, client, NAME)
        assert client.count("c").count == 40

    def test_other_settings(self, client, titled):
        export_qdrant(dense()[0], titled, client)
        with pytest.raises(UserError, match=r"\(texts none, wanted \w+; texts False, wanted True\); choose"):
            export_qdrant(dense()[0], titled, client, QdrantSettings(texts=True))

    def test_a_collection_of_somebody_else_stays_as_it_is(self, client):
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 2.0])])
        with pytest.raises(UserError, match=r"holds something else \(retrodistill did not make it\)"):
            export_qdrant(dense()[0], None, client, NAME)
        assert client.count("c").count == 1

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="holds other files"):
            export_qdrant(dense()[0], None, tmp_path)


class TestVerification:
    @pytest.fixture
    def exported(self, client):
        export_qdrant(dense()[0], None, client, NAME)
        return client

    def test_an_altered_vector(self, exported):
        vector = models.PointVectors(id=point_id("d7"), vector={"dense": [9.0] * 6})
        exported.update_vectors("c", [vector])
        with pytest.raises(UserError, match=r"other vectors or ids than the source for 1 of 40 documents \('d7'\)"):
            export_qdrant(dense()[0], None, exported, NAME)

    def test_an_altered_id(self, exported):
        exported.set_payload("c", {"document_id": "d9"}, points=[point_id("d7")])
        with pytest.raises(UserError, match=r"for 1 of 40 documents \('d7'\)"):
            export_qdrant(dense()[0], None, exported, NAME)

    @pytest.mark.parametrize("kind", ["sparse", "multi-vector"])
    def test_a_vector_that_was_swapped(self, client, kind):
        export_qdrant(of_kind(kind), None, client, NAME)
        other = client.retrieve("c", [point_id("d8")], with_vectors=True)[0].vector
        client.update_vectors("c", [models.PointVectors(id=point_id("d7"), vector=other)])
        with pytest.raises(UserError, match=r"for 1 of 40 documents \('d7'\)"):
            export_qdrant(of_kind(kind), None, client, NAME)

    def test_a_point_too_many(self, exported):
        exported.upsert("c", [models.PointStruct(id=1, vector={"dense": [1.0] * 6})])
        with pytest.raises(UserError, match="holds 41 points, the source 40 documents"):
            export_qdrant(dense()[0], None, exported, NAME)

    def test_rankings_that_differ(self, exported, monkeypatch):
        monkeypatch.setattr(QdrantStore, "best", lambda self, queries, k, filter=None: [[("d1", 1.0)]] * len(queries))
        with pytest.raises(UserError, match=r"finds \d+\.\d% of the exact top 10 of 40 documents, wanted 100%"):
            export_qdrant(dense()[0], None, exported, NAME)

    def test_what_failed_is_not_taken_for_verified(self, exported):
        exported.update_vectors("c", [models.PointVectors(id=point_id("d7"), vector={"dense": [9.0] * 6})])
        with pytest.raises(UserError, match="other vectors"):
            export_qdrant(dense()[0], None, exported, NAME)
        assert not QdrantStore(exported, NAME).manifest().about["is_complete"]

    def test_ties_may_stand_in_any_order(self, client):
        vectors = np.ones((40, 6), dtype=np.float32)
        vectors[::2, 0] = 2
        records = vector_records(IDS, vectors, dense()[0].space)
        assert export_qdrant(records, None, client, NAME).facts["agreement"] == 1.0


class TestQuantization:
    @pytest.mark.parametrize("name", QUANTIZATIONS)
    @pytest.mark.parametrize("kind", ["dense", "multi-vector"])
    def test_it_arrives_in_the_collection(self, client, kind, name):
        report = export_qdrant(of_kind(kind), None, client, QdrantSettings(name="c", quantization=name))
        config = client.get_collection("c").config.params.vectors[kind].quantization_config
        assert list(config.model_dump()) == [name]
        assert report.facts["agreement"] == 1.0  # an embedded Qdrant searches exactly all the same

    def test_none_by_default(self, client):
        export_qdrant(dense()[0], None, client, NAME)
        assert client.get_collection("c").config.params.vectors["dense"].quantization_config is None

    def test_an_unknown_one(self):
        with pytest.raises(UserError, match=r"quantization: .*'scalar', 'product' or 'binary'"):
            export_index(dense()[0], "qdrant::memory:", None, {"quantization": "scaler"})

    def test_of_sparse_vectors(self, client):
        with pytest.raises(UserError, match="Qdrant quantizes no sparse vectors"):
            export_qdrant(of_kind("sparse"), None, client, QdrantSettings(quantization="scalar"))
        assert not client.get_collections().collections


class TestBatches:
    @pytest.mark.parametrize(
        ("kind", "dimension", "wanted"),
        [
            ("dense", 384, 256),
            ("dense", 4096, 244),
            ("multi-vector", 128, 15),
            ("multi-vector", 4096, 1),
            ("sparse", 9, 256),
        ],
    )
    def test_they_fit_into_a_request(self, kind, dimension, wanted):
        assert batch_size(kind, dimension) == wanted


class TestBadInput:
    def test_the_package_is_missing(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "qdrant_client", None)
        with pytest.raises(UserError, match=r"needs the package qdrant-client.*pip install retrodistill\[qdrant\]"):
            export_qdrant(dense()[0], None, tmp_path / "q")
        with pytest.raises(UserError, match="needs the package qdrant-client"):
            load_store(f"qdrant:{tmp_path}")

    def test_no_server(self):
        with pytest.raises(UserError, match=r"^Qdrant at http://127.0.0.1:1 does not answer \(.*refused\)"):
            export_qdrant(dense()[0], None, "http://127.0.0.1:1", NAME)

    def test_a_folder_in_use(self, tmp_path):
        holder = QdrantClient(path=str(tmp_path / "q"))
        with pytest.raises(UserError, match="is in use by another process"):
            export_qdrant(dense()[0], None, tmp_path / "q", NAME)
        holder.close()

    def test_a_name_that_qdrant_refuses(self, client):
        with pytest.raises(UserError, match="cannot be called 'a/b'"):
            export_qdrant(dense()[0], None, client, QdrantSettings(name="a/b"))

    @pytest.mark.parametrize("settings", [{"batch": 0}, {"sample": 0}, {"shards": -1}, {"agreement": 1.5}])
    def test_settings_out_of_range(self, settings, tmp_path):
        with pytest.raises(UserError, match=f"export to qdrant: {next(iter(settings))}: "):
            export_qdrant(dense()[0], None, tmp_path / "q", settings)
        assert not (tmp_path / "q").exists()

    def test_a_damaged_folder(self, tmp_path):
        export_qdrant(dense()[0], None, tmp_path / "q", NAME)
        database = tmp_path / "q" / "collection" / "c" / "storage.sqlite"
        database.write_bytes(database.read_bytes()[:5000])
        with pytest.raises(UserError, match="is damaged"):
            load_store(f"qdrant:{tmp_path / 'q'}")

    def test_many_documents_in_a_folder_are_remarked_on(self, client, monkeypatch):
        said = []
        monkeypatch.setattr(module, "log", said.append)
        monkeypatch.setattr(module, "_MANY", 39)
        export_qdrant(dense()[0], None, client, NAME)
        assert said == ["40 documents: an embedded Qdrant is meant for up to 39; use a server for more."]
