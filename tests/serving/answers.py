"""Servers of tests, and what tests read of their answers."""

from fastapi.testclient import TestClient

from retrodistill.serving.app import Server, make_app
from retrodistill.serving.guard import Limits
from retrodistill.serving.opening import open_places


def client_of(*places, token=None, collection=None, judgments=None, hosts=None, **limits):
    """A client of a server in this process, which is its attribute `server`."""
    server = Server(
        lambda: open_places([str(place) for place in places], collection=collection), Limits(**limits), judgments
    )
    client = TestClient(make_app(server, token=token, hosts=hosts), raise_server_exceptions=False)
    client.server = server
    return client


def message(answer):
    """The sentence of an error."""
    return answer.json()["error"]["message"]
