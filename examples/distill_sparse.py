"""A sparse student whose queries need no model, with document terms learned from BM25 and a dense model."""

import sys

import retrodistill as rd
from retrodistill.recipes import parse_recipe


def main(source: str = "demo", model: str = "all-MiniLM-L6-v2", out: str = "out/sparse") -> dict[str, float]:
    """Add terms to BM25's with a learned head on the frozen transformer, and search an inverted index."""
    stage = {
        "objectives": {"name": "kl", "target_std": 1.72, "student_temperature": 1.2},
        "train": "head",
        "texts": {"sentences": 1},
        "candidates": {"depth": 200},
        "groups": {"random": 6},
        "regularizers": [{"name": "flops", "weight": 0.01}],
        "training": {"max_steps": 300, "batch_size": 32, "learning_rate": 4e-3, "max_gradient_norm": 0},
    }
    student = {"model": f"sparse:{model}", "queries": "inference-free", "lexical_terms": True, "stages": [stage]}
    teacher = [{"model": "bm25", "weight": 0.3}, {"model": f"dense:{model}", "weight": 0.7}]
    recipe = {"name": "sparse", "collection": source, "document_encoder": f"dense:{model}", "teacher": teacher}
    results = rd.run_recipe(parse_recipe({**recipe, "students": {"student": student}}), out)
    print(rd.load_index(f"{out}/indexes/student").search("a question", k=3).to_dict())
    return {system.name: system.ndcg10 or 0.0 for system in results.systems}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
