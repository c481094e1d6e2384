import statistics

import numpy as np
import pytest
from random_runs import random_scores, ranking

from retrodistill.core.errors import UserError
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.recorded import RecordedRanker
from retrodistill.runs import Run, fuse, union
from retrodistill.runs.calibration import ZScorePerQuery, fit_calibration

SEEDS = range(6)
WEIGHTS = [None, [0.3, 0.7], [2.0, 0.0], [0, 5]]


def same_pairs(seed):
    """Two dictionaries over the same pairs, of different scales, with ties."""
    first = random_scores(seed, depth=(2, 15))
    generator = np.random.default_rng(seed + 1000)
    second = {q: {d: float(generator.integers(0, 5)) * 100 for d in found} for q, found in first.items()}
    for found in (*first.values(), *second.values()):
        found["last"] = 12345.0  # no list is flat: that has a test of its own
    return first, second


def zscored(dictionary, per_query):
    everything = [score for found in dictionary.values() for score in found.values()]
    lists = {q: list(found.values()) if per_query else everything for q, found in dictionary.items()}
    return {
        q: {d: (s - statistics.mean(lists[q])) / statistics.pstdev(lists[q]) for d, s in found.items()}
        for q, found in dictionary.items()
    }


def minmaxed(dictionary):
    return {
        q: {d: (s - min(found.values())) / (max(found.values()) - min(found.values())) for d, s in found.items()}
        for q, found in dictionary.items()
    }


def reciprocal(dictionary):
    return {
        q: {d: 1 / (60 + rank) for rank, d in enumerate(ranking(found), start=1)} for q, found in dictionary.items()
    }


def combine(parts, weights, scale):
    weights = weights or [1.0] * len(parts)
    pairs = {(q, d) for part in parts for q, found in part.items() for d in found}
    fused = {}
    for q, d in pairs:
        here = [(w, part[q][d]) for w, part in zip(weights, parts, strict=True) if d in part.get(q, {})]
        total = sum(w * s for w, s in here)
        fused.setdefault(q, {})[d] = total * scale(weights, [w for w, _ in here])
    return fused


def total(weights, present):
    return 1.0


def mean(weights, present):
    return 1 / sum(present)


def close(run, wanted):
    found = run.to_dict()
    assert {q: set(f) for q, f in found.items()} == {q: set(f) for q, f in wanted.items()}
    for q, scores in wanted.items():
        for d, score in scores.items():
            assert found[q][d] == pytest.approx(score, rel=1e-9, abs=1e-9)


class TestMethods:
    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize("seed", SEEDS)
    def test_each_is_the_brute_force(self, seed, weights):
        dictionaries = same_pairs(seed)
        runs = [Run.from_dict(one) for one in dictionaries]
        close(fuse(runs, weights, "zscore"), combine([zscored(one, False) for one in dictionaries], weights, mean))
        per_query = combine([zscored(one, True) for one in dictionaries], weights, mean)
        close(fuse(runs, weights, "zscore-per-query"), per_query)
        close(fuse(runs, weights, "minmax"), combine([minmaxed(one) for one in dictionaries], weights, total))

    @pytest.mark.parametrize("weights", [None, [0.3, 0.7, 1.0]])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_reciprocal_rank_counts_what_is_there(self, seed, weights):
        dictionaries = [random_scores(seed), random_scores(seed + 50), random_scores(seed + 90, queries=3)]
        fused = fuse([Run.from_dict(one) for one in dictionaries], weights, "reciprocal-rank")
        close(fused, combine([reciprocal(one) for one in dictionaries], weights, total))

    def test_the_name_and_the_order_of_queries(self):
        fused = fuse([Run.from_dict({"q2": {"a": 1, "b": 2}, "q1": {"a": 3, "b": 1}})], name="mine")
        assert (fused.name, fused.query_ids) == ("mine", ["q2", "q1"])

    def test_z_scores_of_a_whole_corpus_have_mean_0_and_deviation_1_in_every_query(self):
        generator = np.random.default_rng(0)
        matrix = generator.normal(50, 10, (4, 200)) * np.array([[1], [10], [100], [1e4]])
        corpus = [str(number) for number in range(200)]
        rows = np.tile(np.arange(200), (4, 1))
        fused = fuse([Run.from_matrix(list("abcd"), corpus, rows, matrix)], method="zscore-per-query")
        for _, _, scores in fused:
            assert scores.mean() == pytest.approx(0, abs=1e-9)
            assert scores.std() == pytest.approx(1)

    def test_given_calibrations_are_used_as_they_are(self):
        run = Run.from_dict({"q": {"a": 1.0, "b": 3.0}})
        other = fit_calibration("zscore", Run.from_dict({"q": {"a": 0.0, "b": 10.0}}))
        assert fuse([run], calibrations=[other]).to_dict() == {"q": {"a": -0.8, "b": -0.4}}


class TestMissingPairs:
    FIRST = Run.from_dict({"q": {"a": 0.0, "b": 1.0, "c": 0.5}}, name="first")
    SECOND = Run.from_dict({"q": {"a": 4.0, "b": 2.0}}, name="second")

    @pytest.mark.parametrize("method", ["zscore", "zscore-per-query", "minmax"])
    def test_are_refused_by_name(self, method):
        with pytest.raises(UserError, match="second has no score for 1 of 3 pairs"):
            fuse([self.FIRST, self.SECOND], method=method)

    def test_mean_averages_over_the_runs_that_scored(self):
        fused = fuse([self.FIRST, self.SECOND], [1, 3], "minmax", missing="mean").to_dict()["q"]
        assert fused == pytest.approx({"a": 3.0, "b": 1.0, "c": 0.5 * 4})
        first, second = zscored(self.FIRST.to_dict(), True), zscored(self.SECOND.to_dict(), True)
        fused = fuse([self.FIRST, self.SECOND], [1, 3], "zscore-per-query", missing="mean")
        close(fused, combine([first, second], [1, 3], mean))

    def test_a_pair_that_only_a_run_of_weight_0_scored_is_refused(self):
        with pytest.raises(UserError, match="1 pairs have scores only from runs of weight 0"):
            fuse([self.FIRST, self.SECOND], [0, 1], "minmax", missing="mean")

    def test_an_unknown_treatment_is_refused(self):
        with pytest.raises(UserError, match=r"unknown treatment of missing scores 'zero'\. .*Known: error, mean"):
            fuse([self.FIRST], missing="zero")


class TestRefusals:
    RUN = Run.from_dict({"q": {"a": 1.0, "b": 2.0}})

    @pytest.mark.parametrize("weights", [[1.0], [1, 2, 3], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
    def test_weights_that_do_not_fit(self, weights):
        with pytest.raises(UserError, match=r"weights .* for 2 runs; give one per run, none below 0, not all 0"):
            fuse([self.RUN, self.RUN], weights)

    def test_no_run(self):
        with pytest.raises(UserError, match="no run was given"):
            fuse([])
        with pytest.raises(UserError, match="no run was given"):
            union([])

    def test_an_unknown_method_names_the_nearest(self):
        with pytest.raises(UserError, match=r"unknown fusion method 'z-score'. Did you mean 'zscore'?"):
            fuse([self.RUN], method="z-score")

    def test_another_number_of_calibrations(self):
        with pytest.raises(UserError, match="1 calibrations for 2 runs"):
            fuse([self.RUN, self.RUN], calibrations=[fit_calibration("zscore", self.RUN)])

    @pytest.mark.parametrize("method", ["zscore", "zscore-per-query", "minmax"])
    @pytest.mark.parametrize("level", [0.0, 0.1, 1e4 / 3])
    def test_a_flat_run_is_refused_whatever_its_rounding(self, method, level):
        level_run = Run.from_dict({"q": dict.fromkeys("abc", level), "p": dict.fromkeys("abcdefg", level)}, name="flat")
        with pytest.raises(UserError, match="run flat: all 10 scores are equal, so there is nothing to learn"):
            fuse([level_run], method=method)

    @pytest.mark.parametrize("method", ["zscore-per-query", "minmax"])
    def test_flat_lists_of_different_height_are_a_flat_run_per_query(self, method):
        with pytest.raises(UserError, match="all 4 scores are equal within each query"):
            fuse([Run.from_dict({"q": {"a": 1, "b": 1}, "p": {"a": 2, "b": 2}})], method=method)

    @pytest.mark.parametrize("method", ["zscore-per-query", "minmax"])
    def test_one_flat_list_among_others_becomes_0(self, method):
        run = Run.from_dict({"q": dict.fromkeys("abc", 0.1), "p": {"a": 1.0, "b": 2.0}})
        assert fuse([run], method=method).to_dict()["q"] == {"a": 0.0, "b": 0.0, "c": 0.0}


class TestUnion:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_sources_and_order_are_the_brute_force(self, seed):
        dictionaries = {"x": random_scores(seed), "y": random_scores(seed + 50), "z": random_scores(seed + 90)}
        united = union([Run.from_dict(one, name) for name, one in dictionaries.items()])
        wanted = combine([reciprocal(one) for one in dictionaries.values()], None, total)
        close(united, wanted)
        for query, ids, scores in united:
            assert ids.tolist() == ranking(dict(zip(ids, scores, strict=True))), query
        rows = zip(
            *(united.table[column].to_pylist() for column in ("query_id", "document_id", "sources")), strict=True
        )
        for query, document, sources in rows:
            assert sources == "+".join(name for name, one in dictionaries.items() if document in one.get(query, {}))

    def test_a_run_of_weight_0_adds_pairs_and_no_order(self):
        mined, drawn = Run.from_dict({"q": {"b": 1.0}}, "bm25"), Run.from_dict({"q": {"a": 0.0, "b": 0.0}}, "random")
        united = union([mined, drawn], weights=[1, 0])
        assert united.to_dict() == {"q": {"b": 1 / 61, "a": 0.0}}
        assert united.table["sources"].to_pylist() == ["bm25+random", "random"]

    def test_more_than_eight_runs_are_refused(self):
        with pytest.raises(UserError, match="a union of 9 runs keeps sources for at most 8"):
            union([Run.from_dict({"q": {"a": 1.0}})] * 9)


class TestAgreement:
    def three(self, seed):
        generator = np.random.default_rng(seed)
        lists = {f"q{row}": [f"d{at}" for at in range(row + 3)] for row in range(5)}
        return [
            Run.from_dict({q: {d: float(generator.normal()) for d in ds} for q, ds in lists.items()}) for _ in "abc"
        ]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_a_run_counts_by_its_mean_correlation_with_the_others(self, seed):
        runs, given = self.three(seed), [0.2, 0.3, 0.5]
        found = fuse(runs, given, "agreement")
        for start, end in zip(found.bounds[:-1], found.bounds[1:], strict=True):
            parts = np.stack([fit_calibration("zscore-per-query", run).apply(run).scores[start:end] for run in runs])
            correlations = np.corrcoef(parts)
            weights = np.maximum((correlations.sum(axis=0) - 1) / 2, 0)
            weights = (weights if weights.any() else np.ones(3)) * given
            np.testing.assert_allclose(found.scores[start:end], weights @ parts / weights.sum(), atol=1e-9)

    def test_one_that_contradicts_the_others_is_left_out(self):
        up = {"q": {"a": 1.0, "b": 2.0, "c": 3.0}}
        down = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
        found = fuse([Run.from_dict(each) for each in (up, up, up, down)], [1.0, 1.0, 1.0, 5.0], "agreement")
        np.testing.assert_allclose(
            found.scores, fit_calibration("zscore-per-query", Run.from_dict(up)).apply(Run.from_dict(up)).scores
        )

    def test_two_runs_are_refused(self):
        with pytest.raises(UserError, match=r"^fusion: agreement of 2 members; with fewer than three"):
            fuse(self.three(0)[:2], None, "agreement")

    def test_a_flat_list_says_nothing(self):
        flat, up = {"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1.0, "b": 2.0}}
        runs = [Run.from_dict(each) for each in (flat, up, up)]
        calibrations = [ZScorePerQuery() for _ in runs]
        assert fuse(runs, None, "agreement", calibrations=calibrations).to_dict()["q"] == {"a": -1.0, "b": 1.0}
        ensemble = Ensemble([RecordedRanker(run) for run in runs], method="agreement")
        assert ensemble.fuse(runs).to_dict()["q"] == {"a": -1.0, "b": 1.0}  # a single query is served so

    def test_a_run_of_weight_0_has_no_vote(self):
        runs = self.three(1)
        found = fuse([*runs, runs[0]], [1.0, 1.0, 1.0, 0.0], "agreement")
        np.testing.assert_allclose(found.scores, fuse(runs, None, "agreement").scores)

    def test_given_weights_count_where_no_run_agrees(self):
        up = {"q": {"a": 1.0, "b": 2.0}}
        alone = {"q": {"a": 2.0, "b": 1.0, "c": 9.0}}
        runs = [Run.from_dict(each) for each in (up, up, alone)]
        found = fuse(runs, [1.0, 1.0, 3.0], "agreement", missing="mean")
        assert np.isfinite(found.scores).all()
        assert set(found.to_dict()["q"]) == {"a", "b", "c"}
        opposed = [
            Run.from_dict({"q": dict(zip("abc", scores, strict=True))})
            for scores in ([1, 0, -1], [-1, 0, 1], [0, 0, 0])
        ]
        even = fuse(opposed, [3.0, 1.0, 0.0], "agreement", calibrations=[ZScorePerQuery() for _ in opposed])
        np.testing.assert_allclose(even.scores, np.array([0.5, 0, -0.5]) * np.sqrt(1.5))


def test_teachers_that_are_equally_sure_are_fused_by_entropy():
    generator = np.random.default_rng(0)
    lists = {f"q{row}": {f"d{at}": float(generator.normal()) for at in range(20)} for row in range(10)}
    one = Run.from_dict(lists)
    sharp = one.with_scores(np.exp(3 * generator.normal(size=len(one))))  # a few large scores
    parts = [fit_calibration("entropy", run).apply(run).scores for run in (one, sharp)]
    np.testing.assert_allclose(fuse([one, sharp], [1, 3], "entropy").scores, (parts[0] + 3 * parts[1]) / 4)
