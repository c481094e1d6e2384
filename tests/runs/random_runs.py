"""Random runs with ties, as dictionaries, and the brute force that tests hold the package to."""

import numpy as np


def random_scores(seed, queries=7, documents=30, depth=(1, 20), levels=6):
    """{query: {document: score}} with few score levels, so that ties abound; ids such as '10' < '9' as text."""
    generator = np.random.default_rng(seed)
    found = {}
    for query in generator.permutation(queries):
        chosen = generator.choice(documents, generator.integers(depth[0], depth[1] + 1), replace=False)
        scores = generator.integers(-levels, levels, len(chosen)) / 3
        found[f"q{query}"] = {str(document): float(score) for document, score in zip(chosen, scores, strict=True)}
    return found


def ranking(scores):
    """Documents of one list: score descending, then id ascending as text."""
    return sorted(scores, key=lambda document: (-scores[document], document))
