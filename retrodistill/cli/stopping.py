"""SIGINT and SIGTERM end a command with status 130 or 143, and in time, whatever library is computing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 5.0  # seconds that the main thread has to come back from a library
_AGAIN = 0.01  # seconds until a lost exception is raised anew


class Stopped(BaseException):
    """A signal to stop; click would handle a KeyboardInterrupt itself."""


class _Stop:
    """The handler of the signals: it raises `Stopped` in the main thread, where Python runs handlers.

    Python does so only between its own instructions. A library may compute for minutes, and an exception that is raised
    in a callback is lost. So a thread that learns of the signal at once ends the process if the main thread does not.
    Nothing needs to be tidied up for that: what is written is whole or not there.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self.number: int | None = None  # of the signal that came
        self._last_words, self._ended = last_words, threading.Event()

    def __call__(self, number: int, _: Any) -> None:
        self.number = number
        raise Stopped

    @property
    def status(self) -> int:
        """The exit status by convention."""
        return 128 + (self.number or 0)

    def watch(self, signals: socket.socket) -> None:
        """Wait for a signal that this handles, and end the process if nothing else does."""
        while number := signals.recv(1)[0]:
            is_mine = number in _SIGNALS and signal.getsignal(number) is self  # a running server handles them itself
            if is_mine and not self._ended.wait(_PATIENCE):
                self.number = number
                self._last_words()
                os._exit(self.status)

    def end(self) -> None:
        """The main thread is back."""
        self._ended.set()

    def lost(self, report: Callable[[Any], Any], error: Any) -> None:
        """Handle an exception that Python would only report: a `Stopped` is raised anew."""
        if isinstance(error.exc_value, Stopped) and self.number is not None:
            threading.Timer(_AGAIN, signal.raise_signal, (self.number,)).start()
        else:
            report(error)


_current: _Stop | None = None


@contextlib.contextmanager
def stoppable(last_words: Callable[[], None]) -> Iterator[_Stop]:
    """Signals raise `Stopped` inside the block; `last_words` is called where the process is ended."""
    global _current  # noqa: PLW0603 - signals are of the process
    stop = _Stop(last_words)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    watcher = threading.Thread(target=stop.watch, args=(reading,), name="signals", daemon=True)
    hook = sys.unraisablehook
    with reading, writing:
        before = {number: signal.signal(number, stop) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        sys.unraisablehook = lambda error: stop.lost(hook, error)
        watcher.start()
        _current = stop
        try:
            yield stop
        finally:
            _current = None
            stop.end()
            sys.unraisablehook = hook
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            writing.send(b"\0")
            watcher.join()


def _leave_workers() -> None:
    """In a forked process, signals have the effect that they have in any program: its parent reports them."""
    if _current is not None:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_workers)
