"""Models that bring their own code: it runs only where the user allows the model by its name.

A recipe, a manifest, or a model never allows itself. Other processes that this one starts inherit what is allowed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrodistill.core.digests import file_digest
from retrodistill.core.errors import UserError
from retrodistill.core.paths import path_of
from retrodistill.encoders.names import KINDS

VARIABLE = "RETRODISTILL_TRUST_REMOTE_CODE"
OPTION = "--trust-remote-code"
_PACKAGE = "transformers_modules."  # where transformers imports the code of a model
_run: dict[str, str] = {}  # digest of code that was loaded in this process -> the name by which it was allowed


@contextlib.contextmanager
def trust_remote_code(*names: str) -> Iterator[None]:
    """Inside the block, models of these names may run the code of their folder or repository.

    A name is a hub name or a folder, as in ``dense:NAME`` (the kind may be left out). The environment variable
    ``RETRODISTILL_TRUST_REMOTE_CODE`` has the same effect; it lists names between commas.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ",".join([*_allowed(), *map(_without_kind, names)])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def trusted_as(name: str) -> str | None:
    """The name by which the user allowed the code of a model, a hub name or a folder; None if not."""
    folder = path_of(name)
    for each in _allowed():
        other = path_of(each)
        if each == name or (folder.is_dir() and other.is_dir() and folder.samefile(other)):
            return each
    return None


def copied_from(folder: Path, references: Sequence[str]) -> str | None:
    """The allowed name of the model whose code a folder has a copy of, as a student that was just saved has; or None.

    All code in the folder has to equal code that was loaded in this process by a name that is still allowed, and the
    classes that its model references (see `files_of`) have to be in the folder.
    """
    if not references:  # as for most models, whose folders need no look
        return None
    files = list(folder.rglob("*.py"))
    if not set(files_of(references)) <= {file.name for file in files}:
        return None
    sources = {_run.get(file_digest(file)) for file in files}
    return next(iter(sources)) if len(sources) == 1 and sources <= set(_allowed()) else None


def require_trusted(names: Sequence[str], what: str) -> None:
    """Refuse what states that it needs the code of models that the user did not allow."""
    missing = [name for name in map(_without_kind, names) if trusted_as(name) is None]
    if missing:
        options = " ".join(f"{OPTION} {name}" for name in missing)
        raise UserError(
            f"{what} needs models that bring their own code ({', '.join(missing)}); read it, then allow it by name: "
            f"{options}, or in Python 'with trust_remote_code({missing[0]!r}):'."
        )


def not_trusted(name: str, files: Sequence[str]) -> UserError:
    """The error for a model whose code is needed and not allowed."""
    return UserError(
        f"model {name} brings its own code ({', '.join(files)}), which would run here; read it, then allow it by name: "
        f"{OPTION} {name}, or in Python 'with trust_remote_code({name!r}):' of retrodistill.encoders, or {VARIABLE}."
    )


def files_of(references: Sequence[str]) -> list[str]:
    """The files of classes such as ``module.Class`` or, of another repository, ``owner/name--module.Class``."""
    files = []
    for reference in references:
        repository, dashes, path = reference.rpartition("--")
        files.append(f"{path.rpartition('.')[0].replace('.', '/')}.py{' of ' + repository if dashes else ''}")
    return list(dict.fromkeys(files))


def code_of(model: Any) -> dict[str, Any]:
    """For manifests: digests of the files whose code a loaded model runs, and its revision on the hub; or empty."""
    parts = list(model.modules()) if hasattr(model, "modules") else []
    parts += [getattr(part, name, None) for part in parts for name in ("config", "tokenizer", "processor")]
    packages = {
        type(part).__module__.rpartition(".")[0] for part in parts if type(part).__module__.startswith(_PACKAGE)
    }
    if not packages:
        return {}
    modules = {name: module for name, module in list(sys.modules.items()) if name.rpartition(".")[0] in packages}
    files = {Path(str(module.__file__)) for module in modules.values() if getattr(module, "__file__", None)}
    digests = {file.name: file_digest(file) for file in sorted(files) if file.name != "__init__.py"}
    revisions = [getattr(getattr(part, "config", None), "_commit_hash", None) for part in parts]
    return {"files": digests, "revision": next((revision for revision in revisions if revision), None)}


def remember_code(model: Any, name: str) -> None:
    """Keep the digests of the code of a model that was just loaded, and the `name` by which it was allowed."""
    _run.update(dict.fromkeys(code_of(model).get("files", {}).values(), name))


def _allowed() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def _without_kind(name: str) -> str:
    kind, colon, rest = name.strip().partition(":")
    return rest if colon and kind in KINDS else name.strip()
