import pytest

from retrodistill.data import Collection


@pytest.fixture
def space(tiny_model):
    return f"dense:{tiny_model}"


@pytest.fixture
def unjudged():
    """A collection without any judgment."""
    documents = {f"d{number}": f"star number {number} in galaxy {number % 3}" for number in range(12)}
    return Collection.from_parts("unjudged", documents, {"a": "star 3", "b": "galaxy 2"}, {})


@pytest.fixture
def small():
    """Make small collections: a name, and by how much its first query's relevant document is shifted."""

    def make(name, shift=0, split="test"):
        documents = {f"d{number}": f"star{number} planet comet" for number in range(6)}
        queries = {f"q{number}": f"star{number}" for number in range(3)}
        judged = {f"q{number}": {f"d{(number + shift * (number == 0)) % 6}": 1} for number in range(3)}
        return Collection.from_parts(name, documents, queries, {split: judged})

    return make
