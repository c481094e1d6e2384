"""Run the studies: `python evaluation/studies/run.py [NAME ...]`; what is done already is not done again.

A study is a folder here with `study.yaml` (its jobs), recipes, `README.md` (what was published, what was found) and
what was measured: `results.json`, `per-query.parquet`. Jobs are ordinary `retrodistill run RECIPE`, several at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study import SECONDS, Job, Study, load_study, studies
from tables import write_results

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="studies to run; all by default")
    parser.add_argument("--data", default="data", help="folder of collections in BEIR layout; others are downloaded")
    parser.add_argument("--out", default="out/studies", help="where jobs work and leave their results")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time; the cores are shared among them")
    parser.add_argument("--large", action="store_true", help="the studies' larger settings, for a GPU")
    parser.add_argument("--only", help="jobs with this in their name or collection")
    parser.add_argument("--list", action="store_true", help="what would run, and stop")
    parser.add_argument("--tables", action="store_true", help="write tables from the results that are there, and stop")
    args = parser.parse_args()
    chosen = [load_study(name) for name in args.names or studies()]
    out = Path(args.out) / ("large" if args.large else "")
    todo = [(study, job) for study in chosen for job in study.jobs if (args.only or "") in job.folder]
    if args.list:
        for study, job in todo:
            done, spent = job.results(out / study.name), job.seconds(out / study.name) / 60
            print(f"{study.name}/{job.folder}: {f'done, {spent:.1f} min' if done else f'about {job.minutes:g} min'}")
        return 0
    failed = [] if args.tables else list(_failed(todo, args, out))
    for study in chosen:
        if write_results(study, out / study.name):
            print(f"wrote {study.folder / 'README.md'}")
    spent = sum(job.seconds(out / study.name) for study, job in todo) / 60
    print(f"{len(todo)} jobs, {spent:.0f} min of a job; {args.jobs} at a time {spent / args.jobs:.0f} min")
    for name, log in failed:
        print(f"failed: {name}; see {log}", file=sys.stderr)
    return 1 if failed else 0


def _failed(todo: list[tuple[Study, Job]], args: argparse.Namespace, out: Path) -> Iterator[tuple[str, Path]]:
    """Run the jobs, longest first; names and logs of those that failed."""
    todo = sorted(todo, key=lambda one: -one[1].minutes)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // args.jobs))

    def run(one: tuple[Study, Job]) -> tuple[str, Path] | None:
        study, job = one
        folder = out / study.name / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        log, start, before = folder / "log.txt", time.perf_counter(), job.seconds(out / study.name)
        new = job.results(out / study.name) is None
        command = [sys.executable, "-m", "retrodistill", "run", *job.arguments(study, args.data, args.large)]
        with log.open("a") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            told = subprocess.run(
                [*command, "--out", str(folder)], check=False, stdout=file, stderr=file, env=environment
            ).returncode
        name, seconds = f"{study.name}/{job.folder}", time.perf_counter() - start
        if new:  # one that was done is only looked at
            (folder / SECONDS).write_text(f"{before + seconds:.1f}\n")
        print(f"{name}: {'failed' if told else 'done'}, {seconds / 60:.1f} min", flush=True)
        return (name, log) if told else None

    with ThreadPoolExecutor(args.jobs) as pool:
        yield from (failure for failure in pool.map(run, todo) if failure)


if __name__ == "__main__":
    sys.exit(main())
