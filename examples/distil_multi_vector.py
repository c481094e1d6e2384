"""A ColBERT-style student with clustered vectors, beside the same without clusters and pooled after training."""

import sys

import retrodistill as rd
from retrodistill.recipe import parse_recipe


def main(
    source: str = "demo", model: str = "all-MiniLM-L6-v2", out: str = "out/clustered", dimension: str = "128"
) -> dict[str, float]:
    """Learn the projection of frozen tokens from BM25; gives the bytes a document takes in each index."""
    stage = {
        "objectives": {"name": "kl", "student_temperature": 0.02},
        "towers": "head",
        "texts": {"sentences": 0},
        "candidates": {"depth": "all"},
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3},
    }
    student = {"model": f"multi-vector:{model}", "dimension": int(dimension), "clusters": "C8x32", "stages": [stage]}
    recipe = {"name": "clustered", "collection": source, "space": f"dense:{model}", "teacher": "bm25"}
    results = rd.run_recipe(parse_recipe({**recipe, "students": {"student": student}}), out)
    names = ("unclustered", "pooled", "student")
    return {name: results.system(name).bytes_per_document or 0.0 for name in names}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
