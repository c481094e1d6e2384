"""Load an encoder of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.files import read_whole
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.concatenated import ConcatenatedEncoder
from retrodistill.encoders.contract import IN_MEMORY, TextModel, current_encoding
from retrodistill.encoders.embeddings_api import ApiEncoder
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import (
    load_bi_encoder,
    load_multi_vector,
    load_sparse,
    onnx_export,
    student_manifest,
)
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.names import ModelName, member_names, parse_model_name, split_variant
from retrodistill.encoders.onnx_encoders import OnnxEncoder, OnnxModel, OnnxSparseEncoder
from retrodistill.encoders.onnx_runtime import OnnxExport, is_installed
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vector_files import VectorFile

DENSE = ("dense", "static", "vectors", "embeddings-api", "concat")  # kinds with one vector per text
SPARSE = ("sparse",)
MULTI_VECTOR = ("multi-vector",)


# our class of each kind, and what loads the library's model
_LOADERS: dict[str, tuple[Callable[..., TextModel], Callable[..., Any]]] = {
    "dense": (Encoder, load_bi_encoder),
    "static": (Encoder, load_bi_encoder),
    "sparse": (SparseTextEncoder, load_sparse),
    "multi-vector": (MultiVectorModel, load_multi_vector),
}
# by the kind in a model's name, the kinds of exports that it may mean
_EXPORTED_AS = {
    "dense": ("dense", "static"),
    "static": ("dense", "static"),
    "sparse": ("sparse",),
    "cross-encoder": ("cross-encoder",),
}
_PLACES = {"vectors": "PATH", "embeddings-api": "FILE", "concat": "dense:A+dense:B"}
_CLASSES = {"SentenceTransformer": "dense", "SparseEncoder": "sparse", "MultiVectorEncoder": "multi-vector"}
# of vectors of models that are elsewhere, or that are several
_OPENERS: dict[str, Callable[[str], TextModel]] = {
    "vectors": VectorFile.open,
    "embeddings-api": ApiEncoder.open,
    "concat": lambda name: ConcatenatedEncoder(f"concat:{name}", [_member(name, each) for each in member_names(name)]),
}
_MEMBERS = tuple(kind for kind in DENSE if kind != "concat")
_KINDS = (*_LOADERS, *_OPENERS)


def load_encoder(source: Any, kinds: Sequence[str] = _KINDS) -> Any:
    """Load an encoder by its name, or wrap a sentence-transformers model; an encoder is returned as it is.

    Args:
        source: ``dense:NAME``, ``static:NAME``, ``sparse:NAME``, ``multi-vector:NAME``, ``vectors:PATH``,
            ``embeddings-api:FILE``, ``concat:KIND:NAME+KIND:NAME``, or an object.
        kinds: Accepted kinds, e.g. `DENSE`; all by default. Others, and names that are not found, are a UserError.

    Returns:
        An `Encoder` (of a kind in `DENSE`), `SparseTextEncoder` or `MultiVectorModel`. Vectors from a file must be
        bound to a collection before they can encode.
    """
    advice = "give " + " or ".join(f"'{kind}:{_PLACES.get(kind, 'NAME')}'" for kind in kinds)
    wanted = f"a {kinds[0]} encoder" if len(kinds) == 1 else "an encoder"
    if isinstance(source, (str, Path, ModelName)):
        name = source if isinstance(source, ModelName) else parse_model_name(str(source))
        if name.kind not in kinds or name.kind not in _KINDS:
            raise UserError(f"model {name} is not {wanted}; {advice}.")
        return _load_name(name)
    encoder = source if isinstance(source, TextModel) else _wrap(source, advice)
    if encoder.kind not in kinds:
        raise UserError(f"model {encoder.name} is not {wanted}; {advice}.")
    return encoder


def _member(name: str, member: str) -> Any:
    """A member of a ``concat``; another kind is a UserError that names the whole."""
    if member.partition(":")[0] not in _MEMBERS:
        kinds = ", ".join(_MEMBERS)
        raise UserError(f"concat:{name}: {member!r} is none of its members' kinds ({kinds}); write dense:A+dense:B.")
    return load_encoder(member, _MEMBERS)


def _load_name(name: ModelName) -> TextModel:
    if name.kind in _OPENERS:
        opened = read_whole(name.name, lambda: _OPENERS[name.kind](name.name))
        # An API is asked by one process, which counts what is spent.
        if all(each.kind != "embeddings-api" for each in opened.members or [opened]):
            opened.loaded_from = name.anywhere
        return opened
    return read_whole(split_variant(name.name)[0], lambda: _load_model(name))


def _load_model(name: ModelName) -> TextModel:
    wrapper, load = _LOADERS[name.kind]
    student = student_manifest(split_variant(name.name)[0])
    load = partial(load, name.name, keep_adapters=True)
    export = chosen_export(name)
    if export is None:
        encoder = wrapper(load(), str(name), student)
    else:
        encoder = of_export(export.loaded(), str(name), student, load)
    if name.kind == "static" and not encoder.is_static:
        found = type(encoder.model[0]).__name__
        raise UserError(f"model {name.name} is not a token table but {found}; name it 'dense:{name.name}'.")
    encoder.loaded_from = name.anywhere
    return encoder


def of_export(export: OnnxExport, name: str, student: Manifest | None, load: Callable[[], Any]) -> OnnxModel:
    """The encoder of an export; `load` loads its model."""
    return (OnnxSparseEncoder if export.kind == "sparse" else OnnxEncoder)(export, name, student, load)


def chosen_export(name: ModelName) -> OnnxExport | None:
    """The ONNX export that a model runs from by the current encoding settings; None for torch.

    Raises:
        UserError: The runtime is ``onnx``, and the model was not exported; or the export belongs to another model.
    """
    encoding = current_encoding()
    is_wanted = encoding.runtime == "onnx"
    if not is_wanted and (encoding.runtime == "torch" or encoding.precision != "auto" or not is_installed()):
        return None
    export = onnx_export(name.name)
    if export is not None and export.kind not in _EXPORTED_AS.get(name.kind, ()):
        export = None
    if export is None and is_wanted:
        raise UserError(
            f"model {name} has no ONNX export; make one with 'retrodistill export {name} --to onnx --out FOLDER', or "
            "leave runtime out."
        )
    return export


def _wrap(model: Any, advice: str) -> TextModel:
    kind = next((_CLASSES[base.__name__] for base in type(model).__mro__ if base.__name__ in _CLASSES), None)
    if kind is None:
        raise UserError(f"an encoder cannot be made from {type(model).__name__}; {advice}, or such a model.")
    return _LOADERS[kind][0](model, f"{kind}:{model.model_card_data.model_id or IN_MEMORY}")
