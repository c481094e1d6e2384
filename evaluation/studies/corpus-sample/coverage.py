"""Share of the teacher's best documents that are among the candidates of its sources.

    python evaluation/studies/corpus-sample/coverage.py FOLDER [--queries 400]

The teacher is 0.3 BM25 + 0.7 MiniLM over the whole corpus; the sources are its members. Queries are training queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from retrodistill.data import load_collection
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.runs.run import top_k

BEST, DEPTHS = (10, 100), (100, 200)


def main() -> None:
    """Print a line per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a collection in BEIR's layout")
    parser.add_argument("--queries", type=int, default=400)
    given = parser.parse_args()
    collection = load_collection(given.folder)
    queries = collection.split("train")
    queries = queries.select(queries.ids[: given.queries])
    sources = [load_ranker(name) for name in ("bm25", "dense:all-MiniLM-L6-v2")]
    scores = Ensemble(sources, [0.3, 0.7]).corpus_scores(queries, collection)
    best = np.concatenate([top_k(block, max(BEST)) for block in scores.blocks(np.arange(len(queries)))])
    for depth in DEPTHS:
        found = np.zeros((len(queries), len(collection.documents)), dtype=bool)
        for source in sources:
            found[source.search(queries, collection, depth).positions(queries, collection.documents)] = True
        shares = [f"{np.take_along_axis(found, best[:, :size], axis=1).mean():.1%} of the best {size}" for size in BEST]
        print(f"{depth} of each source: {found.sum(axis=1).mean():.0f} candidates with {' and '.join(shares)}")


if __name__ == "__main__":
    main()
