import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection
from retrodistill.encoders import Encoder, load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vector_files import VectorFile
from retrodistill.evaluation.check import check
from retrodistill.exports import export_index
from retrodistill.indexes import build_index, load_index
from retrodistill.report.tables import check_text
from retrodistill.students import save_student


@pytest.fixture
def teacher(tiny_model):
    return load_encoder(f"dense:{tiny_model}")


@pytest.fixture
def student(teacher, tiny_static, tmp_path):
    manifest = Manifest("student", about={"query_space": teacher.document_space})
    return save_student(load_bi_encoder(tiny_static), manifest, tmp_path / "student")


@pytest.fixture
def index(tiny, teacher, student):
    return build_index(tiny, teacher, student)


def sides(result):
    return {side["name"]: SimpleNamespace(**side) for side in result.sides}


def best(collection, queries, documents, k):
    """Ids of the k best documents of each query, by a full sort."""
    return [{collection.documents.ids[row] for row in np.argsort(-scores)[:k]} for scores in queries @ documents.T]


class TestAnAdmittedStudent:
    def test_shared_neighbors_are_those_of_the_teachers_own_queries(self, tiny, teacher, student, index):
        result, test = check(index, tiny, latency_queries=0), tiny.split("test")
        documents = teacher.encode(tiny.documents.texts, "document")
        lists = [best(tiny, one.encode(test.texts, "query"), documents, 10) for one in (student, teacher)]
        shares = [len(ours & theirs) / 10 for ours, theirs in zip(*lists, strict=True)]
        assert result.shared[10] == pytest.approx(np.mean(shares))
        assert 0 < result.shared[10] < 1
        assert result.shared[60] == 1  # all documents there are
        assert result.queries == 12

    def test_quality_is_that_of_each_pair_of_sides(self, tiny, teacher, student, index):
        result = sides(check(index, tiny, latency_queries=0))
        alone = Encoder(student.model, "static:alone")
        expected = evaluate({"teacher": teacher, "symmetric": alone, "asymmetric": index}, tiny).means
        for name, values in expected.items():
            assert result[name].quality["ndcg@10"] == pytest.approx(values["ndcg@10"])
            assert result[name].quality["recall@100"] == pytest.approx(values["recall@100"])
        assert result["teacher on index"].quality == pytest.approx(result["teacher"].quality)  # it is exact
        assert len({side.quality["ndcg@10"] for side in result.values()}) == 3

    def test_who_encodes_what(self, tiny, teacher, student, index):
        result = sides(check(index, tiny, latency_queries=0))
        assert {name: (side.documents_by, side.queries_by) for name, side in result.items()} == {
            "teacher": (teacher.name, teacher.name),
            "teacher on index": (teacher.name, teacher.name),
            "symmetric": (student.name, student.name),
            "asymmetric": (teacher.name, student.name),
        }

    def test_what_an_index_loses_is_told_from_what_a_student_loses(self, tiny, teacher, student):
        result = sides(check(build_index(tiny, teacher, student, truncate=2), tiny, latency_queries=0))
        assert result["teacher on index"].quality["ndcg@10"] < result["teacher"].quality["ndcg@10"]

    def test_latency_of_each(self, tiny, index):
        for side in sides(check(index, tiny, latency_queries=3)).values():
            assert 0 < side.query_ms["p50"] <= side.query_ms["p95"]
            assert side.documents_per_second > 0
        assert all(side.query_ms is None for side in sides(check(index, tiny, latency_queries=0)).values())

    def test_the_depth_of_the_comparison(self, tiny, index):
        result = check(index, tiny, k=3, latency_queries=0)
        assert list(result.shared) == [3, 60]
        assert list(result.sides[0]["quality"]) == ["ndcg@3", "recall@100"]

    def test_the_index_keeps_its_own_encoder(self, tiny, index, student):
        check(index, tiny, latency_queries=0)
        assert index.queries is student

    def test_without_the_students_own_documents(self, tiny, index):
        result = check(index, tiny, latency_queries=0, symmetric=False)
        assert list(sides(result)) == ["teacher", "teacher on index", "asymmetric"]

    def test_another_encoder_than_the_index_was_saved_with(self, tiny, teacher, student):
        result = check(build_index(tiny, teacher), tiny, queries=student.name, latency_queries=0)
        assert result.queries_by == student.name
        assert result.admitted_as == "distilled into their space"


class TestTheDocumentsOwnModel:
    def test_it_shares_all_with_itself(self, tiny, teacher):
        result = check(build_index(tiny, teacher), tiny, latency_queries=0)
        assert result.admitted_as == "it is their own model"
        assert result.shared == {10: 1.0, 60: 1.0}
        assert list(sides(result)) == ["teacher", "teacher on index"]


class TestAnExportedStore:
    @pytest.fixture
    def store(self, tiny, teacher, tmp_path):
        export_index(build_index(tiny, teacher), f"parquet:{tmp_path / 'parquet'}", tiny)
        with load_index(f"parquet:{tmp_path / 'parquet'}") as opened:
            yield opened

    def test_it_is_checked_as_the_index_that_was_exported(self, tiny, store):
        result = check(store, tiny, latency_queries=0)
        assert result.shared == {10: 1.0, 60: 1.0}
        assert len({side["quality"]["ndcg@10"] for side in result.sides}) == 1

    def test_another_number_of_documents_is_refused(self, store):
        other = Collection.from_parts("other", {"d0": "star", "new": "moon"}, {"q": "star"}, {})
        with pytest.raises(UserError, match=r"index holds 60 documents, collection other 2; give the collection"):
            check(store, other)


class TestRefusals:
    def test_an_encoder_of_another_space_says_what_differs(self, tiny, index, tiny_static):
        with pytest.raises(UserError, match=r"\(other weights; other modules; max_length None, expected 64\); use the"):
            check(index, tiny, queries=f"static:{tiny_static}")

    def test_no_query_encoder(self, tiny, index):
        index.queries = None
        with pytest.raises(UserError, match=r"^this index has no query encoder; give one to check.$"):
            check(index, tiny)

    def test_another_collection(self, tiny, index):
        other = Collection.from_parts("other", {"d0": "star", "new": "moon"}, {"q": "star"}, {})
        with pytest.raises(UserError, match=r"index holds 60 documents, collection other 2, and 60 are in only one of"):
            check(index, other)

    def test_a_teacher_that_did_not_make_the_documents(self, tiny, index, tiny_static, teacher, student):
        with pytest.raises(
            UserError, match=r"^static:.* is not, or no longer, the model .* \(other weights; other mod"
        ):
            check(index, tiny, teacher=f"static:{tiny_static}")
        with pytest.raises(UserError, match=r"\(it encodes queries only\); give that one as the teacher.$"):
            check(index, tiny, teacher=student)

    def test_a_teacher_that_was_never_saved(self, tiny, index, teacher):
        index.space = replace(index.space, documents_by="dense:in-memory")
        with pytest.raises(UserError, match=r"documents was never saved; give it as the teacher.$"):
            check(index, tiny)
        assert check(index, tiny, teacher=teacher, latency_queries=0).shared

    def test_a_split_that_is_not_there(self, tiny, index):
        with pytest.raises(UserError, match=r"has no split 'validation'; splits: train \(42 queries\)"):
            check(index, tiny, split="validation")

    @pytest.mark.parametrize("k", [0, 61])
    def test_a_depth_beyond_the_corpus(self, tiny, index, k):
        with pytest.raises(UserError, match=rf"^k={k}: the corpus has 60 documents"):
            check(index, tiny, k=k)


class TestWithoutJudgments:
    def test_neighbors_and_latency_only(self, tiny, teacher, student):
        texts = dict(zip(tiny.documents.ids, tiny.documents.texts, strict=True))
        log = Collection.from_parts("log", texts, {"a": "star planet", "b": "bread cheese"}, {})
        result = check(build_index(log, teacher, student), log, latency_queries=2)
        assert result.queries == 2
        assert set(result.shared) == {10, 60}
        assert all(not side["quality"] and side["query_ms"] for side in result.sides)
        assert "No judgments for 'test': quality is not measured." in check_text(result)

    def test_a_split_that_nobody_has_is_refused_all_the_same(self, tiny, teacher):
        texts = dict(zip(tiny.documents.ids, tiny.documents.texts, strict=True))
        log = Collection.from_parts("log", texts, {"a": "star planet"}, {})
        with pytest.raises(UserError, match=r"has no split 'nonsense'"):
            check(build_index(log, teacher), log, split="nonsense")


class TestVectorsFromAFile:
    @pytest.fixture
    def folder(self, tiny, teacher, tmp_path):
        place = tmp_path / "api"
        place.mkdir()
        vectors = teacher.encode(tiny.documents.texts, "document")
        pq.write_table(pa.table({"_id": tiny.documents.ids, "vector": vectors.tolist()}), place / "documents.parquet")
        return place

    def asked_by(self, folder, tiny, tiny_static):
        result = VectorFile.open(folder).bind(tiny)
        manifest = Manifest("student", about={"query_space": result.document_space})
        return build_index(tiny, result, Encoder(load_bi_encoder(tiny_static), "static:s", manifest))

    def test_without_its_queries_the_teacher_is_left_out(self, tiny, folder, tiny_static):
        result = check(self.asked_by(folder, tiny, tiny_static), tiny, latency_queries=2)
        assert list(sides(result)) == ["symmetric", "asymmetric"]
        assert not result.shared
        assert "has no vectors for these queries" in check_text(result)

    def test_with_its_queries_it_is_measured_and_not_timed(self, tiny, folder, tiny_static, teacher, index):
        test = tiny.split("test")
        vectors = teacher.encode(test.texts, "query").tolist()
        pq.write_table(pa.table({"_id": test.ids, "vector": vectors}), folder / "queries.parquet")
        result = check(self.asked_by(folder, tiny, tiny_static), tiny, latency_queries=2)
        assert result.shared[10] == pytest.approx(check(index, tiny, latency_queries=0).shared[10])
        assert sides(result)["teacher"].query_ms is None
        assert sides(result)["teacher"].documents_per_second is None
        assert sides(result)["asymmetric"].query_ms["p50"] > 0


class TestSayingIt:
    def test_one_line_per_side_under_a_head(self, tiny, index):
        lines = check_text(check(index, tiny, latency_queries=2)).splitlines()
        assert "is admitted among documents by dense:" in lines[0]
        assert lines[0].endswith(": distilled into their space.")
        assert "of the top 10, 100.0% of the top 60 (12 queries)." in lines[1]
        assert lines[2].split()[:4] == ["nDCG@10", "Recall@100", "p50", "ms"]
        assert [line.split("  ")[0] for line in lines[4:]] == ["teacher", "teacher on index", "symmetric", "asymmetric"]
        assert lines[7].endswith("dense:bi-encoder  static:student")

    def test_as_json(self, tiny, index):
        result = json.loads(json.dumps(check(index, tiny, latency_queries=2).to_json()))
        assert result["shared"]["60"] == 1.0
        assert [side["name"] for side in result["sides"]][-1] == "asymmetric"
