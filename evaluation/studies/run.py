"""Run the studies: `python evaluation/studies/run.py [NAME ...]`. Finished jobs are skipped.

A study is a folder here. It contains `study.yaml` (its jobs), recipes, `README.md` (the published claim and our
findings), and the results: `results.json` and `per-query.parquet`. Each job is an ordinary `retrodistill run RECIPE`.
Several jobs run in parallel.
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
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="studies to run (default: all)")
    parser.add_argument(
        "--data", default="data", help="folder of collections in BEIR layout; missing ones are downloaded"
    )
    parser.add_argument("--out", default="out/studies", help="folder for the jobs and their results")
    parser.add_argument("--jobs", type=int, default=2, help="jobs to run in parallel; they share the cores")
    parser.add_argument(
        "--hours",
        type=float,
        default=math.inf,
        help="start only jobs that are estimated to finish within this many hours from now, on one core each",
    )
    parser.add_argument(
        "--large", action="store_true", help="use the larger settings, for a GPU; they have separate tables"
    )
    parser.add_argument("--only", help="run only jobs with this name, with this collection, or named NAME-COLLECTION")
    parser.add_argument("--list", action="store_true", help="list the jobs and exit")
    parser.add_argument("--tables", action="store_true", help="write the tables from the existing results and exit")
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
    print(f"{len(todo)} jobs took {spent:.0f} min in total; {args.jobs} in parallel: {spent / args.jobs:.0f} min")
    left = [one.name for one in outcomes if one.state == "left"]
    if left:
        print(f"{len(left)} jobs did not fit into {args.hours:g} h; run the same command again: {', '.join(left)}")
    missing = [one.name for one in outcomes if one.state == "missing"]
    if missing:
        print(f"{len(missing)} jobs need a collection in {args.data} that cannot be downloaded: {', '.join(missing)}")
    failed = [one for one in outcomes if one.state == "failed"]
    for one in failed:
        print(f"failed: {one.name}; see {one.log}", file=sys.stderr)
    return 1 if failed else 0


class Outcome(NamedTuple):
    """Outcome of a job.

    Attributes:
        name: ``study/job``.
        state: ``done``, ``failed``, ``left`` for a later run, or ``missing`` without its collection.
        log: File with its output.
    """

    name: str
    state: str
    log: Path


def run_jobs(todo: list[tuple[Study, Job]], args: argparse.Namespace, out: Path) -> list[Outcome]:
    """Run the jobs in parallel, longest first; jobs of studies that are marked as last come at the end."""
    todo = sorted(todo, key=lambda one: (one[1].last, -one[1].minutes))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // args.jobs))
    end = time.perf_counter() + 3600 * args.hours

    def run(one: tuple[Study, Job]) -> Outcome:
        study, job = one
        folder = out / study.name / job.folder
        name, log, start = f"{study.name}/{job.folder}", folder / "log.txt", time.perf_counter()
        if job.source(args.data) is None:
            return Outcome(name, "missing", log)
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
