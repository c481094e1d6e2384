"""A first recipe for a collection: a packaged one for the goal, changed to fit what the collection holds."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_file
from retrodistill.data.survey import Survey, language_shares
from retrodistill.recipes.loading import parse_recipe, recipe_text

GOALS = {
    "speed": "static-ensemble",  # queries in a fraction of a millisecond
    "quality": "dense-ensemble",
    "size": "distill-vq",  # 16 bytes per document
    "no-model": "sparse-inference-free",  # no model at query time
}
_MULTILINGUAL = "intfloat/multilingual-e5-small"
_ENGLISH = "all-MiniLM-L6-v2"  # the encoder that packaged recipes name
# Encoders read 256 tokens, about 180 words. Passages cost a vector each, so they are for collections whose usual
# document loses a large part.
_LONG = 300
_PASSAGES = {"words": 120, "overlap": 20}
_MANY, _TEXTS = 50_000, 100_000  # documents, and training texts that are enough for that many


def first_recipe(found: Survey, place: str, name: str, goal: str = "speed") -> str:
    """YAML of a recipe for a collection at `place`, with comments on what was found and chosen.

    Raises:
        UserError: The goal is not one of `GOALS`, or the name cannot be that of a recipe.
    """
    if goal not in GOALS:
        raise unknown("goal", goal, GOALS)
    content = yaml.safe_load(recipe_text(GOALS[goal]))
    changes: dict[str, Any] = {"name": name, "collection": place}
    reasons = [f"the recipe {GOALS[goal]}, for the goal '{goal}' (others: {', '.join(g for g in GOALS if g != goal)})"]
    if found.language not in (None, "en"):
        content = _replaced(content, _ENGLISH, _MULTILINGUAL)
        changes["bm25"] = "auto"
        reasons.append(f"documents are not English ({language_shares(found.languages)}): a multilingual encoder")
    if found.words["median"] > _LONG:
        changes["passages"] = _PASSAGES
        reasons.append(f"documents have {found.words['median']:.0f} words, and encoders read about 180: passages")
    if found.splits and "test" not in found.splits:
        split = next((other for other in found.splits if other != "train"), "train")
        changes["split"] = {"test": split}
        reasons.append(f"there is no split test: {split} is measured")
    if found.documents > _MANY:
        _limit_texts(content)
        reasons.append(f"{found.documents:,} documents: at most {_TEXTS:,} training texts per stage")
    content = {**changes, **{key: value for key, value in content.items() if key not in changes}}
    for key in ("about", "cost"):  # those of the packaged recipe
        content.pop(key, None)
    parse_recipe(content, name)
    notes = [f"{found.documents:,} documents, {found.queries:,} queries", *reasons, *found.missing()]
    comments = [textwrap.fill(note, 100, initial_indent="# - ", subsequent_indent="#   ") for note in notes]
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(["# Written by retrodistill init. All keys: retrodistill keys", *comments, body])


def write_recipe(recipe: str, path: Path, *, force: bool = False) -> None:
    """Write a recipe to a file, atomically; a file that exists is a `UserError` unless `force`."""
    if path.exists() and not force:
        raise UserError(f"{path} exists; add --force to replace it, or choose another file with --out.")
    with atomic_file(path) as temporary:
        temporary.write_text(recipe, encoding="utf-8")


def _replaced(content: Any, old: str, new: str) -> Any:
    """A copy of nested lists and mappings, in which texts have `new` in place of `old`."""
    if isinstance(content, dict):
        return {key: _replaced(value, old, new) for key, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, old, new) for value in content]
    return content.replace(old, new) if isinstance(content, str) else content


def _limit_texts(content: dict[str, Any]) -> None:
    for student in content.get("students", {}).values():
        for stage in student.get("stages", ()):
            stage["texts"] = {"limit": _TEXTS, **stage.get("texts", {})}
    if "texts" in content.get("index", {}):
        content["index"]["texts"] = {"limit": _TEXTS, **content["index"]["texts"]}
