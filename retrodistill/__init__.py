"""retrodistill: distill strong, slow rankers into small, fast retrievers and compact indexes.

Names are imported on first use, so that ``import retrodistill`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodistill.api import distill, evaluate
    from retrodistill.candidates import mine
    from retrodistill.core.errors import UserError
    from retrodistill.data import Collection, load_collection
    from retrodistill.encoders import Encoder, load_encoder
    from retrodistill.indexes import build_index, load_index
    from retrodistill.rankers import score
    from retrodistill.recipes import run_recipe
    from retrodistill.runs import Run, fuse, read_run, write_run

_HOMES = {
    "Collection": "retrodistill.data",
    "Encoder": "retrodistill.encoders",
    "Run": "retrodistill.runs",
    "UserError": "retrodistill.core.errors",
    "build_index": "retrodistill.indexes",
    "distill": "retrodistill.api",
    "evaluate": "retrodistill.api",
    "fuse": "retrodistill.runs",
    "load_collection": "retrodistill.data",
    "load_encoder": "retrodistill.encoders",
    "load_index": "retrodistill.indexes",
    "mine": "retrodistill.candidates",
    "read_run": "retrodistill.runs",
    "run_recipe": "retrodistill.recipes",
    "score": "retrodistill.rankers",
    "write_run": "retrodistill.runs",
}

__all__ = [
    "Collection",
    "Encoder",
    "Run",
    "UserError",
    "build_index",
    "distill",
    "evaluate",
    "fuse",
    "load_collection",
    "load_encoder",
    "load_index",
    "mine",
    "read_run",
    "run_recipe",
    "score",
    "write_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retrodistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
