"""Heads: what a student has behind its transformer, which can be trained against stored hidden states alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.contract import Role
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder

if TYPE_CHECKING:
    from retrodistill.students.clustering import TokenClusters


def head_of(student: SparseTextEncoder | MultiVectorModel) -> Any:
    """The linear map behind the transformer: to the vocabulary of a sparse student, to the width of token vectors.

    Raises:
        UserError: There is none that can be trained on its own.
    """
    found = [part for part in student.modules("document") if type(part).__name__ == "Dense"]
    if len(found) == 1 and found[0].module_input_name == "token_embeddings" and not found[0].use_residual:
        return found[0]
    if isinstance(student, SparseTextEncoder):
        raise UserError(
            f"model {student.name} has its term head inside the transformer; train: head trains one that stands "
            "behind it, as students from bi-encoders have: start from one, or set train: both_encoders."
        )
    raise UserError(
        f"model {student.name} has no projection behind its transformer for train: head to train; set the student's "
        "dimension below the transformer's width, or train: both_encoders."
    )


def backbone_of(student: SparseTextEncoder | MultiVectorModel, role: Role) -> list[Any]:
    """The modules in front of the head, and those that mask tokens: they give hidden states and tell which count."""
    parts, head = student.modules(role), head_of(student)
    front = parts[: next((place for place, part in enumerate(parts) if part is head), len(parts))]
    return front + [part for part in parts[len(front) :] if type(part).__name__ == "MultiVectorMask"]


def clusters_of(student: MultiVectorModel) -> TokenClusters | None:
    """The module that puts the means of clusters in place of token vectors; None where each token has its own.

    Raises:
        UserError: The student pools its tokens otherwise, and no gradient would flow.
    """
    from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling

    from retrodistill.students.clustering import TokenClusters

    pooling = [part for part in student.modules("document") if isinstance(part, BaseTokenPooling)]
    if not pooling:
        return None
    if len(pooling) > 1 or not isinstance(pooling[0], TokenClusters):
        raise UserError(
            f"model {student.name} pools its tokens by {type(pooling[0]).__name__}, which is for after training; set "
            "the student's clusters."
        )
    return pooling[0]


def query_weights_of(student: SparseTextEncoder) -> Any:
    """The (vocabulary,) parameter of inference-free queries.

    Raises:
        UserError: Queries go through a model.
    """
    parts = student.modules("query")
    if [type(part).__name__ for part in parts] != ["SparseStaticEmbedding"]:
        raise UserError(
            "train: head trains a sparse student with queries: inference-free; where a model encodes queries, set "
            "train: both_encoders."
        )
    return parts[0].weight


def activations_of(student: SparseTextEncoder) -> int:
    """How many times log(1 + x) is taken of a positive logit before the maximum over tokens: once or twice.

    Raises:
        UserError: The pooling sums over tokens.
    """
    pooling = next((part for part in student.modules("document") if type(part).__name__ == "SpladePooling"), None)
    if pooling is None or pooling.pooling_strategy != "max":
        raise UserError(f"model {student.name} does not take the maximum over tokens; set train: both_encoders.")
    return 2 if pooling.activation_function == "log1p_relu" else 1
