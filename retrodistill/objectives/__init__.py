"""Objectives: pure functions of masked (batch, n) float32 lists, embeddings, tokens or term weights."""

import importlib
import pkgutil

from retrodistill.objectives.classes import PseudoClasses, classes_of, lelp, pseudo_classes
from retrodistill.objectives.distributions import (
    InterpolationSchedule,
    balanced_kl,
    contrastive,
    in_batch_contrastive,
    kl_divergence,
    listmle,
    listnet,
    plackett_luce,
    pld,
    reverse_kl,
    sinkhorn,
    taid,
    without_forgetting,
)
from retrodistill.objectives.embeddings import (
    cosine,
    leaf,
    mi_alpha,
    norm_and_direction,
    relation_matching,
    token_relations,
)
from retrodistill.objectives.lists import usable_lists
from retrodistill.objectives.scores import (
    binary_cross_entropy,
    in_batch_margin_mse,
    lambda_loss,
    margin_mse,
    mse,
    ranknet,
)
from retrodistill.objectives.sparsity import anti_zero, flops, l1, outside_top_k, top_k, whole_batch

for _module in pkgutil.iter_modules(__path__):  # every module registers its objectives when it is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "InterpolationSchedule",
    "PseudoClasses",
    "anti_zero",
    "balanced_kl",
    "binary_cross_entropy",
    "classes_of",
    "contrastive",
    "cosine",
    "flops",
    "in_batch_contrastive",
    "in_batch_margin_mse",
    "kl_divergence",
    "l1",
    "lambda_loss",
    "leaf",
    "lelp",
    "listmle",
    "listnet",
    "margin_mse",
    "mi_alpha",
    "mse",
    "norm_and_direction",
    "outside_top_k",
    "plackett_luce",
    "pld",
    "pseudo_classes",
    "ranknet",
    "relation_matching",
    "reverse_kl",
    "sinkhorn",
    "taid",
    "token_relations",
    "top_k",
    "usable_lists",
    "whole_batch",
    "without_forgetting",
]
