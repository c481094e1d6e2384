import pytest

from retrodistill.core.errors import UserError, first_line, sample_of, unknown


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


class TestLength:
    def test_a_long_value_does_not_hide_what_to_do(self):
        error = str(UserError(f"x.jsonl, line 3: {'y' * 10**6}; expected a number."))
        assert error.startswith("x.jsonl, line 3: yyy")
        assert error.endswith("yyy; expected a number.")
        assert len(error) < 2100

    def test_what_is_like_no_name_is_not_looked_for(self):
        assert "Did you mean" not in str(unknown("objective", "kl" * 1000, ["kl"]))


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("a\nb"), "a"), (ValueError("\n a\n"), "a"), (ValueError(), "ValueError")]
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line
