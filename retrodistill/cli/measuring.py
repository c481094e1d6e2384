"""Commands that measure: evaluate, compare."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from retrodistill.cli.app import JsonOption, app, show
from retrodistill.core.runtime import set_quiet

SplitOption = Annotated[
    str | None, typer.Option(help="Whose judgments count; BEIR's by default: test, and dev for msmarco.")
]
TeacherOption = Annotated[
    str | None, typer.Option(help="Measure agreement with it too: dense:NAME, cross-encoder:NAME, bm25, run:FILE.")
]


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 - one option each
    system: Annotated[
        list[str],
        typer.Argument(help="dense:NAME, bm25, run:FILE..., an index' folder, or rerank:TEACHER@SOURCE (top 100)."),
    ],
    collection: Annotated[
        list[str], typer.Option(help="BEIR folder, beir/NAME, ir_datasets:ID, hf:NAME, or demo; several times.")
    ],
    split: SplitOption = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="ndcg@k, mrr@k, ..., or any string of ir_measures (Rprec, RR(rel=2)@10); BEIR's by default."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Documents retrieved per query.", min=1)] = 1000,
    teacher: TeacherOption = None,
    cost: Annotated[bool, typer.Option("--cost", help="Measure latency, memory and throughput too.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch and FAISS where cost is measured.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for COLLECTION/runs/NAME.run and results; what is there is kept.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure systems on collections by BEIR's rules; queries without results count 0."""
    from retrodistill.api import write_report
    from retrodistill.evaluation.benchmark import benchmark
    from retrodistill.evaluation.cost import CostConfig
    from retrodistill.evaluation.evaluating import EvaluationConfig
    from retrodistill.report.tables import benchmark_text

    set_quiet(as_json)
    costs = CostConfig(threads) if cost else None
    made = benchmark(system, collection, EvaluationConfig(split, measure, depth, teacher, costs, _command()), out)
    if out is not None:
        for evaluation in made.evaluations:
            write_report(out / evaluation.results.collection)
    if not as_json:
        show(benchmark_text(made))
    elif len(made.evaluations) == 1:
        show(json.dumps(made.evaluations[0].results.to_json(), ensure_ascii=False))
    else:
        show(json.dumps(made.to_json(), ensure_ascii=False))


@app.command()
def compare(  # noqa: PLR0913, PLR0917 - one option each
    system: Annotated[
        list[str],
        typer.Argument(help="An evaluated folder (all its systems), FOLDER:SYSTEM, or what evaluate takes; 2 or more."),
    ],
    collection: Annotated[
        str | None, typer.Option(help="For systems that are measured now, and for the queries' texts.")
    ] = None,
    split: SplitOption = None,
    measure: Annotated[str, typer.Option(help="What is compared.")] = "ndcg@10",
    teacher: TeacherOption = None,
    every_pair: Annotated[bool, typer.Option("--every-pair", help="Each with each, not with the first.")] = False,
    shown: Annotated[int, typer.Option(help="Queries won and lost to list.", min=0)] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the resampling in tests and intervals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare systems with the first on the same queries: is a difference real, and which queries made it?"""
    from retrodistill.evaluation.comparing import ComparisonConfig, compare_named
    from retrodistill.report.tables import comparison_text

    set_quiet(as_json)
    made = compare_named(system, ComparisonConfig(collection, split, measure, teacher, every_pair, shown, seed))
    show(json.dumps(made.to_json(), ensure_ascii=False) if as_json else comparison_text(made))


def _command() -> str:
    return f"retrodistill {shlex.join(sys.argv[1:])}"
