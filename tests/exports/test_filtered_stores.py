"""Fields in exported stores, and filters there against masks over the same fields."""

import contextlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import QdrantClient
from records_of import IDS as ANY_IDS
from records_of import dense as dense_records
from records_of import export_parquet, export_qdrant
from records_of import multi_vector as multi_vector_records
from search_server import running

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.data.fields import fields_table
from retrodistill.data.filters import mask_of, parse_filter
from retrodistill.encoders.vector_files import read_vectors
from retrodistill.exports.exporting import export_index
from retrodistill.exports.index import StoreIndex, load_store
from retrodistill.exports.qdrant import QdrantSettings, QdrantStore

pytestmark = pytest.mark.xdist_group("postgres")
IDS = [id_[:500] for id_ in ANY_IDS]  # all of these stores take them
FIELDS = {
    id_: {
        "year": 2000 + row % 7,
        "score": row / 4,
        "open": row % 2 == 0,
        "lang": ["de", "fr", "en"][row % 3],
        "tags": [["x"], ["x", "y"], [], None][row % 4],
        "sizes": [row % 3, 7],
        "day": f"2020-01-{1 + row % 28:02d}",
        "at": f"2020-01-01T{row % 24:02d}:00:00Z",
    }
    for row, id_ in enumerate(IDS)
    if row % 5
}
TABLE = fields_table(FIELDS, IDS)[0]
FILTERS = [
    {"year": 2003},
    {"year": {"!=": 2003}},
    {"year": {">=": 2002, "<": 2005.5}},
    {"year": [2001, 2002]},
    {"year": {"not in": [2001, 2002]}},
    {"year": {"in": []}},
    {"score": 1.5},
    {"score": {">": 3, "<=": 7.25}},
    {"score": {"in": [1.5, 2]}},
    {"open": True},
    {"open": {"!=": True}, "lang": ["de", "en"]},
    {"lang": {"not in": ["de"]}},
    {"tags": "x"},
    {"tags": {"!=": "y"}},
    {"tags": {"in": ["y", "z"]}},
    {"tags": {"not in": ["y"]}},
    {"tags": {"exists": True}},
    {"tags": {"null": True}},
    {"sizes": {"contains": 2}},
    {"day": {">=": "2020-01-10", "<": "2020-01-20"}},
    {"day": "2020-01-05"},
    {"at": {">": "2020-01-01T12:00:00", "<=": "2020-01-01T20:00:00+01:00"}},
    {"year": {"null": True}},
    {"year": {"exists": True}},
    {"or": [{"year": 2001}, {"lang": "de", "open": False}]},
    {"document_id": ["d7", "d9", "none"]},
    {},
]


def dense():
    return dense_records(ids=IDS)


def multi_vector():
    records, tokens = multi_vector_records()
    return replace(records, ids=IDS), tokens


@pytest.fixture(scope="module")
def corpus():
    return Collection.from_parts("c", dict.fromkeys(IDS, ("", "text")), {}, {}, FIELDS)


@pytest.fixture(scope="module")
def search_servers():
    """Where servers are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", params=["qdrant", "parquet", "pgvector", "lancedb", "elasticsearch", "opensearch"])
def store(request, corpus, tmp_path_factory):
    """An index of a store with all fields."""
    records = dense()[0]
    if request.param in ("elasticsearch", "opensearch"):
        server = request.getfixturevalue("search_servers").enter_context(running(request.param))
        export_index(records, server.place("filtered"), corpus, {"texts": True})
        return load_store(server.place("filtered"))
    if request.param == "pgvector":
        place = f"pgvector:{request.getfixturevalue('postgres')}#filtered"
        export_index(records, place, corpus, {"texts": True, "index": "none"})
        return load_store(place)
    if request.param == "lancedb":
        place = f"lancedb:{tmp_path_factory.mktemp('lancedb')}#filtered"
        export_index(records, place, corpus, {"texts": True, "batch": 7})
        return load_store(place)
    if request.param == "parquet":
        out = tmp_path_factory.mktemp("parquet") / "out"
        export_parquet(records, corpus, out, {"rows": 7, "texts": True})
        return load_store(f"parquet:{out}")
    client = QdrantClient(":memory:")
    export_qdrant(records, corpus, client, QdrantSettings(name="c", texts=True))
    return StoreIndex(QdrantStore(client, name="c"))


class TestFilters:
    @pytest.mark.parametrize("given", FILTERS, ids=str)
    def test_pass_what_a_mask_passes_and_rank_it_exactly(self, store, given):
        vectors = dense()[1]
        ids = pa.chunked_array([IDS], pa.string())
        table = TABLE.append_column("document_id", ids)
        inside = np.flatnonzero(mask_of(parse_filter(given, table.schema), table))
        run = store.search_vectors(vectors[:2], len(IDS), filter=given)
        for query in range(2):
            order = inside[np.argsort(-(vectors[inside] @ vectors[query]))]
            assert list(run.select([str(query)]).document_ids) == [IDS[row] for row in order]

    def test_the_best_k_of_those_that_pass(self, store):
        run = store.search_vectors(dense()[1][:2], 3, filter={"lang": "fr"})
        assert [len(ids) for _, ids, _ in run] == [3, 3]

    def test_unknown_fields_are_named(self, store):
        with pytest.raises(UserError, match=r"'langue'.*'lang'.*text \(string\)"):
            store.search_vectors(dense()[1][:1], 3, filter={"langue": "de"})


class TestFields:
    def test_come_back_with_their_types(self, store):
        wanted = {**TABLE.to_pylist()[6], "text": "text"}
        assert store.fields_of([IDS[5], IDS[6]])[0] == {"text": "text"}
        assert store.fields_of([IDS[6]]) == [wanted]
        with pytest.raises(UserError, match="'nobody'"):
            store.fields_of(["nobody"])

    def test_of_the_index_come_first_and_can_be_chosen(self, corpus, tmp_path):
        records = replace(dense()[0], columns=pa.table({"own": range(len(IDS)), "other": ["x"] * len(IDS)}))
        export_parquet(records, corpus, tmp_path / "p", {"fields": "own"})
        index = load_store(f"parquet:{tmp_path / 'p'}")
        assert index.schema.names == ["own", "document_id", "title"]
        assert index.fields_of([IDS[2]]) == [{"own": 2}]

    def test_a_field_called_id_is_not_the_id_of_exported_vectors(self, tmp_path):
        columns = pa.table({"id": [f"other {row}" for row in range(len(IDS))]})
        export_parquet(replace(dense()[0], columns=columns), None, tmp_path / "p")
        assert list(read_vectors(tmp_path / "p" / "documents", with_texts=False, unit=False).ids) == IDS

    def test_texts_of_the_index_without_a_collection(self, tmp_path):
        columns = pa.table({"title": ["A"] * len(IDS), "text": ["B"] * len(IDS)})
        export_parquet(replace(dense()[0], columns=columns), None, tmp_path / "p", {"texts": True})
        assert load_store(f"parquet:{tmp_path / 'p'}").fields_of(["d1"]) == [{"title": "A", "text": "B"}]

    def test_of_multi_vector_documents(self, corpus, tmp_path):
        records, tokens = multi_vector()
        export_parquet(records, corpus, tmp_path / "p")
        run = load_store(f"parquet:{tmp_path / 'p'}").search_vectors(tokens.slice(0, 1), 40, filter={"lang": "de"})
        assert set(run.document_ids) == {id_ for id_, own in FIELDS.items() if own["lang"] == "de"} - {IDS[3]}

    def test_a_name_of_another_column_is_refused(self, tmp_path):
        records = replace(dense()[0], columns=pa.table({"vector": range(len(IDS))}))
        with pytest.raises(UserError, match="'vector'"):
            export_parquet(records, None, tmp_path / "p")

    def test_other_fields_are_another_export(self, corpus, tmp_path):
        export_parquet(dense()[0], corpus, tmp_path / "p")
        with pytest.raises(UserError, match="fields"):
            export_parquet(dense()[0], corpus, tmp_path / "p", {"fields": ["year"]})

    def test_qdrant_does_not_order_strings(self, corpus):
        client = QdrantClient(":memory:")
        export_qdrant(dense()[0], corpus, client, QdrantSettings(name="c"))
        with pytest.raises(UserError, match="'lang'"):
            StoreIndex(QdrantStore(client, name="c")).search_vectors(dense()[1][:1], 3, filter={"lang": {"<": "e"}})
