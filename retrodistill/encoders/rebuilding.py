"""The one way to make a model out of another's modules."""

from __future__ import annotations

from typing import Any, Literal

Kind = Literal["SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"]
_CUTS = ("truncate_dim", "max_active_dims")


def with_modules(model: Any, modules: list[Any], kind: Kind | None = None, similarity: str | None = None) -> Any:
    """A model of sentence-transformers of other modules, on the same device and with the same prompts.

    Args:
        model: Whose modules these were; the new one shares weights with it.
        modules: In order.
        kind: Class of the new model. None for that of the given one, whose truncation of vectors is kept then: a model
            made by name has vectors of its own.
        similarity: Name of the new model's; that of the given one by default.
    """
    import sentence_transformers

    made = type(model) if kind is None else getattr(sentence_transformers, kind)
    cuts = {name: getattr(model, name) for name in _CUTS if kind is None and hasattr(model, name)}
    return made(
        modules=modules,
        device=str(model.device),
        prompts={name: prompt for name, prompt in (model.prompts or {}).items() if prompt},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=similarity or model.similarity_fn_name,
        **cuts,
    )
