"""Modules of sentence-transformers models: recombine, cut, and save them, digest what decides their output."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.encoders.layers import final_norm, keep_layers, stack_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

Kind = Literal["SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"]
ROUTE = "exit-"
KEEP = "keep-"
LENGTH_ADAPTIVE = "length_adaptive"  # in a transformer's configuration, and in the settings of a module
_TRUNCATIONS = ("truncate_dim", "max_active_dims")
# Keys of a configuration that decide no vector: versions, places, labels, numeric types (of weights: their digest has
# the bytes), outputs that nobody asked for, what matters in training or generation only, and which tokens may be
# dropped, since a module that drops some says so in its settings.
_UNDECISIVE = frozenset({
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "cls_token_id", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range", "label2id",
    LENGTH_ADAPTIVE, "mask_token_id", "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "sentence_transformers", "sep_token_id", "task_specific_params", "torch_dtype",
    "transformers_version", "use_cache", "use_return_dict",
})  # fmt: skip
# Attributes of tokenizers without a fast form: those of sentence-transformers for words, and slow ones.
_OF_OTHERS = ("stop_words", "do_lower_case", "ngram_separator", "max_ngram_length")
_UNDECISIVE_OF_ADAPTERS = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "peft_version",
    "revision", "runtime_config", "task_type",
})  # fmt: skip


def with_modules(model: Any, modules: list[Any], kind: Kind | None = None, similarity: str | None = None) -> Any:
    """A sentence-transformers model of other modules (not copied), on the same device and with the same prompts.

    The class of the model, and with it the truncation of vectors, is kept unless `kind` names another; so is the
    similarity.
    """
    import sentence_transformers

    library_class = type(model) if kind is None else getattr(sentence_transformers, kind)
    truncation = {name: getattr(model, name) for name in _TRUNCATIONS if kind is None and hasattr(model, name)}
    return library_class(
        modules=modules,
        device=str(model.device),
        prompts=dict(model.prompts or {}),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=similarity or model.similarity_fn_name,
        **truncation,
    )


def keep_first_layers(model: SentenceTransformer, layers: int) -> None:
    """Keep the first transformer layers, in place; the configuration follows, so that the model saves and loads."""
    transformer: Any = getattr(model[0], "auto_model", None)
    if transformer is None:
        raise UserError(f"a model of {type(model[0]).__name__} has no layers to cut; leave 'layers' out.")
    count = len(stack_of(transformer)[0])
    if not 1 <= layers <= count:
        raise UserError(f"layers={layers}: the model has {count}; choose 1 to {count}.")
    keep_layers(transformer, layers)


def weights_digest(model: nn.Module) -> str:
    """Digest of all parameters and buffers, by name, of any dtype."""
    import torch

    hasher = hashlib.blake2b(digest_size=8)
    for key, tensor in sorted(model.state_dict().items()):
        hasher.update(key.encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        hasher.update(plain.view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return hasher.hexdigest()


def settings_of(module: Any, ignored: Sequence[str] = ()) -> list[Any]:
    """Class and settings of a module, as JSON values: two poolings of the same weights give two spaces."""
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    ignored = ("modality_config", *ignored)  # how inputs are routed, which follows from the classes
    return [type(module).__name__, {key: _as_json(value) for key, value in settings.items() if key not in ignored}]


def configurations(modules: Iterable[Any]) -> list[dict[str, Any]]:
    """Of each transformer, what decides its output besides its weights, such as the activation, and its adapters.

    Only values that are not the defaults of its class are listed, so that a version of transformers that adds a key
    changes nothing.
    """
    found = []
    for module in modules:
        model = next((part for part in _parts(module) if hasattr(getattr(part, "config", None), "to_dict")), None)
        if model is None:
            continue
        own = _own_values(model.config, _UNDECISIVE)
        for part in _parts(module):
            if adapters := getattr(part, "peft_config", None):  # their scale is not among the weights
                values = {name: _own_values(config, _UNDECISIVE_OF_ADAPTERS) for name, config in adapters.items()}
                own["adapters"] = values
                break
        found.append({key: own[key] for key in sorted(own)})
    return found


def is_linear(module: Any) -> bool:
    """Whether a module maps the vector of a text by a matrix alone."""
    return (
        type(module).__name__ == "Dense"
        and type(module.activation_function).__name__ == "Identity"
        and module.linear.bias is None
        and not getattr(module, "use_residual", False)
        and module.module_input_name == module.module_output_name == "sentence_embedding"
    )


def fast_tokenizer_of(module: Any) -> Tokenizer | None:
    """The tokenizer of a module; None if it has none, or one that is not fast."""
    own = getattr(module, "tokenizer", None)
    backend = getattr(own, "backend_tokenizer", own)
    return backend if isinstance(backend, Tokenizer) else None


def save_pretrained(model: Any, folder: str | os.PathLike[str]) -> None:
    """Save a model of any class of sentence-transformers, without a card.

    A tokenizer remembers how the last texts were cut and padded and would save that, although each call sets both anew:
    a model that has read texts would be saved in other bytes than one that has just been loaded.
    """
    for module in model.modules():
        if (fast := getattr(getattr(module, "tokenizer", None), "backend_tokenizer", None)) is not None:
            fast.no_truncation()
            fast.no_padding()
    model.save_pretrained(str(folder), create_model_card=False)


def tokenizers_digest(modules: Iterable[Any]) -> str:
    """Digest of the state of all tokenizers of some modules: rules, vocabulary, special tokens, sides; no lengths."""
    return digest(*(_tokenizer_state(module.tokenizer) for module in modules if hasattr(module, "tokenizer")))


def _parts(module: Any) -> Iterator[Any]:
    """A module and those in it, the outer ones first."""
    yield module
    yield from module.modules() if hasattr(module, "modules") else ()


def _own_values(config: Any, undecisive: Set[str]) -> dict[str, Any]:
    """What a configuration sets to other values than its class does."""
    values = _plain(config, undecisive)
    try:
        defaults = _plain(type(config)(), undecisive)
    except Exception:  # a configuration of remote code may need arguments; then every value counts
        defaults = {}
    return {key: value for key, value in values.items() if key not in defaults or defaults[key] != value}


def _plain(config: Any, undecisive: Set[str]) -> dict[str, Any]:
    content = json.loads(json.dumps(config.to_dict(), default=_as_plain))
    return {key: value for key, value in content.items() if key not in undecisive and not key.startswith("_")}


def _as_plain(value: Any) -> Any:
    """What JSON cannot hold, alike in all processes: the order of a set, such as the modules with adapters, differs."""
    return sorted(map(str, value)) if isinstance(value, Set) else str(value)


def _tokenizer_state(tokenizer: Any) -> Any:
    """What a tokenizer does with a text, without the limits of length, which change with every call."""
    if hasattr(tokenizer, "tokenizer"):  # sentence-transformers wraps some
        return _tokenizer_state(tokenizer.tokenizer)
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(fast, "to_str"):
        content = json.loads(fast.to_str())
        cut = content.pop("truncation", None) or {}
        content.pop("padding", None)
        is_bare = fast is tokenizer
        return [content, cut.get("direction", "Right") if is_bare else _sides(tokenizer)]
    own = {key: _as_json(value) for key, value in vars(tokenizer).items() if key in _OF_OTHERS}
    return [type(tokenizer).__name__, sorted(_vocabulary(tokenizer).items()), own, _sides(tokenizer)]


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return dict(words) if isinstance(words, dict) else {word: place for place, word in enumerate(words)}


def _sides(tokenizer: Any) -> list[Any]:
    sides = [getattr(tokenizer, f"{what}_side", None) for what in ("padding", "truncation")]
    return [*sides, {name: str(token) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()}]


def _as_json(value: Any) -> Any:
    """Tuples become lists, as in a manifest that the value is compared with."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return {key: _as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def exits_of(model: SentenceTransformer) -> list[int]:
    """Layers with an exit, ascending: a Router at the end has a route for each, which pools that layer's tokens."""
    router: Any = list(model)[-1]
    names = list(getattr(router, "sub_modules", []))
    is_of_exits = all(name.startswith(ROUTE) for name in names)
    return sorted(int(name.removeprefix(ROUTE)) for name in names) if is_of_exits else []


def exit_model(model: SentenceTransformer, layer: int) -> SentenceTransformer:
    """Copy one exit as an ordinary model: its layers, pooling and projection. Dropping later layers makes it fast."""
    exits = exits_of(model)
    if layer not in exits:
        has = f"exits {', '.join(map(str, exits))}" if exits else "no exits"
        raise UserError(f"exit={layer}: the model has {has}.")
    transformer: Any
    transformer, router = (copy.deepcopy(module) for module in model)
    transformer.auto_model.config.output_hidden_states = False
    norm = norm_of_exit(router, layer)
    modules = [module for module in behind_exit(router, layer) if module not in norm]
    early = with_modules(model, [transformer, *modules])
    keep_first_layers(early, layer)
    if norm:  # the transformer's own goes with its last layer, whichever that is
        _set_norm(final_norm(transformer.auto_model), norm[-1].linear)
    return early


def _set_norm(norm: Any, linear: Any) -> None:
    """Give a normalization the gain and bias of a linear map after unit vectors; see `dense_variants.norm_modules`."""
    import torch

    with torch.no_grad():
        norm.weight.copy_(linear.weight.diagonal() / len(linear.weight) ** 0.5)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(linear.bias)


def norm_of_exit(router: Any, layer: int) -> list[Any]:
    """The modules of an exit's route that do to its tokens what the transformer's final normalization does; or none."""
    deepest = next(iter(router.sub_modules.values()))
    tokens = [_reads_tokens(module) for module in behind_exit(router, layer)]
    count = sum(tokens) - sum(map(_reads_tokens, deepest))
    return behind_exit(router, layer)[: max(0, count)]


def _reads_tokens(module: Any) -> bool:
    return getattr(module, "module_input_name", None) == "token_embeddings"


def behind_exit(router: Any, layer: int) -> list[Any]:
    """The modules of an exit's route but the first, which would stack all layers to take one."""
    return [module for module in router.sub_modules[f"{ROUTE}{layer}"] if not hasattr(module, "layer_weights")]
