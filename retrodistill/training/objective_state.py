"""What objectives remember over a training: told to them step by step, and kept beside each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from retrodistill.core.distributed import is_main
from retrodistill.core.errors import UserError
from retrodistill.core.files import read_json, write_json
from retrodistill.training.terms import TermsLoss

STATE_FILE = "objectives.json"


def objective_keeper(loss: nn.Module) -> Any:
    """A trainer callback that tells a loss how far training is, and saves and restores its schedules.

    The trainer saves neither a loss nor its state: without this a resumed TAID would start its target over.

    Args:
        loss: A `TermsLoss`, or a wrapper around one; any other loss is left alone.
    """
    from transformers import TrainerCallback

    kept = [module for module in loss.modules() if isinstance(module, TermsLoss)]

    class ObjectiveKeeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = _path(args.output_dir, state.global_step)
            if state.global_step and path.exists():  # a checkpoint cut before this file goes on along the straight line
                for module, saved in zip(kept, _read(path), strict=False):
                    module.load_objective_state(saved)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for module in kept:
                module.progress = state.global_step / max(state.max_steps, 1)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            states = [module.objective_state() for module in kept]
            if any(states) and is_main():
                write_json(_path(args.output_dir, state.global_step), {"losses": states})

    return ObjectiveKeeper()


def _path(folder: str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}" / STATE_FILE


def _read(path: Path) -> list[dict[str, dict[str, float]]]:
    try:
        states: list[dict[str, dict[str, float]]] = read_json(path)["losses"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no objectives' state; delete its checkpoint and go on.") from error
    return states
