"""Choose teachers and how to fuse them on labeled training queries: a Markdown table of nDCG@10.

    python evaluation/ensemble_weights.py COLLECTION... [--models dense:all-MiniLM-L6-v2 ...] [--fusions]

BM25 and the models are fused, with the weight of BM25 from 0 to 1 and the rest in equal parts; or, with --fusions, by
every method with equal weights. Queries that are near duplicates of test queries are left out. No test query is
measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from retrodistill.data import load_collection
from retrodistill.data.leaks import excluded_queries, without_leaks
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.rankers import load_ranker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.fusion import METHODS, union

_WEIGHTS = [tenths / 10 for tenths in range(11)]
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


def main() -> None:
    """Print one row per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders with a split train")
    parser.add_argument("--models", nargs="+", default=["dense:all-MiniLM-L6-v2"], help="the members besides BM25")
    parser.add_argument("--fusions", action="store_true", help="compare methods of fusion in place of weights")
    args = parser.parse_args()
    members = [load_ranker("bm25"), *map(load_ranker, args.models)]
    compared = dict(ensembles(members, args.fusions))
    print(f"| {'fusion' if args.fusions else 'weight of BM25'} | queries | {' | '.join(compared)} |")
    print("|---|---:|" + "---:|" * len(compared))
    for name in args.collections:
        collection = load_collection(name)
        queries, _ = without_leaks(collection.split("train"), excluded_queries(collection))
        grades = collection.relevance("train").to_dict()
        grades = {id_: grades[id_] for id_ in queries.ids}
        pairs = union([member.search(queries, collection, _DEPTH) for member in members])
        runs = [member.score(queries, collection, pairs) for member in members]
        fused = (ensemble.fuse(runs).top(10) for ensemble in compared.values())
        values = [means(evaluate_run(run, grades, ["ndcg@10"]))["ndcg@10"] for run in fused]
        print(f"| {collection.name} | {len(queries)} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
