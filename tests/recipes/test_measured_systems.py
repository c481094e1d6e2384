"""Every recipe in configs/ runs, except those of curricula, and measures an ensemble that does not teach."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodistill.candidates import mine
from retrodistill.recipes import run_recipe
from retrodistill.runs import write_run

pytestmark = pytest.mark.slow

NAMES = ["bm25", "teacher", "ensemble", "control", "student"]
FORMS = {  # systems of recipes whose student has several forms
    "colbert-crisp": [*NAMES[:4], "unclustered", "pooled", "student"],
    "colbert-small": [*NAMES[:4], "unclustered", "pooled", "student"],
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


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_recipe_measures_the_systems_that_it_promises(path, tiny, tiny_folder, small_recipe, tmp_path):
    write_run(mine(tiny, "train", ["bm25"], 10), tmp_path / "teacher.run")
    results = run_recipe(small_recipe(path, tiny_folder, tmp_path / "teacher.run"), tmp_path / "out")
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
