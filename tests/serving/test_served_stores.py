import pytest

from retrodistill.exports import export_index
from retrodistill.indexes import load_index


@pytest.fixture(params=["parquet", "qdrant", "lancedb"])
def address(request, index_folder, small, tmp_path):
    """An exported index, with texts."""
    return export_index(index_folder, f"{request.param}:{tmp_path / 'store'}", small, {"texts": True}).address


class TestStores:
    def test_an_exported_collection_is_served_like_its_index(self, served, address, index_folder):
        client = served(address)
        wanted = load_index(index_folder).search("the moon", k=3).to_dict()["0"]
        found = client.post("/search", json={"query": "the moon", "k": 3}).json()["documents"]
        assert {hit["document_id"]: hit["score"] for hit in found} == pytest.approx(wanted, abs=1e-4)
        assert all(hit["text"] for hit in found)
        found = client.post("/search", json={"query": "the moon", "filter": "year>=2021"}).json()["documents"]
        assert {hit["document_id"] for hit in found} == {"c", "d"}

    def test_it_is_released_when_the_server_ends(self, served, address):
        served(address).server.served.close()
        served(address)  # an embedded Qdrant is open once at a time
