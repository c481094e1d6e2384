"""What the files of a model say about themselves, checked against their sizes before a library acts on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from retrodistill.core.disk import reason_of
from retrodistill.core.errors import UserError, first_line
from retrodistill.core.json_files import read_json
from retrodistill.core.paths import input_file

_MODULES = "modules.json"
_SHARED_LAYERS, _ROTARY_SIZE = 1000, 1 << 20  # what a few tensors may serve: layers that share weights, positions
_LAYERS = re.compile(r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?")
_SIZES = re.compile(r"(vocab|type_vocab|hidden|intermediate|embedding)_size|max_position_embeddings|d_model|d_ff|dim")


def check_model_files(folder: Path) -> None:
    """Refuse a model folder with damaged weights, with sizes that its weights cannot have, or that reads elsewhere.

    Weights are compared with their files' sizes, which takes no memory for them. A configuration with more layers than
    there are tensors, or a size beyond the bytes of all weights, would take memory and hours before a library notices.
    """
    modules = folder / _MODULES
    if modules.is_file():
        for path in _module_paths(read_json(modules), modules):
            if leads_out(path):
                raise UserError(f"{modules} names the folder {path!r}, which is not in the model's own; correct it.")
    for file in folder.rglob("*"):
        input_file(file)
    tensors = weights = 0
    for file in sorted(folder.rglob("*.safetensors")):
        tensors += _tensors(file)
        weights += file.stat().st_size
    for file in sorted(folder.rglob("*.safetensors.index.json")):
        shards = read_json(file)
        shards = shards.get("weight_map") if isinstance(shards, dict) else None
        names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
        if outside := next(filter(leads_out, sorted(names)), None):
            raise UserError(f"{file} names the file {outside!r}, which is not in the model's own folder; correct it.")
    if weights and not any(folder.rglob("*.bin")):
        for file in sorted(folder.rglob("config.json")):
            _check_sizes(read_json(file), file, tensors, weights)


def _module_paths(modules: Any, file: Path) -> Iterator[str]:
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{file} is not a list of modules; it is cut short or altered: get the model again.")
    for module in modules:
        yield str(module.get("path") or "")


def leads_out(path: str) -> bool:
    """Whether a name of a file in a folder leads out of that folder, on any system."""
    kinds = (PurePosixPath(path), PureWindowsPath(path))
    return "\0" in path or any(kind.anchor or ".." in kind.parts for kind in kinds)


def _tensors(file: Path) -> int:
    """Number of tensors in a file of weights, whose header and offsets fit its size."""
    from safetensors import SafetensorError, safe_open

    try:
        file.open("rb").close()  # safetensors calls whatever keeps it from opening a file a missing file
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason_of(error, file)}.") from error
    try:
        with safe_open(file, "np") as content:
            return len(content.keys())
    except (SafetensorError, OSError, ValueError) as error:
        reason = first_line(error)[:160]
        raise UserError(f"{file} is cut short or altered ({reason}); get or train the model again.") from error


def _check_sizes(config: Any, file: Path, tensors: int, weights: int) -> None:
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object; it is altered: get or train the model again.")
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, file, tensors, weights)
        elif isinstance(value, int) and not isinstance(value, bool):
            most = value
            if _LAYERS.fullmatch(key):
                most = max(tensors, _SHARED_LAYERS)
            elif _SIZES.fullmatch(key):
                most = max(weights, _ROTARY_SIZE)
            if value > most:
                raise UserError(
                    f"{file} says {key}: {value}, and the weights are {tensors} tensors of {weights} bytes in all; one "
                    "of them is cut short or altered: get or train the model again."
                )
