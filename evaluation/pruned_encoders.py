"""Measure pruned encoders before any training: a Markdown table per collection.

    python evaluation/pruned_encoders.py COLLECTION... [--model all-MiniLM-L6-v2] [--shares 0.75 0.5 0.25]

A share of the attention heads and of the feed-forward units of each layer is kept, by the activations on training
queries and titles. Test queries are encoded by the pruned model, documents by the whole one. With `--split train`,
these are every fourth training query, and pruning reads the others. The cosine is that of the two models' vectors of
the queries; overlap@10 is the share of the whole model's top 10 documents that the pruned one finds. The last rows are
models cut to their first layers. Orders in which heads and units go:

- `squares`: first what least squares on the output of a layer misses least (the package's).
- `norm`: first what has the smallest norm of activations times norm of output weights.
- `kcm`: Kernelized Convex Masking (arXiv 2303.04185), the diagonal of the convex combination of output weights, by a
  Gaussian kernel of width 1, times the norm of activations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from retrodistill.data import load_collection
from retrodistill.data.pseudo_queries import title_texts
from retrodistill.data.texts import spread
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.runs.run import Run
from retrodistill.students import dense_student
from retrodistill.students.dense import fit_map
from retrodistill.students.pruning import Inputs, least_missed, prune

_FITTED = 4096  # texts that the maps after cut models are fitted to, as in recipes


def main() -> None:
    """Print a table per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="bi-encoder to prune")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.75, 0.5, 0.25], help="shares to keep")
    parser.add_argument("--parts", nargs="+", default=["heads", "units"], help="what is removed: heads, units")
    parser.add_argument("--split", default="test", choices=["test", "train"], help="whose queries are measured")
    parser.add_argument("--orders", nargs="*", default=["squares"], choices=list(ORDERS), help="what goes first")
    parser.add_argument("--layers", type=int, nargs="*", default=[3], help="layers of models that are cut instead")
    parser.add_argument("--texts", type=int, default=1024, help="texts that pruning reads")
    args = parser.parse_args()
    for name in args.collections:
        table(name, args)


def table(name: str, args: argparse.Namespace) -> None:
    """Print the table of a collection."""
    collection, whole = load_collection(name), load_encoder(f"dense:{args.model}")
    queries, training = collection.split(args.split), collection.split("train")
    if args.split == "train":
        queries = training.select(training.ids[::4])
        training = training.select([id_ for id_ in training.ids if id_ not in queries])
    documents = embed(whole, collection.documents.texts, "document")
    wanted = embed(whole, queries.texts, "query")
    best = exact_search(wanted, documents, 10)[0]
    texts = [*training.texts, *title_texts(collection).texts]
    grades = collection.relevance(args.split).to_dict()
    grades = {id_: grades[id_] for id_ in queries.ids}

    def row(kept: str, how: str, model: Any) -> None:
        vectors = Encoder(model, "pruned").encode(queries.texts, "query")
        rows, scores = exact_search(vectors, documents, 10)
        ids = np.array(collection.documents.ids)[rows.ravel()]
        run = Run.from_arrays(np.repeat(queries.ids, rows.shape[1]), ids, scores.ravel())
        value, cosine = means(evaluate_run(run, grades, ["ndcg@10"]))["ndcg@10"], (vectors * wanted).sum(axis=1).mean()
        shared = np.mean([len({*mine} & {*theirs}) / 10 for mine, theirs in zip(rows, best, strict=True)])
        print(f"| {kept} | {how} | {cosine:.3f} | {shared:.3f} | {value:.4f} |", flush=True)

    print(f"\n| {collection.name}: kept | how | cosine | overlap@10 | nDCG@10 |\n|---|---|---:|---:|---:|")
    row("all", "", whole.model)
    sample = [Inputs(spread(texts, args.texts), whole.prompt("query"), "query")]
    for share in args.shares:
        for order in args.orders:
            for refit in (False, True):
                model = load_bi_encoder(args.model)
                with mock.patch("retrodistill.students.pruning.least_missed", ORDERS[order]):
                    prune(model, sample, refit=refit, **dict.fromkeys(args.parts, share))
                row(f"{share:.0%} of {' and '.join(args.parts)}", f"{order}{', least squares' if refit else ''}", model)
    for layers in args.layers:
        mapped = dense_student(args.model, layers=layers, mapped=True)
        row(f"{layers} layers", "", load_bi_encoder(args.model, layers=layers))
        fitted = spread(texts, _FITTED)
        fit_map(mapped, fitted, embed(whole, fitted, "query"), whole.prompt("query"))
        row(f"{layers} layers", "fitted map", mapped)


def by_norm(gram: np.ndarray, weights: np.ndarray, width: int, number: int) -> np.ndarray:
    """Those of the largest norm of activations times norm of output weights."""
    return _largest(gram.diagonal() * (weights**2).sum(axis=1), width, number)


def by_convex_masks(gram: np.ndarray, weights: np.ndarray, width: int, number: int) -> np.ndarray:
    """Those that represent the others best, times the norm of their activations."""
    squares = (weights**2).sum(axis=1)
    kernel = np.exp(-np.maximum(squares[:, None] + squares - 2 * weights @ weights.T, 0))
    combined, change = np.full_like(kernel, 1 / len(kernel)), 1.0
    while change > 0.01:
        updated = combined * np.sqrt(kernel / (kernel @ combined))
        change = abs((updated - combined).sum()) / combined.sum()
        combined = updated
    return _largest(combined.diagonal() * np.sqrt(gram.diagonal()), width, number)


def _largest(importance: np.ndarray, width: int, number: int) -> np.ndarray:
    groups = importance.reshape(-1, width).sum(axis=1)
    return np.sort(np.argsort(-groups, kind="stable")[:number])


ORDERS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "squares": least_missed,
    "norm": by_norm,
    "kcm": by_convex_masks,
}

if __name__ == "__main__":
    main()
