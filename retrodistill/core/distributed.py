"""More than one process (torchrun): one writes, the others wait and read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do the work inside first; the others follow and find it done."""
    if processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


def barrier() -> None:
    """Wait for all processes."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def average_gradients(parameters: Iterable[Any]) -> None:
    """Give each parameter the mean of its gradients over all processes; with one process nothing changes.

    Args:
        parameters: Tensors that require a gradient and are used in every step of every process.
    """
    if processes() == 1:
        return
    import torch

    def mean(gradient: Any) -> Any:
        torch.distributed.all_reduce(gradient)
        return gradient / processes()

    for parameter in parameters:
        parameter.register_hook(mean)
