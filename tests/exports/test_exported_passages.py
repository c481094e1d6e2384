"""Indexes of passages in stores."""

import pyarrow.parquet as pq
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.exports import export_index, load_store
from retrodistill.indexes import build_index

pytest.importorskip("qdrant_client")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def cut_up(_cache, tiny_folder):
    return load_collection(tiny_folder, passages="12,4")


@pytest.fixture(scope="module")
def index(cut_up, tiny_static):
    return build_index(cut_up, f"static:{tiny_static}")


@pytest.fixture(scope="module", params=["qdrant", "lancedb", "parquet"])
def store(request, index, tiny_folder, tmp_path_factory):
    """An export, made once."""
    place = f"{request.param}:{tmp_path_factory.mktemp('exported') / 'store'}"
    with load_store(export_index(index, place, load_collection(tiny_folder)).address) as opened:
        yield opened


class TestAStore:
    def test_it_finds_the_documents_that_the_index_finds(self, index, store):
        assert store.size == 60 < len(store) == len(index)
        found, wanted = store.search("heart star", k=7), index.search("heart star", k=7)
        assert found.table["document_id"].to_pylist() == wanted.table["document_id"].to_pylist()
        assert found.table["passage_id"].to_pylist() == wanted.table["passage_id"].to_pylist()
        assert found.scores == pytest.approx(wanted.scores, abs=1e-5)

    def test_it_is_measured_as_the_index(self, index, store, tiny, cut_up):
        queries = tiny.split("test")
        for collection in (tiny, cut_up):
            found, wanted = store.search(queries, collection, 5), index.search(queries, collection, 5)
            assert list(found.document_ids) == list(wanted.document_ids)

    def test_a_filter_on_documents_finds_these(self, store):
        vectors = store.queries.encode(["heart"], "query")
        found = store.search_vectors(vectors, 5, filter={"document_id": ["d3", "d4"]})
        assert set(found.document_ids) == {"d3", "d4"}

    def test_the_mean_needs_what_a_store_does_not_know(self, store):
        with pytest.raises(UserError, match="mean@2"):
            store.search("heart", k=3, aggregate="mean@2")


def test_parquet_has_a_row_per_passage_with_its_document(index, tiny, tmp_path):
    export_index(index, f"parquet:{tmp_path / 'store'}", tiny, {"texts": True})
    table = pq.read_table(tmp_path / "store" / "documents")
    assert table["passage_id"].to_pylist() == index.ids
    assert table["document_id"].to_pylist() == index.parents.column.to_pylist()
    assert table["title"].to_pylist()[0] == tiny.titles["d0"]
    assert len(table["text"].to_pylist()[0].split()) <= 12
