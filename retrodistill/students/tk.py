"""TK: kernel pooling over lightly contextualised tokens (Hofstätter et al., ECAI 2020, arXiv 2002.01854)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.multi_vector import fitted_on, principal_directions
from retrodistill.students.cross_encoder import CrossEncoderStudent, load_pairs
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
    from sentence_transformers import CrossEncoder

CENTRES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9)
WIDTH = 0.1
_LEAST = 1e-10  # below it a kernel counts as empty (the authors' clamp)
_START = 0.05  # of the weight of the kernel at 1


class TK(LateInteraction):
    """Scores pairs by how many of a document's tokens lie how near to each of the query's.

    A token's vector mixes its static embedding e and its context c, what a few transformer layers make of it::

        v = alpha e + (1 - alpha) c
        K_ik = sum_j exp(-(cos(q_i, d_j) - mu_k)^2 / 2 sigma^2)
        s = w . sum_i g_i log2 K_i + u . sum_i g_i K_i / |d|

    as in the paper's section 3, whose two last scalars lie in w and u here. e and c have length 1 before they are
    mixed, since they come from different depths of a trained model here, not from one training as in the paper. g is 1
    in the paper; with `gated`, a learned weight for each token of the vocabulary, which starts as its IDF (after the
    term gate of DRMM, arXiv 1711.08611).

    Args:
        backbone: A BertModel; its layers, possibly none, give the context.
        tokenizer: Its tokenizer.
        dimension: Width that tokens are projected to before they are compared and stored.
        gated: Weigh query tokens.
        query_length: Maximum number of tokens of a query; there are no special tokens.
        document_length: Tokens of a document.
        precision: Precision of the stored states.

    Raises:
        UserError: No BERT, a width that it does not have, or more tokens than it has positions.
    """

    kind: ClassVar[str] = "tk"
    config_keys: list[str] = ["dimension", "gated", *LateInteraction.config_keys]  # noqa: RUF012 - the base's

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        dimension: int | None = None,
        gated: bool = False,
        query_length: int = QUERY_LENGTH,
        document_length: int = DOCUMENT_LENGTH,
        precision: Precision = "float16",
    ) -> None:
        config = backbone.config
        require_bert(config, "given", self.kind)
        width, longest = config.hidden_size, config.max_position_embeddings
        if dimension is not None and not 1 <= dimension <= width:
            raise UserError(f"dimension={dimension}: the model's tokens have {width}; choose from 1 to {width}.")
        if max(query_length, document_length) > longest:
            raise UserError(
                f"texts of {max(query_length, document_length)} tokens: the model reads {longest}; set a smaller "
                "max_length."
            )
        super().__init__(
            backbone, tokenizer, query_length=query_length, document_length=document_length, precision=precision
        )
        self.dimension, self.gated = dimension, gated
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.projection = nn.Linear(width, dimension, bias=False) if dimension else None
        self.gate = nn.Parameter(torch.ones(config.vocab_size)) if gated else None
        centers = torch.tensor(CENTRES)
        # A soft count of matches, so that few lists are enough to begin with (the paper draws small random weights).
        self.logs = nn.Parameter(_START * centers.clamp(min=0))
        self.means = nn.Parameter(torch.zeros(len(CENTRES)))
        # Saved folders hold the buffer under this name; another one would make them unreadable.
        self.register_buffer("centres", centers)
        # in the weights' digest, since these decide scores as weights do
        self.register_buffer("read", torch.tensor([query_length, document_length, int(precision == "float16")]))

    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """The text's own tokens alone."""
        return tokens

    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) mixed vectors; a query and a document of equal text have equal ones."""
        words = nn.functional.normalize(self.backbone.embeddings.word_embeddings(ids), dim=2)
        layers = self.backbone.encoder.layer
        if not len(layers):
            return words
        context = through(layers, self.backbone.embeddings(input_ids=ids), mask)
        return self.alpha * words + (1 - self.alpha) * nn.functional.normalize(context, dim=2)

    def packed(self, states: Tensor) -> Tensor:
        """(n, tokens, dimension) of length 1."""
        return nn.functional.normalize(states if self.projection is None else self.projection(states), dim=2)

    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) scores; a document without tokens scores as one without any match."""
        sums = kernel_sums(self.packed(queries.states) @ documents.transpose(1, 2), mask, self.centres)
        weights = queries.mask.float() if self.gate is None else queries.mask * self.gate[queries.ids]
        logs = torch.log2(sums.clamp(min=_LEAST))
        means = sums / mask.sum(dim=1).clamp(min=1)[:, None, None]
        return ((logs @ self.logs + means @ self.means) * weights).sum(dim=1)

    def lower_parameters(self) -> list[nn.Parameter]:
        """The backbone and the mix."""
        return [*self.backbone.parameters(), self.alpha]

    @classmethod
    def empty_backbone(cls, config: Any) -> Any:
        """A BertModel without a pooler."""
        from transformers import BertModel

        return BertModel(config, add_pooling_layer=False)


def kernel_sums(match: Tensor, mask: Tensor, centers: Tensor, width: float = WIDTH) -> Tensor:
    """(n, query tokens, kernels): how much of a document lies at each kernel, for each of the query's tokens.

    Args:
        match: (n, query tokens, document tokens) cosines.
        mask: (n, document tokens) bool, true where there is a token.
        centers: (kernels,) mu.
        width: sigma of all kernels.
    """
    there = mask[:, None, :].to(match.dtype)
    return torch.stack(
        [(torch.exp((match - center) ** 2 * (-0.5 / width**2)) * there).sum(dim=2) for center in centers], dim=2
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
    """A TK to start from, in float32.

    Args:
        source: Folder or hub name of a bi-encoder with a BERT.
        corpus: Documents that token weights and a projection are fitted on.
        layers: Number of its first transformer layers that give the context; 0 for static tokens, as in K-NRM.
        dimension: Width of a stored token; the model's by default.
        max_length: Tokens of a document.
        gated: Weigh query tokens, from their IDF on.

    Raises:
        UserError: As `TK`, more layers than there are, or the model is not to be found.
    """
    start = load_bi_encoder(source)
    backbone: Any = getattr(start[0], "auto_model", None)
    require_bert(getattr(backbone, "config", None), source, TK.kind)
    there = backbone.config.num_hidden_layers
    if not 0 <= layers <= there:
        raise UserError(f"layers={layers}: the model has {there}; choose 0 to {there}.")
    backbone.encoder.layer = backbone.encoder.layer[:layers]
    backbone.config.num_hidden_layers, backbone.pooler = layers, None
    longest = backbone.config.max_position_embeddings
    module = TK(
        backbone,
        start.tokenizer,
        dimension=dimension,
        gated=gated,
        query_length=min(QUERY_LENGTH, longest),
        document_length=max_length or min(DOCUMENT_LENGTH, longest),
    ).to(start.device)
    with torch.no_grad():
        if module.gate is not None:
            module.gate.copy_(inverse_frequencies(module, corpus))
        if module.projection is not None:
            side = module.eval().side(fitted_on(corpus), "document")
            directions = principal_directions(side.states[side.mask].cpu().numpy())[:dimension]
            module.projection.weight.copy_(torch.from_numpy(directions.copy()))
    return late_interaction(module, start.device)


def inverse_frequencies(module: TK, corpus: Sequence[str], batch: int = 512) -> Tensor:
    """(vocabulary,) BM25's IDF of each token over the highest that there can be: 0 to 1, 1 for a token never seen."""
    counts = np.zeros(module.backbone.config.vocab_size, dtype=np.int64)
    for start in range(0, len(corpus), batch):
        ids, mask = (one.numpy() for one in module.tokens(corpus[start : start + batch], "document"))
        for row, there in zip(ids, mask, strict=True):
            counts[np.unique(row[there])] += 1
    total = len(corpus)
    idf = np.log1p((total - counts + 0.5) / (counts + 0.5))
    return torch.from_numpy((idf / np.log1p((total + 0.5) / 0.5)).astype(np.float32))


KIND = Kind(
    "tk",
    library_class="CrossEncoder",
    written="tk:NAME",
    start=lambda settings, data: tk_student(
        settings.model.partition(":")[2],
        data.collection.documents.texts,
        layers=settings.layers or 2,
        dimension=settings.dimension,
        max_length=settings.max_length,
    ),
    load=load_pairs,
    wrap=CrossEncoderStudent,
    train=train_late_interaction,
    ranker=lambda student, documents: StoredDocumentsRanker(student),
    owns=lambda model: type(model[0]) is TK,
    parts=("head", "both_encoders"),
    defaults=lambda _: StageDefaults("head", {"learning_rate": 3e-3, "batch_size": 16, "warmup": 0.05}, 1.0),
    options=frozenset({"dimension"}),
    check=check_dimension,
    can_search=False,
    card="tk",
)
