"""Commands around recipes: demo, init, run, tune, recipes, methods, keys."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from retrodistill.cli.app import (
    DryOption,
    JsonOption,
    OutOption,
    app,
    duration,
    say_next,
    show,
    show_json,
    this_command,
    with_engine,
)
from retrodistill.core.json_files import json_text
from retrodistill.core.runtime import set_quiet
from retrodistill.core.stores import slug

if TYPE_CHECKING:
    from retrodistill.recipes.keys import Key, Section

_SHOWN = 5  # trials of a tuning in the table
_WIDTHS = (20, 24, 12, 38)  # columns: key, values, default, meaning; with two spaces between them 100


@app.command()
@with_engine
def demo(context: Context, out: OutOption = Path("out/demo"), as_json: JsonOption = False) -> None:
    """Run the main job on the demonstration corpus (Python's own documentation), offline, in minutes."""
    _run("demo", out, _encoding(context), as_json)


@app.command()
def init(
    collection: Annotated[str, Argument(help="The collection: a folder, or another name that --collection takes.")],
    out: Annotated[Path | None, Option(help="File of the recipe; NAME.yaml by default.")] = None,
    goal: Annotated[
        str,
        Option(
            help="What matters most: speed (of queries), quality, size (of the index), or no-model (at query time)."
        ),
    ] = "speed",
    force: Annotated[bool, Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a collection, say what is missing, and write a recipe that fits it."""
    from retrodistill.data import load_collection
    from retrodistill.data.survey import language_shares, survey
    from retrodistill.recipes.starting import first_recipe, write_recipe
    from retrodistill.report import text

    set_quiet(as_json)
    loaded = load_collection(collection)
    found = survey(loaded)
    name = slug(loaded.name)
    path = out or Path(f"{name}.yaml")
    write_recipe(first_recipe(found, collection, name, goal), path, force=force)
    if as_json:
        show_json({"recipe": str(path), **found.to_json(), "missing": found.missing(), "warnings": loaded.warnings})
        return
    words = "words (median, 95%, most): " + ", ".join(f"{count:.0f}" for count in found.words.values())
    show(f"documents: {found.documents:,}, {words}; {found.titled:.0%} with a title, {found.copies:,} copies")
    show(f"languages: {language_shares(found.languages)}")
    if found.fields:
        show(f"fields: {', '.join(map(text.plain, found.fields))}")
    show(f"queries: {found.queries:,}, {found.query_words:.0f} words (median)")
    for split, counts in found.splits.items():
        show(f"  {text.plain(split)}: {counts['queries']:,} queries, {counts['judgments']:,} judgments")
    if found.splits and found.unjudged:
        show(f"  without judgments: {found.unjudged:,}")
    if found.near_test:
        show(f"  {found.near_test:,} other queries nearly equal a test query; they are not trained on")
    for warning in loaded.warnings:
        show(f"warning: {warning}")
    for line in found.missing():
        show(f"missing: {line}")
    show(f"\nwrote {path}")
    say_next("run", path, "--dry-run")


@app.command("run")
@with_engine
def run_command(
    context: Context,
    recipe: Annotated[str, Argument(help="A YAML file, or the name of a packaged recipe: static-leaf, demo...")],
    overrides: Annotated[
        list[str] | None, Argument(help="Keys to change: key.path=value, e.g. collection=FOLDER index.factory=SQ8.")
    ] = None,
    out: Annotated[Path | None, Option(help="Output folder; out/RECIPE by default.")] = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe, or resume it where it stopped."""
    folder = out or Path("out") / Path(recipe).stem
    overrides = [*(overrides or []), *_encoding(context)]
    if dry_run:
        _plan(recipe, folder, overrides, as_json)
    else:
        _run(recipe, folder, overrides, as_json)


@app.command()
@with_engine
def tune(  # noqa: PLR0913, PLR0917 - one option each
    context: Context,
    recipe: Annotated[str, Argument(help="A YAML file, or the name of a packaged recipe.")],
    overrides: Annotated[list[str] | None, Argument(help="Keys to change for all trials: key.path=value.")] = None,
    vary: Annotated[
        list[str] | None,
        Option(
            help="A key and its values, KEY=LOW..HIGH or KEY=[A, B, C]; several times. By default learning rates and "
            "temperatures."
        ),
    ] = None,
    trials: Annotated[int, Option(help="Number of trials, those of earlier calls included.")] = 20,
    measure: Annotated[str, Option(help="On held-out queries: agreement, or ndcg@10 if they have judgments.")] = (
        "agreement"
    ),
    student: Annotated[str | None, Option(help="Student to tune, where the recipe has several.")] = None,
    out: Annotated[Path | None, Option(help="Output folder; out/RECIPE-tuned by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try values of a recipe's keys on held-out training queries, and write the recipe with the best ones.

    Test queries are not read. The same command goes on after an interruption; more --trials go on after that.
    """
    from retrodistill.recipes.tuning import tune_recipe, values_text

    set_quiet(as_json)
    name = Path(recipe).stem
    folder = out or Path("out") / f"{name}-tuned"
    tuning = tune_recipe(
        recipe,
        folder,
        [*(overrides or []), *_encoding(context)],
        vary=vary or [],
        trials=trials,
        measure=measure,
        student=student,
    )
    if as_json:
        show_json(tuning.to_json())
        return
    best, first = tuning.best, tuning.trials[0]
    done = [trial for trial in tuning.trials if trial.quality is not None]
    for trial in sorted(done, key=lambda each: -(each.quality or 0.0))[:_SHOWN]:
        show(f"trial {trial.number:>3}  {measure} {trial.quality:.4f}  {values_text(trial.values)}")
    failed = len(tuning.trials) - len(done)
    show(f"{len(tuning.trials)} trials on {tuning.queries} held-out queries" + (f", {failed} failed" if failed else ""))
    show(f"the recipe's own values: {first.quality:.4f}; best: {best.quality:.4f}, trial {best.number}")
    say_next("run", tuning.recipe, "--out", f"out/{name}-best")


@app.command()
def recipes(
    name: Annotated[str | None, Argument(help="Print the YAML of this recipe, to copy it: ... > mine.yaml.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the packaged recipes with what they need and cost, or print one."""
    from retrodistill.recipes.loading import load_recipe, recipe_names, recipe_needs, recipe_text

    if name is not None:
        text = recipe_text(name)
        show(json.dumps({"name": name, "yaml": text}) if as_json else text.rstrip())
        return
    facts: dict[str, dict[str, Any]] = {}
    for recipe in map(load_recipe, recipe_names()):
        facts[recipe.name] = {"about": recipe.about.strip(), "needs": recipe_needs(recipe), "cost": recipe.cost}
    if as_json:
        show_json(facts)
        return
    for title, fact in facts.items():
        show(title)
        show(textwrap.fill(fact["about"], 100, initial_indent="  ", subsequent_indent="  "))
        for label, text in (("needs", "; ".join(fact["needs"])), ("cost ", fact["cost"])):
            show(textwrap.fill(text, 100, initial_indent=f"  {label} ", subsequent_indent=" " * 8))


@app.command()
def methods() -> None:
    """List models, BM25 settings, objectives, labels, initializations, fusions, samplers, budgets, and selections."""
    from retrodistill.candidates.samplers import SAMPLERS
    from retrodistill.candidates.selection import BUDGETS, RULES
    from retrodistill.encoders.names import KINDS
    from retrodistill.generation.generating import GENERATORS
    from retrodistill.objectives.registry import OBJECTIVES, REGULARIZERS
    from retrodistill.rankers.analyzers import SETTINGS, languages
    from retrodistill.rankers.ensemble import LABELS
    from retrodistill.runs.fusion import METHODS
    from retrodistill.students.static import INITIALIZATIONS

    for title, table in (
        ("models", KINDS),
        ("models that generate queries", GENERATORS),
        ("settings of bm25", {**SETTINGS, "languages": ", ".join(languages())}),
        ("objectives", OBJECTIVES),
        ("regularizers of sparse students", REGULARIZERS),
        ("static initializations", INITIALIZATIONS),
        ("fusions", METHODS),
        ("samplers", SAMPLERS),
        ("labeling budgets", BUDGETS),
        ("selections of texts", RULES),
        ("labels of a stage's teacher", LABELS),
    ):
        show(title)
        width = max(17, *map(len, table))
        for name, line in table.items():
            show(f"  {name:<{width}} {line}")


@app.command()
def keys(
    prefix: Annotated[str, Argument(help="Only this key and the keys below it, e.g. students.stages.training.")] = "",
    as_json: JsonOption = False,
    json_schema: Annotated[bool, Option("--json-schema", help="Print the JSON schema of recipes.")] = False,
) -> None:
    """List every key of a recipe with its values, default, and meaning.

    For completion in an editor: retrodistill keys --json-schema > recipe.schema.json, and this first line in a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    from retrodistill.recipes.keys import recipe_keys, recipe_schema

    if json_schema:
        show(json_text(recipe_schema(), sys.stdout.encoding or "utf-8", indent=2))
        return
    sections = recipe_keys(prefix)
    if as_json:
        show_json({"keys": [_plain(key) for section in sections for key in section.keys]})
    else:
        show(keys_text(sections))


def keys_text(sections: list[Section]) -> str:
    """A table per section, at most 100 columns wide; settings that occur in several places are listed once."""
    lines = _row("key", "values", "default", "meaning")
    places: dict[type, str] = {}
    folded: list[tuple[str, ...]] = []
    for section in sections:
        if any(section.path[: len(path)] == path for path in folded):
            continue
        place = ".".join(section.path) or "recipe"
        if section.settings in places:
            folded.append(section.path)
            lines += ["", f"{place}: the keys of {places[section.settings]}"]
            continue
        places[section.settings] = place
        lines += ["", place, *textwrap.wrap(section.about, 96)]
        for key in section.keys:
            lines += _row(key.path[-1], key.values, default_text(key), key.meaning)
    lines += ["", "NAME is a student's name, N a list item, from 0. For the meaning of choices: retrodistill methods"]
    return "\n".join(lines)


def default_text(key: Key) -> str:
    """A key's default as the table shows it."""
    if key.needed:
        return "needed"
    if isinstance(key.default, float):
        return f"{key.default:.4g}"
    if key.default is None and key.values == "settings":
        return "below"
    return key.default if isinstance(key.default, str) and key.default else json.dumps(key.default)


def _row(*cells: str) -> list[str]:
    columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
    rows = [[column[row] if row < len(column) else "" for column in columns] for row in range(max(map(len, columns)))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, _WIDTHS, strict=True)).rstrip() for row in rows]


def _plain(key: Key) -> dict[str, Any]:
    rest = {name: getattr(key, name) for name in ("needed", "default", "meaning")}
    return {"key": ".".join(key.path), "values": key.values, "options": list(key.options), **rest}


def _encoding(context: Context) -> list[str]:
    """The options before the command as overrides of a recipe, whose own settings would win otherwise."""
    return [f"{key}={value}" for key, value in context.obj.items()]


def _run(recipe: str, out: Path, overrides: list[str], as_json: bool) -> None:
    from retrodistill.recipes import run_recipe

    set_quiet(as_json)
    results = run_recipe(recipe, out, overrides, command=this_command())
    if results is None:  # one of torchrun's other processes
        return
    if as_json:
        show_json(results.to_json())
        return
    from retrodistill.report.tables import NARROW, WIDTH, examples_text, results_text

    width = min(max(shutil.get_terminal_size((NARROW, 24)).columns, NARROW), WIDTH)
    show(results_text(results, width))
    if examples := examples_text(results, width=width):
        show(f"\n{examples}\n")
    for note in results.notes:
        show(note if note in results.warnings else f"note: {note}")
    show(f"\nresults: {out / 'results.json'}\nreport:  {out / 'report.html'}")
    say_next("serve", out)


def _plan(recipe: str, out: Path, overrides: list[str], as_json: bool) -> None:
    from retrodistill.recipes.plan import plan_recipe
    from retrodistill.recipes.resources import NOTHING_TO_COUNT, readable_bytes

    set_quiet(as_json)
    plan = plan_recipe(recipe, out, overrides)
    if as_json:
        show_json(plan.to_json())
        return
    for step in plan.steps:
        line = step.step
        if step.unit != NOTHING_TO_COUNT:
            line += f": {step.items} {step.unit} left"
        if step.seconds or step.items:
            disk = step.needs.out + step.needs.cache
            line += f", about {duration(step.seconds)}, {readable_bytes(disk)} on disk"
            line += f", {readable_bytes(step.needs.memory)} of memory" if step.needs.memory else ""
            line += f", {step.bill}" if step.bill.requests else ""
        show(line)
    total, there = plan.total(), plan.machine
    show(
        f"total: about {duration(total['seconds'])}, {readable_bytes(total['memory_bytes'])} of memory of "
        f"{readable_bytes(there.memory)} available, {readable_bytes(total['out_bytes'] + total['scratch_bytes'])} in "
        f"the output folder of {readable_bytes(there.out)} free, {readable_bytes(total['cache_bytes'])} in the cache "
        f"of {readable_bytes(there.cache)} free{f', {plan.bill}' if plan.bill.requests else ''}"
    )
