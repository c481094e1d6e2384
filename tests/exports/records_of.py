"""Small sources with hand-made vectors, for the tests of exports."""

import numpy as np
from scipy.sparse import csr_array

from retrodistill.encoders.contract import EmbeddingSpace
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.exports import dense_records, multi_vector_records, sparse_records

IDS = ["plain", "ünï çødé/文書 #1", "x" * 3000, "0", " spaced ", "a\nb", *(f"d{number}" for number in range(34))]


def space(dimension, similarity):
    return EmbeddingSpace("space-1", dimension, similarity, "dense:in-memory", contract={"dimension": dimension})


def dense(similarity="dot", *, seed=0, ids=IDS):
    vectors = np.random.default_rng(seed).normal(size=(len(ids), 6)).astype(np.float32)
    if similarity == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return dense_records(ids, vectors, space(6, similarity)), vectors


def sparse():
    generator = np.random.default_rng(1)
    weights = generator.exponential(size=(len(IDS), 30)) * (generator.random((len(IDS), 30)) < 0.2)
    weights[3] = 0  # a document without any entry
    rows = csr_array(weights.astype(np.float32))
    vocabulary = [f"word{number}" for number in range(30)]
    return sparse_records(IDS, rows, space(30, "dot"), vocabulary=vocabulary), rows


def multi_vector():
    generator = np.random.default_rng(2)
    lengths = [0 if row == 3 else int(generator.integers(1, 9)) for row in range(len(IDS))]
    tokens = Tokens.of([generator.normal(size=(length, 4)) for length in lengths], 4)
    return multi_vector_records(IDS, tokens, space(4, "maxsim")), tokens


def of_kind(kind):
    return {"dense": dense, "sparse": sparse, "multi-vector": multi_vector}[kind]()[0]
