"""A static query encoder for documents that MiniLM has embedded: distill it without labels, index, search, measure.

Minutes on two cores; all examples share the embeddings of the corpus, which the first of them makes.
"""

import sys

import retrodistill as rd
from retrodistill.indexes import FaissIndex


def main(source: str = "demo", space: str = "dense:all-MiniLM-L6-v2", out: str = "out/example") -> FaissIndex:
    """Distill from queries, titles and sentences of the collection; documents stay as they are."""
    collection = rd.load_collection(source)
    student = rd.distill(
        collection, space, student="static", objective="leaf", document_encoder=space, out=f"{out}/student"
    )
    index = rd.build_index(collection, documents=space, queries=student, factory="Flat")
    index.save(f"{out}/index")
    print(index.search(collection.queries.texts[0], k=3).to_dict())
    print(rd.evaluate({"bm25": "bm25", "teacher": space, "student": index}, collection, "test"))
    return index


if __name__ == "__main__":
    main(*sys.argv[1:])
