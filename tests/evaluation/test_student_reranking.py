"""Students that re-rank: as the systems of an evaluation, stored or read pair by pair, by name and by recipe."""

import numpy as np
import pytest

import retrodistill as rd
from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.rankers.reranker import Reranker
from retrodistill.recipes import StudentSettings, parse_recipe
from retrodistill.runs import Run
from retrodistill.students.cross_encoder import CrossEncoderStudent, cross_encoder_student
from retrodistill.students.late_interaction import StoredDocuments
from retrodistill.students.prett import prett_student
from retrodistill.students.registry import kind_of
from retrodistill.students.tk import tk_student


def ranker_of(student):
    return kind_of(student.model).ranker(student, None)


KINDS = ["cross-encoder", "prett", "tk"]
SHORT = {"epochs": 1, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}


@pytest.fixture
def student(tiny, tiny_model, tiny_cross_encoder):
    def student(kind):
        texts = tiny.documents.texts
        model = {
            "cross-encoder": lambda: cross_encoder_student(tiny_cross_encoder),
            "prett": lambda: prett_student(tiny_cross_encoder, texts),
            "tk": lambda: tk_student(tiny_model, texts, layers=1),
        }[kind]()
        return CrossEncoderStudent(model.eval(), f"cross-encoder:{kind}")

    return student


def recipe(folder, model, train, **student):
    stage = {
        "objectives": "kl",
        "train": train,
        "texts": {"titles": True, "sentences": 0},
        "candidates": {"depth": "all"},
        "groups": {"documents": 4},
        "training": SHORT,
    }
    return parse_recipe(
        {
            "name": "x",
            "collection": str(folder),
            "document_encoder": f"dense:{student.pop('space')}",
            "students": {"student": {"model": model, "control": "contrastive", "stages": [stage], **student}},
            "evaluation": {"latency_queries": 2, "examples": 1, "rerank": 5},
        }
    )


class TestOrder:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_sources_first_documents_in_the_order_of_full_passes(self, kind, student, tiny):
        one, queries = student(kind), tiny.split("test")
        found = Reranker(ranker_of(one), BM25Ranker(), 5).search(queries, tiny, 10)
        candidates = BM25Ranker().search(queries, tiny, 60).without({q: q for q in queries.ids}).top(5)
        texts = dict(zip(tiny.documents.ids, tiny.documents.texts, strict=True))
        asked = dict(zip(queries.ids, queries.texts, strict=True))
        for query, documents, scores in found:
            listed = next(row[1] for row in candidates if row[0] == query)
            assert set(documents) == set(listed)
            pairs = [(asked[query], texts[document]) for document in documents]
            np.testing.assert_allclose(scores, one.score(pairs), atol=2e-3)  # prett and tk store float16

    def test_gives_no_more_than_asked(self, student, tiny):
        found = Reranker(ranker_of(student("tk")), BM25Ranker(), 5).search(tiny.split("test"), tiny, 2)
        assert all(len(documents) <= 2 for _, documents, _ in found)

    @pytest.mark.parametrize("depth", [0, -1])
    def test_a_depth_of_nothing(self, student, depth):
        with pytest.raises(UserError, match=rf"top {depth}; give at least 1"):
            Reranker(ranker_of(student("tk")), BM25Ranker(), depth)


class TestCost:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_answers_as_it_retrieves(self, kind, student, tiny):
        reranker, queries = Reranker(ranker_of(student(kind)), BM25Ranker(), 5), tiny.split("test")
        answer = reranker.query_fn(tiny, 10)
        for query, _, scores in reranker.search(queries, tiny, 5):
            given = answer(queries.texts[queries.ids.index(query)])
            np.testing.assert_allclose(np.sort(given)[::-1], scores, atol=1e-4)

    def test_its_size_is_the_sources_and_what_is_stored(self, student, tiny):
        source, one = BM25Ranker().bytes_per_document(tiny), student("tk")
        stored = StoredDocuments(one, tiny.documents.texts).bytes_per_document
        assert stored > 2 * 32
        assert Reranker(ranker_of(one), BM25Ranker()).bytes_per_document(tiny) == source + stored
        assert Reranker(ranker_of(student("cross-encoder")), BM25Ranker()).bytes_per_document(tiny) == source

    def test_another_source_has_its_own_time(self, student, tiny):
        run = RecordedRanker(Run.from_dict({"t0": {"d0": 2.0, "d6": 1.0}}))
        with pytest.raises(UserError, match="its source is not bm25"):
            Reranker(ranker_of(student("tk")), run).query_fn(tiny, 10)


class TestByName:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_saved_folder_re_ranks_by_its_name(self, kind, student, tiny, tmp_path):
        one = student(kind)
        one.model.save_pretrained(str(tmp_path / "s"), create_model_card=False)
        by_folder, named = f"rerank@5:{tmp_path / 's'}@bm25", f"rerank@5:cross-encoder:{tmp_path / 's'}@bm25"
        loaded = load_ranker(by_folder)
        assert (loaded.depth, loaded.name) == (5, by_folder)
        assert loaded.judge.fingerprint(tiny) == ranker_of(one).fingerprint(tiny)
        made = evaluate([by_folder, named], tiny)
        assert made.means[by_folder] == made.means[named]
        assert [row.documents_by for row in made.results.systems] == ["the first 5 of bm25"] * 2

    @pytest.mark.parametrize("kind", ["prett", "tk"])
    def test_it_may_be_named_by_its_own_kind(self, kind, student, tiny, tmp_path):
        one = student(kind)
        one.model.save_pretrained(str(tmp_path / "s"), create_model_card=False)
        loaded = load_ranker(f"rerank@5:{kind}:{tmp_path / 's'}@bm25")
        assert (loaded.judge.kind, loaded.judge.name) == (kind, f"{kind}:{tmp_path / 's'}")
        assert loaded.judge.fingerprint(tiny) == ranker_of(one).fingerprint(tiny)
        other = "tk" if kind == "prett" else "prett"
        with pytest.raises(UserError, match=rf"is not a {other} student but a {kind}; name it '{kind}:"):
            load_ranker(f"rerank:{other}:{tmp_path / 's'}@bm25")
        with pytest.raises(UserError, match="scores pairs and cannot search a corpus"):
            load_ranker(f"{kind}:{tmp_path / 's'}x", needs="search")

    def test_what_decides_its_results_is_known(self, student, tiny):
        prints = [
            Reranker(ranker_of(student(kind)), BM25Ranker(), depth).fingerprint(tiny)
            for kind, depth in [("tk", 5), ("tk", 6), ("prett", 5)]
        ]
        assert None not in prints
        assert len(set(prints)) == 3


@pytest.mark.slow
class TestByRecipe:
    @pytest.mark.parametrize(
        ("kind", "train"),
        [("cross-encoder", "both_encoders"), ("prett", "both_encoders"), ("prett", "head"), ("tk", "head")],
    )
    def test_bm25_teacher_control_and_student_are_measured(
        self, kind, train, tiny_folder, tiny_model, tiny_cross_encoder, tmp_path
    ):
        source = tiny_model if kind == "tk" else tiny_cross_encoder
        more = {"join": 1} if kind == "prett" else {"layers": 1}
        results = rd.run_recipe(recipe(tiny_folder, f"{kind}:{source}", train, space=tiny_model, **more), tmp_path)
        systems = {one.name: one for one in results.systems}
        assert set(systems) == {"bm25", "teacher", "control", "student"}
        for name in ("control", "student"):
            assert systems[name].documents_by == "the first 5 of bm25"
            assert systems[name].queries_by == f"{kind}:{name}"
            assert systems[name].query_ms["p50"] > 0
        grows = systems["student"].bytes_per_document - systems["bm25"].bytes_per_document
        assert (grows > 100) == (kind != "cross-encoder")
        again = evaluate(f"rerank@5:{tmp_path / 'students' / 'student'}@bm25", rd.load_collection(tiny_folder))
        assert next(iter(again.means.values()))["ndcg@10"] == pytest.approx(systems["student"].ndcg10)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"model": "tk:x", "join": 1}, "join is for prett students; this one is tk"),
            ({"model": "prett:x", "dimension": "space"}, "is a number: that of a token's vector"),
            ({"model": "prett:"}, "a student starts from 'static'"),
            ({"model": "tk:x", "stages": [{"objectives": "kl", "train": "query_encoder"}]}, "set train: head or both"),
            (
                {"model": "tk:x", "stages": [{"objectives": "leaf", "train": "both_encoders"}]},
                "has no embedding to align",
            ),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_refused(self, given, message):
        with pytest.raises(ValueError, match=message):
            StudentSettings.model_validate({"stages": [{"objectives": "kl", "train": "both_encoders"}], **given})
