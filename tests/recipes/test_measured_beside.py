"""An ensemble that teaches nothing is measured beside; and every recipe in configs/ runs but those of curricula."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodistill.candidates import mine
from retrodistill.recipes import load_recipe, parse_recipe, run_recipe
from retrodistill.runs import write_run

NAMES = ["bm25", "teacher", "ensemble", "control", "student"]
FORMS = {  # systems of recipes whose student has several forms
    "colbert-crisp": ["bm25", "teacher", "ensemble", "control", "unclustered", "pooled", "student"],
    "demo": [*NAMES[:3], "static-control", "static", "dense-control", "dense"],
    "multi-exit": ["bm25", "teacher", "ensemble", "control", "control@exit-1", "student", "student@exit-1"],
    "sparse-vdr": [*NAMES[:4], "control@own-tokens", "student", "student@own-tokens"],
    "matryoshka": [
        *["bm25", "teacher", "ensemble", "teacher@16", "teacher@8"],
        *[f"{name}{cut}" for name in ("control", "student") for cut in ("", "@16", "@8")],
    ],
}
CURRICULA = ("prod", "labeling-budget", "tas-b", "disco", "trans-encoder")  # see test_curriculum_recipes.py
EVERY = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in EVERY if path.stem not in CURRICULA]


def small(path, tiny_folder, tiny_model, run):
    """The recipe as it stands, on the tiny collection, with the tiny model and a few steps."""
    content = load_recipe(path).model_dump(mode="json")
    model = f"dense:{tiny_model}"
    content |= {"collection": str(tiny_folder), "document_encoder": model}
    for member in [*content["teacher"], *content["ensemble"]]:
        if member["model"] != "bm25":
            member["model"] = f"run:{run}" if member["model"].startswith("run:") else model
    for student in content["students"].values():
        kind = student["model"].partition(":")[0]
        student["model"] = "static" if kind == "static" else f"{kind}:{tiny_model}"
        student["lexical_dim"] = 16 if student["lexical_dim"] else None
        student["max_length"] = 32 if student["max_length"] else None
        student["dimension"] = 16 if isinstance(student["dimension"], int) else student["dimension"]
        student["join"] = 1 if student["join"] else None
        student["exits"] = [1] if student["exits"] else []
        for stage in student["stages"]:
            stage["matryoshka"] = [16, 8] if stage["matryoshka"] else []
            stage["exit_weights"] = {1: 0.5} if stage["exit_weights"] else {}
            stage["training"] |= {"max_steps": 3}
            stage["candidates"] |= {"random": min(stage["candidates"]["random"], 5)}
    if content["index"]["learn"]:
        content["index"] |= {"factory": "OPQ4,PQ4x4"}  # 60 documents do not train 8-bit codes
        content["index"]["learn"] |= {"steps": 3}
    cuts = [16, 8] if content["evaluation"]["truncations"] else []
    content["evaluation"] |= {"latency_queries": 2, "truncations": cuts}
    return parse_recipe(content)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_recipe_names_the_systems_that_it_promises(path, tiny, tiny_folder, tiny_model, tmp_path):
    write_run(mine(tiny, "train", ["bm25"], 10), tmp_path / "teacher.run")
    results = run_recipe(small(path, tiny_folder, tiny_model, tmp_path / "teacher.run"), tmp_path / "out")
    names = [system.name for system in results.systems]
    if path.stem.startswith("distill-vq"):
        better = ["ensemble"] if path.stem == "distill-vq-ensemble" else []
        assert names == ["bm25", "exact", *better, "opq", "distilled", "distilled-queries"]
        assert results.system("distilled").retention == pytest.approx(
            results.system("distilled").ndcg10 / results.system("exact").ndcg10
        )
        return
    assert names == FORMS.get(path.stem, NAMES)
    taught = results.taught_by == "ensemble"
    assert results.system("ensemble").role == ("teacher" if taught else "baseline")
