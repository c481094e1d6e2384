"""The contract between models: what decides the vectors of a text, and the space that documents lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from retrodistill.errors import UserError
from retrodistill.files import digest
from retrodistill.manifest import Manifest
from retrodistill.models.weights import weights_digest

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

    def __init__(self, model: Any, name: str, student: Manifest | None = None) -> None:
        self.model = model
        self.name = name
        self.student = student

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        width = self.model.get_embedding_dimension()
        if width is None:
            raise UserError(f"model {self.name} does not say its embedding dimension; its last module must.")
        return int(width)

    @property
    def similarity(self) -> str:
        """How two vectors are compared, e.g. ``cosine`` or ``dot``.

        Raises:
            UserError: The model asks for a distance, which a retriever here does not use.
        """
        name = str(self.model.similarity_fn_name)
        if name not in self.similarities:
            raise UserError(
                f"model {self.name} uses similarity {name!r}; a retriever uses {' or '.join(self.similarities)}."
            )
        return name

    @cached_property
    def weights_digest(self) -> str:
        """Digest of all parameters and buffers, by name."""
        return weights_digest(self.model)

    def contract(self, role: Role) -> dict[str, Any]:
        """All that decides the vector of a text: weights, modules (pooling!), prompt, length, similarity, dimension."""
        return {
            "weights": self.weights_digest,
            "modules": [_module(module) for module in self.model],
            "prompt": self.prompt(role),
            "max_length": _finite(self.model.max_seq_length),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }

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
        """Fingerprint of what decides the vectors of this role."""
        return digest(self.contract(role))

    def prompt(self, role: Role) -> str:
        """The model's own prompt for the role; empty if it has none."""
        prompts = self.model.prompts or {}
        names = {"query": ("query",), "document": ("document", "passage", "corpus")}[role]
        for name in names:
            if prompts.get(name):
                return str(prompts[name])
        default = self.model.default_prompt_name
        return str(prompts.get(default, "")) if default else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.dimension} dimensions, {self.similarity})"


@dataclass(frozen=True)
class Space:
    """The space that an index' documents lie in: its contract with query encoders.

    Attributes:
        fingerprint: Of model weights, modules, prompt, maximum length, similarity and dimension.
        dimension: Width of a vector as the index holds it, after truncation.
        similarity: ``cosine`` (unit vectors), ``dot`` or ``maxsim``.
        documents_by: Name of the encoder that made them.
        truncation: The index keeps so many leading dimensions of the encoder's vectors (Matryoshka); None for all.
        contract: What the fingerprint is of, so that a refusal can say what differs.
    """

    fingerprint: str
    dimension: int
    similarity: str
    documents_by: str
    truncation: int | None = None
    contract: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, encoder: TextModel, truncation: int | None = None) -> Space:
        """The space of an encoder's documents.

        Raises:
            UserError: A truncation that is no part of the vector.
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
    def from_json(cls, content: dict[str, Any]) -> Space:
        """The space of a manifest."""
        return cls(**{key: value for key, value in content.items() if key != "norm"})

    def admit(self, queries: TextModel) -> None:
        """Check that a query encoder's vectors belong among these documents.

        Raises:
            UserError: It neither made the documents nor was distilled into their space; says what differs.
        """
        if queries.dimension != self.encoded:
            raise UserError(
                f"queries by {queries.name} have {queries.dimension} dimensions, the documents by {self.documents_by} "
                f"have {self.encoded}; use the encoder that made the documents or one distilled into its space."
            )
        if queries.query_space == self.fingerprint:
            return
        if queries.name == self.documents_by and queries.query_space != queries.document_space:
            raise UserError(
                f"{queries.name} encodes queries only, for documents of another model; build an index of those "
                "documents with it and give the index' folder."
            )
        raise UserError(
            f"queries by {queries.name} do not belong among documents by {self.documents_by} "
            f"({'; '.join(self.differences(queries))}); use the encoder that made the documents or one distilled into "
            "its space."
        )

    def differences(self, queries: TextModel) -> list[str]:
        """What keeps a query encoder out, one short phrase each; empty for one that is admitted."""
        if queries.query_space == self.fingerprint:
            return []
        if queries.query_space != queries.document_space:
            return [f"it was distilled into space {queries.query_space}, the documents lie in {self.fingerprint}"]
        own = queries.contract("document")
        found = [
            f"other {key}" if key in ("weights", "modules") else f"{key} {own[key]!r}, wanted {wanted!r}"
            for key, wanted in self.contract.items()
            if own.get(key) != wanted
        ]
        return found or [f"space {queries.query_space}, wanted {self.fingerprint}"]


def _module(module: Any) -> list[Any]:
    """Class and settings of a module: two poolings of the same weights give two spaces."""
    settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return [type(module).__name__, {key: value for key, value in settings.items() if key not in _WITHOUT_EFFECT}]


def _finite(length: float | None) -> int | None:
    return None if length is None or length == float("inf") else int(length)
