"""Models behind an HTTP API: settings, keys, retries, rate limits, and answers that may not be readable."""

from __future__ import annotations

import base64
import email.utils
import json
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

import jmespath
import requests
from pydantic import ConfigDict, Field, field_validator

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.json_files import parse_json
from retrodistill.core.paths import path_of, short_text
from retrodistill.core.settings import Settings, validated
from retrodistill.core.spending import Bill, Spending, Spent
from retrodistill.core.yaml_files import read_yaml

KEY_VARIABLE = "RETRODISTILL_API_KEY"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_BYTES_PER_TOKEN = 4  # of UTF-8, in English
_REREADS = 2  # more requests after an answer that cannot be read: each is paid for
_UNREADABLE_IN_A_ROW = 5  # parts without a readable answer, after which the settings are at fault
_CONNECT_SECONDS = 10
_SECONDS = 1.0  # of a request, for estimates
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds before a request is repeated, unless the server asks for more
_SHOWN = 600  # characters of an answer that a message is made of
_MOST_BYTES = 256 << 20  # of an answer
_LONGEST_ASKED = 3600.0  # seconds that a server may ask to wait
_SECRET_NAME = re.compile(
    r"(^|[_-])(api[_-]?key|secret|password|passwd|authorization|access[_-]?token|credentials?)$", re.I
)
_SECRET_PARAMETER = re.compile(r"key|token|secret|passw|auth|sig|code|credential", re.I)
_RETRIED = (408, 409, 425, 429, *range(500, 600))
_TOKENS = "usage.prompt_tokens || usage.total_tokens || usage.input_tokens || meta.billed_units.input_tokens"
_OUTPUT_TOKENS = "usage.completion_tokens || usage.output_tokens || meta.billed_units.output_tokens"

Answer = TypeVar("Answer")


class ApiSettings(Settings):
    """A model behind an HTTP API; its settings file is YAML with these keys."""

    model_config = ConfigDict(hide_input_in_errors=True)  # which may be a key, written where it does not belong

    url: str
    """Where requests are posted, e.g. `https://api.openai.com/v1/embeddings`."""
    model: str = ""
    """Its name in requests."""
    key_variable: str = KEY_VARIABLE
    """Environment variable that holds the key. The default may be unset, for servers without keys."""
    key_file: str | None = None
    """A file that holds the key, which only its owner can read, in place of the variable."""
    key_header: str = "Authorization: Bearer {key}"
    """The header that sends the key."""
    body: dict[str, Any] | None = None
    """The JSON of a request, with `{model}` and the placeholders of the kind of model; by default that of the usual
    APIs."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More keys of a request, such as `dimensions: 512`."""
    answer: str | None = None
    """A JMESPath expression for the wanted part of an answer; by default one that fits the usual APIs."""
    batch_size: int = Field(default=32, ge=1)
    """Texts, or documents of one query, per request."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests at the same time."""
    requests_per_minute: Annotated[float, Field(ge=0.001)] | None = None
    """Limit of the rate."""
    timeout: float = Field(default=60, gt=0, le=86_400)
    """Seconds without a byte of the answer after which a request is repeated."""
    retries: int = Field(default=6, ge=0)
    """Times that a request is repeated after an error of the server or the network, with growing pauses."""
    max_words: int | None = Field(default=None, ge=1)
    """Words of a document that are sent; all by default."""
    input_price: Annotated[float, Field(ge=0)] | None = None
    """Dollars per million tokens of requests."""
    output_price: float = Field(default=0.0, ge=0)
    """Dollars per million tokens of answers."""
    request_price: Annotated[float, Field(ge=0)] | None = None
    """Dollars per thousand requests, for APIs that count searches."""

    @field_validator("url")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        if holds_secret(url):
            raise ValueError("a URL must not hold a key or password; set key_variable and key_header")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL; it begins with https:// or http://")
        return url

    @field_validator("key_variable")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError("the name of an environment variable was expected; a key itself is in no settings file")
        return name

    @field_validator("key_header")
    @classmethod
    def _has_place_for_key(cls, header: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9-]+:[^\r\n]*\{key\}[^\r\n]*", header):
            raise ValueError(
                "a header with {key} was expected, such as 'X-Api-Key: {key}'; the key itself is elsewhere"
            )
        return header

    @field_validator("body", "extra")
    @classmethod
    def _holds_no_key(cls, template: dict[str, Any] | None) -> dict[str, Any] | None:
        # requests are kept with their answers
        if name := next((name for name in _names_in(template) if _SECRET_NAME.search(name)), None):
            raise ValueError(f"{name!r} must not be in a request, which is kept; set key_variable and key_header")
        return template

    @field_validator("answer")
    @classmethod
    def _is_expression(cls, expression: str | None) -> str | None:
        if expression is not None:
            try:
                jmespath.compile(expression)
            except (jmespath.exceptions.JMESPathError, RecursionError) as error:
                raise ValueError(f"{expression!r} is not JMESPath ({first_line(error)})") from error
        return expression

    @field_validator("body", "extra")
    @classmethod
    def _is_json(cls, content: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"it cannot be sent as JSON ({error})") from error
        return content

    @property
    def fingerprint(self) -> str:
        """Digest of what decides an answer as far as it can be known here: URL, model, and what a request says."""
        return digest("api", self.url, self.model, self.body, self.extra, self.answer, self.max_words)

    def bill(self, requests: int, tokens: int, output_tokens: int = 0) -> Bill:
        """The bill of a number of requests, whose tokens are given together."""
        cost = self.cost(tokens, output_tokens, requests) if requests else None
        return Bill(requests, tokens + output_tokens, cost, self._seconds(requests))

    def cost(self, tokens: int, output_tokens: int = 0, requests: int = 1) -> float | None:
        """Dollars of requests with these tokens together; None without a price."""
        if self.input_price is None and self.request_price is None:
            return None
        million = (self.input_price or 0.0) * tokens + self.output_price * output_tokens
        return million / 1e6 + (self.request_price or 0.0) * requests / 1e3

    def _seconds(self, requests: int) -> float:
        """Seconds of a number of requests, at one second each, and at the limit of the rate."""
        at_once = requests * _SECONDS / self.concurrency
        return max(at_once, 60 * requests / self.requests_per_minute) if self.requests_per_minute else at_once

    def shortened(self, text: str) -> str:
        """A document as it is sent."""
        if self.max_words is None:
            return text
        words = text.split(maxsplit=self.max_words)
        return text if len(words) <= self.max_words else " ".join(words[: self.max_words])


Api = TypeVar("Api", bound=ApiSettings)


def read_api(name: str, settings: type[Api]) -> Api:
    """The settings of a model named ``URL#MODEL``, or by a YAML file of settings.

    Raises:
        UserError: Neither, or an unknown key or value.
    """
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        return validated(settings, {"url": url, "model": model}, without_secret(name), "setting")
    path = path_of(name)
    if not path.exists():
        raise UserError(f"no settings file {name}; give URL#MODEL, or a YAML file with url and model.")
    content = read_yaml(short_text(path), name)
    if not isinstance(content, dict):
        raise UserError(f"{name} holds {type(content).__name__}; give url: ... and model: ...")
    return validated(settings, content, name, "setting")


def holds_secret(url: str) -> bool:
    """Whether a URL has a password, or a parameter whose name says that its value is secret."""
    parts = _parts(url)
    return "@" in parts.netloc or any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query, True))


def without_secret(url: str) -> str:
    """A URL for messages, without password and parameters."""
    parts = _parts(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url


def require_encryption(url: str, key: str | None) -> None:
    """Refuse to send a key, if there is one, over unencrypted HTTP to another machine."""
    parts = _parts(url)
    if key and parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise UserError(f"{url} would get the key unencrypted; use https://, or unset the key.")


def without_key(text: str, key: str) -> str:
    """A text of a server without the key, which some repeat in errors, also as JSON, in a URL or in Base64."""
    if key:
        encoded = base64.b64encode(key.encode()).decode().rstrip("=")
        for form in (key, json.dumps(key)[1:-1], quote(key, safe=""), encoded):
            text = text.replace(form, "[key]")
    return text


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # brackets that are no IPv6 address
        return SplitResult("https", "[]", "", "", "")


def _names_in(template: Any) -> Iterator[str]:
    if isinstance(template, dict):
        yield from map(str, template)
    for value in template.values() if isinstance(template, dict) else template if isinstance(template, list) else ():
        yield from _names_in(value)


def tokens_of(text_bytes: int) -> int:
    """Tokens of a request or text, estimated from its bytes of UTF-8."""
    return -(-text_bytes // _BYTES_PER_TOKEN)


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A JSON template with each ``{name}`` replaced: by the value itself if a string is nothing else, else as text."""
    if isinstance(template, dict):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if template.startswith("{") and template[1:-1] in values and template.endswith("}"):
        return values[template[1:-1]]
    # in one pass: a text may hold something that looks like a placeholder
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: str(values[match[1]]), template)


class UnreadableError(Exception):
    """An answer that does not hold what was asked for."""


class Client:
    """Posts requests to one API, from several threads at once.

    Args:
        name: Of the model, for messages.
        settings: Of the API.
        spending: Where requests are counted, and their limits.

    Raises:
        UserError: There is no key where one was promised, or it would be sent unencrypted.
    """

    def __init__(self, name: str, settings: ApiSettings, spending: Spending) -> None:
        self.name, self.settings, self.spending = name, settings, spending
        self._key = _key(settings)
        require_encryption(settings.url, self._key)
        self._sessions = threading.local()  # a session of requests is for one thread
        self._lock = threading.Lock()
        self._next = 0.0  # time at which the rate limit allows the next request
        self._stopped = threading.Event()  # set by an error that concerns all requests
        self._error = ""  # its message
        self._in_a_row = 0  # parts without a readable answer

    @property
    def is_stopped(self) -> bool:
        """Whether an error ended it."""
        return self._stopped.is_set()

    def ask(self, body: Any, read: Callable[[Any], Answer], output_tokens: int = 0) -> Answer | None:
        """Post a body until `read` makes something of the answer; None if it cannot (it raises `UnreadableError`).

        Raises:
            UserError: The request is refused, a limit of spending is reached, the server does not answer after all
                retries, or answers cannot be read again and again.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        tokens, reason = tokens_of(len(content)), ""
        expected = self.settings.cost(tokens, output_tokens)
        for _ in range(1 + _REREADS):
            answer, parsed = self._post(content, expected), None
            try:
                parsed = self._parsed(answer)
                value = read(parsed)
            except UnreadableError as error:
                self._settle(parsed, expected, tokens, unreadable=1)
                reason = without_key(str(error), self._key)
                continue
            self._settle(parsed, expected, tokens)
            self._in_a_row = 0
            return value
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= _UNREADABLE_IN_A_ROW:
                self._stop(
                    f"{self.name}: {_UNREADABLE_IN_A_ROW} answers in a row cannot be read ({reason}); check body and "
                    "answer in its settings file."
                )
        return None

    def _post(self, content: bytes, expected: float | None) -> bytes:
        """The answer to a body, after as many tries as it takes; what it costs stays reserved until it is settled."""
        reason = ""
        for attempt in range(1 + self.settings.retries):
            self._wait_turn()
            self.spending.reserve(self.name, expected)
            try:
                status, answer, asked_wait = self._send(content)
            except requests.RequestException as error:
                status, answer, asked_wait = 0, b"", None
                reason = f"{type(error).__name__}"
            if status == 200:
                return answer
            self.spending.settle(self.name, expected, Spent(requests=1, failed=1))
            if status:
                reason = f"status {status}: {self._start_of(answer)}"
            if status and status not in _RETRIED:
                self._stop(f"{self.name} refused a request ({reason}); {_advice(status, self.settings)}.")
            if attempt < self.settings.retries:
                # at random, so that not all threads ask again at once
                pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
                self._pause(max(pause, asked_wait or 0.0))
        times = 1 + self.settings.retries
        self._stop(
            f"{self.name} did not answer in {times} tries (the last: {reason}); answers so far are kept: run again to "
            "continue."
        )
        raise AssertionError  # for the type checker: `_stop` raises

    def _send(self, content: bytes) -> tuple[int, bytes, float | None]:
        """Status, body, and seconds that the server asks to wait."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            header, _, value = self.settings.key_header.partition(":")
            headers[header.strip()] = value.strip().replace("{key}", self._key)
        timeout = (_CONNECT_SECONDS, self.settings.timeout)
        # a redirect would send the key elsewhere
        with self._session.post(
            self.settings.url, data=content, headers=headers, timeout=timeout, allow_redirects=False, stream=True
        ) as response:
            parts, size = [], 0
            for part in response.iter_content(1 << 16):
                size += len(part)
                if size > _MOST_BYTES:
                    raise requests.RequestException(f"an answer of more than {_MOST_BYTES >> 20} MiB")
                parts.append(part)
            return response.status_code, b"".join(parts), _seconds(response.headers.get("Retry-After"))

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        session: requests.Session = self._sessions.session
        return session

    def _settle(self, answer: Any, expected: float | None, tokens: int, *, unreadable: int = 0) -> None:
        """Count what a parsed answer, None if it is not JSON, cost: by the server's count of tokens if it gives one."""
        counted, output = (_number(jmespath.search(path, answer)) for path in (_TOKENS, _OUTPUT_TOKENS))
        tokens, output = tokens if counted is None else counted, output or 0
        cost = self.settings.cost(tokens, output) or 0.0
        spent = Spent(requests=1, unreadable=unreadable, tokens=tokens + output, cost=cost)
        self.spending.settle(self.name, expected, spent)

    def _wait_turn(self) -> None:
        if self.settings.requests_per_minute is None:
            self._pause(0.0)
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self.settings.requests_per_minute
        self._pause(turn - now)

    def _pause(self, seconds: float) -> None:
        """Wait, unless another thread met an error that concerns all."""
        if self._stopped.wait(seconds):
            # that error's own message: of several threads' errors, only the first to come back is shown
            raise UserError(self._error)

    def _stop(self, message: str) -> None:
        self._error = self._error or message
        self._stopped.set()
        raise UserError(message)

    def _parsed(self, answer: bytes) -> Any:
        try:
            return parse_json(answer)
        except ValueError as error:
            raise UnreadableError(f"not JSON: {self._start_of(answer)}") from error

    def _start_of(self, answer: bytes) -> str:
        # the key is hidden first: a cut may leave a part of it
        text = without_key(answer[: _SHOWN + len(self._key) * 6].decode("utf-8", errors="replace"), self._key)
        return " ".join(text[:_SHOWN].split())[:200]


def _key(settings: ApiSettings) -> str:
    if settings.key_file is None:
        key = os.environ.get(settings.key_variable, "").strip()
        if not key and settings.key_variable != KEY_VARIABLE:
            # what does not look like a variable may be the key itself
            name = settings.key_variable if settings.key_variable.isupper() else "that key_variable names"
            raise UserError(f"{settings.url} needs a key, and the variable {name} is not set; set it.")
        return sendable(key, f"the variable {settings.key_variable}")
    path = path_of(settings.key_file)
    try:
        if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UserError(f"key file {path} can be read by others; run: chmod 600 {path}")
        key = short_text(path).strip()
    except OSError as error:
        raise UserError(f"cannot read the key file {path}: {error.strerror}; check key_file.") from error
    if not key:
        raise UserError(f"the key file {path} is empty; write the key into it.")
    return sendable(key, f"the key file {path}")


def sendable(key: str, where: str) -> str:
    """The key, if a header can hold it; the error for another one says `where` it is."""
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{where} holds characters that no header can have; write the key alone into it.")
    return key


def _advice(status: int, settings: ApiSettings) -> str:
    if status in (401, 403):
        where = settings.key_file or f"the variable {settings.key_variable}"
        return f"check the key in {where}"
    return "check url and model" if status == 404 else "check its settings, and that texts are not too long for it"


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After header: a number, or a date."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), _LONGEST_ASKED)  # 0 for NaN


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else None
