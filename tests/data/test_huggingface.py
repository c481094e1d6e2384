import json

import pytest
from small_collection import DOCUMENTS, QUERIES, jsonl, left_in

from retrodistill.core.errors import UserError
from retrodistill.data import load_collection
from retrodistill.data.hubs import from_datasets

datasets = pytest.importorskip("datasets")
CARD = """---
configs:
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
%s---
"""
QRELS = """- config_name: default
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: dev.jsonl
"""


def dataset(rows):
    return datasets.Dataset.from_list(rows)


def judged(*rows):
    return dataset([{"query-id": query, "corpus-id": document, "score": score} for query, document, score in rows])


CORPUS, ASKED = dataset([{"title": "", **d} for d in DOCUMENTS]), dataset(QUERIES)


class TestInMemory:
    def test_builds_a_collection(self):
        qrels = {"test": judged(("q1", "d1", 1)), "validation": judged(("q2", "d2", 2), ("q2", "d1", 0))}
        collection = from_datasets(CORPUS, ASKED, qrels, "small")
        assert collection.name == "small"
        assert collection.documents["d1"] == "Cats Cats sleep most of the day."
        assert list(collection.qrels) == ["dev", "test"]
        assert collection.relevance("dev").to_dict() == {"q2": {"d2": 2, "d1": 0}}

    def test_selections_are_followed(self):
        collection = from_datasets(CORPUS.select([2, 0]), ASKED.filter(lambda row: row["_id"] != "q1"), {}, "part")
        assert collection.documents.ids == ["d3", "d1"]
        assert collection.split("auto").ids == ["q2", "q3"]

    def test_integer_ids_and_whole_floats_are_taken(self):
        corpus, queries = dataset([{"_id": 1, "text": "x"}]), dataset([{"_id": 2, "text": "y"}])
        collection = from_datasets(corpus, queries, {"test": judged((2, 1, 1.0))}, "numbers")
        assert collection.relevance("test").to_dict() == {"2": {"1": 1}}

    def test_the_same_content_is_kept_once(self, cache):
        from_datasets(CORPUS, ASKED, {}, "one")
        from_datasets(dataset([{"title": "", **d} for d in DOCUMENTS]), dataset(QUERIES), {}, "two")
        assert len(list(cache.glob("collections/*/"))) == 1

    @pytest.mark.parametrize(
        ("corpus", "queries", "qrels", "message"),
        [
            ([{"_id": "a", "text": "x"}] * 2, QUERIES, [], "c, corpus, row 2: id 'a' is already on row 1"),
            ([{"_id": "a", "text": 3}], QUERIES, [], "c, corpus, row 1: 'text' is 3 (int)"),
            ([{"_id": "a", "body": "x"}], QUERIES, [], "c, corpus, row 1: a document has no 'text'"),
            ([{"name": "a", "text": "x"}], QUERIES, [], "c, corpus, row 1: '_id' is missing (fields: 'name', 'text')"),
            ([{"_id": "a", "text": ["x"]}], QUERIES, [], "c, corpus, row 1: 'text' is ['x']"),
            (DOCUMENTS, [{"_id": "q", "text": None}], [], "c, queries, row 1: 'text' is null"),
            (DOCUMENTS, QUERIES, [("q1", "d1", 0.5)], "c, qrels test, row 1: the score 0.5 is not an integer"),
        ],
    )
    def test_refusals_name_the_part_and_the_row(self, cache, corpus, queries, qrels, message):
        with pytest.raises(UserError) as caught:
            from_datasets(dataset(corpus), dataset(queries), {"test": judged(*qrels)} if qrels else {}, "c")
        assert message in str(caught.value)
        assert left_in(cache) == []

    def test_an_empty_corpus_is_refused(self):
        with pytest.raises(UserError, match="c: the corpus is empty"):
            from_datasets(CORPUS.select([]), ASKED, {}, "c")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A dataset folder as the hub has it; its Arrow cache goes to the test's folder too."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def make(name="pets", qrels=QRELS):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "README.md").write_text(CARD % qrels)
        (folder / "corpus.jsonl").write_text(jsonl([{"title": "", **d} for d in DOCUMENTS]))
        (folder / "queries.jsonl").write_text(jsonl(QUERIES))
        for split, query in (("train", "q1"), ("dev", "q2")):
            row = {"query-id": query, "corpus-id": "d1", "score": 1}
            (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        return folder

    return make


class TestRepositories:
    def test_loads_a_folder_with_configurations(self, repository):
        collection = load_collection(f"hf:{repository()}")
        assert collection.name == "pets"
        assert len(collection.documents) == 3
        assert {split: qrels.to_dict() for split, qrels in collection.qrels.items()} == {
            "train": {"q1": {"d1": 1}},
            "dev": {"q2": {"d1": 1}},
        }

    def test_judgments_may_be_a_repository_of_their_own(self, repository, tmp_path):
        folder = repository(qrels="")
        for name in ("train", "dev"):
            (folder / f"{name}.jsonl").unlink()
        judgments = tmp_path / "pets-qrels"
        judgments.mkdir()
        (judgments / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
        collection = load_collection(f"hf:{folder}")
        assert collection.relevance("test").to_dict() == {"q1": {"d1": 1}}

    def test_without_judgments_the_missing_repository_is_named(self, repository, cache):
        with pytest.raises(UserError, match="pets-qrels"):
            load_collection(f"hf:{repository(qrels='')}")
        assert left_in(cache) == []

    def test_a_folder_of_another_layout_says_what_it_has(self, tmp_path, repository):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "train.jsonl").write_text('{"a": 1}\n')
        with pytest.raises(UserError, match=r"has no configuration 'corpus' \(it has default\)"):
            load_collection(f"hf:{tmp_path / 'other'}")

    def test_no_name_at_all(self):
        with pytest.raises(UserError, match="hf: names no dataset; write hf:<name or folder>"):
            load_collection("hf:")

    def test_offline_is_one_line(self, repository, cache):
        with pytest.raises(UserError) as caught:
            load_collection("hf:BeIR/scifact")
        assert "'BeIR/scifact'" in str(caught.value)
        assert "network" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert left_in(cache) == []


class TestStreams:
    """Data sets that are read in one pass, without the library's copy."""

    def test_iterable_datasets_give_the_same(self):
        qrels = {"test": judged(("q1", "d1", 1))}
        whole = from_datasets(CORPUS, ASKED, qrels, "c")
        streamed = {split: rows.to_iterable_dataset() for split, rows in qrels.items()}
        collection = from_datasets(CORPUS.to_iterable_dataset(), ASKED.to_iterable_dataset(), streamed, "c")
        assert collection.fingerprint == whole.fingerprint

    def test_a_generator_with_other_names(self):
        def rows():
            yield from ({"docid": row["_id"], "text": row["text"]} for row in DOCUMENTS)

        corpus = datasets.IterableDataset.from_generator(rows)
        assert from_datasets(corpus, ASKED, {}, "c").documents.ids == ["d1", "d2", "d3"]

    def test_an_empty_one_is_refused(self):
        empty = datasets.IterableDataset.from_generator(lambda: iter(()))
        with pytest.raises(UserError, match="c: the corpus is empty"):
            from_datasets(empty, ASKED, {}, "c")

    @pytest.mark.parametrize("form", ["hf:{}", "hf-stream:{}"])
    def test_a_folder_leaves_no_copy_in_the_library_s_cache(self, repository, tmp_path, form):
        assert len(load_collection(form.format(repository())).documents) == 3
        assert list((tmp_path / "hf").rglob("*.arrow")) == []

    def test_parquet_parts_of_a_folder(self, repository):
        folder = repository()
        (folder / "corpus.jsonl").unlink()
        (folder / "corpus").mkdir()
        for row in DOCUMENTS:
            dataset([{"title": "", **row}]).to_parquet(folder / "corpus" / f"{row['_id']}.parquet")
        for name in ("queries", "train", "dev"):
            datasets.Dataset.from_json(str(folder / f"{name}.jsonl")).to_parquet(folder / f"{name}.parquet")
        card = (folder / "README.md").read_text().replace("corpus.jsonl", "corpus/*.parquet")
        (folder / "README.md").write_text(card.replace(".jsonl", ".parquet"))
        assert load_collection(f"hf:{folder}").documents.ids == ["d1", "d2", "d3"]

    def test_a_changed_file_is_read_anew(self, repository):
        folder = repository()
        before = load_collection(f"hf:{folder}")
        (folder / "queries.jsonl").write_text(jsonl([*QUERIES, {"_id": "q4", "text": "fish"}]))
        assert len(load_collection(f"hf:{folder}").queries) == len(before.queries) + 1
