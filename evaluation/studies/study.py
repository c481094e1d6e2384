"""A study is a folder with jobs. Each job runs a recipe on a collection."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
OTHER_SOURCES = {  # of collections that are not in BEIR; None for those that only a user can put into the data folder
    "cranfield": "ir_datasets:cranfield",
    **dict.fromkeys(("inscit", "mtrag")),  # disco/make.py makes them
    "lisa": None,
    "stdlib": None,  # long-documents/make.py makes it
    "vaswani": "ir_datasets:vaswani",
    **dict.fromkeys(("nfcorpus_judged", "scifact_judged")),  # judges/make.py makes them
    **dict.fromkeys(("xquad_r_de_en", "xquad_r_es_en", "xquad_r_ru_en")),  # multilingual/make.py makes them
}
SECONDS = "seconds.txt"  # in a job's folder: total time of all its runs


@dataclass(frozen=True)
class Job:
    """One recipe on one collection.

    Attributes:
        name: Name of the job within its study.
        collection: Name of a BEIR collection, or of one of `OTHER_SOURCES`.
        recipe: Path of the recipe, relative to the study's folder.
        set: Overrides, each ``key.path=value``; ``{source}`` is the place of the collection.
        large: Additional overrides of the larger settings, for a GPU. ``*`` in a key matches every student or stage.
        against: Reference systems for the comparisons; the first one that the job has is used.
        minutes: Estimated minutes on one core.
        last: Whether to start it after all jobs without this mark.
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
        """Name of its results folder within that of the study."""
        return f"{self.name}-{self.collection}"

    def is_called(self, words: str) -> bool:
        """Whether `words` is its name, its collection, or both joined by a hyphen."""
        return words in (self.name, self.collection, self.folder)

    def source(self, data: str) -> str | None:
        """Where its collection comes from; None if it has to be in the data folder and is not."""
        place = Path(data) / self.collection
        return str(place) if place.exists() else OTHER_SOURCES.get(self.collection, f"beir/{self.collection}")

    def arguments(self, study: Study, data: str, large: bool) -> list[str]:
        """Arguments of ``retrodistill run``, except ``--out``."""
        source = self.source(data) or self.collection
        recipe = (study.folder / self.recipe).resolve()
        said = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        more = [one for override in (self.large if large else []) for one in expanded(override, said)]
        own = [override.replace("{source}", source) for override in self.set]
        return [str(recipe), f"collection={source}", *own, *more]

    def is_done(self, study: Study, out: Path, data: str, large: bool) -> bool:
        """Whether it has results from the recipe as it is now."""
        from retrodistill.core.manifest import FILE_NAME, Manifest
        from retrodistill.recipes import load_recipe, parse_recipe

        place = out / self.folder
        if self.results(out) is None or not (place / FILE_NAME).exists():  # the manifest is written last
            return False
        recipe, *overrides = self.arguments(study, data, large)
        return load_recipe(recipe, overrides) == parse_recipe(Manifest.read(place).settings)

    def seconds(self, out: Path) -> float:
        """Total running time so far, measured by the runner; 0 if it never ran."""
        path = out / self.folder / SECONDS
        return float(path.read_text()) if path.exists() else 0.0

    def results(self, out: Path) -> dict[str, Any] | None:
        """Contents of the job's results.json; None before it is done."""
        path = out / self.folder / "results.json"
        return json.loads(path.read_text()) if path.exists() else None


@dataclass(frozen=True)
class Study:
    """A test of a published claim.

    Attributes:
        name: Name of its folder.
        title: Title of its page.
        jobs: Jobs to run.
        compare: Pairs of systems from different jobs, each ``job:system``, to compare on every collection.
        pivot: Whether to begin with a table of systems by jobs.
        seeds: Names of jobs, each without its seed (``static`` for ``static-0`` and ``static-1``), whose systems are
            compared with their reference by the means over the seeds.
    """

    name: str
    title: str
    jobs: list[Job]
    compare: list[list[str]] = field(default_factory=list)
    pivot: bool = False
    seeds: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Path of its folder."""
        return HERE / self.name


def expanded(override: str, recipe: Any) -> list[str]:
    """Expand ``*`` in the key of an override to one override per match. Lists without the given index are skipped.

    Args:
        override: ``key.path=value``.
        recipe: The parsed YAML of the recipe.
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
    """Names of all studies."""
    return sorted(path.parent.name for path in HERE.glob("*/study.yaml"))


def load_study(name: str) -> Study:
    """Read ``study.yaml``. A job with several collections becomes one job per collection."""
    path = HERE / name / "study.yaml"
    if not path.exists():
        sys.exit(f"unknown study {name!r}; the studies are {', '.join(studies())}")
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = {key: said[key] for key in ("against", "collections", "large", "last") if key in said}
    jobs = []
    for job in said["jobs"]:
        settings = {**defaults, **job}
        for collection in settings.pop("collections", ["scifact", "nfcorpus"]):
            jobs.append(Job(**settings, collection=collection))
    return Study(name, said["title"], jobs, said.get("compare", []), said.get("pivot", False), said.get("seeds", []))
