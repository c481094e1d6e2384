import json
import os
import subprocess
import sys

import pytest
from children import MAIN
from hub_server import TOKEN

from retrodistill.cli import main
from retrodistill.encoders.contract import STUDENT_MANIFEST


@pytest.fixture
def student(tiny_model, tmp_path):
    """The folder of a student that learned nothing."""
    from sentence_transformers import SentenceTransformer

    from retrodistill.core.manifest import Manifest
    from retrodistill.students.registry import save_student

    save_student(SentenceTransformer(tiny_model), Manifest("student", {"corpus": "x"}), tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def push(hub, tmp_path):
    """Run ``retrodistill push`` in a process of its own, since the library reads the variables when it is imported."""

    def run(*arguments, **variables):
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            **variables,
        }
        command = [sys.executable, "-c", MAIN, "push", *map(str, arguments)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


class TestPush:
    def test_it_uploads_and_says_what(self, push, hub, student):
        status, out, error = push(student, "me/student", "--license", "mit", "--message", "Größer", "--private")
        assert status == 0, error
        repository = hub.repositories["me/student"]
        assert (repository["private"], repository["commits"][-1]) == (True, "Größer")
        assert "model.safetensors" in out
        assert "it/s" not in error  # no bars outside a terminal
        assert out.splitlines()[-1] == f"{hub.url}/me/student/commit/{repository['sha']}"
        assert TOKEN not in out + error

    def test_a_dry_run_in_json(self, student, capsys):
        with pytest.raises(SystemExit) as left:  # no hub is reachable
            main(["push", str(student), "me/student", "--license", "mit", "--dry-run", "--json"])
        assert not left.value.code
        said = json.loads(capsys.readouterr().out)
        assert (said["kind"], said["url"]) == ("student", None)
        assert STUDENT_MANIFEST in said["files"]

    def test_a_refused_token_is_one_line_without_it(self, push, hub, student):
        hub.readers = set()
        status, out, error = push(student, "me/student", "--license", "mit")
        assert status == 2
        assert error.splitlines()[-1].startswith("error: the hub answered 401 for me/student")
        assert TOKEN not in out + error
