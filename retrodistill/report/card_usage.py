"""The examples of a model card that sentence-transformers' own card does not have: Markdown, one function each."""

from __future__ import annotations

from typing import Any

from retrodistill.data.conversations import SEPARATOR
from retrodistill.encoders.names import PAIR_KINDS
from retrodistill.report.card_facts import YOURS, Facts, Turns

OF_PAIRS = PAIR_KINDS  # kinds that score pairs and find nothing themselves
QUERY = "Which planet is known as the Red Planet?"


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


def sparse_usage(model: Any, facts: Facts) -> str:
    """How to load a sparse student; queries may have an encoder of their own inside it."""
    trusted = ", trust_remote_code=True" if facts.own_modules else ""
    return f"""```python
from sentence_transformers import SparseEncoder

# This model, by the path of its folder or its name on the hub
model = SparseEncoder("{placeholder(model)}"{trusted})
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
        code = [*load_lines(facts), f'rd.evaluate("rerank:{facts.kind}:FOLDER@bm25", collection)']
        return f"With retrodistill, as a re-ranker of the best 100 of BM25:\n\n{block(code)}"
    own = f'"{package_kind(facts)}:FOLDER"'
    sides = f"documents={own}" if facts.documents_by is None else f'documents="{facts.documents_by}", queries={own}'
    code = [
        *load_lines(facts),
        f"index = rd.build_index(collection, {sides})",
        f'index.search("{_example(facts.turns)}", k=10)',
    ]
    return (
        "With retrodistill, whose index knows which encoder made its documents and refuses queries of another "
        f"space:\n\n{block(code)}"
    )


def package_kind(facts: Facts) -> str:
    """The kind that stands in front of its folder in a name."""
    return "dense" if facts.kind == "hybrid" else facts.kind


def load_lines(facts: Facts) -> list[str]:
    """Python that loads the collection as the student was trained with it, conversations for queries included."""
    source, turns = facts.loaded_from, facts.turns
    said = [f"# {YOURS}... stands for where you have it"] if YOURS in f"{source}{turns and turns.path}" else []
    loaded = f'rd.load_collection("{source}")'
    if turns is None or turns.path is None:
        if turns is not None:
            said.append("# Its conversations were made of this collection's queries; its documents are the same")
        return ["import retrodistill as rd", "", *said, f"collection = {loaded}"]
    changed = "" if turns.history is None else f", history={turns.history}"
    changed += "" if turns.responses else ", responses=False"
    return [
        "import retrodistill as rd",
        "from retrodistill.data.conversations import load_conversations",
        "",
        *said,
        f'conversations = load_conversations("{turns.path}"{changed})',
        f"collection = conversations.of({loaded})",
    ]


def conversation(turns: Turns) -> str:
    """The form of a query that is a conversation."""
    if turns.history == 0:
        return (
            f"Queries are utterances of conversations, without what was said before:\n\n```text\n{_example(turns)}\n```"
        )
    limit = "" if turns.history is None else f", at most {turns.history} of them"
    answers = ", in each the answer before the question" if turns.responses else ", their questions without the answers"
    return (
        "Queries are conversations in one text: the current utterance first, then the earlier turns, the newest first"
        f"{limit}{answers}, joined by `{SEPARATOR}` (a bar between two spaces):\n\n```text\n{_example(turns)}\n```"
    )


def block(lines: list[str]) -> str:
    """Python in Markdown."""
    code = "\n".join(lines)
    return f"```python\n{code}\n```"


def _example(turns: Turns | None) -> str:
    """A query in the form that the student was trained on."""
    if turns is None:
        return QUERY
    earlier = [] if turns.history == 0 else [*(["It is Mars."] if turns.responses else []), QUERY]
    return SEPARATOR.join(["How many moons does it have?", *earlier])
