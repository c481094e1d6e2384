"""Search of token vectors against fast-plaid, with the same vectors, at equal or better overlap with exact MaxSim.

python evaluation/benchmarks/multi_vector_peer.py [--documents 2000] [--queries 50] [--bits 4] [--threads 1]

Documents and queries have the shape of SciFact's: up to 180 and 24 token vectors of 128 dimensions, random about a few
directions of their text (maxsim.py), or those that evaluation/multi_vector/measure.py saved (--vectors FOLDER).
fast-plaid runs in the environment of the peers (peers.sh); it takes minutes to build its index, which the folder keeps.
All systems are measured in turn. Each setting of fast-plaid is compared with the fastest of our indexes whose top 10
share at least as many documents with those of exact MaxSim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from maxsim import DOCUMENT_TOKENS, QUERY_TOKENS, TOPICS, WIDTH, numpy_best, texts
from racing import Child, Race, Timed, in_turn, parser, timed, use_threads, versions

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes.multi_vector import MultiVectorIndex, MultiVectorSettings
from retrodistill.indexes.muvera import MuveraSettings

K = 10
SEARCHES = ((8, 4096), (8, 200), (32, 4096))  # lists to probe, documents to score in full; the first is the default
MUVERA = {"repetitions": 20, "k_sim": 4, "d_proj": 16}
CODECS = {"float32": {"codec": "float32"}, "float16": {"codec": "float16"}, "4 bits": {"codec": "residual", "bits": 4}}
CANDIDATES = (None, 100, 200, 500)  # of MUVERA; None for exact search


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--documents", type=int, default=2000)
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--bits", type=int, default=4, help="of fast-plaid's codes (default 4)")
    options.add_argument("--exact", action="store_true", help="leave out our indexes with MUVERA and residual codes")
    options.add_argument("--folder", type=Path, default=Path("out/fast-plaid"), help="for fast-plaid's indexes")
    options.add_argument("--vectors", type=Path, help="vectors of evaluation/multi_vector/measure.py to use instead")
    given = options.parse_args()
    use_threads(given.threads)
    if given.vectors:
        documents, queries = (saved(given.vectors, part) for part in ("documents", "test"))
        documents, queries = documents.slice(0, given.documents), queries.slice(0, given.queries)
    else:
        documents, queries = made(given.documents, given.queries)
    exact = numpy_best(documents, queries)
    ours = {name: index_of(documents, settings) for name, settings in systems(given.exact).items()}
    with Child(Path(__file__).with_name("peers.py")) as peers:
        source = given.vectors.resolve().name if given.vectors else "made"
        folder = given.folder / f"{source}-{len(documents)}-{given.bits}-bits"
        folder.parent.mkdir(parents=True, exist_ok=True)
        peers("plaid_build", folder=folder.resolve(), **arrays(documents), bits=given.bits)
        race = Race("multi-vector search", given, versions("torch") | peers("versions", packages=["fast-plaid"]))
        for case, one_by_one in (("one query", True), (f"{len(queries)} queries", False)):
            theirs = [
                functools.partial(
                    peers, "plaid_search", **arrays(queries), k=K, lists=lists, full=full, one_by_one=one_by_one
                )
                for lists, full in SEARCHES
            ]
            own = [functools.partial(found, index, queries, one_by_one) for index in ours.values()]
            seconds, rows = in_turn([*theirs, *own], given.repeats)
            kept = [overlap(each, exact) for each in rows]
            for place, (lists, full) in enumerate(SEARCHES):
                able = [at for at in range(len(SEARCHES), len(rows)) if kept[at] >= kept[place]]
                best = min(able, key=lambda at: median(seconds[at]))
                name = list(ours)[best - len(SEARCHES)]
                agreement = f"overlap@10 with exact MaxSim {kept[best]:.3f} ({name}), theirs {kept[place]:.3f}"
                peer = f"fast-plaid, {given.bits} bits, {lists} lists, {full} full scores"
                work = len(queries) if one_by_one else 1
                race.add(f"{case}, {len(documents):,} documents", peer, seconds[place], seconds[best], agreement, work)


def systems(exact: bool) -> dict[str, MultiVectorSettings]:
    """Our indexes by name, or those that find what exact MaxSim finds."""
    made = {}
    for codec, settings in CODECS.items():
        if exact and settings["codec"] == "residual":
            continue
        for number in (None,) if exact else CANDIDATES:
            muvera = None if number is None else MuveraSettings(candidates=number, **MUVERA)
            name = f"{codec}, {'all documents' if number is None else f'MUVERA, {number} candidates'}"
            made[name] = MultiVectorSettings(**settings, muvera=muvera)
    return made


def made(documents: int, queries: int) -> tuple[Tokens, Tokens]:
    """Random token vectors in the shape of SciFact's."""
    generator = np.random.default_rng(0)
    full = generator.random(documents) < 0.93
    lengths = np.where(full, DOCUMENT_TOKENS, generator.integers(20, DOCUMENT_TOKENS, documents))
    directions = generator.standard_normal((TOPICS, WIDTH), dtype=np.float32)
    return texts(generator, directions, lengths), texts(generator, directions, np.full(queries, QUERY_TOKENS))


def saved(folder: Path, part: str) -> Tokens:
    """Token vectors that measure.py saved."""
    vectors, bounds = (np.load(folder / f"{part}-{WIDTH}.{kind}.npy") for kind in ("vectors", "bounds"))
    return Tokens(vectors.astype(np.float32), bounds)


def index_of(documents: Tokens, settings: MultiVectorSettings) -> MultiVectorIndex:
    """An index whose ids are rows."""
    space = EmbeddingSpace("measured", WIDTH, "maxsim", "multi-vector:measured")
    return MultiVectorIndex.from_tokens(documents, [str(row) for row in range(len(documents))], space, None, settings)


def arrays(tokens: Tokens) -> dict[str, np.ndarray]:
    """The vectors as peers.py takes them."""
    return {"vectors": tokens.vectors, "bounds": tokens.bounds}


def found(index: MultiVectorIndex, queries: Tokens, one_by_one: bool) -> Timed:
    """(q, K) rows that our index finds, for all queries at once or each in a call of its own."""
    names = [str(row) for row in range(len(queries))]
    parts = [(row, row + 1) for row in range(len(queries))] if one_by_one else [(0, len(queries))]
    search: Callable = index.search_vectors
    seconds, runs = timed(lambda: [search(queries.slice(*part), K, names[slice(*part)]) for part in parts])
    return seconds, np.concatenate([run.document_ids.astype(np.int64) for run in runs]).reshape(len(queries), K)


def overlap(rows: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact top K that was found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


if __name__ == "__main__":
    main()
