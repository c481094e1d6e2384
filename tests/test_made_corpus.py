import importlib.util
from pathlib import Path

import pytest

from retrodistill import load_collection

FILE = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "made_corpus.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("made_corpus", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(module, tmp_path):
    module.write_collection(tmp_path / "made", 700, seed=1)
    return tmp_path / "made"


def test_the_same_seed_makes_the_same_files(module, folder, tmp_path):
    for name, seed, is_same in (("again", 1, True), ("other", 2, False)):
        module.write_collection(tmp_path / name, 700, seed=seed)
        files = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
        assert {(folder / file).read_bytes() == (tmp_path / name / file).read_bytes() for file in files} == {is_same}


def test_a_query_is_the_withheld_title_of_its_document(module, folder):
    collection = load_collection(folder)
    assert len(collection.documents) == 700
    assert collection.warnings == []
    relevant = collection.relevance("test").to_dict()
    assert len(relevant) == len(collection.queries) == module.QUERIES
    for query, grades in relevant.items():
        (document,) = grades
        assert collection.titles[document] == ""
        words = collection.bodies[document].split()
        assert 60 <= len(words) <= 100
        assert set(collection.queries[query].split()) & set(words)
    assert sum(title != "" for title in collection.titles.texts) == 200
