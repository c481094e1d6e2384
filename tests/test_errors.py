import pytest

from retrodistill.core.errors import UserError, sample_of, unknown


class TestUnknown:
    def test_names_the_nearest_and_lists_all(self):
        error = unknown("objective", "kll", ["margin-mse", "kl"])
        assert isinstance(error, UserError)
        assert str(error) == "unknown objective 'kll'. Did you mean 'kl'? Known: kl, margin-mse."

    @pytest.mark.parametrize("given", ["zzzz", "", 3, None])
    def test_guesses_nothing_far_off(self, given):
        assert "Did you mean" not in str(unknown("objective", given, ["kl"]))


class TestSampleOf:
    def test_names_a_few_and_counts_the_rest(self):
        assert sample_of([]) == ""
        assert sample_of("abc") == "'a', 'b', 'c'"
        assert sample_of(range(7)) == "'0', '1', '2' and 4 more"
        assert sample_of(iter("ab"), shown=1) == "'a' and 1 more"
