"""What requests to paid models cost, and limits on it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from retrodistill.core.disk import writing
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import parse_json
from retrodistill.core.settings import Settings, validated

LEDGER = "spending.jsonl"


class SpendingSettings(Settings):
    """Limits on what a job may spend on models behind an API, in all of its runs together."""

    max_cost: Annotated[float, Field(ge=0)] | None = None
    """Dollars, by the prices in the API's settings file; a model without prices is rejected then."""
    max_requests: Annotated[int, Field(ge=0)] | None = None
    """Requests, repeated ones included."""


@dataclass(frozen=True)
class Bill:
    """What requests to an API that are left to send will take, estimated."""

    requests: int = 0
    tokens: int = 0
    cost: float | None = None  # dollars; None without a price
    seconds: float = 0.0

    def __add__(self, other: Bill) -> Bill:
        """Both together."""
        costs = [bill.cost for bill in (self, other) if bill.cost is not None]
        requests, tokens = self.requests + other.requests, self.tokens + other.tokens
        return Bill(requests, tokens, sum(costs) if costs else None, self.seconds + other.seconds)

    def times(self, factor: float) -> Bill:
        """The bill of a multiple of the work."""
        cost = None if self.cost is None else self.cost * factor
        return Bill(round(self.requests * factor), round(self.tokens * factor), cost, self.seconds * factor)

    def __str__(self) -> str:
        """In words; empty if nothing is sent."""
        if not self.requests:
            return ""
        price = "no price is set" if self.cost is None else f"${self.cost:,.2f}"
        return f"{self.requests:,} requests, {self.tokens:,} tokens, {price}"

    def to_json(self) -> dict[str, Any]:
        """Requests, tokens, and dollars or null."""
        return {"requests": self.requests, "tokens": self.tokens, "cost": self.cost}


@dataclass
class Spent:
    """What was sent to one model."""

    requests: int = 0  # repeated ones included
    failed: int = 0  # of these: timed out, dropped, or answered with an error
    unreadable: int = 0  # of these: answered and paid for, but the answer could not be read
    tokens: int = 0  # by the server's count, or estimated as bytes / 4
    cost: float = 0.0  # dollars

    def add(self, other: Spent) -> None:
        """Add another sum to this one."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Spending:
    """Sums by model, within limits; safe with several threads.

    Attributes:
        limits: Checked before each request, with what requests in flight are expected to cost.
        ledger: JSON lines of what each request cost, appended as it is answered; a later run reads it first. While it
            cannot be written, no request is sent, since it would be forgotten.
    """

    limits: SpendingSettings = field(default_factory=SpendingSettings)
    ledger: Path | None = None

    def __post_init__(self) -> None:
        self.models: dict[str, Spent] = read_ledger(self.ledger) if self.ledger is not None else {}
        self._reserved = Spent()
        self._unwritten: list[bytes] = []  # lines of the ledger
        self._lock = threading.Lock()

    @property
    def total(self) -> Spent:
        """The sum over all models."""
        total = Spent()
        for spent in self.models.values():
            total.add(spent)
        return total

    def reserve(self, model: str, cost: float | None) -> None:
        """Set the expected cost (dollars, None without a price) of a request aside before it is sent.

        Raises:
            UserError: It would exceed a limit, there is a limit of cost and no price, or the ledger cannot be written.
        """
        self.keep()
        with self._lock:
            total, limits = self.total, self.limits
            sent = total.requests + self._reserved.requests
            if limits.max_requests is not None and sent >= limits.max_requests:
                raise UserError(
                    f"{model}: {sent} requests were sent, the limit (max_requests) is {limits.max_requests}; answers "
                    "so far are kept: raise the limit and run again to continue."
                )
            if limits.max_cost is not None:
                if cost is None:
                    raise UserError(
                        f"{model} has no price, so that max_cost cannot be kept; set input_price (dollars per million "
                        "tokens) or request_price in its settings file."
                    )
                if total.cost + self._reserved.cost + cost > limits.max_cost:
                    raise UserError(
                        f"{model}: ${total.cost:.4f} were spent and the next request costs about ${cost:.4f}, the "
                        f"limit (max_cost) is ${limits.max_cost:g}; answers so far are kept: raise the limit and run "
                        "again to continue."
                    )
            self._reserved.add(Spent(requests=1, cost=cost or 0.0))

    def settle(self, model: str, reserved: float | None, spent: Spent) -> None:
        """Replace what was reserved for a request by what it cost."""
        with self._lock:
            self._reserved.add(Spent(requests=-1, cost=-(reserved or 0.0)))
            self.models.setdefault(model, Spent()).add(spent)
            line = json.dumps({"model": model, **asdict(spent)}, ensure_ascii=False) + "\n"
            self._unwritten.append(line.encode())
        with contextlib.suppress(UserError):  # the answer is paid for and must be kept; the next request fails
            self.keep()

    def keep(self) -> None:
        """Write the ledger, as far as it is not written; a UserError if that is impossible."""
        with self._lock:
            if self.ledger is None or not self._unwritten:
                return
            with writing(self.ledger):
                self.ledger.parent.mkdir(parents=True, exist_ok=True)
                while self._unwritten:
                    _append(self.ledger, self._unwritten[0])
                    del self._unwritten[0]

    def to_json(self) -> dict[str, Any]:
        """The sums by model, for results."""
        return {model: asdict(spent) for model, spent in self.models.items()}


def read_ledger(path: Path) -> dict[str, Spent]:
    """The sums by model of a ledger; a line that a full disk cut short is left out."""
    models: dict[str, Spent] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                content = parse_json(line)
                models.setdefault(content.pop("model"), Spent()).add(Spent(**content))
    return models


def _append(path: Path, line: bytes) -> None:
    """Append a line by one write, which a kill leaves whole; on a new line where a full disk has cut the last one."""
    with path.open("a+b", buffering=0) as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_CURRENT: ContextVar[Spending] = ContextVar("spending", default=Spending())  # noqa: B039 - one for the process


def current_spending() -> Spending:
    """That of the innermost `spend` block; outside of one, that of the process, without limits."""
    return _CURRENT.get()


@contextlib.contextmanager
def spend(limits: SpendingSettings | None = None, *, ledger: Path | None = None, **changes: Any) -> Iterator[Spending]:
    """Count requests inside the block together, and keep limits (`SpendingSettings`, or its keys as arguments)."""
    content = {**(limits or SpendingSettings()).model_dump(), **changes}
    settings = validated(SpendingSettings, content, "spending", "option")
    spending = Spending(settings, ledger)
    token = _CURRENT.set(spending)
    try:
        yield spending
        spending.keep()
    finally:
        _CURRENT.reset(token)
