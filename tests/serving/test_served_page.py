"""The page in a real browser; skipped where no Chromium, or no Playwright, is found."""

import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import chromium
import pytest

from retrodistill.data import Collection
from retrodistill.data.judgments import JudgmentLog
from retrodistill.indexes import build_index
from retrodistill.serving.app import Server, make_app
from retrodistill.serving.guard import LOOPBACK, Limits
from retrodistill.serving.opening import open_places

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright found; pip install playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium found; install it, or set CHROMIUM to it"),
    pytest.mark.xdist_group("chromium"),
]

EVIL = "<img src=x onerror='window.evil = 1'><script>window.evil = 2</script> moon"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WORDS = ["star", "moon", "orbit", "bread", "butter", "heart", "vein", "violin", "court", "wave"]


@pytest.fixture(scope="module")
def collection():
    """Thirty documents with a year, one of them hostile, and two test queries."""
    documents = {
        f"d{number}": (f"title {number}", f"the {WORDS[number % 10]} and a {WORDS[number * 3 % 10]} of today " * 20)
        for number in range(30)
    }
    documents["evil"] = (EVIL, EVIL)
    fields = {id_: {"year": 2000 + number, "note": EVIL} for number, id_ in enumerate(documents)}
    qrels = {"test": {"q1": {"d1": 1}, "q2": {"d3": 1}}}
    queries = {"q1": "star and moon", "q2": f"bread {EVIL}"}
    return Collection.from_parts("page", documents, queries, qrels, fields)


@contextmanager
def running(served, folder, **options):
    """The address of a server in a thread of this process."""
    import uvicorn

    server = Server(lambda: served, Limits(), str(folder))
    config = uvicorn.Config(make_app(server, hosts=LOOPBACK, **options), log_level="warning")
    process = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: process.run(sockets=[listener]), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            process.should_exit = True
            thread.join(60)


@pytest.fixture(scope="module")
def places(collection, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    build_index(collection, f"dense:{tiny_model}", store_texts=True).save(folder / "exact")
    build_index(collection, f"dense:{tiny_model}", factory="PQ2x2", store_texts=True).save(
        folder / "pq"
    )  # ten distinct texts, four centroids
    return folder


def opened(places, collection):
    """Both indexes, with the collection's queries and values as a job has them."""
    served = open_places([str(places / "exact"), str(places / "pq")])
    served.queries, served.grades = collection.queries, collection.relevance("test").to_dict()
    served.values = {"exact": {"q1": 0.5, "q2": 0.9}, "pq": {"q1": 0.75, "q2": 0.1}}
    return served


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=chromium.find(), args=FLAGS)
        except playwright.Error as error:
            pytest.skip(f"{chromium.find()} does not start here: {error}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(places, collection, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    with running(opened(places, collection), folder / "judgments") as address:
        yield address, folder / "judgments"


@pytest.fixture
def page(browser, site):
    """The page, opened; at the end, the console must be silent and nothing else asked for."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(site[0])
    page.wait_for_selector("#queries-list button")
    yield page
    assert page.evaluate("typeof window.evil") == "undefined"
    assert all(url.startswith(site[0]) for url in page.asked)
    context.close()


def search(page, words):
    page.fill("#query", words)
    page.keyboard.press("Enter")
    shown(page)


def shown(page):
    page.wait_for_selector("#sides:not([aria-busy])", state="attached")  # the policy refuses to evaluate conditions


def ids(page, side=1):
    return page.eval_on_selector_all(f"#sides section:nth-child({side}) li", "all => all.map(each => each.dataset.id)")


class TestSearch:
    def test_both_systems_are_shown_with_time_and_movement(self, page, places):
        from retrodistill.indexes import load_index

        search(page, "star and moon")
        assert ids(page, 1) == list(load_index(places / "exact").search("star and moon").to_dict()["0"])
        assert ids(page, 2) == list(load_index(places / "pq").search("star and moon").to_dict()["0"])
        assert page.locator("#sides h2").all_inner_texts() == ["exact", "pq"]
        assert all(text.endswith(" ms") for text in page.locator("#sides section > .head .soft").all_inner_texts())
        order = list(load_index(places / "exact").search("star and moon", k=31).to_dict()["0"])
        changes = [(order.index(id_) + 1, order.index(id_) - place) for place, id_ in enumerate(ids(page, 2))]
        assert any(change for _, change in changes)
        assert page.locator("#sides section:nth-child(2) .move").all_inner_texts() == [
            f"{'▲' if change > 0 else '▼'}{abs(change)} from {before}" if change else "same rank"
            for before, change in changes
        ]
        assert page.said == []

    def test_a_hostile_document_is_text(self, page):
        search(page, "moon")
        page.select_option("#k", "50")
        shown(page)
        assert page.locator("li[data-id=evil] .title").first.inner_text() == EVIL
        assert page.locator("#sides img, #sides script").count() == 0
        assert page.said == []

    def test_the_address_keeps_the_search_and_back_goes_back(self, page):
        search(page, "heart")
        first = ids(page)
        search(page, "violin")
        page.go_back()
        playwright.expect(page.locator("#query")).to_have_value("heart")
        shown(page)
        assert ids(page) == first
        page.reload()
        page.wait_for_selector("#sides li")
        assert ids(page) == first


class TestFilters:
    def test_only_what_passes_is_shown(self, page):
        search(page, "moon")
        page.click("#add-filter")
        page.get_by_label("Field").select_option("year")
        page.get_by_label("Operator").select_option(">=")
        page.get_by_label("Value").fill("2025")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#sides section:first-child li")).to_have_count(6)
        assert set(ids(page)) == {"d25", "d26", "d27", "d28", "d29", "evil"}
        page.get_by_label("Remove this filter").click()
        playwright.expect(page.locator("#sides section:first-child li")).to_have_count(10)

    def test_a_wrong_value_is_an_error_in_words(self, page):
        search(page, "moon")
        page.click("#add-filter")
        page.get_by_label("Field").select_option("year")
        page.get_by_label("Value").fill("soon")
        page.keyboard.press("Enter")
        page.wait_for_selector("#error:not([hidden])")
        assert "a whole number" in page.inner_text("#error")
        assert page.get_by_role("alert").is_visible()


class TestQueries:
    def test_they_are_sorted_by_difference_and_open_by_a_click(self, page):
        assert page.locator("#queries-list .gain").all_inner_texts() == ["\u22120.800", "+0.250"]
        page.select_option("#order", "won")
        playwright.expect(page.locator("#queries-list .gain").first).to_have_text("+0.250")
        page.locator("#queries-list button").first.click()
        shown(page)
        page.wait_for_selector("#sides li")
        assert page.input_value("#query") == "star and moon"
        assert "nDCG@10 0.500 → 0.750 (+0.250)" in page.inner_text("#status")
        assert page.locator("#queries-list [aria-current=true]").count() == 1


class TestJudging:
    def test_a_click_and_a_key_append_to_the_qrels(self, page, site):
        page.locator("#queries-list button").nth(1).click()
        page.wait_for_selector("#sides li")
        shown(page)
        first, second = ids(page)[:2]
        page.locator(f"#sides section:first-child li[data-id={first}] button[data-grade='1']").click()
        page.wait_for_selector(f"li[data-id={first}].relevant")
        assert page.locator(f"li[data-id={first}] button[data-grade='1'][aria-pressed=true]").count() >= 1
        page.locator(f"#sides section:first-child li[data-id={second}]").focus()
        page.keyboard.press("n")
        page.wait_for_selector(f"li[data-id={second}].not-relevant")
        assert JudgmentLog(site[1]).of("q1") == {first: 1, second: 0}

    def test_the_keyboard_alone_is_enough(self, page, site):
        page.locator("body").click(position={"x": 2, "y": 2})
        page.keyboard.press("/")
        page.keyboard.type("court and wave")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sides li")
        shown(page)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("r")
        judged = ids(page)[1]
        page.wait_for_selector(f"li[data-id={judged}].relevant")
        written = (site[1] / "queries.jsonl").read_text()
        assert json.loads(written.splitlines()[-1])["text"] == "court and wave"


class TestErrors:
    def test_a_server_that_is_gone_is_said(self, browser, places, collection, tmp_path):
        context = browser.new_context()
        page = context.new_page()
        with running(opened(places, collection), tmp_path) as address:
            page.goto(address)
            page.wait_for_selector("#queries-list button")
        page.fill("#query", "moon")
        page.keyboard.press("Enter")
        page.wait_for_selector("#error:not([hidden])")
        assert "does not answer" in page.inner_text("#error")
        context.close()

    def test_a_token_is_asked_for(self, browser, places, collection, tmp_path):
        context = browser.new_context()
        page = context.new_page()
        with running(opened(places, collection), tmp_path, token="secret") as address:
            page.goto(address)
            page.wait_for_selector("#access:not([hidden])")
            page.fill("#token", "wrong")
            page.keyboard.press("Enter")
            playwright.expect(page.locator("#error")).to_contain_text("wrong token")
            page.fill("#token", "secret")
            page.keyboard.press("Enter")
            page.wait_for_selector("#queries-list button")
            assert page.locator("#access").is_hidden()
            search(page, "moon")
            assert len(ids(page)) == 10
        context.close()


class TestLayout:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [360, 800, 1280])
    def test_it_is_never_wider_than_the_screen(self, page, width, scheme):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        search(page, "star and moon")
        page.click("#add-filter")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")

    def test_a_phone_shows_one_side_at_a_time(self, page):
        page.set_viewport_size({"width": 390, "height": 800})
        search(page, "star and moon")
        sides = page.locator("#sides section")
        assert [sides.nth(place).is_visible() for place in (0, 1)] == [False, True]
        page.locator("#tabs button").first.click()
        assert [sides.nth(place).is_visible() for place in (0, 1)] == [True, False]


class TestManyUsers:
    def test_twenty_at_once_get_their_own_answers(self, page, site):
        place = site[0].removeprefix("http://").rstrip("/")

        def ask(word):
            connection = http.client.HTTPConnection(place, timeout=60)
            found = []
            for _ in range(5):
                body = json.dumps({"query": word, "system": "exact", "k": 5})
                connection.request("POST", "/search", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                content = json.loads(answer.read())
                found.append((answer.status, content["query"], [hit["document_id"] for hit in content["documents"]]))
            return found

        alone = {word: ask(word)[0] for word in WORDS}
        with ThreadPoolExecutor(20) as pool:
            answers = {word: pool.submit(ask, word) for word in WORDS}
            others = [pool.submit(ask, word) for word in WORDS]
            search(page, "star and moon")  # the page answers meanwhile
            for word, future in [*answers.items(), *zip(WORDS, others, strict=True)]:
                assert future.result() == [alone[word]] * 5
        assert len(ids(page)) == 10
