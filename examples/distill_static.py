"""A static query encoder for documents encoded by MiniLM: distill without labels, index, search, and evaluate.

It takes minutes on two cores. The first example that you run computes the corpus embeddings; the others reuse them.
"""

import sys

import retrodistill as rd
from retrodistill.indexes import FaissIndex


def main(source: str = "demo", encoder: str = "dense:all-MiniLM-L6-v2", out: str = "out/example") -> FaissIndex:
    """Distill on queries, titles, and sentences of the collection; document vectors do not change."""
    collection = rd.load_collection(source)
    student = rd.distill(
        collection, encoder, student="static", objective="leaf", document_encoder=encoder, out=f"{out}/student"
    )
    index = rd.build_index(collection, documents=encoder, queries=student, factory="Flat")
    index.save(f"{out}/index")
    print(index.search(collection.queries.texts[0], k=3).to_dict())
    print(rd.evaluate({"bm25": "bm25", "teacher": encoder, "student": index}, collection, "test"))
    return index


if __name__ == "__main__":
    main(*sys.argv[1:])
