"""Reports of results: the page, model cards, and tables for a terminal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrodistill.report.headline import answer
    from retrodistill.report.page import page_text, write_page
    from retrodistill.report.tables import examples_text, results_text

_HOMES = {
    "answer": "headline",
    "examples_text": "tables",
    "page_text": "page",
    "results_text": "tables",
    "write_page": "page",
}

__all__ = ["answer", "examples_text", "page_text", "results_text", "write_page"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
