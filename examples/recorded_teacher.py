"""A run file as the teacher: only its scores are needed, not the model or its API.

The default is the run that distill_from_ensemble.py writes; any .run, .trec, .parquet, or .jsonl file works. It takes
minutes on two cores.
"""

import sys

import retrodistill as rd


def main(
    run: str = "out/example/target.run",
    source: str = "demo",
    encoder: str = "dense:all-MiniLM-L6-v2",
    out: str = "out/example",
) -> dict[str, dict[str, float]]:
    """Distill from a TREC, Parquet, or JSONL file."""
    collection = rd.load_collection(source)
    student = rd.distill(
        collection,
        f"run:{run}",
        student="static",
        objective=["kl", "leaf"],
        document_encoder=encoder,
        out=f"{out}/recorded",
    )
    index = rd.build_index(collection, documents=encoder, queries=student)
    result = rd.evaluate({"teacher": encoder, "student": index}, collection, "test")
    print(result)
    return result.means


if __name__ == "__main__":
    main(*sys.argv[1:])
