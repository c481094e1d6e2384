"""What list objectives share: their contract, masks, usable lists, and temperatures from the spread of scores.

Every list objective follows one contract. Its docstring adds only the formula, the source and the range.

- ``scores`` are (batch, n) student scores. ``targets`` are (batch, n) teacher scores, higher is better. Both are raw
  scores over their temperature; where a function takes temperatures itself, they are raw.
- ``mask`` is (batch, n) bool, true at positions that hold a candidate; None means all. Masked positions may hold any
  value, NaN included.
- ``positives`` are (batch,) integer positions of the relevant document in its list, negative where none is known.
- The result is a scalar, float32 or the inputs' wider type: the mean over the lists with at least two candidates, and
  0 with a gradient of 0 if there are none.
- `UserError` is raised for shapes that differ and for parameters out of range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.runs.calibration import flat, list_moments
from retrodistill.runs.run import Run

NOTHING = -1e30  # finite, so that 0 times it is 0 and gradients stay finite; far below any float32 score


def full_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` as bool, or all true if it is None; a `UserError` if its shape differs from the scores'."""
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape:
        raise UserError(f"mask of shape {tuple(mask.shape)} for scores of shape {tuple(scores.shape)}; they are equal.")
    return mask.bool()


def mask_of(scores: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """The full mask of two (batch, n) tables of one shape; any other shapes are rejected."""
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise UserError(
            f"scores of shape {tuple(scores.shape)} and teacher scores of shape {tuple(targets.shape)}; both are "
            "(batch, candidates)."
        )
    return full_mask(scores, mask)


def check_positives(scores: Tensor, positives: Tensor) -> None:
    """Reject anything but (batch, n) scores with (batch,) positions."""
    if scores.ndim != 2 or positives.shape != scores.shape[:1]:
        raise UserError(
            f"scores of shape {tuple(scores.shape)} and positives of shape {tuple(positives.shape)}; they are "
            "(batch, candidates) and (batch,)."
        )


def at_least_float32(scores: Tensor) -> Tensor:
    """Scores in float32 (float64 stays): float16 overflows above 65504, so squares overflow early."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def cleaned(scores: Tensor, valid: Tensor, filler: float = 0.0) -> Tensor:
    """Scores in float32 or wider, with `filler` at masked positions."""
    return at_least_float32(scores).masked_fill(~valid, filler)


def log_softmax(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(batch, n) log-probabilities of scores / temperature over the unmasked positions, about -1e30 at masked ones."""
    if not temperature > 0:
        raise UserError(f"temperature={temperature}: it must be above 0.")
    return torch.log_softmax((at_least_float32(scores) / temperature).masked_fill(~mask, NOTHING), dim=-1)


def mean_over_lists(values: Tensor, usable: Tensor) -> Tensor:
    """Mean of (batch,) values over the usable lists; 0, with a gradient of 0, if none is usable."""
    return torch.where(usable, values, torch.zeros_like(values)).sum() / usable.sum().clamp(min=1)


def usable_lists(targets: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, int]]:
    """(batch,) bool, the lists in which the teacher's scores teach something, and the number of others by reason.

    A list has at most one reason:

    - ``single``: fewer than two candidates;
    - ``not finite``: a NaN or infinite score at a candidate;
    - ``flat``: all scores equal;
    - ``saturated``: at least three candidates, and more than half of all, share the highest score, as when a sigmoid
      saturates at 1: the order among the best is lost. (Ties at the bottom are common and harmless.)
    """
    valid = full_mask(targets, mask)
    sizes = valid.sum(dim=1)
    single = sizes < 2
    broken = ~single & (valid & ~torch.isfinite(targets)).any(dim=1)
    sound = ~single & ~broken
    highest = targets.masked_fill(~valid, -torch.inf).amax(dim=1)
    level = sound & (highest == targets.masked_fill(~valid, torch.inf).amin(dim=1))
    on_top = (valid & (targets == highest[:, None])).sum(dim=1)
    saturated = sound & ~level & (on_top >= 3) & (2 * on_top > sizes)
    reasons = {"single": single, "not finite": broken, "flat": level, "saturated": saturated}
    return sound & ~level & ~saturated, {reason: int(lists.sum()) for reason, lists in reasons.items()}


def spread(run: Run) -> float:
    """Mean over the lists of the population standard deviation of their scores, in the unit of the scores.

    Lists with one candidate or with equal scores do not count.
    """
    deviation = list_moments(run)[1]
    deviation = deviation[deviation > 0]
    if not len(deviation):
        raise flat(run)
    return float(deviation.mean())


def temperature_for(run: Run, target_std: float) -> float:
    """The temperature at which a ranker's lists have a mean standard deviation of `target_std` logits.

    Each teacher has its own scale, so no fixed temperature fits all. About 1 is gentle; 4 leaves the first few
    candidates most of the mass. A target_std that is not above 0, or a flat run, is a `UserError`.
    """
    if not target_std > 0:  # NaN too
        raise UserError(f"target_std={target_std}: it must be above 0.")
    return spread(run) / target_std


def check_trainable(run: Run) -> tuple[Run, dict[str, int]]:
    """Keep the lists of at least two different scores, and count the ``single`` and ``flat`` ones that are dropped.

    Raises:
        UserError: No list is left: an empty run, one candidate per query, or all scores equal.
    """
    single, informative = np.diff(run.bounds) < 2, list_moments(run)[1] != 0
    if not len(run):
        raise UserError(f"run {run.name} is empty; a list objective needs queries with at least two candidates each.")
    if single.all():
        raise UserError(
            f"run {run.name}: every query has one candidate, and a list objective needs at least two; mine deeper."
        )
    if not informative.any():
        raise flat(run)
    dropped = {"single": int(single.sum()), "flat": int((~single & ~informative).sum())}
    return run.filter(informative[run.query_codes]), dropped
