"""The same job twice at once: in one output folder one of the two may be refused, in one cache none is."""

import pytest
from jobs import JOBS, differences, leftovers, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("children")]
NAMES = [
    "mine",
    "score",
    "distill-static",
    "run-static",
    "run-multi-vector",
    "index-dense",
    "index-residual",
    "index-muvera",
    "export-parquet",
    "export-qdrant",
    "export-lancedb",
    "evaluate",
    "generate",
]
REFUSED = ("another run is working in", "already accessed by another", "another process")


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_in_one_folder_do_not_mix(name, workshop, tmp_path):
    job, folder = JOBS[name], tmp_path / "folder"
    expected = workshop.finished(job)
    workshop.fill(job, folder)
    ended = [child.wait(280) for child in [start(job, folder) for _ in range(2)]]
    statuses = [status for status, _, _ in ended]
    assert 0 in statuses, ended
    for status, _, error in ended:
        assert status in (0, 2), error
        assert "Traceback" not in error
        if status:
            assert any(words in error for words in REFUSED), error
    assert differences(expected, folder, job) == []
    assert leftovers(folder) == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("export")])
def test_two_jobs_share_a_cache(name, workshop, tmp_path):
    job, folders = JOBS[name], [tmp_path / "one", tmp_path / "other"]
    expected = workshop.finished(job)
    for folder in folders:
        workshop.fill(job, folder)
    environment = {"RETRODISTILL_CACHE": str(tmp_path / "cache")}
    for child in [start(job, folder, environment=environment) for folder in folders]:
        status, _, error = child.wait(280)
        assert status == 0, error
    for folder in folders:
        (folder / "cache").symlink_to(tmp_path / "cache")
        assert differences(expected, folder, job) == []
        assert leftovers(folder) == []
