"""Jobs that are killed at random moments, and again while they resume, end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import time
from dataclasses import dataclass

import pytest
from disk import arming, killed, needs_faults
from jobs import CHANGING, JOBS, Job, start
from long import MOMENTS, SEED, record

pytestmark = [needs_faults, pytest.mark.xdist_group("children")]
QUICK = ("mine", "index-dense")

# In a child: each part of a store whose results were computed is a line with its keys, before it is written.
COUNTING = """
from retrodistill.core.stores import PartStore
def append(self, table, write=PartStore.append):
    with open({log!r}, "a") as log:
        keys = zip(*(table[name].to_pylist() for name in ("key", "query", "document") if name in table.column_names))
        log.write(self.folder.name + "\\t" + " ".join("/".join(map(str, key)) for key in keys) + "\\n")
    write(self, table)
PartStore.append = append
"""


@dataclass(frozen=True)
class Moment:
    """When a job is killed, as shares of what it does without an interruption: at most once in each of its runs."""

    job: Job
    kills: tuple[tuple[str, float], ...]  # before or within an operation on disk, or after a share of the time
    older: bool  # whether the job was run before, so that there is output to replace

    def __str__(self) -> str:
        kills = (f"{how}{share:.3f}" for how, share in self.kills)
        return "-".join([self.job.name, *kills, *(["again"] if self.older else [])])


def moments(count: int, names: tuple[str, ...], seed: int) -> list[Moment]:
    """Kills of jobs in turn; later ones of the same job hit a resumed run, which does less."""
    chance, made = random.Random(seed), []
    for number in range(count):
        job, kills = JOBS[names[number % len(names)]], []
        for run in range(1 + chance.choice((1, 1, 2, 3))):
            how = chance.choice(("before", "within", "before", "within", "after"))
            kills.append((how, chance.random() ** (1 + run)))
        made.append(Moment(job, tuple(kills), chance.random() < 0.3 and job.name not in CHANGING))
    return made


def check(workshop, folder, moment):
    """Kill, resume, and compare with an uninterrupted run."""
    job, log = moment.job, folder.with_suffix(".parts")
    workshop.fill(job, folder, older=moment.older)
    counting = COUNTING.format(log=str(log))
    died = 0
    for how, share in moment.kills:
        if how == "after":
            child = start(job, folder, counting)
            deadline = time.monotonic() + share * workshop.seconds(job)
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            child.kill()
        else:
            fault = killed(int(share * len(workshop.operations(job))), how == "within")
            child = start(job, folder, counting + arming(folder, fault))
        status, _, error = child.wait(300)
        assert status in (0, -signal.SIGKILL), f"the killed run: {error}"
        died += status != 0
        assert workshop.broken_files(job, folder, older=moment.older) == []
    workshop.resume(job, folder, counting)
    assert computed_again(log) <= died
    record("moments killed", died)


def computed_again(log) -> int:
    """Number of parts with a result that was computed before."""
    seen, again = set(), 0
    for line in log.read_text().splitlines() if log.exists() else []:
        store, _, keys = line.partition("\t")
        own = {(store, key) for key in keys.split()}
        again += not seen.isdisjoint(own)
        seen |= own
    return again


@pytest.mark.parametrize("moment", moments(len(QUICK), QUICK, SEED), ids=str)
def test_a_killed_job_ends_as_if_it_had_not_been(workshop, tmp_path, moment):
    check(workshop, tmp_path / "job", moment)


@pytest.mark.slow
@pytest.mark.parametrize("moment", moments(MOMENTS, tuple(JOBS), SEED + 1), ids=str)
def test_every_job_ends_so(workshop, tmp_path, moment):
    check(workshop, tmp_path / "job", moment)
    shutil.rmtree(tmp_path / "job")
