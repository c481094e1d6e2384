"""Bring several runs onto the same pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from retrodistill.core.errors import UserError
from retrodistill.runs.run import Run, id_codes


def align(runs: Sequence[Run], name: str = "union") -> tuple[Run, np.ndarray]:
    """Put runs side by side on the union of their pairs.

    Returns:
        The union as a run (its scores are 0 and mean nothing), queries in the order of first appearance, and a
        (rows, runs) float64 matrix of each run's scores; NaN where a run has no score for the pair.

    Raises:
        UserError: No run was given.
    """
    if not runs:
        raise UserError("no run was given; give at least one.")
    query_names, query_codes = _common([run.table["query_id"] for run in runs])
    document_names, document_codes = _common([run.table["document_id"] for run in runs])
    width = max(len(document_names), 1)
    keys = [queries * width + documents for queries, documents in zip(query_codes, document_codes, strict=True)]
    union = np.unique(np.concatenate(keys))
    matrix = np.full((len(union), len(runs)), np.nan)
    for column, (run, own) in enumerate(zip(runs, keys, strict=True)):
        matrix[np.searchsorted(union, own), column] = run.scores
    table = pa.table(
        {
            "query_id": _dictionary(union // width, query_names),
            "document_id": _dictionary(union % width, document_names),
            "score": pa.array(np.zeros(len(union))),
        }
    )
    return Run(table, name), matrix


def look_up(run: Run, pairs: Run) -> np.ndarray:
    """(rows of `pairs`,) float64 scores that `run` gives to the pairs; NaN where it has none."""
    _, query_codes = _common([run.table["query_id"], pairs.table["query_id"]])
    _, document_codes = _common([run.table["document_id"], pairs.table["document_id"]])
    width = 1 + max((int(codes.max(initial=0)) for codes in document_codes), default=0)
    own, wanted = (queries * width + documents for queries, documents in zip(query_codes, document_codes, strict=True))
    order = np.argsort(own, kind="stable")
    place = np.searchsorted(own[order], wanted)
    found = np.zeros(len(wanted), dtype=bool)
    inside = place < len(own)
    found[inside] = own[order][place[inside]] == wanted[inside]
    scores = np.full(len(wanted), np.nan)
    scores[found] = run.scores[order][place[found]]
    return scores


def _common(columns: Sequence[pa.ChunkedArray]) -> tuple[list[str], list[np.ndarray]]:
    """One dictionary for several id columns, and each column's codes in it."""
    names: dict[str, int] = {}
    coded = []
    for column in columns:
        dictionary, codes = id_codes(column)
        first = np.unique(codes, return_index=True)[1]
        for entry in codes[np.sort(first)]:
            names.setdefault(dictionary[entry], len(names))
        coded.append(np.array([names[entry] for entry in dictionary], dtype=np.int64)[codes])
    return list(names), coded


def _dictionary(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(list(names), pa.string()))
