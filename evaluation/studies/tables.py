"""Build the tables of a study from the results of its jobs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from study import Job, Study

MEASURE = "ndcg@10"
Key = tuple[str, str]  # names of a job and its collection


class Kept(NamedTuple):
    """Where a study's folder keeps the results of the small or the larger settings.

    Attributes:
        rows: File with one row per system.
        values: File with one value per query.
        mark: Name of the comments that enclose the tables in the page.
        words: Suffix of a job's name in the tables.
    """

    rows: str
    values: str
    mark: str
    words: str


SMALL = Kept("results.json", "per-query.parquet", "results", "")
LARGE = Kept("results-large.json", "per-query-large.parquet", "larger settings", ", larger settings")


def write_results(study: Study, out: Path, large: bool = False) -> bool:
    """Write ``results.json``, ``per-query.parquet``, and the tables in ``README.md``. Return whether any job is done.

    Earlier results of a job that is not done in `out` are kept. Results of larger settings have their own files
    (``results-large.json``, ``per-query-large.parquet``) and their own tables, after the others.
    """
    kept = LARGE if large else SMALL
    rows, values = _measured_before(study, kept)
    known = {(job.name, job.collection) for job in study.jobs}
    rows = {key: found for key, found in rows.items() if key in known}
    new = False
    for job in study.jobs:
        results = job.results(out)
        if results is None:
            continue
        new = True
        key = (job.name, job.collection)
        per_query = pq.read_table(out / job.folder / "per-query.parquet")
        rows[key] = list(_rows(job, results, per_query, job.seconds(out)))
        columns = {"job": [job.name] * len(per_query), "collection": [job.collection] * len(per_query)}
        values[key] = pa.table({**columns, **{name: per_query[name] for name in ("system", "query_id", MEASURE)}})
    if not new:
        return False
    done = [job for job in study.jobs if (job.name, job.collection) in rows]
    every = pa.concat_tables([values[job.name, job.collection] for job in done])
    flat = [row for job in done for row in rows[job.name, job.collection]]
    tables = [_table(job, rows[job.name, job.collection], values[job.name, job.collection], kept) for job in done]
    texts = [
        *([_pivot(flat)] if study.pivot else []),
        *_means(study, flat),
        *tables,
        *_across(study, every),
        *_over_seeds(study, flat, every),
    ]
    (study.folder / kept.rows).write_text(json.dumps(flat, indent=1) + "\n", encoding="utf-8")
    pq.write_table(every, study.folder / kept.values, compression="zstd")
    _put(study.folder / "README.md", study.title, "\n\n".join(texts), kept.mark)
    return True


def _measured_before(study: Study, kept: Kept) -> tuple[dict[Key, list[dict[str, Any]]], dict[Key, pa.Table]]:
    """Rows and per-query values in the study's folder, by job and collection."""
    rows: dict[Key, list[dict[str, Any]]] = {}
    path = study.folder / kept.rows
    for row in json.loads(path.read_text(encoding="utf-8")) if path.exists() else []:
        rows.setdefault((row["job"], row["collection"]), []).append(row)
    values = {}
    if rows:
        every = pq.read_table(study.folder / kept.values)
        for job, collection in rows:
            mine = pc.equal(every["job"], job)
            values[job, collection] = every.filter(pc.and_(mine, pc.equal(every["collection"], collection)))
    return rows, values


def _rows(job: Job, results: dict[str, Any], per_query: pa.Table, seconds: float) -> Iterator[dict[str, Any]]:
    """One row per system: quality, cost, and the paired difference from the job's reference system."""
    from retrodistill.evaluation.significance import paired_tests

    names = [system["name"] for system in results["systems"]]
    reference = next((name for name in job.against if name in names), None)
    values = {}
    for name in names:
        mine = per_query.filter(pc.equal(per_query["system"], name)).sort_by("query_id")
        values[name] = mine[MEASURE].to_numpy()
    others = [name for name in names if name != reference]
    tests = paired_tests([(name, reference) for name in others], values, MEASURE) if reference else []
    told = {test["a"]: test for test in tests}
    for system in results["systems"]:
        test = told.get(system["name"])
        yield {
            "job": job.name,
            "collection": job.collection,
            "system": system["name"],
            "role": system["role"],
            MEASURE: round(system[MEASURE], 4),
            "recall@100": round(system["recall@100"], 4),
            "train_seconds": _train_seconds(results["seconds"], system["name"]),
            "bytes_per_document": system.get("bytes_per_document"),
            "against": reference,
            "difference": round(test["difference"], 4) if test else None,
            "p_holm": round(test["p_holm"], 4) if test else None,
            "job_seconds": round(seconds) or None,
            "gpu": results.get("hardware", {}).get("gpu"),
        }


def _train_seconds(seconds: dict[str, float], name: str) -> float | None:
    """Training time of a student or of a learned index; None if the system was not trained."""
    return seconds.get(f"train {name}", seconds.get(f"learn {name}"))


def _pivot(rows: list[dict[str, Any]]) -> str:
    """nDCG@10 of systems by jobs, for jobs that share a student; students come first, sorted by their mean."""
    taught: dict[str, set[str]] = {}
    for row in rows:
        if row["role"] == "student":
            taught.setdefault(row["system"], set()).add(row["job"])
    shared = {job for jobs in taught.values() if len(jobs) > 1 for job in jobs}
    rows = [row for row in rows if row["job"] in shared]
    jobs = list(dict.fromkeys(f"{row['job']}, {row['collection']}" for row in rows))
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["system"], {})[f"{row['job']}, {row['collection']}"] = row[MEASURE]
    students = {row["system"] for row in rows if row["role"] == "student"}
    means = {name: sum(found.values()) / len(found) for name, found in values.items()}
    lines = [f"| nDCG@10 | {' | '.join(jobs)} |", f"|---|{'---:|' * len(jobs)}"]
    for name in sorted(values, key=lambda name: (name not in students, -means[name])):
        cells = [f"{values[name][job]:.4f}" if job in values[name] else "" for job in jobs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _across(study: Study, values: pa.Table) -> list[str]:
    """Comparisons of systems from different jobs, one line per pair and collection."""
    lines = []
    for collection in dict.fromkeys(job.collection for job in study.jobs):
        for pair in study.compare:
            measured = [_values(values, collection, *name.split(":", 1)) for name in pair]
            if all(len(one) for one in measured):
                lines.append(f"`{pair[0]}` minus `{pair[1]}` on {collection}: {_difference(*measured)}.")
    return lines


def _means(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    """For each job of several seeds, the mean nDCG@10 of its systems by collection."""
    tables = []
    for name in study.seeds:
        runs = [row for row in rows if row["job"].rpartition("-")[0] == name]
        seeds = len({row["job"] for row in runs})
        if seeds < 2:
            continue
        collections = list(dict.fromkeys(row["collection"] for row in runs))
        lines = [f"| {name}, mean nDCG@10 of {seeds} seeds | {' | '.join(collections)} |"]
        lines.append(f"|---|{'---:|' * len(collections)}")
        for system in dict.fromkeys(row["system"] for row in runs):
            cells = []
            for collection in collections:
                found = [row[MEASURE] for row in runs if (row["system"], row["collection"]) == (system, collection)]
                cells.append(f"{np.mean(found):.4f}" if len(found) == seeds else "")
            lines.append(f"| {system} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return tables


def _over_seeds(study: Study, rows: list[dict[str, Any]], values: pa.Table) -> list[str]:
    """Comparisons of students with their reference by each query's mean over seeds, one line per student."""
    lines = []
    for name, collection in itertools.product(study.seeds, dict.fromkeys(job.collection for job in study.jobs)):
        jobs = {job.name for job in study.jobs if job.name.rpartition("-")[0] == name}
        taught = [row for row in rows if row["role"] == "student" and row["collection"] == collection]
        seeds: dict[tuple[str, str], list[str]] = {}  # the jobs of a student and its reference
        for row in taught:
            if row["job"] in jobs and row["against"] not in (None, row["system"]):
                seeds.setdefault((row["system"], row["against"]), []).append(row["job"])
        for pair, runs in seeds.items():
            means = [np.mean([_values(values, collection, job, one) for job in runs], axis=0) for one in pair]
            said = f"`{pair[0]}` minus `{pair[1]}` on {collection}, mean of {len(runs)} seeds of `{name}`"
            lines.append(f"{said}: {_difference(*means)}.")
    return lines


def _values(values: pa.Table, collection: str, job: str, system: str) -> np.ndarray:
    """The measure of a system on each query of a job."""
    wanted = (pc.field("collection") == collection) & (pc.field("job") == job) & (pc.field("system") == system)
    return values.filter(wanted).sort_by("query_id")[MEASURE].to_numpy()


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    """The difference of two means, its interval, and its p-value."""
    from retrodistill.evaluation.significance import paired_tests

    (test,) = paired_tests([("one", "other")], {"one": one, "other": other}, MEASURE)
    low, high = test["interval"]
    return f"{test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p {test['p']:.3f}"


def _table(job: Job, rows: list[dict[str, Any]], values: pa.Table, kept: Kept) -> str:
    reference, seconds, gpu = rows[0]["against"], rows[0].get("job_seconds"), rows[0].get("gpu")
    title = f"**{job.name}, {job.collection}{kept.words}** ({len(values['query_id'].unique())} test queries"
    title += f"; {max(1, round(seconds / 60))} min {f'on one {gpu}' if gpu else 'on one core'}" if seconds else ""
    title += f"; differences from `{reference}`, Holm-corrected p)" if reference else ")"
    head = ["system", "nDCG@10", "recall@100", "difference", "p", "training", "bytes/document"]
    lines = [title, "", f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        seconds, size = row["train_seconds"], row["bytes_per_document"]
        cells = [
            row["system"],
            f"{row[MEASURE]:.4f}",
            f"{row['recall@100']:.4f}",
            "" if row["difference"] is None else f"{row['difference']:+.4f}",
            "" if row["p_holm"] is None else f"{row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "<.001",
            "" if seconds is None else f"{seconds:.0f} s",
            "" if size is None else f"{size:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _put(path: Path, title: str, tables: str, mark: str) -> None:
    """Write the tables between their marks. A page without marks gets them after the results, or at its end."""
    begin, end, results = (f"<!-- {name} -->" for name in (mark, f"/{mark}", f"/{SMALL.mark}"))
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    if begin not in text:
        before, found, after = text.partition(results)
        text = f"{before}{found}\n\n{begin}\n{end}{after}" if found else f"{text}\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{tables}\n{end}{after}", encoding="utf-8")
