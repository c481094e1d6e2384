"""The jobs themselves: two uninterrupted runs of each write the same."""

import pytest
from jobs import JOBS, differences, leftovers, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("children")]


@pytest.mark.parametrize("name", JOBS)
def test_two_runs_write_the_same(workshop, tmp_path, name):
    job = JOBS[name]
    folder = workshop.fill(job, tmp_path / "again")
    status, _, error = start(job, folder).wait(300)
    assert status == 0, error
    assert differences(workshop.finished(job), folder, job) == []
    assert leftovers(folder) == []
