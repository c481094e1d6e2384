"""retrodistill: distill strong, slow rankers into small, fast retrievers and compact indexes.

Names are imported on first use, so that ``import retrodistill`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodistill.api import distill, evaluate, trim
    from retrodistill.candidates import mine
    from retrodistill.core.errors import UserError
    from retrodistill.data import Collection, load_collection
    from retrodistill.encoders import Encoder, load_encoder
    from retrodistill.indexes import build_index, load_index
    from retrodistill.publishing import push_to_hub
    from retrodistill.rankers import score
    from retrodistill.recipes import run_recipe
    from retrodistill.runs import Run, fuse, read_run, write_run

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
    "push_to_hub",
    "read_run",
    "run_recipe",
    "score",
    "trim",
    "write_run",
]

_NAMES = {
    "api": ("distill", "evaluate", "trim"),
    "candidates": ("mine",),
    "core.errors": ("UserError",),
    "data": ("Collection", "load_collection"),
    "encoders": ("Encoder", "load_encoder"),
    "indexes": ("build_index", "load_index"),
    "publishing": ("push_to_hub",),
    "rankers": ("score",),
    "recipes": ("run_recipe",),
    "runs": ("Run", "fuse", "read_run", "write_run"),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
