"""Collections: documents, queries and relevance judgments, and where they are loaded from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.paths import path_of
from retrodistill.data.beir import load_folder, load_public
from retrodistill.data.collection import Collection, Qrels
from retrodistill.data.demo import load_demo
from retrodistill.data.hubs import load_huggingface, load_irdatasets
from retrodistill.data.judgments import with_judgments
from retrodistill.data.leaks import Leak, leaks
from retrodistill.data.parents import PassageSettings
from retrodistill.data.passages import with_passages
from retrodistill.data.texts import Texts

__all__ = [
    "Collection",
    "Leak",
    "PassageSettings",
    "Qrels",
    "Texts",
    "leaks",
    "load_collection",
    "with_judgments",
    "with_passages",
]

_FORMS = "'demo', 'beir/<name>', 'ir_datasets:<id>', 'hf:<name or folder>', or a folder in BEIR's layout"
_LOADERS: dict[str, Callable[[str], Collection]] = {
    "ir_datasets:": load_irdatasets,
    "hf:": load_huggingface,
    "hf-stream:": partial(load_huggingface, stream=True),
    "beir/": load_public,
}


def load_collection(source: str | Path | Collection, *, passages: Any = None) -> Collection:
    """Load a collection by name or from a folder.

    Args:
        source: ``"demo"`` (made from Python's own documentation), ``"beir/<name>"`` (downloaded once),
            ``"ir_datasets:<id>"``, ``"hf:<name or folder>"``, or a folder in BEIR's layout. These names take precedence
            over a folder of the same name (write ``"./demo"`` for the folder), but a `Path` is always a folder. A
            `Collection` is returned unchanged.
        passages: Cut documents into passages: `PassageSettings`, a mapping of its keys, or ``"120,20"`` for passages of
            120 words that repeat up to 20. See `with_passages`.

    Raises:
        UserError: It is none of these, the data cannot be read, or the passages do not fit.
    """
    if passages is not None:
        settings = PassageSettings.of(passages)  # before the data is read
        return with_passages(load_collection(source), settings)
    if isinstance(source, Collection):
        return source
    if not isinstance(source, str | Path):
        raise UserError(f"a collection cannot be made from {type(source).__name__}; give {_FORMS}.")
    if isinstance(source, str):
        if source == "demo":
            return load_demo()
        for prefix, load in _LOADERS.items():
            if source.startswith(prefix):
                return load(source.removeprefix(prefix))
    folder = path_of(source)
    # Path("") is the current folder, which an empty string never means.
    if str(source) and folder.is_dir():
        return load_folder(folder)
    raise UserError(f"no collection {str(source)!r}: no such folder, nor a known form; give {_FORMS}.")
