"""Encoding with a static token table against model2vec and sentence-transformers, with the same table and tokenizer.

python evaluation/benchmarks/static_encoding.py [--dimension 256] [--documents 20000] [--threads 1] [--repeats 7]

The texts are docstrings of Python's standard library, repeated with other numbers; queries are their titles, encoded
one by one. The table is random, the tokenizer is MiniLM's, and vectors are normalized. model2vec runs in the
environment of the peers (peers.sh), sentence-transformers in the project's.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from racing import Child, Race, Timed, in_turn, parser, timed, use_threads, versions
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from retrodistill.data import load_collection
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import load_bi_encoder

QUERIES = 500


def main() -> None:
    """Print a Markdown table."""
    options = parser(__doc__)
    options.add_argument("--dimension", type=int, default=256)
    options.add_argument("--documents", type=int, default=20_000)
    given = options.parse_args()
    use_threads(given.threads)
    tokenizer = bert_tokenizer()
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), given.dimension), dtype=np.float32)
    modules = [StaticEmbedding(tokenizer, torch.from_numpy(table)), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    encoder = Encoder(model, "static:table")
    documents, queries = texts(tokenizer, given.documents)
    with Child(Path(__file__).with_name("peers.py")) as peers, tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        peers("model2vec_load", tokenizer=f"{folder}/tokenizer.json", table=table)
        named = versions("sentence-transformers", "tokenizers", "torch") | peers("versions", packages=["model2vec"])
        race = Race("static encoding", given, named)
        for chosen, one_by_one in ((documents, False), (queries, True)):
            sides = [
                functools.partial(peers, "model2vec_encode", texts=chosen, one_by_one=one_by_one),
                functools.partial(encoded, model.encode, chosen, one_by_one),
                functools.partial(encoded, functools.partial(encoder.encode, role="document"), chosen, one_by_one),
            ]
            seconds, results = in_turn(sides, given.repeats)
            case = "one query" if one_by_one else f"{len(chosen):,} documents"
            for place, peer in enumerate(("model2vec", "sentence-transformers")):
                difference = np.abs(results[place] - results[2]).max()
                if difference > 1e-5:
                    raise SystemExit(f"{peer}: vectors differ by {difference:.1e}")
                work = len(chosen) if one_by_one else 1
                race.add(case, peer, seconds[place], seconds[2], f"vectors within {difference:.0e}", work)


def encoded(encode: Callable[[list[str]], np.ndarray], texts: list[str], one_by_one: bool) -> Timed:
    """Encode all texts at once, or each in a call of its own."""
    return timed(lambda: np.concatenate([encode([text]) for text in texts]) if one_by_one else encode(texts))


def bert_tokenizer() -> Tokenizer:
    """MiniLM's, without truncation."""
    tokenizer = Tokenizer.from_str(load_bi_encoder("all-MiniLM-L6-v2").tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def texts(tokenizer: Tokenizer, count: int) -> tuple[list[str], list[str]]:
    """Documents and queries without unknown tokens, which model2vec leaves out."""
    unknown = tokenizer.token_to_id("[UNK]")
    read = load_collection("demo").documents.texts
    known = [text for text in read if unknown not in tokenizer.encode(text, add_special_tokens=False).ids]
    documents = [f"{known[row % len(known)]} {row}" for row in range(count)]
    return documents, [text[:60] for text in known[:QUERIES]]


if __name__ == "__main__":
    main()
