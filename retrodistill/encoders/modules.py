"""Modules of sentence-transformers models: recombine and cut them, digest their weights, take one exit."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any, Literal

from retrodistill.core.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

Kind = Literal["SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"]
ROUTE = "exit-"
_TRUNCATIONS = ("truncate_dim", "max_active_dims")


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
        prompts={name: prompt for name, prompt in (model.prompts or {}).items() if prompt},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=similarity or model.similarity_fn_name,
        **truncation,
    )


def keep_first_layers(model: SentenceTransformer, layers: int) -> None:
    """Keep the first transformer layers, in place; the configuration follows, so that the model saves and loads."""
    from torch import nn

    transformer: Any = getattr(model[0], "auto_model", None)
    if transformer is None:
        raise UserError(f"a model of {type(model[0]).__name__} has no layers to cut; leave 'layers' out.")
    children = ((child, parent, name) for parent in transformer.modules() for name, child in parent.named_children())
    lists = [place for place in children if isinstance(place[0], nn.ModuleList)]
    if not lists:
        raise UserError(f"{type(transformer).__name__} has no stack of layers to cut; leave 'layers' out.")
    stack, owner, attribute = max(lists, key=lambda candidate: len(candidate[0]))
    if not 1 <= layers <= len(stack):
        raise UserError(f"layers={layers}: the model has {len(stack)}; choose 1 to {len(stack)}.")
    setattr(owner, attribute, stack[:layers])
    transformer.config.num_hidden_layers = layers


def weights_digest(model: nn.Module) -> str:
    """Digest of all parameters and buffers, by name, of any dtype."""
    import torch

    hasher = hashlib.blake2b(digest_size=8)
    for key, tensor in sorted(model.state_dict().items()):
        hasher.update(key.encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        hasher.update(plain.view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return hasher.hexdigest()


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
    early = with_modules(model, [transformer, *behind_exit(router, layer)])
    keep_first_layers(early, layer)
    return early


def behind_exit(router: Any, layer: int) -> list[Any]:
    """The modules of an exit's route but the first, which would stack all layers to take one."""
    return [module for module in router.sub_modules[f"{ROUTE}{layer}"] if not hasattr(module, "layer_weights")]
