"""Reports of results: the page, model cards, and tables for a terminal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodistill.report.headline import answer
    from retrodistill.report.page import page_text, write_page
    from retrodistill.report.tables import examples_text, results_text

_HOMES = {"headline": ["answer"], "page": ["page_text", "write_page"], "tables": ["examples_text", "results_text"]}

__all__ = ["answer", "examples_text", "page_text", "results_text", "write_page"]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
