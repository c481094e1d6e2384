"""A corpus with an empty document, as Cranfield has, runs through."""

from __future__ import annotations

import json
import shutil

import pytest

from retrodistill.recipes import parse_recipe, run_recipe


@pytest.mark.parametrize("kind", ["content", "hybrid"])
def test_an_empty_document_is_kept_and_does_no_harm(kind, content, tiny_folder, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "collection")
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "empty", "title": "", "text": ""}) + "\n")
    content["collection"] = str(folder)
    if kind == "hybrid":
        content["students"]["student"] = {
            "model": f"dense:{tiny_model}",
            "lexical_dim": 16,
            "documents": "student",
            "control": "contrastive",
            "stages": [
                {"objectives": "kl", "train": "lexical", "candidates": {"depth": "all"}, "training": {"max_steps": 3}}
            ],
        }
    results = run_recipe(parse_recipe(content), tmp_path / "out")
    assert results.provenance["documents"] == "61"
