import numpy as np
import pytest
from qdrant_server import running
from records_of import IDS, dense, export_qdrant, of_kind

from retrodistill.core.errors import UserError
from retrodistill.exports import load_store
from retrodistill.exports.qdrant import QdrantSettings, QdrantStore

NAME = QdrantSettings(name="c")


@pytest.fixture
def server():
    with running() as server:
        yield server


class TestByUrl:
    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_it_is_exported_verified_and_searched(self, server, kind):
        report = export_qdrant(of_kind(kind), None, server.url, NAME)
        assert (report.documents, report.written, report.facts["agreement"]) == (40, 40, 1.0)
        assert report.address == f"qdrant:{server.url}#c"
        assert server.client.count("c").count == 40
        with load_store(report.address) as index:
            assert len(index) == 40

    def test_the_same_command_goes_on(self, server, monkeypatch):
        put = QdrantStore.put

        def failing(self, points):
            put(self, points)
            raise KeyboardInterrupt

        monkeypatch.setattr(QdrantStore, "put", failing)
        with pytest.raises(KeyboardInterrupt):
            export_qdrant(dense()[0], None, server.url, QdrantSettings(name="c", batch=11))
        monkeypatch.undo()
        assert export_qdrant(dense()[0], None, server.url, NAME).written == 29
        assert server.client.count("c").count == 40

    def test_shards_replicas_and_an_index_of_ids(self, server):
        export_qdrant(dense()[0], None, server.url, QdrantSettings(name="c", shards=3, replicas=2))
        assert (server.created[0]["shard_number"], server.created[0]["replication_factor"]) == (3, 2)
        assert [(one["field_name"], one["field_schema"]) for one in server.indexed] == [("document_id", "keyword")]

    def test_codes_find_and_vectors_rank(self, server):
        export_qdrant(dense()[0], None, server.url, QdrantSettings(name="c", quantization="binary"))
        assert server.created[0]["vectors"]["dense"]["quantization_config"] == {"binary": {"always_ram": True}}
        asked = [(one.quantization.rescore, one.quantization.oversampling) for one in server.searched]
        assert asked == [(True, 2.0)] * 40

    def test_plain_vectors_are_searched_as_the_server_does(self, server):
        export_qdrant(dense()[0], None, server.url, NAME)
        assert server.searched == [None] * 40


class TestApproximateSearch:
    @pytest.fixture
    def forgetful(self, server, monkeypatch):
        """A server that finds 8 of 10."""
        best = QdrantStore.best
        monkeypatch.setattr(QdrantStore, "best", lambda *a, **b: [pairs[:-2] for pairs in best(*a, **b)])
        return server

    def test_less_than_is_wanted(self, forgetful):
        with pytest.raises(UserError, match=r"finds 80.0% of the exact top 10 of 40 documents, wanted 90%"):
            export_qdrant(dense()[0], None, forgetful.url, NAME)

    def test_as_much_as_is_wanted(self, forgetful):
        report = export_qdrant(dense()[0], None, forgetful.url, QdrantSettings(name="c", agreement=0.8))
        assert report.facts["agreement"] == pytest.approx(0.8)

    def test_codes_are_reported_on(self, forgetful):
        report = export_qdrant(dense()[0], None, forgetful.url, QdrantSettings(name="c", quantization="scalar"))
        assert report.facts["agreement"] == pytest.approx(0.8)


class TestRefusals:
    def test_the_key_comes_from_the_environment(self, server, monkeypatch):
        server.key = "secret"
        with pytest.raises(UserError, match="refuses the key; set the environment variable QDRANT_API_KEY"):
            export_qdrant(dense()[0], None, server.url, NAME)
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        assert export_qdrant(dense()[0], None, server.url, NAME).documents == len(IDS)

    def test_a_server_that_keeps_no_metadata(self, server):
        server.keeps_metadata = False
        with pytest.raises(UserError, match=r"keeps no metadata of collections; use version 1.16 or newer"):
            export_qdrant(dense()[0], None, server.url, NAME)
        assert not server.client.collection_exists("c")

    def test_a_request_that_it_refuses(self, server, monkeypatch):
        export_qdrant(dense()[0], None, server.url, NAME)
        with (
            load_store(f"qdrant:{server.url}") as index,
            pytest.raises(UserError, match=r"^Qdrant at http.* refuses: "),
        ):
            index.search_vectors(np.ones((1, 5), dtype=np.float32), 3)
