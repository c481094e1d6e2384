import pytest
from sample_results import results, system

from retrodistill.report import page_text
from retrodistill.report.text import short_name, short_names, with_short_names


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("bm25", "bm25"),
        ("run:/data/runs/mine.run", "run:mine.run"),
        ("run:../mine.run", "run:mine.run"),
        ("dense:all-MiniLM-L6-v2", "dense:all-MiniLM-L6-v2"),
        ("dense:intfloat/e5-large-v2", "dense:intfloat/e5-large-v2"),
        ("out/mine/indexes/student/", "student"),
        ("rerank:cross-encoder:/models/judge@run:/a/b.run", "rerank:cross-encoder:judge@run:b.run"),
        ("rerank@50:cross-encoder:org/model@bm25", "rerank@50:cross-encoder:org/model@bm25"),
        ("/", "/"),
        ("..", ".."),
    ],
)
def test_folders_go_and_organizations_stay(name, short):
    assert short_name(name) == short


def test_two_of_one_name_stay_whole():
    names = ["run:/a/x.run", "run:/b/x.run", "run:/b/y.run"]
    assert short_names(names) == {names[0]: names[0], names[1]: names[1], names[2]: "run:y.run"}


def test_a_page_calls_a_system_the_same_everywhere():
    whole = "run:/data/runs/mine.run"
    compared = [{"a": whole, "b": "bm25", "measure": "ndcg@10", "difference": 0.1, "interval": [0.0, 0.2], "p": 0.01}]
    made = results(
        systems=[system("bm25", "baseline", retention=None), system(whole, "baseline", retention=None)],
        comparisons=compared,
        sides=["bm25", whole],
        taught_by=None,
        curves={},
    )
    short = with_short_names(made)
    assert [one.name for one in short.systems] == ["bm25", "run:mine.run"] == short.sides
    assert short.comparisons[0]["a"] == "run:mine.run"
    assert "/data/runs" not in page_text(made)
