"""Results as a run on SciFact gives them, small enough to read."""

import math

from retrodistill.reports import Example, Hit, Results, System


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
    return System(name=name, role=role, **{**values, **changed})


def hit(document_id="4983", text="Microstructural development of human newborn cerebral white matter", **changed):
    return Hit(**{"document_id": document_id, "text": text, "relevant": False, "score": 0.5, **changed})


def example(query="0-dimensional biomaterials show inductive properties.", **changed):
    teacher = [hit("31715818", relevant=True, score=4.2), hit(), hit("13734012", score=-1.5)]
    student = [hit(score=0.71), hit("31715818", relevant=True, score=0.64), hit("22")]
    return Example(**{"query": query, "relevant": ["31715818"], "teacher": teacher, "student": student, **changed})


def results(**changed):
    systems = [
        system("bm25", "baseline", ndcg10=0.686, query_ms={"p50": 0.42, "p95": 0.8}, bytes_per_document=None),
        system("teacher", "teacher", ndcg10=0.645, query_ms={"p50": 7.9, "p95": 9.3}),
        system("ensemble", "teacher", ndcg10=0.733, query_ms={"p50": 19.6, "p95": 24.0}, bytes_per_document=2310.0),
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
    comparison = {
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
