"""Planned against actual time, memory, and disk of a recipe, with an empty cache.

python evaluation/benchmarks/plan.py RECIPE [KEY=VALUE ...] [--again]

It plans the recipe, runs it in a new process with an empty cache, and prints both. With --again it then does the same
in another folder and cache that only remember the rates of the first run. Memory is compared without the pages of
mapped files, which a plan does not count, because the system drops them before it runs out of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from racing import run_process

from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import hardware
from retrodistill.recipes.resources import readable_bytes

# The times of results.json, by their first words, in the phases of a plan.
PHASES = {"load": "load", "distill": "distill", "index": "index", "learn": "learn", "evaluate": "evaluate"}


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--again", action="store_true", help="plan and run again, with the rates of the first run")
    given = parser.parse_args()
    about = hardware()
    print(f"{given.recipe} {' '.join(given.overrides)} on {about.get('processor')}, {about['cores']} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "first")
        compare(given.recipe, given.overrides, first)
        if given.again:
            second = Path(folder, "second")
            Path(second, "cache").mkdir(parents=True)
            shutil.copy(Path(first, "cache", "rates.json"), Path(second, "cache"))
            print("\nwith the rates of that run\n")
            compare(given.recipe, given.overrides, second)


def compare(recipe: str, overrides: list[str], folder: Path) -> None:
    """Plan and run a recipe in a folder, which gets the cache, too, and print a table."""
    out, cache, printed = folder / "out", folder / "cache", folder / "printed.json"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "retrodistill", "run", recipe, *overrides, "--out", str(out), "--json"]
    environment = {**os.environ, "RETRODISTILL_CACHE": str(cache)}
    started = time.perf_counter()
    text = subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True, text=True).stdout
    planning, plan = time.perf_counter() - started, json.loads(text)
    load = psutil.getloadavg()[0]
    before = size(cache)
    taken = run_process(command, environment, printed, errors=subprocess.DEVNULL)
    actual: dict[str, float] = defaultdict(float)
    for step, seconds in read_json(printed)["seconds"].items():
        if step.split()[0] in PHASES:
            actual[PHASES[step.split()[0]]] += seconds
    wall = taken["seconds"]
    actual["evaluate"] += wall - sum(actual.values())  # reports, too
    planned: dict[str, float] = defaultdict(float)
    for step in plan["steps"]:
        planned[step["phase"]] += step["seconds"]
    total = plan["total"]
    print(
        f"planned in {planning:.0f} s; load averages {load:.1f} before and {psutil.getloadavg()[0]:.1f} after the run\n"
    )
    print("| step | planned | actual | ratio |")
    print("|---|---:|---:|---:|")
    for phase in dict.fromkeys([*planned, *actual]):
        row(phase, f"{planned[phase]:.1f} s", f"{actual[phase]:.1f} s", planned[phase], actual[phase])
    row("total", f"{total['seconds']:.1f} s", f"{wall:.1f} s", total["seconds"], wall)
    measured = {"memory": (total["memory_bytes"], taken["peak_bytes"])}
    measured["output folder"] = (total["out_bytes"], size(out))
    measured["cache"] = (total["cache_bytes"], size(cache) - before)
    for name, (expected, found) in measured.items():
        row(name, readable_bytes(expected), readable_bytes(found), expected, found)
    print(f"\nWith the pages of mapped files, memory was {readable_bytes(taken['resident_bytes'])}.")


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def row(name: str, expected: str, found: str, planned: float, actual: float) -> None:
    """Print a row with the ratio of planned to actual."""
    ratio = f"{planned / actual:.2f}" if actual else "-"
    print(f"| {name} | {expected} | {found} | {ratio} |")


if __name__ == "__main__":
    main()
