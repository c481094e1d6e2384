"""Small sources with hand-made vectors, for the tests of exports."""

import numpy as np
from qdrant_client import QdrantClient
from scipy.sparse import csr_array

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.exports import export_index, vector_records
from retrodistill.exports.qdrant import QdrantStore

IDS = ["plain", "ünï çødé/文書 #1", "x" * 3000, "0", " spaced ", "a\nb", *(f"d{number}" for number in range(34))]


def space(dimension, similarity):
    return EmbeddingSpace("space-1", dimension, similarity, "dense:in-memory", contract={"dimension": dimension})


def dense(similarity="dot", *, seed=0, ids=IDS):
    vectors = np.random.default_rng(seed).normal(size=(len(ids), 6)).astype(np.float32)
    if similarity == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vector_records(ids, vectors, space(6, similarity)), vectors


def sparse():
    generator = np.random.default_rng(1)
    weights = generator.exponential(size=(len(IDS), 30)) * (generator.random((len(IDS), 30)) < 0.2)
    weights[3] = 0  # a document without any entry
    rows = csr_array(weights.astype(np.float32))
    vocabulary = [f"word{number}" for number in range(30)]
    return vector_records(IDS, rows, space(30, "dot"), vocabulary=vocabulary), rows


def multi_vector():
    generator = np.random.default_rng(2)
    lengths = [0 if row == 3 else int(generator.integers(1, 9)) for row in range(len(IDS))]
    tokens = Tokens.of([generator.normal(size=(length, 4)) for length in lengths], 4)
    return vector_records(IDS, tokens, space(4, "maxsim")), tokens


def of_kind(kind):
    return {"dense": dense, "sparse": sparse, "multi-vector": multi_vector}[kind]()[0]


def export_qdrant(source, collection, target, settings=None):
    """Into a client, a folder or a server."""
    store = QdrantStore(target, settings) if isinstance(target, QdrantClient) else f"qdrant:{target}"
    return export_index(source, store, collection, settings)


def export_parquet(source, collection, folder, settings=None):
    return export_index(source, f"parquet:{folder}", collection, settings)
