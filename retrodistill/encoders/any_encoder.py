"""Load an encoder of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import IN_MEMORY, STUDENT_MANIFEST, TextModel
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import load_bi_encoder, load_multi_vector, load_sparse
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.names import ModelName, parse_model_name, split_exit
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vector_files import VectorFile

DENSE = ("dense", "static", "vectors")  # kinds with one vector per text
SPARSE = ("sparse",)
MULTI_VECTOR = ("multi-vector",)


class _Loader(NamedTuple):
    wrapper: Callable[..., TextModel]
    library_class: str  # in sentence-transformers
    load: Callable[[str], Any]


_LOADERS = {
    "dense": _Loader(Encoder, "SentenceTransformer", load_bi_encoder),
    "static": _Loader(Encoder, "SentenceTransformer", load_bi_encoder),
    "sparse": _Loader(SparseTextEncoder, "SparseEncoder", load_sparse),
    "multi-vector": _Loader(MultiVectorModel, "MultiVectorEncoder", load_multi_vector),
}
_KINDS = (*_LOADERS, "vectors")


def load_encoder(source: Any, kinds: Sequence[str] = _KINDS) -> Any:
    """Load an encoder by its name, or wrap a sentence-transformers model; an encoder is returned as it is.

    Vectors from a file (``vectors:PATH``) must be bound to a collection before they can encode.

    Args:
        source: ``dense:NAME``, ``static:NAME``, ``sparse:NAME``, ``multi-vector:NAME``, ``vectors:PATH``, or an object.
        kinds: Accepted kinds, e.g. `DENSE`; all by default.

    Returns:
        An `Encoder` (dense, static, vectors), `SparseTextEncoder` or `MultiVectorModel`.

    Raises:
        UserError: Not the name of an encoder, not an accepted kind, or not found.
    """
    advice = "give " + " or ".join(f"'{kind}:{'PATH' if kind == 'vectors' else 'NAME'}'" for kind in kinds)
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


def _load_name(name: ModelName) -> TextModel:
    if name.kind == "vectors":
        return VectorFile.open(name.name)
    loader, folder = _LOADERS[name.kind], split_exit(name.name)[0]
    has_manifest = (Path(folder) / STUDENT_MANIFEST).exists()
    manifest = Manifest.read(folder, STUDENT_MANIFEST) if has_manifest else None
    encoder = loader.wrapper(loader.load(name.name), str(name), manifest)
    if name.kind == "static" and not encoder.is_static:
        raise UserError(
            f"model {name.name} is not a token table but {type(encoder.model[0]).__name__}; "
            f"name it 'dense:{name.name}'."
        )
    return encoder


def _wrap(model: Any, advice: str) -> TextModel:
    by_class = {loader.library_class: kind for kind, loader in reversed(_LOADERS.items())}  # dense before static
    kind = next((by_class[base.__name__] for base in type(model).__mro__ if base.__name__ in by_class), None)
    if kind is None:
        raise UserError(f"an encoder cannot be made from {type(model).__name__}; {advice}, or such a model.")
    return _LOADERS[kind].wrapper(model, f"{kind}:{model.model_card_data.model_id or IN_MEMORY}")
