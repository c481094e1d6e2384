"""Record a stand-in for a language model: `python evaluation/studies/judges/make.py FOLDER... --data DATA`.

FOLDER is a collection in BEIR layout. The candidates of a training query are BM25's. The stand-in reads scores of an
ensemble (0.3 BM25 + 0.7 MiniLM, z-scores of a query's candidates) with normal noise that is drawn anew whenever it
reads a document. Prompts, windows, and parsing are those of `llm:FILE`; only the API and its store are left out. DATA
gets a copy of the collection, NAME_judged, with a run file for each way to ask, and `judges.json`: requests, documents
read, and how well each run agrees with the ensemble.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

import retrodistill as rd
from retrodistill.data.leaks import ExcludedQueries
from retrodistill.rankers.llm import LlmApi, LlmRanker
from retrodistill.training.texts import training_queries

NOISE = 0.3  # standard deviation, in z-scores of a query's candidates
BEST = 3  # the highest grade
CUTS = (0.0, 0.7, 1.5)  # z-scores from which a document gets grade 1, 2, and 3
ENSEMBLE = ("bm25", "dense:all-MiniLM-L6-v2")
WAYS: dict[str, dict[str, Any]] = {
    "pointwise": {"judge": "pointwise", "best": BEST},
    "pointwise-logprobs": {"judge": "pointwise", "best": BEST, "logprobs": True},
    "listwise-20": {"judge": "listwise", "window": 20, "step": 10},
    "listwise-5": {"judge": "listwise", "window": 5, "step": 2},
    "pairwise": {"judge": "pairwise"},
    # a third of each query's candidates, the first ones
    "pointwise-candidates": {"judge": "pointwise", "best": BEST},
    "listwise-20-candidates": {"judge": "listwise", "window": 20, "step": 10},
}
PROMPTS = {
    "pointwise": re.compile(r"(?s)\n\nQuery: (?P<query>.*?)\n\nPassage: (?P<document>.*)\n\nNumber:$"),
    "pairwise": re.compile(
        r"(?s)\n\nQuery: (?P<query>.*?)\n\nPassage A: (?P<first>.*)\n\nPassage B: (?P<second>.*)\n\nAnswer with"
    ),
    "listwise": re.compile(r"(?s)\n\nQuery: (?P<query>.*?)\n\n(?P<passages>\[1\] .*)\n\nQuery: .*\n\nRanking:$"),
}


def main() -> None:
    """Write a judged copy of each collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="collections in BEIR layout with training queries")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for the judged collections")
    parser.add_argument("--queries", type=int, default=1500, help="most training queries to judge")
    parser.add_argument("--depth", type=int, default=50, help="candidates of each query")
    args = parser.parse_args()
    for folder in args.folders:
        judged(folder, args.data / f"{folder.name}_judged", args.queries, args.depth)


def judged(folder: Path, place: Path, most: int, depth: int) -> None:
    """Copy a collection and record its judgments."""
    shutil.copytree(folder, place, dirs_exist_ok=True, ignore=lambda _, names: {n for n in names if "vectors" in n})
    collection = rd.load_collection(place)
    queries, _ = training_queries(collection, "train", ExcludedQueries(collection.split("test")))
    drawn = np.sort(np.random.default_rng(0).permutation(len(queries))[:most])
    queries = queries.select([queries.ids[row] for row in drawn])
    pool = rd.mine(collection, queries, ["bm25"], depth=depth)
    scores = rd.fuse(rd.score(collection, pool, list(ENSEMBLE), queries=queries), weights=[0.3, 0.7])
    ids, texts = collection.documents.ids, collection.documents.texts
    oracle = Oracle(
        dict(zip(queries.texts, queries.ids, strict=True)),
        dict(zip(reversed(texts), reversed(ids), strict=True)),  # of equal texts the first, as in mining
        scores.to_dict(),
    )
    runs = {"exact": scores, "order": pool}
    facts: dict[str, Any] = {"queries": len(queries), "pairs": len(pool)}
    for name, way in WAYS.items():
        asked = top_of(pool, 3) if name.endswith("-candidates") else pool
        runs[name] = StandIn(oracle, way).score(queries, collection, asked)
        facts[name] = {"requests": oracle.requests / len(queries), "documents read": oracle.read / len(queries)}
    for way in ("pointwise", "listwise-20"):
        runs[f"{way}-queries"] = runs[way].select(queries.ids[::3])
    for name, run in runs.items():
        rd.write_run(run, place / f"{name}.run")
        facts[name] = {**facts.get(name, {}), **agreement(run.to_dict(), oracle.scores)}
        print(f"{place.name}, {name}: {facts[name]}", flush=True)
    (place / "judges.json").write_text(json.dumps(facts, indent=1))


def top_of(pool: rd.Run, part: int) -> rd.Run:
    """The first candidates of each query, one in `part` of them."""
    ranked = pool.ranked()
    places = np.arange(len(ranked)) - ranked.bounds[ranked.query_codes]
    return ranked.filter(places < np.diff(ranked.bounds)[ranked.query_codes] / part)


class Oracle:
    """It reads a document as its score and noise, which only the prompt and the document's place in it decide."""

    def __init__(self, queries: dict[str, str], documents: dict[str, str], scores: dict[str, dict[str, float]]) -> None:
        self.queries, self.documents, self.scores = queries, documents, scores
        self.judge, self.requests, self.read = "pointwise", 0, 0

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat API's answer to a request."""
        prompt, judge = body["messages"][0]["content"], self.judge
        parts = PROMPTS[judge].search(prompt)
        if parts is None:
            raise ValueError(f"not a {judge} prompt of retrodistill/rankers/llm.py: {prompt}")
        query = parts["query"]
        if judge == "listwise":
            texts = re.split(r"\n\n\[\d+\] ", "\n\n" + parts["passages"])[1:]
        else:
            texts = [parts["document"]] if judge == "pointwise" else [parts["first"], parts["second"]]
        seed = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest())
        noise = np.random.default_rng(seed).standard_normal(len(texts))
        scores = self.scores[self.queries[query]]
        seen = [scores[self.documents[text]] + NOISE * error for text, error in zip(texts, noise, strict=True)]
        self.requests += 1
        self.read += len(texts)
        choice: dict[str, Any] = {}
        if judge == "pointwise":
            said = str(int(np.searchsorted(CUTS, seen[0])))
            if body.get("logprobs"):
                logits = [-((seen[0] - middle) ** 2) / (2 * NOISE**2) for middle in (-0.5, 0.35, 1.1, 1.9)]
                total = math.log(sum(map(math.exp, logits)))
                top = [{"token": str(grade), "logprob": logit - total} for grade, logit in enumerate(logits)]
                choice["logprobs"] = {"content": [{"token": said, "logprob": 0.0, "top_logprobs": top}]}
        elif judge == "pairwise":
            said = "A" if seen[0] >= seen[1] else "B"
        else:
            said = " > ".join(f"[{place + 1}]" for place in np.argsort([-score for score in seen], kind="stable"))
        return {"choices": [{"message": {"content": said}, **choice}]}


class StandIn(LlmRanker):
    """A judge whose answers are the oracle's, without an API."""

    def __init__(self, oracle: Oracle, way: dict[str, Any]) -> None:
        super().__init__(LlmApi.model_validate({"url": "http://localhost", "model": "stand-in", **way}), "stand-in")
        self.oracle = oracle
        oracle.judge, oracle.requests, oracle.read = self.settings.judge, 0, 0

    def _answers(self, requests: Sequence[str]) -> Iterator[Any]:
        return map(self.oracle.answer, map(json.loads, requests))


def agreement(run: dict[str, dict[str, float]], exact: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over the queries of Kendall's tau-b with the ensemble, and of the overlap of both top tens."""
    taus, overlaps = [], []
    for query, judged in run.items():
        if len(judged) < 2:
            continue
        documents = list(judged)
        own, true = ([scores[query][document] for document in documents] for scores in (run, exact))
        taus.append(float(kendalltau(own, true).statistic))
        first, second = (np.argsort([-score for score in scores], kind="stable")[:10] for scores in (own, true))
        overlaps.append(len(np.intersect1d(first, second)) / len(first))
    return {"tau": float(np.nanmean(taus)), "overlap@10": float(np.mean(overlaps))}


if __name__ == "__main__":
    main()
