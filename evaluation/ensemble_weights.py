"""Choose teachers and how to fuse them on labeled training queries: a Markdown table of nDCG@10.

    python evaluation/ensemble_weights.py COLLECTION... [--models dense:all-MiniLM-L6-v2 ...] [--fusions | --routing]

BM25 and the models are fused, with the weight of BM25 from 0 to 1 and the rest in equal parts. With --fusions, they are
fused by every method with equal weights. With --routing, each query has the weights that were best on the labeled
queries nearest to it by the first model's embeddings, itself left out; `all` are the best on all other queries, and
`oracle` the best on the query itself. Queries that are near duplicates of test queries are left out. No test query is
measured.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from retrodistill.data import load_collection
from retrodistill.data.leaks import excluded_queries, without_leaks
from retrodistill.data.texts import Texts
from retrodistill.encoders import load_encoder
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.rankers import load_ranker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.fusion import METHODS, union
from retrodistill.runs.run import Run

_WEIGHTS = [tenths / 10 for tenths in range(11)]
_FIFTHS = 5  # steps of the weights among which routing chooses
_NEIGHBORS = (10, 50, 200)
_DEPTH = 1000  # candidates of each member, as in `Ensemble.search`


def ensembles(members: list[Ranker], fusions: bool) -> Iterator[tuple[str, Ensemble]]:
    """What is compared, by the head of its column."""
    if fusions:
        methods = [method for method in METHODS if method != "agreement" or len(members) > 2]
        yield from ((method, Ensemble(members, method=method)) for method in methods)
        return
    others = len(members) - 1
    for weight in _WEIGHTS:
        yield str(weight), Ensemble(members, [weight, *[(1 - weight) / others] * others])


def routed(
    members: list[Ranker], runs: Sequence[Run], grades: Mapping[str, Mapping[str, int]], queries: Texts, model: str
) -> dict[str, float]:
    """nDCG@10 with weights per query, by the number of nearest queries that chose them."""
    shares = [
        np.array(parts) / _FIFTHS
        for parts in itertools.product(range(_FIFTHS + 1), repeat=len(members))
        if sum(parts) == _FIFTHS
    ]
    values = np.empty((len(queries), len(shares)))  # of each query with each of the weights
    for column, weights in enumerate(shares):
        kept = [place for place, weight in enumerate(weights) if weight > 0]
        ensemble = Ensemble([members[place] for place in kept], list(weights[kept]))
        found = evaluate_run(ensemble.fuse([runs[place] for place in kept]).top(10), grades, ["ndcg@10"])
        by_query = dict(zip(found["query_id"].to_pylist(), found["ndcg@10"].to_pylist(), strict=True))
        values[:, column] = [by_query[id_] for id_ in queries.ids]
    embeddings = load_encoder(model).encode(queries.texts, "query")
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :-1]  # the last is the query itself
    rows = np.arange(len(queries))
    routes = {str(count): values[nearest[:, :count]].mean(axis=1).argmax(axis=1) for count in _NEIGHBORS}
    routes |= {"all": (values.sum(axis=0) - values).argmax(axis=1), "oracle": values.argmax(axis=1)}
    return {name: float(values[rows, chosen].mean()) for name, chosen in routes.items()}


def main() -> None:
    """Print one row per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders with a split train")
    parser.add_argument("--models", nargs="+", default=["dense:all-MiniLM-L6-v2"], help="the members besides BM25")
    compared_by = parser.add_mutually_exclusive_group()
    compared_by.add_argument("--fusions", action="store_true", help="compare methods of fusion in place of weights")
    compared_by.add_argument("--routing", action="store_true", help="choose weights for each query by its neighbors")
    args = parser.parse_args()
    members = [load_ranker("bm25"), *map(load_ranker, args.models)]
    compared = dict(ensembles(members, args.fusions))
    heads = [*map(str, _NEIGHBORS), "all", "oracle"] if args.routing else list(compared)
    what = "neighbors" if args.routing else "fusion" if args.fusions else "weight of BM25"
    print(f"| {what} | queries | {' | '.join(heads)} |")
    print("|---|---:|" + "---:|" * len(heads))
    for name in args.collections:
        collection = load_collection(name)
        queries, _ = without_leaks(collection.split("train"), excluded_queries(collection))
        grades = collection.relevance("train").to_dict()
        grades = {id_: grades[id_] for id_ in queries.ids}
        pairs = union([member.search(queries, collection, _DEPTH) for member in members])
        runs = [member.score(queries, collection, pairs) for member in members]
        if args.routing:
            values = list(routed(members, runs, grades, queries, args.models[0]).values())
        else:
            fused = (ensemble.fuse(runs).top(10) for ensemble in compared.values())
            values = [means(evaluate_run(run, grades, ["ndcg@10"]))["ndcg@10"] for run in fused]
        print(f"| {collection.name} | {len(queries)} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
