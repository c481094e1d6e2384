"""What every request passes first: its host, token, type, and size are checked, and its body is read within limits."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from pydantic import Field

from retrodistill.core.settings import Settings
from retrodistill.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/", "/health")  # paths that need no token: they hold no data
_DISCARDED = 64 << 20  # bytes of a body that is too large which are still read, so that the client reads the answer
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Limits(Settings):
    """Limits of requests."""

    body: int = Field(default=1 << 20, ge=1)
    """Bytes of a request's body."""
    seconds: float = Field(default=10.0, gt=0)
    """Time for a request, in the queue and computed."""
    query: int = Field(default=10_000, ge=1)
    """Characters of a query."""
    k: int = Field(default=1000, ge=1)
    """Documents of an answer."""
    texts: int = Field(default=256, ge=1)
    """Texts to embed, or documents to re-rank."""
    waiting: int = Field(default=256, ge=1)
    """Requests that wait for a system; more are refused."""
    batch: int = Field(default=32, ge=1)
    """Requests that are computed together."""


class ApiError(Exception):
    """An answer other than success: status and sentence."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class Guard:
    """ASGI middleware around an application.

    Args:
        app: The application.
        limits: Of bodies and time.
        metrics: Counts requests.
        token: Bearer token that requests need, except those for the page and the state of health.
        hosts: Names under which the server may be addressed, against DNS rebinding; None for any.
        routes: Paths that are counted by their name.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        metrics: Metrics,
        *,
        token: str | None = None,
        hosts: Sequence[str] | None = None,
        routes: Sequence[str] = (),
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._token, self._hosts, self._routes = token, hosts, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in names)]
            await send(message)

        try:
            await self._checked(scope, receive, watched)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.request(route, status, time.perf_counter() - started)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            body = await self._read(receive, headers) if scope["method"] == "POST" else b""
        except ApiError as error:
            await _answer(send, error)
            return
        is_read = False

        async def replayed() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replayed, send)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = host[: host.find("]") + 1].strip("[]") if host.startswith("[") else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            raise ApiError(421, f"this server is not {name!r}: it is bound to this machine; address it as localhost.")
        if self._token is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                what = "a wrong token" if given else "no token"
                raise ApiError(
                    401, f"{what}; send the header 'Authorization: Bearer TOKEN'.", {"www-authenticate": "Bearer"}
                )

    async def _read(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The body; an ApiError if it is too large, comes too slowly, or is not JSON by its type."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await self._whole(receive)
        except TimeoutError as error:
            raise ApiError(408, f"the request did not arrive within {self._limits.seconds:g} seconds.") from error
        # Any page may send a form to this machine, but not JSON, for which browsers ask first.
        if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body is not JSON; send it with the header 'Content-Type: application/json'.")
        return body

    async def _whole(self, receive: Receive) -> bytes:
        parts, size, most = [], 0, self._limits.body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client disconnected.")
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            if not message.get("more_body") or size > most + _DISCARDED:
                break
        if size > most:
            raise ApiError(413, f"the request has more than {most:,} bytes; send less.")
        return b"".join(parts)


async def _answer(send: Send, error: ApiError) -> None:
    body = json.dumps({"error": {"message": error.message}}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
