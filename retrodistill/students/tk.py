"""TK: kernel pooling over lightly contextualized tokens (Hofstätter et al., ECAI 2020, arXiv 2002.01854)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from transformers import AutoModel

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.divided_layers import some_token
from retrodistill.encoders.layers import keep_layers, longest_text
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.multi_vector import fitted_on, principal_directions
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

CENTRES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)
_WIDTH = 0.1  # sigma of all kernels
_LEAST = 1e-10  # below it a kernel counts as empty (the authors' clamp)
_START = 0.05  # weight of the kernel at 1 at the start
_BATCH = 512  # texts tokenized at once


class TK(LateInteraction):
    """Scores pairs by counting, for each query token, the document's tokens at several degrees of similarity.

    A token's vector mixes its static embedding e and its context c, which is the output of a few transformer layers::

        v = alpha e + (1 - alpha) c
        K_ik = sum_j exp(-(cos(q_i, d_j) - mu_k)^2 / 2 sigma^2)
        s = w . sum_i g_i log2 K_i + u . sum_i g_i K_i / |d|

    as in the paper's section 3, whose two last scalars are part of w and u here. e and c have length 1 before they are
    mixed, since they come from different depths of a trained model here, not from one training as in the paper. g is 1
    in the paper; with `gated`, a learned weight for each token of the vocabulary, which starts as its IDF (after the
    term gate of DRMM, arXiv 1711.08611).

    Args:
        backbone: A transformer without a head; its layers, possibly none, give the context.
        tokenizer: Its tokenizer.
        gated: Weight query tokens.
        settings: As of `LateInteraction`; tokens are projected to ``dimension`` before they are compared and stored.
    """

    kind: ClassVar[str] = "tk"
    new_backbone: ClassVar[Any] = staticmethod(lambda config, settings: new_backbone(config, AutoModel))
    config_keys: list[str] = ["dimension", "gated", *LateInteraction.config_keys]  # noqa: RUF012 - the base's

    def __init__(self, backbone: Any, tokenizer: Any, *, gated: bool = False, **settings: Any) -> None:
        super().__init__(backbone, tokenizer, **settings)
        config, dimension, length = backbone.config, self.dimension, max(self.query_length, self.document_length)
        longest, own = longest_text(backbone), backbone.get_input_embeddings().embedding_dim
        if longest is not None and length > longest:
            raise UserError(f"texts of {length} tokens: the model reads {longest}; set a smaller max_length.")
        if own != config.hidden_size:
            raise UserError(
                f"a tk student mixes word embeddings and hidden states, and {type(backbone).__name__} has {own} and "
                f"{config.hidden_size} dimensions; start from a model with one width, such as all-MiniLM-L6-v2."
            )
        self.gated = gated
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.projection = nn.Linear(config.hidden_size, dimension, bias=False) if dimension else None
        self.gate = nn.Parameter(torch.ones(config.vocab_size)) if gated else None
        centers = torch.tensor(CENTRES)
        # A soft count of matches, so that few lists are enough to begin with (the paper draws small random weights).
        self.logs = nn.Parameter(_START * centers.clamp(min=0))
        self.means = nn.Parameter(torch.zeros(len(CENTRES)))
        # Saved folders hold the buffer under this name; another one would make them unreadable.
        self.register_buffer("centres", centers)

    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, 2 d): e and c side by side, or (n, tokens, d) without layers; the same for both roles."""
        words = nn.functional.normalize(self.backbone.get_input_embeddings()(ids), dim=2)
        if not self.backbone.config.num_hidden_layers:
            return words
        context = self.backbone(input_ids=ids, attention_mask=some_token(mask).long()).last_hidden_state
        return torch.cat([words, nn.functional.normalize(context, dim=2)], dim=2)

    def mixed(self, states: Tensor) -> Tensor:
        """(n, tokens, d) v of the states of `lower`."""
        if not self.backbone.config.num_hidden_layers:
            return states
        words, context = states.chunk(2, dim=2)
        return self.alpha * words + (1 - self.alpha) * context

    def packed(self, states: Tensor) -> Tensor:
        """(n, tokens, dimension) of length 1."""
        mixed = self.mixed(states)
        return nn.functional.normalize(mixed if self.projection is None else self.projection(mixed), dim=2)

    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) scores; a document without tokens scores as one without any match."""
        sums = kernel_sums(self.packed(queries.states) @ documents.transpose(1, 2), mask, self.centres)
        weights = queries.mask.float() if self.gate is None else queries.mask * self.gate[queries.ids]
        logs = torch.log2(sums.clamp(min=_LEAST))
        means = sums / mask.sum(dim=1).clamp(min=1)[:, None, None]
        return ((logs @ self.logs + means @ self.means) * weights).sum(dim=1)

    def lower_parameters(self) -> list[nn.Parameter]:
        """The backbone: embeddings and layers."""
        return list(self.backbone.parameters())


def kernel_sums(match: Tensor, mask: Tensor, centers: Tensor) -> Tensor:
    """(n, query tokens, kernels): how much of a document lies at each kernel, for each of the query's tokens.

    Of (n, query tokens, document tokens) cosines, an (n, document tokens) bool mask and (kernels,) centers mu.
    """
    counted = mask[:, None, :].to(match.dtype)
    return torch.stack(
        [(torch.exp((match - center) ** 2 * (-0.5 / _WIDTH**2)) * counted).sum(dim=2) for center in centers], dim=2
    )


def tk_student(
    source: str,
    corpus: Sequence[str],
    *,
    layers: int = 2,
    dimension: int | None = None,
    max_length: int | None = None,
    gated: bool = True,
) -> CrossEncoder:
    """A TK to start from, in float32, made from a bi-encoder: ``source`` is its folder or hub name.

    Its first ``layers`` give the context; with 0, tokens are static, as in K-NRM. A token is stored in ``dimension``
    numbers, the model's by default, and the projection to them is fitted on the corpus. If ``gated``, query tokens are
    weighted, from their IDF in the corpus on. ``max_length`` is the maximum number of tokens of a document.
    """
    start = load_bi_encoder(source)
    backbone = backbone_of(start, source, TK.kind)
    count, longest = backbone.config.num_hidden_layers, longest_text(backbone) or max(LENGTHS.values())
    if not 0 <= layers <= count:
        raise UserError(f"layers={layers}: the model has {count}; choose 0 to {count}.")
    keep_layers(backbone, layers)
    if hasattr(backbone, "pooler"):
        backbone.pooler = None
    module = TK(
        backbone,
        start.tokenizer,
        dimension=dimension,
        gated=gated,
        query_length=min(LENGTHS["query"], longest),
        document_length=max_length or min(LENGTHS["document"], longest),
    ).to(start.device)
    with torch.no_grad():
        if module.gate is not None:
            module.gate.copy_(inverse_frequencies(module, corpus))
        if module.projection is not None:
            side = module.eval().side(fitted_on(corpus), "document")
            directions = principal_directions(module.mixed(side.states)[side.mask].cpu().numpy())[:dimension]
            module.projection.weight.copy_(torch.from_numpy(directions.copy()))
    return late_interaction(module, start.device)


def inverse_frequencies(module: TK, corpus: Sequence[str]) -> Tensor:
    """(vocabulary,) BM25's IDF of each token over the highest possible: 0 to 1, 1 for a token never seen."""
    counts = np.zeros(module.backbone.config.vocab_size, dtype=np.int64)
    for start in range(0, len(corpus), _BATCH):
        ids, mask = (tensor.numpy() for tensor in module.tokens(corpus[start : start + _BATCH], "document"))
        for row, counted in zip(ids, mask, strict=True):
            counts[np.unique(row[counted])] += 1
    total = len(corpus)
    idf = np.log1p((total - counts + 0.5) / (counts + 0.5))
    return torch.from_numpy((idf / np.log1p((total + 0.5) / 0.5)).astype(np.float32))


def _start(settings: Any, data: Any) -> CrossEncoder:
    source, corpus = settings.model.partition(":")[2], data.collection.documents.column
    dimension, length = settings.dimension, settings.max_length
    return tk_student(source, corpus, layers=settings.layers or 2, dimension=dimension, max_length=length)


KIND = replace(
    LATE_INTERACTION,
    name="tk",
    written="tk:NAME",
    start=_start,
    owns=lambda model: type(model[0]) is TK,
    defaults=lambda _: StageDefaults("head", {"learning_rate": 3e-3, "batch_size": 16, "warmup": 0.05}, 1.0),
    options=frozenset({"dimension"}),
)
