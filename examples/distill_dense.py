"""A query encoder with exits after several layers. Choose an exit when you load it; all use the same document index."""

import sys

import retrodistill as rd
from retrodistill.recipes import parse_recipe


def main(
    source: str = "demo", model: str = "dense:all-MiniLM-L6-v2", out: str = "out/exits", exits: str = "2,4"
) -> dict[str, float]:
    """Align all exits to the vectors of the whole model, evaluate each, and search with the fastest."""
    layers = [int(layer) for layer in exits.split(",")]
    training = {"max_steps": 120, "batch_size": 32, "learning_rate": 5e-5, "warmup": 0.1}
    stage = {"objectives": "leaf", "texts": {"sentences": 1}, "exit_kl": 0.05, "training": training}
    student = {"model": model, "exits": layers, "project_exits": True, "max_length": 64, "stages": [stage]}
    recipe = {"name": "exits", "collection": source, "document_encoder": model, "students": {"student": student}}
    results = rd.run_recipe(parse_recipe(recipe), out)
    fast = rd.load_encoder(f"dense:{out}/students/student@exit-{layers[0]}")
    print(rd.load_index(f"{out}/indexes/student", fast).search("a question", k=3).to_dict())
    return {system.name: system.ndcg10 or 0.0 for system in results.systems}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
