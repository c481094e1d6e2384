"""What is installed is what was meant: versions are pinned, each with the digests of its files."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text):
    """``{name: version}`` of lines ``name==version``."""
    return {plain(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)}


class TestLock:
    def test_its_versions_are_those_of_the_constraints(self):
        constraints, locked = pins((ROOT / "constraints.txt").read_text(encoding="utf-8")), pins(LOCK)
        both = constraints.keys() & locked.keys()
        assert len(both) > 90
        assert {name: locked[name] for name in both} == {name: constraints[name] for name in both}, "run: make lock"

    def test_it_has_every_dependency(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        wanted = {*project["dependencies"], *extras["demo"], *extras["docs"], *extras["test"]}
        names = {plain(re.match(r"[\w.-]+", each)[0]) for each in wanted}
        assert names - pins(LOCK).keys() == set(), "run: make lock"

    def test_every_version_has_digests_and_no_address(self):
        entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
        assert len(entries) == len(pins(LOCK))
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
        assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", LOCK)


class TestAudit:
    @pytest.mark.parametrize(
        ("found", "status", "said"),
        [
            (None, 0, "not audited"),
            ({"dependencies": [{"name": "a", "skip_reason": "unknown"}]}, 0, "not audited"),
            ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "1 of 1 dependencies audited"),
            (
                {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": []}]}]},
                0,
                "a 1: X-1, no fix",
            ),
            (
                {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}]},
                1,
                "a 1: X-1, fixed in 2",
            ),
        ],
        ids=["no service", "unknown", "none", "no fix", "fixed"],
    )
    def test_only_what_a_newer_version_fixes_fails(self, found, status, said, tmp_path):
        if found is not None:
            (tmp_path / "audit.json").write_text(json.dumps(found))
        command = [sys.executable, "-I", ROOT / ".ci" / "audit.py", tmp_path / "audit.json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert said in done.stdout
