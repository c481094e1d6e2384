import threading

import pytest
from answers import message

JSON = {"content-type": "application/json"}


@pytest.fixture
def stuck(client, monkeypatch):
    """The system's thread waits until the event is set; ``(client, event, entered)``."""
    event, entered = threading.Event(), threading.Event()
    find = client.server.served.systems["index"].find

    def waits(*arguments):
        entered.set()
        assert event.wait(20)
        return find(*arguments)

    monkeypatch.setattr(client.server.served.systems["index"], "find", waits)
    yield client, event, entered
    event.set()


class TestToken:
    def test_routes_need_it_but_the_page_and_health(self, served, index_folder):
        client = served(index_folder, token="secret")
        for path in ("/info", "/metrics", "/queries", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.post("/search", json={"query": "moon"}).status_code == 401
        assert client.get("/").status_code == client.get("/health").status_code == 200
        headers = {"authorization": "Bearer secret"}
        assert client.post("/search", json={"query": "moon"}, headers=headers).status_code == 200

    @pytest.mark.parametrize("given", ["Bearer secre", "Bearer secret ", "secret", "Basic secret", "bearer"])
    def test_a_wrong_one_is_refused_without_repeating_it(self, served, index_folder, given):
        answer = served(index_folder, token="secret").get("/info", headers={"authorization": given})
        assert answer.status_code == 401
        assert "secret" not in answer.text
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_it_is_read_from_the_environment(self, monkeypatch):
        from retrodistill.core.errors import UserError
        from retrodistill.serving.server import token_of_environment

        monkeypatch.delenv("RETRODISTILL_TOKEN", raising=False)
        assert token_of_environment() is None
        monkeypatch.setenv("RETRODISTILL_TOKEN", "abc")
        assert token_of_environment() == "abc"
        for bad in ("", " a", "a\n", "é"):
            monkeypatch.setenv("RETRODISTILL_TOKEN", bad)
            with pytest.raises(UserError, match="RETRODISTILL_TOKEN"):
                token_of_environment()


class TestBodies:
    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_ten_megabytes_are_413(self, client, is_chunked):
        sent = b'{"query": "' + b"x" * 10_000_000 + b'"}'
        parts = (sent[start : start + 100_000] for start in range(0, len(sent), 100_000))
        answer = client.post("/search", content=parts if is_chunked else sent, headers=JSON)
        assert answer.status_code == 413
        assert "1,048,576 bytes" in message(answer)

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
    def test_another_type_is_415_so_that_no_page_elsewhere_can_post(self, client, kind):
        headers = {} if kind is None else {"content-type": kind}
        answer = client.post(
            "/judge", content=b'{"query": "moon", "document_id": "d", "relevance": 1}', headers=headers
        )
        assert answer.status_code == 415
        assert len(client.server.log) == 0


class TestHosts:
    def test_another_name_is_refused_where_the_server_is_bound_to_this_machine(self, served, index_folder):
        client = served(index_folder, hosts=["localhost", "127.0.0.1", "::1"])
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
            assert client.get("/health", headers={"host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example:8000", ""):
            answer = client.get("/info", headers={"host": host})
            assert answer.status_code == 421
            assert "localhost" in message(answer)


class TestTime:
    def test_a_request_that_takes_too_long_is_504(self, stuck):
        client, _, _ = stuck
        client.server.limits = client.server.limits.model_copy(update={"seconds": 0.05})
        answer = client.post("/search", json={"query": "moon"})
        assert answer.status_code == 504
        assert "0.05 seconds" in message(answer)

    def test_a_full_queue_is_503_with_a_time_to_come_back(self, served, index_folder, monkeypatch):
        client = served(index_folder, waiting=1, batch=1)
        event, entered = threading.Event(), threading.Event()
        system = client.server.served.systems["index"]
        find = system.find
        monkeypatch.setattr(system, "find", lambda *given: entered.set() or (event.wait(20) and find(*given)))
        worker = client.server.served.workers["index"]
        from retrodistill.serving.systems import Search

        first = worker.submit(Search("moon", 1))
        assert entered.wait(20)
        second = worker.submit(Search("moon", 1))
        answer = client.post("/search", json={"query": "moon"})
        event.set()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert [len(future.result(20).value) for future in (first, second)] == [1, 1]
        assert 'retrodistill_events_total{event="queue full"} 1.0' in client.get("/metrics").text

    def test_a_body_that_does_not_arrive_is_408(self, client):
        import asyncio

        sent = []

        async def receive():
            await asyncio.sleep(20)

        async def send(message):
            sent.append(message)

        app = client.app
        app._limits = app._limits.model_copy(update={"seconds": 0.02})
        scope = {"type": "http", "method": "POST", "path": "/search", "headers": []}
        asyncio.run(app(scope, receive, send))
        assert sent[0]["status"] == 408
        assert b"0.02 seconds" in sent[1]["body"]


class TestHeaders:
    def test_the_page_may_only_run_its_own_script_and_ask_its_own_server(self, client):
        answer = client.get("/")
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["script-src"].startswith("'sha256-")
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.text.count("<script") == 1
        assert "http://" not in answer.text
        assert "https://" not in answer.text

    def test_answers_are_not_sniffed_or_kept(self, client):
        for path in ("/", "/info", "/nothing"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
