"""Threads that use one object: those that tokenize with a model take turns, those that change an index are alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

_guard = threading.Lock()
# beside the objects, which are copied and pickled
_turns: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_shares: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def in_turn(thing: Any) -> AbstractContextManager[Any]:
    """Let one thread at a time into blocks of the same object; may be nested.

    Calls that tokenize take turns by the first module of their model, since a tokenizer keeps the truncation and the
    padding of a call until the next one, which may be of another thread.
    """
    lock: AbstractContextManager[Any] = _lock_of(_turns, thing, threading.RLock)
    return lock


def shared(thing: Any) -> AbstractContextManager[None]:
    """Use an object with other threads inside the block, none of which changes it; may be nested."""
    lock: _SharedLock = _lock_of(_shares, thing, _SharedLock)
    return lock.shared()


def alone(thing: Any) -> AbstractContextManager[None]:
    """Change an object inside the block, while no other thread uses it; may be nested, but not inside `shared`."""
    lock: _SharedLock = _lock_of(_shares, thing, _SharedLock)
    return lock.alone()


class _SharedLock:
    """Any number of threads share it, or one has it alone, which goes before those that come later."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing: dict[int, int] = {}  # by thread, how often
        self._owner, self._depth, self._waiting = 0, 0, 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._condition:
            if thread not in self._sharing and self._owner != thread:
                self._condition.wait_for(lambda: not self._owner and not self._waiting)
            self._sharing[thread] = self._sharing.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing[thread] -= 1
                if not self._sharing[thread]:
                    del self._sharing[thread]
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._condition:
            if self._owner != thread:
                self._waiting += 1
                try:
                    self._condition.wait_for(lambda: not self._owner and not self._sharing)
                finally:
                    self._waiting -= 1
                self._owner = thread
            self._depth += 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                if not self._depth:
                    self._owner = 0
                self._condition.notify_all()


def _lock_of(locks: WeakKeyDictionary[Any, Any], thing: Any, new: Any) -> Any:
    with _guard:
        lock = locks.get(thing)
        if lock is None:
            lock = locks[thing] = new()
        return lock


def _forget() -> None:
    """In a forked process: the threads that had a lock are not here to give it back."""
    global _guard, _turns, _shares
    _guard, _turns, _shares = threading.Lock(), WeakKeyDictionary(), WeakKeyDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
