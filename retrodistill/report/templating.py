"""The templates of the page and of model cards: Jinja2 files in templates/."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from retrodistill.report import text

_FORMATS = (
    text.measure, text.signed, text.percent, text.number, text.thousands, text.milliseconds, text.latency, text.memory,
    text.duration, text.measure_title, text.probability, text.interval, text.plain,
)  # fmt: skip


def environment(escape: bool) -> Environment:
    """Where templates are loaded from; the formats of `text` are filters.

    Args:
        escape: Whether values are escaped for HTML.
    """
    templates = Environment(
        loader=PackageLoader("retrodistill.report"),
        autoescape=escape,
        undefined=StrictUndefined,  # a misspelled name must not print as nothing
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {function.__name__: function for function in _FORMATS}
    return templates


def source(name: str) -> str:
    """The text of a file in templates/."""
    return (resources.files("retrodistill.report") / "templates" / name).read_text(encoding="utf-8")
