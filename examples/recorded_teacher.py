"""Any run file is a teacher: nothing but its scores is needed, neither the model nor its API.

By default the run that distill_from_ensemble.py leaves behind; any .run, .trec, .parquet or .jsonl will do. Minutes on
two cores.
"""

import sys

import retrodistill as rd


def main(
    run: str = "out/example/target.run",
    source: str = "demo",
    space: str = "dense:all-MiniLM-L6-v2",
    out: str = "out/example",
) -> dict[str, dict[str, float]]:
    """Distill from a TREC, Parquet or JSONL file."""
    collection = rd.load_collection(source)
    student = rd.distill(
        collection,
        f"run:{run}",
        student="static",
        objective=["kl", "leaf"],
        document_encoder=space,
        out=f"{out}/recorded",
    )
    index = rd.build_index(collection, documents=space, queries=student)
    result = rd.evaluate({"teacher": space, "student": index}, collection, "test")
    print(result)
    return result.means


if __name__ == "__main__":
    main(*sys.argv[1:])
