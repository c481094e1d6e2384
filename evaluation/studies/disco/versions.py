"""Measure what a teacher can read in the place of raw conversations, on the training conversations of `make.py`.

    python evaluation/studies/disco/versions.py DATA/NAME

Prints nDCG@10 and recall@100 of BM25, MiniLM, and both on the judged turns of the training conversations, for each
version of the queries and for fusions of several.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from make import JUDGED_TRAINING

from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.conversations import Conversations, Turn, load_conversations
from retrodistill.evaluation import evaluate_run, means
from retrodistill.rankers.bm25 import BM25Ranker
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.loading import load_ranker
from retrodistill.rankers.rewritten import RewrittenRanker
from retrodistill.runs.run import Run

MEASURES = ("nDCG@10", "R@100")
FEEDBACK = 3  # documents whose words extend an utterance


def main() -> None:
    """Print the quality of every version of the training queries, and of fusions of several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    measure(parser.parse_args().collection)


def measure(folder: Path) -> None:
    """Print a table of one collection."""
    collection, path = load_collection(folder), folder / "turns.jsonl"
    grades = {row.pop("query"): row for row in map(json.loads, (folder / JUDGED_TRAINING).read_text().splitlines())}
    conversations, documents = load_conversations(path), collection.documents
    queries = conversations.utterances.select(list(grades))
    members = {"BM25": BM25Ranker("").of(collection), "MiniLM": load_ranker("dense:all-MiniLM-L6-v2")}
    weights = {"BM25": 0.3, "MiniLM": 0.7}
    ensemble = Ensemble(list(members.values()), list(weights.values()))
    versions = {
        "raw": conversations.raw,
        "raw, without responses": load_conversations(path, responses=False).raw,
        "utterances": conversations.utterances,
        "utterances, each with the one before": load_conversations(path, history=1, responses=False).raw,
        **{f"expansions, {words} words": conversations.expansions(documents.column, words) for words in (3, 5, 10)},
        "feedback, 3 words": _feedback(ensemble.search(queries, collection, FEEDBACK), queries, collection),
    }
    several = [
        ["expansions, 3 words", "utterances"],
        ["expansions, 5 words", "utterances"],
        ["feedback, 3 words", "utterances"],
        ["utterances, each with the one before", "utterances"],
        ["expansions, 3 words", "feedback, 3 words", "utterances"],
    ]
    print(f"{len(queries)} turns; nDCG@10 / recall@100")
    print(f"{'':75} {'BM25':15} {'MiniLM':15} .3 BM25 + .7 MiniLM")
    for names in [*([name] for name in versions), *several]:
        cells = []
        for chosen in (["BM25"], ["MiniLM"], ["BM25", "MiniLM"]):
            pairs = [(name, version) for name in chosen for version in names]
            rankers = [RewrittenRanker(members[name], versions[version], version) for name, version in pairs]
            ranker = Ensemble(rankers, [weights[name] for name, _ in pairs]) if len(rankers) > 1 else rankers[0]
            found = means(evaluate_run(ranker.search(queries, collection, 1000), grades, MEASURES))
            cells.append(" / ".join(f"{value:.3f}" for value in found.values()))
        print(f"{' + '.join(names):75} {cells[0]:15} {cells[1]:15} {cells[2]}", flush=True)


def _feedback(best: Run, queries: Texts, collection: Collection) -> Texts:
    """Each query with the most telling words of its best documents, the best of which counts most."""
    documents = {query: ids for query, ids, _ in best.top(FEEDBACK)}
    turns = []
    for query, text in queries.items():
        said = [part for id_ in reversed(documents[query]) for part in (collection.documents[id_], "")]
        turns.append(Turn(query, 1, text, query_id=query, history=tuple(said)))
    return Conversations.from_turns(turns).expansions(collection.documents.column)


if __name__ == "__main__":
    main()
