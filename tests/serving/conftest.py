import pytest
from answers import client_of
from topics import FIVE_DOCUMENTS

from retrodistill.data import Collection
from retrodistill.indexes import build_index

FIELDS = {
    "a": {"year": 2019, "tags": ["x"]},
    "b": {"year": 2020, "tags": ["x", "y"]},
    "c": {"year": 2021},
    "d": {"year": 2022, "tags": ["y"]},
}


@pytest.fixture(scope="session")
def small():
    """Five documents with fields, and two judged test queries."""
    queries = {"q1": "star in orbit", "q2": "bread and cheese"}
    qrels = {"test": {"q1": {"b": 1}, "q2": {"c": 1}}}
    return Collection.from_parts("small", FIVE_DOCUMENTS, queries, qrels, FIELDS)


@pytest.fixture(scope="session")
def index_folder(small, tiny_model, tmp_path_factory):
    """An index that stores texts."""
    folder = tmp_path_factory.mktemp("served") / "index"
    build_index(small, f"dense:{tiny_model}", store_texts=True).save(folder)
    return folder


@pytest.fixture
def served():
    """As `client_of`, closed after the test."""
    clients = []

    def start(*places, **options):
        clients.append(client_of(*places, **options))
        return clients[-1]

    yield start
    for client in clients:
        client.server.served.close()


@pytest.fixture
def client(served, index_folder):
    """The index, served."""
    return served(index_folder)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The small collection as a folder."""
    import json

    folder = tmp_path_factory.mktemp("collections") / "small"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": id_, "title": title, "text": text, **FIELDS.get(id_, {})}
        for id_, (title, text) in FIVE_DOCUMENTS.items()
    ]
    queries = [{"_id": "q1", "text": "star in orbit"}, {"_id": "q2", "text": "bread and cheese"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tb\t1\nq2\tc\t1\n")
    return folder
