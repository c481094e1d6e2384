"""Batching: requests that wait for the same worker are answered together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class Worker(Generic[Item]):
    """One thread that takes all items that wait, up to a batch, and answers them by one call.

    It never waits for a batch to fill: while a batch is computed, the next one gathers. An item whose future was
    cancelled in the queue is not computed.

    Args:
        answer: Gives one result per item, in order; an exception among them is that item's failure. If it raises, all
            items of the batch fail.
        name: Of the thread.
        most: Items of a batch.
        waiting: Items that may wait.
        locks: Held while a batch is computed; workers that share a model share its lock. They are taken in this order.
    """

    def __init__(
        self,
        answer: Callable[[list[Item]], Sequence[Any]],
        name: str,
        *,
        most: int = 32,
        waiting: int = 256,
        locks: Sequence[threading.Lock] = (),
    ) -> None:
        self._answer, self._most, self._waiting, self._locks = answer, most, waiting, locks
        self._items: queue.SimpleQueue[tuple[Item, Future[Any]] | None] = queue.SimpleQueue()
        self._is_closed, self._guard = False, threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """The number of items that wait."""
        return self._items.qsize()

    def submit(self, item: Item) -> Future[Any]:
        """The future result of an item; `QueueFullError` if too many wait, or the worker is closed."""
        with self._guard:  # nothing is queued after the end
            if self._is_closed or self._items.qsize() >= self._waiting:
                raise QueueFullError
            future: Future[Any] = Future()
            self._items.put((item, future))
        return future

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._guard:
            if not self._is_closed:
                self._is_closed = True
                self._items.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            taken = [self._items.get()]
            while len(taken) < self._most and taken[-1] is not None:
                try:
                    taken.append(self._items.get_nowait())
                except queue.Empty:
                    break
            is_last = taken[-1] is None
            batch = [entry for entry in taken if entry is not None and entry[1].set_running_or_notify_cancel()]
            if batch:
                self._compute([item for item, _ in batch], [future for _, future in batch])

    def _compute(self, items: list[Item], futures: list[Future[Any]]) -> None:
        try:
            with ExitStack() as stack:
                for lock in self._locks:
                    stack.enter_context(lock)
                results = self._answer(items)
        except Exception as error:
            results = [error] * len(items)
        for future, result in zip(futures, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
