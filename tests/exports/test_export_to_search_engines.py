"""Exports to Elasticsearch and OpenSearch: their clients against a server that takes what the documentation says."""

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from records_of import IDS as ANY_IDS
from records_of import dense as records_of_dense
from records_of import multi_vector, space, sparse
from scipy.sparse import csr_array
from search_server import kept, running

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import Collection, load_collection
from retrodistill.data.filters import parse_filter
from retrodistill.exports import export_index, load_store, vector_records
from retrodistill.exports.records import exact_search
from retrodistill.exports.search_engines import rest
from retrodistill.exports.search_engines.query_dsl import to_query
from retrodistill.exports.search_engines.store import SearchEngineStore, inner_product
from retrodistill.indexes import build_index

ENGINES = ["elasticsearch", "opensearch"]
IDS = [id_[:500] for id_ in ANY_IDS]  # one of them is too long for these stores
LOGINS = {"elasticsearch": "ELASTICSEARCH", "opensearch": "OPENSEARCH"}


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr(rest, "_FIRST_PAUSE", 0.0)
    for name in (
        "ELASTICSEARCH_API_KEY",
        *(f"{one}_{part}" for one in LOGINS.values() for part in ("USER", "PASSWORD")),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=ENGINES)
def server(request):
    with running(request.param) as server:
        yield server


@pytest.fixture
def elasticsearch():
    with running("elasticsearch") as server:
        yield server


def dense(*arguments, **options):
    return records_of_dense(*arguments, ids=IDS, **options)


def learned_sparse(tokens=None):
    rows = sparse()[1]
    vocabulary = tokens or [f"word{number}" for number in range(30)]
    return vector_records(IDS, rows, space(30, "dot"), vocabulary=vocabulary), rows


def export(source, place, collection=None, **settings):
    return export_index(source, place, collection, settings)


def asked(server, verb):
    """The bodies of the requests to an endpoint."""
    return [body for _, path, body in server.asked if path.partition("?")[0].endswith(verb)]


class TestDense:
    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_vectors_arrive_and_are_found_with_their_inner_products(self, server, similarity):
        records, vectors = dense(similarity)
        report = export(records, server.place("docs"))
        assert (report.documents, report.written, report.address) == (40, 40, server.place("docs"))
        assert (report.facts["agreement"], report.facts["difference"]) == (1.0, 0.0)
        with load_store(server.place("docs")) as index:
            found = index.store.best(vectors[:3], 40)
        for pairs, wanted in zip(found, exact_search([(IDS, vectors)], vectors[:3], 40), strict=True):
            assert [id_ for id_, _ in pairs] == [id_ for id_, _ in wanted]
            np.testing.assert_allclose([score for _, score in pairs], [score for _, score in wanted], atol=1e-5)
        assert min(score for _, score in found[0]) < 0 < max(score for _, score in found[0])

    def test_scores_of_products_of_either_sign(self):
        # Elasticsearch's max_inner_product, and OpenSearch's innerproduct of the distance d = -x.
        assert inner_product(1 + 2.5) == 2.5
        assert inner_product(1.0) == 0
        assert inner_product(1 / (1 + 2.5)) == pytest.approx(-2.5)

    def test_the_mapping_of_elasticsearch(self, elasticsearch):
        export(dense()[0], elasticsearch.place("docs"), index="hnsw", m=8, ef_construction=50, shards=3, replicas=0)
        index = elasticsearch.indexes["docs"]
        assert index.properties["vector"] == {
            "type": "dense_vector",
            "dims": 6,
            "index": True,
            "similarity": "max_inner_product",
            "index_options": {"type": "hnsw", "m": 8, "ef_construction": 50},
        }
        assert index.settings == {"index": {"number_of_shards": 3, "number_of_replicas": 0}}
        assert index.dynamic == "strict"

    @pytest.mark.parametrize("engine", ["faiss", "lucene"])
    def test_the_mapping_of_opensearch(self, engine):
        with running("opensearch") as server:
            export(dense()[0], server.place("docs"), engine=engine)
            index = server.indexes["docs"]
        assert index.properties["vector"]["method"]["engine"] == engine
        assert index.properties["vector"]["method"]["space_type"] == "innerproduct"
        assert index.settings == {"index": {"knn": True}}

    def test_the_index_remembers_how_it_is_searched(self, elasticsearch):
        export(dense()[0], elasticsearch.place("docs"), index="int8_hnsw", candidates=77, oversampling=2)
        elasticsearch.asked.clear()
        with load_store(elasticsearch.place("docs")) as index:
            index.search_vectors(np.ones((1, 6), np.float32), 5, filter={"document_id": "0"})
        knn = json.loads(asked(elasticsearch, "_msearch")[0].splitlines()[1])["knn"]
        assert (knn["k"], knn["num_candidates"], knn["rescore_vector"]) == (5, 77, {"oversample": 2.0})
        assert "filter" in knn

    def test_candidates_of_opensearch(self):
        with running("opensearch") as server:
            export(dense()[0], server.place("docs"), candidates=200)
            body = json.loads(asked(server, "_msearch")[0].splitlines()[1])
        assert body["query"]["knn"]["vector"]["method_parameters"] == {"ef_search": 200}
        assert body["size"] == body["query"]["knn"]["vector"]["k"] == 10

    def test_what_the_codes_of_an_index_need(self, elasticsearch):
        with pytest.raises(UserError, match=r"bbq_hnsw needs 64 dimensions.*6"):
            export(dense()[0], elasticsearch.place("docs"), index="bbq_hnsw")
        records = dense()[0]
        odd = replace(records, space=replace(records.space, dimension=7))
        with pytest.raises(UserError, match=r"even.*7"):
            export(odd, elasticsearch.place("docs"), index="int4_hnsw")
        assert not elasticsearch.indexes

    def test_more_documents_than_an_answer_has(self, server):
        export(dense()[0], server.place("docs"))
        with load_store(server.place("docs")) as index, pytest.raises(UserError, match=r"10,000 documents.*10,001"):
            index.store.best(np.ones((1, 6), np.float32), 10_001)

    def test_a_query_of_another_dimension(self, server):
        export(dense()[0], server.place("docs"))
        with load_store(server.place("docs")) as index, pytest.raises(UserError, match="dimension"):
            index.search_vectors(np.ones((1, 5), np.float32), 3)


class TestApproximateSearch:
    @pytest.fixture(autouse=True)
    def _forgetful(self, monkeypatch):
        """Stores that find 8 of 10."""
        best = SearchEngineStore.best
        monkeypatch.setattr(SearchEngineStore, "best", lambda *a, **b: [pairs[:-2] for pairs in best(*a, **b)])

    def test_graphs_find_as_much_as_is_wanted(self, server):
        with pytest.raises(UserError, match=r"finds 80.0% .*, wanted 90%"):
            export(dense()[0], server.place("docs"))
        assert export(dense()[0], server.place("docs"), agreement=0.8).facts["agreement"] == pytest.approx(0.8)

    def test_an_exact_index_finds_all(self, elasticsearch):
        with pytest.raises(UserError, match="wanted 100%"):
            export(dense()[0], elasticsearch.place("docs"), index="flat", agreement=0.5)

    def test_codes_of_few_bits_are_reported_on(self, elasticsearch):
        report = export(dense()[0], elasticsearch.place("docs"), index="int4_hnsw")
        assert report.facts["agreement"] == pytest.approx(0.8)


class TestSparse:
    def test_weights_arrive_and_are_found(self, server):
        records, rows = learned_sparse()
        report = export(records, server.place("docs"))
        assert report.facts["agreement"] > 0.99
        assert report.facts["difference"] <= 4e-3 * rows.data.max()
        with load_store(server.place("docs")) as index:
            found = index.store.best(rows[[1, 3]], 40)
        assert found[1] == []  # a query without entries
        decoded = csr_array((list(map(kept, rows.data)), rows.indices, rows.indptr), shape=rows.shape, dtype=np.float32)
        [wanted] = exact_search([(IDS, decoded)], rows[[1]], 40)
        assert dict(found[0]) == pytest.approx(dict(wanted), rel=1e-5)

    def test_nine_bits_change_a_weight_by_less_than_the_tolerance(self):
        weights = np.geomspace(1e-6, 1e6, 1000, dtype=np.float32)
        changes = [(weight - kept(weight)) / weight for weight in weights]
        assert 0 <= min(changes) <= 3.5e-3 < max(changes) < 4e-3

    def test_tokens_that_no_feature_can_be_called(self, server):
        tokens = ["a.b", "a%2Eb", ".", "..", "", " ", "_id", "*", "x y", '"', "\\", "\n", "##ing", "▁the", "e.g."]
        tokens += [f"w{number}" for number in range(15)]
        records, rows = learned_sparse(tokens)
        assert export(records, server.place("docs")).facts["agreement"] > 0.99
        features = {name for source in server.indexes["docs"].documents.values() for name in source.get("vector", {})}
        assert {"a%2Eb", "a%252Eb", "##ing", "▁the", "x y"} <= features
        with load_store(server.place("docs")) as index:
            ids, stored = index.store.stored(IDS)
        order = [IDS.index(id_) for id_ in ids]
        np.testing.assert_allclose(stored.toarray(), rows[order].toarray(), rtol=4e-3)

    def test_columns_where_the_vocabulary_is_unknown_or_not_wanted(self, server):
        records, _ = learned_sparse()
        for name, source, settings in [
            ("unknown", replace(records, vocabulary=None), {}),
            ("unwanted", records, {"features": "numbers"}),
        ]:
            assert export(source, server.place(name), **settings).facts["agreement"] > 0.99
            index = server.indexes[name]
            assert all(feature.isdigit() for one in index.documents.values() for feature in one.get("vector", {}))
            assert "vocabulary" not in index.meta["retrodistill"]

    def test_a_vocabulary_with_a_token_twice(self, server):
        with pytest.raises(UserError, match=r"twice.*features=numbers"):
            export(learned_sparse(["same"] * 30)[0], server.place("docs"))

    def test_large_weights_of_a_query(self, server):
        records, rows = learned_sparse()
        export(records, server.place("docs"))
        with load_store(server.place("docs")) as index:
            [small, large] = (dict(index.store.best(rows[[1]] * factor, 5)[0]) for factor in (1, 1000))
        assert large == pytest.approx({id_: score * 1000 for id_, score in small.items()}, rel=1e-5)

    def test_long_queries_ask_by_their_greatest_weights(self, server):
        rows = csr_array(np.random.default_rng(3).exponential(size=(3, 1500)).astype(np.float32))
        export(vector_records(["a", "b", "c"], rows, space(1500, "dot")), server.place("docs"))
        with load_store(server.place("docs")) as index:
            [found] = index.store.best(rows[[1]], 3)
        greatest = np.sort(rows[[1]].data)[-1000:]
        assert found[0][0] == "b"
        assert found[0][1] == pytest.approx(float(greatest @ greatest), rel=4e-3)

    def test_negative_weights_are_refused(self, server):
        rows = csr_array(np.array([[1.0, -2.0]], np.float32))
        with pytest.raises(UserError, match="positive weights"):
            export(vector_records(["a"], rows, space(2, "dot")), server.place("docs"))
        export(learned_sparse()[0], server.place("other"))
        query = csr_array(([-1.0], [3], [0, 1]), shape=(1, 30))
        with load_store(server.place("other")) as index, pytest.raises(UserError, match="negative weights"):
            index.store.best(query, 3)


class TestRefusedUpFront:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda: multi_vector()[0], "MaxSim.*qdrant"),
            (lambda: records_of_dense()[0], "3000 bytes.*1 to 512"),
            (lambda: records_of_dense(ids=["a", ""])[0], "0 bytes.*1 to 512"),
            (lambda: replace(dense()[0], space=replace(dense()[0].space, dimension=20_000)), "20,000.*truncate"),
        ],
        ids=["multi-vector", "long id", "empty id", "wide"],
    )
    def test_what_they_cannot_hold(self, server, change, said):
        with pytest.raises(UserError, match=said):
            export(change(), server.place("docs"))
        assert not server.indexes

    @pytest.mark.parametrize("name", ["Upper", "a b", "a,b", "_x", "-x", "..", "a*", "ü" * 200, "a:b"])
    def test_names_that_an_index_cannot_have(self, server, name):
        with pytest.raises(UserError, match=r"not a name of an index|255 bytes"):
            export(dense()[0], server.place(name))

    def test_a_name_is_made_of_the_collection_s(self, server):
        corpus = Collection.from_parts("My Docs", dict.fromkeys(IDS, ("", "text")), {}, {})
        report = export(dense()[0], f"{server.engine}:{server.url}", corpus)
        assert report.address == server.place("my-docs")


class TestPayload:
    @pytest.fixture
    def titled(self):
        documents = {one: ("" if one == "0" else f"title of {row}", f"text {row}") for row, one in enumerate(IDS)}
        names = ["a.b", "*", "_source", " ", "100%"]
        fields = {one: {names[row % 5]: row, "long": "y" * (9000 if row < 9 else 9)} for row, one in enumerate(IDS)}
        return Collection.from_parts("titled", documents, {}, {}, fields)

    def test_titles_texts_and_fields_of_any_name(self, server, titled):
        export(dense()[0], server.place("docs"), titled, texts=True)
        query = np.ones((1, 6), np.float32)
        with load_store(server.place("docs")) as index:
            found = index.store.payloads(IDS)
            for name, row in [("a.b", 5), ("*", 1), ("_source", 2), (" ", 3), ("100%", 4)]:
                assert list(index.search_vectors(query, 3, filter={name: row}).document_ids) == [IDS[row]]
                assert len(index.search_vectors(query, 40, filter={name: {"exists": True}}).document_ids) == 8
            assert list(index.search_vectors(query, 3, filter={"title": "title of 7"}).document_ids) == [IDS[7]]
            with pytest.raises(UserError, match="'text' is cut into words"):
                index.search_vectors(query, 3, filter={"text": "text 7"})
        assert found["plain"] == {"title": "title of 0", "text": "text 0", "a.b": 0, "long": "y" * 9000}
        assert "title" not in found["0"]

    def test_strings_too_long_for_the_index_are_values_all_the_same(self, server, titled):
        export(dense()[0], server.place("docs"), titled)
        query = np.ones((1, 6), np.float32)
        with load_store(server.place("docs")) as index:
            for given, count in [({"exists": True}, 40), ({"null": True}, 0), ({"!=": "y" * 9}, 9)]:
                assert len(index.search_vectors(query, 40, filter={"long": given}).document_ids) == count
            with pytest.raises(UserError, match="8191 bytes"):
                index.search_vectors(query, 40, filter={"long": "y" * 9000})

    def test_times_within_a_second(self, server):
        fields = {id_: {"at": f"2020-01-01T00:00:00.{row:03d}"} for row, id_ in enumerate(IDS)}
        corpus = Collection.from_parts("c", dict.fromkeys(IDS, ("", "text")), {}, {}, fields)
        export(dense()[0], server.place("docs"), corpus)
        with load_store(server.place("docs")) as index:
            for given, count in [({">": "2020-01-01T00:00:00"}, 39), ({"<=": "2020-01-01T00:00:00.005"}, 6)]:
                run = index.search_vectors(np.ones((1, 6), np.float32), 40, filter={"at": given})
                assert len(run.document_ids) == count

    def test_fractions_equal_no_integer(self):
        schema = pa.schema([("year", pa.int64())])
        assert to_query(parse_filter({"year": {"==": 2003.5}}, schema)) == {"bool": {"filter": [{"match_none": {}}]}}
        one_of = to_query(parse_filter({"year": {"in": [2003.5, 2004.0]}}, schema))
        assert one_of == {"bool": {"filter": [{"terms": {"year": [2004]}}]}}

    def test_infinite_numbers_are_refused(self, server):
        fields = {id_: {"score": np.inf if row == 7 else 1.0} for row, id_ in enumerate(IDS)}
        corpus = Collection.from_parts("c", dict.fromkeys(IDS, ("", "text")), {}, {}, fields)
        with pytest.raises(UserError, match=f"{IDS[7]}.*infinite"):
            export(dense()[0], server.place("docs"), corpus)


def test_passages_know_their_documents(server, tiny_folder, tiny_static):
    corpus = load_collection(tiny_folder, passages="12,4")
    index = build_index(corpus, f"static:{tiny_static}")
    with load_store(export_index(index, server.place("docs"), load_collection(tiny_folder)).address) as store:
        assert store.size == 60 < len(store) == len(index)
        found, wanted = store.search("heart star", k=7), index.search("heart star", k=7)
        assert found.table["document_id"].to_pylist() == wanted.table["document_id"].to_pylist()
        assert found.table["passage_id"].to_pylist() == wanted.table["passage_id"].to_pylist()
        vectors = store.queries.encode(["heart"], "query")
        inside = store.search_vectors(vectors, 5, filter={"document_id": ["d3", "d4"]})
        assert set(inside.document_ids) == {"d3", "d4"}


class TestUploading:
    def test_requests_have_at_most_so_many_bytes(self, elasticsearch):
        vectors = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
        records = vector_records(list(map(str, range(600))), vectors, space(500, "dot"))
        export(records, elasticsearch.place("docs"), bulk_mb=1)
        sizes = [len(body) for body in asked(elasticsearch, "_bulk")]
        assert len(sizes) > 2
        assert 900_000 < max(sizes) <= 1_000_000

    def test_documents_that_the_server_was_too_busy_for_are_sent_again(self, server):
        server.busy = {"plain", "d7", "d9"}
        assert export(dense()[0], server.place("docs")).written == 40
        assert [body.count(b'{"index"') for body in asked(server, "_bulk")] == [40, 3]

    def test_a_server_that_stays_too_busy(self, server, monkeypatch):
        server.broken = {"d7": (429, "es_rejected_execution_exception")}
        with pytest.raises(UserError, match=r"overloaded.*d7.*run the same command again"):
            export(dense()[0], server.place("docs"))
        assert len(asked(server, "_bulk")) == rest.TRIES

    def test_the_first_document_that_fails_is_named(self, server):
        server.busy, server.broken = {"plain"}, {"d9": (400, "document_parsing_exception"), "d7": (400, "other")}
        with pytest.raises(UserError, match=r"document_parsing_exception.*'d7'|other.*'d7'"):
            export(dense()[0], server.place("docs"))
        assert len(asked(server, "_bulk")) == 1

    def test_a_full_disk_is_said_at_once_and_the_export_goes_on_later(self, server):
        server.blocked = True
        with pytest.raises(UserError, match=r"blocks writing.*flood-stage.*make space"):
            export(dense()[0], server.place("docs"))
        assert len(asked(server, "_bulk")) == 1
        server.blocked = False
        assert export(dense()[0], server.place("docs")).written == 40

    def test_a_read_only_index(self, server):
        export(dense()[0], server.place("docs"))
        block = {"type": "cluster_block_exception", "reason": "index [docs] blocked by: [FORBIDDEN/12/read-only]"}
        body = {"error": {**block, "root_cause": [block]}, "status": 403}
        server.faults = [None, None, None, None, (403, body)]
        with pytest.raises(UserError, match=r"blocks writing.*FORBIDDEN/12"):
            export(dense()[0], server.place("docs"))

    def test_passing_errors_of_the_server(self, server):
        busy = (503, b"<html>busy</html>")
        server.faults = [None, None, busy, busy, None, (429, {"error": "too many"}), (502, b""), "drop", None, "drop"]
        assert export(dense()[0], server.place("docs")).written == 40

    def test_what_an_interrupted_export_wrote_is_kept(self, server, monkeypatch):
        put, calls = SearchEngineStore._put, []

        def failing(self, lines):
            if len(calls) == 1:
                raise KeyboardInterrupt
            calls.append(1)
            put(self, lines[:22])
            raise KeyboardInterrupt

        monkeypatch.setattr(SearchEngineStore, "_put", failing)
        with pytest.raises(KeyboardInterrupt):
            export(dense()[0], server.place("docs"))
        monkeypatch.undo()
        with pytest.raises(UserError, match="of 40 documents and is not verified"):
            load_store(server.place("docs"))
        report = export(dense()[0], server.place("docs"))
        assert (report.written, report.documents) == (18, 40)

    def test_documents_that_somebody_changed_or_added_are_noticed(self, server):
        export(dense()[0], server.place("docs"))
        index = server.indexes["docs"]
        index.documents["plain"] = {**index.documents["plain"], "vector": [1, 2, 3, 4, 5, 6]}
        with pytest.raises(UserError, match="other vectors or ids"):
            export(dense()[0], server.place("docs"))
        index.documents["stranger"] = {"document_id": "stranger"}
        with pytest.raises(UserError, match="41 points"):
            export(dense()[0], server.place("docs"))


class TestOtherContent:
    def test_other_vectors_and_settings(self, server):
        export(dense()[0], server.place("docs"))
        with pytest.raises(UserError, match=r"holds something else \(vectors \w+"):
            export(dense(seed=7)[0], server.place("docs"))
        key, value = {"elasticsearch": ("index", "flat"), "opensearch": ("engine", "lucene")}[server.engine]
        with pytest.raises(UserError, match=f"{key} .*, wanted {value}"):
            export(dense()[0], server.place("docs"), **{key: value})

    def test_another_dimension(self, server):
        export(dense()[0], server.place("docs"))
        records = vector_records(IDS, np.ones((40, 5), np.float32), replace(space(5, "dot"), fingerprint="space-2"))
        with pytest.raises(UserError, match="space space-1, wanted space-2"):
            export(records, server.place("docs"))

    def test_an_index_of_somebody_else(self, server):
        export(dense()[0], server.place("docs"))
        server.indexes["docs"].meta = {"owner": "me"}
        with pytest.raises(UserError, match="retrodistill did not make it"):
            export(dense()[0], server.place("docs"))
        with pytest.raises(UserError, match="was not exported by retrodistill"):
            load_store(server.place("docs"))

    def test_metadata_of_others_stays(self, server):
        export(dense()[0], server.place("docs"))
        server.indexes["docs"].meta["owner"] = "me"
        export(dense()[0], server.place("docs"))
        assert server.indexes["docs"].meta["owner"] == "me"

    def test_an_export_of_a_later_format(self, server):
        export(dense()[0], server.place("docs"))
        server.indexes["docs"].meta["retrodistill"]["format"] = 99
        with pytest.raises(UserError, match="format 99"):
            load_store(server.place("docs"))


class TestServers:
    def test_one_that_does_not_answer_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(rest, "pause", lambda attempt: pytest.fail("it waited"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(UserError, match=r"does not answer.*is it running"):
            load_store(f"elasticsearch:http://127.0.0.1:{port}#docs")

    def test_one_that_is_something_else(self, server):
        server.faults = [(200, b"<html>hello</html>")]
        with pytest.raises(UserError, match="is this its URL"):
            load_store(server.place("docs"))
        server.faults = [(404, b"not found")]
        with pytest.raises(UserError, match="refuses: not found"):
            load_store(server.place("docs"))

    def test_one_that_redirects_gets_no_more(self, server):
        with running(server.engine) as other:
            server.faults = [other.url]
            with pytest.raises(UserError, match="refuses: 307"):
                load_store(server.place("docs"))
            assert other.asked == []

    def test_the_other_engine(self, server):
        other = next(one for one in ENGINES if one != server.engine)
        with pytest.raises(UserError, match=f"write '{server.engine}:'"):
            load_store(f"{other}:{server.url}#docs")

    def test_old_ones(self, server):
        server.version = {**server.version, "number": "1.9.4"}
        with pytest.raises(UserError, match=r"version 1.9.4; version (8.15|2.16) or newer"):
            load_store(server.place("docs"))

    def test_serverless_elasticsearch_has_no_version(self, elasticsearch):
        elasticsearch.version = {"number": "8.11.0", "build_flavor": "serverless"}
        assert export(dense()[0], elasticsearch.place("docs")).documents == 40

    def test_an_index_that_is_not_there(self, server):
        export(dense()[0], server.place("docs"))
        with pytest.raises(UserError, match=r"no index 'other'.*'docs'"):
            load_store(server.place("other"))
        with load_store(f"{server.engine}:{server.url}") as index:  # the only one
            assert len(index) == 40
        export(dense()[0], server.place("second"))
        with pytest.raises(UserError, match=r"2 exports.*'docs', 'second'"):
            load_store(f"{server.engine}:{server.url}")

    def test_shards_that_fail(self, server):
        export(dense()[0], server.place("docs"))
        with load_store(server.place("docs")) as index:
            index.store.best(np.ones((1, 6), np.float32), 3)  # it knows the manifest
            failures = [{"shard": 0, "reason": {"type": "x", "reason": "it burns"}}]
            shards = {"total": 2, "successful": 1, "failed": 1, "failures": failures}
            server.faults = [(200, {"responses": [{"_shards": shards, "hits": {"hits": []}, "status": 200}]})]
            with pytest.raises(UserError, match=r"1 of its shards failed.*it burns"):
                index.store.best(np.ones((1, 6), np.float32), 3)

    @pytest.mark.parametrize("answer", [{"ok": True}, [1], 7])
    def test_an_answer_of_something_else(self, server, answer):
        export(dense()[0], server.place("docs"))
        with load_store(server.place("docs")) as index:
            index.store.best(np.ones((1, 6), np.float32), 3)  # it knows the manifest
            for ask in (index.store.count, lambda: index.store.best(np.ones((1, 6), np.float32), 3)):
                server.faults = [(200, answer)]
                with pytest.raises(UserError, match="is this its URL"):
                    ask()

    def test_many_threads_search_at_once(self, server):
        records, vectors = dense()
        export(records, server.place("docs"))
        with load_store(server.place("docs")) as index:
            wanted, found = index.store.best(vectors, 5), []
            threads = [threading.Thread(target=lambda: found.append(index.store.best(vectors, 5))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [wanted] * 8


class TestLogins:
    def basic(self, name, password):
        return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()

    def test_a_user_and_a_password(self, server, monkeypatch):
        variables = LOGINS[server.engine]
        server.authorization = self.basic("me", "pässword")
        with pytest.raises(UserError, match=f"refuses the login.*{variables}_PASSWORD"):
            export(dense()[0], server.place("docs"))
        monkeypatch.setenv(f"{variables}_USER", "me")
        with pytest.raises(UserError, match="only one of"):
            export(dense()[0], server.place("docs"))
        monkeypatch.setenv(f"{variables}_PASSWORD", "pässword")
        assert export(dense()[0], server.place("docs")).documents == 40

    def test_an_api_key(self, elasticsearch, monkeypatch):
        elasticsearch.authorization = "ApiKey right"
        monkeypatch.setenv("ELASTICSEARCH_API_KEY", "canary-4711-wrong")
        with pytest.raises(UserError, match="refuses the login") as caught:
            export(dense()[0], elasticsearch.place("docs"))
        assert "canary" not in str(caught.value)
        monkeypatch.setenv("ELASTICSEARCH_API_KEY", "right")
        export(dense()[0], elasticsearch.place("docs"))
        assert "right" not in json.dumps(elasticsearch.indexes["docs"].meta)

    def test_a_password_is_not_repeated(self, server, monkeypatch):
        monkeypatch.setenv(f"{LOGINS[server.engine]}_USER", "me")
        monkeypatch.setenv(f"{LOGINS[server.engine]}_PASSWORD", "hunter2")
        server.authorization = "other"
        with pytest.raises(UserError, match="refuses the login") as caught:
            export(dense()[0], server.place("docs"))
        assert "hunter2" not in str(caught.value)
        assert self.basic("me", "hunter2").partition(" ")[2] not in str(caught.value)

    def test_none_is_sent_unencrypted_to_another_machine(self, monkeypatch):
        monkeypatch.setenv("ELASTICSEARCH_API_KEY", "secret")
        with pytest.raises(UserError, match="unencrypted"):
            load_store("elasticsearch:http://search.invalid:9200#docs")

    def test_none_is_in_an_address(self):
        with pytest.raises(UserError, match="ELASTICSEARCH_API_KEY") as caught:
            load_store("elasticsearch:http://me:hunter2@127.0.0.1:9200#docs")
        assert "hunter2" not in str(caught.value)

    def test_none_is_taken_from_a_file(self, server, tmp_path, monkeypatch):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        server.authorization = self.basic("me", "hunter2")
        with pytest.raises(UserError, match="refuses the login"):
            export(dense()[0], server.place("docs"))

    def test_a_key_for_one_index_may_not_ask_for_the_version(self, server):
        denied = {"type": "security_exception", "reason": "action [cluster:monitor/main] is unauthorized"}
        server.faults = [(403, {"error": {**denied, "root_cause": [denied]}, "status": 403})]
        assert export(dense()[0], server.place("docs")).documents == 40


class TestBulkFiles:
    @pytest.fixture(params=ENGINES)
    def engine(self, request):
        return request.param

    @pytest.fixture
    def wide(self):
        vectors = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
        return vector_records(list(map(str, range(300))), vectors, space(500, "dot"))

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_they_fill_an_index_that_the_same_export_verifies(self, server, tmp_path):
        for name, records in [("dense%41", dense()[0]), ("sparse", learned_sparse()[0])]:
            report = export(records, f"{server.engine}:{tmp_path / 'a b' / name}#{name}")
            assert (report.documents, report.written, report.facts["parts"]) == (40, 40, 1)
            load = ["sh", "-c", report.facts["load"]]
            loaded = subprocess.run(load, env={**os.environ, "URL": server.url}, capture_output=True, check=True)
            assert b'"errors": false' in loaded.stdout
            with pytest.raises(UserError, match="not verified"):
                load_store(server.place(name))
            assert export(records, server.place(name)).written == 0
            with load_store(server.place(name)) as index:
                assert len(index) == 40

    def test_files_have_at_most_so_many_bytes(self, engine, wide, tmp_path):
        report = export(wide, f"{engine}:{tmp_path / 'out'}", bulk_mb=1)
        sizes = [part.stat().st_size for part in (tmp_path / "out").glob("bulk-*.ndjson")]
        assert len(sizes) == report.facts["parts"] == 2
        assert max(sizes) <= 1_000_000

    def test_what_an_interrupted_export_wrote_is_kept(self, engine, wide, tmp_path):
        out = tmp_path / "out"
        export(wide, f"{engine}:{out}", bulk_mb=1)
        first, second = sorted(out.glob("bulk-*.ndjson"))
        whole = second.read_bytes()
        second.write_bytes(whole[:1000])
        stat = first.stat()
        report = export(wide, f"{engine}:{out}", bulk_mb=1)
        assert report.written == whole.count(b"\n") // 2
        assert second.read_bytes() == whole
        assert (first.stat().st_ino, first.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)

    def test_other_vectors_and_files_of_others(self, engine, tmp_path):
        export(dense()[0], f"{engine}:{tmp_path / 'out'}")
        with pytest.raises(UserError, match="holds something else"):
            export(dense(seed=7)[0], f"{engine}:{tmp_path / 'out'}")
        (tmp_path / "out" / "bulk-00009.ndjson").write_text("{}\n")
        with pytest.raises(UserError, match="bulk-00009"):
            export(dense()[0], f"{engine}:{tmp_path / 'out'}")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="other files"):
            export(dense()[0], f"{engine}:{tmp_path / 'mine'}")

    def test_they_are_not_searched(self, engine, tmp_path):
        export(dense()[0], f"{engine}:{tmp_path / 'out'}")
        with pytest.raises(UserError, match=rf"not searched.*{engine}:http://HOST:9200#INDEX"):
            load_store(f"{engine}:{tmp_path / 'out'}")

    def test_a_server_without_its_scheme_is_not_a_folder(self, engine, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match="http://HOST:9200"):
            export(dense()[0], f"{engine}:localhost:9200#docs")
        assert list(tmp_path.iterdir()) == []


def test_the_command_line_exports_searches_and_evaluates(server, call, tiny_folder, tiny_model, tmp_path):
    index = tmp_path / "index"
    assert call("index", "--collection", tiny_folder, "--documents", f"dense:{tiny_model}", "--out", index)[0] == 0
    to = ["export", index, "--to", server.engine, "--collection", tiny_folder, "--texts"]
    set_quiet(False)
    status, _, error = call(*to, "--out", f"{server.url}#docs", "candidates=50")
    assert status == 0, error
    assert f"next: retrodistill search '{server.place('docs')}'" in error
    status, out, _ = call("search", server.place("docs"), "a star", "--k", 3, "--json")
    assert status == 0
    assert len(json.loads(out)) == 3
    status, out, error = call("evaluate", server.place("docs"), index, "--collection", tiny_folder, "--json")
    assert status == 0, error
    assert len({round(system["ndcg@10"], 4) for system in json.loads(out)["systems"]}) == 1
    status, out, error = call(*to, "--out", tmp_path / "files", "--name", "docs")
    assert status == 0, error
    assert '"$URL/docs/_bulk?' in out
    assert "retrodistill search" not in error
