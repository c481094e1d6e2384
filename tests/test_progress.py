import io
import sys

import pytest

from retrodistill.core import runtime
from retrodistill.core.runtime import bar, log, say, set_quiet


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestColors:
    @pytest.fixture
    def terminal(self, monkeypatch):
        """Opens a terminal in the place of standard error, which pytest replaces between a test and its fixtures."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")

        def opened():
            monkeypatch.setattr("sys.stderr", Terminal())
            return sys.stderr

        return opened

    def test_an_error_shows_what_to_do_about_it(self, terminal):
        stream = terminal()
        say("error: k=0: too few; give 1 or more.")
        assert stream.getvalue() == "\033[1;31merror:\033[0m k=0: too few; \033[1mgive 1 or more.\033[0m\n"

    @pytest.mark.usefixtures("loud")
    def test_a_warning_in_the_log_is_colored(self, terminal):
        stream = terminal()
        log("warning: slow; wait")
        assert stream.getvalue() == "\033[33mwarning:\033[0m slow; wait\n"

    def test_other_lines_are_as_they_are(self, terminal):
        stream = terminal()
        say("hello: world; again")
        assert stream.getvalue() == "hello: world; again\n"

    @pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
    def test_the_environment_turns_them_off(self, terminal, monkeypatch, name):
        monkeypatch.setenv(name, "dumb")
        stream = terminal()
        say("warning: slow")
        assert stream.getvalue() == "warning: slow\n"

    def test_a_file_gets_none(self, capsys):
        say("error: no; yes")
        assert capsys.readouterr().err == "error: no; yes\n"
