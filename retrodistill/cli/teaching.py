"""Commands from candidates to students: mine, score, distill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from retrodistill.cli.app import (
    CollectionOption,
    DryOption,
    OutOption,
    PassagesOption,
    RunOption,
    StoreOption,
    app,
    duration,
    say_next,
    show,
    with_engine,
)
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log

if TYPE_CHECKING:
    from retrodistill.data import Collection, Qrels
    from retrodistill.runs import Run
    from retrodistill.training.settings import FilterSettings


@app.command()
@with_engine
def mine(
    collection: CollectionOption,
    out: RunOption,
    source: Annotated[list[str], Option(help="bm25 (bm25:german, bm25:auto...), dense:NAME, run:FILE; repeatable.")],
    split: Annotated[str, Option(help="Queries to mine for; auto: train, or else the queries in no split.")] = "auto",
    depth: Annotated[int, Option(help="Documents per query and source.", min=1)] = 100,
    random: Annotated[int, Option(help="Random documents to add per query.", min=0)] = 0,
    seed: Annotated[int, Option(help="Seed of the random documents.")] = 0,
    passages: PassagesOption = None,
) -> None:
    """Mine candidates for queries and write them as a run.

    Their scores are sums of reciprocal ranks. They do not tell false negatives, which 'score --filter' drops.
    """
    from retrodistill.candidates import mine as mine_candidates
    from retrodistill.data import load_collection
    from retrodistill.runs import write_run

    corpus = load_collection(collection, passages=passages)
    run = mine_candidates(corpus, split, source, depth, random=random, seed=seed)
    write_run(run, out)
    log(f"{len(run)} candidates of {len(run.query_ids)} queries in {out}")
    scored = out.with_stem(f"{out.stem}-scored")
    following = ["score", "--collection", collection, "--candidates", out, "--teacher", "TEACHER", "--out", scored]
    say_next(*following, passages=passages)


@app.command()
@with_engine
def score(  # noqa: PLR0913, PLR0917 - one option each
    collection: CollectionOption,
    candidates: RunOption,
    teacher: Annotated[
        list[str], Option(help="bm25[:SETTING], dense:NAME, cross-encoder:NAME, run:FILE; several are fused.")
    ],
    out: RunOption,
    weight: Annotated[list[float] | None, Option(help="One per teacher, in the same order.")] = None,
    fusion: Annotated[str, Option(help="A method that 'retrodistill methods' lists.")] = "zscore-per-query",
    budget: Annotated[
        str | None, Option(help="Number or share of pairs to score (5000, 25%), chosen by the candidates' scores.")
    ] = None,
    budget_by: Annotated[str, Option(help="robust (pairs that candidates' scores leave open) or random.")] = "robust",
    filter_by: Annotated[
        str | None,
        Option(
            "--filter",
            metavar="margin=NUMBER|relative=SHARE",
            help="Drop candidates that may be relevant, since the teacher scores them about as high as the query's "
            "labeled document: above its score minus a margin, or above a share of it, e.g. relative=0.95.",
        ),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the choice of pairs.")] = 0,
    store: StoreOption = None,
    passages: PassagesOption = None,
    dry_run: DryOption = False,
) -> None:
    """Score candidates with one or more teachers; if it is killed, it resumes where it stopped."""
    from retrodistill.candidates.mining import distinct_documents, with_positives
    from retrodistill.candidates.selection import choose_pairs, labeled
    from retrodistill.data import load_collection
    from retrodistill.encoders.names import parse_model_name
    from retrodistill.rankers import load_ranker, remaining
    from retrodistill.rankers import score as score_candidates
    from retrodistill.rankers.scoring import known_pairs
    from retrodistill.runs import fuse, read_run, write_run

    corpus = load_collection(collection, passages=passages)
    pool = known_pairs(read_run(candidates), corpus.queries, corpus)
    if weight and len(weight) != len(teacher):
        raise UserError(f"{len(weight)} weights for {len(teacher)} teachers; give one per teacher.")
    rule = None if filter_by is None else _filter_settings(filter_by, teacher, fusion, budget)
    labels = None if rule is None else _labels(corpus, pool)
    if labels is not None and not any(parse_model_name(name).kind == "run" for name in teacher):
        listed = [(query, sorted(documents)) for query, documents in labeled(labels).items()]
        pool = with_positives(pool, corpus.documents, listed)  # a recorded run would have no scores for them
        pool = distinct_documents(pool, corpus.documents)
    chosen = choose_pairs(pool, budget, budget_by, seed=seed) if budget is not None else None
    pairs = pool if chosen is None else chosen.run
    if dry_run:
        teachers = [load_ranker(name, store) for name in teacher]
        in_pool = remaining(corpus, pool, teachers, store=store)
        left = in_pool if chosen is None else remaining(corpus, pairs, teachers, store=store)
        if chosen is not None:
            show(chosen.summary)
        for name, work in left.items():
            all_pairs = in_pool[name]
            note = "" if chosen is None else f" (all pairs: {all_pairs.items}, about {duration(all_pairs.seconds)})"
            bill = f", {work.bill}" if work.bill.requests else ""
            show(f"{name}: {work.items} {work.unit} left, about {duration(work.seconds)}{bill}{note}")
        return
    runs = score_candidates(corpus, pairs, teacher, store=store)
    scored = runs[0] if len(runs) == 1 else fuse(runs, weight, fusion)
    if rule is not None and labels is not None:
        scored = _below_positives(distinct_documents(scored, corpus.documents), labels, rule)
    write_run(scored, out)
    if chosen is not None:
        log(chosen.summary)
    log(f"{len(scored)} scores in {out}")
    say_next("distill", "--collection", collection, "--target", f"run:{out}", passages=passages)


def _filter_settings(written: str, teachers: list[str], fusion: str, budget: str | None) -> FilterSettings:
    """The filter that was written as ``margin=0.05``, or a `UserError` if it does not fit the other options."""
    from retrodistill.core.settings import validated
    from retrodistill.training.settings import FilterSettings

    key, _, value = written.partition("=")
    rule = validated(FilterSettings, {key: value}, f"--filter {written}", "rule")
    if budget is not None:
        raise UserError("--filter needs the score of each labeled document, which --budget may not buy; give one.")
    if kind := rule.without_meaning(teachers, fusion):
        raise UserError(f"--filter {written}: a share has no meaning for {kind}; give a margin, or fuse by minmax.")
    return rule


def _labels(collection: Collection, pool: Run) -> Qrels:
    """Labels of the pool's queries in all splits but test."""
    from retrodistill.data.collection import judgments_of, of_originals

    queries = collection.queries.select(pool.query_ids)
    judged = judgments_of(queries, [judged for split, judged in collection.qrels.items() if split != "test"])
    labels = collection.passage_labels(judged)
    if not len(labels):
        raise UserError(
            f"--filter compares with labeled documents, and no query of the candidates has labels in {collection.name} "
            "outside the split test."
        )
    return of_originals(labels, collection.documents)


def _below_positives(scored: Run, labels: Qrels, rule: FilterSettings) -> Run:
    from retrodistill.candidates.mining import keep_below_margin, keep_below_share, labeled_positives

    positives = labeled_positives(scored, labels)
    if rule.margin is not None:
        kept = keep_below_margin(scored, positives, rule.margin)
    else:
        kept = keep_below_share(scored, positives, rule.relative or 1.0)
    log(
        f"filter of false negatives: dropped {len(scored) - len(kept)} of {len(scored)} candidates; {len(positives)} "
        f"of {len(scored.query_ids)} queries have a labeled document"
    )
    return kept


@app.command()
@with_engine
def distill(  # noqa: PLR0913, PLR0917 - one option each
    collection: CollectionOption,
    target: Annotated[str, Option(help="The teacher: run:FILE, dense:NAME, bm25...")],
    out: OutOption = Path("out/student"),
    student: Annotated[str, Option(help="static, or kind:NAME, e.g. dense:NAME, sparse:NAME.")] = "static",
    objective: Annotated[list[str] | None, Option(help="kl, margin-mse, leaf...; several are summed.")] = None,
    document_encoder: Annotated[str, Option(help="Dense model of the searched documents.")] = "dense:all-MiniLM-L6-v2",
    train: Annotated[
        str | None, Option(help="query_encoder, both_encoders or head; the default depends on the kind of student.")
    ] = None,
    phrases: Annotated[int, Option(help="Phrases per document to train on, besides titles and sentences.", min=0)] = 0,
    generated: Annotated[str | None, Option(help="File of 'retrodistill generate' to train on, too.")] = None,
    seed: Annotated[int, Option(help="Seed of all random draws; the same seed gives the same student.")] = 0,
    passages: PassagesOption = None,
) -> None:
    """Distill one student from a teacher; for curricula, controls and reports use 'run RECIPE'."""
    from retrodistill.api import distill as distill_student
    from retrodistill.data import load_collection
    from retrodistill.students.registry import kind_of

    trained = distill_student(
        collection if passages is None else load_collection(collection, passages=passages),
        target,
        student=student,
        objective=objective or ["kl"],
        document_encoder=document_encoder,
        training={"texts": {"phrases": phrases, "generated": generated}} | ({} if train is None else {"train": train}),
        out=out,
        seed=seed,
    )
    log(f"{trained} in {out}")
    kind = kind_of(trained.model)
    if not kind.can_search:
        say_next("evaluate", f"rerank:{out}@bm25", "--collection", collection, passages=passages)
        return
    named = f"{student.partition(':')[0]}:{out}"
    encoders = ["--documents", document_encoder, "--queries", named]
    if kind.has_own_documents or train == "both_encoders":
        encoders = ["--documents", named]
    index = out.with_name(f"{out.name}-index")
    say_next("index", "--collection", collection, *encoders, "--out", index, passages=passages)
