"""Late-interaction re-rankers: documents are read alone, stored, and meet the query late (arXiv 2010.02666).

PreTT and TK are modules of sentence-transformers' CrossEncoder: they train, save, load and score pairs as one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from retrodistill.core.errors import UserError, unknown
from retrodistill.encoders.contract import Role

QUERY_LENGTH, DOCUMENT_LENGTH = 64, 200
Precision = Literal["float16", "float32"]
PRECISIONS = ("float16", "float32")


class Side(NamedTuple):
    """Texts of one side.

    Attributes:
        ids: (n, tokens) int64 token ids.
        mask: (n, tokens) bool, true where there is a token.
        states: (n, tokens, d).
    """

    ids: Tensor
    mask: Tensor
    states: Tensor

    def take(self, places: Tensor) -> Side:
        """The texts at (m,) places."""
        return Side(self.ids[places], self.mask[places], self.states[places])


class LateInteraction(InputModule):
    """What PreTT and TK share: texts are read apart, once each, and the pairs of a batch share them.

    Three steps: `lower` reads a text alone; `packed` makes of a document what a re-ranker stores; `compare` sees both
    sides. A forward pass over pairs takes all three, and rounds what would be stored, so that stored documents score as
    they did in training.

    Args:
        backbone: A BERT of transformers.
        tokenizer: Of transformers.
        query_length: Tokens of a query that are read, special ones included.
        document_length: The same of a document.
        precision: Precision of a document's stored states.

    Raises:
        UserError: Another architecture than BERT, texts longer than it reads, or another precision.
    """

    tokenizer: Any
    kind: ClassVar[str]
    specials: ClassVar[dict[Role, int]] = {"query": 0, "document": 0}
    config_file_name = "late_interaction.json"
    config_keys: list[str] = ["query_length", "document_length", "precision"]  # noqa: RUF012 - the base's
    save_in_root = True

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        query_length: int = QUERY_LENGTH,
        document_length: int = DOCUMENT_LENGTH,
        precision: Precision = "float16",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        for name, length in (("query_length", query_length), ("document_length", document_length)):
            if length < 3:
                raise UserError(f"{name}={length}: give at least 3 tokens.")
        self.backbone, self.tokenizer = backbone, tokenizer
        self.query_length, self.document_length, self.precision = query_length, document_length, precision
        self.stored: Any = None  # a `TextStates`, while the lower part is frozen

    @property
    def processor(self) -> Any:
        """The tokenizer, by the name that the trainer knows."""
        return self.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a pair."""
        return self.query_length + self.document_length

    @abstractmethod
    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """A text's token ids with those special ones that its side has."""

    @abstractmethod
    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) states of texts that are read alone."""

    @abstractmethod
    def packed(self, states: Tensor) -> Tensor:
        """(n, tokens, width) of documents as they are stored, before rounding."""

    @abstractmethod
    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) raw scores of matched texts, higher is better.

        Args:
            queries: With their states of `lower`.
            documents: (n, tokens, width) of `packed`.
            mask: (n, tokens) bool of the documents.
        """

    @abstractmethod
    def lower_parameters(self) -> list[nn.Parameter]:
        """What `lower` is made of: frozen where its states are stored for training."""

    @classmethod
    @abstractmethod
    def empty_backbone(cls, config: Any) -> Any:
        """A backbone of a configuration, to be filled with weights."""

    def rounded(self, packed: Tensor) -> Tensor:
        """What is left after storing; gradients pass straight through."""
        if self.precision == "float32":
            return packed
        return packed + (packed.half().float() - packed).detach()

    def tokens(self, texts: Sequence[str], role: Role) -> tuple[Tensor, Tensor]:
        """(n, tokens) int64 ids and bool mask, at least one column; longer texts are cut."""
        longest = (self.query_length if role == "query" else self.document_length) - self.specials[role]
        cut = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
        rows = [self.framed(list(one), role) for one in cut]
        width = max([1, *map(len, rows)])
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id or 0), dtype=torch.int64)
        for row, one in enumerate(rows):
            ids[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
        lengths = torch.tensor([len(one) for one in rows])
        return ids, torch.arange(width)[None, :] < lengths[:, None]

    def side(self, texts: Sequence[str], role: Role) -> Side:
        """Texts with their states of `lower`, on the model's device."""
        device = next(self.parameters()).device
        ids, mask = (one.to(device) for one in self.tokens(texts, role))
        return Side(ids, mask, self.lower(ids, mask, role))

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Features of (query, document) pairs; a text that is in several is read once.

        Args:
            inputs: Pairs of texts.
            prompt: Prefix of each query.
            kwargs: Of the library; nothing here takes them.
        """
        queries, query_places = _distinct([(prompt or "") + query for query, _ in inputs])
        documents, document_places = _distinct([document for _, document in inputs])
        ids, mask = self.tokens(queries, "query")
        found = {"query_ids": ids, "query_mask": mask}
        if self.stored is None:
            found["document_ids"], found["document_mask"] = self.tokens(documents, "document")
        else:
            found["document_states"], found["document_mask"] = self.stored.of(documents)
        return {**found, "query_places": query_places, "document_places": document_places}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Features of `preprocess` with ``scores``, (pairs,) raw."""
        ids, mask, there = features["query_ids"], features["query_mask"], features["document_mask"]
        queries = Side(ids, mask, self.lower(ids, mask, "query"))
        states = features.get("document_states")
        if states is None:
            states = self.lower(features["document_ids"], there, "document")
        documents, at = self.rounded(self.packed(states)), features["document_places"]
        scores = self.compare(queries.take(features["query_places"]), documents[at], there[at])
        return {**features, "scores": scores}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Settings, configuration, tokenizer and all weights, in one folder."""
        self.save_config(output_path)
        self.backbone.config.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> LateInteraction:
        """As the library loads any module; no code of the folder runs."""
        from transformers import AutoConfig, AutoTokenizer

        place: dict[str, Any] = {"subfolder": subfolder, "token": token, "revision": revision}
        found = {**place, "cache_dir": cache_folder, "local_files_only": local_files_only}
        config = AutoConfig.from_pretrained(model_name_or_path, **found)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **found)
        place |= {"cache_folder": cache_folder, "local_files_only": local_files_only}
        module = cls(cls.empty_backbone(config), tokenizer, **cls.load_config(model_name_or_path, **place))
        return cls.load_torch_weights(model_name_or_path, model=module, **place)


def through(layers: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """(n, tokens, d) through BERT's layers, each token seeing those where (n, tokens) `mask` is true."""
    hide = (~mask[:, None, None, :]).to(hidden.dtype) * torch.finfo(hidden.dtype).min
    for layer in layers:
        hidden = layer(hidden, hide)
    return hidden


def require_bert(config: Any, source: str, kind: str) -> None:
    """Reject models that are not a BERT.

    Raises:
        UserError: Another architecture.
    """
    if getattr(config, "model_type", None) != "bert":
        raise UserError(
            f"model {source} is a {getattr(config, 'model_type', 'model without layers')}; a {kind} student runs the "
            "layers of a BERT apart: start from one, such as all-MiniLM-L6-v2."
        )


def late_interaction(module: LateInteraction, device: Any) -> Any:
    """The CrossEncoder around a module, with raw logits."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(modules=[module], device=str(device), activation_fn=nn.Identity())


def _distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts in their order, and (n,) int64: for each text its place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), torch.tensor([places[text] for text in texts], dtype=torch.int64)


def check_dimension(settings: Any) -> None:
    """Refuse a stored token's width that is not a number.

    Raises:
        ValueError: It is ``space``.
    """
    if settings.dimension == "space":
        raise ValueError("the dimension of a student that stores tokens is a number: that of a token's vector")
