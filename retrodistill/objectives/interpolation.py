"""Objectives whose target moves from the student to the teacher during training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from torch import Tensor

from retrodistill.core.errors import UserError
from retrodistill.objectives.distributions import kl_divergence
from retrodistill.objectives.lists import at_least_float32, check_lists
from retrodistill.objectives.registry import objective


def taid(scores: Tensor, targets: Tensor, mask: Tensor | None = None, *, t: float) -> Tensor:
    """TAID: KL divergence to a target between student and teacher (Shing et al., ICLR 2025, arXiv 2501.16937).

    ``KL(softmax((1 - t) stopgrad(s) + t T) || softmax(s))``, T the teacher's scores, in nats, 0 or more. The loss mixes
    logits, so both sides need one scale: divide both by their temperatures first. At t = 1 it is `kl_divergence`. At
    t = 0 its gradient is 0. `t` is from 0 to 1, see `InterpolationSchedule`; `objectives.lists` has the rest of the
    contract.
    """
    if not 0 <= t <= 1:
        raise UserError(f"t={t}: it must be from 0 to 1.")
    check_lists(scores, targets)
    mixed = (1 - t) * at_least_float32(scores).detach() + t * at_least_float32(targets)
    return kl_divergence(scores, mixed, mask)


objective(
    "taid",
    "KL to a target that moves from student to teacher during training (arXiv 2501.16937)",
    ("scores", "targets", "mask", "t"),
)(lambda scores, targets, mask, t: taid(scores, targets, mask, t=t))


@dataclass
class InterpolationSchedule:
    """TAID's adaptive t: from `start` to `end`, never below the straight line, faster while the loss falls.

    After a step with loss J: ``m = beta m + (1 - beta) (J_before - J) / J_before`` and
    ``t = min(end, max(start + (end - start) progress, t + alpha sigmoid(m) (1 - t)))`` (arXiv 2501.16937, algorithm 1
    as the authors' code has it). A resumed training must restore `state`.

    Attributes:
        start: First t, from 0 up to `end`.
        end: Last t, at most 1.
        alpha: Size of an adaptive step, from 0 to 1.
        beta: Decay of the momentum, from 0 to below 1.
        t: Current value.
        momentum: Smoothed relative fall of the loss.
        loss: Loss of the previous step; infinite before the first.
        progress: Completed share of the training at the last update.
    """

    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    t: float = -1.0
    momentum: float = 0.0
    loss: float = math.inf
    progress: float = -1.0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= self.end <= 1 and 0 <= self.alpha <= 1 and 0 <= self.beta < 1):
            raise UserError(
                f"start={self.start}, end={self.end}, alpha={self.alpha}, beta={self.beta}: 0 <= start <= end <= 1, "
                "alpha from 0 to 1, beta from 0 to under 1."
            )
        self.t = self.t if self.t >= 0 else self.start

    def update(self, loss: float, progress: float) -> None:
        """Advance after a step. A second call at the same progress changes nothing.

        Args:
            loss: The step's `taid`, 0 or more.
            progress: Share of the training's steps that are done, from 0 to 1.
        """
        if progress == self.progress or not math.isfinite(loss):
            return
        self.progress = progress
        if math.isfinite(self.loss):
            fall = (self.loss - loss) / (self.loss + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * fall
            step = self.alpha * _sigmoid(self.momentum) * (1 - self.t)
            line = self.start + (self.end - self.start) * progress
            self.t = min(self.end, max(line, self.t + step))
        self.loss = loss

    def state(self) -> dict[str, float]:
        """All that a checkpoint must keep, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if math.isfinite(value)}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> InterpolationSchedule:
        """Restore a schedule from `state`; a state with other names is a `UserError`."""
        if not set(state) <= set(cls.__dataclass_fields__):
            raise UserError(f"not a state of TAID's schedule: it has {', '.join(sorted(state))}.")
        return cls(**{name: float(value) for name, value in state.items()})


def _sigmoid(value: float) -> float:
    """Logistic function that does not overflow: one bad batch can make the relative change huge."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
