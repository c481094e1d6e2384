"""Choose a recipe's settings by agreement with the teacher on held-out training queries (Optuna's TPE sampler)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError, first_line, sample_of, unknown
from retrodistill.core.files import atomic_file
from retrodistill.core.json_files import write_json
from retrodistill.core.locks import exclusive
from retrodistill.core.paths import make_folder, path_of
from retrodistill.core.runtime import log
from retrodistill.core.yaml_files import read_yaml
from retrodistill.evaluation.results import Results
from retrodistill.recipes.loading import load_recipe, override, parse_recipe, recipe_yaml
from retrodistill.recipes.run import run_recipe
from retrodistill.recipes.settings import Recipe

MEASURES = ("agreement", "ndcg@10")
_JOURNAL, _TRIALS, _BEST = "study.journal", "trials.json", "best.yaml"
# What a trial does not need.
_QUICK = (
    "split.held_out=true",
    "evaluation.latency_queries=0",
    "evaluation.examples=0",
    "evaluation.memory=false",
    "evaluation.truncations=[]",
)
_LOG_RATIO = 10  # a range whose ends differ by this factor is sampled by its logarithm
_RATE_FACTOR = 4.0  # of the default range of a learning rate
_TEMPERATURE_FACTOR = 2.0  # of the default range of a temperature


@dataclass(frozen=True)
class Dimension:
    """A key of a recipe and the values to try.

    Attributes:
        key: Path of the key, e.g. ``students.student.stages.0.training.learning_rate``.
        choices: Values to choose from; empty for a range.
        low: Least value of a range.
        high: Largest value.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """Read ``KEY=LOW..HIGH`` or ``KEY=[A, B, C]``.

        Raises:
            UserError: It is neither.
        """
        key, _, values = text.partition("=")
        low, dots, high = values.partition("..")
        if key and dots:
            ends = [_number(low), _number(high)]
            if None not in ends and ends[0] < ends[1]:  # type: ignore[operator]
                return cls(key, low=ends[0], high=ends[1])  # type: ignore[arg-type]
        elif key and values.startswith("["):
            choices = read_yaml(values, f"--vary {text}: the list")
            if isinstance(choices, list) and len(choices) > 1:
                return cls(key, tuple(choices))
        raise UserError(
            f"--vary {text!r}: expected KEY=LOW..HIGH with LOW below HIGH, or a list of at least two values, e.g. "
            "'students.student.stages.0.texts.sentences=[1, 3, 6]'."
        )

    @property
    def is_whole(self) -> bool:
        """Whether a range has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def is_log(self) -> bool:
        """Whether a range is sampled by its logarithm."""
        return self.low > 0 and self.high / self.low >= _LOG_RATIO

    def suggest(self, trial: Any) -> Any:
        """A value, by an `optuna.Trial`. Choices are suggested by their place, since Optuna stores no lists."""
        if self.choices:
            return self.choices[trial.suggest_categorical(self.key, list(range(len(self.choices))))]
        if self.is_whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log)
        return float(f"{trial.suggest_float(self.key, self.low, self.high, log=self.is_log):.3g}")

    def parameter(self, value: Any) -> Any:
        """A value as Optuna stores it; None if it is outside of the dimension."""
        if self.choices:
            return self.choices.index(value) if value in self.choices else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and self.low <= value <= self.high else None

    def override(self, value: Any) -> str:
        """The override that sets the key."""
        return f"{self.key}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}"


@dataclass(frozen=True)
class Trial:
    """One run of the recipe.

    Attributes:
        number: From 0; the first one has the recipe's own values.
        values: Value by key.
        quality: The measure; None if the trial failed.
        seconds: Wall time.
        error: Why it failed; empty if it did not.
    """

    number: int
    values: Mapping[str, Any]
    quality: float | None
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Tuning:
    """What `tune_recipe` found.

    Attributes:
        system: The student that is tuned.
        measure: One of `MEASURES`.
        queries: Number of held-out queries.
        trials: All trials, in order.
        recipe: The file of the recipe with the best values.
    """

    system: str
    measure: str
    queries: int
    trials: Sequence[Trial]
    recipe: Path

    @property
    def best(self) -> Trial:
        """The trial of the highest quality, the first of equals."""
        return max((trial for trial in self.trials if trial.quality is not None), key=lambda each: each.quality or 0.0)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        own = {"system": self.system, "measure": self.measure, "queries": self.queries, "recipe": str(self.recipe)}
        return {**own, "best": self.best.number, "trials": [asdict(trial) for trial in self.trials]}


def tune_recipe(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    vary: Sequence[str] = (),
    trials: int = 20,
    measure: str = "agreement",
    student: str | None = None,
) -> Tuning:
    """Run a recipe several times with other values, and write the recipe with the best ones.

    Every trial is measured on training queries that are held out (``split.held_out``): by default by the rank-biased
    overlap with the teacher's rankings, which needs no labels. Test queries are not read. The first trial has the
    recipe's own values. The folder `out` gets ``trials.json``, ``best.yaml``, and what trials share, such as teacher
    scores; the same call goes on where it was interrupted, and with more `trials` it tries more.

    Args:
        source: A recipe's file or name.
        out: The output folder.
        overrides: ``key.path=value`` each, for all trials.
        vary: ``KEY=LOW..HIGH`` or ``KEY=[A, B, C]`` each. By default the learning rates of the student, from a quarter
            to four times the recipe's, and the temperatures of its last stage, from half to twice the recipe's.
        trials: Number of trials in total.
        measure: ``agreement`` (rank-biased overlap, 0 to 1) or ``ndcg@10``, for which held-out queries need judgments.
        student: The student to measure, where the recipe has several.

    Raises:
        UserError: Optuna is missing, a key or value does not fit, `out` holds another tuning, or the first trial fails.
    """
    _library()
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    if trials < 1:
        raise UserError(f"--trials {trials}: at least 1 is needed.")
    recipe = load_recipe(source, overrides)
    system = _system(recipe, student)
    space = [Dimension.parse(text) for text in vary] or _default_space(recipe, system)
    for each in space:  # all choices or both ends, before anything runs
        for value in each.choices or (each.low, each.high):
            _changed(recipe, [each.override(value)])
    folder = make_folder(path_of(out))
    with exclusive(folder / ".lock"):
        study = _Study.open(folder, recipe, space, system, measure)
        while (done := len(study.trials())) < trials:
            study.run_one(f"trial {done + 1} of {trials}")
        return study.written()


class _Study:
    """An Optuna study in a folder."""

    def __init__(
        self, study: Any, folder: Path, recipe: Recipe, space: Sequence[Dimension], system: str, measure: str
    ) -> None:
        self._study, self._folder, self._recipe, self._space = study, folder, recipe, space
        self._system, self._measure = system, measure

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, space: Sequence[Dimension], system: str, measure: str) -> _Study:
        """Make a study, or go on with the one that is there."""
        optuna = _library()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = optuna.storages.journal
        content = digest(recipe.model_dump(mode="json"), [asdict(each) for each in space], measure, system)
        try:
            storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(folder / _JOURNAL)))
            study = optuna.create_study(storage=storage, study_name="tuning", direction="maximize", load_if_exists=True)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{folder / _JOURNAL} is damaged ({first_line(error)}); delete it to begin again."
            ) from error
        if study.user_attrs.get("content", content) != content:
            raise UserError(
                f"{folder} has a tuning of another recipe, or of other keys, values, or measures; choose another "
                "--out, or give what that one was given."
            )
        study.set_user_attr("content", content)
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials))
        own = recipe.model_dump(mode="json")
        values = {each.key: each.parameter(_value_at(own, each.key)) for each in space}
        first = {key: value for key, value in values.items() if value is not None}
        again = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
        for trial in again:  # interrupted: what it had done is found in the folder
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params or first, skip_if_exists=False)
        if not study.trials:
            study.enqueue_trial(first)
        return cls(study, folder, recipe, space, system, measure)

    def trials(self) -> list[Trial]:
        """Those that are finished."""
        told = (trial.user_attrs.get("trial") for trial in self._study.trials)
        return [Trial(number, **one) for number, one in enumerate(filter(None, told))]

    def run_one(self, name: str) -> None:
        """Run the recipe with the next values.

        Raises:
            UserError: The recipe cannot be run, and no trial before it has been: it is not the values' fault.
        """
        trial, start, quality, problem = self._study.ask(), time.perf_counter(), None, ""
        values = {each.key: each.suggest(trial) for each in self._space}
        quick = [*_QUICK, *(f"students.{student}.control=null" for student in self._recipe.students)]
        try:
            recipe = _changed(self._recipe, [*(each.override(values[each.key]) for each in self._space), *quick])
            results = run_recipe(recipe, self._folder / "work")
            quality, queries = _quality(results, self._system, self._measure)
            self._study.set_user_attr("queries", queries)
        except UserError as error:
            if not self.trials():
                raise
            problem = first_line(error)
        told = {"values": values, "quality": quality, "seconds": time.perf_counter() - start, "error": problem}
        trial.set_user_attr("trial", told)
        if quality is None:
            self._study.tell(trial, state=_library().trial.TrialState.FAIL)
        else:
            self._study.tell(trial, quality)
        said = problem or f"{self._measure} {quality:.4f}, best {self._study.best_value:.4f}"
        log(f"{name}: {said}; {values_text(values)}")

    def written(self) -> Tuning:
        """The trials as a file, and the recipe with the best values."""
        recipe = self._folder / _BEST
        queries = int(self._study.user_attrs["queries"])
        tuning = Tuning(self._system, self._measure, queries, self.trials(), recipe)
        best = [each.override(tuning.best.values[each.key]) for each in self._space]
        with atomic_file(recipe) as temporary:
            temporary.write_text(recipe_yaml(_changed(self._recipe, best)), encoding="utf-8")
        write_json(self._folder / _TRIALS, tuning.to_json())
        return tuning


def values_text(values: Mapping[str, Any]) -> str:
    """Values of keys, each key by its last parts that tell it from the others."""
    return ", ".join(f"{_short(key, values)}={value}" for key, value in values.items())


def _short(key: str, keys: Iterable[str]) -> str:
    parts = key.split(".")
    for count in range(1, len(parts)):
        tail = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{tail}") for other in keys) == 1:
            return tail
    return key


def _changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    content = recipe.model_dump(mode="json")
    for change in overrides:
        override(content, change)
    return parse_recipe(content, f"recipe {recipe.name}")


def _value_at(content: Any, key: str) -> Any:
    """The value of a key in a recipe's content; None if it is not there."""
    for part in key.split("."):
        is_item = isinstance(content, list) and part.isdigit() and int(part) < len(content)
        content = content[int(part)] if is_item else content.get(part) if isinstance(content, dict) else None
    return content


def _quality(results: Results | None, system: str, measure: str) -> tuple[float, int]:
    """A measure of a system, and the number of queries."""
    if results is None:
        raise UserError("tune runs in one process; start it without torchrun.")
    row = results.system(system)
    if measure == "ndcg@10":
        if row.ndcg10 is None:
            raise UserError("the held-out queries have no judgments; tune by agreement.")
        return row.ndcg10, results.queries
    if row.agreement is None:
        raise UserError("the teacher ranks no held-out queries, so there is no agreement with it; tune by ndcg@10.")
    return row.agreement.rank_biased_overlap, row.agreement.queries or results.queries


def _number(text: str) -> float | None:
    """A finite number, as an integer if it is written as one; None otherwise."""
    try:
        value = float(text)
    except ValueError:
        return None
    whole = text.strip().lstrip("+-").isdigit()
    return (int(text) if whole else value) if math.isfinite(value) else None


def _system(recipe: Recipe, student: str | None) -> str:
    """Name of the student that is tuned."""
    if student is not None and student not in recipe.students:
        raise unknown("student", student, recipe.students)
    names = [student] if student is not None else list(recipe.students)
    if not names:
        raise UserError(f"recipe {recipe.name} has no students, and tune is for recipes with students.")
    if len(names) > 1:
        raise UserError(f"recipe {recipe.name} has the students {sample_of(names)}; choose one by --student.")
    return names[0]


def _default_space(recipe: Recipe, system: str) -> list[Dimension]:
    """Learning rates of all stages, and temperatures of the last one's objectives of lists."""
    stages = recipe.students[system].stages
    path = f"students.{system}.stages"
    space = [
        _around(f"{path}.{place}.training.learning_rate", stage.training.learning_rate, _RATE_FACTOR)
        for place, stage in enumerate(stages)
    ]
    for place, term in enumerate(stages[-1].objectives):
        if term.objective.needs_lists:
            key = f"{path}.{len(stages) - 1}.objectives.{place}.student_temperature"
            space.append(_around(key, term.student_temperature, _TEMPERATURE_FACTOR))
    return space


def _around(key: str, value: float, factor: float) -> Dimension:
    return Dimension(key, low=float(f"{value / factor:.3g}"), high=float(f"{value * factor:.3g}"))


def _library() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "tune needs the package optuna, which is not installed; pip install 'retrodistill[tune]'."
        ) from error
    return optuna
