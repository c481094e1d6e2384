"""Load on `retrodistill serve`: queries per second and latency at 1, 8 and 32 clients, for four kinds of students.

python evaluation/benchmarks/serving.py [--documents 20000] [--seconds 10] [--clients 1 8 32] [--kinds static ...]

Each kind is served by a process of its own, from an index of random documents: vectors of 384 dimensions (static as
float32, dense as int8 codes), 120 terms a document (sparse), or 120 token vectors of 128 dimensions for a tenth of the
documents (multi-vector). Queries are titles of Python's documentation, encoded by models of MiniLM's size: a token
table, MiniLM, term weights, and MiniLM's tokens. Each client sends a query when it has the answer to the last. The
clients are one asyncio process on the same machine, so their work is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sparse_search import vectors as sparse_vectors

from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.multi_vector import Tokens, token_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.vectors import normalized
from retrodistill.indexes import FaissIndex, InvertedIndex, MultiVectorIndex
from retrodistill.indexes.base import Index
from retrodistill.indexes.factory import build_faiss

MINILM, WIDTH = "all-MiniLM-L6-v2", 384
DOCUMENT_TERMS, DOCUMENT_TOKENS, TOKEN_WIDTH = 120, 120, 128
WARM_UP = 1.0  # seconds


def main() -> None:
    """Print a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--documents", type=int, default=20_000)
    options.add_argument("--seconds", type=float, default=10.0, help="of each measurement, after a second of warm-up")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    given = options.parse_args()
    texts = load_collection("demo").queries.texts
    print("| student | documents | clients | queries per second | p50 | p95 | p99 | queries per batch |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            place = Path(folder, kind)
            index = KINDS[kind](given.documents, place / "model")
            index.save(place / "index")
            with subprocess.Popen(
                [sys.executable, "-m", "retrodistill", "serve", str(place / "index"), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as server:
                try:
                    address = (server.stdout.readline() if server.stdout else "").strip()
                    for clients in given.clients:
                        row = asyncio.run(load(address, texts, clients, given.seconds))
                        print(f"| {kind} | {index.size:,} | {clients} | {' | '.join(row)} |", flush=True)
                finally:
                    server.terminate()


async def load(address: str, texts: Sequence[str], clients: int, seconds: float) -> list[str]:
    """Cells of a row: queries per second, percentiles in milliseconds, and the mean size of a batch."""
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    queries = itertools.cycle(texts)
    begin = time.perf_counter() + WARM_UP
    answers: list[tuple[float, int]] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (started := time.perf_counter()) < begin + seconds:
            body = json.dumps({"query": next(queries), "k": 10, "texts": 0}).encode()
            lines = [f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
            writer.write("\r\n".join(["POST /search HTTP/1.1", *lines]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            content = await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
            if " 200 " not in head.partition("\r\n")[0]:
                raise RuntimeError(content.decode())
            if started >= begin:
                answers.append((time.perf_counter() - started, json.loads(content)["batch"]))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    took, batches = np.array(answers).T
    percentiles = np.percentile(1000 * took, [50, 95, 99])
    return [f"{len(took) / seconds:,.0f}", *(f"{value:.1f} ms" for value in percentiles), f"{batches.mean():.1f}"]


def static(documents: int, folder: Path) -> Index:
    """A token table with random rows, and float32 vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    table = StaticEmbedding(load_bi_encoder(MINILM).tokenizer, embedding_dim=WIDTH)
    model = SentenceTransformer(modules=[table, Normalize()], similarity_fn_name="cosine", device="cpu")
    return _dense(model, f"static:{folder}", documents, "Flat")


def dense(documents: int, folder: Path) -> Index:
    """MiniLM, and vectors of int8 codes."""
    return _dense(load_bi_encoder(MINILM), f"dense:{folder}", documents, "SQ8")


def _dense(model: Any, name: str, documents: int, factory: str) -> Index:
    model.save_pretrained(name.partition(":")[2], create_model_card=False)
    encoder = load_encoder(name)
    vectors = normalized(np.random.default_rng(0).standard_normal((documents, WIDTH), dtype=np.float32))
    return FaissIndex(build_faiss(factory, vectors), _ids(documents), EmbeddingSpace.of(encoder), encoder, factory)


def sparse(documents: int, folder: Path) -> Index:
    """Weights per token for queries, and documents of SPLADE's shape."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    tokenizer = load_bi_encoder(MINILM).tokenizer
    model = SparseEncoder(modules=[SparseStaticEmbedding(tokenizer)], similarity_fn_name="dot", device="cpu")
    with torch.no_grad():
        model[0].weight.uniform_(0.1, 1.0)
    model.save_pretrained(str(folder), create_model_card=False)
    encoder = load_encoder(f"sparse:{folder}")
    matrix = sparse_vectors(np.random.default_rng(0), documents, DOCUMENT_TERMS)
    return InvertedIndex.from_csr(_ids(documents), matrix, EmbeddingSpace.of(encoder), encoder)


def multi_vector(documents: int, folder: Path) -> Index:
    """MiniLM's tokens in 128 dimensions, and a tenth of the documents."""
    token_encoder(MINILM, TOKEN_WIDTH).save_pretrained(str(folder), create_model_card=False)
    encoder, count = load_encoder(f"multi-vector:{folder}"), max(documents // 10, 1)
    generator = np.random.default_rng(0)
    shape = DOCUMENT_TOKENS, TOKEN_WIDTH
    rows = (normalized(generator.standard_normal(shape, dtype=np.float32)) for _ in range(count))
    return MultiVectorIndex.from_tokens(Tokens.of(rows, TOKEN_WIDTH), _ids(count), EmbeddingSpace.of(encoder), encoder)


def _ids(count: int) -> list[str]:
    return [f"d{row}" for row in range(count)]


KINDS: dict[str, Callable[[int, Path], Index]] = {
    "static": static,
    "dense-int8": dense,
    "sparse": sparse,
    "multi-vector": multi_vector,
}

if __name__ == "__main__":
    main()
