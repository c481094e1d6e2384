"""The page in a real browser: it opens, sorts, searches, expands and prints; skipped where no Chromium is found."""

import chromium
import pytest
from sample_results import example, hit, system, whole

from retrodistill.api import evaluate
from retrodistill.report import write_page

pytestmark = [
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium found; install it, or set CHROMIUM to it"),
    pytest.mark.xdist_group("chromium"),
]

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>"
NAMES = "[...document.querySelectorAll('#rows tr:not([hidden])')].map(row => row.querySelector('bdi').textContent)"
SHOWN = "document.querySelectorAll('#queries-list details.example:not([hidden])').length"
OPEN = "document.querySelectorAll('details.example[open]').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = chromium.Browser(chromium.find(), tmp_path_factory.mktemp("profile"))
    try:
        try:
            started.call("Browser.getVersion")
        except RuntimeError as error:
            pytest.skip(f"{chromium.find()} does not start here: {error}")
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def tab(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    hostile = example(
        EVIL,
        teacher=[hit(EVIL, EVIL, title=EVIL), hit("long", "x" * 10_000, title="👩\u200d🔬 \u202eעברית")],
        student=[],
        query_id=EVIL,
    )
    unmeasured = system("no-quality", "baseline", ndcg10=None, queries_by=EVIL)
    write_page(whole(systems=[*whole().systems, unmeasured], examples=[hostile]), folder / "report.html")
    opened = chromium.Tab(browser, (folder / "report.html").as_uri())
    opened.address = (folder / "report.html").as_uri()
    return opened


@pytest.fixture(autouse=True)
def _as_opened(tab):
    yield
    tab.run(
        "for (const box of document.querySelectorAll('input')) { box.value = ''; "
        "box.dispatchEvent(new Event('input')); }"
        "for (const one of document.querySelectorAll('details')) one.open = false;"
    )
    tab.size(1280)


def search(tab, box, words):
    tab.run(f"document.getElementById('{box}').focus()")
    tab.type(words)


class TestOpening:
    def test_the_console_is_silent_and_nothing_is_asked_for(self, tab):
        assert tab.run("document.readyState") == "complete"
        assert tab.complaints == []
        assert tab.requests == [tab.address]

    def test_no_text_became_a_script(self, tab):
        assert tab.run("typeof window.evil") == "undefined"
        assert tab.run("document.querySelectorAll('img, iframe, script').length") == 1

    @pytest.mark.parametrize("width", [360, 800, 1280])
    def test_it_is_never_wider_than_the_screen(self, tab, width):
        tab.size(width)
        tab.run("document.querySelector('[data-open]').click()")
        assert tab.run("document.documentElement.scrollWidth") == width

    def test_it_is_dark_where_the_reader_wants_it(self, tab):
        ground = "getComputedStyle(document.body).backgroundColor"
        assert tab.run(ground) == "rgb(255, 255, 255)"
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.run(ground) == "rgb(20, 23, 26)"
        tab.call("Emulation.setEmulatedMedia", features=[])


class TestSorting:
    def test_by_a_key_press_down_up_and_back(self, tab):
        before = tab.run(NAMES)
        head = "[...document.querySelectorAll('th button')].find(one => one.textContent === 'nDCG@10')"
        tab.run(f"{head}.focus()")
        tab.press("Enter")
        down = tab.run(NAMES)
        assert down[:3] == ["ensemble", "student", "bm25"]
        assert down[-1] == "no-quality"
        assert tab.run(f"{head}.closest('th').getAttribute('aria-sort')") == "descending"
        tab.press(" ")
        up = tab.run(NAMES)
        assert up == [*down[-2::-1], "no-quality"]
        tab.press("Enter")
        assert tab.run(NAMES) == before


class TestSearching:
    def test_systems(self, tab):
        search(tab, "search-rows", "OPQ 32")
        assert tab.run(NAMES) == ["opq-32"]
        assert tab.run("document.getElementById('found-rows').textContent") == "1 of 8 systems"

    def test_queries_by_any_word_of_theirs(self, tab):
        search(tab, "search-queries-list", "zebrafish")
        assert tab.run(SHOWN) == 1
        assert tab.run("document.getElementById('found-queries-list').textContent") == "1 of 5 queries"
        assert tab.run("[...document.querySelectorAll('.group:not([hidden])')].map(one => one.dataset.group)") == [
            "lost"
        ]

    def test_what_matches_nothing_is_told(self, tab):
        search(tab, "search-queries-list", "nowhere")
        assert tab.run(SHOWN) == 0
        assert tab.run("document.querySelector('.none').checkVisibility()")


class TestExpanding:
    def test_a_query_opens_to_both_rankings_by_a_key_press(self, tab):
        rankings = "[...document.querySelectorAll('#queries-list details')][0].querySelectorAll('ol')"
        assert not tab.run(f"[...{rankings}].some(one => one.checkVisibility())")
        tab.run("document.querySelector('#queries-list summary').focus()")
        tab.press("Enter")
        assert tab.run(f"[...{rankings}].map(one => one.checkVisibility())") == [True, True]

    def test_all_at_once_those_that_are_shown(self, tab):
        search(tab, "search-queries-list", "won")
        tab.run("document.querySelector('[data-open]').click()")
        assert tab.run(OPEN) == tab.run(SHOWN)
        tab.run("document.querySelector('[data-close]').click()")
        assert tab.run(OPEN) == 0


class TestTheKeyboard:
    def test_it_reaches_all_that_can_be_used(self, tab):
        tab.run("document.activeElement.blur(); scrollTo(0, 0); window.reached = new Set();")
        tab.run("document.addEventListener('focusin', event => window.reached.add(event.target))")
        usable = "[...document.querySelectorAll('a, button, input, summary, .scroll')]"
        tab.run("for (const one of document.querySelectorAll('details.example')) one.open = true")
        for _ in range(tab.run(f"{usable}.length") + 2):
            tab.press("Tab")
        assert tab.run(f"{usable}.filter(one => !window.reached.has(one)).map(one => one.outerHTML.slice(0, 80))") == []


class TestPaper:
    def test_some_queries_are_open_on_paper_and_closed_again(self, tab, tmp_path):
        tab.run(f"window.onbeforeprint = () => {{ window.printed = {OPEN}; }}")
        tab.pdf(tmp_path / "report.pdf")
        assert tab.run("window.printed") == 4  # two of those won, the one lost, the one drawn
        assert tab.run(OPEN) == 0
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")

    def test_what_the_reader_opened_is_what_is_printed(self, tab, tmp_path):
        tab.run(f"window.onbeforeprint = () => {{ window.printed = {OPEN}; }}")
        tab.run("document.querySelector('details').open = true")
        tab.pdf(tmp_path / "report.pdf")
        assert tab.run("window.printed") == tab.run(OPEN) == 1


class TestAPageThatAnEvaluationWrote:
    """Last, for it is another tab of the same browser, whose console is one."""

    def test_it_opens_silently_at_three_widths(self, browser, tab, tiny, tiny_model, tmp_path):
        asked = tab.requests
        space = f"dense:{tiny_model}"
        evaluate(["bm25", space], tiny, teacher=space, cost_threads=1, out=tmp_path / "out")
        page = chromium.Tab(browser, (tmp_path / "out" / "report.html").as_uri())
        assert page.run("document.querySelectorAll('details.example').length") > 0
        assert page.run("document.querySelectorAll('section').length") >= 5
        for width in (360, 800, 1280):
            page.size(width)
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(tmp_path / f"{width}.png")
            assert (tmp_path / f"{width}.png").stat().st_size > 10_000
        assert page.complaints == []
        assert [one for one in page.requests if one not in asked and not one.endswith("/out/report.html")] == []
