"""Measure quality, size, and latency of inverted indexes against exact sparse search: a Markdown table per collection.

    python evaluation/inverted.py COLLECTION... [--model sparse:NAME] [--split test]

By default the weights are BM25's, so the exact index must reproduce BM25's own nDCG@10. ``of exact`` is the share of
the exact index's top 10 documents that are found. Times are medians over single queries on one thread, without
encoding. Seismic has rows if its package is installed (``pip install 'retrodistill[seismic]'``). It clusters at random,
so its rows differ a little from run to run.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections import Counter

import numpy as np
import Stemmer
from scipy.sparse import csc_array, csr_array

from retrodistill.data import Collection, load_collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.evaluation import evaluate_run, means, query_latency
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings
from retrodistill.rankers.bm25 import load_bm25s
from retrodistill.runs.agreement import overlap

EXACT = InvertedSettings(bits=None)
KINDS = [
    EXACT,
    InvertedSettings(bits=8),
    *(InvertedSettings(bits=8, prune=most) for most in (96, 64, 32)),
]
APPROXIMATE = [
    InvertedSettings(backend="seismic", query_cut=cut, heap_factor=factor)
    for cut, factor in ((3, 0.6), (5, 0.7), (10, 0.8), (20, 1.0))
]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="bm25", help="bm25, or a sparse encoder for both sides")
    parser.add_argument("--split", default="test", help="split whose queries are searched")
    arguments = parser.parse_args()
    for source in arguments.collections:
        collection = load_collection(source)
        documents, queries = bm25_vectors(collection, arguments.split)
        if arguments.model != "bm25":
            encoder = load_encoder(arguments.model)
            documents = embed(encoder, collection.documents.texts, "document")
            queries = embed(encoder, collection.split(arguments.split).texts, "query")
        print(table(collection, arguments.split, documents, queries, arguments.model))


def table(collection: Collection, split: str, documents: csr_array, queries: csr_array, model: str) -> str:
    """Table with a row per kind of index."""
    texts, qrels = collection.split(split), collection.relevance(split).to_dict()
    space = EmbeddingSpace("of-this-table", documents.shape[1], "dot", model)
    rows = {text: queries[[place]] for place, text in enumerate(texts.texts)}
    asked = list(rows)
    lines = [
        f"\n{collection.name}, {len(documents.indptr) - 1} documents, {model}, {len(texts)} queries of "
        f"{queries.nnz / len(texts):.1f} terms\n",
        "| index | nDCG@10 | of exact | bytes/document | terms/document | ms/query |",
        "|---|---|---|---|---|---|",
    ]
    exact = None
    for settings in KINDS + (APPROXIMATE if importlib.util.find_spec("seismic") else []):
        index = InvertedIndex.from_csr(collection.documents.ids, documents, space, settings=settings)
        run = index.search_vectors(queries, 100, texts.ids)
        exact = exact or run

        def respond(text: str, index: InvertedIndex = index) -> object:
            query = rows[text]
            return index.postings.search(query.indices, query.data, 10)

        lines.append(
            f"| {_named(settings)} | {means(evaluate_run(run, qrels, ['ndcg@10']))['ndcg@10']:.4f} "
            f"| {np.mean(list(overlap(run, exact, 10).values())):.3f} | {index.bytes_per_document():.0f} "
            f"| {index.postings.matrix().nnz / len(index):.1f} | {query_latency(respond, asked)['p50']:.3f} |"
        )
    return "\n".join(lines)


def bm25_vectors(collection: Collection, split: str) -> tuple[csr_array, csr_array]:
    """BM25 as sparse vectors: documents are weighted by the scores of their terms, queries by term counts."""
    words = {"stopwords": "english", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    bm25s = load_bm25s()
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(bm25s.tokenize(collection.documents.texts, return_ids=False, **words), show_progress=False)
    arrays = index.scores["data"], index.scores["indices"], index.scores["indptr"]
    documents = csc_array(arrays, shape=(len(collection.documents), len(arrays[2]) - 1))
    asked = bm25s.tokenize(collection.split(split).texts, return_ids=False, **words)
    counts = [Counter(index.vocab_dict[term] for term in terms if term in index.vocab_dict) for terms in asked]
    bounds = np.concatenate([[0], np.cumsum([len(count) for count in counts])])
    terms = np.array([term for count in counts for term in sorted(count)])
    weights = np.array([count[term] for count in counts for term in sorted(count)], dtype=np.float32)
    return csr_array(documents), csr_array((weights, terms, bounds), shape=(len(asked), documents.shape[1]))


def _named(settings: InvertedSettings) -> str:
    if settings.backend == "seismic":
        return f"seismic, query_cut {settings.query_cut}, heap_factor {settings.heap_factor}"
    kept = f", {settings.prune} terms" if settings.prune else ""
    return f"exact, {f'{settings.bits} bits' if settings.bits else 'float32'}{kept}"


if __name__ == "__main__":
    main()
