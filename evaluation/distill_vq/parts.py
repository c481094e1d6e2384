"""Measure what it costs to learn a large corpus in parts, on one that can also be learned as a whole.

    python evaluation/distill_vq/parts.py out/debian/collection

More than 262,144 documents are learned in parts: a training query is searched in one of them, and held-out queries rank
one of them. Here a part has at most as many documents as --parts says. All quantizers start from the same OPQ. The
collection of the default is made by ``evaluation/benchmarks/debian.py``. parts.json gets nDCG@10 on the test queries,
for learned codes and, with --queries, for a learned map of the queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from curve import HERE, LEARNED, keep, read

from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.indexes.learned import texts_to_learn_from
from retrodistill.quantizers import QuantizerSettings, factory_for, learn_quantizer, learning, start_index
from retrodistill.runs.run import Run


def main() -> None:
    """Measure the missing points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", nargs="?", default="out/debian/collection")
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2")
    parser.add_argument("--parts", type=int, nargs="+", default=[10_000, 20_000, 2**18])
    parser.add_argument("--bytes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--queries", action="store_true", help="learn a map of the queries, too")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    collection, encoder = load_collection(options.collection), load_encoder(options.model)
    texts, test, ids = texts_to_learn_from(collection), collection.split("test"), collection.documents.ids
    documents = embed(encoder, collection.documents.column, "document")
    asked, tests = (embed(encoder, queries.texts, "query") for queries in (texts.texts, test))
    relevance = collection.relevance("test").to_dict()

    def ndcg(index: Any, query_map: np.ndarray | None = None) -> float:
        mapped = tests if query_map is None else tests @ query_map.T
        scores, rows = index.search(np.ascontiguousarray(mapped), 10)
        return means(evaluate_run(Run.from_matrix(test.ids, ids, rows, scores), relevance, ["ndcg@10"]))["ndcg@10"]

    file, name = options.out / "parts.json", "distilled-queries" if options.queries else "distilled"
    start = start_index(factory_for(options.bytes, documents.shape[1]), documents)
    keep(file, "opq", {"ndcg": ndcg(start)})
    for documents_per_part in options.parts:
        key = f"{name}/{documents_per_part}"
        if key in read(file):
            continue
        learning.MOST_HELD = documents_per_part
        settings = QuantizerSettings(steps=options.steps, **LEARNED[name])
        learned = learn_quantizer(documents, asked, start, settings, sources=texts.sources)
        keep(file, key, {"ndcg": ndcg(learned.index, learned.query_map), "agreement": learned.agreement})


if __name__ == "__main__":
    main()
