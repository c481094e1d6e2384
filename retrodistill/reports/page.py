"""The page: one HTML file that loads nothing, the answer first."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape

from retrodistill.files import atomic_file
from retrodistill.reports import sections
from retrodistill.reports.results import Results
from retrodistill.reports.script import SCRIPT
from retrodistill.reports.style import STYLE

_PARTS = (
    sections.opening,
    sections.notes,
    sections.systems,
    sections.comparisons,
    sections.costs,
    sections.training,
    sections.examples,
    sections.provenance,
)


def write_page(results: Results, path: str | os.PathLike[str]) -> None:
    """Write report.html, whole or not at all.

    Raises:
        UserError: It cannot be written there.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(page_text(results), encoding="utf-8", newline="\n")


def page_text(results: Results) -> str:
    """The page as text; the same results give the same page."""
    title = escape(f"{results.name or 'retrodistill'} · {results.collection}")
    body = "\n".join(part for part in (make(results) for make in _PARTS) if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _policy() -> str:
    """Only our own script runs and nothing is loaded, whatever a document's text may hold."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
