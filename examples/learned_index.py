"""Sixteen bytes a document: a product quantizer learned from exact scores, beside OPQ at the same bytes.

Minutes on two cores; all examples share the embeddings of the corpus, which the first of them makes.
"""

import sys

import retrodistill as rd
from retrodistill.indexes.learned import learn_index, texts_to_learn_from
from retrodistill.quantizers import QuantizerSettings


def main(
    source: str = "demo", model: str = "dense:all-MiniLM-L6-v2", out: str = "out/learned", factory: str = "OPQ16,PQ16"
) -> dict[str, dict[str, float]]:
    """Learn from queries, titles and sentences of the collection; no label is used."""
    collection = rd.load_collection(source)
    settings = QuantizerSettings(steps=1000)
    found = learn_index(
        collection, rd.load_encoder(model), texts_to_learn_from(collection), target=factory, settings=settings
    )
    found.index.save(f"{out}/index")  # index.faiss is a plain FAISS file
    result = rd.evaluate({"exact": model, "opq": found.start, "learned": found.index}, collection, "test")
    print(result)
    return result.means


if __name__ == "__main__":
    main(*sys.argv[1:])
