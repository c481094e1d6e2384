"""How long the long part of these tests is, and what it counted."""

from __future__ import annotations

import os
from collections import Counter

MOMENTS = int(os.environ.get("FAULTS_MOMENTS", "10"))
FILES = int(os.environ.get("FAULTS_FILES", "10"))  # that are damaged, of all jobs in turn
SEED = int(os.environ.get("FAULTS_SEED", "0"))

counted: Counter[str] = Counter()


def record(what: str, number: int = 1) -> None:
    """Count something for the figures that a run of these tests ends with."""
    counted[what] += number
