"""A re-ranker (tk, prett, or cross-encoder) for BM25's top 100 documents, taught by a stronger ranker."""

import sys

import retrodistill as rd


def main(
    source: str = "demo",
    teacher: str = "dense:all-MiniLM-L6-v2",
    student: str = "tk:all-MiniLM-L6-v2",
    out: str = "out/example",
) -> dict[str, dict[str, float]]:
    """Distill and evaluate it. The kinds tk and prett store document states in advance; a cross-encoder does not."""
    collection = rd.load_collection(source)
    folder, kind = f"{out}/re-ranker", student.partition(":")[0]
    rd.distill(
        collection,
        teacher,
        student=student,
        document_encoder=teacher,
        objective="margin-mse-all",
        training={"epochs": 1, "batch_size": 16, "learning_rate": 1e-3 if kind == "tk" else 5e-5},
        out=folder,
    )
    systems = {"bm25": "bm25", "teacher": f"rerank:{teacher}@bm25", "student": f"rerank:{folder}@bm25"}
    result = rd.evaluate(systems, collection, "test")
    print(result)
    return result.means


if __name__ == "__main__":
    main(*sys.argv[1:])
