"""Faults of a disk in a child process: at one operation below its folder, the process is killed or the operation fails.

`faulty.c` counts operations in the C library, so that those of FAISS, Arrow, safetensors, torch and SQLite count too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from children import faults_library

# Kinds of operations, as bits; faulty.c has the same.
OPEN, WRITE, SYNC, RENAME, MAKE, REMOVE, READ_OPEN = (1 << bit for bit in range(7))
CHANGES = OPEN | WRITE | SYNC | RENAME | MAKE | REMOVE
EVERY = CHANGES | READ_OPEN
# Before the operation, or after half of it; and a signal before it, e.g. SIGNAL - SIGTERM.
KILL_BEFORE, KILL_WITHIN, SIGNAL = -1, -2, -100
FOREVER = 1 << 40

needs_faults = pytest.mark.skipif(faults_library() is None, reason="needs Linux and a C compiler")


@dataclass(frozen=True)
class Fault:
    """Operations `first` to `last` of some kinds, from 0, fail with an errno, or the process gets a signal."""

    first: int
    last: int
    error: int
    kinds: int = CHANGES


def killed(number: int, within: bool) -> Fault:
    """SIGKILL at an operation."""
    return Fault(number, number, KILL_WITHIN if within else KILL_BEFORE)


def signaled(number: int, signal: int) -> Fault:
    """A signal to the process before an operation."""
    return Fault(number, number, SIGNAL - signal)


@dataclass(frozen=True)
class Operation:
    """One that was counted."""

    kind: int
    path: str  # below the folder


def arming(folder: Path, fault: Fault | None = None, log: Path | None = None, kinds: int = CHANGES) -> str:
    """Code for a child that lets faults happen below a folder, or only logs operations."""
    first, last, error = (0, 0, 0) if fault is None else (fault.first, fault.last, fault.error)
    kinds = kinds if fault is None else fault.kinds
    names = f"{str(folder).encode()!r}, {first}, {last}, {error}, {kinds}, {str(log or '').encode()!r}"
    return (
        "import ctypes\n"
        "arm = ctypes.CDLL(None).faults_arm\n"
        "arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]\n"
        f"arm({names})\n"
    )


def operations(log: Path) -> list[Operation]:
    """What a child logged, in order."""
    lines = [line.split("\t", 2) for line in log.read_text().splitlines()] if log.exists() else []
    return [Operation(int(kind), path) for _, kind, path in lines]
