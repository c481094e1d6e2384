"""Regularizers over the term weights of a batch: they limit active terms and keep some of them active.

All take one (texts, terms) tensor of at least one text and return a scalar, float32 or wider and 0 or more; another
shape is a `UserError`. `flops` is a statistic of the whole batch: its value for a batch is not the mean of its values
for two halves. Processes must therefore gather the batch first (`whole_batch`); otherwise the result of training
depends on the number of devices. `l1`, `outside_top_k` and `anti_zero` are means over texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import processes
from retrodistill.objectives.lists import at_least_float32
from retrodistill.objectives.registry import regularizer


@regularizer("flops", "squared mean weight of each term over the batch (arXiv 2004.05665)")
def flops(weights: Tensor) -> Tensor:
    """FLOPS: a smooth form of the expected number of products per search (Paria et al. 2020, arXiv 2004.05665).

    ``sum_j (mean_i |w_ij|)^2`` over the whole batch (see `whole_batch`): terms shared by many texts cost most.
    """
    return (_checked(weights).abs().mean(dim=0) ** 2).sum()


@regularizer("l1", "sum of a text's term weights")
def l1(weights: Tensor) -> Tensor:
    """Mean over the texts of the sum of their weights: ``mean_i sum_j |w_ij|``."""
    return _checked(weights).abs().sum(dim=1).mean()


def top_k(weights: Tensor, k: int) -> Tensor:
    """Keep each text's k highest weights, or all if there are fewer, and set the others to 0.

    Ties are broken arbitrarily. Gradients flow to the kept weights.
    """
    _checked(weights)
    if k < 1:
        raise UserError(f"k={k}: at least 1 term must stay.")
    places = weights.topk(min(k, weights.shape[1]), dim=1).indices
    return torch.zeros_like(weights).scatter(1, places, weights.gather(1, places))


@regularizer("top-k", "sum of the term weights outside a text's k highest", takes_terms=True)
def outside_top_k(weights: Tensor, k: int) -> Tensor:
    """Penalty on what `top_k` removes: ``mean_i sum_j |w_ij|`` over the terms outside text i's k highest.

    0 exactly where no text has more than k nonzero terms, so truncation at index time changes nothing.
    """
    checked = _checked(weights)
    return l1(checked - top_k(checked, k))


@regularizer("anti-zero", "inverse square of the sum of a text's term weights: keeps texts from losing all terms")
def anti_zero(weights: Tensor, floor: float = 0.1) -> Tensor:
    """Keep texts from losing all their terms: ``mean_i 1 / (floor + sum_j |w_ij|)^2``, up to 1 / floor^2.

    DiSCo (arXiv 2410.14609) uses such a term instead of FLOPS. Its authors' code takes ``1 / (sum_ij w_ij)^2`` over the
    whole batch, which a single text with terms keeps small. Here every text must have some. The floor is also this
    package's choice; it bounds the loss and gradient of an empty text, and must be above 0.
    """
    if not floor > 0:
        raise UserError(f"floor={floor}: it must be above 0.")
    return ((floor + _checked(weights).abs().sum(dim=1)) ** -2).mean()


def l0_mask(weights: Tensor, threshold: int, counts: Tensor | None = None) -> Tensor:
    """Set the weights of texts with at most ``threshold`` terms to 0, so that no penalty sees them (arXiv 2504.14839).

    ``counts`` are the (texts,) numbers of terms, where ``weights`` has only a part of the vocabulary.
    """
    counts = (_checked(weights) != 0).sum(dim=1) if counts is None else counts
    return weights * (counts > threshold)[:, None]


def whole_batch(weights: Tensor) -> Tensor:
    """Gather (texts, terms) of all processes in rank order, with gradients. One process gets the same tensor back.

    Every process then has the same loss, and the gradient averaged over processes is that of one process with the
    whole batch. All processes must hold the same number of texts, as the trainer's loaders ensure.
    """
    if processes() == 1:
        return weights
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(weights)))


def _checked(weights: Tensor) -> Tensor:
    if weights.ndim != 2 or not len(weights):
        raise UserError(f"term weights of shape {tuple(weights.shape)}; they are (texts, terms), at least one text.")
    return at_least_float32(weights)
