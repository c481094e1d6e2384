import pytest

from retrodistill.core import runtime
from retrodistill.core.runtime import bar, log, set_quiet


@pytest.fixture
def loud():
    set_quiet(False)
    yield
    set_quiet(True)


class TestQuiet:
    def test_shows_nothing(self, capsys):
        set_quiet(True)
        log("hello")
        with bar(3, "scoring", "pairs") as shown:
            shown.update(3)
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "")


@pytest.mark.usefixtures("loud")
class TestLoud:
    def test_a_line_goes_to_standard_error(self, capsys):
        log("hello")
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "hello\n")

    def test_a_bar_shows_what_how_far_and_how_fast(self, monkeypatch, capsys):
        made = []
        monkeypatch.setattr(runtime, "tqdm", lambda **options: made.append(options))
        bar(7, "scoring", "pairs")
        assert made[0]["total"] == 7
        assert (made[0]["desc"], made[0]["unit"], made[0]["disable"]) == ("scoring", " pairs", False)

    def test_off_a_terminal_it_is_a_line_every_ten_seconds(self, monkeypatch, capsys):
        with bar(3, "scoring", "pairs") as shown:
            assert shown.mininterval == 10
            shown.update(3)
        assert capsys.readouterr().out == ""
