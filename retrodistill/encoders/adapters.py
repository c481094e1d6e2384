"""LoRA adapters in PEFT's format: which base model they are for, whether they fit it, and merged into its weights.

An adapter is a folder with ``adapter_config.json``, which names the base model, and ``adapter_model.safetensors``. It
is alone or, as sentence-transformers saves it, in the place of a transformer's weights among the modules of a model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from retrodistill.core.errors import UserError, first_line
from retrodistill.core.files import temporary_folder
from retrodistill.encoders.layers import stack_of, transformers_in

ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
TRANSFORMERS = "5.18"  # earlier releases leave weights of adapters, or of their heads, as they were initialized
_PREFIX = "base_model.model."  # of the names of PEFT's weights


def require_lora(name: str, config: Mapping[str, Any]) -> str:
    """The base model that the configuration of an adapter names; a UserError if it is not LoRA, or peft is missing."""
    kind, base = config.get("peft_type"), config.get(BASE)
    if kind != "LORA":
        raise UserError(
            f"model {name} is an adapter of type {kind}, and only LoRA loads; merge it into its base model."
        )
    if not base:
        raise UserError(f"adapter {name} names no base model; set {BASE} in its {ADAPTER}.")
    require_peft(f"model {name} is a LoRA adapter")
    return str(base)


def require_peft(what: str) -> None:
    """Raise a UserError if peft is not installed, or transformers is too old for it; `what` says what needs it."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{what}, and peft is not installed; run: pip install 'retrodistill[lora]'.")
    if Version(found := version("transformers")) < Version(TRANSFORMERS):
        raise UserError(
            f"{what}, which transformers {found} loads with other weights; install {TRANSFORMERS} or later: "
            "pip install 'retrodistill[lora]'."
        )


@contextlib.contextmanager
def with_bases(folder: Path, bases: Mapping[str, str]) -> Iterator[Path]:
    """A folder whose adapters name other bases: by the adapters' folders inside, as ``"0_Transformer/"``.

    The files of the model are linked, not copied, and nothing is written into its own folder.
    """
    with temporary_folder() as temporary:
        for file in (file for file in folder.rglob("*") if file.is_file()):
            copy = temporary / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            inside = file.parent.relative_to(folder).as_posix()
            base = bases.get("" if inside == "." else f"{inside}/")
            if file.name == ADAPTER and base is not None:
                content = {**json.loads(file.read_text(encoding="utf-8")), BASE: base}
                copy.write_text(json.dumps(content), encoding="utf-8")
                continue
            try:
                os.symlink(file.resolve(), copy)
            except OSError:  # a system without links
                shutil.copyfile(file, copy)
        yield temporary


def add_adapter(model: Any, name: str, base: str, place: str) -> None:
    """Add an adapter, in place, to the transformer of a loaded base model; one that does not fit is a UserError."""
    transformers = transformers_in(model)
    if len(transformers) != 1:
        raise UserError(f"adapter {name}: its base model {base} has {len(transformers)} transformers; it needs one.")
    try:
        report = transformers[0].load_adapter(place)
    except (ValueError, RuntimeError, KeyError) as error:
        raise _other_shape(name, base, first_line(error)) from error
    if wrong := [*report.unexpected_keys, *report.missing_keys, *report.mismatched_keys]:
        raise _other_shape(name, base, f"{len(wrong)} weights such as {_plain(str(wrong[0]))}")


def check_adapters(model: Any, name: str, base: str, weights: Sequence[Path]) -> None:
    """Refuse a model to which not exactly the weights of its adapters' files were added, as for another base."""
    from safetensors import safe_open

    stored = []
    for file in weights:
        with safe_open(file, "pt") as content:
            stored += [_plain(key) for key in content.keys()]  # noqa: SIM118 - it is no mapping
    adapted = [part for part in transformers_in(model) if is_adapted(part)]
    added = [_plain(key) for part in adapted for key in part.get_adapter_state_dict()]
    prefixes = {f"{part.base_model_prefix}." for part in adapted}
    sides = [{_without(key, prefixes) for key in keys} for keys in (stored, added)]
    if wrong := sides[0] ^ sides[1]:
        raise _other_shape(name, base, f"{len(wrong)} weights such as {min(wrong)}")


def is_adapted(transformer: Any) -> bool:
    """Whether a transformer has adapters that are not merged."""
    return bool(getattr(transformer, "_hf_peft_config_loaded", False))


def merge_adapters(model: Any) -> None:
    """Add adapters to the weights that they are for, in place, and remove them: W + s B A (LoRA, arXiv 2106.09685).

    All weights can be trained afterwards. The model saves as one without adapters: whole, and for readers without peft.
    """
    for transformer in filter(is_adapted, transformers_in(model)):
        _merge(transformer)
        del transformer.peft_config
        transformer._hf_peft_config_loaded = False
        # Names as PEFT's files have them, which loading the adapter set for saving, too: no model would read them.
        vars(transformer).pop("_weight_conversions", None)
        transformer.requires_grad_(True)


class LoraShape(NamedTuple):
    """New adapters of a transformer's linear layers."""

    rank: int
    alpha: float  # what they add is multiplied by alpha / rank
    dropout: float = 0.0
    modules: Sequence[str] = ()  # ends of the names of linear layers; all of the stack if empty

    def targets(self, transformer: Any) -> dict[str, Any]:
        """The linear layers of a transformer's stack that get adapters, by name; a UserError if there are none."""
        from torch import nn

        stack = stack_of(transformer)[0]
        within = {id(module) for module in stack.modules()}
        named = {name: each for name, each in transformer.named_modules() if id(each) in within}
        linear = {name: each for name, each in named.items() if isinstance(each, nn.Linear)}
        chosen = {name: each for name, each in linear.items() if not self.modules or self._names(name)}
        if not chosen:
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none"
            raise UserError(f"lora.modules: no linear layer is named {' or '.join(self.modules)}; there are {ends}.")
        return chosen

    def _names(self, layer: str) -> bool:
        return any(f".{layer}".endswith(f".{end}") for end in self.modules)

    def parameters(self, model: Any) -> int:
        """How many parameters the adapters of a model have, as one without adapters has none."""
        layers = [layer for each in transformers_in(model) for layer in self.targets(each).values()]
        return sum(self.rank * (layer.in_features + layer.out_features) for layer in layers)


@contextlib.contextmanager
def training_adapters(model: Any, shape: LoraShape, seed: int) -> Iterator[None]:
    """Inside the block, new adapters are trained in the place of a model's transformer; then they are merged into it.

    Heads are trained whole, inside a transformer or after it. A model without a transformer is a UserError.
    """
    import torch
    from peft import LoraConfig

    transformers = transformers_in(model)
    if not transformers:
        raise UserError("lora adapts a transformer, and this student has none; remove lora from its stages.")
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    settings = {"r": shape.rank, "lora_alpha": shape.alpha, "lora_dropout": shape.dropout}
    torch.manual_seed(seed)
    for transformer in transformers:
        inner = {id(parameter) for parameter in transformer.base_model.parameters()}
        transformer.add_adapter(LoraConfig(target_modules=list(shape.targets(transformer)), **settings))
        for name, parameter in transformer.named_parameters():
            if id(parameter) not in inner and "lora_" not in name:
                parameter.requires_grad_(True)
    yield
    merge_adapters(model)
    for parameter in frozen:
        parameter.requires_grad_(False)


def has_adapters(model: Any) -> bool:
    """Whether some transformer of a model has adapters that are not merged."""
    return any(map(is_adapted, transformers_in(model)))


def _merge(parent: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, child in list(parent.named_children()):
        if isinstance(child, AuxiliaryTrainingWrapper):  # a head that was trained whole
            setattr(parent, name, child.unload_and_optionally_merge_module(True, False, None))
        elif isinstance(child, BaseTunerLayer):
            child.merge()
            setattr(parent, name, child.get_base_layer())
        else:
            _merge(child)


def _plain(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(".default.", ".")


def _without(key: str, prefixes: set[str]) -> str:
    return next((key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix)), key)


def _other_shape(name: str, base: str, reason: str) -> UserError:
    return UserError(
        f"adapter {name} does not fit its base model {base} ({reason[:160].rstrip('.')}); set {BASE} in its {ADAPTER} "
        "to the model that it was trained on."
    )
