"""The page: one HTML file with its style and script; what it shows, it asks of the API."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from retrodistill.report import text

_PACKAGE = "retrodistill.serving"


@cache
def page() -> tuple[str, str]:
    """The HTML, and its content security policy: only its own style and script, and requests to this server."""
    style = text.source("colors.css") + text.source("serve.css", _PACKAGE)
    script = text.source("serve.js", _PACKAGE)
    html = text.environment(True, _PACKAGE).get_template("serve.html.j2").render(style=style, script=script)
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
