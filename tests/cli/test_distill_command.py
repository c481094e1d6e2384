"""The command distill: every kind of student, with its defaults."""

import json
import shlex

import pytest

from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.students.registry import kind_names


@pytest.mark.parametrize("kind", sorted(set(kind_names()) - {"hybrid"}))
def test_each_kind_of_student_is_distilled_by_its_defaults(kind, call, tiny_folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("retrodistill.training.trainer.optimizer_steps", lambda *_: 2)
    set_quiet(False)
    student = "static" if kind == "static" else f"{kind}:{tiny_model}"
    given = [
        "--collection",
        tiny_folder,
        "--target",
        f"dense:{tiny_model}",
        "--document-encoder",
        f"dense:{tiny_model}",
    ]
    status, _, err = call("distill", *given, "--student", student, "--out", tmp_path / "student")
    assert status == 0, err
    made = json.loads((tmp_path / "student" / "retrodistill.json").read_text())
    assert made["about"]["steps"] == 2
    then = shlex.split(err.rpartition("next: retrodistill ")[2])
    status, _, err = call(*then)
    assert status == 0, err


def test_phrases_and_generated_queries_are_texts_of_the_training(call, tiny_folder, tiny_model, monkeypatch):
    given = {}
    student = load_encoder(f"dense:{tiny_model}")
    monkeypatch.setattr("retrodistill.api.distill", lambda *_, **settings: given.update(settings) or student)
    options = ["--phrases", "2", "--generated", "made.jsonl", "--train", "head"]
    status, _, err = call("distill", "--collection", tiny_folder, "--target", "bm25", *options)
    assert status == 0, err
    assert given["training"] == {"train": "head", "texts": {"phrases": 2, "generated": "made.jsonl"}}
