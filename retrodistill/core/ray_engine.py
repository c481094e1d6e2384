"""The Ray engine: actors that hold a model compute parts, and their results come back in order."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError, first_line
from retrodistill.core.runtime import keep_freed_memory, log, processes, set_quiet

if TYPE_CHECKING:
    from retrodistill.core.engines import Computation, Task

_AT_ONCE = 2  # parts at a worker, so that it need not wait for the next
_WINDOW = 4  # parts per worker that may be ahead of the first unfinished part: their results wait in memory
_TRIES = 3  # of a part whose worker dies
_LOOK_SECONDS = 10.0  # between looks at the size of the cluster
_CONNECT_SECONDS = 5.0
_NEW_WORKER_SECONDS = 1.0  # between looks while there is no worker
_ADVICE = "Every machine needs this version of retrodistill and memory for the model and a batch."


class Worker:
    """What runs in an actor: one model at a time, loaded when a task first needs it."""

    def __init__(self, threads: int | None) -> None:
        set_quiet(True)
        keep_freed_memory()
        self._task: Task | None = None
        if threads is not None:  # the same number as in the process that writes, so that values are equal to the bit
            import torch

            torch.set_num_threads(threads)
            os.environ["RAYON_NUM_THREADS"] = str(threads)  # of tokenizers, which would take all cores of the machine

    def open(self, task: Task) -> None:
        """Load what a task needs, unless the last task needed the same."""
        if task == self._task:
            return
        self._task = self._compute = None  # frees the memory of the last model
        try:
            self._compute = task.open()
        except UserError as error:
            raise UserError(f"Ray worker on {platform.node()}: {error}") from None
        self._task = task

    def compute(self, part: Any) -> Any:
        """The result of a part."""
        return self._compute(part)  # type: ignore[misc]  # it is opened first


class RayEngine:
    """Computes parts on a connected cluster; actors stay, with their model, until `close`."""

    def __init__(self) -> None:
        self.actors: set[Any] = set()

    def map(self, parts: Iterable[Any], computation: Computation) -> Iterator[tuple[Any, Any]]:
        """As `Engine.map`; a part whose worker died goes to another worker."""
        if computation.task is not None:
            return iter(_Map(self, parts, computation.task))
        if computation.threads == 1:
            log("this model was not loaded by a name, so that Ray's workers cannot load it: it runs in this process")
        return computation.here(parts)

    def hire(self) -> list[Any]:
        """Start actors up to what the cluster has room for; returns the new ones."""
        import ray

        options, count = _room()
        start = ray.remote(Worker).options(**options).remote
        added = [start(options.get("num_cpus")) for _ in range(count - len(self.actors))]
        self.actors.update(added)
        return added

    def dismiss(self, actor: Any) -> None:
        """End an actor."""
        import ray

        self.actors.discard(actor)
        ray.kill(actor)

    def close(self) -> None:
        """End all actors."""
        for actor in list(self.actors):
            self.dismiss(actor)


class _Map:
    """One iteration over parts: what is taken, sent, and finished out of order."""

    def __init__(self, engine: RayEngine, parts: Iterable[Any], task: Task) -> None:
        self.engine, self.task = engine, task
        self.source = enumerate(parts)
        self.next = next(self.source, None)  # the next part to take, with its number
        self.again: list[tuple[int, Any]] = []  # parts whose worker died
        self.tries: Counter[int | None] = Counter()
        self.first = 0  # number of the first part that was not returned yet
        self.finished: dict[int, tuple[Any, Any]] = {}
        self.opening: dict[Any, Any] = {}  # actors by the reference to what they answer
        self.sent: dict[Any, tuple[Any, int, Any]] = {}
        self.loads: dict[Any, int] = {}  # parts at each actor that has opened the task
        self.looked, self.told = 0.0, False
        for actor in engine.actors:
            self._open(actor)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        while self.next or self.again or self.sent or self.finished:
            self._hire()
            self._send()
            self._wait()
            while self.first in self.finished:
                yield self.finished.pop(self.first)
                self.first += 1

    def _hire(self) -> None:
        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        for actor in self.engine.hire():
            self._open(actor)

    def _open(self, actor: Any) -> None:
        self.opening[actor.open.remote(self.task)] = actor

    def _send(self) -> None:
        """Give every worker something to do, the least busy first."""
        for load in range(_AT_ONCE):
            for actor in [actor for actor, own in self.loads.items() if own == load]:
                taken = self._take()
                if taken is None:
                    return
                self.loads[actor] += 1
                self.sent[actor.compute.remote(taken[1])] = (actor, *taken)

    def _take(self) -> tuple[int, Any] | None:
        if self.again:
            return self.again.pop()
        taken = self.next
        if taken is None or taken[0] >= self.first + _WINDOW * len(self.loads):
            return None
        self.next = next(self.source, None)
        return taken

    def _wait(self) -> None:
        import ray

        if not self.sent and not self.opening:  # all workers died: there is nothing that ray.wait would wait for
            time.sleep(_NEW_WORKER_SECONDS)
        ready, _ = ray.wait([*self.sent, *self.opening], timeout=_LOOK_SECONDS)
        if not ready and not self.loads and not self.told:
            log(f"waiting for Ray: {len(self.opening)} workers are starting, or wait for free machines")
            self.told = True
        for answer in ready:
            actor, number, part = self.sent.pop(answer, None) or (self.opening.pop(answer), None, None)
            try:
                result = ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise _plain(error) from None
            except ray.exceptions.RayError as error:
                self._lose(actor, number, part, error)
                continue
            if number is None:
                self.loads[actor] = 0
            else:
                self.loads[actor] -= 1
                self.finished[number] = (part, result)

    def _lose(self, actor: Any, number: int | None, part: Any, error: Exception) -> None:
        """An actor died with a part, or while it loaded the model (no number)."""
        if actor in self.engine.actors:
            self.engine.dismiss(actor)
            self.loads.pop(actor, None)
        self.tries[number] += 1
        if number is not None:
            self.again.append((number, part))
            self.looked = 0.0  # replace it now
        if self.tries[number] >= _TRIES and (number is not None or not self.loads):
            doing = "while they loaded the model" if number is None else "with the same part"
            raise UserError(f"{_TRIES} Ray workers died {doing}: {_last_line(error)}. {_ADVICE}")


def _plain(error: Any) -> Exception:
    """What a `ray.exceptions.RayTaskError` stands for."""
    import ray

    if isinstance(error.cause, ray.exceptions.RayError):  # the worker could not read what it was sent
        return UserError(f"a Ray worker cannot read its task: {_last_line(error)}. {_ADVICE}")
    return error.cause if isinstance(error.cause, UserError) else error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()[:200].rstrip(".")


@contextlib.contextmanager
def open_ray(address: str | None) -> Iterator[RayEngine]:
    """Connect to a cluster for a block; a connection that this process had before stays open."""
    try:
        import ray
    except ImportError as error:
        raise UserError("the engine ray needs its package: pip install 'retrodistill[ray]'.") from error
    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(address)
    elif address is not None:
        raise UserError(f"address {address}: this process is connected to Ray already; leave the address out.")
    engine = RayEngine()
    try:
        yield engine
    finally:
        engine.close()
        if not was_connected:
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    place = address or os.environ.get("RAY_ADDRESS")
    if place is None and processes() > 1:
        raise UserError("the engine ray needs an address under torchrun, so that all processes use one cluster.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports to nobody
    advice = "give HOST:PORT of its head (6379 by default), or ray://HOST:PORT (10001) from another machine"
    try:
        if place is not None and ":" in place:
            _check_answers(place)
        ray.init(place, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = first_line(error).rstrip(".")[:200]
        raise UserError(f"no Ray cluster at {place or 'this machine'} ({reason}); {advice}.") from error


def _check_answers(address: str) -> None:
    """Raise ConnectionError after seconds, where Ray itself would try for minutes and then end the process."""
    import grpc

    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"no answer in {_CONNECT_SECONDS:.0f} s") from None


def _room() -> tuple[dict[str, int], int]:
    """What an actor takes, and for how many the cluster has room now; at least one, which may start a machine."""
    import ray
    import torch

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        return {"num_gpus": 1}, gpus
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    threads = max(1, min(torch.get_num_threads(), *cores))
    return {"num_cpus": threads}, max(1, sum(own // threads for own in cores))
