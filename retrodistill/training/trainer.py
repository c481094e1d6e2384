"""Training through the sentence-transformers trainer: checkpoints, resumption, torchrun, monitors."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import is_disk_error, make_folder
from retrodistill.core.runtime import bar, is_main, keep_freed_memory, log, processes
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.runs.agreement import rank_agreement
from retrodistill.runs.run import top_k
from retrodistill.training.loss import objective_keeper
from retrodistill.training.settings import TrainingSettings

if TYPE_CHECKING:
    import datasets
    from torch import nn

_COLLAPSED = 0.98
Monitored = Callable[[], dict[str, float]]


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine of different rows, in -1..1; near 1 the space has collapsed to a point.

    Args:
        vectors: (n, d), n at least 2.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    total = unit.sum(axis=0)
    n = len(vectors)
    return float((total @ total - (unit**2).sum()) / (n * (n - 1)))


@dataclass
class HeldOutMonitor:
    """Agreement with the teacher on held-out queries, and collapse.

    Attributes:
        student: The encoder in training.
        texts: Held-out query texts.
        teacher_rows: (queries, k) corpus positions that the teacher ranks highest, best first, -1 where fewer.
        documents: Gives (corpus, d) document vectors; None where the student encodes documents itself and only
            collapse can be watched cheaply.
    """

    student: Encoder
    texts: Sequence[str]
    teacher_rows: np.ndarray
    documents: Callable[[], np.ndarray] | None

    def __call__(self) -> dict[str, float]:
        """``agreement`` (nDCG@k of the student's ranking, the teacher's top k as graded truth) and ``mean_cosine``."""
        training = self.student.model.training
        self.student.model.eval()
        queries = self.student.encode(self.texts, "query", batch_size=256 if self.student.is_static else 32)
        self.student.model.train(training)
        measures = {"mean_cosine": mean_cosine(queries)} if len(queries) > 1 else {}
        if measures and measures["mean_cosine"] > _COLLAPSED:
            log(
                f"warning: the student has collapsed: held-out queries have a mean cosine of "
                f"{measures['mean_cosine']:.3f}; lower the learning rate."
            )
        if self.documents is not None:
            documents = self.documents()
            k = min(self.teacher_rows.shape[1], len(documents))
            scores = queries @ documents.T
            best = top_k(scores, k)
            measures["agreement"] = float(np.mean(rank_agreement(best, self.teacher_rows[:, :k])))
        return measures


@dataclass
class RankMonitor:
    """Agreement with the teacher on held-out queries, whatever gives the scores; and what else is to be watched.

    Attributes:
        scores: Gives (queries, n) student scores, -inf where there is no document.
        teacher_rows: (queries, k) places that the teacher ranks highest, best first, -1 where fewer.
        also: Gives more measures.
    """

    scores: Callable[[], np.ndarray]
    teacher_rows: np.ndarray
    also: Callable[[], dict[str, float]] | None = None

    def __call__(self) -> dict[str, float]:
        """``agreement`` (nDCG@k of the student's ranking, the teacher's top k as graded truth), and the others."""
        k = self.teacher_rows.shape[1]
        best = top_k(self.scores(), k)
        measures = {"agreement": float(np.mean(rank_agreement(best, self.teacher_rows[:, : best.shape[1]])))}
        return measures | (self.also() if self.also is not None else {})


_QUERY_COLUMNS = ("query", "text")  # a Router sends the others through the documents' route
_CHECKPOINTS = 5  # over a run
_LOOKS = 10  # of the monitors over a run


@dataclass
class History:
    """What a training run looked like.

    Attributes:
        steps: Optimizer steps taken.
        seconds: Wall-clock seconds, of this process since its last start.
        losses: ``{"step": .., "loss": .., term: ..}`` at intervals.
        monitors: ``{"step": .., measure: ..}`` at intervals.
        notes: What a reader of the results should know.
        learned: What it learned from, for the model card.
    """

    steps: int = 0
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)
    monitors: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    learned: dict[str, Any] = field(default_factory=dict)


Monitor = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class TextColumns:
    """The texts that a training run reads.

    Attributes:
        texts: Texts by column, in the loss' order; all columns have the same length.
        labels: What the loss takes as ``label``, one integer for each row.
        prompts: Prompt of each text column that has one: the trainer applies none by itself.
        batches: What cuts the rows into batches, a `retrodistill.candidates.samplers.TopicBatches`; shuffled if None.
    """

    texts: Mapping[str, Sequence[str]]
    labels: Sequence[int]
    prompts: Mapping[str, str] = field(default_factory=dict)
    batches: Any = None

    def dataset(self) -> datasets.Dataset:
        """The texts and labels as the trainer takes them."""
        from datasets import Dataset

        return Dataset.from_dict({**{name: list(texts) for name, texts in self.texts.items()}, "label": [*self.labels]})


def train(
    model: Any,
    loss: nn.Module,
    columns: TextColumns,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int = 0,
    monitor: Monitor | None = None,
    what: str = "training",
) -> History:
    """Train a model in place. A killed training resumes at its last complete checkpoint.

    Args:
        model: The student, of any kind.
        loss: A sentence-transformers loss.
        columns: What it reads.
        settings: How long and how fast.
        folder: For checkpoints; they are the caller's to remove once the model is saved.
        seed: Of data order and dropout.
        monitor: Called at intervals and at the end; its measures are recorded.
        what: Title of the progress bar.

    Raises:
        UserError: Checkpoints cannot be written: a full disk.
    """
    from safetensors import SafetensorError
    from transformers import PrinterCallback, ProgressCallback

    make_folder(folder)
    keep_freed_memory()
    Trainer, Arguments = _trainer_of(model)  # noqa: N806 - classes
    ordered = {} if columns.batches is None else {"batch_sampler": columns.batches}
    arguments = Arguments(**_arguments(model, settings, folder, columns, seed), **ordered)
    history = History()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    trainer = Trainer(model=model, args=arguments, train_dataset=columns.dataset(), loss=loss)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_watcher(history, monitor, what))
    trainer.add_callback(objective_keeper(loss))
    try:
        with quiet_libraries():  # a bar for every checkpoint otherwise
            result = trainer.train(resume_from_checkpoint=_last_whole_checkpoint(folder))
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_error(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot write checkpoints into {folder}: {reason[:160]}; free some space and go on."
        ) from error
    history.steps = trainer.state.global_step
    history.seconds = float(result.metrics.get("train_runtime", 0.0))
    model.eval()
    return history


def optimizer_steps(rows: int, settings: TrainingSettings) -> int:
    """Number of training steps for a number of rows."""
    steps = math.ceil(math.ceil(rows / (settings.batch_size * processes())) * settings.epochs)
    return min(steps, settings.max_steps) if settings.max_steps else steps


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)


def _trainer_of(model: Any) -> tuple[type[Any], type[Any]]:
    """The trainer of a kind of student, and its arguments."""
    import sentence_transformers

    name = next(
        f"{base.__name__}Train"
        for base in type(model).__mro__
        if hasattr(sentence_transformers, f"{base.__name__}Trainer")
    )
    base: type[Any] = getattr(sentence_transformers, f"{name}er")

    class Trainer(base):
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: no card is written with the student, and examples for it take time and a bar of their own."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            """A checkpoint's model, without the card that comes with each."""
            self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)

    return Trainer, getattr(sentence_transformers, f"{name}ingArguments")


def _arguments(model: Any, settings: TrainingSettings, folder: Path, columns: TextColumns, seed: int) -> dict[str, Any]:
    steps = optimizer_steps(len(columns.labels), settings)
    on_gpu = str(model.device).startswith("cuda")
    routed = any(hasattr(module, "sub_modules") for module in model)
    roles = {name: "query" if name in _QUERY_COLUMNS else "document" for name in columns.texts}
    found = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "warmup_steps": math.ceil(settings.warmup * steps),
        "lr_scheduler_type": settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_gradient_norm,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(steps / _CHECKPOINTS)),
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // 50),
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": str(model.device) == "cpu",
        "bf16": on_gpu and settings.precision == "bfloat16",
        "dataloader_pin_memory": on_gpu,
    }
    if not hasattr(model, "encode"):  # a scorer of pairs puts its own prompt in front of them
        return found
    return {**found, "prompts": dict(columns.prompts) or None, "router_mapping": roles if routed else None}


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; cut ones are deleted, so that nothing takes them for whole."""
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:  # the trainer writes its state last
            json.loads((checkpoint / "trainer_state.json").read_text())
            whole.append((int(checkpoint.name.split("-")[1]), checkpoint))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def _watcher(history: History, monitor: Monitor | None, what: str) -> Any:
    """A callback that keeps losses and monitors, and shows the bar."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.every = max(1, state.max_steps // _LOOKS)
            self.bar = bar(state.max_steps, what, "steps")
            self.bar.update(state.global_step)
            history.losses = [_losses(entry) for entry in state.log_history if "loss" in entry]
            self._look(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(1)
            if state.global_step % self.every == 0 and state.global_step < state.max_steps:
                self._look(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                history.losses.append({"step": state.global_step, **_losses(logs)})
                self.bar.set_postfix(loss=f"{float(logs['loss']):.4g}", refresh=False)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()
            self._look(state.global_step)

        def _look(self, step: int) -> None:
            if monitor is not None and is_main():
                history.monitors.append({"step": step, **monitor()})

    return Watcher()


def _losses(entry: dict[str, Any]) -> dict[str, float]:
    """The loss and its terms out of a log entry."""
    skipped = ("epoch", "grad_norm", "learning_rate")
    return {name: float(value) for name, value in entry.items() if name not in skipped}
