"""What determines a text's vectors: the encoder, its settings, and the space that its documents lie in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.manifest import Manifest
from retrodistill.core.settings import Settings
from retrodistill.encoders.modules import weights_digest

if TYPE_CHECKING:
    from retrodistill.data.collection import Collection
    from retrodistill.data.texts import Texts


class EncodingSettings(Settings):
    """How models encode texts and score pairs, training apart."""

    batch_size: int = Field(default=32, ge=1)
    """Texts or pairs per forward pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products; weights, vectors, and scores stay float32. `bfloat16` is faster on a GPU and on a
    CPU with AMX or AVX512-BF16. Stores and manifests keep the two apart."""

    def autocast(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """A context in which products on a device have the precision."""
        import torch

        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


_CURRENT: ContextVar[EncodingSettings] = ContextVar("encoding", default=EncodingSettings())  # noqa: B039 - frozen


def current_encoding() -> EncodingSettings:
    """The settings that a model takes when it is loaded."""
    return _CURRENT.get()


@contextlib.contextmanager
def encode_with(settings: EncodingSettings | None = None, **changes: Any) -> Iterator[EncodingSettings]:
    """Models that are loaded inside the block encode with these settings, e.g. ``encode_with(batch_size=8)``.

    Args:
        settings: In place of those outside; these by default.
        changes: Keys of `EncodingSettings` to change.
    """
    chosen = EncodingSettings.model_validate({**(settings or current_encoding()).model_dump(), **changes})
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)


Role = Literal["query", "document"]
STUDENT_MANIFEST = "retrodistill.json"
_WITHOUT_EFFECT = ("modality_config",)  # how inputs are routed; it follows from the classes
IN_MEMORY = "in-memory"  # name of a model object that was never saved


class TextModel:
    """A sentence-transformers model of any kind, with all that decides the vectors of a text.

    Args:
        model: The sentence-transformers model.
        name: ``kind:name`` as the user wrote it.
        student: The manifest of a student that retrodistill trained, if it is one.
    """

    similarities: Sequence[str] = ("cosine", "dot")
    kind: str = "dense"
    is_static: bool = False
    is_recorded: bool = False
    has_model: bool = True  # token weights, which an index may hold in a model's place, have none

    def __init__(self, model: Any, name: str, student: Manifest | None = None) -> None:
        self.model = model
        self.name = name
        self.student = student
        self.encoding = current_encoding()

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> Any:
        """The vectors of texts, in the form of the kind: an array, CSR, or `Tokens`."""
        raise NotImplementedError

    def needs_store(self, role: Role) -> bool:
        """Whether encoding takes longer than looking vectors up."""
        return True

    def bind(self, collection: Collection) -> Self:
        """The encoder, ready for a collection: vectors from a file are found by its texts, others need nothing."""
        return self

    @property
    def is_symmetric(self) -> bool:
        """Whether a text has the same vector as a query and as a document, as far as its prompts tell."""
        return self.prompt("query") == self.prompt("document")

    def missing(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(m,) int64 places of the texts that it cannot encode: none, unless its vectors are recorded."""
        return np.zeros(0, dtype=np.int64)

    def require(self, texts: Texts, role: Role) -> None:
        """Check, before work starts, that it can encode texts.

        Raises:
            UserError: Its vectors are recorded, and some are missing.
        """

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        width = self.model.get_embedding_dimension()
        if width is None:
            raise UserError(f"model {self.name} does not say its embedding dimension; its last module must.")
        return int(width)

    @property
    def similarity(self) -> str:
        """Similarity function of two vectors, e.g. ``cosine`` or ``dot``.

        Raises:
            UserError: The model uses a distance, which retrievers here do not support.
        """
        name = str(self.model.similarity_fn_name)
        if name not in self.similarities:
            raise UserError(
                f"model {self.name} uses similarity {name!r}; a retriever uses {' or '.join(self.similarities)}."
            )
        return name

    @cached_property
    def weights_digest(self) -> str:
        """Digest of all parameters and buffers that documents go through, by name."""
        return self._weights["document"]

    @property
    def truncation(self) -> int | None:
        """Leading dimensions that the model itself keeps (``truncate_dim``); None where that is all of them."""
        if getattr(self.model, "truncate_dim", None) is None:
            return None
        with self.model.truncate_embeddings(None):
            full = self.model.get_embedding_dimension()
        return None if full is not None and full <= self.model.truncate_dim else int(self.model.truncate_dim)

    def modules(self, role: Role) -> list[Any]:
        """The modules that process texts of a role: a Router's route for the role, then the modules after it.

        Raises:
            UserError: A Router has no route for the role.
        """
        return [one for module in self.model for one in _routed(module, role, self.name)]

    def contract(self, role: Role) -> dict[str, Any]:
        """All that decides the vector of a text: weights, modules (pooling!), prompt, length, similarity, dimension.

        Of a Router only the role's own route counts: a model that sends documents through another model's modules puts
        them into that model's space. ``truncation`` stands there only where the model has one, so that fingerprints of
        those without stay what they are.
        """
        modules = self.modules(role)
        contract = {
            "weights": self._weights[role],
            "modules": [_module(module) for module in modules],
            "prompt": self.prompt(role),
            "max_length": _length(modules[0]),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }
        return contract if self.truncation is None else {**contract, "truncation": self.truncation}

    @cached_property
    def document_space(self) -> str:
        """Fingerprint of the space that this model's documents lie in."""
        return digest(self.contract("document"))

    @property
    def query_space(self) -> str:
        """Fingerprint of the document space that this model's queries search: its own, or the one it was aligned to."""
        if self.student is not None and "query_space" in self.student.about:
            return str(self.student.about["query_space"])
        return self.document_space

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of what decides the vectors of this role, in stores and manifests.

        Precision counts here and not in `document_space`: queries in float32 may search documents in bfloat16.
        """
        if self.encoding.precision == "float32" or not self.needs_store(role):
            return digest(self.contract(role))  # as before precision could be chosen
        return digest(self.contract(role), self.encoding.precision)

    def prompt(self, role: Role) -> str:
        """The model's own prompt for the role; empty if it has none."""
        prompts = self.model.prompts or {}
        names = {"query": ("query",), "document": ("document", "passage", "corpus")}[role]
        for name in names:
            if prompts.get(name):
                return str(prompts[name])
        default = self.model.default_prompt_name
        return str(prompts.get(default, "")) if default else ""

    @cached_property
    def _weights(self) -> dict[Role, str]:
        from torch import nn

        paths = {"query": self.modules("query"), "document": self.modules("document")}
        documents = weights_digest(nn.Sequential(*paths["document"]))
        shared = all(one is other for one, other in zip(*paths.values(), strict=False))
        is_one = shared and len(paths["query"]) == len(paths["document"])
        return {"document": documents, "query": documents if is_one else weights_digest(nn.Sequential(*paths["query"]))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.dimension} dimensions, {self.similarity})"


@dataclass(frozen=True)
class EmbeddingSpace:
    """The space that an index' documents lie in: its contract with query encoders.

    Attributes:
        fingerprint: Of model weights, modules, prompt, maximum length, similarity and dimension.
        dimension: Width of a vector as the index holds it, after truncation.
        similarity: ``cosine`` (unit vectors), ``dot`` or ``maxsim``.
        documents_by: Name of the encoder that made them.
        truncation: Number of leading dimensions of the encoder's vectors that the index keeps (Matryoshka); None for
            all.
        contract: What the fingerprint is of, so that a refusal can say what differs.
        query_contract: The same for the queries of that model, by which its own query prompt is held to; empty where it
            is not known.
    """

    fingerprint: str
    dimension: int
    similarity: str
    documents_by: str
    truncation: int | None = None
    contract: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    query_contract: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, encoder: TextModel, truncation: int | None = None) -> EmbeddingSpace:
        """The space of an encoder's documents.

        Raises:
            UserError: The truncation exceeds the width of the vector.
        """
        if truncation is not None and not 1 <= truncation <= encoder.dimension:
            raise UserError(
                f"truncation to {truncation} dimensions: vectors by {encoder.name} have {encoder.dimension}; "
                f"choose from 1 to {encoder.dimension}."
            )
        return cls(
            encoder.document_space,
            truncation or encoder.dimension,
            encoder.similarity,
            encoder.name,
            truncation,
            encoder.contract("document"),
            encoder.contract("query"),
        )

    @property
    def norm(self) -> str:
        """``unit`` where vectors have length 1, else ``any``."""
        return "unit" if self.similarity == "cosine" else "any"

    @property
    def encoded(self) -> int:
        """Width of a vector as its encoder gives it, before truncation."""
        return int(self.contract.get("dimension", self.dimension))

    def to_json(self) -> dict[str, Any]:
        """The space as a manifest holds it."""
        return {**asdict(self), "norm": self.norm}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> EmbeddingSpace:
        """The space of a manifest.

        Raises:
            UserError: It lacks something, or holds what this version does not know.
        """
        known = {one.name for one in fields(cls)}
        lacking = [key for key in ("fingerprint", "dimension", "similarity", "documents_by") if key not in content]
        strange = [key for key in content if key not in known and key != "norm"]
        if lacking or strange:
            what = f"lacks {lacking[0]!r}" if lacking else f"holds {strange[0]!r}, which this version does not know"
            raise UserError(f"the manifest's space {what}; build the index again.")
        return cls(**{key: value for key, value in content.items() if key in known})

    def check_query_encoder(self, queries: TextModel) -> None:
        """Check that a query encoder's vectors belong among these documents.

        Raises:
            UserError: It neither is the model that made the documents nor was distilled into their space, or it is that
                model and asks with another prompt; says what differs.
        """
        if queries.dimension != self.encoded:
            cut = f" (cut to {queries.truncation})" if queries.truncation else ""
            raise UserError(
                f"queries by {queries.name} have {queries.dimension} dimensions{cut}, the documents by "
                f"{self.documents_by} have {self.encoded}; use the encoder that made the documents or one distilled "
                "into its space."
            )
        differences = "; ".join(self.differences(queries))
        if not differences:
            return
        if queries.query_space == self.fingerprint:
            raise UserError(
                f"{queries.name} is the model of these documents but asks otherwise ({differences}); set it so, or "
                "build the index with the model as it is now: documents are not embedded again."
            )
        if queries.name == self.documents_by and queries.query_space != queries.document_space:
            raise UserError(
                f"{queries.name} encodes queries only, for documents of another model; build an index of those "
                "documents with it and give the index' folder."
            )
        raise UserError(
            f"queries by {queries.name} do not belong among documents by {self.documents_by} "
            f"({differences}); use the encoder that made the documents or one distilled into "
            "its space."
        )

    def differences(self, queries: TextModel) -> list[str]:
        """Reasons to reject a query encoder, one short phrase each; empty for an accepted one.

        The documents' own model is held to its query prompt too: with another one, its queries are none that these
        documents were embedded for. A model that sends queries through weights of their own (a Router's query tower
        beside the documents' tower) says by that itself which documents they are for, as a student's manifest does.
        """
        if queries.query_space == self.fingerprint:
            if queries.document_space != self.fingerprint or not self.query_contract:
                return []  # distilled into the space; or the index does not say how its model asks
            own, wanted = queries.contract("query"), self.query_contract
            has_own_tower = own.get("weights") != wanted.get("weights")
            return [] if has_own_tower else [f"query {one}" for one in _differing(own, wanted)]
        if queries.query_space != queries.document_space:
            return [f"it was distilled into space {queries.query_space}, the documents lie in {self.fingerprint}"]
        found = list(_differing(queries.contract("document"), self.contract))
        return found or [f"space {queries.query_space}, wanted {self.fingerprint}"]


def _differing(own: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Short phrases; settings of modules are told apart only where the weights agree: else it is another model."""
    keys = {**wanted, **own} if "weights" in wanted else wanted
    for key in keys:
        if own.get(key) == wanted.get(key):
            continue
        if key == "modules" and own.get("weights") == wanted["weights"]:
            yield _differing_modules(own["modules"], wanted["modules"])
        elif key in ("weights", "modules"):
            yield f"other {key}"
        else:
            yield f"{key} {own.get(key)!r}, wanted {wanted.get(key)!r}"


def _differing_modules(own: list[Any], wanted: list[Any]) -> str:
    if [name for name, _ in own] != [name for name, _ in wanted]:
        return "modules {}, wanted {}".format(*(", ".join(name for name, _ in one) for one in (own, wanted)))
    name, mine, theirs = next(
        (name, mine, theirs) for (name, mine), (_, theirs) in zip(own, wanted, strict=True) if mine != theirs
    )
    key = next(key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key))
    return f"{name} has {key} {mine.get(key)!r}, wanted {theirs.get(key)!r}"


def _routed(module: Any, role: Role, name: str) -> Iterator[Any]:
    """A module, or what a Router sends texts of a role through (sentence-transformers' order of looking)."""
    if not hasattr(module, "sub_modules"):
        yield module
        return
    mapped = ((role, "text"), (role, None), (None, "text"), (None, None))
    routes = [module.route_mappings[one] for one in mapped if one in module.route_mappings]
    route = next((one for one in (*routes, role, "text") if one in module.sub_modules), None)
    if route is None:
        raise UserError(
            f"model {name} has no route for a {role} (routes: {', '.join(module.sub_modules)}); "
            "a Router needs 'query' and 'document'."
        )
    for one in module.sub_modules[route]:
        yield from _routed(one, role, name)


def _module(module: Any) -> list[Any]:
    """Class and settings of a module: two poolings of the same weights give two spaces.

    As JSON gives them back, for a manifest's are compared with them: a tuple is a list there.
    """
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    kept = {key: _as_json(value) for key, value in settings.items() if key not in _WITHOUT_EFFECT}
    return [type(module).__name__, kept]


def _as_json(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return {key: _as_json(one) for key, one in value.items()} if isinstance(value, dict) else value


def _length(module: Any) -> int | None:
    """Tokens that a first module reads; a token table reads what its tokenizer leaves, whatever it reports."""
    length = getattr(module, "max_seq_length", None)
    if length is None or length == float("inf"):
        cut = getattr(getattr(module, "tokenizer", None), "truncation", None)
        return int(cut["max_length"]) if isinstance(cut, dict) else None
    return int(length)
