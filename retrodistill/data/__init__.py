"""Collections: documents, queries and relevance judgments, and where they are loaded from."""

from __future__ import annotations

from pathlib import Path

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection, Leak, Qrels, leak_warning, leaks, leaks_between
from retrodistill.data.texts import Texts

__all__ = ["Collection", "Leak", "Qrels", "Texts", "leak_warning", "leaks", "leaks_between", "load_collection"]

_FORMS = "'demo', 'beir/<name>', 'ir_datasets:<id>', 'hf:<name or folder>', or a folder in BEIR's layout"


def load_collection(source: str | Path | Collection) -> Collection:
    """Load a collection by name or from a folder.

    Args:
        source: ``"demo"`` (made from Python's own documentation), ``"beir/<name>"`` (downloaded once),
            ``"ir_datasets:<id>"``, ``"hf:<name or folder>"``, or a folder in BEIR's layout. These names take precedence
            over a folder of the same name (write ``"./demo"`` for the folder), but a `Path` is always a folder. A
            `Collection` is returned unchanged.

    Raises:
        UserError: It is none of these, or the data cannot be read.
    """
    if isinstance(source, Collection):
        return source
    if isinstance(source, str):
        named = _load_named(source)
        if named is not None:
            return named
    elif not isinstance(source, Path):
        raise UserError(f"a collection cannot be made from {type(source).__name__}; give {_FORMS}.")
    folder = Path(source).expanduser()
    # Path("") is the current folder, which an empty string never means.
    if str(source) and folder.is_dir():
        from retrodistill.data.beir import load_folder

        return load_folder(folder)
    raise UserError(f"no collection {str(source)!r}: no such folder, nor a known form; give {_FORMS}.")


def _load_named(source: str) -> Collection | None:
    if source == "demo":
        from retrodistill.data.demo import load_demo

        return load_demo()
    if source.startswith("ir_datasets:"):
        from retrodistill.data.hubs import load_irdatasets

        return load_irdatasets(source.removeprefix("ir_datasets:"))
    if source.startswith("hf:"):
        from retrodistill.data.hubs import load_huggingface

        return load_huggingface(source.removeprefix("hf:"))
    if source.startswith("beir/"):
        from retrodistill.data.beir import load_public

        return load_public(source.removeprefix("beir/"))
    return None
