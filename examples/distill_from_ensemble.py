"""Score candidates with two teachers, fuse the scores, and distill a static query encoder from the fused run.

It takes minutes on two cores. The first example that you run computes the corpus embeddings; the others reuse them.
"""

import sys

import retrodistill as rd


def main(source: str = "demo", encoder: str = "dense:all-MiniLM-L6-v2", out: str = "out/example") -> rd.Run:
    """The stages exchange runs, so you can save the result of each stage or replace it with your own."""
    collection = rd.load_collection(source)
    pool = rd.mine(collection, "auto", ["bm25", encoder], depth=50, random=20)
    scores = rd.score(collection, pool, ["bm25", encoder])
    target = rd.fuse(scores, weights=[0.3, 0.7], method="zscore-per-query")
    rd.write_run(target, f"{out}/target.run")
    student = rd.distill(
        collection, target, student="static", objective=["kl", "leaf"], document_encoder=encoder, out=f"{out}/fused"
    )
    index = rd.build_index(collection, documents=encoder, queries=student)
    print(rd.evaluate({"bm25": "bm25", "teacher": encoder, "student": index}, collection, "test"))
    return target


if __name__ == "__main__":
    main(*sys.argv[1:])
