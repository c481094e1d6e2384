"""A job whose teacher is behind an API."""

import json

import pytest
import yaml
from api_server import KEY

from retrodistill.core.errors import UserError
from retrodistill.recipes import run_recipe
from retrodistill.recipes.plan import plan_recipe

pytestmark = pytest.mark.usefixtures("given_pace")


@pytest.fixture
def server(server):
    server.key = KEY
    return server


@pytest.fixture
def recipe(server, tiny_folder, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRODISTILL_API_KEY", KEY)
    api = tmp_path / "api.yaml"
    api.write_text(yaml.safe_dump({"url": f"{server.url}/rerank", "model": "m", "request_price": 10}))
    student = {
        "model": "static",
        "stages": [
            {
                "objectives": ["kl"],
                "texts": {"titles": False, "sentences": 0},
                "candidates": {"sources": ["bm25"], "depth": 5},
                "training": {"max_steps": 2},
            }
        ],
    }
    path = tmp_path / "recipe.yaml"
    content = {
        "name": "api",
        "collection": str(tiny_folder),
        "document_encoder": f"dense:{tiny_model}",
        "teacher": [{"model": "bm25", "weight": 0.3}, {"model": f"rerank-api:{api}", "weight": 0.7}],
        "students": {"student": student},
        "evaluation": {"latency_queries": 0, "examples": 0},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_plan_has_the_bill_and_sends_nothing(recipe, server, tmp_path):
    plan = plan_recipe(recipe, tmp_path / "out")
    assert plan.bill.requests == 35  # one per training query that is not held out
    assert plan.bill.cost == pytest.approx(0.35)
    assert plan.to_json()["bill"]["requests"] == 35
    assert not server.requests


def test_results_have_what_was_spent_and_no_key(recipe, server, tmp_path):
    results = run_recipe(recipe, tmp_path / "out")
    [spent] = json.loads((tmp_path / "out" / "results.json").read_text())["spending"].values()
    assert spent == results.spending[f"rerank-api:{tmp_path / 'api.yaml'}"]
    assert spent["requests"] == len(server.requests)
    assert spent["cost"] == pytest.approx(0.01 * spent["requests"])
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)


def test_a_limit_holds_for_all_runs_of_a_job_and_a_later_run_goes_on(recipe, server, tmp_path):
    limited = ["spending.max_requests=7"]
    for _ in range(2):
        with pytest.raises(UserError, match="max_requests"):
            run_recipe(recipe, tmp_path / "out", limited)
    assert len(server.requests) == 7
    run_recipe(recipe, tmp_path / "out")
    assert set(server.pairs.values()) == {1}


def test_the_command_line_limits_requests(recipe, server, tmp_path, capfd):
    out = str(tmp_path / "out")
    assert app_status("--max-requests", "3", "run", str(recipe), "--out", out) == 2
    assert len(server.requests) == 3
    assert "max_requests" in capfd.readouterr().err


def app_status(*arguments):
    from retrodistill.cli import main

    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code
