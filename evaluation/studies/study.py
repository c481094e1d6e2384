"""What a study is: a folder with jobs, each a recipe on a collection."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SECONDS = "seconds.txt"  # in a job's folder: what it took, all its runs together


@dataclass(frozen=True)
class Job:
    """One recipe on one collection.

    Attributes:
        name: Of the job within its study.
        collection: Name of a BEIR collection.
        recipe: File, from the study's folder.
        set: Overrides, ``key.path=value`` each.
        large: Overrides besides, for a GPU; ``*`` in a key stands for every student, every stage.
        against: Names of the systems that the others are compared with; the first that the job has counts.
        minutes: Of one core, roughly.
        last: Begin it when no job without this mark is waiting.
    """

    name: str
    collection: str
    recipe: str
    set: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    minutes: float = 5.0
    last: bool = False

    @property
    def folder(self) -> str:
        """Of its results, within those of the study."""
        return f"{self.name}-{self.collection}"

    def is_called(self, words: str) -> bool:
        """Whether it is meant by its name, its collection, or both with a stroke between them."""
        return words in (self.name, self.collection, self.folder)

    def arguments(self, study: Study, data: str, large: bool) -> list[str]:
        """Of ``retrodistill run``, but for ``--out``."""
        place = Path(data) / self.collection
        source = str(place) if place.exists() else f"beir/{self.collection}"
        recipe = (study.folder / self.recipe).resolve()
        said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        more = [one for override in (self.large if large else []) for one in expanded(override, said)]
        return [str(recipe), f"collection={source}", *self.set, *more]

    def is_done(self, study: Study, out: Path, data: str, large: bool) -> bool:
        """Whether its results are there, by the recipe as it is now."""
        from retrodistill.core.manifest import FILE_NAME, Manifest
        from retrodistill.recipes import load_recipe, parse_recipe

        place = out / self.folder
        if self.results(out) is None or not (place / FILE_NAME).exists():  # the manifest is a job's last file
            return False
        recipe, *overrides = self.arguments(study, data, large)
        return load_recipe(recipe, overrides) == parse_recipe(Manifest.read(place).settings)

    def seconds(self, out: Path) -> float:
        """What the job took so far, by the runner's clock; 0 if it never ran."""
        path = out / self.folder / SECONDS
        return float(path.read_text()) if path.exists() else 0.0

    def results(self, out: Path) -> dict[str, Any] | None:
        """What results.json of the job says; None before it is done."""
        path = out / self.folder / "results.json"
        return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Study:
    """A claim that is put to the test.

    Attributes:
        name: Of its folder.
        title: For people.
        jobs: What is run.
        compare: Pairs of systems of different jobs, ``job:system`` each, that are compared on every collection.
        pivot: Begin with a table of systems by jobs.
    """

    name: str
    title: str
    jobs: list[Job]
    compare: list[list[str]] = field(default_factory=list)
    pivot: bool = False

    @property
    def folder(self) -> Path:
        """Where it stands."""
        return HERE / self.name


def expanded(override: str, recipe: Any) -> list[str]:
    """An override for each of what ``*`` stands for in its key; a list that is too short for a place is passed over.

    Args:
        override: ``key.path=value``.
        recipe: What its YAML says.
    """
    key, _, value = override.partition("=")
    ways = [([], recipe)]
    for part in key.split("."):
        found = []
        for path, at in ways:
            names = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
            inside = {str(name): at[name] for name in names}
            chosen = inside if part == "*" else [part] if part in inside or not isinstance(at, list) else []
            found += [([*path, name], inside.get(name)) for name in chosen]
        ways = found
    return [f"{'.'.join(path)}={value}" for path, _ in ways]


def studies() -> list[str]:
    """The names of all studies."""
    return sorted(path.parent.name for path in HERE.glob("*/study.yaml"))


def load_study(name: str) -> Study:
    """Read ``study.yaml``; a job with several collections counts as several."""
    path = HERE / name / "study.yaml"
    if not path.exists():
        sys.exit(f"there is no study {name!r}; there are {', '.join(studies())}")
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = {key: said[key] for key in ("against", "large", "last") if key in said}
    jobs = []
    for job in said["jobs"]:
        settings = {**defaults, **job}
        for collection in settings.pop("collections", ["scifact", "nfcorpus"]):
            jobs.append(Job(**settings, collection=collection))
    return Study(name, said["title"], jobs, said.get("compare", []), said.get("pivot", False))
