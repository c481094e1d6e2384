"""A local server that answers like the APIs of re-rankers and embedding models, and misbehaves on request."""

import contextlib
import json
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler

import yaml
from local_server import LocalServer

KEY = "canary-4711-secret"


def score_of(query, document):
    return zlib.crc32(f"{query}|{document}".encode()) / 2**32


def vector_of(text, width=8):
    return [zlib.crc32(f"{place}{text}".encode()) / 2**32 - 0.5 for place in range(width)]


class Server:
    """Attributes that tests set: `faults`, taken one per request; `delay` in seconds; `key` that is demanded.

    A fault is a status, a pair of a status and headers, bytes to send as the answer, ``drop``, ``truncate``, or a
    function of the request that gives a status and the bytes of an answer.
    """

    def __init__(self):
        self.faults, self.delay, self.key = [], 0.0, None
        self.requests, self.pairs, self.texts = [], Counter(), Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self._local = LocalServer(Handler)
        self.url, self.close = self._local.url, self._local.close

    def answer(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.requests.append((request.path, dict(request.headers), body))
            fault = self.faults.pop(0) if self.faults else None
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.respond(request, body, fault)
        with self.lock:
            self.at_once -= 1

    def respond(self, request, body, fault):
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self.send(request, 401, json.dumps({"error": request.headers.get("Authorization")}).encode())
        if fault == "drop":
            return request.connection.close()
        if isinstance(fault, int | tuple):
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            return self.send(request, status, b'{"error": "no"}', headers)
        if isinstance(fault, bytes) or callable(fault):
            return self.send(request, *(fault(request) if callable(fault) else (200, fault)))
        content = json.dumps(self.result(request.path, body)).encode()
        if fault == "truncate":
            self.send(request, 200, content[: len(content) // 2], length=len(content))
            return request.connection.close()
        return self.send(request, 200, content)

    def result(self, path, body):
        if path == "/embed":
            with self.lock:
                self.texts.update(body["input"])
            data = [{"index": place, "embedding": vector_of(text)} for place, text in enumerate(body["input"])]
            return {"data": data[::-1], "usage": {"prompt_tokens": 100}}
        with self.lock:
            self.pairs.update((body["query"], document) for document in body["documents"])
        scores = [score_of(body["query"], document) for document in body["documents"]]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])  # as they sort by score
        results = [{"index": place, "relevance_score": scores[place]} for place in order]
        return {"results": results, "usage": {"total_tokens": 100}}

    def send(self, request, status, content, headers=None, length=None):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)


def settings_file(path, defaults, settings):
    """The path of an API's settings file, written with these settings over the defaults."""
    path.write_text(yaml.safe_dump({**defaults, **settings}))
    return path


@contextlib.contextmanager
def serving():
    server = Server()
    try:
        yield server
    finally:
        server.close()
