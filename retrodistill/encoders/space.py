"""The space of an index's documents: which query encoders belong to it, and what differs about the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.encoders.modules import LENGTH_ADAPTIVE
from retrodistill.encoders.vectors import check_dimensions

if TYPE_CHECKING:
    from retrodistill.encoders.contract import TextModel

FORMAT = 2  # of contracts: an index that an earlier version saved is compared by the rule of its own format
_SINCE = {"tokenizers": 2, "configurations": 2}  # keys, and the format that introduced each


def space_fingerprint(contract: Mapping[str, Any], *settings: str) -> str:
    """Fingerprint of a contract, and of settings that it does not hold; it begins with the number of its format."""
    return f"{FORMAT}-{digest(contract, *settings)}"


def _earlier_fingerprint(contract: Mapping[str, Any], format: int) -> str:
    """As an earlier version of this package made it; that of the first format has no number."""
    earlier = digest(contract_at(contract, format))
    return earlier if format == 1 else f"{format}-{earlier}"


def contract_at(contract: Mapping[str, Any], format: int) -> dict[str, Any]:
    """A contract as an earlier version of this package wrote it."""
    return {key: value for key, value in contract.items() if _SINCE.get(key, 1) <= format}


def _format_of(fingerprint: str) -> int:
    return int(fingerprint.partition("-")[0]) if "-" in fingerprint else 1


@dataclass(frozen=True)
class EmbeddingSpace:
    """The space of an index's documents: its contract with query encoders."""

    fingerprint: str  # of all that the contract of the documents' encoder holds: see `TextModel.contract`
    dimension: int  # width of a vector in the index, after truncation
    similarity: str  # ``cosine`` (unit vectors), ``dot`` or ``maxsim``
    documents_by: str  # name of the documents' encoder
    truncation: int | None = None  # leading dimensions of its vectors that the index keeps (Matryoshka); None for all
    # the content of the fingerprint, so that an error can say what differs, and the same for that model's queries, so
    # that its query prompt is checked too (empty if unknown)
    contract: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    query_contract: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, encoder: TextModel, truncation: int | None = None) -> EmbeddingSpace:
        """The space of an encoder's documents."""
        full = encoder.dimension
        if truncation is not None and not encoder.can_truncate:
            raise UserError(
                f"leading dimensions of vectors by {encoder.name} are those of its first member; leave truncation out, "
                "and make vectors smaller by a factory such as PCA384,Flat."
            )
        check_dimensions([] if truncation is None else [truncation], full, f"vectors by {encoder.name}")
        contracts = encoder.contract("document"), encoder.contract("query")
        return cls(encoder.document_space, truncation or full, encoder.similarity, encoder.name, truncation, *contracts)

    @property
    def norm(self) -> str:
        """``unit`` if vectors have length 1, else ``any``."""
        return "unit" if self.similarity == "cosine" else "any"

    @property
    def encoded(self) -> int:
        """Width of a vector from the encoder, before the index truncates it."""
        return int(self.contract.get("dimension", self.dimension))

    def to_json(self) -> dict[str, Any]:
        """The space for a manifest."""
        return {**asdict(self), "norm": self.norm}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> EmbeddingSpace:
        """The space of a manifest."""
        known = {attribute.name for attribute in fields(cls)}
        missing = [key for key in ("fingerprint", "dimension", "similarity", "documents_by") if key not in content]
        unknown = [key for key in content if key not in known and key != "norm"]
        if missing or unknown:
            problem = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which this version does not know"
            raise UserError(f"the manifest's space {problem}; build the index again.")
        return cls(**{key: value for key, value in content.items() if key in known})

    def holds_documents_of(self, encoder: TextModel) -> bool:
        """Whether these are the documents of an encoder as it is now."""
        return self._is(encoder.document_space, encoder.contract("document"))

    def check_query_encoder(self, queries: TextModel) -> None:
        """Reject a query encoder that is neither the documents' model nor distilled into their space."""
        advice = "use the encoder that made the documents or one distilled into its space"
        if queries.dimension != self.encoded:
            cut = f" (cut to {queries.truncation})" if queries.truncation else ""
            problem = f"queries by {queries.name} have {queries.dimension} dimensions{cut}"
            raise UserError(f"{problem}, the documents by {self.documents_by} have {self.encoded}; {advice}.")
        differences = "; ".join(self.differences(queries))
        if not differences:
            return
        problem = f"queries by {queries.name} do not belong among documents by {self.documents_by} ({differences})"
        if self._is(queries.query_space, queries.query_space_contract):
            problem = f"{queries.name} is the model of these documents but encodes queries differently ({differences})"
            advice = "change it back, or build the index with the model as it is now: documents are not embedded again"
        elif queries.name == self.documents_by and queries.query_space != queries.document_space:
            problem = f"{queries.name} encodes queries only, for documents of another model"
            advice = "build an index of those documents with it and give the index's folder"
        raise UserError(f"{problem}; {advice}.")

    def differences(self, queries: TextModel) -> list[str]:
        """Reasons to reject a query encoder, one short phrase each; empty for an accepted one.

        The documents' own model must also keep its query prompt: the documents were embedded for queries with that
        prompt. This does not hold for a model with a query tower of its own (a Router), which states its document space
        by its weights, as a student does by its manifest. A space that an earlier version of this package saved does
        not know tokenizer and configuration, which then are not compared.
        """
        if self._is(queries.query_space, queries.query_space_contract):
            if not self.holds_documents_of(queries):
                return []  # distilled into the space
            return changes_of_queries(queries, self.query_contract)
        if queries.query_space != queries.document_space:
            return [f"it was distilled into space {queries.query_space}, the documents are in {self.fingerprint}"]
        phrases = list(_differences(contract_at(queries.contract("document"), self._format), self.contract))
        return phrases or [f"space {queries.query_space}, expected {self.fingerprint}"]

    @property
    def _format(self) -> int:
        return _format_of(self.fingerprint)

    def _is(self, fingerprint: str, contract: Mapping[str, Any]) -> bool:
        """Whether this is the space of a fingerprint, by the rule of the earlier of both formats.

        Either contract may be unknown (empty): then a fingerprint of another format is another space.
        """
        format = _format_of(fingerprint)
        if format == self._format:
            return fingerprint == self.fingerprint
        if format < self._format:
            return bool(self.contract) and _earlier_fingerprint(self.contract, format) == fingerprint
        return bool(contract) and _earlier_fingerprint(contract, self._format) == self.fingerprint


def changes_of_queries(encoder: TextModel, expected: Mapping[str, Any]) -> list[str]:
    """How an encoder of the same weights encodes queries differently than by a contract; nothing for other weights.

    Other weights are those of a query tower of its own, or of a student that was trained again for the same documents.
    Neither is a length-adaptive encoder that keeps another share of its tokens the same, changed: its name says which.
    An empty contract is unknown: nothing differs.
    """
    own = encoder.contract("query")
    if not expected or own.get("weights") != expected.get("weights") or _kept(own) != _kept(expected):
        return []
    own = contract_at(own, FORMAT if set(_SINCE) & set(expected) else 1)
    return [f"query {phrase}" for phrase in _differences(own, dict(expected))]


def _kept(contract: Mapping[str, Any]) -> Any:
    """What a length-adaptive encoder keeps; None for all tokens."""
    return next((settings.get(LENGTH_ADAPTIVE) for _, settings in contract.get("modules", [])), None)


def _differences(own: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """Short phrases. Settings of modules are compared only if the weights agree: otherwise it is another model."""
    keys = {**expected, **own} if "weights" in expected else dict(expected)
    if own.get("weights") != expected.get("weights"):
        keys = {key: None for key in keys if key not in _SINCE}  # another model has others
    for key in (key for key in keys if own.get(key) != expected.get(key)):
        if key == "modules" and own.get("weights") == expected["weights"]:
            yield _module_difference(own["modules"], expected["modules"])
        elif key == "configurations" and len(own.get(key, ())) == len(expected[key]):
            yield _configuration_difference(own[key], expected[key])
        elif key in ("weights", "modules", "configurations"):
            yield f"other {key}"
        elif key == "tokenizers":
            yield "another tokenizer"
        else:
            yield f"{key} {own.get(key)!r}, expected {expected.get(key)!r}"


def _configuration_difference(own: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    a, b = next((a, b) for a, b in zip(own, expected, strict=True) if a != b)
    key = next(key for key in {**b, **a} if a.get(key) != b.get(key))
    a, b = ({key: "its default", **values} for values in (a, b))
    return f"configuration {key} {a[key]!r}, expected {b[key]!r}"


def _module_difference(own: list[Any], expected: list[Any]) -> str:
    own_names, expected_names = (", ".join(name for name, _ in modules) for modules in (own, expected))
    if own_names != expected_names:
        return f"modules {own_names}, expected {expected_names}"
    name, a, b = next((name, a, b) for (name, a), (_, b) in zip(own, expected, strict=True) if a != b)
    key = next(key for key in {**b, **a} if a.get(key) != b.get(key))
    return f"{name} has {key} {a.get(key)!r}, expected {b.get(key)!r}"
