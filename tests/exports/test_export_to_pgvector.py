import json
import os
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from postgres_server import rows
from records_of import IDS, dense, multi_vector, sparse

from retrodistill.core.errors import UserError
from retrodistill.data import Collection
from retrodistill.exports import export_index, load_store
from retrodistill.exports.pgvector import PgvectorStore
from retrodistill.exports.records import exact_search

pytestmark = pytest.mark.xdist_group("postgres")
EXACT = {"index": "none"}


@pytest.fixture
def place(postgres, request):
    """An address with a table that the test may use."""
    name = f"t{abs(hash(request.node.nodeid))}"
    yield f"pgvector:{postgres}#{name}"
    rows(postgres, f'DROP TABLE IF EXISTS "{name}"')
    if rows(postgres, "SELECT to_regclass('retrodistill_exports') IS NOT NULL")[0][0]:
        rows(postgres, "DELETE FROM retrodistill_exports WHERE name = %s", name)


def export(source, place, collection=None, **settings):
    return export_index(source, place, collection, settings)


def table(place):
    return place.rpartition("#")[2]


class TestVectors:
    @pytest.mark.parametrize("precision", ["float32", "float16", "binary"])
    @pytest.mark.parametrize("index", ["hnsw", "none"])
    def test_dense_ones_arrive_and_are_found(self, place, precision, index):
        records, vectors = dense("cosine")
        report = export(records, place, precision=precision, index=index, oversampling=20)
        assert (report.documents, report.written) == (40, 40)
        assert report.facts["agreement"] > (0.95 if precision == "float16" else 0.999)
        assert report.facts["difference"] < (1e-3 if precision == "float16" else 1e-6)
        with load_store(place) as loaded:
            run = loaded.search_vectors(vectors[:3], 5)
        wanted = exact_search([(records.ids, vectors)], vectors[:3], 1)
        assert [run.select([str(query)]).to_dict()[str(query)].keys() & {wanted[query][0][0]} for query in range(3)]

    def test_sparse_ones_arrive_entry_by_entry(self, place):
        records, vectors = sparse()
        assert export(records, place).facts["agreement"] == 1.0
        with load_store(place) as index:
            ids, stored = index.store.stored(IDS)
            found = index.store.best(vectors[[1, 3]], 40)
        order = [IDS.index(id_) for id_ in ids]
        np.testing.assert_allclose(stored.toarray(), vectors[order].toarray(), rtol=1e-6)
        assert found[1] == []  # a query without entries
        wanted = exact_search([(IDS, vectors)], vectors[[1]], 40)[0]
        assert [id_ for id_, _ in found[0]] == [id_ for id_, _ in wanted]
        np.testing.assert_allclose([score for _, score in found[0]], [score for _, score in wanted], rtol=1e-5)

    def test_what_pgvector_cannot_hold_is_refused_before_anything_is_written(self, postgres, place):
        with pytest.raises(UserError, match="MaxSim"):
            export(multi_vector()[0], place)
        records, _ = dense()
        wide = replace(records, space=replace(records.space, dimension=2001))
        with pytest.raises(UserError, match=r"2000 dimensions.*2001.*float16"):
            export(wide, place)
        assert rows(postgres, "SELECT to_regclass(%s)", f'"{table(place)}"') == [(None,)]


class TestPayload:
    @pytest.fixture
    def titled(self):
        documents = {one: ("" if one == "0" else f"title of {row}", f"text {row}") for row, one in enumerate(IDS)}
        fields = {one: {'100%{}"x': row} for row, one in enumerate(IDS) if row}
        return Collection.from_parts("titled", documents, {}, {}, fields)

    def test_titles_texts_and_fields_of_any_name(self, place, titled):
        export(dense()[0], place, titled, texts=True)
        with load_store(place) as index:
            found = index.store.payloads(IDS)
            assert len(index.search_vectors(np.ones((1, 6), np.float32), 3, filter={'100%{}"x': 7}).to_dict()["0"]) == 1
        assert found["plain"] == {"title": "title of 0", "text": "text 0"}
        assert found["0"] == {"text": "text 3", '100%{}"x': 3}  # it has no title

    def test_a_name_that_postgresql_would_cut(self, postgres, titled):
        with pytest.raises(UserError, match="63 bytes"):
            export(dense()[0], f"pgvector:{postgres}#{'ü' * 32}", titled)


class TestResuming:
    def test_what_an_interrupted_export_wrote_is_kept(self, postgres, place, monkeypatch):
        copy, calls = PgvectorStore._copy, []

        def failing(self, cursor, batch, wanted):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            copy(self, cursor, batch, wanted)

        monkeypatch.setattr(PgvectorStore, "_copy", failing)
        with pytest.raises(KeyboardInterrupt):
            export(dense()[0], place, batch=11)
        monkeypatch.undo()
        with pytest.raises(UserError, match="22 of 40 documents and is not verified"):
            load_store(place)
        report = export(dense()[0], place, batch=7)
        assert (report.written, report.documents) == (18, 40)
        assert rows(postgres, f'SELECT count(*) FROM "{table(place)}"') == [(40,)]

    def test_other_vectors_and_a_table_of_somebody_else_are_refused(self, postgres, place):
        export(dense()[0], place)
        with pytest.raises(UserError, match=r"holds something else \(vectors \w+"):
            export(dense(seed=7)[0], place)
        with pytest.raises(UserError, match="precision float32, wanted float16"):
            export(dense()[0], place, precision="float16")
        rows(postgres, 'CREATE TABLE "foreign table" (id int)')
        with pytest.raises(UserError, match="retrodistill did not make it"):
            export(dense()[0], f"pgvector:{postgres}#foreign table")
        rows(postgres, 'DROP TABLE "foreign table"')

    def test_a_table_that_was_dropped_by_hand_is_made_again(self, postgres, place):
        export(dense()[0], place)
        rows(postgres, f'DROP TABLE "{table(place)}"')
        assert export(dense()[0], place).written == 40

    def test_rows_that_somebody_changed_are_noticed(self, postgres, place):
        export(dense()[0], place)
        rows(postgres, f"""UPDATE "{table(place)}" SET vector = '[1,2,3,4,5,6]' WHERE document_id = 'plain'""")
        with pytest.raises(UserError, match="other vectors or ids"):
            export(dense()[0], place)


class TestSearching:
    def test_many_threads_share_a_connection(self, place):
        records, vectors = dense()
        export(records, place, **EXACT)
        with load_store(place) as index:
            wanted = index.search_vectors(vectors, 5).to_dict()
            found = []
            threads = [
                threading.Thread(target=lambda: found.append(index.search_vectors(vectors, 5).to_dict()))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [wanted] * 8

    def test_more_documents_than_an_index_has_candidates(self, place):
        export(dense()[0], place, ef_search=1)
        with load_store(place) as index:
            assert len(index.search_vectors(np.ones((1, 6), np.float32), 40).to_dict()["0"]) == 40


class TestAddresses:
    def test_a_password_is_refused_and_not_repeated(self, postgres):
        with pytest.raises(UserError, match="PGPASSWORD") as caught:
            export(dense()[0], "pgvector:postgresql://me:hunter2@localhost/db#t")
        assert "hunter2" not in str(caught.value)

    def test_no_address(self):
        with pytest.raises(UserError, match="pgvector:postgresql://USER"):
            load_store("pgvector:localhost 5432#t")

    def test_a_server_that_does_not_answer(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(UserError, match=r"does not answer.*is it running"):
            load_store(f"pgvector:postgresql://me@127.0.0.1:{port}/db#t")

    def test_a_login_that_the_server_refuses(self, postgres):
        with pytest.raises(UserError, match=r"does not answer|refuses the login"):
            load_store(f"pgvector:{postgres.replace('postgres:@', 'nobody@')}#t")

    def test_an_export_that_is_not_there(self, postgres, place):
        export(dense()[0], place)
        with pytest.raises(UserError, match=rf"no export 'other'.*{table(place)}"):
            load_store(f"pgvector:{postgres}#other")


def test_the_environment_gives_what_the_address_leaves_out(postgres, place, monkeypatch):
    folder = postgres.partition("host=")[2]
    monkeypatch.setitem(os.environ, "PGHOST", folder)
    monkeypatch.setitem(os.environ, "PGUSER", "postgres")
    monkeypatch.setitem(os.environ, "PGDATABASE", "postgres")
    assert export(dense()[0], f"pgvector:#{table(place)}").documents == 40


def test_an_export_of_a_later_format_is_refused(postgres, place):
    export(dense()[0], place)
    changed = """UPDATE retrodistill_exports SET manifest = manifest || '{"format": 99}' WHERE name = %s"""
    rows(postgres, changed, table(place))
    with pytest.raises(UserError, match="format 99"):
        load_store(place)


def test_the_command_line_exports_searches_and_evaluates(postgres, place, call, tiny_folder, tiny_model, tmp_path):
    index, where = tmp_path / "index", place.partition(":")[2]
    assert call("index", "--collection", tiny_folder, "--documents", f"dense:{tiny_model}", "--out", index)[0] == 0
    exported = call(
        "export", index, "--to", "pgvector", "--collection", tiny_folder, "--out", where, "precision=float16"
    )
    assert exported[0] == 0, exported[2]
    status, out, _ = call("search", place, "a star", "--k", 3, "--json")
    assert status == 0
    assert len(json.loads(out)) == 3
    status, out, error = call("evaluate", place, index, "--collection", tiny_folder, "--json")
    assert status == 0, error
    assert len({round(system["ndcg@10"], 2) for system in json.loads(out)["systems"]}) == 1
