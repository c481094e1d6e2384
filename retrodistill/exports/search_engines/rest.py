"""A server that is asked by JSON over HTTP: login, retries, and errors that say in one line what to do."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import requests

from retrodistill.core.errors import UserError
from retrodistill.core.http import holds_secret, require_encryption, sendable, without_key
from retrodistill.core.json_files import json_text, parse_json

_TIMEOUT = (10, 300)  # seconds: to connect, and without a byte of the answer
TRIES = 7
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_RETRIED = (429, 502, 503, 504)
BLOCKED = "cluster_block_exception"
_SHOWN = 200  # characters of a server's error


class Failure(NamedTuple):
    """What a server says of a request, or of an item of one."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Login:
    """How a server knows its user: an ``Authorization`` header, made of environment variables."""

    header: str | None  # None without a login
    secret: str  # which no message may hold
    variables: str  # for messages

    @classmethod
    def of_environment(cls, user: str, password: str, api_key: str | None = None) -> Login:
        """The login of the named variables; an API key comes before a user and a password."""
        variables = f"{user} and {password}" if api_key is None else f"{api_key}, or {user} and {password}"
        if api_key is not None and (key := os.environ.get(api_key, "").strip()):
            return cls(f"ApiKey {sendable(key, f'the variable {api_key}')}", key, variables)
        name, secret = os.environ.get(user, ""), os.environ.get(password, "")
        if bool(name) != bool(secret):
            raise UserError(f"only one of {user} and {password} is set; set both.")
        encoded = base64.b64encode(f"{name}:{secret}".encode()).decode()
        return cls(f"Basic {encoded}" if name else None, secret, variables)


class Rest:
    """Requests to one server, from several threads at once.

    Args:
        name: Of the server, for messages.
        url: Without a trailing slash.
        login: Its user.

    Raises:
        UserError: The URL holds a key or password, or the login would be sent unencrypted to another machine.
    """

    def __init__(self, name: str, url: str, login: Login) -> None:
        if holds_secret(url):
            raise UserError(f"the URL of a server must not hold a key or password; set {login.variables}.")
        require_encryption(url, login.header)
        self.name, self.url, self._login = name, url, login
        self._local = threading.local()  # a session of requests is for one thread
        self._has_answered = False

    @property
    def place(self) -> str:
        """Name and URL, for messages."""
        return f"{self.name} at {self.url}"

    def ask(
        self, method: str, path: str, body: Any = None, *, allowed: Sequence[int] = (), lines: bool = False
    ) -> tuple[int, Any]:
        """Status and JSON of the answer; what passes by itself is tried again.

        Args:
            method: Of HTTP.
            path: Begins with a slash.
            body: A JSON value, or bytes.
            allowed: Statuses that are answers, besides 200 and 201.
            lines: Whether the body is a JSON value per line.

        Raises:
            UserError: The server does not answer, or refuses.
        """
        content = body if body is None or isinstance(body, bytes) else self._json(body)
        kind = "application/x-ndjson" if lines else "application/json"
        for attempt in range(TRIES):
            is_last = attempt == TRIES - 1
            try:
                status, answer = self._send(method, path, content, kind)
            except requests.RequestException as error:
                # A server that never answered is more likely not there.
                if is_last or not self._has_answered:
                    raise UserError(self._unreachable(error)) from error
            else:
                self._has_answered = True
                if status in (200, 201, *allowed):
                    return status, self._parsed(answer) if answer else None
                failure = failure_of(self._parsed(answer, strict=False))
                if is_last or status not in _RETRIED or failure.kind == BLOCKED:
                    self.refuse(status, failure)
            pause(attempt)
        raise AssertionError  # for the type checker: the last try returns or raises

    def refuse(self, status: int, failure: Failure) -> NoReturn:
        """Raise the error for a status and what the server says.

        Raises:
            UserError: Always.
        """
        said = self._one_line(f"{failure.kind}: {failure.reason}" if failure.kind else failure.reason or str(status))
        if failure.kind == BLOCKED:
            raise UserError(
                f"{self.place} blocks writing ({said}); make space on its disks or lift the block, and run the same "
                "command again to continue."
            )
        if status == 401:
            raise UserError(f"{self.place} refuses the login ({said}); set {self._login.variables}.")
        if status == 403:
            raise UserError(f"{self.place} does not permit this ({said}); ask its owner for the privilege.")
        if status == 413:
            raise UserError(f"{self.place} does not take requests of this size; set a lower bulk_mb.")
        if status in _RETRIED:
            raise UserError(f"{self.place} is overloaded ({said}); run the same command again to continue.")
        raise UserError(f"{self.place} refuses: {said}.")

    def _send(self, method: str, path: str, content: bytes | None, kind: str) -> tuple[int, bytes]:
        headers = {} if content is None else {"Content-Type": kind}
        # A redirect would send the login elsewhere.
        response = self._session.request(
            method, self.url + path, data=content, headers=headers, timeout=_TIMEOUT, allow_redirects=False
        )
        return response.status_code, response.content

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.auth = _with_header(self._login.header)
            self._local.session = session
        made: requests.Session = self._local.session
        return made

    def _json(self, body: Any) -> bytes:
        try:
            return json_text(body).encode()
        except ValueError as error:
            raise UserError(f"{self.name} takes no infinite numbers; leave them out.") from error

    def _parsed(self, answer: bytes, *, strict: bool = True) -> Any:
        try:
            content = parse_json(answer)
            if not strict:
                return content
            if not isinstance(content, dict):
                raise ValueError("not an object")
            return _Answer(content, self)
        except ValueError as error:
            text = answer[:_SHOWN].decode("utf-8", errors="replace")
            if not strict:
                return text
            raise UserError(
                f"{self.place} does not answer with a JSON object ({self._one_line(text)}); is this its URL?"
            ) from error

    def _unreachable(self, error: requests.RequestException) -> str:
        said = self._one_line(str(error) or type(error).__name__)
        if isinstance(error, requests.exceptions.SSLError):
            return (
                f"{self.place} has a certificate that is not trusted ({said}); set REQUESTS_CA_BUNDLE to the file of "
                "its certificate authority."
            )
        return f"{self.place} does not answer ({said}); is it running, and is this its URL?"

    def _one_line(self, text: str) -> str:
        encoded = (self._login.header or "").partition(" ")[2]
        return " ".join(without_key(without_key(text, self._login.secret), encoded).split())[:_SHOWN].rstrip(".")


class _Answer(dict[str, Any]):
    """A JSON object in which what is missing is a `UserError`: another program answers in the place of the server."""

    def __init__(self, content: dict[str, Any], rest: Rest) -> None:
        super().__init__(content)
        self._place = rest.place

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f"{self._place} answers without {name!r}; is it such a server, and is this its URL?")


def pause(attempt: int) -> None:
    """Wait before the next try, longer after each."""
    time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))


def failure_of(answer: Any) -> Failure:
    """The error of an answer, or of an item in one: what failed first, and its innermost cause."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if not isinstance(error, dict):
        return Failure("", error if isinstance(error, str) else json.dumps(error))
    first, cause = next(iter(error.get("root_cause") or []), error), error
    while isinstance(cause.get("caused_by"), dict):
        cause = cause["caused_by"]
    reasons = dict.fromkeys(str(one.get("reason", "")) for one in (first, cause))
    return Failure(str(first.get("type", "")), ": ".join(filter(None, reasons)))


def _with_header(header: str | None) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """A login for requests, which would otherwise take one from ~/.netrc."""

    def add(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if header is not None:
            request.headers["Authorization"] = header
        return request

    return add
