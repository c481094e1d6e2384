import json
import sys
import threading
from dataclasses import replace
from datetime import timedelta

import lancedb
import numpy as np
import pytest
from qdrant_child import killed
from records_of import IDS, dense, multi_vector, of_kind, space, sparse

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.data import Collection
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports import export_index, load_store, vector_records
from retrodistill.exports.lancedb import LanceStore
from retrodistill.exports.records import exact_search

INDEXES = ["ivf_flat", "ivf_sq", "ivf_pq", "ivf_rq", "ivf_hnsw_flat", "ivf_hnsw_sq", "ivf_hnsw_pq"]


class PanicException(BaseException):  # as Rust's is called
    pass


@pytest.fixture
def place(tmp_path):
    return f"lancedb:{tmp_path / 'lance'}#c"


@pytest.fixture
def titled():
    documents = {one: ("" if one == "0" else f"title of {row}", f"text {row}") for row, one in enumerate(IDS)}
    return Collection.from_parts("titled", documents, {}, {})


def export(source, place, collection=None, **settings):
    return export_index(source, place, collection, settings)


def table(place):
    folder, name = place.removeprefix("lancedb:").split("#")
    return lancedb.connect(folder).open_table(name)


def ranked(records, vectors, queries):
    return exact_search([(records.ids, vectors)], queries, len(IDS))


class TestVectors:
    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_dense_ones_are_ranked_by_the_inner_product(self, place, similarity, precision):
        records, vectors = dense(similarity)
        report = export(records, place, precision=precision)
        exact = precision == "float32"
        assert (report.documents, report.written) == (40, 40)
        assert report.facts["agreement"] == 1.0 if exact else report.facts["agreement"] > 0.95
        assert report.facts["difference"] < (1e-6 if exact else 1e-3)
        with load_store(place) as index:
            found = index.store.best(vectors[:3], 40)
        stored = vectors if exact else vectors.astype(np.float16).astype(np.float32)
        for pairs, vector in zip(found, vectors, strict=False):
            scores = dict(zip(IDS, stored @ vector, strict=True))
            assert len(pairs) == 40
            tolerance = 1e-6 if exact else 4e-3
            np.testing.assert_allclose([score for _, score in pairs], [scores[one] for one, _ in pairs], atol=tolerance)
            if exact:
                assert [one for one, _ in pairs] == sorted(scores, key=scores.get, reverse=True)

    @pytest.mark.parametrize("size", [1e-12, 1e12])
    def test_numbers_of_any_size_are_ranked_exactly(self, place, size):
        vectors = dense()[1] * np.float32(size)
        records = vector_records(IDS, vectors, space(6, "dot"))
        export(records, place)
        with load_store(place) as index:
            found = index.store.best(vectors[:5], 40)
        wanted = ranked(records, vectors, vectors[:5])
        assert [[one for one, _ in pairs] for pairs in found] == [[one for one, _ in pairs] for pairs in wanted]
        np.testing.assert_allclose([pairs[0][1] for pairs in found], [pairs[0][1] for pairs in wanted], rtol=1e-5)

    def test_a_query_of_zeros_finds_documents_of_score_zero(self, place):
        export(dense()[0], place)
        with load_store(place) as index:
            [pairs] = index.store.best(np.zeros((1, 6), np.float32), 3)
        assert [score for _, score in pairs] == [0, 0, 0]

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_token_vectors_are_compared_by_max_sim(self, place, precision):
        records, tokens = multi_vector()
        export(records, place, precision=precision, batch=7)
        queries = Tokens.of([np.eye(4)[:2], np.eye(4)[:1], np.zeros((0, 4)), tokens[7]], 4)
        with load_store(place) as index:
            found = index.store.best(queries, 40)
            ids, stored = index.store.stored([IDS[3], IDS[5]])
        tolerance = 1e-5 if precision == "float32" else 1e-2
        for pairs, exact in zip(found, ranked(records, tokens, queries), strict=True):
            scores = dict(exact)
            assert {one for one, _ in pairs} == set(scores)  # not the document without tokens
            np.testing.assert_allclose([score for _, score in pairs], [scores[one] for one, _ in pairs], atol=tolerance)
        lengths = dict(zip(ids, stored.lengths.tolist(), strict=True))
        assert lengths == {IDS[3]: 0, IDS[5]: tokens.lengths[5]}

    @pytest.mark.parametrize("index", INDEXES)
    def test_indexes_find_as_many_as_are_wanted(self, place, index):
        vectors = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [str(row) for row in range(600)]
        records = vector_records(ids, vectors, space(16, "cosine"))
        report = export(records, place, index=index, nprobes=1, partitions=2, agreement=0.5)
        assert report.facts["agreement"] >= 0.5
        kinds = {held.index_type for held in table(place).list_indices()}
        assert index.replace("_", "") in {kind.lower() for kind in kinds}
        with load_store(place) as loaded:
            pairs = loaded.store.best(vectors[:1], 400)[0]  # more than are in a list
            passing = loaded.search_vectors(vectors[:1], 5, filter={"document_id": ids[-3:]})
        assert len({one for one, _ in pairs}) == 400
        scores = vectors @ vectors[0]
        np.testing.assert_allclose([score for _, score in pairs], [scores[int(one)] for one, _ in pairs], atol=1e-5)
        assert sorted(passing.document_ids) == ids[-3:]

    def test_what_lancedb_cannot_hold_is_refused_before_anything_is_written(self, place, tmp_path):
        with pytest.raises(UserError, match="export sparse indexes to qdrant, pgvector"):
            export(sparse()[0], place)
        with pytest.raises(UserError, match=r"'ivf_pq'.*token vectors"):
            export(multi_vector()[0], place, index="ivf_pq")
        with pytest.raises(UserError, match="'ivf_pq' is trained on at least 256 documents, and there are 40"):
            export(dense()[0], place, index="ivf_pq")
        many = dense(ids=[str(row) for row in range(256)])[0]
        with pytest.raises(UserError, match="sub_vectors 4 does not divide the 6 dimensions"):
            export(many, place, index="ivf_pq", sub_vectors=4)
        with pytest.raises(UserError, match="dimensions that 8 divides, and these vectors have 6"):
            export(many, place, index="ivf_rq")
        with pytest.raises(UserError, match="cannot be called 'ü'"):
            export(dense()[0], place, name="ü")
        assert list(tmp_path.iterdir()) == []


class TestPayload:
    def test_missing_titles_are_null(self, place, titled):
        export(dense()[0], place, titled, texts=True)
        with load_store(place) as index:
            found = index.store.payloads(IDS)
            run = index.search_vectors(dense()[1][:1], 3, filter={"title": {"null": True}})
        assert found["plain"] == {"title": "title of 0", "text": "text 0"}
        assert found["0"] == {"text": "text 3"}
        assert list(run.document_ids) == ["0"]

    @pytest.mark.parametrize("field", ["""100%{} "x" 'y' \\ -- ;""", "select", "ü文"])
    def test_fields_of_any_name(self, place, field):
        fields = {one: {field: row, field.upper() + "2": f"it's \\ {row}"} for row, one in enumerate(IDS)}
        export(dense()[0], place, Collection.from_parts("c", dict.fromkeys(IDS, ("", "text")), {}, {}, fields))
        with load_store(place) as index:
            for name, value in fields[IDS[7]].items():
                assert list(index.search_vectors(dense()[1][:1], 3, filter={name: value}).document_ids) == [IDS[7]]

    @pytest.mark.parametrize("field", ["a.b", "a`b", "_distance", "_row_created_at_version"])
    def test_names_that_lance_refuses(self, place, tmp_path, field):
        fields = {one: {field: 1} for one in IDS}
        collection = Collection.from_parts("c", dict.fromkeys(IDS, ("", "text")), {}, {}, fields)
        with pytest.raises(UserError, match=f"{field}.*choose others"):
            export(dense()[0], place, collection)
        assert list(tmp_path.iterdir()) == []


class TestResuming:
    @pytest.mark.xdist_group("children")
    @pytest.mark.parametrize(
        ("owner", "method", "calls", "left"),
        [
            ("lancedb.db.LanceDBConnection", "create_table", 0, 40),
            ("lancedb.table.LanceTable", "add", 2, 18),
            ("lancedb.table.LanceTable", "optimize", 0, 0),
        ],
    )
    def test_a_process_that_was_killed(self, place, owner, method, calls, left):
        killed(
            "import lancedb.db, lancedb.table\n"
            f"die_after({owner}, '{method}', {calls})\n"
            "export_index(dense()[0], sys.argv[1], None, {'batch': 11, 'index': 'ivf_flat'})",
            place,
        )
        with pytest.raises(UserError, match="has no table 'c'" if left == 40 else "is not verified.*run the same"):
            load_store(place)
        report = export(dense()[0], place, batch=7, index="ivf_flat")
        assert (report.documents, report.written, report.facts["agreement"]) == (40, left, 1.0)
        made = table(place)
        assert sorted(made.to_arrow()["document_id"].to_pylist()) == sorted(IDS)
        assert sorted(held.columns[0] for held in made.list_indices()) == ["document_id", "vector"]

    @pytest.mark.parametrize("kind", ["dense", "multi-vector"])
    def test_an_error_in_the_middle(self, place, kind, monkeypatch):
        add, calls = lancedb.table.LanceTable.add, []

        def failing(self, *arguments, **options):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            return add(self, *arguments, **options)

        monkeypatch.setattr(lancedb.table.LanceTable, "add", failing)
        with pytest.raises(KeyboardInterrupt):
            export(of_kind(kind), place, batch=11)
        monkeypatch.undo()
        with pytest.raises(UserError, match="holds 22 of 40 documents and is not verified"):
            load_store(place)
        report = export(of_kind(kind), place, batch=7)
        assert (report.written, report.documents) == (18, 40)

    def test_nothing_is_written_twice_and_the_batches_end_in_one_file(self, place):
        export(dense()[0], place, batch=3)
        assert export(dense()[0], place, batch=3).written == 0
        made = table(place)
        assert made.count_rows() == 40
        assert made.stats()["fragment_stats"]["num_fragments"] == 1
        assert len(made.list_versions()) <= 3  # merged, and the index of the ids

    def test_one_process_at_a_time(self, place, tmp_path):
        store = LanceStore.open(place.removeprefix("lancedb:"), create=True)
        store.create(dense()[0])
        with pytest.raises(UserError, match="another run is working in"):
            export(dense()[0], place)
        store.close()
        export(dense()[0], place)


class TestAnotherSource:
    def test_other_vectors_and_settings(self, place):
        export(dense()[0], place)
        with pytest.raises(UserError, match=r"#c holds something else \(vectors \w+"):
            export(dense(seed=7)[0], place)
        with pytest.raises(UserError, match="precision float32, wanted float16"):
            export(dense()[0], place, precision="float16")
        with pytest.raises(UserError, match="holds something else"):
            export(vector_records(IDS, dense()[1][:, :5], space(5, "dot")), place)
        assert load_store(place).store.count() == 40

    def test_a_table_of_somebody_else_stays_as_it_is(self, place):
        folder, name = place.removeprefix("lancedb:").split("#")
        lancedb.connect(folder).create_table(name, data=[{"vector": [1.0, 2.0]}])
        with pytest.raises(UserError, match=r"holds something else \(retrodistill did not make it\)"):
            export(dense()[0], place)
        with pytest.raises(UserError, match="was not exported by retrodistill"):
            load_store(place)
        assert table(place).to_arrow()["vector"].to_pylist() == [[1.0, 2.0]]
        assert export(dense()[0], place + "2").written == 40  # beside it

    def test_a_table_that_was_dropped_and_made_again_by_hand(self, place):
        export(dense()[0], place)
        folder, name = place.removeprefix("lancedb:").split("#")
        lancedb.connect(folder).drop_table(name)
        assert export(dense()[0], place).written == 40
        lancedb.connect(folder).drop_table(name)
        lancedb.connect(folder).create_table(name, data=[{"vector": [1.0, 2.0]}])
        with pytest.raises(UserError, match="retrodistill did not make it"):
            export(dense()[0], place)

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="holds other files"):
            export(dense()[0], f"lancedb:{tmp_path}#c")
        with pytest.raises(UserError, match="is not a folder"):
            export(dense()[0], f"lancedb:{tmp_path / 'thesis.tex'}#c")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class TestVerification:
    def test_a_row_that_somebody_changed(self, place):
        export(dense()[0], place)
        table(place).update(where="document_id = 'd7'", values={"vector": [9.0] * 6})
        with pytest.raises(UserError, match=r"other vectors or ids than the source for 1 of 40 documents \('d7'\)"):
            export(dense()[0], place)
        with pytest.raises(UserError, match="is not verified"):
            load_store(place)

    def test_a_row_too_many(self, place):
        export(dense()[0], place)
        table(place).add([{"document_id": "stranger", "vector": [1.0] * 6}])
        with pytest.raises(UserError, match="holds 41 points, the source 40 documents"):
            export(dense()[0], place)

    def test_a_row_that_somebody_deleted_is_written_again(self, place):
        export(dense()[0], place)
        table(place).delete("document_id = 'd7'")
        assert export(dense()[0], place).written == 1


class TestSearching:
    def test_many_threads_share_a_table(self, place):
        records, vectors = dense()
        export(records, place)
        found = []
        with load_store(place) as index:
            wanted = index.search_vectors(vectors, 5).to_dict()
            threads = [
                threading.Thread(target=lambda: found.append(index.search_vectors(vectors, 5).to_dict()))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == [wanted] * 8

    def test_ties_are_broken_by_id(self, place):
        vectors = np.ones((40, 6), dtype=np.float32)
        export(vector_records(IDS, vectors, space(6, "dot")), place)
        with load_store(place) as index:
            assert list(index.search_vectors(vectors[:1], 40).document_ids) == sorted(IDS)

    def test_a_search_writes_nothing(self, place, tmp_path):
        export(dense()[0], place)
        before = sorted(tmp_path.rglob("*"))
        with load_store(place) as index:
            index.search_vectors(dense()[1][:1], 5)
        assert sorted(tmp_path.rglob("*")) == before


class TestAddresses:
    def test_the_only_table_needs_no_name(self, place, tmp_path):
        export(dense()[0], place)
        with load_store(place.partition("#")[0]) as index:
            assert index.store.address == place
        export(dense()[0], f"{place}2")
        with pytest.raises(UserError, match="has 2 tables; there are: 'c', 'c2'"):
            load_store(place.partition("#")[0])
        with pytest.raises(UserError, match=r"has no table 'other'; there are: 'c', 'c2'. Write 'lancedb:"):
            load_store(place.replace("#c", "#other"))

    def test_no_folder_is_made_by_looking(self, place, tmp_path):
        with pytest.raises(UserError, match="there are: none"):
            load_store(place)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("address", ["lancedb:", "lancedb:#c", "lancedb:s3://bucket/lance#c"])
    def test_one_without_a_folder(self, address):
        with pytest.raises(UserError, match="write 'lancedb:FOLDER#NAME'"):
            load_store(address)

    def test_the_package_is_missing(self, place, monkeypatch):
        monkeypatch.setitem(sys.modules, "lancedb", None)
        with pytest.raises(UserError, match=r"pip install 'retrodistill\[lancedb\]'"):
            export(dense()[0], place)


class TestDamage:
    @pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
    def test_a_file_that_was_cut_short(self, place, tmp_path, pattern):
        export(dense()[0], place)
        for file in (tmp_path / "lance" / "c.lance").glob(pattern):
            file.write_bytes(file.read_bytes()[:15])
        with (
            pytest.raises(UserError, match=r"table c in .* is damaged \(.*export again") as caught,
            load_store(place) as it,
        ):
            it.search_vectors(dense()[1][:1], 5)
        assert ".rs" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_flipped_bit_is_noticed_by_the_next_export(self, place, tmp_path):
        export(dense()[0], place)
        [file] = (tmp_path / "lance" / "c.lance" / "data").iterdir()
        content = bytearray(file.read_bytes())
        content[20] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{file.name}.*altered.*delete c\.lance and export again"):
            export(dense()[0], place)

    @pytest.mark.filterwarnings("ignore:optimize")
    def test_files_that_lancedb_replaced_are_not_missed(self, place):
        export(dense()[0], place)
        table(place).delete("document_id = 'd7'")
        table(place).optimize(cleanup_older_than=timedelta(0))
        assert export(dense()[0], place).written == 1

    def test_a_manifest_that_is_not_json(self, place, tmp_path):
        export(dense()[0], place)
        (tmp_path / "lance" / "c.manifest.json").write_text("{")
        with pytest.raises(UserError, match=r"c\.manifest\.json"):
            load_store(place)

    @pytest.mark.parametrize("raised", [RuntimeError, PanicException])
    def test_what_the_system_refuses(self, place, monkeypatch, raised):
        def refuse(self, *arguments, **options):
            raise raised("lance error: LanceError(IO): No space left on device (os error 28), /x/y.rs:3:4")

        monkeypatch.setattr(lancedb.table.LanceTable, "add", refuse)
        with pytest.raises(UserError, match=r"cannot write or read .*: no space left on device; run it again"):
            export(dense()[0], place)
        monkeypatch.undo()
        assert export(dense()[0], place).written == 40

    def test_an_export_of_a_later_format(self, place, tmp_path):
        export(dense()[0], place)
        file = tmp_path / "lance" / "c.manifest.json"
        write_json(file, {**read_json(file), "format": 99})
        with pytest.raises(UserError, match="format 99"):
            load_store(place)


def test_settings_of_a_search_come_from_the_latest_export(place):
    records = replace(dense()[0], name="named")
    export(records, place, index="ivf_flat", nprobes=3, refine=2)
    assert load_store(place).store.manifest().about["nprobes"] == 3
    export(records, place, index="ivf_flat", nprobes=5)
    assert load_store(place).store.manifest().about["nprobes"] == 5


def test_the_command_line_exports_searches_and_evaluates(call, tiny_folder, tiny_model, tmp_path):
    index, place = tmp_path / "index", f"{tmp_path / 'my lance'}#docs"
    assert call("index", "--collection", tiny_folder, "--documents", f"dense:{tiny_model}", "--out", index)[0] == 0
    exported = call("export", index, "--to", "lancedb", "--collection", tiny_folder, "--out", place, "--texts")
    assert exported[0] == 0, exported[2]
    status, out, error = call("search", f"lancedb:{place}", "a star", "--k", 3, "--json")
    assert status == 0, error
    assert [set(hit) >= {"document_id", "title", "text"} for hit in json.loads(out)] == [True] * 3
    status, out, error = call("evaluate", f"lancedb:{place}", index, "--collection", tiny_folder, "--json")
    assert status == 0, error
    assert len({round(system["ndcg@10"], 4) for system in json.loads(out)["systems"]}) == 1
