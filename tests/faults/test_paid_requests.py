"""Requests that cost money: a job that is killed or refused pays for no pair twice, and its ledger forgets nothing."""

from __future__ import annotations

import errno
import random

import pytest
import yaml
from api_server import settings_file
from disk import FOREVER, MAKE, OPEN, WRITE, Fault, arming, killed, needs_faults, signaled
from jobs import Job, differences, start
from long import SEED

from retrodistill.core.spending import read_ledger

pytestmark = [needs_faults, pytest.mark.slow, pytest.mark.xdist_group("children")]
JOB = Job(
    "run-api", "run recipes/api.yaml --out out", ("out/students", "out/indexes", "out/runs", "out/per-query.parquet")
)
BATCH, AT_ONCE = 4, 2


@pytest.fixture
def folder(workshop, server, tmp_path):
    """A function that makes a folder with a recipe that is taught by the server."""
    recipe = yaml.safe_load((workshop.inputs / "recipes" / "dense.yaml").read_text())
    recipe |= {"name": "api", "teacher": "rerank-api:api.yaml", "spending": {"max_requests": 10_000}}
    settings = {"url": f"{server.url}/rerank", "model": "m", "batch_size": BATCH, "concurrency": AT_ONCE}

    def make(name):
        place = workshop.fill(Job("none"), tmp_path / name)
        (place / "recipes" / "api.yaml").write_text(yaml.safe_dump(recipe))
        settings_file(place / "api.yaml", settings, {"request_price": 1.0})
        return place

    return make


@pytest.fixture
def whole(folder, server):
    """The folder of an uninterrupted run, and the number of its operations."""
    place = folder("whole")
    log = place.with_suffix(".log")
    status, _, error = start(JOB, place, arming(place, log=log)).wait(300)
    assert status == 0, error
    assert set(server.pairs.values()) == {1}
    server.pairs.clear()
    server.requests.clear()
    return place, len(log.read_text().splitlines())


@pytest.mark.parametrize("how", ["killed", "stopped", "refused"])
def test_no_pair_is_asked_for_twice_and_the_ledger_has_all_requests(whole, folder, server, how):
    finished, operations = whole
    chance = random.Random(f"{SEED}{how}")
    place, broken = folder("job"), 0
    for _ in range(6):
        number = int(chance.random() * operations)
        fault = {
            "killed": killed(number, within=chance.random() < 0.5),
            "stopped": signaled(number, 15),
            "refused": Fault(number // 2, FOREVER, errno.ENOSPC, OPEN | WRITE | MAKE),
        }[how]
        status, _, error = start(JOB, place, arming(place, fault)).wait(300)
        assert status in (0, {"killed": -9, "stopped": 143, "refused": 2}[how]), error
        broken += status != 0
    status, _, error = start(JOB, place).wait(300)
    assert status == 0, error
    assert broken > 0
    assert differences(finished, place, JOB) == []
    again = sum(count - 1 for count in server.pairs.values())
    assert again <= broken * AT_ONCE * 2 * BATCH  # in flight, or answered and not yet written
    counted = read_ledger(place / "out" / "spending.jsonl")["rerank-api:api.yaml"].requests
    assert len(server.requests) - broken * AT_ONCE <= counted <= len(server.requests)
