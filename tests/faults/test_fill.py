"""Disks that fill up or refuse: a job ends in one line that says what and why, and is completed once there is space."""

from __future__ import annotations

import errno
import os
import random
import shutil
from dataclasses import dataclass

import pytest
from disk import CHANGES, FOREVER, MAKE, OPEN, READ_OPEN, REMOVE, RENAME, SYNC, WRITE, Fault, arming, needs_faults
from jobs import JOBS, Job, differences, leftovers, start, written
from long import MOMENTS, SEED, record

pytestmark = [needs_faults, pytest.mark.xdist_group("children")]
QUICK = ("mine", "index-dense", "judge")

# What a disk does: the error, the kinds of operations that it refuses, and whether it refuses all later ones as well.
REFUSALS = {
    "full": (errno.ENOSPC, OPEN | WRITE | MAKE, True),
    "quota": (errno.EDQUOT, OPEN | WRITE | MAKE | SYNC, True),
    "read-only": (errno.EROFS, OPEN | MAKE | RENAME | REMOVE, True),
    "forbidden": (errno.EACCES, OPEN | MAKE | RENAME | REMOVE, True),
    "too-many-files": (errno.EMFILE, OPEN | READ_OPEN, True),
    "once": (errno.ENOSPC, CHANGES, False),
    "broken": (errno.EIO, WRITE | SYNC, False),
}


@dataclass(frozen=True)
class Refusal:
    """A job on a disk that refuses from a share of its operations on."""

    job: Job
    how: str
    share: float

    def __str__(self) -> str:
        return f"{self.job.name}-{self.how}{self.share:.3f}"


def refusals(count: int, names: tuple[str, ...], seed: int) -> list[Refusal]:
    chance = random.Random(seed)
    hows = list(REFUSALS)
    return [Refusal(JOBS[names[n % len(names)]], chance.choice(hows), chance.random()) for n in range(count)]


def check(workshop, folder, refusal):
    job = refusal.job
    error, kinds, is_for_good = REFUSALS[refusal.how]
    number = int(refusal.share * len(workshop.operations(job, kinds)))
    workshop.fill(job, folder)
    fault = Fault(number, FOREVER if is_for_good else number, error, kinds)
    status, _, said = start(job, folder, arming(folder, fault)).wait(300)
    assert "Traceback" not in said, said
    assert status in (0, 2), said
    if status == 2:
        last = said.splitlines()[-1]
        assert last.startswith("error: "), said
        assert os.strerror(error).lower() in last.lower(), said
    record(f"refused by the disk: {'one line' if status == 2 else 'done without'}")
    whole = written(workshop.finished(job), job)
    half = [name for name, content in written(folder, job).items() if whole.get(name) != content]
    assert [name for name in half if not name.startswith("out/.training/")] == []
    status, _, said = start(job, folder).wait(300)
    assert status == 0, f"with space again: {said}"
    assert differences(workshop.finished(job), folder, job) == []
    assert leftovers(folder) == []


@pytest.mark.parametrize("refusal", refusals(len(QUICK), QUICK, SEED), ids=str)
def test_a_refusal_is_one_line_and_the_job_goes_on_later(workshop, tmp_path, refusal):
    check(workshop, tmp_path / "job", refusal)


@pytest.mark.slow
@pytest.mark.parametrize("refusal", refusals(MOMENTS, tuple(JOBS), SEED + 1), ids=str)
def test_every_job_goes_on_so(workshop, tmp_path, refusal):
    check(workshop, tmp_path / "job", refusal)
    shutil.rmtree(tmp_path / "job")
