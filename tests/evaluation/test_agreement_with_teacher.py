import numpy as np
import pytest

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.evaluation import evaluate_run, means
from retrodistill.evaluation.agreement import agreements
from retrodistill.rankers import load_ranker
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.report.tables import evaluation_text
from retrodistill.runs import Run, write_run
from retrodistill.runs.agreement import kendall, overlap, ranking_overlap


@pytest.fixture
def asked(tiny):
    return tiny, tiny.split("test"), tiny.relevance("test").to_dict()


class TestATeacherThatSearches:
    def test_agrees_with_itself_fully(self, asked, space):
        run = load_ranker(space).search(asked[1], asked[0], 60)
        found = agreements(space, {"same": run}, *asked)["same"]
        assert (found.overlap10, found.rank_biased_overlap) == pytest.approx((1, 1))
        assert found.kendall_tau == pytest.approx(1, abs=1e-6)
        assert found.ceiling == pytest.approx(means(evaluate_run(run, asked[2]))["ndcg@10"])

    def test_is_compared_by_its_own_search(self, asked, space):
        run = BM25Ranker().search(asked[1], asked[0], 60)
        wanted = load_ranker(space).search(asked[1], asked[0], 60)
        found = agreements(load_ranker(space), {"lexical": run}, *asked)["lexical"]
        assert found.teacher == space
        assert found.overlap10 == pytest.approx(np.mean(list(overlap(run, wanted, 10).values())))
        assert found.rank_biased_overlap == pytest.approx(np.mean(list(ranking_overlap(run, wanted).values())))
        assert found.kendall_tau == pytest.approx(np.mean(list(kendall(run, wanted).values())))

    def test_the_ceiling_is_its_order_of_the_systems_own_candidates(self, asked, space):
        run = BM25Ranker().search(asked[1], asked[0], 60)
        reranked = load_ranker(space).score(asked[1], asked[0], run)
        assert agreements(space, {"x": run}, *asked)["x"].ceiling == pytest.approx(
            means(evaluate_run(reranked, asked[2]))["ndcg@10"]
        )
        assert agreements(space, {"x": run}, asked[0], asked[1], None)["x"].ceiling is None

    def test_calibration_pairs_both_scores(self, asked, space):
        run = load_ranker(space).search(asked[1], asked[0], 60)
        points = agreements(space, {"x": run}, *asked)["x"].calibration
        assert sum(point.pairs for point in points) == len(run)
        assert [point.teacher for point in points] == pytest.approx([point.student for point in points], abs=1e-5)


class TestATeacherThatScoresPairs:
    def test_orders_what_all_systems_found_together(self, asked, tiny_cross_encoder):
        collection, queries, _ = asked
        runs = {
            "a": Run.from_dict({"t0": {"d0": 2.0, "d6": 1.0}}),
            "b": Run.from_dict({"t0": {"d12": 2.0, "d18": 1.0}}),
        }
        found = agreements(f"cross-encoder:{tiny_cross_encoder}", runs, *asked)
        assert [found[name].overlap10 for name in "ab"] == [0.5, 0.5]
        pool = Run.from_dict({"t0": dict.fromkeys(["d0", "d6", "d12", "d18"], 0.0)})
        order = load_ranker(f"cross-encoder:{tiny_cross_encoder}").score(queries, collection, pool)
        assert found["a"].kendall_tau == pytest.approx(kendall(runs["a"], order)["t0"])


class TestARecordedTeacher:
    def test_pairs_that_it_has_not_are_left_out(self, asked, tmp_path):
        write_run(Run.from_dict({"t0": {"d0": 1.0, "d6": 5.0}}), tmp_path / "teacher.run")
        run = Run.from_dict({"t0": {"d0": 3.0, "d6": 2.0, "d1": 9.0}, "t1": {"d1": 1.0}})
        found = agreements(f"run:{tmp_path / 'teacher.run'}", {"x": run}, *asked)["x"]
        assert found.overlap10 == 1
        assert found.kendall_tau == pytest.approx(-1)
        assert sum(point.pairs for point in found.calibration) == 2

    def test_the_ceiling_counts_the_queries_that_it_has(self, asked, tmp_path):
        collection, queries, qrels = asked
        run = BM25Ranker().search(queries, collection, 60)
        half = queries.select(queries.ids[:6])
        write_run(BM25Ranker().search(half, collection, 60), tmp_path / "teacher.run")
        found = agreements(f"run:{tmp_path / 'teacher.run'}", {"x": run}, *asked)["x"]
        kept = {query: grades for query, grades in qrels.items() if query in half.ids}
        assert found.queries == 6
        assert found.ceiling == pytest.approx(means(evaluate_run(run, kept))["ndcg@10"])
        assert found.reached == pytest.approx(found.ceiling)

    def test_one_of_other_queries_is_refused(self, asked, tmp_path):
        write_run(Run.from_dict({"q0": {"d0": 1.0}}), tmp_path / "teacher.run")
        with pytest.raises(UserError, match="no score for any of the 12 queries"):
            agreements(f"run:{tmp_path / 'teacher.run'}", {"x": Run.from_dict({"t0": {"d0": 1.0}})}, *asked)

    def test_unknown_ids_are_refused(self, asked, tmp_path):
        write_run(Run.from_dict({"t0": {"elsewhere": 1.0}}), tmp_path / "teacher.run")
        with pytest.raises(UserError, match="elsewhere"):
            agreements(f"run:{tmp_path / 'teacher.run'}", {"x": Run.from_dict({"t0": {"d0": 1.0}})}, *asked)


class TestInAnEvaluation:
    def test_it_stands_in_the_rows_and_in_the_text(self, tiny_folder, space):
        made = evaluate(["bm25", space], load_collection(tiny_folder), teacher=space)
        assert made.results.systems[1].agreement.overlap10 == 1
        assert f"agreement with {space}"[:12] in evaluation_text(made)
        assert made.results.to_json()["systems"][0]["agreement"]["overlap@10"] < 1
