"""The process: it binds the port, opens what is served, answers until it is stopped, and finishes what it began."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log

TOKEN = "RETRODISTILL_TOKEN"
_LONGEST_TOKEN = 4096


def serve(
    places: Sequence[str],
    *,
    collection: str | None = None,
    queries: str | None = None,
    judgments: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: dict[str, Any] | None = None,
    ready: Callable[[str], None] = log,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were taken by then are answered.

    Args:
        places: As `open_places` takes them.
        collection: As there.
        queries: As there.
        judgments: Folder to which judgments are appended; by default next to what is served.
        host: Address to bind.
        port: Port to bind; 0 for a free one.
        limits: Fields of `Limits`.
        ready: Is called with the address once requests are answered.

    Raises:
        UserError: A package of the extra ``serve`` is missing, the port is in use, the token is none, or what is served
            cannot be opened.
    """
    try:
        import uvicorn

        from retrodistill.serving.app import Server, make_app
        from retrodistill.serving.guard import LOOPBACK, Limits
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "fastapi", "starlette", "prometheus_client"):
            raise
        raise UserError(f"serving needs {error.name}; pip install 'retrodistill[serve]'.") from error
    from retrodistill.core.settings import validated
    from retrodistill.serving.opening import open_places

    token, chosen = token_of_environment(), validated(Limits, limits or {}, "serve", "option")
    with bound(host, port) as listener:
        server = Server(partial(open_places, places, collection=collection, queries=queries), chosen, judgments)
        is_here = host in LOOPBACK
        if not is_here and token is None:
            log(f"warning: {host} can be reached by others, and no token is needed; set {TOKEN} to ask for one.")
        app = make_app(server, token=token, hosts=LOOPBACK if is_here else None)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would hold queries
            server_header=False,
            timeout_graceful_shutdown=int(chosen.seconds) + 1,
        )
        log(f"judgments are appended to {server.log.folder}")
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}/")
        # uvicorn raises the signal again once it has stopped; it has done its work by then.
        before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def token_of_environment() -> str | None:
    """The bearer token of ``RETRODISTILL_TOKEN``; None if it is not set. One that no header can hold is a UserError."""
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    if (
        not token.isascii()
        or not token.isprintable()
        or token != token.strip()
        or not 1 <= len(token) <= _LONGEST_TOKEN
    ):
        raise UserError(f"{TOKEN} must be 1 to {_LONGEST_TOKEN} printable ASCII characters without spaces around them.")
    return token


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; a port in use or an address of another machine is a UserError."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"port {port}: choose one from 1 to 65535, or 0 for a free one.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use; choose another by --port, or 0 for a free one."
            ) from error
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen on port {port} of {host}: {reason}.") from error
    # asyncio does this for sockets that it makes. Without it, an answer waits 40 ms for the client's acknowledgment.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _ignore(*_: object) -> None:
    pass
