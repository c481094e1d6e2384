"""All hostile cases, by family."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import hostile_files
import hostile_places
import hostile_settings
import hostile_texts
from hostile_runner import Case


class Family(NamedTuple):
    """Cases of one kind, and how many of them a run takes, drawn by a seed."""

    make: Callable[[Path], Iterable[Case]]  # of the folder of good artifacts
    most: int


FAMILIES = {
    "values in JSON lines": Family(hostile_texts.value_cases, 150),
    "lines": Family(hostile_texts.line_cases, 100),
    "tables": Family(hostile_texts.table_cases, 100),
    "compressed files": Family(hostile_texts.compressed_cases, 20),
    "recipes": Family(hostile_settings.recipe_cases, 100),
    "keys of recipes": Family(hostile_settings.key_cases, 100),
    "plans": Family(hostile_settings.plan_cases, 20),
    "options": Family(hostile_settings.option_cases, 120),
    "names of models": Family(hostile_settings.name_cases, 100),
    "filters and queries": Family(hostile_settings.filter_cases, 60),
    "settings of APIs": Family(hostile_settings.api_cases, 60),
    "bytes": Family(hostile_files.byte_cases, 200),
    "JSON files": Family(hostile_files.json_cases, 200),
    "columns": Family(hostile_files.column_cases, 120),
    "Parquet that expands": Family(hostile_files.bomb_cases, 20),
    "places": Family(hostile_places.place_cases, 150),
}


def cases(base: str, family: str, most: str = "", seed: str = "0") -> list[Case]:
    """The cases of a family, at most so many of them; each has a link to every artifact in its folder."""
    found, number = list(FAMILIES[family].make(Path(base))), int(most or FAMILIES[family].most)
    if number < len(found):
        found = random.Random(int(seed)).sample(found, number)
    return [replace(case, make=_with_links(case.make, Path(base))) for case in found]


def _with_links(make: Callable[[Path], object], base: Path) -> Callable[[Path], object]:
    def with_links(folder: Path) -> None:
        for entry in base.iterdir():
            os.symlink(entry, folder / entry.name)
        make(folder)

    return with_links
