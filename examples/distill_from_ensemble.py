"""Score candidates by several teachers, fuse the scores, and let the fused run teach a static query encoder.

Minutes on two cores; all examples share the embeddings of the corpus, which the first of them makes.
"""

import sys

import retrodistill as rd


def main(source: str = "demo", space: str = "dense:all-MiniLM-L6-v2", out: str = "out/example") -> rd.Run:
    """Everything between the stages is a run, so each of them can be written, read and replaced."""
    collection = rd.load_collection(source)
    pool = rd.mine(collection, "auto", ["bm25", space], depth=50, random=20)
    scores = rd.score(collection, pool, ["bm25", space])
    target = rd.fuse(scores, weights=[0.3, 0.7], method="zscore-per-query")
    rd.write_run(target, f"{out}/target.run")
    student = rd.distill(
        collection, target, student="static", objective=["kl", "leaf"], document_encoder=space, out=f"{out}/fused"
    )
    index = rd.build_index(collection, documents=space, queries=student)
    print(rd.evaluate({"bm25": "bm25", "teacher": space, "student": index}, collection, "test"))
    return target


if __name__ == "__main__":
    main(*sys.argv[1:])
