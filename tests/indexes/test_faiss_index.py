import shutil
from dataclasses import replace

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection, Texts
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.indexes import EmbeddingSpace, FaissIndex, build_index
from retrodistill.students import save_student


@pytest.fixture
def teacher(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def student(teacher, tiny_static, tmp_path):
    """A token table that says it was distilled into the teacher's space."""
    manifest = Manifest("student", about={"query_space": teacher.document_space})
    return save_student(load_bi_encoder(tiny_static), manifest, tmp_path / "student")


@pytest.fixture
def index(tiny, teacher):
    return build_index(tiny, teacher)


class TestSearching:
    def test_it_ranks_by_inner_product(self, tiny, teacher, index):
        run = index.search(tiny.split("test"), k=5)
        products = (
            teacher.encode(tiny.split("test").texts, "query") @ teacher.encode(tiny.documents.texts, "document").T
        )
        for row, (query, documents, scores) in enumerate(run):
            assert query == tiny.split("test").ids[row]
            np.testing.assert_allclose(scores, -np.sort(-products[row])[:5], atol=1e-5)
            np.testing.assert_allclose(products[row][tiny.documents.positions(documents)], scores, atol=1e-5)

    def test_documents_by_one_and_queries_by_the_other(self, tiny, teacher, student):
        run = build_index(tiny, teacher, student).search("star planet", k=60)
        products = teacher.encode(tiny.documents.texts, "document") @ student.encode(["star planet"], "query")[0]
        np.testing.assert_allclose(run.scores, -np.sort(-products), atol=1e-5)

    def test_one_text_and_several_are_numbered(self, index):
        assert index.search("star", k=2).query_ids == ["0"]
        assert index.search(["star", "violin"], k=2).query_ids == ["0", "1"]

    def test_retrieving_cuts_k_to_the_index(self, tiny, index):
        assert len(index.search(tiny.split("test"), tiny, 1000)) == 60 * 12

    def test_it_answers_as_its_responder_does(self, tiny, index):
        rows = index.query_fn(tiny, 3)("star planet")[0][0]
        assert [index.ids[row] for row in rows] == list(index.search("star planet", k=3).document_ids)

    def test_fewer_results_than_k_are_no_false_documents(self, tiny, teacher):
        lists = build_index(tiny, teacher, factory="IVF8,Flat")
        result = lists.search(["star", "court"], k=60)  # one list of eight is looked into
        assert 0 < len(result) < 120
        assert np.isfinite(result.scores).all()
        assert result.scores.min() >= -1.001


class TestRefusals:
    @pytest.mark.parametrize("k", [0, 61, -3])
    def test_k_outside_the_corpus(self, index, k):
        with pytest.raises(UserError, match=rf"^k={k}: the corpus has 60 documents; choose k from 1 to 60.$"):
            index.search("star", k=k)

    @pytest.mark.parametrize("queries", ["", "  ", ["star", "\t"]])
    def test_an_empty_query(self, index, queries):
        with pytest.raises(UserError, match=r"is empty; a query needs at least one word.$"):
            index.search(queries, k=3)

    def test_no_query_at_all_finds_nothing(self, index):
        assert len(index.search([], k=3)) == 0

    def test_vectors_of_another_dimension(self, index):
        with pytest.raises(
            UserError, match=r"^queries of 16 dimensions, the index has 32; use the encoder of its documents"
        ):
            index.search_vectors(np.ones((2, 16)), 3)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_query_vectors_that_are_not_finite(self, index, bad):
        vectors = np.ones((2, 32))
        vectors[1, 3] = bad
        with pytest.raises(UserError, match=r"^queries: 1 vectors are NaN or infinite \('1'\)"):
            index.search_vectors(vectors, 3)

    def test_documents_with_nan_vectors_are_named(self, tiny, teacher, monkeypatch):
        vectors = teacher.encode(tiny.documents.texts, "document")
        vectors[[4, 7]] = np.nan
        monkeypatch.setattr("retrodistill.indexes.faiss_index.TextVectors", lambda *_: vectors)
        with pytest.raises(UserError, match=r"2 vectors are NaN or infinite \('d4', 'd7'\); embed these again"):
            build_index(tiny, teacher)

    def test_queries_of_another_space(self, tiny, teacher, tiny_static):
        with pytest.raises(
            UserError,
            match=r"do not belong among documents by .*; use the encoder that made the documents",
        ):
            build_index(tiny, teacher, f"static:{tiny_static}")

    def test_the_same_model_with_another_weight(self, tiny, teacher, tiny_model):
        model = load_bi_encoder(tiny_model)
        with torch.no_grad():
            next(iter(model.parameters())).view(-1)[0] += 1e-3
        with pytest.raises(UserError, match=r"do not belong among documents by"):
            build_index(tiny, teacher, model)

    def test_too_few_vectors_are_refused_before_embedding(self, tiny, teacher, monkeypatch):
        monkeypatch.setattr("retrodistill.indexes.faiss_index.embed", lambda *_: pytest.fail("embedded first"))
        with pytest.raises(UserError, match=r"^factory 'OPQ4,PQ4' needs at least 256 vectors to train, there are 60; "):
            build_index(tiny, teacher, factory="OPQ4,PQ4")

    def test_ids_that_do_not_belong_to_the_vectors(self, teacher):
        flat = faiss.IndexFlatIP(32)
        flat.add(np.ones((2, 32), dtype="f4"))
        with pytest.raises(UserError, match=r"2 documents of 32 dimensions with 3 ids .*: build the index again"):
            FaissIndex(flat, ["a", "b", "c"], EmbeddingSpace.of(teacher))

    def test_a_collection_that_lacks_documents_of_the_index(self, tiny, index):
        other = Collection.from_parts("other", {"d0": "star"}, {"q": "star"}, {})
        with pytest.raises(UserError, match=r"document ids are not in the collection"):
            index.search(Texts.from_pairs([("q", "star")]), other, 60)


class TestSaving:
    def test_it_comes_back_with_the_same_answers(self, tiny, teacher, student, tmp_path):
        built = build_index(tiny, teacher, student, factory="SQ8", name="student")
        built.save(tmp_path / "index")
        loaded = FaissIndex.load(tmp_path / "index")
        assert (loaded.name, loaded.factory, loaded.space) == ("student", "SQ8", built.space)
        assert loaded.search("star planet", k=9).to_dict() == built.search("star planet", k=9).to_dict()

    def test_plain_faiss_reads_it_with_equal_scores(self, tiny, teacher, index, tmp_path):
        index.save(tmp_path / "index")
        scores, rows = faiss.read_index(str(tmp_path / "index" / "index.faiss")).search(
            teacher.encode(["star planet"], "query"), 4
        )
        ids = pq.read_table(tmp_path / "index" / "ids.parquet")["document_id"].to_pylist()
        result = index.search("star planet", k=4)
        assert [ids[row] for row in rows[0]] == list(result.document_ids)
        np.testing.assert_array_equal(scores[0], result.scores.astype("f4"))

    def test_memory_mapped_it_answers_the_same(self, index, tmp_path):
        index.save(tmp_path / "index")
        mapped = FaissIndex.load(tmp_path / "index", memory_map=True)
        assert mapped.search("star", k=3).to_dict() == index.search("star", k=3).to_dict()

    def test_parameters_are_set_at_loading(self, tiny, teacher, tmp_path):
        build_index(tiny, teacher, factory="IVF8,Flat").save(tmp_path / "index")
        loaded = FaissIndex.load(tmp_path / "index", parameters="nprobe=8")
        assert len(loaded.search("star", k=60)) == 60
        with pytest.raises(UserError, match=r"^search parameters 'efSearch=8' do not fit this index"):
            FaissIndex.load(tmp_path / "index", parameters="efSearch=8")

    def test_bytes_per_document_are_those_of_the_file(self, index, tmp_path):
        index.save(tmp_path / "index")
        assert index.bytes_per_document() == pytest.approx((tmp_path / "index" / "index.faiss").stat().st_size / 60)

    def test_index_and_student_move_together(self, tiny, teacher, student, tmp_path):
        built = build_index(tiny, teacher, student)
        (tmp_path / "here").mkdir()
        student.name = student.name.replace("/student", "/here/student")
        shutil.move(tmp_path / "student", tmp_path / "here" / "student")
        built.save(tmp_path / "here" / "index")
        shutil.move(tmp_path / "here", tmp_path / "there")
        moved = FaissIndex.load(tmp_path / "there" / "index")
        assert moved.search("star", k=5).to_dict() == built.search("star", k=5).to_dict()

    def test_a_student_of_the_space_is_admitted_from_anywhere(self, index, student, tmp_path):
        index.save(tmp_path / "index")
        shutil.move(tmp_path / "student", tmp_path / "moved")
        assert len(FaissIndex.load(tmp_path / "index", f"static:{tmp_path / 'moved'}").search("star", k=5)) == 5

    def test_without_its_manifest_the_student_is_a_stranger(self, index, student, tmp_path):
        index.save(tmp_path / "index")
        (tmp_path / "student" / "retrodistill.json").unlink()
        with pytest.raises(UserError, match=r"do not belong among documents by"):
            FaissIndex.load(tmp_path / "index", f"static:{tmp_path / 'student'}")

    def test_a_model_object_is_given_again(self, tiny, tiny_model, tmp_path):
        model = load_bi_encoder(tiny_model)
        built = build_index(tiny, Encoder(model, "dense:in-memory"))
        built.save(tmp_path / "index")
        with pytest.raises(UserError, match=r"^this index has no query encoder; give one"):
            FaissIndex.load(tmp_path / "index").search("star", k=3)
        again = FaissIndex.load(tmp_path / "index", model)
        assert again.search("star", k=3).to_dict() == built.search("star", k=3).to_dict()

    def test_vectors_can_be_searched_without_an_encoder(self, index, tmp_path):
        bare = FaissIndex(index.index, index.ids, index.space)
        bare.save(tmp_path / "index")
        loaded = FaissIndex.load(tmp_path / "index")
        assert loaded.search_vectors(np.ones(32), 2).to_dict() == bare.search_vectors(np.ones(32), 2).to_dict()


class TestDamage:
    @pytest.fixture
    def saved(self, index, tmp_path):
        index.save(tmp_path / "index")
        return tmp_path / "index"

    @pytest.mark.parametrize("name", ["index.faiss", "ids.parquet"])
    @pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
    def test_a_file_that_is_not_what_it_was(self, saved, name, damage):
        content = bytearray((saved / name).read_bytes())
        if damage == "removed":
            (saved / name).unlink()
        elif damage == "cut":
            (saved / name).write_bytes(content[:-7])
        else:
            content[len(content) // 2] ^= 1
            (saved / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{saved / name} is damaged: .*; build the index again"):
            FaissIndex.load(saved)

    def test_a_manifest_that_is_cut(self, saved):
        (saved / "manifest.json").write_text((saved / "manifest.json").read_text()[:50])
        with pytest.raises(UserError, match=r"manifest.json is not JSON .*; it may be cut short"):
            FaissIndex.load(saved)

    def test_a_manifest_that_lacks_something(self, saved):
        content = read_json(saved / "manifest.json")
        del content["about"]["space"]
        write_json(saved / "manifest.json", content)
        with pytest.raises(UserError, match=r"manifest.json is incomplete: it lacks 'space'; build"):
            FaissIndex.load(saved)

    def test_a_manifest_with_another_digit(self, saved):
        written = (saved / "manifest.json").read_text()
        (saved / "manifest.json").write_text(written.replace('"dimension": 32', '"dimension": 33'))
        with pytest.raises(UserError, match=r"manifest.json is damaged: it is altered"):
            FaissIndex.load(saved)

    def test_no_folder(self, tmp_path):
        with pytest.raises(
            UserError, match=rf"^no index folder {tmp_path}/none; build one with 'retrodistill index'.$"
        ):
            FaissIndex.load(tmp_path / "none")

    def test_a_models_folder_is_no_index(self, tiny_model):
        with pytest.raises(
            UserError, match=rf"does not hold an index .no manifest.json.; a model is named 'dense:{tiny_model}'.$"
        ):
            FaissIndex.load(tiny_model)

    def test_another_artifacts_folder(self, tmp_path):
        Manifest("candidates").write(tmp_path)
        with pytest.raises(UserError, match=r"holds candidates, not an index"):
            FaissIndex.load(tmp_path)

    def test_its_query_encoder_is_gone(self, tiny, teacher, student, tmp_path):
        build_index(tiny, teacher, student).save(tmp_path / "index")
        shutil.rmtree(tmp_path / "student")
        with pytest.raises(UserError, match=r"^(no model folder|model) .*student"):
            FaissIndex.load(tmp_path / "index")

    def test_a_space_that_is_not_the_files(self, index):
        with pytest.raises(UserError, match=r"do not belong together"):
            FaissIndex(index.index, index.ids, replace(index.space, dimension=16))


class TestPlaces:
    def test_a_folder_below_a_file(self, index, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}/file: "):
            index.save(tmp_path / "file" / "index")

    def test_somebodys_folder_is_not_replaced(self, index, tmp_path):
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("x")
        with pytest.raises(UserError, match=r"letters holds other files .*would be lost; choose another.$"):
            index.save(tmp_path / "letters")
        assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]

    def test_somebodys_file_beside_an_index_is_not_lost(self, index, tmp_path):
        index.save(tmp_path / "index")
        (tmp_path / "index" / "dear.txt").write_text("x")
        with pytest.raises(UserError, match=r"holds an index and 'dear.txt', which would be lost; choose another"):
            index.save(tmp_path / "index")
        assert (tmp_path / "index" / "dear.txt").read_text() == "x"

    def test_a_file_is_not_replaced(self, index, tmp_path):
        (tmp_path / "index").write_text("x")
        with pytest.raises(UserError, match=r"index is not a folder; choose another path.$"):
            index.save(tmp_path / "index")

    def test_a_full_disk_leaves_the_older_index(self, tiny, teacher, index, tmp_path, monkeypatch):
        index.save(tmp_path / "index")

        def full(*_):
            raise RuntimeError("Error in virtual size_t faiss::FileIOWriter...: write error: No space left on device")

        monkeypatch.setattr(faiss, "write_index", full)
        with pytest.raises(UserError, match=r"^cannot write .*index: .*no space left on device; nothing") as error:
            build_index(tiny, teacher, factory="SQ8").save(tmp_path / "index")
        assert "\n" not in str(error.value)
        assert FaissIndex.load(tmp_path / "index").factory == "Flat"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "index"]
