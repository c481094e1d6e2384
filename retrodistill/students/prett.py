"""PreTT: a cross-encoder whose lower layers read query and document separately, so that documents are precomputed.

MacAvaney et al. 2020 (PreTTR, arXiv 2004.14255); a student of Hofstätter et al. 2020 (arXiv 2010.02666).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.divided_layers import from_states, knows_distances, make_divisible, states_before
from retrodistill.encoders.layers import longest_text
from retrodistill.encoders.multi_vector import fitted_on, principal_directions
from retrodistill.students.cross_encoder import check_head, cross_encoder_student
from retrodistill.students.late_interaction import (
    LATE_INTERACTION,
    LENGTHS,
    LateInteraction,
    Side,
    backbone_of,
    late_interaction,
    new_backbone,
)
from retrodistill.students.registry import StageDefaults
from retrodistill.students.segment_head import Head, SegmentHead

_BATCH = 32  # documents that the compressor is fitted on, read at a time


def _new_backbone(config: Any, settings: Mapping[str, Any]) -> Any:
    by_head = settings.get("head", "cls") == "cls"
    return new_backbone(config, AutoModelForSequenceClassification if by_head else AutoModel)


class PreTT(LateInteraction):
    """A cross-encoder split at a layer, scored by its own head (``cls``) or by a `SegmentHead`.

    The pair is ``[CLS] query [SEP]`` and ``document [SEP]``. Below layer `join` each half attends to itself alone,
    which is the block mask of the paper; from there on everything attends to everything, or to what a transformer with
    local attention lets it. For ``cls``, the halves are segments 0 and 1 where the model has segments, and a document's
    positions begin at `query_length` whatever the query, as after a query that is padded to its full length: its states
    at the join then depend on nothing but the document. For a `SegmentHead`, both are read as a bi-encoder does: the
    document has a [CLS], too, and both are segment 0 from position 0 on. Where layers see the distance of tokens, as
    with rotary embeddings, queries are padded to `query_length` before the documents in the upper layers, too.

    Args:
        backbone: A transformer for sequence classification with one label; for ``segments`` one without a head.
        tokenizer: Its tokenizer.
        join: Layers that read the texts separately, from 0 (an ordinary cross-encoder) to one less than there are.
        head: ``cls``, that of the backbone, or ``segments``.
        settings: As of `LateInteraction`. States of another ``dimension`` than the model's are stored through a linear
            map and restored by another (the paper's compression, without its activation).
    """

    kind: ClassVar[str] = "prett"
    new_backbone: ClassVar[Any] = staticmethod(_new_backbone)
    specials: dict[Role, int] = {"query": 2, "document": 1}  # noqa: RUF012 - the base's
    config_keys: list[str] = ["join", "head", "dimension", *LateInteraction.config_keys]  # noqa: RUF012 - the base's

    def __init__(self, backbone: Any, tokenizer: Any, *, join: int, head: Head = "cls", **settings: Any) -> None:
        if head == "segments":
            self.specials = {"query": 2, "document": 2}
        super().__init__(backbone, tokenizer, **settings)
        config, dimension = backbone.config, self.dimension
        layers, longest, width = config.num_hidden_layers, longest_text(backbone), config.hidden_size
        if not 0 <= join < layers:
            raise UserError(
                f"join={join}: the model has {layers} layers, and the last reads both texts; choose 0 to {layers - 1}."
            )
        if longest is not None and self.max_seq_length > longest:
            raise UserError(
                f"{self.query_length} tokens of a query and {self.document_length} of a document: the model reads "
                f"{longest} together; set a smaller max_length."
            )
        self.join, self.head = join, head
        # A table of segments says little: RoBERTa may have one, and a tokenizer that never names the second.
        self._has_segments = "token_type_ids" in tokenizer.model_input_names
        make_divisible(backbone)
        self._pads_queries = knows_distances(backbone.base_model)
        self.segment_head = SegmentHead(width, tokenizer.sep_token_id) if head == "segments" else None
        self.compress = nn.Linear(width, dimension, bias=False) if dimension else None
        self.restore = nn.Linear(dimension, width, bias=False) if dimension else None
        self.read = torch.cat([torch.tensor([join]), self.read])

    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """``[CLS] query [SEP]``, and ``document [SEP]`` or ``[CLS] document [SEP]``."""
        first = [self.tokenizer.cls_token_id] if role == "query" or self.head == "segments" else []
        return [*first, *tokens, self.tokenizer.sep_token_id]

    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) states at the join."""
        follows = role == "document" and self.head == "cls"
        places: dict[str, Any] = {"first": self.query_length * follows}
        if self._has_segments:
            places["segment"] = int(follows)
        states: Tensor = states_before(self.backbone.base_model, self.join, ids, mask, **places)
        return states

    def packed(self, states: Tensor) -> Tensor:
        """The states, through the compressor where there is one."""
        return states if self.compress is None else self.compress(states)

    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) logits of the layers that read both."""
        states, query_mask = queries.states, queries.mask
        if self._pads_queries:
            missing = self.query_length - query_mask.shape[1]
            states = nn.functional.pad(states, (0, 0, 0, missing))
            query_mask = nn.functional.pad(query_mask, (0, missing))
        both = torch.cat([query_mask, mask], dim=1)
        restored = documents if self.restore is None else self.restore(documents)
        output = from_states(self.backbone, self.join, torch.cat([states, restored], dim=1), both)
        if self.segment_head is None:
            return output.logits[:, 0]
        is_query = torch.arange(both.shape[1], device=both.device) < query_mask.shape[1]
        return self.segment_head.score(output.last_hidden_state, both & is_query, both & ~is_query)

    def lower_parameters(self) -> list[nn.Parameter]:
        """Embeddings and the layers below the join: what its states have a gradient for, whatever the architecture."""
        ids = torch.zeros((1, 2), dtype=torch.int64, device=self.read.device)
        own = [parameter for parameter in self.backbone.base_model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            states = self.lower(ids, torch.ones_like(ids, dtype=torch.bool), "document")
            gradients = torch.autograd.grad(states.sum(), own, allow_unused=True)
        return [parameter for parameter, gradient in zip(own, gradients, strict=True) if gradient is not None]

    @torch.no_grad()
    def fit_compressor(self, texts: Sequence[str]) -> None:
        """Start the compressor, if any, with the directions that keep documents' states best (uncentered PCA)."""
        if self.compress is None or self.restore is None:
            return
        self.eval()
        sides = (self.side(texts[start : start + _BATCH], "document") for start in range(0, len(texts), _BATCH))
        states = np.concatenate([side.states[side.mask].cpu().numpy() for side in sides])
        kept = torch.from_numpy(principal_directions(states)[: self.dimension].copy())
        self.compress.weight.copy_(kept)
        self.restore.weight.copy_(kept.T)


def prett_student(
    source: str,
    corpus: Sequence[str],
    *,
    join: int | None = None,
    head: Head | None = None,
    layers: int | None = None,
    dimension: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> CrossEncoder:
    """A PreTT to start from, in float32, made from a cross-encoder: ``source`` is its folder or hub name.

    A bi-encoder or transformer gets a new ``head``, as `cross_encoder_student` makes it. The student keeps the first
    ``layers``, of which the first ``join``, two thirds by default, read the texts separately. A document's token is
    stored in ``dimension`` numbers, the model's by default, by a compressor that is fitted on the corpus.
    ``max_length`` is the maximum number of tokens of a document.
    """
    start = cross_encoder_student(source, head=head, layers=layers, seed=seed)
    backbone, by_segments = backbone_of(start, source, PreTT.kind), isinstance(start[-1], SegmentHead)
    longest = longest_text(backbone) or sum(LENGTHS.values())
    query_length = min(LENGTHS["query"], longest // 4)
    module = PreTT(
        backbone,
        start.tokenizer,
        join=backbone.config.num_hidden_layers * 2 // 3 if join is None else join,
        head="segments" if by_segments else "cls",
        dimension=dimension,
        query_length=query_length,
        document_length=max_length or min(LENGTHS["document"], longest - query_length),
    ).to(start.device)
    if module.segment_head is not None:
        if hasattr(backbone, "pooler"):
            backbone.pooler = None
        module.segment_head.load_state_dict(start[-1].state_dict())
    module.fit_compressor(fitted_on(corpus))
    return late_interaction(module, start.device)


def _start(settings: Any, data: Any) -> CrossEncoder:
    options = {name: getattr(settings, name) for name in ("join", "head", "layers", "dimension", "max_length")}
    return prett_student(settings.model.partition(":")[2], data.collection.documents.column, seed=data.seed, **options)


def _check(settings: Any) -> None:
    check_head(settings)
    LATE_INTERACTION.check(settings)


KIND = replace(
    LATE_INTERACTION,
    name="prett",
    written="prett:NAME",
    start=_start,
    owns=lambda model: type(model[0]) is PreTT,
    defaults=lambda _: StageDefaults("head", {"learning_rate": 1e-4, "batch_size": 16}, 1.0),
    options=frozenset({"join", "head", "dimension"}),
    check=_check,
)
