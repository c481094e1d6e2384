"""Results as a run on SciFact gives them, small enough to read."""

import math
import re

from retrodistill.evaluation.results import Agreement, Bin, Cost, Example, Hit, Results, SystemResult, Timing
from retrodistill.report import page_text


def system(name="student", role="student", **changed):
    values = {
        "ndcg10": 0.69,
        "mrr10": 0.655,
        "recall100": 0.94,
        "retention": 0.941,
        "bytes_per_document": 1536.0,
        "query_ms": {"p50": 0.9, "p95": 1.4},
        "documents_by": "dense:all-MiniLM-L6-v2",
        "queries_by": "student",
    }
    if role != "student":
        values["retention"] = None
    return SystemResult(name=name, role=role, **{**values, **changed})


def hit(document_id="4983", text="Microstructural development of human newborn cerebral white matter", **changed):
    return Hit(**{"document_id": document_id, "text": text, "relevant": False, "score": 0.5, **changed})


def everywhere(**changed):
    """The systems, all changed alike."""
    return [system(one.name, one.role, **changed) for one in results().systems]


def example(query="0-dimensional biomaterials show inductive properties.", **changed):
    teacher = [hit("31715818", relevant=True, score=4.2), hit(), hit("13734012", score=-1.5)]
    student = [hit(score=0.71), hit("31715818", relevant=True, score=0.64), hit("22")]
    return Example(**{"query": query, "relevant": ["31715818"], "teacher": teacher, "student": student, **changed})


def results(**changed):
    systems = [
        system("bm25", "baseline", ndcg10=0.686, query_ms={"p50": 0.42, "p95": 0.8}, bytes_per_document=None),
        system("teacher", "teacher", ndcg10=0.645, query_ms={"p50": 7.9, "p95": 9.3}),
        system(
            "ensemble",
            "teacher",
            ndcg10=0.733,
            query_ms={"p50": 19.6, "p95": 24.0},
            bytes_per_document=2310.0,
            documents_by="both",
        ),
        system("control", "control", ndcg10=0.30, query_ms={"p50": 0.12, "p95": 0.2}, retention=0.409),
        system("student", "student", query_ms={"p50": 0.12, "p95": 0.2}),
    ]
    steps = range(10, 410, 10)
    curve = {
        "losses": [{"step": step, "loss": 0.1 + math.exp(-step / 90)} for step in steps],
        "monitors": [
            {"step": step, "agreement": 0.8 - 0.4 * math.exp(-step / 120), "mean_cosine": 0.9 - step**-1.0}
            for step in range(50, 401, 50)
        ],
    }
    comparison = {  # as an earlier version wrote it
        "a": "student",
        "b": "ensemble",
        "measure": "ndcg@10",
        "difference": -0.043,
        "interval": [-0.066, -0.021],
        "p": 0.0004,
    }
    values = {
        "collection": "scifact",
        "split": "test",
        "queries": 300,
        "name": "ensemble-to-static",
        "command": "retrodistill run configs/ensemble.yaml --out out seed=7",
        "hardware": {"machine": "x86_64", "cores": 2, "gpu": None},
        "versions": {"python": "3.12.3", "torch": "2.8.0"},
        "seconds": {"mine": 12.4, "score": 734.0, "train": 88.0, "evaluate": 4.3},
        "seed": 7,
        "taught_by": "ensemble",
        "systems": systems,
        "comparisons": [comparison],
        "curves": {"student": curve},
        "examples": [example(), example("Vitamin D deficiency is unrelated to birth weight.")],
        "notes": [],
        "provenance": {"collection": "ab12cd34ef56ab78", "teacher": {"bm25": "11aa", "dense": "22bb"}},
    }
    return Results(**{**values, **changed})


def whole(**changed):
    """With everything that a page can show: agreement, cost, corrected comparisons, queries won and lost, sizes."""
    first = results()
    rows = [
        one.model_copy(update={} if one.name == "ensemble" else {"agreement": agreement(), "cost": cost()})
        for one in first.systems
    ]
    more = {"p_holm": 0.0008, "smallest": 0.031, "wins": 40, "ties": 200, "losses": 60}
    chance = {"b": "bm25", "difference": 0.004, "interval": [-0.02, 0.03], "p": 0.7, "p_holm": 0.7, "smallest": 0.035}
    compared = [{**first.comparisons[0], **more}, {**first.comparisons[0], **more, **chance}]
    won = [valued(f"won {number}", 0.2, 0.9 - number / 10) for number in range(3)]
    lost = [valued("lost on Zebrafish", 1.0, 0.5, student=[])]
    small = system("opq-16", "control", ndcg10=0.55, bytes_per_document=200.0, retention=0.85)
    small2 = system("opq-32", "control", ndcg10=0.61, bytes_per_document=220.0, retention=0.9)
    values = {
        "systems": [*rows, small, small2],
        "comparisons": compared,
        "sides": ["ensemble", "student"],
        "won": won,
        "lost": lost,
        "notes": ["Two queries were dropped."],
    }
    return results(**{**values, **changed})


def valued(query, teacher_value, student_value, **changed):
    values = {"query_id": query.split()[-1], "teacher_value": teacher_value, "student_value": student_value}
    return example(query, **values, **changed)


def agreement(**changed):
    bins = [
        {"pairs": 50, "student": at / 10, "teacher": at - 3.0, "low": at - 4.0, "high": at - 2.5} for at in range(8)
    ]
    values = {
        "teacher": "ensemble",
        "overlap10": 0.713,
        "rank_biased_overlap": 0.74,
        "kendall_tau": -0.52,
        "ceiling": 0.721,
        "calibration": [Bin(**one) for one in bins],
    }
    return Agreement(**{**values, **changed})


def cost(**changed):
    timing = {
        "batch": 1,
        "encode": {"p50": 7.5, "p95": 9.0, "p99": 9.9},
        "search": {"p50": 0.4, "p95": 0.6, "p99": 0.8},
        "total": {"p50": 7.9, "p95": 9.3, "p99": 10.4},
        "queries_per_second": 126.4,
    }
    several = {**timing, "batch": 32, "encode": None, "search": None}
    values = {
        "threads": 1,
        "timings": [Timing(**timing), Timing(**several)],
        "total_bytes": 7_961_088,
        "peak_bytes": 612_000_000,
        "tokens_per_second": 5120.0,
        "matrix_share": 0.41,
        "encode_seconds": 312.0,
    }
    return Cost(**{**values, **changed})


def unjudged():
    """Without any judgment: agreement and cost are there, quality is not."""
    first = whole()
    rows = [
        system(
            one.name,
            one.role,
            ndcg10=None,
            mrr10=None,
            recall100=None,
            retention=None,
            agreement=one.agreement and one.agreement.model_copy(update={"ceiling": None}),
            cost=one.cost,
        )
        for one in first.systems[:5]
    ]
    shown = [example(query, relevant=[]) for query in ("one", "two")]
    return results(systems=rows, comparisons=[], examples=shown, sides=["ensemble", "student"], split="unjudged")


def section(name, shown):
    """The HTML of one section of the page; empty where the page has none of that name."""
    found = re.search(rf'<section id="{name}".*?</section>', page_text(shown), re.DOTALL)
    return found.group() if found else ""
