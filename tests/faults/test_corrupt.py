"""Files that jobs wrote, damaged in every way: named before use, or the result is the same."""

import json
import random
import shutil

import pytest
from corruption import Damage
from jobs import JOBS, Workshop
from long import FILES, SEED, record

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("children")]


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


@pytest.mark.parametrize("number", range(FILES))
def test_a_damaged_file_is_named_or_changes_nothing(damage, number):
    names, draw = list(JOBS), random.Random(f"{SEED} {number}")
    name = names[number % len(names)]
    case = draw.choice(damage.cases(name))
    outcome = damage.outcome(case, SEED)
    assert outcome in ("same", "named"), outcome
    record(f"damaged files: {outcome}")
