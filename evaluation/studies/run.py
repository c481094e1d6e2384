"""Run the studies: `python evaluation/studies/run.py [NAME ...]`; what is done already is not done again.

A study is a folder here with `study.yaml` (its jobs), recipes, `README.md` (what was published, what was found) and
what was measured: `results.json`, `per-query.parquet`. Jobs are ordinary `retrodistill run RECIPE`, several at a time.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
    parser.add_argument(
        "--hours",
        type=float,
        default=math.inf,
        help="begin no job that would not end within so many hours from now, by its estimate for a core",
    )
    parser.add_argument(
        "--large", action="store_true", help="the studies' larger settings, for a GPU; their tables stand apart"
    )
    parser.add_argument("--only", help="jobs of this name, on this collection, or the one called NAME-COLLECTION")
    parser.add_argument("--list", action="store_true", help="what would run, and stop")
    parser.add_argument("--tables", action="store_true", help="write tables from the results that are there, and stop")
    args = parser.parse_args()
    chosen = [load_study(name) for name in args.names or studies()]
    out = Path(args.out) / ("large" if args.large else "")
    todo = [(study, job) for study in chosen for job in study.jobs if not args.only or job.is_called(args.only)]
    if args.list:
        for study, job in todo:
            done, spent = job.results(out / study.name), job.seconds(out / study.name) / 60
            print(f"{study.name}/{job.folder}: {f'done, {spent:.1f} min' if done else f'about {job.minutes:g} min'}")
        return 0
    outcomes = [] if args.tables else run_jobs(todo, args, out)
    for study in chosen:
        if write_results(study, out / study.name, args.large):
            print(f"wrote {study.folder / 'README.md'}")
    spent = sum(job.seconds(out / study.name) for study, job in todo) / 60
    print(f"{len(todo)} jobs, {spent:.0f} min of a job; {args.jobs} at a time {spent / args.jobs:.0f} min")
    left = [one.name for one in outcomes if one.state == "left"]
    if left:
        print(f"{len(left)} jobs are left, as {args.hours:g} h are over; the same command goes on: {', '.join(left)}")
    failed = [one for one in outcomes if one.state == "failed"]
    for one in failed:
        print(f"failed: {one.name}; see {one.log}", file=sys.stderr)
    return 1 if failed else 0


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
        name: Of its study and itself.
        state: ``done``, ``failed``, or ``left`` for another time.
        log: What it printed.
    """

    name: str
    state: str
    log: Path


def run_jobs(todo: list[tuple[Study, Job]], args: argparse.Namespace, out: Path) -> list[Outcome]:
    """Run the jobs several at a time, the longest first, but for those of studies that are marked as last."""
    todo = sorted(todo, key=lambda one: (one[1].last, -one[1].minutes))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // args.jobs))
    end = time.perf_counter() + 3600 * args.hours

    def run(one: tuple[Study, Job]) -> Outcome:
        study, job = one
        folder = out / study.name / job.folder
        name, log, start = f"{study.name}/{job.folder}", folder / "log.txt", time.perf_counter()
        if job.is_done(study, out / study.name, args.data, args.large):
            return Outcome(name, "done", log)
        if start + 60 * job.minutes > end:
            return Outcome(name, "left", log)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "retrodistill", "run", *job.arguments(study, args.data, args.large)]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        with log.open("a") as file:
            code = subprocess.run(
                [*command, "--out", str(folder)], check=False, stdout=file, stderr=file, env=environment
            ).returncode
        state, seconds = "failed" if code else "done", time.perf_counter() - start
        (folder / SECONDS).write_text(f"{job.seconds(out / study.name) + seconds:.2f}\n")
        print(f"{name}: {state}, {seconds / 60:.1f} min", flush=True)
        return Outcome(name, state, log)

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(run, todo))


if __name__ == "__main__":
    sys.exit(main())
