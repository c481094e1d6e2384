"""Measure token codecs and MUVERA with an untrained encoder: quality, bytes, latency. Resumable; see README.md.

python evaluation/multi_vector/measure.py data/scifact out/multi-vector
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrodistill.core.json_files import read_json, write_json
from retrodistill.data import load_collection
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.multi_vector import Tokens, maxsim, principal_directions, token_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.evaluation import evaluate_run, means
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.muvera import MuveraSettings
from retrodistill.indexes.tokens import TokenStore
from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.run import Run

CODECS = {
    "float32": {"codec": "float32"},
    "float16": {"codec": "float16"},
    "residual4": {"codec": "residual", "bits": 4},
    "residual2": {"codec": "residual", "bits": 2},
    "residual1": {"codec": "residual", "bits": 1},
}
MUVERA = {
    "R10 k3 p8": {"repetitions": 10, "k_sim": 3, "d_proj": 8},
    "R20 k4 p8": {"repetitions": 20, "k_sim": 4, "d_proj": 8},
    "R20 k4 p16": {"repetitions": 20, "k_sim": 4, "d_proj": 16},
    "R20 k4 p16 PQ": {"repetitions": 20, "k_sim": 4, "d_proj": 16, "factory": "PQ640x4"},
    "R40 k4 p16": {"repetitions": 40, "k_sim": 4, "d_proj": 16},
    "R40 k5 p16": {"repetitions": 40, "k_sim": 5, "d_proj": 16},
    "R40 k4 p16 to 2560": {"repetitions": 40, "k_sim": 4, "d_proj": 16, "final": 2560},
}
CANDIDATES = (100, 200, 1000)
POOL = 500  # top documents of exact search that a codec re-ranks: about a tenth of the work, the same top 10


def main() -> None:
    """Measure everything that is not recorded yet."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("collection")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--length", type=int, default=180, help="truncate documents to this many tokens")
    arguments.add_argument("--only", default="", help="measure only systems whose name starts with this")
    given = arguments.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.collection, given.out, given.length)
    bench.record("exact 128", lambda: bench.exact(128), given.only)
    for name, settings in CODECS.items():
        bench.record(f"codec {name}", lambda settings=settings: bench.codec(settings), given.only)
    for name, settings in MUVERA.items():
        bench.record(f"muvera {name}", lambda settings=settings: bench.muvera(settings), given.only)
    for width in (96, 384):
        bench.record(f"exact {width}", lambda width=width: bench.exact(width), given.only)


class Bench:
    """Token vectors, exact runs, and recorded results."""

    def __init__(self, collection: str, out: Path, length: int) -> None:
        self.collection, self.out, self.length = load_collection(collection), out, length
        self.test = self.collection.split("test")
        self.qrels = self.collection.relevance("test").to_dict()
        self._held: dict[tuple[str, int], Tokens] = {}

    def record(self, name: str, measure: Callable[[], dict], only: str) -> None:
        """Measure a system unless it is recorded, and print its results."""
        path = self.out / "results.json"
        known = read_json(path) if path.is_file() else {}
        if name not in known and name.startswith(only):
            found = measure()
            known = {**(read_json(path) if path.is_file() else {}), name: found}
            write_json(path, known)
        if name in known:
            print(name, json.dumps(known[name]), flush=True)

    def tokens(self, part: str, width: int) -> Tokens:
        """Token vectors of `documents`, `test`, or `train`, projected to a width; kept as files."""
        if (part, width) not in self._held:
            files = [self.out / f"{part}-{width}.{kind}.npy" for kind in ("vectors", "bounds")]
            if not all(file.is_file() for file in files):
                made = self._encoded(part) if width == 384 else self._projected(part, width)
                np.save(files[0], made.vectors.astype(np.float16))
                np.save(files[1], made.bounds)
            vectors, bounds = (np.load(file) for file in files)
            self._held[part, width] = Tokens(vectors.astype(np.float32), bounds)
        return self._held[part, width]

    def exact(self, width: int) -> dict:
        """Measure exact MaxSim over all documents."""
        index = self._index({"codec": "float32"}, width)
        return self._searched(index, width, keep=self.out / f"exact-{width}.parquet", timed=5)

    def codec(self, settings: dict) -> dict:
        """Measure a codec at 128 dimensions."""
        start = time.perf_counter()
        index = self._index(settings, 128)
        seconds = time.perf_counter() - start
        return {"build_s": round(seconds, 1), **self._searched(index, 128, timed=30, pool=self._exact_run())}

    def muvera(self, settings: dict) -> dict:
        """Measure MUVERA candidates, re-ranked by MaxSim over float16 tokens."""
        base = self._index({"codec": "float16"}, 128)
        queries, exact = self.tokens("test", 128), self._exact_run().top(10)
        found: dict = {}
        for number in CANDIDATES:
            chosen = MultiVectorSettings(codec="float16", muvera=MuveraSettings(candidates=number, **settings))
            start = time.perf_counter()
            candidate_index = found.get("index") and found["index"].candidate_index
            if candidate_index is not None:
                candidate_index.muvera.settings = chosen.muvera
            index = MultiVectorIndex(base.store, base.ids, base.space, None, chosen, candidate_index=candidate_index)
            if candidate_index is None:
                found["build_s"] = round(time.perf_counter() - start, 1)
                found["dimension"] = index.candidate_index.muvera.dimension
                found["encoding_bytes"] = round(index.candidate_index.nbytes / len(index))
            found["index"] = index
            measured = self._searched(index, 128, timed=50)
            proposed = [{base.ids[row] for row in rows} for rows in index.candidate_index.candidates(queries, 10)]
            hits = [len(rows & set(ids)) / 10 for rows, (_, ids, _) in zip(proposed, exact, strict=True)]
            found[str(number)] = {"in_candidates": round(float(np.mean(hits)), 4), **measured}
        found.pop("index")
        return found

    def _exact_run(self) -> Run:
        path = self.out / "exact-128.parquet"
        if not path.is_file():
            self.exact(128)
        return read_run(path)

    def _index(self, settings: dict, width: int) -> MultiVectorIndex:
        space = EmbeddingSpace("measured", width, "maxsim", "multi-vector:measured")
        documents = self.tokens("documents", width)
        ids = self.collection.documents.ids
        index = MultiVectorIndex.from_tokens(documents, ids, space, None, MultiVectorSettings(**settings))
        folder = self.out / "stores" / "-".join(str(value) for value in (*settings.values(), width))
        folder.mkdir(parents=True, exist_ok=True)
        index.store.save(folder)  # measured as in production: memory-mapped
        index.store = TokenStore.load(folder)
        return index

    def _searched(
        self, index: MultiVectorIndex, width: int, keep: Path | None = None, timed: int = 10, pool: Run | None = None
    ) -> dict:
        """Quality and latency: search over all documents, or re-ranking of a pool (200 of its documents if timed)."""
        queries = self.tokens("test", width)
        if pool is None:
            run = index.search_vectors(queries, 100 if index.candidate_index else POOL, self.test.ids)
        else:
            run = self._reranked(index, queries, pool)
        if keep is not None:
            write_run(run, keep)
        seconds = []
        for row in np.linspace(0, len(queries) - 1, timed).astype(int):
            one = queries.slice(row, row + 1)
            ranking = None if pool is None else self._rows(pool, row)[:200]
            seconds.append(min(_timed(lambda one=one, ranking=ranking: _ranked(index, one, ranking)) for _ in range(3)))
        measured = means(evaluate_run(run, self.qrels, ["ndcg@10", "recall@100"]))
        best = self._exact_run().top(10).to_dict()
        shared = [len(set(best[query]) & set(documents)) / 10 for query, documents, _ in run.top(10)]
        return {
            "exact_top10": round(float(np.mean(shared)), 4),
            **{name: round(value, 4) for name, value in measured.items()},
            "bytes_per_token": index.store.codec.bytes_per_vector,
            "bytes_per_document": round(index.bytes_per_document() or 0),
            "ms": round(1000 * float(np.median(seconds)), 1),
        }

    def _reranked(self, index: MultiVectorIndex, queries: Tokens, pool: Run) -> Run:
        """Re-rank the documents of the exact run with the index's own token vectors."""
        found = []
        for row in range(len(queries)):
            tokens = index.store.gather(self._rows(pool, row))
            found.append(maxsim(queries.slice(row, row + 1), tokens)[0])
        return pool.with_scores(np.concatenate(found)).ranked()

    def _rows(self, pool: Run, query: int) -> np.ndarray:
        documents = pool.document_ids[pool.bounds[query] : pool.bounds[query + 1]]
        return self.collection.documents.positions(documents)

    def _encoded(self, part: str) -> Tokens:
        encoder = load_encoder(token_encoder("all-MiniLM-L6-v2", document_length=self.length))
        if part != "documents":
            return encoder.encode(self.collection.split(part).texts, "query")
        blocks = []
        for start in range(0, len(self.collection.documents), 512):
            found = encoder.encode(self.collection.documents.slice(start, start + 512), "document")
            blocks += [found[row].astype(np.float16) for row in range(len(found))]
            print(f"encoded {len(blocks)} documents", flush=True)
        return Tokens.of(blocks, 384)

    def _projected(self, part: str, width: int) -> Tokens:
        """Project as `token_encoder` does: to the principal directions of document tokens, then to unit length."""
        sample = self.tokens("documents", 384).vectors
        rows = np.random.default_rng(0).choice(len(sample), min(50_000, len(sample)), replace=False)
        directions = principal_directions(sample[rows])[:width]
        whole = self.tokens(part, 384)
        vectors = np.concatenate([block @ directions.T for block in np.array_split(whole.vectors, 32)])
        return Tokens(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), whole.bounds)


def _ranked(index: MultiVectorIndex, query: Tokens, rows: np.ndarray | None) -> object:
    return index._best(query, 10) if rows is None else maxsim(query, index.store.gather(rows))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
