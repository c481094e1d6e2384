"""Search of sparse vectors in an inverted index against a product by SciPy and against Seismic, on the same vectors.

python evaluation/benchmarks/sparse_search.py [--documents 100000] [--queries 200] [--threads 1] [--repeats 7]

Vectors have SPLADE's shape: about 120 terms per document and 30 per query of a vocabulary of 30,522, drawn by Zipf's
law; weights are gamma variates. SciPy multiplies the rows of queries by the transposed matrix in CSR form and takes the
best of the products that it stores. Seismic runs in the environment of the peers (peers.sh). Our Seismic index is
measured too if its package is installed. Overlap@10 is with the exact top 10.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from pathlib import Path

import numpy as np
from racing import Child, Race, Timed, in_turn, parser, timed, use_threads, versions
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.indexes.inverted import InvertedIndex, InvertedSettings

TERMS, K = 30_522, 10
DOCUMENT_TERMS, QUERY_TERMS = 120, 30
CUT, FACTOR = 10, 0.8  # of Seismic, our defaults


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__)
    options.add_argument("--documents", type=int, default=100_000)
    options.add_argument("--queries", type=int, default=200)
    given = options.parse_args()
    use_threads(given.threads)
    generator = np.random.default_rng(0)
    documents, queries = (
        vectors(generator, *shape) for shape in ((given.documents, DOCUMENT_TERMS), (given.queries, QUERY_TERMS))
    )
    settings = {"float32": {"bits": None}, "8 bits": {}, "Seismic": {"backend": "seismic"}}
    ours = {}
    for name, chosen in settings.items():
        with contextlib.suppress(UserError):  # Seismic's package is not installed
            ours[name] = index_of(documents, InvertedSettings(**chosen))
    transposed = csr_array(documents.T)
    with Child(Path(__file__).with_name("peers.py")) as peers:
        peers("seismic_build", **arrays(documents), terms=TERMS)
        named = versions("scipy", "numpy") | peers("versions", packages=["pyseismic-lsr"])
        race = Race("sparse search", given, named)
        for one_by_one in (True, False):
            sides = [
                functools.partial(by_scipy, queries, transposed, one_by_one),
                functools.partial(peers, "seismic_search", **arrays(queries), k=K, cut=CUT, factor=FACTOR),
                *(functools.partial(found, index, queries, one_by_one) for index in ours.values()),
            ]
            seconds, rows = in_turn(sides, given.repeats)
            kept = [overlap(each, rows[0]) for each in rows]
            case = "one query" if one_by_one else f"{given.queries} queries"
            work = given.queries if one_by_one else 1
            for peer, place in (("SciPy", 0), (f"Seismic, cut {CUT}, factor {FACTOR}", 1)):
                for at, name in enumerate(ours, 2):
                    agreement = f"overlap@10 {kept[at]:.3f}, theirs {kept[place]:.3f}"
                    race.add(f"{case}, {name}", peer, seconds[place], seconds[at], agreement, work)


def vectors(generator: np.random.Generator, count: int, terms: int) -> csr_array:
    """Rows with about this number of terms."""
    shares = 1 / np.arange(1, TERMS + 1) ** 0.9
    lengths = np.clip(generator.normal(terms, terms / 4, count).round(), 4, None).astype(np.int64)
    columns = generator.choice(TERMS, lengths.sum(), p=shares / shares.sum())
    weights = generator.gamma(2, 0.5, len(columns)).astype(np.float32)
    matrix = csr_array((weights, (np.repeat(np.arange(count), lengths), columns)), shape=(count, TERMS))
    matrix.sum_duplicates()
    return matrix


def index_of(documents: csr_array, settings: InvertedSettings) -> InvertedIndex:
    """An index whose ids are rows."""
    space = EmbeddingSpace("measured", TERMS, "dot", "sparse:measured")
    return InvertedIndex.from_csr([str(row) for row in range(documents.shape[0])], documents, space, None, settings)


def arrays(matrix: csr_array) -> dict[str, np.ndarray]:
    """The rows as peers.py takes them."""
    return {"indices": matrix.indices, "data": matrix.data, "indptr": matrix.indptr}


def by_scipy(queries: csr_array, transposed: csr_array, one_by_one: bool) -> Timed:
    """(q, K) rows of the highest products."""
    count = queries.shape[0]
    parts = [queries[row : row + 1] for row in range(count)] if one_by_one else [queries]

    def search() -> np.ndarray:
        rows = []
        for part in parts:
            products = part @ transposed
            for start, stop in itertools.pairwise(products.indptr):
                values = products.data[start:stop]
                best = np.argpartition(-values, K)[:K]
                rows.append(products.indices[start:stop][best[np.argsort(-values[best])]])
        return np.array(rows)

    return timed(search)


def found(index: InvertedIndex, queries: csr_array, one_by_one: bool) -> Timed:
    """(q, K) rows that our index finds."""
    count = queries.shape[0]
    parts = [(queries[row : row + 1], [str(row)]) for row in range(count)] if one_by_one else [(queries, None)]
    seconds, runs = timed(lambda: [index.search_vectors(part, K, names) for part, names in parts])
    return seconds, np.concatenate([run.document_ids.astype(np.int64) for run in runs]).reshape(count, K)


def overlap(rows: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact top K that was found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


if __name__ == "__main__":
    main()
