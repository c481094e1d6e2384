"""A Qdrant server as far as exports need one: REST in front of the client's own embedded mode."""

import contextlib
import json
import warnings
from http.server import BaseHTTPRequestHandler

from local_server import LocalServer
from qdrant_client import QdrantClient, models


class Server:
    """What was asked of it, and the points.

    Attributes:
        url: Where it listens.
        created: Bodies of the requests that created collections.
        indexed: Bodies of the requests for payload indexes.
        searched: Search parameters that came.
        key: The key it wants; None for none.
        keeps_metadata: Servers before 1.16 drop it.
    """

    def __init__(self):
        self.client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.created, self.indexed, self.searched = [], [], []
        self.key, self.keeps_metadata = None, True

    def answer(self, method, parts, body):
        name = parts[1] if len(parts) > 1 else None
        route = " ".join([method, *(["NAME"] if name else []), *parts[2:]])
        routes = {
            "GET": self.client.get_collections,
            "GET NAME": lambda: self.client.get_collection(name),
            "GET NAME exists": lambda: {"exists": self.client.collection_exists(name)},
            "PUT NAME": lambda: self.create(name, body),
            "PATCH NAME": lambda: self.client.update_collection(name, metadata=body["metadata"]),
            "DELETE NAME": lambda: self.client.delete_collection(name),
            "PUT NAME index": lambda: self.index(body),
            "PUT NAME points": lambda: self.client.upsert(name, models.PointsList(**body).points),
            "POST NAME points": lambda: self.client.retrieve(
                name, body["ids"], with_payload=body["with_payload"], with_vectors=body["with_vector"]
            ),
            "POST NAME points count": lambda: self.client.count(name),
            "POST NAME points query batch": lambda: self.search(name, models.QueryRequestBatch(**body).searches),
        }
        if route not in routes:
            raise ValueError(f"no route {route}")
        return routes[route]()

    def search(self, name, requests):
        self.searched += [request.params for request in requests]
        return self.client.query_batch_points(name, requests)

    def index(self, body):
        self.indexed.append(body)
        return {"operation_id": 1, "status": "completed"}

    def create(self, name, body):
        self.created.append(body)
        wanted = models.CreateCollection(**body)
        metadata = wanted.metadata if self.keeps_metadata else None
        return self.client.create_collection(
            name, vectors_config=wanted.vectors, sparse_vectors_config=wanted.sparse_vectors, metadata=metadata
        )


@contextlib.contextmanager
def running():
    """A server on a free port of this machine."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if server.key is not None and self.headers.get("api-key") != server.key:
                return self.send(401, {"status": {"error": "Invalid API key"}})
            parts = self.path.partition("?")[0].strip("/").split("/")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = server.answer(self.command, parts, body)
            except ValueError as error:
                return self.send(400, {"status": {"error": str(error)}})
            return self.send(200, {"result": plain(result), "status": "ok", "time": 0.0})

        def send(self, status, content):
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = respond

        def log_message(self, *arguments):
            pass

    with contextlib.closing(server.client), LocalServer(Handler) as local:
        server.url = local.url
        yield server


def plain(result):
    if isinstance(result, list):
        return [plain(one) for one in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result
