"""What leaves this machine: texts and JSON values without the folders of its user, and without keys."""

from __future__ import annotations

import re
from typing import Any

# A local path begins at the root, at home, above the working directory, or at a drive; its folders are cut off.
_START = r"(?:~[\w.-]*[/\\]|(?:\.\.[/\\])+|/(?=[^/\s])|[A-Za-z]:[/\\](?=[^/\\]))"
_WHOLE = re.compile(rf"((?:content of )?(?:[a-z][a-z-]+:)?){_START}([^\n]*)")
_FOLDERS = re.compile(rf"(?<![\w/.\\~-]){_START}(?:[^\s/\\\"'`|()<>\[\]]+[/\\])*(?=[^\s/\\\"'`|()<>\[\]])")
_SPAN = re.compile(r"(?<=`)[^`\n]+(?=`)")
_KEYS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,})")


def without_local_folders(text: str) -> str:
    """A text in which local paths keep their last part only; names on the hub and addresses stay."""
    whole = _SPAN.sub(lambda span: _last_part(span[0]), text)
    return _FOLDERS.sub("", whole)


def published_value(value: Any) -> Any:
    """A JSON value whose strings and keys are without local folders."""
    if isinstance(value, dict):
        return {_published_string(str(key)): published_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [published_value(item) for item in value]
    return _published_string(value) if isinstance(value, str) else value


def holds_key(text: str) -> bool:
    """Whether a text has something of the form of a key to a known service."""
    return _KEYS.search(text) is not None


def _published_string(text: str) -> str:
    whole = _last_part(text)
    return whole if whole != text else without_local_folders(text)


def _last_part(text: str) -> str:
    """The last part of a text that is a path as a whole, which may have spaces, after the kind of a model."""
    match = _WHOLE.fullmatch(text)
    if match is None or not re.search(r"[/\\]", text[match.end(1) + 1 :].rstrip("/\\")):
        return text
    return match[1] + re.split(r"[/\\]", text.rstrip("/\\"))[-1]
