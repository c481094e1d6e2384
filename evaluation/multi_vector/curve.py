"""Bytes per document against quality of multi-vector students, with each codec: a row per student and codec.

    python evaluation/multi_vector/curve.py COLLECTION JOB... --out curve.json

A JOB is the folder of a finished job that trained multi-vector students, such as those of the study `token-vectors`.
Rows are nDCG@10 and recall@100 on the test queries, ordered by bytes; a star marks those that no smaller row equals.
Rows that the file has, of the same students and documents, are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.manifest import Manifest
from retrodistill.data import Collection, load_collection
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.evaluation import evaluate_run, means
from retrodistill.indexes.multi_vector import MultiVectorSettings
from retrodistill.indexes.registry import build_index
from retrodistill.students.registry import kind_of, load_student

CODECS = {
    "float16": MultiVectorSettings(codec="float16"),
    "4 bits": MultiVectorSettings(codec="residual", bits=4),
    "2 bits": MultiVectorSettings(codec="residual", bits=2),
    "1 bit": MultiVectorSettings(codec="residual", bits=1),
}
MEASURES = ("ndcg@10", "recall@100")


def main() -> None:
    """Measure what the file lacks, and print it as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("jobs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the rows")
    parser.add_argument("--only", nargs="*", help="names of students; by default all")
    given = parser.parse_args()
    collection = load_collection(given.collection)
    rows: dict[str, dict[str, Any]] = read_json(given.out) if given.out.is_file() else {}
    parts = [folder for job in given.jobs for folder in (job / "students", job / "forms")]
    for folder in sorted(path.parent for part in parts for path in part.glob(f"*/{STUDENT_MANIFEST}")):
        if given.only and folder.name not in given.only:
            continue
        made_from = [Manifest.read(folder, STUDENT_MANIFEST).fingerprint, collection.fingerprint]
        names = {f"{folder.name}, {codec}": settings for codec, settings in CODECS.items()}
        missing = [name for name in names if rows.get(name, {}).get("made from") != made_from]
        student = load_student(folder) if missing else None
        for name in missing:
            rows[name] = {**measured(student, names[name], collection), "made from": made_from}
            write_json(given.out, rows)
    print(table(rows))


def measured(student: Any, settings: MultiVectorSettings, collection: Collection) -> dict[str, Any]:
    """Size and quality of a student's index."""
    kind_of(student.model).store_documents(student, collection.documents.column)
    index: Any = build_index(collection, student, settings=settings)
    run = index.search(collection.split("test"), collection, 100)
    found = means(evaluate_run(run, collection.relevance("test").to_dict(), MEASURES))
    size = {"bytes": round(index.nbytes / len(index)), "vectors": round(index.vectors_per_document, 1)}
    return {**size, "dimension": student.dimension, **{name: round(value, 4) for name, value in found.items()}}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows by size."""
    titles = "student", "bytes/document", "vectors", "dimensions", "nDCG@10", "recall@100", ""
    lines, best = [f"| {' | '.join(titles)} |", "|---|---:|---:|---:|---:|---:|---|"], 0.0
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["bytes"], -item[1]["ndcg@10"])):
        quality, star = row["ndcg@10"], "*" if row["ndcg@10"] > best else ""
        size = f"{row['bytes']:,} | {row['vectors']} | {row['dimension']}"
        lines.append(f"| {name} | {size} | {quality:.4f} | {row['recall@100']:.4f} | {star} |")
        best = max(best, quality)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
