"""Collections without training queries: each packaged recipe is planned, or refused in one line; each kind trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import retrodistill as rd
from retrodistill.candidates import mine
from retrodistill.core.errors import UserError
from retrodistill.recipes import run_recipe
from retrodistill.recipes.loading import recipe_yaml
from retrodistill.recipes.plan import plan_recipe
from retrodistill.runs import write_run
from retrodistill.students.registry import kind_names

pytestmark = [pytest.mark.usefixtures("given_pace"), pytest.mark.slow]

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
NEED_TRAINING_QUERIES = {"disco", "prod", "recorded-teacher", "static-labels", "tas-b"}


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """The tiny collection with documents only, and with its test queries; and both without titles."""
    parent = tmp_path_factory.mktemp("few")
    documents, test = (shutil.copytree(tiny_folder, parent / name) for name in ("documents", "test"))
    shutil.rmtree(documents / "qrels")
    (documents / "queries.jsonl").unlink()
    for split in ("train", "dev"):
        (test / "qrels" / f"{split}.tsv").unlink()
    judged = {line.split("\t")[0] for line in (test / "qrels" / "test.tsv").read_text().splitlines()}
    _rewrite(test / "queries.jsonl", lambda query: query if query["_id"] in judged else None)
    for folder in (documents, test):
        untitled = shutil.copytree(folder, parent / f"{folder.name}-untitled")
        _rewrite(untitled / "corpus.jsonl", lambda document: {**document, "title": ""})
    return parent


def _rewrite(path, change):
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows if row is not None))


@pytest.fixture
def recorded(tiny, tmp_path):
    """A run of the tiny collection's training queries."""
    path = tmp_path / "teacher.run"
    write_run(mine(tiny, "train", ["bm25"], 10), path)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_each_recipe_is_planned_or_refused_in_one_line(path, folders, small_recipe, recorded, tmp_path):
    def planned(name):
        file = tmp_path / f"{name}.yaml"
        file.write_text(recipe_yaml(small_recipe(path, folders / name, recorded)))
        return plan_recipe(file, tmp_path / "out")

    if path.stem in NEED_TRAINING_QUERIES:
        for name in ("documents", "test"):
            with pytest.raises(UserError) as error:
                planned(name)
            assert "\n" not in str(error.value)
    else:
        assert planned("test")


@pytest.mark.parametrize("name", ["test", "test-untitled"])
def test_the_inference_free_recipe_runs(name, folders, small_recipe, recorded, tmp_path):
    path = next(path for path in CONFIGS if path.stem == "sparse-inference-free")
    results = run_recipe(small_recipe(path, folders / name, recorded), tmp_path / "out")
    assert results.system("student").ndcg10 is not None


@pytest.mark.parametrize("kind", sorted(set(kind_names()) - {"hybrid"}))
def test_each_kind_learns_from_documents_without_titles(kind, folders, tiny_model, tmp_path):
    student = "static" if kind == "static" else f"{kind}:{tiny_model}"
    made = rd.distill(
        folders / "documents-untitled",
        f"dense:{tiny_model}",
        student=student,
        document_encoder=f"dense:{tiny_model}",
        training={"max_steps": 1},
        out=tmp_path / "student",
    )
    assert made.name.endswith("student")
