import numpy as np
import pyarrow as pa
import pytest

from retrodistill.core.errors import UserError
from retrodistill.evaluation import compare, compare_paired, holm, smallest_difference
from retrodistill.report.tables import comparison_text


def table(values, queries=None, measure="ndcg@10"):
    return pa.table({"query_id": queries or [f"q{at}" for at in range(len(values))], measure: list(map(float, values))})


@pytest.fixture
def three():
    generator = np.random.default_rng(0)
    base = generator.random(40)
    return {
        "base": table(base),
        "better": table(np.clip(base + 0.1 + 0.1 * generator.random(40), 0, 1)),
        "same": table(np.clip(base + 0.05 * generator.normal(size=40), 0, 1)),
    }


class TestCompare:
    def test_each_system_with_the_first(self, three):
        made = compare(three)
        assert [(one["a"], one["b"]) for one in made.comparisons] == [("better", "base"), ("same", "base")]
        assert made.queries == 40
        first = made.comparisons[0]
        values = [three[name]["ndcg@10"].to_numpy() for name in ("better", "base")]
        assert {key: first[key] for key in ("difference", "interval", "p")} == compare_paired(*values)
        assert first["smallest"] == smallest_difference(values[0] - values[1])
        assert first["wins"] + first["ties"] + first["losses"] == 40
        assert [one["p_holm"] for one in made.comparisons] == holm([one["p"] for one in made.comparisons])

    def test_each_with_each(self, three):
        pairs = [(one["a"], one["b"]) for one in compare(three, every_pair=True).comparisons]
        assert pairs == [("better", "base"), ("same", "base"), ("same", "better")]

    def test_queries_in_another_order_are_put_in_order(self, three):
        turned = {**three, "better": three["better"].take(list(range(39, -1, -1)))}
        assert compare(turned).comparisons == compare(three).comparisons

    def test_the_queries_that_changed_most_both_ways(self):
        made = compare(
            {"a": table([0.5, 0.5, 0.5, 0.5, 0.5]), "b": table([0.5, 0.9, 0.1, 0.6, 0.4])},
            shown=2,
            texts={"q1": "first", "q2": "second"},
        )
        changed = made.comparisons[0]["changed"]
        assert [one["query_id"] for one in changed] == ["q1", "q3", "q2", "q4"]
        assert (changed[0]["a"], changed[0]["b"], changed[0]["text"]) == (0.9, 0.5, "first")
        assert changed[1]["text"] is None

    def test_nothing_changed_lists_nothing(self):
        made = compare({"a": table([0.5, 0.2]), "b": table([0.5, 0.2])})
        assert made.comparisons[0]["changed"] == []
        assert made.comparisons[0]["p"] == 1

    def test_the_text_says_it_all(self, three):
        text = comparison_text(compare(three, texts={"q0": "what a query"}))
        assert "nDCG@10 on 40 queries" in text
        assert "better − base" in text
        assert "p (Holm)" in text
        assert "80% power" in text
        assert "queries that changed most: same − base" in text
        assert not any(line.endswith(": ") for line in text.splitlines())  # no text is known of these queries


class TestMistakes:
    def test_different_queries_are_named(self):
        with pytest.raises(UserError) as error:
            compare({"a": table([1, 2, 3]), "b": table([1, 2], ["q0", "other"])})
        assert str(error.value) == (
            "a and b were measured on different queries: 2 only in a ('q1', 'q2'), 1 only in b ('other'); measure both "
            "on the same split."
        )

    def test_a_query_twice(self):
        with pytest.raises(UserError, match="b: query 'q0' appears more than once"):
            compare({"a": table([1, 2]), "b": table([1, 2], ["q0", "q0"])})

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_value_that_is_no_number(self, bad):
        with pytest.raises(UserError, match="b: ndcg@10 of query 'q1' is not a number"):
            compare({"a": table([1, 2]), "b": table([1, bad])})

    def test_a_measure_that_one_lacks(self):
        with pytest.raises(UserError, match=r"unknown measure of b 'ndcg@10'.*Known: mrr@10"):
            compare({"a": table([1, 2]), "b": table([1, 2], measure="mrr@10")})

    @pytest.mark.parametrize("count", [0, 1])
    def test_fewer_than_two_systems(self, count):
        with pytest.raises(UserError, match="give at least two"):
            compare({f"s{at}": table([1]) for at in range(count)})

    def test_no_query_at_all(self):
        with pytest.raises(UserError, match="a has no query"):
            compare({"a": table([]), "b": table([])})
