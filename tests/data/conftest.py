import pytest
from small_collection import DOCUMENTS, QUERIES, jsonl


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETRODISTILL_CACHE", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path):
    def make(corpus=None, queries=None, qrels=None, name="small"):
        """Write a BEIR folder; each part is records, or the very text or bytes of the file."""
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        parts = {"corpus.jsonl": DOCUMENTS if corpus is None else corpus}
        parts["queries.jsonl"] = QUERIES if queries is None else queries
        for split, rows in ({"test": "query-id\tcorpus-id\tscore\nq1\td1\t1\n"} if qrels is None else qrels).items():
            parts[f"qrels/{split}.tsv"] = rows
        for file, content in parts.items():
            text = jsonl(content) if isinstance(content, list) else content
            (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return make
