import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation.cost import CostConfig, fixed_threads, matrix_rate, operations
from retrodistill.report.figures import pareto_front


def brute_front(qualities, costs):
    def beats(one, other):
        at_least = qualities[one] >= qualities[other] and all(np.array(costs[one]) <= costs[other])
        return at_least and (qualities[one] > qualities[other] or any(np.array(costs[one]) < costs[other]))

    everyone = range(len(qualities))
    return {other for other in everyone if not any(beats(one, other) for one in everyone)}


class TestParetoFront:
    def test_worked_by_hand(self):
        # the second is beaten by the first, which is better and costs as much; the third is cheaper
        assert pareto_front([0.7, 0.6, 0.5], [[10], [10], [1]]) == [0, 2]

    def test_a_system_stays_for_one_kind_of_cost_alone(self):
        assert pareto_front([0.7, 0.6], [[10, 5], [10, 4]]) == [0, 1]
        assert pareto_front([0.7, 0.6], [[10, 5], [10, 5]]) == [0]

    def test_equals_stay_both(self):
        assert pareto_front([0.5, 0.5], [[1], [1]]) == [0, 1]

    @pytest.mark.parametrize("seed", range(10))
    def test_is_the_brute_force(self, seed):
        generator = np.random.default_rng(seed)
        qualities, costs = generator.integers(0, 6, 15).tolist(), generator.integers(0, 6, (15, 2)).tolist()
        found = pareto_front(qualities, costs)
        assert set(found) == brute_front(qualities, costs)
        assert [qualities[at] for at in found] == sorted((qualities[at] for at in found), reverse=True)

    @pytest.mark.parametrize(("qualities", "costs"), [([0.5], []), ([0.5], [[np.nan]]), ([np.inf], [[1]])])
    def test_what_cannot_be_compared_is_refused(self, qualities, costs):
        with pytest.raises(UserError, match="give finite values, one row per system"):
            pareto_front(qualities, costs)


class TestThreads:
    def test_are_fixed_for_a_while_and_then_as_before(self):
        import faiss
        import torch

        before = torch.get_num_threads(), faiss.omp_get_max_threads()
        with fixed_threads(2):
            assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (2, 2)
        assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before

    def test_at_least_one(self):
        with pytest.raises(UserError, match="threads 0"):
            CostConfig(threads=0)


class TestArithmetic:
    def test_operations_of_a_matrix_product(self):
        import torch

        a, b = torch.rand(3, 5), torch.rand(5, 7)
        assert operations(lambda: a @ b) == 2 * 3 * 5 * 7

    def test_attention_counts_as_its_two_products(self):
        import torch

        query, key, value = (torch.rand(1, 2, 6, 4) for _ in range(3))
        counted = operations(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))
        assert counted == 2 * (2 * 2 * 6 * 6 * 4)

    def test_the_machine_has_a_rate(self):
        assert matrix_rate(64, 2) > 0
