"""How the forms of a student are used, its exits, truncations and own-token queries: Markdown for its card."""

from __future__ import annotations

import re
from typing import Any

from retrodistill.encoders.exits import ROUTE, exits_of
from retrodistill.evaluation.results import Results
from retrodistill.report.card_facts import Facts
from retrodistill.report.card_measures import forms
from retrodistill.report.card_usage import OF_PAIRS, QUERY, block, package_kind, placeholder
from retrodistill.students.vdr import vocabulary_pooling


def usage(model: Any, facts: Facts, results: Results | None) -> list[str]:
    """A paragraph for each form that the student has.

    Args:
        model: The student's sentence-transformers model.
        facts: How it came to be; stages with Matryoshka losses name truncations.
        results: Whose truncations were measured, in whatever way it was trained; None for none.
    """
    if facts.kind in OF_PAIRS:
        return []
    if facts.kind == "sparse":
        return [_own_tokens(model)] if vocabulary_pooling(model) is not None else []
    found = []
    if facts.kind == "dense" and (exits := exits_of(model)[:-1]):
        found.append(_exits(model, facts, exits))
    if cuts := _cuts(facts, results):
        found.append(_truncations(model, facts, cuts))
    return found


def _exits(model: Any, facts: Facts, exits: list[int]) -> str:
    layer = exits[0]
    # What encode_query would do by itself; it has a task of its own, and takes no other.
    prompt = ', prompt_name="query"' if (model.prompts or {}).get("query") else ""
    code = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{placeholder(model)}"{_trusted(facts)})',
        f'queries = model.encode(["{QUERY}"], task="{ROUTE}{layer}"{prompt})',
    ]
    listed = ", ".join(str(one) for one in exits)
    return (
        f"It can be left behind layer {listed} as well. In plain sentence-transformers an exit is chosen by its task; "
        f"all layers run there:\n\n{block(code)}\n\nWith retrodistill, which cuts the layers above an exit and so is "
        f"faster, the model is named `dense:FOLDER@{ROUTE}{layer}` wherever a model is named."
    )


def _truncations(model: Any, facts: Facts, cuts: list[int]) -> str:
    cut, own = cuts[-1], f'"{package_kind(facts)}:FOLDER"'
    sides = own if facts.documents_by is None else f'"{facts.documents_by}", {own}'
    code = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{placeholder(model)}", truncate_dim={cut}{_trusted(facts)})',
    ]
    listed = ", ".join(map(str, cuts))
    both = "" if facts.documents_by is None else ", and the model of the documents likewise"
    return (
        f"The leading {listed} dimensions are vectors too. In plain sentence-transformers{both}:\n\n{block(code)}\n\n"
        f"With retrodistill: `rd.build_index(collection, {sides}, truncate={cut})`."
    )


def _own_tokens(model: Any) -> str:
    code = [
        "from sentence_transformers import SparseEncoder",
        "from retrodistill.students.vdr import own_token_queries",
        "",
        f'model = SparseEncoder("{placeholder(model)}", trust_remote_code=True)',
        f'queries = own_token_queries(model).encode_query(["{QUERY}"])',
        'documents = model.encode_document(["Mars is often called the Red Planet.", "Saturn has rings."])',
    ]
    return (
        f"Queries can be their own tokens, with no model run for them (`own-tokens`):\n\n{block(code)}\n\nWith "
        'retrodistill: `rd.build_index(collection, "sparse:FOLDER", own_token_queries(model))`.'
    )


def _cuts(facts: Facts, results: Results | None) -> list[int]:
    """Dimensions that were trained for or measured, the most first."""
    named = (one.name.removeprefix(f"{facts.name}@") for one in forms(facts, results))
    measured = {int(cut) for cut in named if re.fullmatch(r"\d+", cut)}
    return sorted(measured.union(*(stage.matryoshka for stage in facts.stages)), reverse=True)


def _trusted(facts: Facts) -> str:
    return ", trust_remote_code=True" if facts.own_modules else ""
