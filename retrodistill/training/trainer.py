"""Training through the sentence-transformers trainer: checkpoints, resumption, torchrun, monitors."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from retrodistill.core.checksums import DamagedError, checksum
from retrodistill.core.disk import writing
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file
from retrodistill.core.json_files import check_checksums, read_json, write_checksums, write_json
from retrodistill.core.paths import make_folder
from retrodistill.core.runtime import bar, is_main, keep_freed_memory, log, processes, release_freed_memory
from retrodistill.encoders.adapters import has_adapters
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.loading import quiet_libraries
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.precision import fastest_precision
from retrodistill.encoders.vectors import cosines_to_others
from retrodistill.runs.agreement import labeled_ndcg, rank_agreement
from retrodistill.runs.run import top_k
from retrodistill.training.loss import objective_keeper
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.tracking import track_values

if TYPE_CHECKING:
    import datasets
    from torch import nn

_QUERY_COLUMNS = ("query", "text")  # a Router sends the others through the documents' route
_CHECKPOINTS = 5  # per run
_MONITORED = 10  # times per run
_LOGGED = 50  # times per run
_BEST = "best.safetensors"  # in a training's folder
_HISTORY = "history.json"  # in a checkpoint: written last, so that one with this file is complete
_SUM = "checksum"  # its key in that file
_ADAPTED = "adapted.safetensors"  # in a checkpoint: a model with adapters would save these only, without its heads
_COLLAPSED = 0.98  # mean cosine of held-out queries
_TOKENIZING = 4  # most processes that tokenize ahead of a GPU

Monitor = Callable[[], dict[str, float]]
Grades = Mapping[int, Mapping[int, int]]  # labels above 0, by row of a query and place of a document in its list
Drawn = Callable[[np.ndarray], dict[str, list[str]]]  # labels of a batch -> its texts by column, drawn for the epoch


@dataclass(frozen=True)
class Pace:
    """How fast a training run is: mean seconds of a step, of a monitor's measurement, and of writing a checkpoint."""

    step: float
    monitor: float = 0.0
    save: float = 0.0

    def seconds(self, steps: int) -> float:
        """Seconds of a run with its monitors and checkpoints, from its number of steps."""
        monitors = 1 + math.ceil(steps / _interval(steps))
        saves = math.ceil(steps / max(1, math.ceil(steps / _CHECKPOINTS)))
        return steps * self.step + monitors * self.monitor + saves * self.save


@dataclass
class History:
    """The record of a training run."""

    steps: int = 0
    seconds: float = 0.0  # wall-clock time of this process since its last start
    losses: list[dict[str, float]] = field(default_factory=list)  # ``{"step": .., "loss": .., term: ..}`` at intervals
    monitors: list[dict[str, float]] = field(default_factory=list)  # ``{"step": .., measure: ..}`` at intervals
    notes: list[str] = field(default_factory=list)  # what a reader of the results should know
    held_out: list[str] = field(default_factory=list)  # ids of real queries that were not trained on
    learned: dict[str, Any] = field(default_factory=dict)  # what it learned from, for the model card
    pace: Pace | None = None  # without the first step, which is slower; None for fewer than two steps

    def measure(self, step: int, monitor: Monitor | None) -> None:
        """Add what a monitor measures in the main process, unless that has measured the step."""
        is_new = not self.monitors or self.monitors[-1]["step"] < step
        if monitor is not None and is_main() and is_new:
            measured = monitor()
            self.monitors.append({"step": step, **measured})
            track_values("held_out", measured, step)

    def keep(self, checkpoint: Path, *, is_over: bool) -> None:
        """Write the curves to a checkpoint, which is then complete."""
        if is_main():
            curves = {"losses": self.losses, "monitors": self.monitors}
            write_json(checkpoint / _HISTORY, {"is_over": is_over, **curves})

    def restore(self, checkpoint: Path) -> bool:
        """Read the curves of a complete checkpoint; returns whether training was over by then."""
        kept = read_json(checkpoint / _HISTORY)
        self.losses, self.monitors = kept["losses"], kept["monitors"]
        return bool(kept["is_over"])


@dataclass(frozen=True)
class TextColumns:
    """The texts that a training run reads."""

    texts: Mapping[str, Sequence[str]]  # by column, in the order of the loss; all of one length
    labels: Sequence[int]  # what the loss takes as ``label``, one integer for each row
    prompts: Mapping[str, str] = field(default_factory=dict)  # by column; the trainer applies none by itself
    batches: Any = None  # a `retrodistill.candidates.samplers.PlannedBatches`; None for shuffled batches
    drawn: Drawn | None = None  # further columns of a batch, which come last

    @property
    def names(self) -> list[str]:
        """Names of all columns, in the order of the loss."""
        further = self.drawn(np.arange(min(1, len(self.labels)))) if self.drawn is not None else {}
        return [*self.texts, *further]

    def dataset(self) -> datasets.Dataset:
        """The texts and labels as the trainer takes them."""
        from datasets import Dataset

        return Dataset.from_dict({**{name: list(texts) for name, texts in self.texts.items()}, "label": [*self.labels]})


@dataclass(frozen=True)
class _DrawnColumns:
    """A trainer's collator, after drawn columns are added to a batch; it is pickled where processes are spawned."""

    collate: Any
    drawn: Drawn

    @property
    def valid_label_columns(self) -> list[str]:
        """What the trainer asks a collator for."""
        return list(self.collate.valid_label_columns)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        columns = self.drawn(np.array([row["label"] for row in rows]))
        texts = zip(*columns.values(), strict=True)
        return dict(
            self.collate(
                [{**row, **dict(zip(columns, of_row, strict=True))} for row, of_row in zip(rows, texts, strict=True)]
            )
        )


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
        folder: For checkpoints; the caller removes them once the model is saved.
        seed: Of data order and dropout.
        monitor: Called at intervals and at the end; its measures are recorded.
        what: Title of the progress bar.

    Raises:
        UserError: Training diverged, or checkpoints cannot be written because the disk is full.
    """
    from safetensors.torch import load_model
    from transformers import PrinterCallback, ProgressCallback

    make_folder(folder)
    release_freed_memory()  # that of making the model and the lists
    keep_freed_memory()
    trainer_class, arguments_class = _trainer_of(model)
    history = History()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    arguments = arguments_class(**_arguments(model, settings, folder, columns, seed))
    trainer = trainer_class(model=model, args=arguments, train_dataset=columns.dataset(), loss=loss)
    if columns.drawn is not None:
        trainer.data_collator = _DrawnColumns(trainer.data_collator, columns.drawn)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    clock = _Clock()
    best = _Best(model, folder / _BEST, settings)
    trainer.add_callback(_watcher(history, monitor, what, clock))
    trainer.add_callback(objective_keeper(loss))
    trainer.add_callback(_keeper(best, history, what))  # after the monitor; it completes a checkpoint
    try:
        with writing(folder), quiet_libraries(), _threads_of_tokenizers(arguments.dataloader_num_workers):
            _train(trainer, history, monitor, _last_complete_checkpoint(folder), what)  # without bars
    except UnpicklingError as error:  # torch reads checkpoints with weights_only
        reason = f"a checkpoint in {folder} holds something else than numbers, which is not read"
        raise UserError(f"{reason}; delete that folder to train from the start.") from error
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # otherwise it goes on with training's precision
    history.pace = clock.pace()
    for measured in history.monitors:
        best.see(measured)
    if settings.keep == "best" and best.file.exists():
        best.check()
        load_model(model, best.file)
        history.notes += best.notes(history)
    model.eval()
    return history


def _train(trainer: Any, history: History, monitor: Monitor | None, checkpoint: Path | None, what: str) -> None:
    """Train, from a checkpoint if there is one; from the last of all, the library would take one more step."""
    if checkpoint is not None and history.restore(checkpoint):
        trainer._load_from_checkpoint(str(checkpoint))
        history.steps = _steps_of(checkpoint)
        _check_weights(trainer.model, what, history.steps, trainer.args.learning_rate)
        history.measure(history.steps, monitor)
        return
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history.steps = trainer.state.global_step
    history.seconds = float(result.metrics.get("train_runtime", 0.0))


def optimizer_steps(rows: int, settings: TrainingSettings) -> int:
    """Number of training steps for a number of rows."""
    steps = math.ceil(math.ceil(rows / (settings.batch_size * processes())) * settings.epochs)
    return min(steps, settings.max_steps) if settings.max_steps else steps


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and training's precision inside the block: the model computes as when it is saved."""
    training, forward = model.training, model.forward
    original = vars(model).get("_original_forward")  # where accelerate has put autocast around it
    model.eval()
    if original is not None:
        model.forward = original
    try:
        yield
    finally:
        model.train(training)
        if original is not None:
            model.forward = forward


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine of different rows of (n, d), in -1..1, n at least 2; near 1 the space has collapsed to a point."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    total, n = unit.sum(axis=0), len(vectors)
    return float((total @ total - (unit**2).sum()) / (n * (n - 1)))


@dataclass
class HeldOutMonitor:
    """Agreement with the teacher on held-out queries, and a warning when the student collapses."""

    student: Encoder  # in training
    texts: Sequence[str]  # held-out queries, two or more
    teacher_rows: np.ndarray  # (queries, k) corpus positions that the teacher ranks highest, best first, -1 where fewer
    documents: Callable[[], np.ndarray] | None  # (corpus, d) vectors; None if the student encodes documents itself
    grades: Grades = field(default_factory=dict)  # by query and corpus position; of passages, by their document's row
    starts: np.ndarray | None = None  # (documents,) first passage of each document; None without passages
    among_texts: bool = False  # `teacher_rows` are positions of the other held-out texts, and are ranked

    def __call__(self) -> dict[str, float]:
        """``mean_cosine`` and those of `_ranking`, over the corpus or the other texts if they are ranked."""
        with evaluating(self.student.model):
            queries = self.student.encode(self.texts, "query", batch_size=256 if self.student.is_static else 32)
        cosine = mean_cosine(queries)
        if cosine > _COLLAPSED:
            log(
                f"warning: the student has collapsed: held-out queries have a mean cosine of {cosine:.3f}; lower the "
                "learning rate."
            )
        measures = {"mean_cosine": cosine}
        if self.documents is not None:
            measures |= _ranking(queries @ self.documents().T, self.teacher_rows, self.grades, self.starts)
        if self.among_texts:
            measures |= _ranking(cosines_to_others(queries), self.teacher_rows, {})
        return measures


@dataclass
class RankMonitor:
    """Agreement with the teacher on held-out queries, for any source of scores."""

    scores: Callable[[], np.ndarray]  # (queries, n) student scores, -inf where there is no document
    teacher_rows: np.ndarray  # (queries, k) places that the teacher ranks highest, best first, -1 where fewer
    also: Monitor | None = None  # more measures
    grades: Grades = field(default_factory=dict)  # by query and place

    def __call__(self) -> dict[str, float]:
        """Those of `_ranking` over the lists, and the others."""
        measures = _ranking(self.scores(), self.teacher_rows, self.grades)
        return measures | (self.also() if self.also is not None else {})


def _ranking(
    scores: np.ndarray, teacher_rows: np.ndarray, grades: Grades, starts: np.ndarray | None = None
) -> dict[str, float]:
    """``agreement`` (nDCG@k of the student's ranking, the teacher's top k as graded truth) and, by labels, nDCG@10.

    The latter is of the student's order of the same documents: where they are not the whole corpus, it is a measure of
    re-ranking, and documents with labels that are not among them do not count. Documents whose passages begin at
    `starts` are ordered by their best passages.
    """
    best = top_k(scores, teacher_rows.shape[1])
    measures = {"agreement": float(np.mean(rank_agreement(best, teacher_rows[:, : best.shape[1]])))}
    if not grades:
        return measures
    by_document = scores if starts is None else np.maximum.reduceat(scores, starts, axis=1)
    return {**measures, "ndcg@10": labeled_ndcg(top_k(by_document, 10), grades)}


def _trainer_of(model: Any) -> tuple[type[Any], type[Any]]:
    """The trainer of a kind of student, and the class of its arguments."""
    import sentence_transformers
    from safetensors.torch import load_model, save_model

    names = (base.__name__ for base in type(model).__mro__)
    name = next(name for name in names if hasattr(sentence_transformers, f"{name}Trainer"))
    base: type[Any] = getattr(sentence_transformers, f"{name}Trainer")

    class Trainer(base):
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Nothing: the student gets this package's card, and examples for a card take time and a bar."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            """Save a checkpoint's model without a card; with adapters in training, its weights alone."""
            folder = output_dir or self.args.output_dir
            if has_adapters(self.model):
                save_model(self.model, str(make_folder(Path(folder)) / _ADAPTED))
            else:
                save_pretrained(self.model, folder)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """Save a checkpoint with checksums, but of the random states, which every process writes by itself."""
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                write_checksums(folder, but="rng_state")

        def _load_from_checkpoint(self, checkpoint_path: str, *given: Any) -> None:
            """Load what `_save` saved."""
            if (weights := Path(checkpoint_path) / _ADAPTED).exists():
                load_model(self.model, weights)
            else:
                super()._load_from_checkpoint(checkpoint_path, *given)

    return Trainer, getattr(sentence_transformers, f"{name}TrainingArguments")


def _arguments(model: Any, settings: TrainingSettings, folder: Path, columns: TextColumns, seed: int) -> dict[str, Any]:
    steps = optimizer_steps(len(columns.labels), settings)
    on_gpu = str(model.device).startswith("cuda")
    precision = fastest_precision(model.device) if settings.precision == "auto" else settings.precision
    arguments = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "warmup_steps": min(math.ceil(settings.warmup * steps), steps - 1),  # a single step learns, too
        "lr_scheduler_type": settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_gradient_norm,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(steps / _CHECKPOINTS)),
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // _LOGGED),
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": str(model.device) == "cpu",
        "bf16": precision == "bfloat16",
        "dataloader_pin_memory": on_gpu,
        "dataloader_num_workers": tokenizing_processes(model.device),
    }
    if columns.batches is not None:
        arguments["batch_sampler"] = columns.batches
    if hasattr(model, "encode"):  # a scorer of pairs adds its own prompt
        roles = {name: "query" if name in _QUERY_COLUMNS else "document" for name in columns.names}
        routed = any(hasattr(module, "sub_modules") for module in model)
        arguments |= {"prompts": dict(columns.prompts) or None, "router_mapping": roles if routed else None}
    return arguments


def tokenizing_processes(device: Any) -> int:
    """Number of processes that tokenize the next batches while a GPU trains; none for a CPU, which has no time left."""
    if not str(device).startswith("cuda"):
        return 0
    return min(_TOKENIZING, max(0, (os.cpu_count() or 1) // processes() - 1))


@contextlib.contextmanager
def _threads_of_tokenizers(workers: int) -> Iterator[None]:
    """Have tokenizers use one thread if processes are forked, where threads that the parent had would be missing."""
    name = "TOKENIZERS_PARALLELISM"
    if not workers or name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are deleted, so that nothing resumes from them."""
    complete: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            for name in ("trainer_state.json", _HISTORY):
                json.loads((checkpoint / name).read_text(encoding="utf-8"))
            check_checksums(checkpoint, "training goes on from the one before, or from its start")
            complete.append(checkpoint)
        except (OSError, ValueError, UserError) as error:
            if isinstance(error, UserError):
                log(str(error), always=True)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(complete, key=_steps_of, default=None)


class _Clock:
    """The times of a training run, by what has passed."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {"step": [], "monitor": [], "save": []}

    def start(self) -> None:
        self._since = time.perf_counter()

    def passed(self, what: str) -> None:
        since = self._since
        self.start()
        self._times[what].append(self._since - since)

    def pace(self) -> Pace | None:
        times = {**self._times, "step": self._times["step"][1:]}
        means = {name: float(np.mean(values)) for name, values in times.items() if values}
        return Pace(**means) if "step" in means else None


def _sum_of(weights: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """Checksum of weights by name and of what is said of them."""
    parts: list[Any] = [json.dumps(dict(sorted(about.items()))).encode()]
    for name, values in sorted(weights.items()):
        parts += [f"{name} {values.dtype} {tuple(values.shape)}".encode()]
        parts += [values.contiguous().reshape(-1).view(torch.uint8).numpy()]
    return checksum(*parts)


class _Best:
    """The student's weights when it was best by ``keep_by``, in a file, so that a killed training keeps them."""

    def __init__(self, model: nn.Module, file: Path, settings: TrainingSettings) -> None:
        self.model, self.file, self.settings, self.measure = model, file, settings, settings.keep_by
        self.step, self.value = 0, -math.inf
        if file.exists():
            from safetensors import safe_open

            self.check()
            with safe_open(file, "pt") as stored:
                about = stored.metadata()
            self.step, self.value = int(about["step"]), float(about[self.measure])

    def check(self) -> None:
        """Check the file against its checksum; a damaged one is a `DamagedError`."""
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        try:
            with safe_open(self.file, "pt") as stored:
                about = stored.metadata() or {}
            wanted = about.pop(_SUM, None)  # absent in earlier versions
            is_whole = wanted in (None, _sum_of(load_file(self.file), about))
        except (SafetensorError, ValueError, TypeError):
            is_whole = False
        if not is_whole:
            advice = f"delete {self.file.parent}, and the stage is trained again"
            raise DamagedError(self.file, "it is cut short or altered (checksum)", advice)

    def see(self, measured: Mapping[str, float]) -> None:
        """Keep the weights if the student has never been better, by the last measures of a monitor."""
        if self.measure not in measured and self.measure != "agreement":
            raise UserError(
                f"training.keep_by: {self.measure} needs held-out training queries with labels of documents that they "
                "are compared with, and there is none; leave keep_by out."
            )
        if measured.get(self.measure, -math.inf) <= self.value:
            return
        self.step, self.value = int(measured["step"]), measured[self.measure]
        if self.settings.keep == "best":
            from safetensors.torch import load_file, save_file, save_model

            with atomic_file(self.file) as temporary:
                about = {"step": str(self.step), self.measure: repr(self.value)}
                save_model(self.model, str(temporary), about)
                weights = load_file(temporary)  # those that are shared are saved once
                save_file(weights, temporary, {**about, _SUM: _sum_of(weights, about)})

    def is_over(self, step: int, every: int) -> bool:
        """Whether patience has run out, in every process alike."""
        if not self.settings.patience:
            return False
        over = torch.tensor(int(step - self.step >= every * self.settings.patience))
        if processes() > 1:
            torch.distributed.broadcast(over := over.to(next(self.model.parameters()).device), 0)
        return bool(over)

    def notes(self, history: History) -> list[str]:
        """A line if the student that is kept is not the last one."""
        if self.step == history.steps:
            return []
        last = history.monitors[-1][self.measure] if history.monitors else math.nan
        return [
            f"the student of step {self.step} of {history.steps} was kept: its {self.measure} on held-out queries is "
            f"{self.value:.4f}, at the end {last:.4f}."
        ]


def _keeper(best: _Best, history: History, what: str) -> Any:
    """A callback that keeps the best student and the history, and stops when none was better for long."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for measured in history.monitors:
                best.see(measured)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            every = _interval(state.max_steps)
            if state.global_step % every == 0 and state.global_step < state.max_steps:
                self._see()
                if best.is_over(state.global_step, every):
                    log(f"{what}: no better {best.measure} since step {best.step}; stopped at step {state.global_step}")
                    control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            is_over = control.should_training_stop or state.global_step >= state.max_steps
            history.keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", is_over=is_over)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._see()

        def _see(self) -> None:
            if history.monitors:
                best.see(history.monitors[-1])

    return Keeper()


def _interval(steps: int) -> int:
    """Steps between two measurements of a run."""
    return max(1, steps // _MONITORED)


def _watcher(history: History, monitor: Monitor | None, what: str, clock: _Clock) -> Any:
    """A callback that records losses, monitors and times, and shows the bar."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.every = _interval(state.max_steps)
            self.bar = bar(state.max_steps, what, "steps")
            self.bar.update(state.global_step)
            clock.start()
            if not state.global_step:
                self._record(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            clock.passed("step")  # with the loading of its batch, which follows the previous step
            self.bar.update(1)
            if state.global_step % self.every == 0 and state.global_step < state.max_steps:
                _check_weights(model, what, state.global_step, args.learning_rate)
                self._record(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                track_values("train", logs, state.global_step)
                history.losses.append({"step": state.global_step, **_losses(logs)})
                self.bar.set_postfix(loss=f"{float(logs['loss']):.4g}", refresh=False)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.passed("save")

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.bar.close()
            _check_weights(model, what, state.global_step, args.learning_rate)
            self._record(state.global_step)

        def _record(self, step: int) -> None:
            history.measure(step, monitor)
            clock.passed("monitor")

    return Watcher()


def _check_weights(model: nn.Module, what: str, step: int, rate: float) -> None:
    """Refuse weights that are not finite; the losses in the log do not show them, since the trainer filters those."""
    if not all(torch.isfinite(one).all() for one in model.parameters() if one.requires_grad):
        raise UserError(
            f"{what} diverged: by step {step}, weights are not finite. Set a training.learning_rate below {rate:g}, or "
            "training.max_gradient_norm: 1."
        )


def _losses(entry: dict[str, Any]) -> dict[str, float]:
    skipped = ("epoch", "grad_norm", "learning_rate")
    return {name: float(value) for name, value in entry.items() if name not in skipped}
