"""Random ragged token vectors about a few directions, as tokens of texts are."""

import numpy as np

from retrodistill.encoders.multi_vector import Tokens


def ragged(texts, dimension=16, *, seed=0, longest=12, unit=True):
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(99).standard_normal((8, dimension))
    arrays = []
    for length in random.integers(1, longest + 1, texts):
        vectors = topics[random.integers(0, 8, length)] + 0.6 * random.standard_normal((length, dimension))
        arrays.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors)
    return Tokens.of(arrays, dimension)


def brute_maxsim(queries, documents):
    return np.array(
        [
            [sum(max(float(q @ p) for p in documents[j]) for q in queries[i]) for j in range(len(documents))]
            for i in range(len(queries))
        ]
    )
