"""An ensemble that teaches nothing is measured beside; and every recipe in configs/ runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodistill.candidates import mine
from retrodistill.pipeline import run_recipe
from retrodistill.recipe import load_recipe, parse_recipe
from retrodistill.runs import write_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def small(path, tiny_folder, tiny_model, run):
    """The recipe as it stands, on the tiny collection, with the tiny model and a few steps."""
    content = load_recipe(path).model_dump(mode="json")
    model = f"dense:{tiny_model}"
    content |= {"collection": str(tiny_folder), "space": model}
    for member in [*content["teacher"], *content["ensemble"]]:
        if member["model"] != "bm25":
            member["model"] = f"run:{run}" if member["model"].startswith("run:") else model
    for student in content["students"].values():
        kind = student["model"].partition(":")[0]
        student["model"] = "static" if kind == "static" else f"{kind}:{tiny_model}"
        student["lexical"] = 16 if student["lexical"] else None
        student["max_length"] = 32 if student["max_length"] else None
        student["dimension"] = 16 if isinstance(student["dimension"], int) else student["dimension"]
        for stage in student["stages"]:
            stage["training"] |= {"max_steps": 3}
            stage["candidates"] |= {"random": min(stage["candidates"]["random"], 5)}
    if content["index"]["learn"]:
        content["index"] |= {"factory": "OPQ4,PQ4x4"}  # 60 documents do not train 8-bit codes
        content["index"]["learn"] |= {"steps": 3}
    content["evaluation"] |= {"latency_queries": 2}
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
    assert names == ["bm25", "teacher", "ensemble", "control", "student"]
    taught = results.taught_by == "ensemble"
    assert results.system("ensemble").role == ("teacher" if taught else "baseline")
