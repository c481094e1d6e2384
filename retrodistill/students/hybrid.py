"""Hybrid students: beside a dense model's pooled vector stands a learned lexical half, in one vector per text.

A single dense vector of a frozen model cannot tell what a lexical teacher knows; training all its layers on long
documents is dear. The lexical half is a token table, summed over the tokens that the transformer reads anyway, so it
costs nothing to encode, and little to train: what the transformer gives is stored, and only the table and a linear map
of the pooled vector learn. All modules are sentence-transformers' own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.texts import Texts
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.modules import with_modules
from retrodistill.students.dense import KIND as DENSE
from retrodistill.students.dense import start_dense
from retrodistill.students.static import fast_tokenizer, inverse_document_frequencies

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_ADDED = 4  # modules behind the dense model's own: table, hand-over, pooling, normalization


def hybrid_student(base: SentenceTransformer, width: int, corpus: Texts, *, seed: int = 0) -> SentenceTransformer:
    """Put a lexical half beside a dense model.

    ``v(x) = normalise([W dense(x) ; sum_i table[x_i] / sqrt(n)])`` over the n tokens of x. W starts as the identity.
    The table starts as Gaussian rows of expected length 1 times inverse document frequencies in 0..1: inner products of
    the lexical halves are then a random projection (Johnson and Lindenstrauss 1984) of IDF-weighted term overlap.

    Args:
        base: The dense model; cosine.
        width: Of the lexical half.
        corpus: Texts that document frequencies are counted on.
        seed: Of the table.

    Returns:
        A SentenceTransformer of stock modules: it saves and loads without this package.

    Raises:
        UserError: The model is not a cosine model, has no fast tokenizer, or the widths do not add up to an even one.
    """
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WordEmbeddings

    dense = Encoder(base, "dense:student")
    if dense.similarity != "cosine":
        raise UserError("a lexical half is added to cosine models; this one uses the dot product.")
    if width < 1 or (dense.dimension + width) % 2:
        raise UserError(
            f"lexical_dim={width}: with the dense half's {dense.dimension} dimensions the sum must be even."
        )
    tokenizer = fast_tokenizer(dense)
    weights = inverse_document_frequencies(tokenizer, corpus)
    weights[base.tokenizer.all_special_ids] = 0.0
    rows = np.random.default_rng(seed).standard_normal((len(weights), width)) / np.sqrt(width)
    table = torch.from_numpy((rows * weights[:, None]).astype(np.float32))
    modules: list[Any] = list(base)
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    hand_over = Dense(
        dense.dimension,
        dense.dimension,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=torch.eye(dense.dimension),
        module_input_name="sentence_embedding",
        module_output_name="cls_token_embeddings",
    )
    pooling = Pooling((dense.dimension + width) // 2, ["cls", "mean_sqrt_len_tokens"])
    modules += [WordEmbeddings(base.tokenizer, table, update_embeddings=True), hand_over, pooling, Normalize()]
    return with_modules(base, modules, "SentenceTransformer", "cosine")


def is_hybrid(model: SentenceTransformer) -> bool:
    """Whether a model has a lexical half."""
    names = [type(module).__name__ for module in model]
    return names[-_ADDED:] == ["WordEmbeddings", "Dense", "Pooling", "Normalize"]


def dense_half(model: SentenceTransformer, name: str) -> Encoder:
    """The dense model inside a hybrid: its embeddings are those of the model that the student started from.

    Raises:
        UserError: The model is no hybrid.
    """
    if not is_hybrid(model):
        raise UserError(f"model {name} has no lexical half; set student.lexical_dim to its width.")
    return Encoder(with_modules(model, list(model)[:-_ADDED], "SentenceTransformer", "cosine"), name)


def lexical_table(model: SentenceTransformer) -> Any:
    """The (vocabulary, width) parameter of a hybrid's lexical half."""
    module: Any = model[len(model) - _ADDED]
    return module.emb_layer.weight


def dense_map(model: SentenceTransformer) -> Any:
    """The (d, d) parameter W of a hybrid's dense half."""
    module: Any = model[len(model) - _ADDED + 1]
    return module.linear.weight


def _start(settings: Any, data: Any) -> SentenceTransformer:
    base = start_dense(settings, data)
    return hybrid_student(base, settings.lexical_dim, data.collection.documents, seed=data.seed)


def _check(settings: Any) -> None:
    if any(stage.train != "lexical" for stage in settings.stages):
        raise ValueError("a lexical half is for dense students, and all their stages have train: lexical")


KIND = replace(
    DENSE,
    name="hybrid",
    written="",
    start=_start,
    owns=is_hybrid,
    parts=("lexical",),
    defaults=lambda settings: replace(DENSE.defaults(settings), train="lexical"),
    options=frozenset({"dimension", "lexical_dim"}),
    check=_check,
    has_vector=False,
    card="hybrid",
)
