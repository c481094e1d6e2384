"""The examples of a model card that sentence-transformers' own card does not have: Markdown, one function each."""

from __future__ import annotations

from typing import Any

from retrodistill.reports.card_facts import Facts

OF_PAIRS = ("cross-encoder", "prett", "tk")  # kinds that score pairs and find nothing themselves


def asymmetric_usage(model: Any, facts: Facts) -> str:
    """How to load both sides where another model encodes the documents."""
    kind, _, documents = str(facts.documents_by).partition(":")
    trusted = ", trust_remote_code=True" if facts.own_modules else ""
    lines = [
        "import numpy as np" if kind == "vectors" else "",
        "from sentence_transformers import SentenceTransformer",
        "",
        "# Queries: this model, by the path of its folder or its name on the hub",
        f'model = SentenceTransformer("{placeholder(model)}"{trusted})',
        'queries = model.encode_query(["Which planet is known as the Red Planet?"])',
        "",
    ]
    if kind == "vectors":
        lines += [
            f"# Documents: vectors that were made elsewhere ({facts.documents_by})",
            'documents = np.load("documents.npy")',
        ]
    else:
        lines += [
            f"# Documents: {facts.documents_by}, not this model",
            f'encoder = SentenceTransformer("{documents}")',
            'documents = encoder.encode_document(["Mars is often called the Red Planet.", "Saturn has rings."])',
        ]
    lines += ["scores = model.similarity(queries, documents)", f"# [1, {2 if kind != 'vectors' else 'documents'}]"]
    code = "\n".join(lines).strip()
    return f"Queries and documents have an encoder each.\n\n```python\n{code}\n```"


def sparse_usage(model: Any) -> str:
    """How to load a sparse student; queries may have an encoder of their own inside it."""
    return f"""```python
from sentence_transformers import SparseEncoder

# This model, by the path of its folder or its name on the hub
model = SparseEncoder("{placeholder(model)}")
queries = model.encode_query(["Which planet is known as the Red Planet?"])
documents = model.encode_document(["Mars is often called the Red Planet.", "Saturn has rings."])
scores = model.similarity(queries, documents)
# [1, 2]
```"""


def placeholder(model: Any) -> str:
    """What stands for the model's name in examples: sentence-transformers puts the name on the hub in its place."""
    return str(getattr(model, "_model_card_model_id_placeholder", "sentence_transformers_model_id"))


def package_usage(facts: Facts) -> str:
    """How retrodistill builds an index that refuses queries of another space."""
    if facts.kind in OF_PAIRS:
        return (
            "With retrodistill, as a re-ranker of the best 100 of BM25:\n\n```sh\n"
            f"retrodistill evaluate rerank:cross-encoder:FOLDER@bm25 --collection {facts.collection}\n```"
        )
    own = f'"{"dense" if facts.kind == "hybrid" else facts.kind}:FOLDER"'
    sides = f"documents={own}" if facts.documents_by is None else f'documents="{facts.documents_by}", queries={own}'
    return (
        "With retrodistill, whose index knows which encoder made its documents and refuses queries of another "
        f"space:\n\n```python\nimport retrodistill as rd\n\n"
        f'collection = rd.load_collection("{facts.collection}")\n'
        f"index = rd.build_index(collection, {sides})\n"
        'index.search("Which planet is known as the Red Planet?", 10)\n```'
    )
