"""The page: one HTML file that loads nothing, the answer first."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from html import escape

from retrodistill.core.files import atomic_file
from retrodistill.evaluation.results import Results
from retrodistill.report.agreement import agreement
from retrodistill.report.compression import compression
from retrodistill.report.curves import training
from retrodistill.report.differences import differences
from retrodistill.report.front import front
from retrodistill.report.names import with_short_names
from retrodistill.report.queries import queries
from retrodistill.report.script import SCRIPT
from retrodistill.report.sections import notes, opening, provenance
from retrodistill.report.style import STYLE
from retrodistill.report.systems import systems

# What follows the answer: the word in the list of contents, and what writes it.
_PARTS = {
    "Systems": systems,
    "Differences": differences,
    "Cost": front,
    "Training": training,
    "Agreement": agreement,
    "Compression": compression,
    "Queries": queries,
    "Provenance": provenance,
}


def write_page(results: Results, path: str | os.PathLike[str]) -> None:
    """Write report.html, whole or not at all.

    Raises:
        UserError: It cannot be written there.
    """
    with atomic_file(path) as temporary:
        # A name of a file that is no UTF-8 stands as a question mark rather than stopping the job.
        temporary.write_text(page_text(results), encoding="utf-8", errors="replace", newline="\n")


def page_text(results: Results) -> str:
    """The page as text; the same results give the same page."""
    results = with_short_names(results)
    title = escape(f"{results.name or 'retrodistill'} · {results.collection}")
    made = {word: part for word, make in _PARTS.items() if (part := make(results))}
    body = "\n".join([opening(results), _contents(made), notes(results), *made.values()])
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
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _contents(parts: Mapping[str, str]) -> str:
    """Links to the sections; each begins with its id."""
    links = " ".join(f'<a href="#{part.split(chr(34), 2)[1]}">{word}</a>' for word, part in parts.items())
    return f'<nav aria-label="Contents">{links}</nav>'


def _policy() -> str:
    """Only our own script runs and nothing is loaded, whatever a document's text may hold."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
