"""How long the long part of these tests is, and what it counted."""

from __future__ import annotations

import os
from collections import Counter

MOMENTS = int(os.environ.get("FAULTS_MOMENTS", "4"))
FILES = int(os.environ.get("FAULTS_FILES", "4"))  # that are damaged, of all jobs in turn
CASES = os.environ.get("FAULTS_CASES", "10")  # hostile ones of each family; "" for the number of the family itself
SEED = int(os.environ.get("FAULTS_SEED", "0"))

counted: Counter[str] = Counter()


def record(what: str, number: int = 1) -> None:
    """Count something for the figures that a run of these tests ends with."""
    counted[what] += number
