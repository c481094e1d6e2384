"""Measure truncated encoders with a fitted linear map, before any training: a Markdown table per collection.

    python evaluation/fitted_maps.py COLLECTION... [--model all-MiniLM-L6-v2] [--layers 2 4]

Overlap@10 is the share of the full model's top 10 documents that the truncated one finds. It is measured on every
fourth training query. The map is fitted to the other queries and to titles.
"""

from __future__ import annotations

import argparse

import numpy as np

from retrodistill.data import load_collection
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.students import dense_student
from retrodistill.students.dense import fit_map

_TITLES = 3400


def main() -> None:
    """Print a table per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="bi-encoder to truncate")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4], help="numbers of layers to keep")
    parser.add_argument("--split", default="train", help="split whose queries are used")
    args = parser.parse_args()
    encoder = load_encoder(f"dense:{args.model}")
    for name in args.collections:
        collection = load_collection(name)
        documents = embed(encoder, collection.documents.texts, "document")
        queries = collection.split(args.split).texts
        asked = queries[::4]
        texts = [text for place, text in enumerate(queries) if place % 4] + title_texts(collection).texts[:_TITLES]
        vectors, wanted = embed(encoder, texts, "query"), exact_search(embed(encoder, asked, "query"), documents, 10)[0]
        print(f"| {collection.name}: layers | without a map | with a fitted map |\n|---:|---:|---:|")
        for layers in args.layers:
            cut, mapped = (dense_student(args.model, layers=layers, mapped=one) for one in (False, True))
            fit_map(mapped, texts, vectors, encoder.prompt("query"))
            plain, fitted = (overlap(Encoder(one, "cut"), asked, documents, wanted) for one in (cut, mapped))
            print(f"| {layers} | {plain:.3f} | {fitted:.3f} |", flush=True)


def overlap(model: Encoder, queries: list[str], documents: np.ndarray, wanted: np.ndarray) -> float:
    """Mean share of the (n, 10) wanted documents in a model's top 10."""
    found = exact_search(model.encode(queries, "query"), documents, 10)[0]
    return float(np.mean([len(set(mine) & set(theirs)) / 10 for mine, theirs in zip(found, wanted, strict=True)]))


if __name__ == "__main__":
    main()
