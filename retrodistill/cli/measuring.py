"""Commands that measure: evaluate, compare, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from retrodistill.cli.app import (
    JsonOption,
    PassagesOption,
    app,
    show,
    show_json,
    this_command,
    with_engine,
    with_trust,
)
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet

if TYPE_CHECKING:
    from retrodistill.data import Collection

SplitOption = Annotated[
    str | None, Option(help="Split whose judgments are used; by default test, or dev for msmarco, as in BEIR.")
]
TeacherOption = Annotated[
    str | None, Option(help="Also measure agreement with this teacher: dense:NAME, cross-encoder:NAME, bm25, run:FILE.")
]

QrelsOption = Annotated[
    Path | None,
    Option(
        help="Judgments to add to the split: a folder of judgments of 'serve', or a file; the last of a pair counts."
    ),
]
SameIdOption = Annotated[
    str | None,
    Option(
        help="What happens to a document with its query's ID: auto leaves it out where it is the query itself (same "
        "text, not judged for it: ArguAna, Quora), drop always, as beir does, keep never."
    ),
]


@app.command()
@with_engine
def evaluate(  # noqa: PLR0913, PLR0917 - one option each
    system: Annotated[
        list[str],
        Argument(
            help="dense:NAME, bm25[:SETTING], run:FILE..., an index folder or hf:USER/NAME, or rerank:TEACHER@SOURCE "
            "(top 100)."
        ),
    ],
    collection: Annotated[
        list[str], Option(help="BEIR folder, beir/NAME, ir_datasets:ID, hf:NAME, or demo; repeatable.")
    ],
    passages: PassagesOption = None,
    split: SplitOption = None,
    qrels: QrelsOption = None,
    measure: Annotated[
        list[str] | None,
        Option(help="ndcg@k, mrr@k..., or any string of ir_measures, e.g. RR(rel=2)@10; BEIR's by default."),
    ] = None,
    depth: Annotated[int, Option(help="Documents retrieved per query.", min=1)] = 1000,
    same_id: SameIdOption = None,
    teacher: TeacherOption = None,
    cost: Annotated[bool, Option("--cost", help="Also measure latency, memory and throughput.")] = False,
    threads: Annotated[int, Option(help="Threads of torch and FAISS while cost is measured.", min=1)] = 1,
    out: Annotated[
        Path | None, Option(help="Folder for COLLECTION/runs/NAME.run and results; what it has is not measured again.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure systems on collections by BEIR's rules; queries without results count as 0."""
    from retrodistill.api import write_report
    from retrodistill.evaluation.benchmark import benchmark
    from retrodistill.evaluation.cost import CostConfig
    from retrodistill.evaluation.evaluating import EvaluationConfig
    from retrodistill.report.tables import benchmark_text

    set_quiet(as_json)
    cost_config = CostConfig(threads) if cost else None
    config = EvaluationConfig(split, measure, depth, teacher, cost_config, same_id, this_command())
    judged: list[str | Collection] = [*collection]
    if qrels is not None:
        if len(collection) > 1:
            raise UserError(f"--qrels are of one collection, and {len(collection)} are given; evaluate one at a time.")
        judged, passages = [_judged(collection[0], passages, split, qrels)], None
    results = benchmark(system, judged, config, out, passages=passages)
    if out is not None:
        for evaluation in results.evaluations:
            write_report(out / evaluation.results.collection)
    if not as_json:
        show(benchmark_text(results))
    elif len(results.evaluations) == 1:
        show_json(results.evaluations[0].results.to_json())
    else:
        show_json(results.to_json())


@app.command()
@with_engine
def compare(  # noqa: PLR0913, PLR0917 - one option each
    system: Annotated[
        list[str],
        Argument(help="Two or more: an evaluated folder (all its systems), FOLDER:SYSTEM, or what evaluate takes."),
    ],
    collection: Annotated[str | None, Option(help="For systems measured now, and for texts of queries.")] = None,
    passages: PassagesOption = None,
    split: SplitOption = None,
    qrels: QrelsOption = None,
    measure: Annotated[str, Option(help="Measure to compare.")] = "ndcg@10",
    same_id: SameIdOption = None,
    teacher: TeacherOption = None,
    every_pair: Annotated[bool, Option("--every-pair", help="Compare all pairs, not only with the first.")] = False,
    shown: Annotated[int, Option(help="Number of queries won and lost to list.", min=0)] = 5,
    seed: Annotated[int, Option(help="Seed of resampling for tests and intervals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare systems with the first on the same queries: is a difference real, and which queries cause it?"""
    from retrodistill.data import load_collection
    from retrodistill.evaluation.comparing import compare_named
    from retrodistill.report.tables import comparison_text

    set_quiet(as_json)
    corpus = None if collection is None else load_collection(collection, passages=passages)
    if qrels is not None:
        if collection is None:
            raise UserError("--qrels are added to a collection; give it with --collection.")
        corpus = _judged(collection, passages, split, qrels)
    comparison = compare_named(
        system,
        corpus,
        split,
        measure,
        teacher,
        every_pair=every_pair,
        shown=shown,
        same_id=same_id,
        seed=seed,
        rejudge=qrels is not None,
    )
    if as_json:
        show_json(comparison.to_json())
    else:
        show(comparison_text(comparison))


@app.command()
@with_trust
def lengths(
    model: Annotated[str, Argument(help="A length-adaptive student: dense:FOLDER.")],
    collection: Annotated[str, Option(help="Its texts are encoded: BEIR folder, beir/NAME, hf:NAME, or demo.")],
    passages: PassagesOption = None,
    queries: Annotated[bool, Option("--queries", help="Encode queries instead of documents.")] = False,
    ms: Annotated[float | None, Option(help="Most milliseconds for a text alone.")] = None,
    per_second: Annotated[float | None, Option(help="Fewest texts per second, in batches.")] = None,
    threads: Annotated[int, Option(help="Threads of torch.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Time a length-adaptive student with several shares of its tokens, and choose the largest within a limit."""
    from retrodistill.data import load_collection
    from retrodistill.data.texts import spread
    from retrodistill.evaluation.lengths import SAMPLE, choose_length, measure_lengths

    set_quiet(as_json)
    loaded = load_collection(collection, passages=passages)
    texts = loaded.queries.texts[:SAMPLE] if queries else spread(loaded.documents.column, SAMPLE)
    costs = measure_lengths(model, texts, "query" if queries else "document", threads=threads)
    chosen = None if ms is None and per_second is None else choose_length(costs, ms=ms, per_second=per_second)
    if as_json:
        show_json(
            {
                "lengths": [cost._asdict() for cost in costs],
                "chosen": None if chosen is None else chosen.model,
            }
        )
        return
    show("tokens kept  texts/s  ms alone  cosine to all tokens")
    for cost in costs:
        show(f"{cost.keep:11.0%}  {cost.per_second:7.4g}  {cost.ms:8.3g}  {cost.cosine:20.3f}")
    if chosen is not None:
        show(f"use {chosen.model}")


def _judged(collection: str, passages: str | None, split: str | None, qrels: Path) -> Collection:
    """A collection with more judgments of the split that is measured."""
    from retrodistill.data import load_collection, with_judgments
    from retrodistill.evaluation.systems import split_of

    loaded = load_collection(collection, passages=passages)
    return with_judgments(loaded, qrels, split_of(loaded, split))
