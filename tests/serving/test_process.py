import http.client
import json
import signal
import socket
import sys
import threading
import time

import pytest
from children import MAIN, Child, served_at

from retrodistill.core.errors import UserError
from retrodistill.serving.server import bound

SLOW = """
import sys, threading
from retrodistill.serving import systems
find, entered = systems.IndexSystem.find, []
def slowly(self, *arguments):
    open(sys.argv[1], "a").close()  # a request has arrived
    import os, time
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    return find(self, *arguments)
systems.IndexSystem.find = slowly
from retrodistill.cli import main
main(sys.argv[3:])
"""


def search(place, body):
    connection = http.client.HTTPConnection(place, timeout=60)
    connection.request("POST", "/search", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


class TestPort:
    def test_one_in_use_is_said_before_anything_is_opened(self, call):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, out, err = call("serve", "no-such-folder", "--port", port)
        assert (status, out) == (2, "")
        assert f"port {port} of 127.0.0.1 is in use" in err

    def test_small_answers_are_sent_at_once(self):
        with bound("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.close()

    def test_a_missing_package_is_said(self, call, monkeypatch):
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        status, _, err = call("serve", "no-such-folder", "--port", 0)
        assert status == 2
        assert "pip install 'retrodistill[serve]'" in err

    def test_another_machine_s_address_is_said(self):
        with pytest.raises(UserError, match=r"192\.0\.2\.1"):
            bound("192.0.2.1", 0)

    def test_a_place_that_is_none_is_one_line(self, call):
        status, _, err = call("serve", "no-such-folder", "--port", 0)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        assert "no-such-folder" in err


@pytest.mark.slow
@pytest.mark.xdist_group("children")
class TestProcess:
    def test_sigterm_finishes_what_was_taken_and_takes_no_more(self, index_folder, tmp_path):
        entered, release = tmp_path / "entered", tmp_path / "release"
        child = Child(SLOW, entered, release, "serve", index_folder, "--port", "0")
        place, answers = served_at(child), []
        waiting = threading.Thread(target=lambda: answers.append(search(place, {"query": "moon"})))
        waiting.start()
        while not entered.exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        host, port = place.split(":")
        while True:  # until nobody listens any more
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
            except OSError:
                break
            time.sleep(0.01)
        assert child.poll() is None
        release.touch()
        waiting.join(60)
        status, _, said = child.wait()
        assert (status, answers[0][0]) == (0, 200), said
        assert len(answers[0][1]["documents"]) == 5

    def test_a_client_that_leaves_is_counted_and_others_are_answered(self, index_folder, tmp_path):
        entered, release = tmp_path / "entered", tmp_path / "release"
        child = Child(SLOW, entered, release, "serve", index_folder, "--port", "0")
        place = served_at(child)
        host, port = place.split(":")
        body = b'{"query": "moon"}'
        lines = [f"Host: {place}", "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        head = "\r\n".join(["POST /search HTTP/1.1", *lines])
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(head.encode() + body)
            while not entered.exists():
                time.sleep(0.01)
        counted = 'retrodistill_events_total{event="disconnect"} 1.0'
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(place, timeout=60)
            connection.request("GET", "/metrics")
            if counted in (text := connection.getresponse().read().decode()):
                break
        assert counted in text
        release.touch()
        assert search(place, {"query": "moon"})[0] == 200
        child.send_signal(signal.SIGINT)
        status, _, said = child.wait()
        assert (status, "Traceback" in said) == (0, False)

    def test_the_command_serves_with_a_token(self, index_folder):
        child = Child(MAIN, "serve", index_folder, "--port", "0", environment={"RETRODISTILL_TOKEN": "t"})
        assert search(served_at(child), {"query": "moon"})[0] == 401
        child.send_signal(signal.SIGTERM)
        assert child.wait()[0] == 0
