"""The steps of a plan with their needs, what this machine has for them, and the refusal of what would not fit."""

from __future__ import annotations

import functools
import operator
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from retrodistill.core.cache import cache_folder
from retrodistill.core.errors import UserError
from retrodistill.core.spending import Bill

# The memory of a container, by cgroups of version 2 and 1: files of its limit, of what is used, and of what that is.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
NOTHING_TO_COUNT = "stages"  # unit of steps that only inform


@dataclass(frozen=True)
class Needs:
    """What a step needs, in bytes."""

    memory: float = 0.0  # at its peak, the process included
    out: float = 0.0  # on disk, in the job's folder
    cache: float = 0.0  # on disk, in the cache
    scratch: float = 0.0  # on disk, in the job's folder, while the step runs
    advice: str = ""  # what to change if it does not fit


@dataclass(frozen=True)
class Machine:
    """What there is, in bytes."""

    memory: int
    out: int  # free on the disk of the job's folder
    cache: int  # free on the disk of the cache
    same_disk: bool

    @classmethod
    def now(cls, out: Path) -> Machine:
        """Of this moment; memory that this process holds already counts as available."""
        places = [_existing(out), _existing(cache_folder())]
        free = {name: shutil.disk_usage(place).free for name, place in zip(("out", "cache"), places, strict=True)}
        memory = min([psutil.virtual_memory().available, *_left_in_container()]) + held_memory()
        same = os.stat(places[0]).st_dev == os.stat(places[1]).st_dev
        return cls(memory, **free, same_disk=same)

    def to_json(self) -> dict[str, Any]:
        """Bytes by what they are."""
        return {"memory_bytes": self.memory, "out_bytes": self.out, "cache_bytes": self.cache}


@dataclass(frozen=True)
class Step:
    """A step of a job that is left to do, or a line about one that is done."""

    step: str  # what it does
    items: int = 0
    unit: str = NOTHING_TO_COUNT
    seconds: float = 0.0
    needs: Needs = Needs()
    phase: str = "distill"  # which times in results.json it is a part of: load, distill, index, learn, or evaluate
    bill: Bill = field(default_factory=Bill)  # of requests to an API

    def to_json(self) -> dict[str, Any]:
        """Its fields, for programs; bytes are whole numbers."""
        return {
            "step": self.step,
            "items": self.items,
            "unit": self.unit,
            "seconds": round(self.seconds, 1),
            "memory_bytes": round(self.needs.memory),
            "out_bytes": round(self.needs.out),
            "cache_bytes": round(self.needs.cache),
            "scratch_bytes": round(self.needs.scratch),
            "phase": self.phase,
            **({"bill": self.bill.to_json()} if self.bill.requests else {}),
        }


def joined(title: str, steps: Sequence[Step]) -> Step:
    """Steps of one unit as a single step."""
    needs = [step.needs for step in steps]
    most = max(needs, key=lambda need: need.memory)
    together = Needs(
        most.memory,
        sum(need.out for need in needs),
        sum(need.cache for need in needs),
        max(need.scratch for need in needs),
        most.advice,
    )
    items, seconds = sum(step.items for step in steps), sum(step.seconds for step in steps)
    bill = functools.reduce(operator.add, (step.bill for step in steps))
    return Step(title, items, steps[0].unit, seconds, together, steps[0].phase, bill)


@dataclass(frozen=True)
class Plan:
    """The steps of a job, and what this machine has for them."""

    steps: list[Step]
    machine: Machine

    def check(self) -> None:
        """Refuse, as a `UserError`, steps that would not fit in memory, or on disk with those before them."""
        out, cache = 0.0, 0.0
        for step in self.steps:
            need = step.needs
            out, cache = out + need.out, cache + need.cache
            if need.memory > self.machine.memory:
                raise UserError(_refusal(step, "memory", need.memory, self.machine.memory))
            disks = [
                ("the disk of the output folder", out + need.scratch, self.machine.out),
                ("the disk of the cache", cache, self.machine.cache),
            ]
            if self.machine.same_disk:
                disks = [("the disk", out + cache + need.scratch, self.machine.out)]
            for what, needed, free in disks:
                if needed > free:
                    raise UserError(_refusal(step, f"{what}, with the steps before it,", needed, free))

    @property
    def bill(self) -> Bill:
        """What requests of all steps cost."""
        return functools.reduce(operator.add, (step.bill for step in self.steps), Bill())

    def total(self) -> dict[str, float]:
        """Sums of seconds and bytes, and the highest memory and scratch bytes of a step."""
        rows = [step.to_json() for step in self.steps]
        sums = {name: round(sum(row[name] for row in rows), 1) for name in ("seconds", "out_bytes", "cache_bytes")}
        return sums | {name: max(row[name] for row in rows) for name in ("memory_bytes", "scratch_bytes")}

    def to_json(self) -> dict[str, Any]:
        """Steps, their total, and what there is."""
        steps = [step.to_json() for step in self.steps]
        bill = {"bill": self.bill.to_json()} if self.bill.requests else {}
        return {"steps": steps, "total": self.total(), "available": self.machine.to_json(), **bill}


def held_memory() -> int:
    """Bytes of resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _left_in_container() -> list[int]:
    """Bytes of memory that the limit of the container leaves, if there is one; psutil only knows the whole machine."""
    left = []
    for files in _CGROUPS:
        try:
            limit, used, stat = (Path(file).read_text(encoding="utf-8").split() for file in files)
            of = dict(zip(stat[::2], map(int, stat[1::2]), strict=True))
            # pages of files count as used, but the system drops them before it runs out of memory
            dropped = of.get("total_inactive_file", of.get("inactive_file", 0))
            dropped += of.get("total_active_file", of.get("active_file", 0))
            left.append(int(limit[0]) - int(used[0]) + dropped)
        except (OSError, ValueError, IndexError):  # no such cgroup, or no limit ("max")
            continue
    return left


def readable_bytes(count: float) -> str:
    """Bytes in a readable unit: MB or GB, of 1,000s."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _refusal(step: Step, what: str, needed: float, available: float) -> str:
    needs = f"needs about {readable_bytes(needed)} of {what} and there are {readable_bytes(available)}"
    return f"the step '{step.step}' {needs}; {step.needs.advice}."


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())
