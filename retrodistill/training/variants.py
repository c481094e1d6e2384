"""Losses of forms: the same loss on leading dimensions (Matryoshka), and behind each exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.exits import exits_of
from retrodistill.students.hybrid import is_hybrid
from retrodistill.students.kinds import AnyStudent
from retrodistill.students.matryoshka import MatryoshkaLoss, check_dimensions
from retrodistill.students.multi_exit import MultiExitLoss
from retrodistill.training.settings import StageSettings

Make = Callable[[int, bool], Any]


def check_matryoshka(student: AnyStudent, stage: StageSettings) -> None:
    """Refuse leading dimensions that a student does not have.

    Raises:
        UserError: It has no vector to cut, or a shorter one.
    """
    if not stage.matryoshka:
        return
    if not isinstance(student, Encoder) or is_hybrid(student.model):
        raise UserError(f"matryoshka cuts vectors of dense and static students; {student.name} is another.")
    check_dimensions(stage.matryoshka, student.dimension)


def loss_of_variants(student: Encoder, stage: StageSettings, make: Make) -> Any:
    """The loss of a stage at all exits and truncations that the student and the stage have; itself where there is none.

    Args:
        student: Dense or static.
        stage: Says which truncations, and what exits weigh.
        make: Gives the loss on so many leading dimensions; its second argument is False for all but the first of
            several, see ``alone`` of `retrodistill.training.losses.StoredTargetsLoss`.

    Returns:
        A `TermsLoss`, `MatryoshkaLoss` or `MultiExitLoss`.
    """
    exits = exits_of(student.model) if not student.is_static else []
    if not exits:
        return _at_exit(student, stage, make, True)[0]
    made = {layer: _at_exit(student, stage, make, layer == exits[-1]) for layer in exits}
    return MultiExitLoss(
        student.model,
        {layer: loss for layer, (loss, _) in made.items()},
        weights=stage.exit_weights,
        kl_weight=1.0 if stage.exit_kl is None else stage.exit_kl,
        start=made[exits[-1]][1],
    )


def _at_exit(student: Encoder, stage: StageSettings, make: Make, alone: bool) -> tuple[Any, Any]:
    """The loss behind one exit, and the student of the stage's start, where a term compares with it."""
    whole = student.dimension
    plain = make(whole, alone)
    if not stage.matryoshka:
        return plain, plain.start
    losses = {cut: plain if cut == whole else make(cut, False) for cut in {*stage.matryoshka, whole}}
    return MatryoshkaLoss(student.model, losses, start=plain.start), plain.start
