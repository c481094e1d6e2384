import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qdrant_child import killed
from records_of import IDS, dense, export_parquet, multi_vector, of_kind, sparse

from retrodistill.core.checksums import file_checksum
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection
from retrodistill.encoders.vector_files import read_vectors
from retrodistill.exports import load_store, open_store
from retrodistill.exports.parquet import ParquetSettings, ParquetStore
from retrodistill.exports.records import score_matrix

SMALL = ParquetSettings(rows=7)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


class TestSchemas:
    def test_dense(self, out):
        records, vectors = dense()
        report = export_parquet(records, None, out, SMALL)
        assert (report.documents, report.facts["parts"], report.written) == (40, 6, 40)
        table = pq.read_table(out / "documents")
        assert table.schema.names == ["document_id", "vector"]
        assert table.schema.field("document_id").type == pa.string()
        assert table.schema.field("vector").type.equals(pa.list_(pa.float32(), 6))
        assert table["document_id"].to_pylist() == IDS
        np.testing.assert_array_equal(np.stack(table["vector"].to_pylist()), vectors)

    def test_sparse(self, out):
        records, rows = sparse()
        export_parquet(records, None, out, SMALL)
        table = pq.read_table(out / "documents")
        assert table.schema.field("indices").type == pa.list_(pa.int32())
        assert table.schema.field("values").type == pa.list_(pa.float32())
        for row, (indices, values) in enumerate(
            zip(table["indices"].to_pylist(), table["values"].to_pylist(), strict=True)
        ):
            dense_row = np.zeros(30, dtype=np.float32)
            dense_row[indices] = values
            np.testing.assert_array_equal(dense_row, rows[[row]].toarray()[0])
            assert indices == sorted(indices)
        words = pq.read_table(out / "vocabulary.parquet")
        assert words.to_pylist()[29] == {"index": 29, "token": "word29"}

    @pytest.mark.parametrize(("numbers", "tolerance"), [("float32", 0), ("float16", 1e-3)])
    def test_multi_vector(self, out, numbers, tolerance):
        records, tokens = multi_vector()
        export_parquet(records, None, out, ParquetSettings(rows=7, numbers=numbers))
        table = pq.read_table(out / "documents")
        number = {"float32": pa.float32(), "float16": pa.float16()}[numbers]
        assert table.schema.field("vectors").type.equals(pa.list_(pa.list_(number, 4)))
        for row, found in enumerate(table["vectors"].to_pylist()):
            np.testing.assert_allclose(np.reshape(found, (-1, 4)), tokens[row], rtol=tolerance, atol=tolerance)

    def test_titles_and_texts(self, out):
        documents = {one: (f"title {row}", f"text {row}") for row, one in enumerate(IDS)}
        collection = Collection.from_parts("titled", documents, {}, {})
        export_parquet(dense()[0], collection, out, ParquetSettings(texts=True))
        table = pq.read_table(out / "documents", columns=["document_id", "title", "text"])
        assert table.to_pylist()[2] == {"document_id": IDS[2], "title": "title 2", "text": "text 2"}

    def test_a_part_is_a_file_of_vectors(self, out):
        records, vectors = dense()
        export_parquet(records, None, out)
        table = read_vectors(out / "documents" / "part-00000.parquet", unit=False)
        assert table.ids == IDS
        np.testing.assert_array_equal(table.vectors, vectors)


class TestManifest:
    def test_it_says_what_is_there(self, out):
        records, _ = dense()
        export_parquet(records, None, out, SMALL)
        manifest = Manifest.read(out)
        assert (manifest.about["state"], manifest.about["documents"], manifest.about["parts"]) == ("complete", 40, 6)
        assert manifest.about["space"]["fingerprint"] == "space-1"
        assert manifest.about["checksums"] == {
            f"documents/part-{number:05d}.parquet": file_checksum(out / f"documents/part-{number:05d}.parquet")
            for number in range(6)
        }


class TestResuming:
    @pytest.mark.xdist_group("children")
    def test_a_process_that_was_killed(self, out, tmp_path):
        killed(
            "die_after(os, 'replace', 4)\n"  # the manifest and three parts are in place
            "export_parquet(dense()[0], None, sys.argv[1], ParquetSettings(rows=7))",
            out,
        )
        assert len(list((out / "documents").glob("part-*.parquet"))) == 3
        assert Manifest.read(out).about["state"] == "being written"
        report = export_parquet(dense()[0], None, out, SMALL)
        assert (report.facts["parts"], report.written) == (6, 19)
        export_parquet(dense()[0], None, tmp_path / "at once", SMALL)
        assert pq.read_table(out / "documents").equals(pq.read_table(tmp_path / "at once" / "documents"))
        assert sorted(file.name for file in (out / "documents").iterdir()) == [
            f"part-{number:05d}.parquet" for number in range(6)
        ]  # nothing half-written is left

    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_a_second_time_nothing_is_written(self, out, kind):
        export_parquet(of_kind(kind), None, out, SMALL)
        assert export_parquet(of_kind(kind), None, out, SMALL).written == 0

    def test_a_part_that_was_altered_is_written_again(self, out):
        export_parquet(dense()[0], None, out, SMALL)
        parts = sorted((out / "documents").iterdir())
        parts[1].write_bytes(parts[1].read_bytes()[:100])
        shutil.copy(parts[0], parts[4])  # whole, and not what belongs there
        assert export_parquet(dense()[0], None, out, SMALL).written == 14  # two parts of 7
        assert pq.read_table(out / "documents")["document_id"].to_pylist() == IDS


class TestRefusals:
    def test_another_source(self, out):
        export_parquet(dense()[0], None, out)
        with pytest.raises(UserError, match=r"holds something else \(vectors \w+, wanted \w+\); choose another folder"):
            export_parquet(dense(seed=5)[0], None, out)

    def test_another_cut(self, out):
        export_parquet(dense()[0], None, out, SMALL)
        with pytest.raises(UserError, match="rows 7, wanted 8"):
            export_parquet(dense()[0], None, out, ParquetSettings(rows=8))

    def test_a_part_that_is_there_twice(self, out):
        export_parquet(dense()[0], None, out)
        parts = out / "documents"
        shutil.copy(parts / "part-00000.parquet", parts / "part-00000-copy.parquet")
        with pytest.raises(UserError, match=r"documents holds files .* \('part-00000-copy.parquet'\); remove them"):
            export_parquet(dense()[0], None, out)

    def test_a_folder_of_something_else(self, out):
        out.mkdir()
        (out / "thesis.tex").write_text("x")
        with pytest.raises(UserError, match="holds other files"):
            export_parquet(dense()[0], None, out)

    def test_an_index_folder_stays_an_index(self, out):
        out.mkdir()
        (out / "manifest.json").write_text(json.dumps({"artifact": "index", "inputs": {}, "settings": {}, "about": {}}))
        with pytest.raises(UserError, match=r"holds something else \(index, not Parquet export\)"):
            export_parquet(dense()[0], None, out)

    def test_a_file_that_does_not_read_back(self, out, monkeypatch):
        write = pq.write_table
        monkeypatch.setattr(pq, "write_table", lambda table, *a, **b: write(table.slice(1), *a, **b))
        with pytest.raises(UserError, match=r"part-00000.parquet does not read back as it was written"):
            export_parquet(dense()[0], None, out)

    def test_settings_out_of_range(self, out):
        for options, key in (({"numbers": "float8"}, "numbers"), ({"rows": 0}, "rows"), ({"shards": 2}, "shards")):
            with pytest.raises(UserError, match=f"export to parquet: .*{key}"):
                export_parquet(dense()[0], None, out, options)
        assert not out.exists()


class TestSearching:
    @pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
    def test_vectors_come_back_and_rank_exactly(self, out, kind):
        records = of_kind(kind)
        export_parquet(records, None, out, SMALL)
        store = open_store(f"parquet:{out}")
        assert store.count() == 40
        wanted = records.take([0, 3, 13])
        run = load_store(f"parquet:{out}").search_vectors(wanted, 5, ["a", "without entries or tokens", "b"])
        scores = score_matrix(wanted, records.block(0, 40))
        for row, query in ((0, "a"), (2, "b")):
            assert list(run.select([query]).document_ids) == [IDS[place] for place in np.argsort(-scores[row])[:5]]

    def test_a_filter(self, out):
        records, vectors = dense()
        export_parquet(records, None, out, SMALL)
        run = load_store(f"parquet:{out}").search_vectors(vectors[:1], 5, filter={"document_id": ["d7", "d9", "none"]})
        assert sorted(run.document_ids) == ["d7", "d9"]

    def test_an_interrupted_export_is_not_searched(self, out, monkeypatch):
        monkeypatch.setattr(ParquetStore, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_parquet(dense()[0], None, out, SMALL)
        with pytest.raises(UserError, match="holds 40 of 40 documents and is not verified"):
            load_store(f"parquet:{out}")
        with pytest.raises(UserError, match="no Parquet export 'absent'"):
            load_store("parquet:absent")
