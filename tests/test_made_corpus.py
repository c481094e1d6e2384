import importlib.util
from pathlib import Path

import pytest

from retrodistill import load_collection

pytestmark = pytest.mark.xdist_group("demo")
FILE = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "made_corpus.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("made_corpus", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(module, tmp_path_factory):
    """Two collections of one seed, and one of another, from one reading of the demonstration corpus."""
    parent = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(parent / "cache"))
        for name, seed in (("made", 1), ("again", 1), ("other", 2)):
            module.write_collection(parent / name, 700, seed=seed)
    return parent


def test_the_same_seed_makes_the_same_files(folders):
    files = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    made, again, other = (
        [(folders / name / file).read_bytes() for file in files] for name in ("made", "again", "other")
    )
    assert made == again
    assert not set(made) & set(other)


def test_a_query_is_the_withheld_title_of_its_document(module, folders):
    collection = load_collection(folders / "made")
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
