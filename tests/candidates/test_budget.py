from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import softmax
from typer.testing import CliRunner

from retrodistill.candidates.selection import choose_pairs, gains, pairs_within, robust_weights
from retrodistill.cli import app
from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.runs import read_run, write_run
from retrodistill.runs.run import Run


def random_pool(queries=60, depth=20, seed=0):
    generator = np.random.default_rng(seed)
    return Run.from_dict(
        {
            f"q{query}": {f"d{document}": generator.normal() for document in range(generator.integers(1, depth))}
            for query in range(queries)
        }
    )


def pairs_of(run):
    return {(query, document) for query, ids, _ in run for document in ids}


class TestBudgetInPairs:
    @pytest.mark.parametrize(
        ("given", "pairs"), [(250, 250), ("250", 250), ("25%", 50), (" 12.5% ", 25), ("100%", 200), ("0.1%", 2)]
    )
    def test_a_number_or_a_share(self, given, pairs):
        assert pairs_within(given, 200) == pairs

    @pytest.mark.parametrize("given", ["0%", "101%", "nan%", "1", "-5", "some", "", "2.5", "%"])
    def test_anything_else_is_rejected(self, given):
        with pytest.raises(UserError, match=r"give a number of pairs, at least 2, or a share"):
            pairs_within(given, 200)


class TestGains:
    def test_a_worked_example(self):
        # lists 3 2 0 and 5 5: deviations sqrt(14/9) and 0, of which the first alone is a scale
        run = Run.from_dict({"q": {"a": 3.0, "b": 2.0, "c": 0.0}, "r": {"a": 5.0, "b": 5.0}})
        scale = np.sqrt(14 / 9)
        sigmoid = [1 / (1 + np.exp(-gap / scale)) for gap in (1, -1, -3, 0, 0)]
        assert gains(run) == pytest.approx([1 - abs(2 * p - 1) for p in sigmoid])

    def test_a_students_is_twice_the_probability_of_the_wrong_order_under_its_softmax(self):
        lists = {"q": [0.7, 0.64, 0.2], "r": [0.1, 0.3]}
        run = Run.from_dict({query: dict(zip("abc", scores, strict=False)) for query, scores in lists.items()})
        wanted = []
        for scores in lists.values():
            p = softmax(np.array(scores) / 0.05)
            rivals = [max(np.delete(p, place)) for place in range(len(p))]
            wanted += [2 * min(own, rival) / (own + rival) for own, rival in zip(p, rivals, strict=True)]
        assert gains(run, 0.05) == pytest.approx(wanted)

    def test_the_scale_and_the_origin_of_the_scores_do_not_count(self):
        run = random_pool().filter(np.diff(random_pool().bounds)[random_pool().query_codes] >= 2)
        assert gains(run.with_scores(7 * run.scores - 3)) == pytest.approx(gains(run))

    def test_equal_scores_are_fully_uncertain(self):
        assert gains(Run.from_dict({"q": {"a": 1.0, "b": 1.0}})).tolist() == [1, 1]

    def test_a_certain_pair_still_has_a_gain_above_0(self):
        far = {f"d{number}": 0.0 for number in range(999)} | {"best": 1e6}
        found = gains(Run.from_dict({"q": far, "r": {"a": 0.0, "b": 1e-9}}))
        assert (found > 0).all()
        assert np.isfinite(1 / found).all()


class TestRobustWeights:
    def value(self, weights, gain, mistakes):
        """Expected gain when the adversary spoils the points where most is gained."""
        each = np.sort(weights * gain)[::-1]
        return each[mistakes:].sum()

    def optimum(self, gain, mistakes):
        """The same game as a linear program: max sum q g - m t - sum u, with u >= q g - t, on the simplex."""
        n = len(gain)
        costs = np.concatenate([-gain, [mistakes], np.ones(n)])
        above = np.hstack([np.diag(gain), -np.ones((n, 1)), -np.eye(n)])
        simplex = np.concatenate([np.ones(n), np.zeros(n + 1)])[None]
        return -linprog(costs, above, np.zeros(n), simplex, [1.0], bounds=(0, None)).fun

    @pytest.mark.parametrize("mistakes", [0, 1, 3, 7])
    def test_no_distribution_does_better_against_the_adversary(self, mistakes):
        for seed in range(5):
            gain = np.random.default_rng(seed).uniform(0.01, 1, 12)
            weights = robust_weights(gain, mistakes / 12)
            assert weights.sum() == pytest.approx(1)
            assert self.value(weights, gain, mistakes) == pytest.approx(self.optimum(gain, mistakes), abs=1e-9)

    def test_a_worked_example(self):
        # k=1: .5/1, k=2: 1.5/3, k=3: 2.5/7, k=4: 3.5/57 with m = .5: the first two; ties take the shorter
        gain = np.array([0.25, 1.0, 0.02, 0.5])
        assert robust_weights(gain, 0.125).tolist() == [0, 1, 0, 0]
        # m = 1: 0, 1/3, 2/7, 3/57: two of them, each by 1 / gain
        assert robust_weights(gain, 0.25) == pytest.approx([0, 1 / 3, 0, 2 / 3])

    def test_confident_points_get_nothing_and_uncertain_ones_the_inverse_of_their_gain(self):
        gain = np.concatenate([np.full(50, 1e-4), np.linspace(0.5, 1, 50)])
        weights = robust_weights(gain, 0.2)
        assert (weights[:50] == 0).all()
        open_ = weights[50:] > 0
        assert open_.sum() > 20
        assert np.ptp((weights * gain)[50:][open_]) < 1e-12

    def test_a_large_budget_lowers_the_threshold(self):
        gain = np.array([0.25, 1.0, 0.02, 0.5])
        assert (robust_weights(gain, 0.25, least=3) > 0).tolist() == [True, True, False, True]
        assert (robust_weights(gain, 0.25, least=9) > 0).all()

    @pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
    def test_a_share_of_mistakes_outside_its_range(self, share):
        with pytest.raises(UserError, match="lies in"):
            robust_weights(np.ones(3), share)


@pytest.mark.parametrize("by", ["robust", "random"])
class TestChoosePairs:
    def test_the_budget_is_spent_to_the_pair_and_no_query_has_one(self, by):
        pool = random_pool()
        for budget in (*range(2, 40), 100, 333):
            for seed in range(3):
                chosen = choose_pairs(pool, budget, by, seed=seed)
                assert len(chosen.run) == budget
                assert np.diff(chosen.run.bounds).min() >= 2
                assert pairs_of(chosen.run) <= pairs_of(pool)

    def test_scores_and_sources_are_kept(self, by):
        pool = Run.from_arrays(["q", "q", "q"], ["a", "b", "c"], [3.0, 2.0, 1.0], sources=["x", "y", "x"])
        run = choose_pairs(pool, 3, by).run
        assert run.table.to_pylist() == pool.table.to_pylist()

    def test_the_seed_decides_and_the_order_of_rows_does_not(self, by):
        pool = random_pool()
        back = Run(pool.table.take(np.arange(len(pool))[np.lexsort((-np.arange(len(pool)), pool.query_codes))]))
        runs = [choose_pairs(one, 80, by, seed=seed).run for one, seed in ((pool, 0), (pool, 0), (back, 0), (pool, 1))]
        assert runs[0].fingerprint == runs[1].fingerprint == runs[2].fingerprint != runs[3].fingerprint

    def test_a_budget_beyond_the_pool_takes_all_but_lists_of_one(self, by):
        pool = random_pool()
        chosen = choose_pairs(pool, 10**6, by)
        single = {query for query, ids, _ in pool if len(ids) == 1}
        assert chosen.single == len(single) > 0
        assert pairs_of(chosen.run) == {pair for pair in pairs_of(pool) if pair[0] not in single}

    def test_an_odd_pair_that_fits_nowhere_is_not_spent(self, by):
        pool = Run.from_dict({f"q{number}": {"a": 1.0, "b": 0.0} for number in range(5)} | {"lone": {"a": 1.0}})
        chosen = choose_pairs(pool, 5, by)
        assert len(chosen.run) == 4
        assert chosen.summary == (
            f"budget: 4 of 11 pairs (36.4%) of 2 of 6 queries, by {by}; 1 queries have one candidate and are left out; "
            "1 of the budget is not spent"
        )

    def test_a_larger_budget_keeps_nearly_all_of_a_smaller_one(self, by):
        pool = random_pool()
        few, more = (pairs_of(choose_pairs(pool, budget, by, seed=2).run) for budget in (40, 60))
        assert len(few - more) <= 1

    def test_a_pool_of_single_candidates_is_rejected(self, by):
        with pytest.raises(UserError, match="no query with two candidates"):
            choose_pairs(Run.from_dict({"q": {"a": 1.0}, "r": {"b": 1.0}}), 2, by)


class TestWhatIsChosen:
    #: ten queries whose first two are close and whose tail is far behind, ten of which nothing is open
    POOL = Run.from_dict(
        {f"open{query}": {"a": 5.0, "b": 4.9, "c": -9.0, "d": -9.5} for query in range(10)}
        | {f"sure{query}": {"a": 9.0, "b": -5.0, "c": -5.5, "d": -6.0} for query in range(10)}
    )

    def test_robust_chooses_uncertain_pairs(self):
        assert pairs_of(choose_pairs(self.POOL, 20).run) == {
            (f"open{query}", document) for query in range(10) for document in "ab"
        }

    def test_a_pair_is_chosen_with_its_rival(self):
        pool = random_pool(depth=30)
        best = {query: ids[0] for query, ids, _ in pool.ranked()}
        for seed in range(5):
            assert all(best[query] in ids for query, ids, _ in choose_pairs(pool, 60, seed=seed).run)

    def test_random_is_uniform_over_pairs(self):
        counts = dict.fromkeys(pairs_of(self.POOL), 0)
        for seed in range(600):
            for pair in pairs_of(choose_pairs(self.POOL, 20, "random", seed=seed).run):
                counts[pair] += 1
        # each of 80 pairs is in a quarter of the choices: 150 times, deviation sqrt(600 x .25 x .75) = 10.6
        assert np.abs(np.array(list(counts.values())) - 150).max() < 5 * 10.6

    def test_another_method_is_rejected(self):
        with pytest.raises(UserError, match=r"unknown way to spend a budget 'rnadom'\. Did you mean 'random'"):
            choose_pairs(self.POOL, 20, "rnadom")


class TestStudentsChoice:
    def test_it_needs_the_students_temperature(self):
        with pytest.raises(UserError, match="'uncertain' is for stages of a recipe"):
            choose_pairs(random_pool(), 20, "uncertain")

    def test_a_lower_temperature_leaves_fewer_pairs_open(self):
        pool = random_pool(queries=200)
        gain = [gains(choose_pairs(pool, 400, "uncertain", temperature=t, seed=1).run, 1.0) for t in (0.05, 5.0)]
        assert gain[0].mean() > gain[1].mean() + 0.05

    @pytest.mark.parametrize("by", ["robust", "uncertain", "random"])
    def test_bought_pairs_are_kept_and_count(self, by):
        pool = random_pool()
        bought = choose_pairs(pool, 60, "random", seed=7).run
        # the student has changed
        changed = pool.with_scores(np.random.default_rng(5).normal(size=len(pool)))
        chosen = choose_pairs(changed, 100, by, temperature=1.0, bought=bought)
        assert pairs_of(bought) <= pairs_of(chosen.run)
        assert len(chosen.run) == 100
        assert np.diff(chosen.run.bounds).min() >= 2
        assert f"by {by}; 60 of them were bought before" in chosen.summary
        for budget in (60, 20):  # nothing is added, and nothing is lost
            assert pairs_of(choose_pairs(changed, budget, by, temperature=1.0, bought=bought).run) == pairs_of(bought)
        everything = choose_pairs(pool, 10**6, by, temperature=1.0).run
        assert pairs_of(choose_pairs(pool, 10**6, by, temperature=1.0, bought=everything).run) == pairs_of(everything)

    def test_pairs_that_the_student_has_decided_wait(self):
        pool = TestWhatIsChosen.POOL
        bought = Run.from_dict({f"sure{query}": {"a": 1.0, "b": 0.0} for query in range(10)})
        found = choose_pairs(pool, 40, "uncertain", temperature=1.0, bought=bought).run
        assert pairs_of(found) - pairs_of(bought) == {(f"open{query}", at) for query in range(10) for at in "ab"}


class TestTeacherThatErrs:
    """The teacher labels pairs wrongly that are decided; `robust` must not pay for these."""

    def worst(self, weights, gain, mistakes):
        """The gain that is left when the adversary spoils those `mistakes` points that hurt most, tried one by one."""
        spoiled = combinations(range(len(gain)), mistakes)
        return min(sum(weights[row] * gain[row] for row in range(len(gain)) if row not in bad) for bad in spoiled)

    @pytest.mark.parametrize("mistakes", [1, 2, 3])
    def test_the_support_is_the_best_of_all_supports(self, mistakes):
        for seed in range(4):
            gain = np.random.default_rng(seed).uniform(0.01, 1, 8) ** 2
            found = robust_weights(gain, mistakes / 8)
            best = 0.0
            for size in range(1, 9):
                for rows in map(list, combinations(range(8), size)):
                    weights = np.zeros(8)
                    weights[rows] = (1 / gain[rows]) / (1 / gain[rows]).sum()
                    best = max(best, self.worst(weights, gain, mistakes))
            assert self.worst(found, gain, mistakes) == pytest.approx(best)

    def test_it_spends_less_than_greed_where_the_student_is_least_sure(self):
        gain = np.array([1.0, 0.9, 0.5, 0.45, 0.4, 0.01])
        weights = robust_weights(gain, 1 / 6)
        greedy = np.array([1.0, 0, 0, 0, 0, 0])
        assert weights[0] < weights[1] < weights[2]
        assert weights[3:].tolist() == [0, 0, 0]
        assert self.worst(weights, gain, 1) > self.worst(greedy, gain, 1) == 0

    @pytest.mark.parametrize("by", ["robust", "uncertain"])
    def test_wrong_labels_of_decided_pairs_are_not_bought(self, by):
        generator = np.random.default_rng(3)
        scores = {  # two close documents, and four that are decided
            f"q{query}": dict(zip("abcdef", [5.0, 5 - generator.uniform(0, 0.3), -4, -5, -6, -7], strict=True))
            for query in range(40)
        }
        student = Run.from_dict(scores)
        wrong = {(query, document) for query in scores for document in "cdef"}
        temperature = 1.0 if by == "uncertain" else None
        for seed in range(3):
            found = choose_pairs(student, 60, by, temperature=temperature, seed=seed).run
            assert not pairs_of(found) & wrong
            control = choose_pairs(student, 60, "random", seed=seed).run
            assert len(pairs_of(control) & wrong) > 25  # 40 on average
        # it is the weights that exclude them, not the order of what is left over
        gain = gains(student.ranked(), temperature)
        weights = robust_weights(gain, 0.1, 60)
        assert weights.reshape(40, 6)[:, 2:].max() == 0
        assert (weights.reshape(40, 6)[:, :2] > 0).sum() >= 60


class TestCommand:
    @pytest.fixture
    def scored(self, tiny_folder, tmp_path):
        """The pool in a file, and a call of `score` on it by bm25."""
        collection = load_collection(tiny_folder)
        generator = np.random.default_rng(0)
        queries, documents = collection.split("train").ids, collection.documents.ids
        rows = np.stack([generator.permutation(len(documents))[:10] for _ in queries])
        write_run(Run.from_matrix(queries, documents, rows, generator.normal(size=rows.shape)), tmp_path / "pool.run")

        def call(*options):
            base = ["score", "--collection", tiny_folder, "--candidates", tmp_path / "pool.run", "--teacher", "bm25"]
            return CliRunner().invoke(app, [str(part) for part in (*base, "--out", tmp_path / "out.run", *options)])

        return call

    @pytest.mark.parametrize("by", ["robust", "random"])
    def test_scores_the_chosen_pairs(self, scored, tmp_path, by):
        assert scored("--budget", "25%", "--budget-by", by).exit_code == 0
        assert len(read_run(tmp_path / "out.run")) == 105

    def test_without_a_budget_all_pairs(self, scored, tmp_path):
        assert scored().exit_code == 0
        assert len(read_run(tmp_path / "out.run")) == 420

    def test_a_students_choice_is_for_recipes(self, scored, tmp_path):
        done = scored("--budget", "25%", "--budget-by", "uncertain")
        assert "'uncertain' is for stages of a recipe" in str(done.exception)
        assert not (tmp_path / "out.run").exists()

    def test_a_dry_run_shows_the_saving(self, scored, tmp_path):
        done = scored("--budget", "25%", "--dry-run")
        assert "budget: 105 of 420 pairs (25.0%)" in done.stdout
        assert "(all pairs: " in done.stdout
        assert not (tmp_path / "out.run").exists()

    def test_a_wrong_budget_is_rejected_before_anything_is_scored(self, scored, tmp_path):
        done = scored("--budget", "many")
        assert isinstance(done.exception, UserError)
        assert not (tmp_path / "out.run").exists()
