"""Write small students with their vectors, or read them by another version of sentence-transformers and compare."""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np

TEXTS = ["whale shark reef", "the moon in orbit " * 40]
FIRST = {"static": (3, 2), "dense": (3, 0), "sparse": (5, 0), "hybrid": (5, 4)}  # versions that can load them


def vectors(folder: Path, kind: str) -> np.ndarray:
    """Vectors of the texts; of a sparse model as queries and as documents."""
    import sentence_transformers

    name = "SparseEncoder" if kind == "sparse" else "SentenceTransformer"
    model = getattr(sentence_transformers, name)(str(folder), device="cpu", local_files_only=True)
    if kind != "sparse":
        return model.encode(TEXTS)
    both = [encode(TEXTS).to_dense().numpy() for encode in (model.encode_query, model.encode_document)]
    return np.concatenate(both)


def write(place: Path) -> None:
    """Save a student of each kind, and its vectors."""
    sys.path.append("tests")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
    from sparse_models import inference_free, masked_model

    from retrodistill.core.manifest import Manifest
    from retrodistill.data import Texts
    from retrodistill.students import save_student
    from retrodistill.students.hybrid import hybrid_student

    bert = Transformer(str(masked_model(place / "bert")))
    plain = SentenceTransformer(modules=[bert, Pooling(32), Dense(32, 16), Normalize()], device="cpu")
    table = StaticEmbedding(bert.tokenizer, embedding_dim=16)
    base = SentenceTransformer(modules=[bert, Pooling(32), Normalize()], device="cpu")
    models = {
        "static": SentenceTransformer(modules=[table, Normalize()], device="cpu"),
        "dense": plain,
        "sparse": inference_free(place / "masked"),
        "hybrid": hybrid_student(base, 16, Texts.from_pairs([("d0", "whale reef")])),
    }
    for kind, model in models.items():
        save_student(model, Manifest("student"), place / kind)
        np.save(place / f"{kind}.npy", vectors(place / kind, kind))


def read(place: Path) -> None:
    """Load the students that this version can load, and compare."""
    version = importlib.metadata.version("sentence-transformers")
    numbers = tuple(map(int, version.split(".")[:2]))
    results = {}
    for kind, first in FIRST.items():
        if numbers >= first:
            difference = np.abs(vectors(place / kind, kind) - np.load(place / f"{kind}.npy")).max()
            results[kind] = float(difference)
    print(json.dumps({"sentence-transformers": version, "largest difference": results}))
    assert max(results.values()) < 1e-5, "vectors differ"


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
