"""Saved folders that sentence-transformers 3 to 5 load, too: their names of classes and of settings.

Version 6 writes new ones and reads both. What the old versions lack cannot be written for them: a `Dense` between other
features than the sentence embedding (hybrid students), `SparseEncoder` (before 5.0), and multi-vector models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrodistill.core.json_files import json_text, read_json

_DENSE = "sentence_transformers.models"
_SPARSE = "sentence_transformers.sparse_encoder.models"
_OF_SPARSE = ("MLMTransformer", "SparseStaticEmbedding", "SpladePooling")
_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_TABLE_FILES = ("model.safetensors", "tokenizer.json", "tokenizer_config.json")
_UNLIMITED = 10**9  # what transformers writes for a tokenizer without a limit is larger
_EMBEDDING = "sentence_embedding"


def write_classic_names(folder: Path) -> None:
    """Rewrite the names of modules and settings of a saved model; what the old versions lack stays as it is."""
    path = folder / "modules.json"
    if not path.is_file():  # a cross-encoder, which has no modules
        return
    modules = read_json(path)
    for module in modules:
        if module["type"].endswith(".StaticEmbedding") and not module["path"]:
            module["path"] = _moved_table(folder, f"{module['idx']}_StaticEmbedding")
        module["type"] = _rewritten(folder / module["path"], module["type"])
    _write(path, modules)


def _write(path: Path, value: Any) -> None:
    """Write JSON for sentence-transformers, which does not know the checksum that `write_json` adds."""
    path.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


def _moved_table(folder: Path, name: str) -> str:
    """Move a token table into a folder of its own: versions 3 and 4 take what is at the top for a transformer."""
    (folder / name).mkdir()
    for file in _TABLE_FILES:
        if (folder / file).is_file():
            (folder / file).rename(folder / name / file)
    return name


def _rewritten(folder: Path, name: str) -> str:
    """The classic name of a module's class, after its settings were rewritten."""
    kind = name.rpartition(".")[2]
    if not name.startswith("sentence_transformers.") or kind not in _SETTINGS:
        return name
    file, convert = _SETTINGS[kind]
    path = folder / file
    settings = read_json(path) if path.is_file() else {}
    if settings.get("transformer_task") == "fill-mask":
        kind = "MLMTransformer"
    converted = convert(settings, folder)
    if converted != settings:
        _write(path, converted)
    return f"{_SPARSE if kind in _OF_SPARSE else _DENSE}.{kind}"


def _as_it_is(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    return settings


def _router(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    types = {part: _rewritten(folder / part, name) for part, name in settings["types"].items()}
    parameters = {key: value for key, value in settings["parameters"].items() if key != "route_mappings" or value}
    return {**settings, "types": types, "parameters": parameters}


def _splade(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    names = {"embedding_dimension": "word_embedding_dimension"}
    return {names.get(key, key): value for key, value in settings.items()}


def _pooling(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    rest = dict(settings)
    given = rest.pop("pooling_mode", None)
    if given is None or "embedding_dimension" not in rest:
        return settings
    modes = [given] if isinstance(given, str) else given
    size = rest.pop("embedding_dimension")
    flags = {name: mode in modes for mode, name in _MODES.items()}
    return {"word_embedding_dimension": size, **flags, **rest}


def _dense(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    ends = {"module_input_name", "module_output_name"}
    if all(settings.get(end, _EMBEDDING) == _EMBEDDING for end in ends):
        return {key: value for key, value in settings.items() if key not in ends}
    return settings


def _transformer(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tokenizer's length, where the transformer gives what it gave in the old versions."""
    output = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}.get(
        settings.get("transformer_task", "")
    )
    text = {"text": {"method": "forward", "method_output_name": output}}
    usual = {"modality_config": text, "module_output_name": "token_embeddings"}
    if output is None or settings != {"transformer_task": settings["transformer_task"], **usual}:
        return settings
    about = folder / "tokenizer_config.json"
    length = read_json(about).get("model_max_length") if about.is_file() else None
    # null: that of the configuration
    return {"max_seq_length": length if length is not None and length < _UNLIMITED else None, "do_lower_case": False}


_SETTINGS: dict[str, tuple[str, Callable[[dict[str, Any], Path], dict[str, Any]]]] = {
    "Dense": ("config.json", _dense),
    "LayerNorm": ("config.json", _as_it_is),
    "MLMTransformer": ("sentence_bert_config.json", _transformer),
    "Normalize": ("config.json", _as_it_is),
    "Pooling": ("config.json", _pooling),
    "Router": ("router_config.json", _router),
    "SparseStaticEmbedding": ("config.json", _as_it_is),
    "SpladePooling": ("config.json", _splade),
    "StaticEmbedding": ("config.json", _as_it_is),
    "Transformer": ("sentence_bert_config.json", _transformer),
    "WordEmbeddings": ("wordembedding_config.json", _as_it_is),
}
