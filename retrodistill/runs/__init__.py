"""Runs, tables of (query_id, document_id, score): files, top-k, union, fusion, calibration, agreement."""

from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.fusion import fuse, union
from retrodistill.runs.run import Run

__all__ = ["Run", "fuse", "read_run", "union", "write_run"]
