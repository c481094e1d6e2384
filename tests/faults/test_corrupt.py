"""Every kind of file that a job writes, damaged in every way: named before use, or the result is the same."""

import json
import os
import shutil
import sys

import pytest
from corruption import Damage
from jobs import JOBS, Workshop

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("children")]
SEED = int(os.environ.get("FAULTS_SEED", "0"))
FAULTS_EACH = int(os.environ.get("FAULTS_EACH", "5"))  # of a file, drawn from the five


@pytest.fixture(scope="session")
def damage(workshop, tmp_path_factory):
    """Cases on copies of the jobs' folders, and the same jobs on a collection whose first document is another one."""
    place = tmp_path_factory.mktemp("corrupt")
    collection = shutil.copytree(workshop.inputs / "collection", place / "collection")
    first, *rest = (collection / "corpus.jsonl").read_text().splitlines(keepends=True)
    changed = {**json.loads(first), "text": "another text of a star and a court"}
    (collection / "corpus.jsonl").write_text("".join([json.dumps(changed) + "\n", *rest]))
    inputs = [path for path in workshop.inputs.iterdir() if path.name not in ("collection", "recipes")]
    other = Workshop(place, collection, {path.name: path for path in inputs})
    return Damage(workshop, other, place)


@pytest.mark.parametrize("name", JOBS)
def test_files_of_a_job(damage, name):
    cases = damage.cases([name], SEED, FAULTS_EACH)
    outcomes = {}
    for case in cases:
        outcomes[case] = damage.outcome(case, SEED)
        if outcomes[case] not in ("same", "named"):
            sys.stderr.write(f"{outcomes[case]}\n")  # a run takes hours: say it at once
    counts = {each: list(outcomes.values()).count(each) for each in ("same", "named")}
    sys.stderr.write(f"{name}: {len(cases)} cases, {counts}\n")
    wrong = [outcome for outcome in outcomes.values() if outcome not in ("same", "named")]
    assert not wrong, "\n".join(wrong)
