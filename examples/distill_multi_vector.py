"""A ColBERT-style student with clustered token vectors, compared with unclustered and pooled token vectors."""

import sys

import retrodistill as rd
from retrodistill.recipes import parse_recipe


def main(
    source: str = "demo", model: str = "all-MiniLM-L6-v2", out: str = "out/clustered", dimension: str = "128"
) -> dict[str, dict[str, float]]:
    """Train the projection of frozen token vectors on an ensemble; return quality and bytes per document by index."""
    stage = {
        "objectives": {"name": "kl", "student_temperature": 0.02},
        "train": "head",
        "texts": {"sentences": 0},
        "candidates": {"depth": 200},
        "groups": {"random": 6},
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3},
    }
    student = {
        "model": f"multi-vector:{model}",
        "dimension": int(dimension),
        "max_length": 180,
        "clusters": "C8x32",
        "stages": [stage],
    }
    teacher = [{"model": "bm25", "weight": 0.3}, {"model": f"dense:{model}", "weight": 0.7}]
    recipe = {"name": "clustered", "collection": source, "document_encoder": f"dense:{model}", "teacher": teacher}
    results = rd.run_recipe(parse_recipe({**recipe, "students": {"student": student}}), out)
    systems = {name: results.system(name) for name in ("unclustered", "pooled", "student")}
    return {
        name: {"ndcg@10": system.ndcg10 or 0.0, "bytes": system.bytes_per_document or 0.0}
        for name, system in systems.items()
    }


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
