"""Evaluation of a run, and exact search with evaluation, against beir on the same results and vectors.

python evaluation/benchmarks/evaluation.py [--queries 1000 10000] [--depth 1000] [--documents 100000] [--threads 1]

Measures are nDCG, MAP, recall, and precision at 1, 3, 5, 10, 100, and 1,000. Each side gets the run in its own form: a
dictionary of dictionaries, or a `Run`. Figures must be equal to the five digits that beir gives. Search takes stored
vectors on both sides, includes making the run, and ends with the same evaluation. beir's classes that search with
FAISS cannot be instantiated; `DenseRetrievalExactSearch` can.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from racing import Race, Timed, in_turn, parser, timed, use_threads, versions

from retrodistill.encoders.vectors import exact_search, normalized
from retrodistill.evaluation import evaluate_run, means
from retrodistill.runs.run import Run

CUTOFFS = [1, 3, 5, 10, 100, 1000]
NAMES = {"NDCG": "ndcg", "MAP": "map", "Recall": "recall", "P": "precision"}
DIMENSION, SEARCHED = 384, 1000  # of vectors; queries


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--queries", type=int, nargs="+", default=[1000, 10_000])
    options.add_argument("--depth", type=int, default=1000)
    options.add_argument("--documents", type=int, default=100_000)
    given = options.parse_args()
    use_threads(given.threads)
    race = Race("evaluation", given, versions("beir", "pytrec_eval-terrier", "numpy", "pyarrow", "torch", "faiss-cpu"))
    generator = np.random.default_rng(0)
    ids = [f"d{row}" for row in range(given.documents)]
    for count in given.queries:
        rows = np.array([generator.choice(given.documents, given.depth, replace=False) for _ in range(count)])
        scores = -np.sort(-generator.standard_normal((count, given.depth)), axis=1)
        queries = [f"q{row}" for row in range(count)]
        run, qrels = Run.from_matrix(queries, ids, rows, scores), judgments(generator, queries, rows, ids)
        sides = [functools.partial(each, qrels, of) for each, of in ((by_beir, run.to_dict()), (by_ours, run))]
        finish(race, f"evaluation, {count:,} queries x {given.depth:,} documents", sides, given.repeats)
    queries = ids[:SEARCHED]  # beir leaves out the document with the query's id, and so does evaluate_run
    documents = normalized(generator.standard_normal((given.documents, DIMENSION), dtype=np.float32))
    vectors = normalized(documents[:SEARCHED] + generator.standard_normal((SEARCHED, DIMENSION), dtype=np.float32) / 10)
    qrels = judgments(generator, queries, generator.integers(0, given.documents, (SEARCHED, 20)), ids)
    sides = [
        functools.partial(each, qrels, vectors, documents, ids, given.depth)
        for each in (search_by_beir, search_by_ours)
    ]
    name = f"exact search and evaluation, {SEARCHED:,} queries x {given.documents:,} documents"
    finish(race, name, sides, min(given.repeats, 3))


def finish(race: Race, case: str, sides: list, repeats: int) -> None:
    """Measure both sides, compare their figures, and add the row."""
    (theirs, ours), (expected, found) = in_turn(sides, repeats)
    for measure, value in expected.items():
        if abs(found[measure] - value) > 1.01e-5:
            raise SystemExit(f"{case}: {measure} is {found[measure]:.6f}, beir's {value}")
    race.add(case, "beir", theirs, ours, f"{len(expected)} equal figures")


def judgments(generator: np.random.Generator, queries: list[str], rows: np.ndarray, ids: list[str]) -> dict:
    """Grades from 0 to 3 for ten of each query's documents."""
    chosen = [generator.choice(np.unique(of), 10, replace=False) for of in rows]
    grades = generator.integers(0, 4, (len(queries), 10)).tolist()
    return {
        query: {ids[row]: grade for row, grade in zip(places.tolist(), values, strict=True)}
        for query, places, values in zip(queries, chosen, grades, strict=True)
    }


def by_beir(qrels: dict, results: dict) -> Timed:
    """Means of beir's evaluation under our names."""
    seconds, parts = timed(EvaluateRetrieval.evaluate, qrels, results, CUTOFFS)
    return seconds, {_name(name): value for part in parts for name, value in part.items()}


def by_ours(qrels: dict, run: Run) -> Timed:
    """Means of our evaluation; a new `Run`, so that nothing is kept from the last time."""
    measures = [f"{name}@{k}" for name in NAMES.values() for k in CUTOFFS]
    return timed(lambda: means(evaluate_run(Run(run.table), qrels, measures)))


def search_by_beir(qrels: dict, queries: np.ndarray, documents: np.ndarray, ids: list[str], k: int) -> Timed:
    """Exact search and evaluation by beir, with a model that returns stored vectors."""
    model = DenseRetrievalExactSearch(Stored(queries, documents), show_progress_bar=False)
    # Texts of equal length, so that beir keeps their order.
    corpus, texts = {name: {"title": "", "text": ""} for name in ids}, dict.fromkeys(qrels, "")

    def search() -> tuple:
        retriever = EvaluateRetrieval(model, k_values=[k], score_function="dot")
        return EvaluateRetrieval.evaluate(qrels, retriever.retrieve(corpus, texts), CUTOFFS)

    seconds, parts = timed(search)
    return seconds, {_name(name): value for part in parts for name, value in part.items()}


def search_by_ours(qrels: dict, queries: np.ndarray, documents: np.ndarray, ids: list[str], k: int) -> Timed:
    """Exact search and evaluation by retrodistill; one more document, for the query's own."""

    def search() -> dict[str, float]:
        rows, scores = exact_search(queries, documents, k + 1)
        run = Run.from_matrix(list(qrels), ids, rows, scores)
        return means(evaluate_run(run, qrels, [f"{name}@{cut}" for name in NAMES.values() for cut in CUTOFFS]))

    return timed(search)


class Stored:
    """A model of beir whose vectors are at hand."""

    def __init__(self, queries: np.ndarray, documents: np.ndarray) -> None:
        self.queries, self.documents, self.start = torch.from_numpy(queries), torch.from_numpy(documents), 0

    def encode_queries(self, queries: list[str], **_: Any) -> torch.Tensor:
        """All queries."""
        return self.queries

    def encode_corpus(self, corpus: list[dict], **_: Any) -> torch.Tensor:
        """The next documents."""
        self.start += len(corpus)
        return self.documents[self.start - len(corpus) : self.start]


def _name(name: str) -> str:
    measure, cutoff = name.split("@")
    return f"{NAMES[measure]}@{cutoff}"


if __name__ == "__main__":
    main()
