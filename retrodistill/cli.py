"""The command line: the same verbs as in Python."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from retrodistill.errors import UserError
from retrodistill.progress import say, set_quiet

app = typer.Typer(
    help="Distil strong, slow rankers into small, fast retrievers, and prove on BEIR what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CollectionOption = Annotated[str, typer.Option(help="BEIR folder, beir/NAME, ir_datasets:ID, hf:NAME, or demo.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs, and no progress.")]
OutOption = Annotated[Path, typer.Option(help="Folder for what is made.")]
RunOption = Annotated[Path, typer.Option(help="Run file: .run, .trec, .parquet or .jsonl.")]
StoreOption = Annotated[
    Path | None, typer.Option(help="Folder for scores and embeddings; the shared cache by default.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what is left to do and how long it takes; do nothing.")]


@app.command()
def demo(out: OutOption = Path("out/demo"), as_json: JsonOption = False) -> None:
    """Run the main job on the demonstration corpus (Python's own documentation), offline, in minutes."""
    _run_and_print("demo", out, [], as_json)


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or 'demo'.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; out/RECIPE by default.")] = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe, or take it up again where it stopped."""
    folder = out or Path("out") / Path(recipe).stem
    if dry_run:
        _plan(recipe, folder, overrides or [], as_json)
    else:
        _run_and_print(recipe, folder, overrides or [], as_json)


@app.command()
def mine(
    collection: CollectionOption,
    out: RunOption,
    source: Annotated[list[str], typer.Option(help="bm25, dense:NAME, run:FILE; may be given several times.")],
    split: Annotated[str, typer.Option(help="Queries to mine for; auto is train, else those in no split.")] = "auto",
    depth: Annotated[int, typer.Option(help="Documents per query and source.", min=1)] = 100,
    random: Annotated[int, typer.Option(help="Documents drawn from the corpus besides.", min=0)] = 0,
    seed: int = 0,
) -> None:
    """Propose candidates for queries: a run."""
    from retrodistill.candidates import mine as mine_candidates
    from retrodistill.collections import load_collection
    from retrodistill.runs import write_run

    run = mine_candidates(load_collection(collection), split, source, depth, random=random, seed=seed)
    write_run(run, out)
    say(f"{len(run)} candidates of {len(run.query_ids)} queries in {out}")


@app.command()
def score(
    collection: CollectionOption,
    candidates: RunOption,
    teacher: Annotated[
        list[str], typer.Option(help="bm25, dense:NAME, cross-encoder:NAME, run:FILE; several are fused.")
    ],
    out: RunOption,
    weight: Annotated[list[float] | None, typer.Option(help="One per teacher, in their order.")] = None,
    fusion: Annotated[
        str, typer.Option(help="zscore, zscore-per-query, minmax or reciprocal-rank.")
    ] = "zscore-per-query",
    store: StoreOption = None,
    dry_run: DryOption = False,
) -> None:
    """Score candidates by one teacher or several; killed at any moment, it goes on where it stopped."""
    from retrodistill.collections import load_collection
    from retrodistill.runs import fuse, read_run, write_run
    from retrodistill.teachers import remaining
    from retrodistill.teachers import score as score_candidates

    corpus, pool = load_collection(collection), read_run(candidates)
    if weight and len(weight) != len(teacher):
        raise UserError(f"{len(weight)} weights for {len(teacher)} teachers; give one per teacher.")
    if dry_run:
        for name, work in remaining(corpus, pool, teacher, store=store).items():
            _print(f"{name}: {work.items} {work.unit} left, about {_duration(work.seconds)}")
        return
    runs = score_candidates(corpus, pool, teacher, store=store)
    write_run(runs[0] if len(runs) == 1 else fuse(runs, weight, fusion), out)
    say(f"{len(pool)} scores in {out}")


@app.command()
def distill(
    collection: CollectionOption,
    target: Annotated[str, typer.Option(help="What teaches: run:FILE, dense:NAME, bm25...")],
    out: OutOption = Path("out/student"),
    student: Annotated[str, typer.Option(help="static, or dense:NAME.")] = "static",
    objective: Annotated[list[str] | None, typer.Option(help="kl, margin-mse, leaf...; several are summed.")] = None,
    space: Annotated[str, typer.Option(help="Dense model whose documents are searched.")] = "dense:all-MiniLM-L6-v2",
    towers: Annotated[str, typer.Option(help="query, or both.")] = "query",
    seed: int = 0,
) -> None:
    """Distil one student from a target; for curricula, controls and reports use 'run RECIPE'."""
    from retrodistill.api import distill as distil_student

    made = distil_student(
        collection,
        target,
        student=student,
        objective=objective or ["kl"],
        space=space,
        towers=towers,
        out=out,
        seed=seed,
    )
    say(f"{made} in {out}")


@app.command()
def index(
    collection: CollectionOption,
    documents: Annotated[str, typer.Option(help="Encoder of the documents, e.g. dense:all-MiniLM-L6-v2.")],
    out: OutOption,
    queries: Annotated[str | None, typer.Option(help="Encoder of the queries; the documents' by default.")] = None,
    factory: Annotated[str, typer.Option(help="FAISS factory string, e.g. Flat, SQ8, OPQ48,PQ48.")] = "Flat",
) -> None:
    """Build an asymmetric index: a plain FAISS file, ids and a manifest."""
    from retrodistill.collections import load_collection
    from retrodistill.files import check_replaceable
    from retrodistill.indexes import build_index

    check_replaceable(out, "index.faiss")
    built = build_index(load_collection(collection), documents, queries, factory)
    built.save(out)
    say(f"{len(built)} documents, {built.bytes_per_document():.0f} bytes each, in {out}")


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="An index' folder.")],
    query: Annotated[list[str], typer.Argument(help="One or more queries.")],
    k: Annotated[int, typer.Option(help="Documents per query.")] = 10,
    queries: Annotated[str | None, typer.Option(help="Another query encoder, of the index' space.")] = None,
    collection: Annotated[str | None, typer.Option(help="Show the documents' texts from this collection.")] = None,
    parameters: Annotated[str | None, typer.Option(help="FAISS search parameters, e.g. nprobe=16.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index."""
    from retrodistill.collections import load_collection
    from retrodistill.indexes import AsymmetricIndex
    from retrodistill.models.retrievers import check_queries

    set_quiet(as_json)
    check_queries(query)
    texts = load_collection(collection).documents if collection else None
    found = AsymmetricIndex.load(folder, queries, parameters=parameters).search(query, k)
    rows = [
        {
            "query": query[int(number)],
            "document_id": document,
            "score": score,
            **({"text": texts[document]} if texts is not None and document in texts else {}),
        }
        for number, documents, scores in found
        for document, score in zip(documents, scores.tolist(), strict=True)
    ]
    if as_json:
        _print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        _print(f"{row['score']:.4f}  {row['document_id']}  {' '.join(str(row.get('text', '')).split())[:100]}".rstrip())


@app.command()
def evaluate(
    system: Annotated[list[str], typer.Argument(help="dense:NAME, static:NAME, bm25, run:FILE, or an index' folder.")],
    collection: CollectionOption,
    split: Annotated[str, typer.Option(help="Whose judgements count.")] = "test",
    measure: Annotated[list[str] | None, typer.Option(help="ndcg@k, mrr@k, recall@k, map@k, precision@k.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure systems on a collection; queries without results count 0."""
    from retrodistill.api import evaluate as evaluate_systems
    from retrodistill.indexes import AsymmetricIndex
    from retrodistill.measures.ranking import DEFAULT_MEASURES

    set_quiet(as_json)
    systems: dict[str, Any] = {name: AsymmetricIndex.load(name) if Path(name).is_dir() else name for name in system}
    result = evaluate_systems(systems, collection, split, measures=measure or DEFAULT_MEASURES)
    if as_json:
        count = len(next(iter(result.per_query.values())))
        rows = [{"name": name, **values} for name, values in result.means.items()]
        _print(json.dumps({"collection": collection, "split": split, "queries": count, "systems": rows}))
    else:
        _print(str(result))


@app.command()
def methods() -> None:
    """List every kind of model, objective, initialisation, fusion, sampler and packaged recipe."""
    from retrodistill.candidates.samplers import SAMPLERS
    from retrodistill.models.names import KINDS
    from retrodistill.objectives.registry import OBJECTIVES
    from retrodistill.runs.calibration import CALIBRATIONS
    from retrodistill.students.static import INITIALISATIONS

    calibrations = {name: (kind.__doc__ or "").splitlines()[0] for name, kind in CALIBRATIONS.items()}
    fusions = {**calibrations, "reciprocal-rank": "Weighted sum of 1 / (60 + rank)."}
    recipes = {"demo": "The main job on Python's documentation strings; see configs/ for the others."}
    for title, table in (
        ("models", KINDS),
        ("objectives", OBJECTIVES),
        ("static initialisations", INITIALISATIONS),
        ("fusions", fusions),
        ("samplers", SAMPLERS),
        ("packaged recipes", recipes),
    ):
        _print(title)
        for name, line in table.items():
            _print(f"  {name:<17} {line}")


class _Stopped(BaseException):
    """Ctrl-C: click would take a KeyboardInterrupt for a wish to abort."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a user's mistake is one line and exit status 2.

    Args:
        arguments: What stands behind the program's name; those of this process by default.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = signal.signal(signal.SIGINT, _stop)
    try:
        with _quiet_libraries():
            app(arguments)
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a full disk or a closed folder that no stage has foreseen
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        _fail(f"cannot write {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}.")
    except _Stopped:
        sys.stderr.write("stopped; the same command goes on from here\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(*_: object) -> None:
    raise _Stopped


def _fail(mistake: str) -> None:
    sys.stderr.write(f"error: {' '.join(mistake.split())}\n")
    sys.exit(2)


def _run_and_print(recipe: str, out: Path, overrides: list[str], as_json: bool) -> None:
    from retrodistill.pipeline import run_recipe

    set_quiet(as_json)
    command = f"retrodistill {shlex.join(sys.argv[1:])}"
    results = run_recipe(recipe, out, overrides, command=command)
    if as_json:
        _print(json.dumps(results.to_json(), ensure_ascii=False))
        return
    from retrodistill.reports.table import examples_text, table_text

    _print(table_text(results))
    if results.examples:
        _print("\n" + examples_text(results))
    for note in results.notes:
        _print(f"note: {note}")
    _print(f"\n{out / 'results.json'}\n{out / 'report.html'}")


def _plan(recipe: str, out: Path, overrides: list[str], as_json: bool) -> None:
    from retrodistill.pipeline.plan import plan_recipe

    set_quiet(as_json)
    steps = plan_recipe(recipe, out, overrides)
    if as_json:
        _print(json.dumps(steps))
        return
    for step in steps:
        _print(f"{step['step']}: {step['items']} {step['unit']} left, about {_duration(step['seconds'])}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Warnings of libraries are for programmers; errors still come through."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
