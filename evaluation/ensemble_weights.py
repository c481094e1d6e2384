"""Choose the weight of BM25 in the ensemble on labeled training queries: a Markdown table of nDCG@10.

    python evaluation/ensemble_weights.py COLLECTION... [--model dense:all-MiniLM-L6-v2]

Queries that are near duplicates of test queries are left out. No test query is measured.
"""

from __future__ import annotations

import argparse

from retrodistill.data import load_collection
from retrodistill.data.leaks import excluded_queries, without_leaks
from retrodistill.evaluation.measures import evaluate_run, means
from retrodistill.rankers import load_ranker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.runs.fusion import union

_WEIGHTS = [tenths / 10 for tenths in range(11)]
_DEPTH = 1000  # candidates of each member, as in `Ensemble.search`


def main() -> None:
    """Print one row per collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", help="BEIR folders with a split train")
    parser.add_argument("--model", default="dense:all-MiniLM-L6-v2", help="the other member")
    args = parser.parse_args()
    members = [load_ranker("bm25"), load_ranker(args.model)]
    print(f"| weight of BM25 | queries | {' | '.join(map(str, _WEIGHTS))} |")
    print("|---|---:|" + "---:|" * len(_WEIGHTS))
    for name in args.collections:
        collection = load_collection(name)
        queries, _ = without_leaks(collection.split("train"), excluded_queries(collection))
        grades = collection.relevance("train").to_dict()
        grades = {id_: grades[id_] for id_ in queries.ids}
        pairs = union([member.search(queries, collection, _DEPTH) for member in members])
        runs = [member.score(queries, collection, pairs) for member in members]
        values = []
        for weight in _WEIGHTS:
            run = Ensemble(members, [weight, 1 - weight]).fuse(runs).top(10)
            values.append(means(evaluate_run(run, grades, ["ndcg@10"]))["ndcg@10"])
        print(f"| {collection.name} | {len(queries)} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
