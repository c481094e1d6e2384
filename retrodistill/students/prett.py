"""PreTT: a cross-encoder whose lower layers read query and document apart, so that documents are precomputed.

MacAvaney et al. 2020 (PreTTR, arXiv 2004.14255); a student of Hofstätter et al. 2020 (arXiv 2010.02666).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.multi_vector import fitted_on, principal_directions
from retrodistill.students.cross_encoder import CrossEncoderStudent, cross_encoder_student, load_pairs
from retrodistill.students.late_interaction import (
    DOCUMENT_LENGTH,
    QUERY_LENGTH,
    LateInteraction,
    Precision,
    Side,
    StoredDocumentsRanker,
    check_dimension,
    late_interaction,
    require_bert,
    through,
    train_late_interaction,
)
from retrodistill.students.registry import Kind, StageDefaults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import CrossEncoder

_AT_ONCE = 32


class PreTT(LateInteraction):
    """A cross-encoder split at a layer, scored from [CLS].

    The pair is ``[CLS] query [SEP]`` (segment 0) and ``document [SEP]`` (segment 1). Below layer `join` each half
    attends to itself alone, which is the block mask of the paper; from there on all attends to all. A document's
    positions begin at `query_length` whatever the query, as behind a query that is padded to its full length: its
    states at the join then depend on nothing but the document.

    Args:
        backbone: A BertForSequenceClassification with one label.
        tokenizer: Its tokenizer.
        join: Layers that read apart, from 0 (an ordinary cross-encoder) to one less than there are.
        dimension: Store a document's states through a linear map to this many dimensions and back (the paper's
            compression, without its activation).
        query_length: Tokens of a query, [CLS] and [SEP] included.
        document_length: Tokens of a document, [SEP] included.
        precision: Precision of the stored states.

    Raises:
        UserError: No BERT, a join that leaves no layer for both, a width that it does not have, or more tokens than it
            has positions.
    """

    kind: ClassVar[str] = "prett"
    specials: ClassVar[dict[Role, int]] = {"query": 2, "document": 1}
    config_keys: list[str] = ["join", "dimension", *LateInteraction.config_keys]  # noqa: RUF012 - the base's

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        join: int,
        dimension: int | None = None,
        query_length: int = QUERY_LENGTH,
        document_length: int = DOCUMENT_LENGTH,
        precision: Precision = "float16",
    ) -> None:
        config = backbone.config
        require_bert(config, "given", self.kind)
        layers, longest, width = config.num_hidden_layers, config.max_position_embeddings, config.hidden_size
        if not 0 <= join < layers:
            raise UserError(
                f"join={join}: the model has {layers} layers, and at least one reads query and document together; "
                f"choose 0 to {layers - 1}."
            )
        if dimension is not None and not 1 <= dimension <= width:
            raise UserError(f"dimension={dimension}: the model's states have {width}; choose from 1 to {width}.")
        if query_length + document_length > longest:
            raise UserError(
                f"{query_length} tokens of a query and {document_length} of a document: the model reads {longest} "
                "together; set a smaller max_length."
            )
        super().__init__(
            backbone, tokenizer, query_length=query_length, document_length=document_length, precision=precision
        )
        self.join, self.dimension = join, dimension
        self.compress = nn.Linear(width, dimension, bias=False) if dimension else None
        self.restore = nn.Linear(dimension, width, bias=False) if dimension else None
        # in the weights' digest, since these decide scores as weights do
        self.register_buffer("read", torch.tensor([join, query_length, document_length, int(precision == "float16")]))

    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """``[CLS] query [SEP]`` or ``document [SEP]``."""
        first = [self.tokenizer.cls_token_id] if role == "query" else []
        return [*first, *tokens, self.tokenizer.sep_token_id]

    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) states at the join."""
        bert, start = self.backbone.bert, 0 if role == "query" else self.query_length
        positions = start + torch.arange(ids.shape[1], device=ids.device)[None, :]
        segments = torch.full_like(ids, int(role == "document"))
        hidden = bert.embeddings(input_ids=ids, token_type_ids=segments, position_ids=positions)
        return through(bert.encoder.layer[: self.join], hidden, mask)

    def packed(self, states: Tensor) -> Tensor:
        """The states, through the compressor where there is one."""
        return states if self.compress is None else self.compress(states)

    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) logits of the layers that read both."""
        bert, there = self.backbone.bert, torch.cat([queries.mask, mask], dim=1)
        restored = documents if self.restore is None else self.restore(documents)
        hidden = torch.cat([queries.states, restored], dim=1)
        hidden = through(bert.encoder.layer[self.join :], hidden, there)
        return self.backbone.classifier(self.backbone.dropout(bert.pooler(hidden)))[:, 0]

    def lower_parameters(self) -> list[nn.Parameter]:
        """Embeddings and the layers below the join."""
        bert = self.backbone.bert
        return [*bert.embeddings.parameters(), *bert.encoder.layer[: self.join].parameters()]

    @classmethod
    def empty_backbone(cls, config: Any) -> Any:
        """A BertForSequenceClassification."""
        from transformers import BertForSequenceClassification

        return BertForSequenceClassification(config)

    @torch.no_grad()
    def fit_compressor(self, texts: Sequence[str]) -> None:
        """Start the compressor with the directions that keep documents' states best (PCA without centering)."""
        if self.compress is None or self.restore is None:
            return
        self.eval()
        parts = []
        for start in range(0, len(texts), _AT_ONCE):
            side = self.side(texts[start : start + _AT_ONCE], "document")
            parts.append(side.states[side.mask].cpu().numpy())
        kept = torch.from_numpy(principal_directions(np.concatenate(parts))[: self.dimension].copy())
        self.compress.weight.copy_(kept)
        self.restore.weight.copy_(kept.T)


def prett_student(
    source: str,
    corpus: Sequence[str],
    *,
    join: int | None = None,
    layers: int | None = None,
    dimension: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> CrossEncoder:
    """A PreTT to start from, in float32.

    Args:
        source: Folder or hub name of a cross-encoder with a BERT, or of a BERT or bi-encoder, which gets a fresh last
            layer.
        corpus: Documents that a compressor is fitted on.
        join: Layers that read apart; two thirds of them by default.
        layers: Number of layers to keep, from the first.
        dimension: Width of what is stored of a document's token; the model's by default.
        max_length: Tokens of a document.
        seed: Of a fresh last layer.

    Raises:
        UserError: As `PreTT`, or the model is not to be found.
    """
    start = cross_encoder_student(source, layers=layers, seed=seed)
    backbone: Any = getattr(start[0], "auto_model", None)
    require_bert(getattr(backbone, "config", None), source, PreTT.kind)
    longest = backbone.config.max_position_embeddings
    asked = min(QUERY_LENGTH, longest // 4)
    module = PreTT(
        backbone,
        start.tokenizer,
        join=backbone.config.num_hidden_layers * 2 // 3 if join is None else join,
        dimension=dimension,
        query_length=asked,
        document_length=max_length or min(DOCUMENT_LENGTH, longest - asked),
    ).to(start.device)
    if dimension is not None:
        module.fit_compressor(fitted_on(corpus))
    return late_interaction(module, start.device)


KIND = Kind(
    "prett",
    library_class="CrossEncoder",
    written="prett:NAME",
    start=lambda settings, data: prett_student(
        settings.model.partition(":")[2],
        data.collection.documents.texts,
        join=settings.join,
        layers=settings.layers,
        dimension=settings.dimension,
        max_length=settings.max_length,
        seed=data.seed,
    ),
    load=load_pairs,
    wrap=CrossEncoderStudent,
    train=train_late_interaction,
    ranker=lambda student, documents: StoredDocumentsRanker(student),
    owns=lambda model: type(model[0]) is PreTT,
    parts=("head", "both_encoders"),
    defaults=lambda _: StageDefaults("head", {"learning_rate": 1e-4, "batch_size": 16}, 1.0),
    options=frozenset({"join", "dimension"}),
    check=check_dimension,
    can_search=False,
    card="prett",
)
