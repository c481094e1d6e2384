"""A small collection, and what its tests ask again and again.

A module of its own name: a package `collections` here would hide the standard library's.
"""

import json
from pathlib import Path

DOCUMENTS = [
    {"_id": "d1", "title": "Cats", "text": "Cats sleep most of the day."},
    {"_id": "d2", "title": "", "text": "Dogs bark at night."},
    {"_id": "d3", "text": "Birds fly south in winter."},
]
QUERIES = [{"_id": "q1", "text": "cats"}, {"_id": "q2", "text": "dogs"}, {"_id": "q3", "text": "birds"}]


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def left_in(cache: Path) -> list[str]:
    """Everything in the cache but lock files, which hold nothing."""
    return [
        str(path) for path in cache.rglob("*") if path.suffix != ".lock" and path.name not in {"collections", "beir"}
    ]
