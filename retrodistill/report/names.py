"""Names of systems as a page shows them: without the folders that lead to a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from retrodistill.evaluation.results import Results

_SEPARATORS = re.compile(r"([:@])")


def with_short_names(results: Results) -> Results:
    """The same with every system called by its short name; provenance and the command keep the whole ones."""
    short = short_names(system.name for system in results.systems)

    def named(name: str) -> str:
        return short.get(name, name)

    return results.model_copy(
        update={
            "systems": [
                one.model_copy(
                    update={
                        "name": named(one.name),
                        "documents_by": short_name(one.documents_by),
                        "queries_by": short_name(one.queries_by),
                    }
                )
                for one in results.systems
            ],
            "comparisons": [{**one, "a": named(one["a"]), "b": named(one["b"])} for one in results.comparisons],
            "curves": {named(name): curve for name, curve in results.curves.items()},
            "sides": [named(name) for name in results.sides],
            "taught_by": results.taught_by and named(results.taught_by),
            "kept_of": results.kept_of and named(results.kept_of),
        }
    )


def short_names(names: Iterable[str]) -> Mapping[str, str]:
    """``{name: short name}``; where two would be called the same, both keep their whole names."""
    listed = list(names)
    short = {name: short_name(name) for name in listed}
    times = Counter(short.values())
    return {name: one if times[one] == 1 else name for name, one in short.items()}


def short_name(name: str) -> str:
    """``run:/data/runs/mine.run`` as ``run:mine.run``, ``rerank:cross-encoder:out/a/b@bm25`` with ``b`` for its folder.

    A hub's ``organization/model`` stays whole.
    """
    return "".join(_without_folders(part) for part in _SEPARATORS.split(name))


def _without_folders(part: str) -> str:
    is_path = part.startswith(("/", ".", "~")) or part.count("/") >= 2
    return part.rstrip("/").rsplit("/", 1)[-1] if is_path and part.strip("/.~") else part
