"""An HTTP server on a free port of this machine, for the servers that tests stand in for."""

import threading
from http.server import ThreadingHTTPServer


class LocalServer:
    """Answers by a handler until it is closed; `url` is its address."""

    def __init__(self, handler):
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        # a short interval: closing waits for it
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
