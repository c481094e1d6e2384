"""Other libraries in an environment of their own (peers.sh); the benchmarks call them through `racing.Child`."""

from __future__ import annotations

import itertools
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from racing import Timed, serve, timed

_loaded: dict[str, Any] = {}


def versions(packages: list[str]) -> dict[str, str]:
    """Versions of packages of this environment."""
    return {package: metadata.version(package) for package in packages}


def model2vec_load(tokenizer: str, table: np.ndarray) -> None:
    """Make a static model of a tokenizer file and a (vocabulary, dimensions) table."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    _loaded["model2vec"] = StaticModel(table, Tokenizer.from_file(tokenizer), normalize=True, max_length=None)


def model2vec_encode(texts: list[str], one_by_one: bool) -> Timed:
    """Encode all texts at once, or each in a call of its own."""
    encode = _loaded["model2vec"].encode
    return timed(lambda: np.stack([encode(text) for text in texts]) if one_by_one else encode(texts))


def plaid_build(folder: str, vectors: np.ndarray, bounds: np.ndarray, bits: int) -> Timed:
    """Build an index of documents' token vectors unless the folder has one, and load it."""
    from fast_plaid.search import FastPlaid

    built = Path(folder).exists()
    index = _loaded["plaid"] = FastPlaid(index=folder, device="cpu")
    if built:
        return 0.0, None
    seconds, _ = timed(index.create, documents_embeddings=_ragged(vectors, bounds), nbits=bits, seed=42)
    return seconds, None


def plaid_search(vectors: np.ndarray, bounds: np.ndarray, k: int, lists: int, full: int, one_by_one: bool) -> Timed:
    """(q, k) rows of the documents found for queries' token vectors, searched at once or each in a call of its own."""
    index, queries = _loaded["plaid"], _ragged(vectors, bounds)
    options = {"top_k": k, "n_ivf_probe": lists, "n_full_scores": full, "show_progress": False}

    def search() -> list:
        if one_by_one:
            return [index.search([query], **options)[0] for query in queries]
        return index.search(queries, **options)

    seconds, found = timed(search)
    rows = [[row for row, _ in ranked] + [-1] * (k - len(ranked)) for ranked in found]
    return seconds, np.array(rows)


def _ragged(vectors: np.ndarray, bounds: np.ndarray) -> list:
    import torch

    return [torch.from_numpy(vectors[start:stop]) for start, stop in itertools.pairwise(bounds)]


def seismic_build(indices: np.ndarray, data: np.ndarray, indptr: np.ndarray, terms: int) -> Timed:
    """Index CSR rows of weights."""
    import seismic

    dataset = seismic.SeismicDataset(dim=terms)
    names = [str(row) for row in range(len(indptr) - 1)]
    dataset.add_documents_by_id(names, indices.astype(np.int64), data, indptr.astype(np.int64))
    seconds, _loaded["seismic"] = timed(seismic.SeismicIndex.build_from_dataset, dataset)
    return seconds, None


def seismic_search(indices: np.ndarray, data: np.ndarray, indptr: np.ndarray, k: int, cut: int, factor: float) -> Timed:
    """(q, k) rows of the documents found for CSR rows of queries, one after the other."""
    import seismic

    index, kind = _loaded["seismic"], str(seismic.get_seismic_string())
    queries = [
        (indices[start:stop].astype(np.int64).astype(kind), data[start:stop])
        for start, stop in itertools.pairwise(indptr)
    ]

    def search() -> list:
        return [
            index.search(
                query_id="", query_components=terms, query_values=weights, k=k, query_cut=cut, heap_factor=factor
            )
            for terms, weights in queries
        ]

    seconds, found = timed(search)
    return seconds, np.array([[int(row) for _, _, row in ranked] + [-1] * (k - len(ranked)) for ranked in found])


if __name__ == "__main__":
    serve({name: value for name, value in list(globals().items()) if callable(value)})
