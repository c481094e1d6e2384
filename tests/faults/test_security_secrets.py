"""A key is sent to its server and is nowhere else: a canary is looked for in every byte that was written or said."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
import requests
from api_server import serving, settings_file
from children import MAIN, Child, served_at

from retrodistill.core.errors import UserError
from retrodistill.core.http import ApiSettings, Client, read_api, without_key
from retrodistill.core.spending import spend
from retrodistill.exports.index import load_store
from retrodistill.indexes import build_index
from retrodistill.rankers import load_ranker, score
from retrodistill.runs import Run

CANARY = 'sk-canary/4711+"secret\\key=='  # with characters that JSON, URLs and shells write in another way
FORMS = {
    CANARY,
    json.dumps(CANARY)[1:-1],
    quote(CANARY, safe=""),
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
    CANARY[:12],
    CANARY[:20],
    CANARY[-12:],
}


def in_file(path):
    content = path.read_bytes()
    return [form for form in FORMS if form.encode() in content]


def nowhere(folder, *said):
    """That the canary is in no file of a folder, but the key's own, and in nothing that was said."""
    found = {path: in_file(path) for path in folder.rglob("*") if path.is_file() and path.name != "key"}
    assert {path: forms for path, forms in found.items() if forms} == {}
    for text in said:
        assert [form for form in FORMS if form in text] == []


@pytest.fixture
def server(server):
    server.key = CANARY
    return server


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(CANARY)
    path.chmod(0o600)
    return path


@pytest.fixture
def api(server, tmp_path, quick_retries, key_file):
    defaults = {"url": f"{server.url}/rerank", "model": "m", "batch_size": 8, "retries": 1, "key_file": str(key_file)}
    return lambda **settings: f"rerank-api:{settings_file(tmp_path / 'api.yaml', defaults, settings)}"


@pytest.fixture
def pairs(tiny):
    return Run.from_dict({query: dict.fromkeys(tiny.documents.ids[:4], 0.0) for query in tiny.queries.ids[:2]})


def echo(status, form=lambda key: key):
    def answer(request):
        key = request.headers["Authorization"].removeprefix("Bearer ")
        # at several places, so that one is cut by whatever shortens the message
        shown = form(key)
        return status, (shown + "x" * (185 - len(shown)) + shown + "y" * 350 + shown).encode()

    return answer


ECHOES = {
    "as it is": lambda key: key,
    "as JSON": lambda key: json.dumps({"error": key}),
    "in a URL": lambda key: f"https://host/?key={quote(key, safe='')}",
    "in Base64": lambda key: base64.b64encode(key.encode()).decode(),
}


class TestFailures:
    def failed(self, tiny, pairs, name):
        """All that a failure says, with the errors that it was made from."""
        with pytest.raises(UserError) as caught, spend():
            score(tiny, pairs, [name])
        assert "\n" not in str(caught.value)
        return "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("form", ECHOES)
    @pytest.mark.parametrize("status", [400, 401, 500])
    def test_a_server_that_repeats_the_key(self, status, form, tiny, pairs, api, server, tmp_path, capfd):
        server.faults = [echo(status, ECHOES[form]) for _ in range(20)]
        nowhere(tmp_path, self.failed(tiny, pairs, api()), *capfd.readouterr())

    @pytest.mark.parametrize("form", ECHOES)
    def test_an_answer_that_cannot_be_read(self, form, tiny, pairs, api, server, tmp_path, capfd):
        server.faults = [echo(200, ECHOES[form]) for _ in range(60)]
        nowhere(tmp_path, self.failed(tiny, pairs, api(batch_size=1)), *capfd.readouterr())

    def test_the_wrong_key(self, tiny, pairs, api, server, tmp_path, capfd):
        server.key = "another"
        said = self.failed(tiny, pairs, api())
        assert "401" in said
        nowhere(tmp_path, said, *capfd.readouterr())

    @pytest.mark.parametrize("fault", ["drop", 503, 301, 307])
    def test_no_answer(self, fault, tiny, pairs, api, server, tmp_path, capfd):
        server.faults = [fault] * 20
        nowhere(tmp_path, self.failed(tiny, pairs, api()), *capfd.readouterr())

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_to_another_host_gets_nothing(self, status, tiny, pairs, api, server, tmp_path):
        with serving() as other:
            server.faults = [(status, {"Location": f"{other.url}/rerank"})] * 20
            nowhere(tmp_path, self.failed(tiny, pairs, api()))
            assert other.requests == []

    def test_an_error_of_the_connection_whose_text_has_the_key(self, tiny, pairs, api, tmp_path, monkeypatch):
        def fails(*_, **__):
            raise requests.ConnectionError(f"HTTPSConnectionPool: /v1?key={CANARY}")

        monkeypatch.setattr(requests.Session, "post", fails)
        with pytest.raises(UserError) as caught, spend():
            score(tiny, pairs, [api()])
        nowhere(tmp_path, str(caught.value))

    def test_a_success_keeps_the_key_nowhere(self, tiny, pairs, api, server, tmp_path, capfd):
        with spend():
            score(tiny, pairs, [api()])
        assert {headers["Authorization"] for _, headers, _ in server.requests} == {f"Bearer {CANARY}"}
        nowhere(tmp_path, *capfd.readouterr())

    @pytest.mark.parametrize("wait", ["1e300", "inf", "nan", "-5", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 99 Foo"])
    def test_no_time_that_a_server_asks_for_is_a_traceback_or_a_day(self, wait, api, server, key_file, monkeypatch):
        waited = []
        settings = read_api(api().partition(":")[2], ApiSettings)
        with spend() as spending:
            client = Client("m", settings, spending)
            monkeypatch.setattr(client, "_pause", waited.append)
            server.faults = [(503, {"Retry-After": wait})]
            client.ask({"query": "q", "documents": ["d"]}, lambda answer: answer)
        assert 0 <= max(waited) <= 3600


class TestSettings:
    """What a user may write a key into, in error, is refused without repeating it."""

    @pytest.mark.parametrize(
        "setting",
        [
            {"url": f"https://host/v1?api_key={quote(CANARY)}"},
            {"url": f"https://host/v1?sig={quote(CANARY)}"},
            {"url": f"https://user:{quote(CANARY, safe='')}@host/v1"},
            {"url": f"ftp://user:{quote(CANARY, safe='')}@host/v1"},
            {"key_variable": CANARY},
            {"key_header": f"Authorization: Bearer {CANARY}"},
            {"extra": {"api_key": CANARY}},
            {"body": {"auth": {"access_token": CANARY}, "q": "{query}"}},
            {"extra": {"headers": [{"Authorization": CANARY}]}},
        ],
        ids=["parameter", "signature", "password", "scheme", "variable", "header", "extra", "body", "nested"],
    )
    def test_a_key_in_a_settings_file(self, setting, api, tmp_path):
        with pytest.raises(UserError) as caught:
            load_ranker(api(**setting))
        (tmp_path / "api.yaml").unlink()
        nowhere(tmp_path, "".join(traceback.format_exception(caught.value)))

    @pytest.mark.parametrize("name", ["extra", "body"])
    def test_names_that_only_look_like_keys_are_read(self, name, api):
        assert load_ranker(api(**{name: {"max_tokens": 5, "tokenizer": "x", "keywords": ["a"], "q": "{query}"}}))

    def test_a_key_in_a_url_on_the_command_line(self, call, tiny_folder, tmp_path):
        url = f"rerank-api:https://user:{quote(CANARY, safe='')}@host/v1?token={quote(CANARY, safe='')}#m"
        status, out, error = call("evaluate", tiny_folder, url, "--out", tmp_path / "out")
        assert status == 2
        nowhere(tmp_path, out, error)

    def test_a_key_that_no_header_can_have(self, tiny, pairs, api, key_file):
        key_file.write_text(CANARY + "\u2019")
        with pytest.raises(UserError) as caught:
            score(tiny, pairs, [api()])
        nowhere(key_file.parent, "".join(traceback.format_exception(caught.value)))

    def test_a_file_that_others_can_read_is_refused(self, tiny, pairs, api, key_file):
        key_file.chmod(0o644)
        with pytest.raises(UserError, match="chmod 600"):
            score(tiny, pairs, [api()])

    def test_a_variable_that_is_the_key_itself_is_not_repeated(self, tiny, pairs, api):
        with pytest.raises(UserError) as caught:
            score(tiny, pairs, [api(key_variable="sk_canary4711secret", key_file=None)])
        assert "sk_canary" not in str(caught.value)


class TestQdrant:
    def test_a_key_is_not_sent_unencrypted_to_another_machine(self, monkeypatch):
        monkeypatch.setenv("QDRANT_API_KEY", CANARY)
        with pytest.raises(UserError, match="unencrypted") as caught:
            load_store("qdrant:http://qdrant.invalid:6333#c")
        nowhere_in(caught)

    def test_a_password_in_the_url_is_refused(self):
        with pytest.raises(UserError, match="QDRANT_API_KEY") as caught:
            load_store(f"qdrant:https://user:{quote(CANARY, safe='')}@qdrant.invalid:6333#c")
        nowhere_in(caught)


def nowhere_in(caught):
    said = "".join(traceback.format_exception(caught.value))
    assert [form for form in FORMS if form in said] == []


def test_every_form_of_a_key_is_hidden():
    for form in FORMS:
        assert "[key]" in without_key(f"a {form} b", CANARY) or form in CANARY


class TestVariables:
    """Keys that are in variables of the environment: that of `retrodistill serve`, and that of the model hub."""

    @pytest.mark.xdist_group("children")
    def test_the_token_of_the_server(self, tiny, tiny_model, tmp_path):
        build_index(tiny, f"dense:{tiny_model}").save(tmp_path / "index")
        child = Child(MAIN, "serve", tmp_path / "index", "--port", "0", environment={"RETRODISTILL_TOKEN": CANARY})
        place = served_at(child)
        as_json = {"Content-Type": "application/json"}
        answers = [
            requests.request(
                method, f"http://{place}{path}", data=body, headers=as_json | {"Authorization": f"Bearer {given}"}
            )
            for given in (CANARY, f"{CANARY}x", "another")
            for method, path, body in (
                ("GET", "/", None),
                ("GET", "/info", None),
                ("GET", "/metrics", None),
                ("POST", "/search", '{"query": "star"}'),
                ("POST", "/search", "no JSON"),
                ("POST", "/reload", ""),
                ("GET", "/nowhere", None),
            )
        ]
        child.send_signal(signal.SIGTERM)
        _, out, error = child.wait()
        assert {200, 401, 404} <= {answer.status_code for answer in answers}
        nowhere(tmp_path, out, error, *(f"{answer.headers} {answer.text}" for answer in answers))

    @pytest.mark.parametrize("status", [401, *(pytest.param(one, marks=pytest.mark.slow) for one in (200, 403, 404))])
    def test_the_token_of_the_hub(self, status, tiny_folder, tmp_path):
        received = []

        class Echo(BaseHTTPRequestHandler):
            def do_GET(self):
                received.append(self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("X-Error-Message", received[-1])
                self.end_headers()
                self.wfile.write(received[-1].encode())

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        token = "hf_canary4711secretkey"
        with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as hub:
            threading.Thread(target=hub.serve_forever, daemon=True).start()
            environment = {
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HUB_OFFLINE": "0",
                "HF_TOKEN": token,
                "HF_HOME": str(tmp_path / "hub"),
                "RETRODISTILL_CACHE": str(tmp_path / "cache"),
            }
            job = (
                "evaluate",
                "dense:someone/private",
                "--collection",
                str(tiny_folder),
                "--out",
                str(tmp_path / "out"),
            )
            # not a fork: the hub's library reads the variables when it is imported
            ended = subprocess.run(
                [sys.executable, "-c", MAIN, *job],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                check=False,
            )
            hub.shutdown()
        out, error = ended.stdout, ended.stderr
        assert (ended.returncode, error.splitlines()[-1].startswith("error: ")) == (2, True), error
        assert f"Bearer {token}" in received
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert [said for said in (out, error, *map(repr, files)) if token in said] == []


@pytest.mark.slow
class TestJob:
    """A whole job with a paid teacher, that fails on the way and is resumed."""

    def test_no_byte_of_a_job_is_of_the_key(self, tiny_folder, tiny_model, api, server, tmp_path, call):
        import yaml

        stage = {
            "objectives": ["kl"],
            "texts": {"titles": False, "sentences": 0},
            "candidates": {"sources": ["bm25"], "depth": 5},
            "training": {"max_steps": 2},
        }
        content = {
            "name": "api",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{tiny_model}",
            "teacher": [{"model": "bm25", "weight": 0.3}, {"model": api(), "weight": 0.7}],
            "students": {"student": {"model": "static", "stages": [stage]}},
            "evaluation": {"latency_queries": 0, "examples": 3},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        said = []
        for faults in ([echo(500)] * 40, [echo(400, ECHOES["as JSON"])], []):
            server.faults = list(faults)
            status, out, error = call("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
            assert status == (2 if faults else 0)
            said += [out, error]
        assert (tmp_path / "out" / "students" / "student" / "README.md").is_file()
        assert (tmp_path / "out" / "report.html").is_file()
        nowhere(tmp_path, *said)
