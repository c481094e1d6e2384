"""Engines: where texts are encoded and pairs are scored, in this process or on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Protocol

from retrodistill.core.errors import UserError, unknown

ENGINES = ("local", "ray")


class Task(Protocol):
    """What another process opens to compute parts: picklable, and equal to a task that computes the same."""

    def open(self) -> Callable[[Any], Any]:
        """Load what is needed, and return the function from a part to its result."""


@dataclass(frozen=True)
class Computation:
    """What computes the result of a part, which may be sent to another process."""

    compute: Callable[[Any], Any]  # in this process
    task: Task | None = None  # gives other processes the same function; None if only this process can compute
    part: int | None = None  # texts or pairs per part; by default what suits a model here
    threads: int = 1  # parts at once in this process, for what waits for a server

    def here(self, parts: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each part with its result, computed in this process: one after the other, or in threads as they end."""
        if self.threads > 1:
            return _in_threads(parts, self)
        return ((part, self.compute(part)) for part in parts)


class Engine(Protocol):
    """Computes parts, in any order and anywhere."""

    def map(self, parts: Iterable[Any], computation: Computation) -> Iterator[tuple[Any, Any]]:
        """Each part with its result; parts are taken as results are asked for, and come in order unless in threads."""


class LocalEngine:
    """Computes parts in this process, one after the other, or in threads if the computation asks for that."""

    def map(self, parts: Iterable[Any], computation: Computation) -> Iterator[tuple[Any, Any]]:
        """As `Engine.map`."""
        return computation.here(parts)


def _in_threads(parts: Iterable[Any], computation: Computation) -> Iterator[tuple[Any, Any]]:
    """Each part with its result as soon as it is there; after an error, first those that were under way."""
    rest, error = iter(parts), None
    waiting: dict[Future[Any], Any] = {}
    with ThreadPoolExecutor(computation.threads) as threads:
        while True:
            if error is None:
                for part in itertools.islice(rest, computation.threads - len(waiting)):
                    waiting[threads.submit(copy_context().run, computation.compute, part)] = part
            if not waiting:
                break
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                part = waiting.pop(done)
                if done.exception() is None:
                    yield part, done.result()
                else:
                    error = error or done.exception()
    if error is not None:
        raise error


_CURRENT: ContextVar[Engine] = ContextVar("engine")


def current_engine() -> Engine:
    """The engine of the innermost `engine` block, by default this process."""
    return _CURRENT.get(LocalEngine())


@contextlib.contextmanager
def engine(name: str = "local", *, address: str | None = None) -> Iterator[Engine]:
    """Models encode texts and score pairs on this engine inside the block.

    With Ray, workers compute the parts and this process writes them, so stores stay the same and a stopped job resumes
    in any engine. Each worker has one GPU, or, in a cluster without GPUs, as many cores as torch has threads here. It
    loads the model by its name, so it needs this package and the same folder of the model, or access to the hub. Models
    that were given as objects, and students in training, encode in this process.

    Args:
        name: ``local`` or ``ray``.
        address: Of a Ray cluster: ``HOST:PORT`` from one of its machines, ``ray://HOST:PORT`` from another machine, or
            ``auto`` for the cluster that runs on this machine. By default RAY_ADDRESS, a connection that this process
            has already, or a cluster on this machine, which is started if there is none.

    Raises:
        UserError: Another name, Ray is not installed, or no cluster answers; inside the block, a worker cannot load the
            model or has another one, or workers died on the same part several times.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if name == "local":
        if address is not None:
            raise UserError(f"address {address} is for the engine ray; choose that engine, or leave the address out.")
        opened: contextlib.AbstractContextManager[Engine] = contextlib.nullcontext(LocalEngine())
    else:
        from retrodistill.core.ray_engine import open_ray

        opened = open_ray(address)
    with opened as chosen:
        token = _CURRENT.set(chosen)
        try:
            yield chosen
        finally:
            _CURRENT.reset(token)


def compute(part: Any, computation: Computation) -> Any:
    """The result of one part, on the current engine."""
    [(_, result)] = current_engine().map([part], computation)
    return result


def check_same_model(name: str, found: str, expected: str) -> None:
    """For a task that has loaded a model: reject one whose fingerprint differs from that of the process that writes."""
    if found != expected:
        problem = f"{name} is another model here (fingerprint {found}) than in the process that writes ({expected})"
        raise UserError(f"{problem}; give all machines the same folder and the same versions of the libraries.")
