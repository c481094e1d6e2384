import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.embeddings import embed, seconds_to_embed
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vector_files import VectorFile, read_vectors
from retrodistill.exports import export_index
from retrodistill.indexes import build_index
from retrodistill.rankers.bi_encoder import DenseRanker

IDS = ["a", "b", "c"]
VECTORS = np.array([[3, 4, 0], [0, 0, 2], [1, 0, 0]], dtype=np.float32)


def write_jsonl(path, ids, vectors, **columns):
    rows = [{"_id": one, "vector": [float(x) for x in row]} for one, row in zip(ids, vectors, strict=True)]
    for name, values in columns.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path, ids, vectors, kind=None):
    values = pa.array([list(map(float, row)) for row in vectors], kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"_id": ids, "vector": values}), path)
    return path


def write_npy(path, ids, vectors):
    np.save(path, vectors)
    path.with_suffix(".ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return path


@pytest.fixture
def api(tiny_model):
    """The model that plays the API."""
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def folder(tiny, api, tmp_path):
    """Vectors of all documents and test queries of the tiny collection."""
    place = tmp_path / "api"
    place.mkdir()
    write_parquet(place / "documents.parquet", tiny.documents.ids, api.encode(tiny.documents.texts, "document"))
    test = tiny.split("test")
    write_jsonl(place / "queries.jsonl", test.ids, api.encode(test.texts, "query"))
    (place / "about.json").write_text(json.dumps({"model": "acme/embed-1", "similarity": "cosine"}))
    return place


class TestFormats:
    @pytest.mark.parametrize(
        "write",
        [
            lambda path: write_jsonl(path / "v.jsonl", IDS, VECTORS),
            lambda path: write_npy(path / "v.npy", IDS, VECTORS),
            lambda path: write_npy(path / "v.npy", IDS, VECTORS.astype(np.float16)),
            lambda path: write_npy(path / "v.npy", IDS, VECTORS.astype(np.int8)),
            lambda path: write_parquet(path / "v.parquet", IDS, VECTORS),
            lambda path: write_parquet(path / "v.parquet", IDS, VECTORS, pa.large_list(pa.float64())),
            lambda path: write_parquet(path / "v.parquet", IDS, VECTORS, pa.list_(pa.float32(), 3)),
        ],
    )
    def test_all_give_the_same(self, write, tmp_path):
        table = read_vectors(write(tmp_path), unit=False)
        assert (list(table.ids), table.texts) == (IDS, None)
        assert table.vectors.dtype == np.float32
        np.testing.assert_array_equal(table.vectors, VECTORS)
        assert table.digest == read_vectors(write_jsonl(tmp_path / "again.jsonl", IDS, VECTORS), unit=False).digest

    def test_cosine_vectors_become_unit_vectors(self, tmp_path):
        found = read_vectors(write_npy(tmp_path / "v.npy", IDS, VECTORS), unit=True).vectors
        np.testing.assert_allclose(found, [[0.6, 0.8, 0], [0, 0, 1], [1, 0, 0]])

    def test_a_sliced_and_chunked_parquet_file(self, tmp_path):
        values = pa.array(VECTORS.tolist(), pa.list_(pa.float32()))
        table = pa.table({"id": IDS, "embedding": values})
        pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(1)]), tmp_path / "v.parquet", row_group_size=1)
        np.testing.assert_array_equal(read_vectors(tmp_path / "v.parquet", unit=False).vectors, VECTORS)

    def test_integers_are_ids_too(self, tmp_path):
        assert list(read_vectors(write_jsonl(tmp_path / "v.jsonl", [1, 2, 3], VECTORS), unit=False).ids) == list("123")

    def test_another_vector_is_another_digest(self, tmp_path):
        one = read_vectors(write_npy(tmp_path / "v.npy", IDS, VECTORS), unit=False)
        other = read_vectors(write_npy(tmp_path / "w.npy", IDS, VECTORS + np.eye(3, dtype="f4") * 1e-3), unit=False)
        swapped = read_vectors(write_npy(tmp_path / "x.npy", ["b", "a", "c"], VECTORS), unit=False)
        assert len({one.digest, other.digest, swapped.digest}) == 3


class TestBadFiles:
    def refused(self, path, unit=True):
        with pytest.raises(UserError) as caught:
            read_vectors(path, unit=unit)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_file(self, tmp_path):
        assert "nowhere.npy does not exist" in self.refused(tmp_path / "nowhere.npy")

    def test_not_a_file_of_vectors(self, tmp_path):
        (tmp_path / "v.csv").write_text("a,1,2\n")
        assert "ends in '.csv'; a vector file ends in .parquet, .jsonl, .npy." in self.refused(tmp_path / "v.csv")

    @pytest.mark.parametrize("name", ["v.parquet", "v.npy", "v.jsonl"])
    def test_something_else_under_that_name(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x93 something else entirely")
        assert any(word in self.refused(tmp_path / name) for word in ("not a whole Parquet file", "altered", "UTF-8"))

    def test_cut_short(self, tmp_path):
        for path in (write_npy(tmp_path / "v.npy", IDS, VECTORS), write_parquet(tmp_path / "v.parquet", IDS, VECTORS)):
            path.write_bytes(path.read_bytes()[:-7])
            assert "cut short" in (message := self.refused(path)) or "not a whole Parquet file" in message
        path = write_jsonl(tmp_path / "v.jsonl", IDS, VECTORS)
        path.write_text(path.read_text()[:-9])
        assert "line 3: not JSON" in self.refused(path)

    def test_empty(self, tmp_path):
        (tmp_path / "v.jsonl").write_text("")
        assert "no vectors" in self.refused(tmp_path / "v.jsonl")
        assert "no vectors" in self.refused(write_npy(tmp_path / "v.npy", [], VECTORS[:0]))
        assert "no vectors" in self.refused(write_parquet(tmp_path / "v.parquet", pa.array([], "string"), []))

    def test_ids_that_are_not_there(self, tmp_path):
        np.save(tmp_path / "v.npy", VECTORS)
        assert "has no ids: put them in v.ids.txt" in self.refused(tmp_path / "v.npy")
        (tmp_path / "v.ids.txt").write_text("a\nb\n")
        assert "has 2 ids for 3 vectors" in self.refused(tmp_path / "v.npy")
        (tmp_path / "v.ids.txt").write_text("a\n\nc\n")
        assert "v.ids.txt, line 2: the id is ''" in self.refused(tmp_path / "v.npy")
        (tmp_path / "v.jsonl").write_text('{"vector": [1]}\n')
        assert "line 1: no '_id' (fields: 'vector')" in self.refused(tmp_path / "v.jsonl")
        assert "row 2: the id is None" in self.refused(write_parquet(tmp_path / "v.parquet", ["a", None, "c"], VECTORS))

    def test_ids_twice(self, tmp_path):
        assert "id 'a' appears more than once" in self.refused(write_npy(tmp_path / "v.npy", list("aba"), VECTORS))

    @pytest.mark.parametrize("write", [write_jsonl, write_parquet])
    def test_several_widths(self, tmp_path, write):
        path = write(tmp_path / ("v.jsonl" if write is write_jsonl else "v.parquet"), IDS, [[1, 2], [1], [3, 4]])
        assert "1 vectors do not have 2 dimensions ('b', the first has 1)" in self.refused(path)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_numbers_that_are_not_finite(self, tmp_path, bad):
        vectors = VECTORS.copy()
        vectors[1, 2] = bad
        for path in (
            write_npy(tmp_path / "v.npy", IDS, vectors),
            write_parquet(tmp_path / "v.parquet", IDS, vectors),
            write_jsonl(tmp_path / "v.jsonl", IDS, vectors),
        ):
            assert "1 vectors are NaN or infinite ('b')" in self.refused(path)

    def test_zero_vectors_have_no_cosine(self, tmp_path):
        path = write_npy(tmp_path / "v.npy", IDS, VECTORS * [[1], [0], [1]])
        assert "1 vectors are zero ('b')" in self.refused(path)
        assert len(read_vectors(path, unit=False)) == 3

    @pytest.mark.parametrize("value", ['["1", "2"]', '[1, "2"]', '"12"', "7", "[[1], [2]]", "null", "{}"])
    def test_vectors_that_are_none(self, tmp_path, value):
        (tmp_path / "v.jsonl").write_text(f'{{"_id": "a", "vector": {value}}}\n')
        assert "line 1: 'vector' of 'a' is not a list of numbers" in self.refused(tmp_path / "v.jsonl")

    def test_columns_of_other_things(self, tmp_path):
        pq.write_table(pa.table({"_id": IDS, "vector": ["x", "y", "z"]}), tmp_path / "v.parquet")
        assert "column 'vector' is string" in self.refused(tmp_path / "v.parquet")
        pq.write_table(pa.table({"_id": IDS, "vector": [["x"], ["y"], ["z"]]}), tmp_path / "v.parquet")
        assert "column 'vector' has string" in self.refused(tmp_path / "v.parquet")
        pq.write_table(pa.table({"_id": IDS, "vector": [[1.0], [None], [2.0]]}), tmp_path / "v.parquet")
        assert "column 'vector' has nulls" in self.refused(tmp_path / "v.parquet")
        pq.write_table(pa.table({"_id": IDS, "numbers": [[1.0], [3.0], [2.0]]}), tmp_path / "v.parquet")
        assert "no 'vector' (fields: '_id', 'numbers')" in self.refused(tmp_path / "v.parquet")
        np.save(tmp_path / "v.npy", VECTORS[0])
        assert "float32 of shape (3,)" in self.refused(tmp_path / "v.npy")


class TestFolders:
    def test_documents_queries_and_what_made_them(self, folder):
        found = load_encoder(f"vectors:{folder}")
        assert isinstance(found, VectorFile)
        assert (len(found.documents), len(found.queries), found.dimension) == (60, 12, 32)
        assert (found.about.model, found.similarity) == ("acme/embed-1", "cosine")
        assert found.name == f"vectors:{folder}"

    def refused(self, folder):
        with pytest.raises(UserError) as caught:
            VectorFile.open(folder)
        return str(caught.value)

    def test_no_documents(self, folder):
        (folder / "documents.parquet").unlink()
        assert "has no documents{.parquet,.jsonl,.npy}" in self.refused(folder)

    def test_two_files_of_documents(self, folder):
        write_jsonl(folder / "documents.jsonl", IDS, VECTORS)
        assert "has documents.parquet and documents.jsonl; keep one" in self.refused(folder)

    def test_queries_of_another_width(self, folder):
        write_jsonl(folder / "queries.jsonl", IDS, VECTORS)
        assert "vectors of 3 dimensions, documents.parquet of 32" in self.refused(folder)

    @pytest.mark.parametrize(
        ("about", "line"),
        [
            ("[]", "content is []"),
            ('{"modle": "x"}', "modle is 'x'"),
            ('{"similarity": "euclidean"}', "similarity is 'euclidean'"),
            ('{"prompts": {"queries": "x"}}', "prompts.queries is 'queries'"),
            ('{"model": ""}', "model is ''"),
            ("{", "is not JSON"),
        ],
    )
    def test_bad_abouts(self, folder, about, line):
        (folder / "about.json").write_text(about)
        assert line in self.refused(folder)


class TestTheSpace:
    def test_a_named_model_is_one_space_whatever_the_file(self, folder, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        write_npy(other / "documents.npy", ["x"], np.ones((1, 32), dtype="f4"))
        (other / "about.json").write_text('{"model": "acme/embed-1"}')
        one, two = VectorFile.open(folder), VectorFile.open(other)
        assert one.document_space == two.document_space
        assert one.fingerprint("document") != two.fingerprint("document")
        EmbeddingSpace.of(one).check_query_encoder(two)

    def test_vectors_without_a_name_are_their_own(self, tmp_path):
        one = VectorFile.open(write_npy(tmp_path / "v.npy", IDS, VECTORS))
        two = VectorFile.open(write_npy(tmp_path / "w.npy", IDS, VECTORS[::-1].copy()))
        assert VectorFile.open(write_jsonl(tmp_path / "v.jsonl", IDS, VECTORS)).document_space == one.document_space
        with pytest.raises(UserError, match=r"do not belong .*\(model 'vectors \w+', expected 'vectors \w+'\)"):
            EmbeddingSpace.of(one).check_query_encoder(two)

    @pytest.mark.parametrize(
        ("changed", "difference"),
        [
            ({"model": "acme/embed-2"}, "model 'acme/embed-2', expected 'acme/embed-1'"),
            ({"similarity": "dot"}, "similarity 'dot', expected 'cosine'"),
            ({"prompts": {"document": "d: "}}, "prompt 'd: ', expected ''"),
            ({"prompts": {"query": "q: "}}, "query prompt 'q: ', expected ''"),
        ],
    )
    def test_what_differs_is_named(self, folder, changed, difference):
        space = EmbeddingSpace.of(VectorFile.open(folder))
        (folder / "about.json").write_text(json.dumps({"model": "acme/embed-1", **changed}))
        assert space.differences(VectorFile.open(folder)) == [difference]

    def test_a_model_that_runs_here_is_another(self, folder, api):
        with pytest.raises(UserError, match=r"model None, expected 'acme/embed-1'"):
            EmbeddingSpace.of(VectorFile.open(folder)).check_query_encoder(api)
        with pytest.raises(UserError, match=r"other weights; other modules; .*model 'acme/embed-1', expected None"):
            EmbeddingSpace.of(api).check_query_encoder(VectorFile.open(folder))

    def test_a_student_distilled_into_it(self, folder, tiny_static):
        space = EmbeddingSpace.of(VectorFile.open(folder))
        manifest = Manifest("student", about={"query_space": space.fingerprint})
        space.check_query_encoder(Encoder(load_bi_encoder(tiny_static), "static:s", manifest))


class TestLookingUp:
    def test_unbound_it_encodes_nothing(self, folder):
        with pytest.raises(UserError, match=r"has vectors by id, and only a collection has the texts"):
            VectorFile.open(folder).encode(["star"], "document")

    def test_bound_it_encodes_as_the_model_did(self, tiny, api, folder):
        found, test = VectorFile.open(folder).bind(tiny), tiny.split("test")
        expected = api.encode(tiny.documents.texts, "document")
        np.testing.assert_allclose(found.encode(tiny.documents.texts, "document"), expected, atol=1e-6)
        np.testing.assert_allclose(found.encode(tiny.documents.texts[7:3:-1], "document"), expected[7:3:-1], atol=1e-6)
        np.testing.assert_allclose(found.encode(test.texts, "query"), api.encode(test.texts, "query"), atol=1e-6)
        assert found.encode([], "query").shape == (0, 32)

    def test_binding_twice_is_once(self, tiny, folder):
        once = VectorFile.open(folder).bind(tiny)
        assert once.bind(tiny) is once
        assert once.bind(tiny) is once

    def test_others_need_no_binding(self, tiny, api):
        assert api.bind(tiny) is api

    def test_documents_without_vectors_are_named_before_work(self, tiny, folder, api):
        ids = tiny.documents.ids[:-2]
        write_parquet(folder / "documents.parquet", ids, api.encode(tiny.documents.texts[:-2], "document"))
        with pytest.raises(UserError, match=r"no vectors for 2 of 60 documents \('d58', 'd59'\); it has 58"):
            VectorFile.open(folder).bind(tiny)

    def test_vectors_of_other_documents_do_no_harm(self, tiny, folder, api):
        texts = [*tiny.documents.texts, "more"]
        write_parquet(folder / "documents.parquet", [*tiny.documents.ids, "more"], api.encode(texts, "document"))
        assert VectorFile.open(folder).bind(tiny).encode(tiny.documents.texts, "document").shape == (60, 32)

    def test_texts_without_vectors(self, tiny, folder):
        found = VectorFile.open(folder).bind(tiny)
        with pytest.raises(UserError, match=r"no vectors for 1 of 2 texts \('never seen'\)"):
            found.encode(["never seen", tiny.documents.texts[0]], "document")
        train = tiny.split("train")
        with pytest.raises(UserError, match=r"for 42 of 42 queries \('q0', 'q1', 'q2' and 39 more\); it has 12"):
            found.require(train, "query")
        assert list(found.missing([train.texts[0], tiny.split("test").texts[0]], "query")) == [0]

    def test_a_document_asked_as_a_query_has_its_vector_where_roles_are_one(self, tiny, folder):
        texts = tiny.documents.texts[:3]
        found = VectorFile.open(folder).bind(tiny)
        np.testing.assert_array_equal(found.encode(texts, "query"), found.encode(texts, "document"))
        (folder / "about.json").write_text(json.dumps({"prompts": {"query": "search_query", "document": "search_doc"}}))
        with pytest.raises(UserError, match=r"no vectors for 3 of 3 texts"):
            VectorFile.open(folder).bind(tiny).encode(texts, "query")

    def test_queries_may_bring_their_texts(self, tiny, folder, api):
        drawn = ["the heart and artery", "violin today"]
        write_jsonl(folder / "queries.jsonl", ["sentence:d0:1", "x"], api.encode(drawn, "query"), text=drawn)
        found = VectorFile.open(folder).bind(tiny)
        np.testing.assert_allclose(found.encode(drawn, "query"), api.encode(drawn, "query"), atol=1e-6)

    def test_some_texts_and_others_none(self, tiny, folder, api):
        write_jsonl(folder / "queries.jsonl", ["x", "y"], api.encode(["a", "b"], "query"), text=["a", None])
        with pytest.raises(UserError, match=r"1 rows have no 'text' \('y'\)"):
            VectorFile.open(folder)

    def test_a_document_without_text_needs_none(self, tmp_path):
        collection = Collection.from_parts("two", {"a": "star", "b": " "}, {"q": "star"}, {})
        found = VectorFile.open(write_npy(tmp_path / "v.npy", ["a"], VECTORS[:1])).bind(collection)
        np.testing.assert_allclose(found.encode(collection.documents.texts, "document"), [[0.6, 0.8, 0], [0, 0, 0]])

    def test_one_text_with_two_vectors(self, tmp_path):
        collection = Collection.from_parts("three", {"a": "star", "b": "moon", "c": "star"}, {}, {})
        close = VECTORS.copy()
        close[2] = close[0] + 1e-3
        VectorFile.open(write_npy(tmp_path / "v.npy", IDS, close)).bind(collection)
        with pytest.raises(UserError, match=r"'a' and 'c' have the same text and different vectors"):
            VectorFile.open(write_npy(tmp_path / "w.npy", IDS, VECTORS)).bind(collection)


class TestEverywhereElse:
    def test_nothing_is_stored_or_estimated_for_them(self, tiny, folder, tmp_path):
        found = VectorFile.open(folder).bind(tiny)
        assert embed(found, tiny.documents.texts, "document", tmp_path / "stores").shape == (60, 32)
        assert not (tmp_path / "stores").exists()
        assert seconds_to_embed(found, tiny.documents.texts, "document") == (0, 0.0)

    def test_an_index_of_them_ranks_as_the_models_own(self, tiny, api, folder):
        found, test = VectorFile.open(folder).bind(tiny), tiny.split("test")
        ours, theirs = build_index(tiny, found).search(test, k=10), build_index(tiny, api).search(test, k=10)
        for (query, _, scores), (other, _, expected) in zip(ours, theirs, strict=True):
            assert query == other
            np.testing.assert_allclose(scores, expected, atol=1e-5)

    def test_a_students_queries_search_them(self, tiny, folder, tiny_static):
        found = VectorFile.open(folder).bind(tiny)
        about = {"query_space": found.document_space}
        student = Encoder(load_bi_encoder(tiny_static), "static:s", Manifest("student", about=about))
        index = build_index(tiny, found, student)
        expected = found.encode(tiny.documents.texts, "document") @ student.encode(["star planet"], "query")[0]
        np.testing.assert_allclose(index.search("star planet", k=60).scores, -np.sort(-expected), atol=1e-5)
        assert index.space.documents_by == found.name

    def test_a_teacher_of_them_scores_as_the_model_does(self, tiny, api, folder):
        found, test = VectorFile.open(folder).bind(tiny), tiny.split("test")
        candidates = DenseRanker(api).search(test, tiny, 5)
        ours, theirs = DenseRanker(found), DenseRanker(api)
        np.testing.assert_allclose(
            ours.score(test, tiny, candidates).scores, theirs.score(test, tiny, candidates).scores, atol=1e-5
        )
        assert ours.fingerprint(tiny) != theirs.fingerprint(tiny)
        assert ours.remaining(test, tiny, candidates).items == 0


class TestParquetExports:
    def test_are_read_with_the_model_of_their_documents(self, tiny, tiny_model, tmp_path):
        name = f"dense:{tiny_model}"
        export_index(name, f"parquet:{tmp_path / 'export'}", tiny, {"rows": 25})
        found = VectorFile.open(tmp_path / "export").bind(tiny)
        assert found.about.model == name
        assert found.similarity == "cosine"
        texts = tiny.documents.texts
        np.testing.assert_allclose(
            found.encode(texts, "document"), load_encoder(name).encode(texts, "document"), atol=1e-5
        )
        index = build_index(tiny, f"vectors:{tmp_path / 'export'}", f"vectors:{tmp_path / 'export'}")
        assert len(index) == len(tiny.documents)

    def test_of_other_kinds_are_refused(self, tmp_path):
        (tmp_path / "documents").mkdir()
        pq.write_table(pa.table({"document_id": ["a"]}), tmp_path / "documents" / "part-00000.parquet")
        Manifest("Parquet export", {}, {"kind": "sparse"}).write(tmp_path)
        with pytest.raises(UserError, match=r"has sparse vectors"):
            VectorFile.open(tmp_path)
