"""Fields and filters of an index of passages: a passage has the fields of its document."""

import pytest

from retrodistill.data import Collection, Texts
from retrodistill.data.passages import with_passages
from retrodistill.exports import export_index
from retrodistill.exports.index import load_store
from retrodistill.indexes import build_index, load_index

DOCUMENTS = {f"d{row}": f"A star number {row}. A red planet with {row} moons. The sun is far." for row in range(6)}
FIELDS = {f"d{row}": {"year": 2000 + row} for row in range(5)}


@pytest.fixture(scope="module")
def index(tiny_model):
    cut = with_passages(Collection.from_parts("c", DOCUMENTS, {}, {}, FIELDS), "6,0")
    assert len(cut.documents) > 2 * len(DOCUMENTS)
    return build_index(cut, f"dense:{tiny_model}", store_texts=True)


@pytest.mark.parametrize("aggregate", ["max", "mean@2"])
def test_documents_that_pass_are_ranked_as_without_the_others(index, aggregate):
    whole = index.search("red planet", k=6, aggregate=aggregate).to_dict()["0"]
    found = index.search("red planet", k=6, aggregate=aggregate, filter={"year": {">=": 2002}}).to_dict()["0"]
    assert list(found) == [id_ for id_ in whole if id_ in ("d2", "d3", "d4")]
    assert found == pytest.approx({id_: whole[id_] for id_ in found}, abs=1e-5)


def test_by_document_and_none(index):
    assert set(index.search("planet", filter={"document_id": ["d5"]}).to_dict()["0"]) == {"d5"}
    assert len(index.search("planet", filter={"year": 1})) == 0


def test_fields_of_documents_and_passages_also_when_loaded_and_changed(index, tmp_path):
    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    assert loaded.fields_of(["d3#2"])[0]["year"] == loaded.fields_of(["d3"])[0]["year"] == 2003
    loaded.add(Texts.from_pairs([("new", DOCUMENTS["d1"])]), {"new": {"year": 2050}})
    loaded.remove(["d1"])
    assert loaded.columns.num_rows == len(loaded)
    assert set(loaded.search("planet", filter={"year": {">": 2003}}).to_dict()["0"]) == {"d4", "new"}
    assert loaded.fields_of(["new#1"])[0] == {"text": index.fields_of(["d1#1"])[0]["text"], "year": 2050}


def test_documents_that_are_left_out_take_no_fields_with_them(tiny_model):
    documents = {"blank": "\u200b", "greek": "καλημέρα. κόσμε.", **DOCUMENTS}
    collection = Collection.from_parts("c", documents, {}, {}, {**FIELDS, "blank": {"year": 1}, "greek": {"year": 2}})
    index = build_index(with_passages(collection, "6,0"), f"dense:{tiny_model}")
    assert index.document_ids == list(DOCUMENTS)
    assert all(index.fields_of([f"{id_}#1"]) == [FIELDS.get(id_, {})] for id_ in DOCUMENTS)
    assert index.changes(collection) is None


def test_exported(index, tmp_path):
    export_index(index, f"parquet:{tmp_path / 'p'}", None, {"texts": True})
    store = load_store(f"parquet:{tmp_path / 'p'}", index.queries)
    given = {"year": {"<": 2002}}
    assert store.search("planet", filter=given).to_dict() == index.search("planet", filter=given).to_dict()
    assert store.fields_of(["d3#1"]) == index.fields_of(["d3#1"])
