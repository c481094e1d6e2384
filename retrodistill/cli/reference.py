"""The command that explains a recipe's keys."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrodistill.cli.app import JsonOption, app, show

if TYPE_CHECKING:
    from retrodistill.recipes.keys import Key, Section

_WIDTHS = (20, 24, 12, 38)  # columns: key, values, default, meaning; 100 with the spaces between them


@app.command()
def keys(
    prefix: Annotated[str, typer.Argument(help="Only this key and those below, e.g. students.stages.training.")] = "",
    as_json: JsonOption = False,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the JSON schema of recipes, with which editors complete them.")
    ] = False,
) -> None:
    """List every key of a recipe with its values, default, and meaning.

    For completion in an editor: retrodistill keys --json-schema > recipe.schema.json, and this first line in a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    from retrodistill.recipes.keys import recipe_keys, recipe_schema

    if json_schema:
        show(json.dumps(recipe_schema(), ensure_ascii=False, indent=2))
        return
    sections = recipe_keys(prefix)
    if as_json:
        show(json.dumps({"keys": [_plain(key) for section in sections for key in section.keys]}, ensure_ascii=False))
    else:
        show(keys_text(sections))


def keys_text(sections: list[Section]) -> str:
    """A table per section, at most 100 columns wide; settings that occur at several places are listed once."""
    lines = _row("key", "values", "default", "meaning")
    places: dict[type, str] = {}
    folded: list[tuple[str, ...]] = []
    for section in sections:
        if any(section.path[: len(path)] == path for path in folded):
            continue
        place = ".".join(section.path) or "recipe"
        if section.settings in places:
            folded.append(section.path)
            lines += ["", f"{place}: the keys of {places[section.settings]}"]
            continue
        places[section.settings] = place
        lines += ["", place, *textwrap.wrap(section.about, 96)]
        for key in section.keys:
            lines += _row(key.path[-1], key.values, _default(key), key.meaning)
    lines += ["", "NAME is a student's name, N a place in a list, from 0. What each choice does: retrodistill methods"]
    return "\n".join(lines)


def _row(*cells: str) -> list[str]:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
    rows = [[column[row] if row < len(column) else "" for column in columns] for row in range(max(map(len, columns)))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, _WIDTHS, strict=True)).rstrip() for row in rows]


def _default(key: Key) -> str:
    if key.needed:
        return "needed"
    if isinstance(key.default, float):
        return f"{key.default:.4g}"
    if key.default is None and key.values == "settings":
        return "below"
    return key.default if isinstance(key.default, str) and key.default else json.dumps(key.default)


def _plain(key: Key) -> dict[str, Any]:
    return {
        "key": ".".join(key.path),
        "values": key.values,
        "options": list(key.options),
        "needed": key.needed,
        "default": key.default,
        "meaning": key.meaning,
    }
