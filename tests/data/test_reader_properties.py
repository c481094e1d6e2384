"""Readers return what a file says, or name the mistake in one line, whatever bytes there are (Hypothesis)."""

import datetime
import json
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import parse_json, read_json
from retrodistill.core.manifest import Manifest
from retrodistill.core.paths import short_text
from retrodistill.core.yaml_files import read_yaml
from retrodistill.data import load_collection
from retrodistill.data.beir import judgments_in
from retrodistill.data.filters import mask_of, parse_filter, read_filters
from retrodistill.data.records import DOCUMENT_COLUMNS
from retrodistill.data.tables import JUDGMENTS, TABLES, Table, read_table
from retrodistill.encoders.vector_files import read_vectors

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(
    st.sampled_from(["_id", "id", "title", "text", "year", "score", "query-id", "corpus-id"]), JSON
)
NOISE = st.text(st.sampled_from('a0\t\n\r ,"{}[]:\\\0\u2028\ufeffé'), max_size=60).map(str.encode)


@pytest.fixture(scope="module")
def file():
    with tempfile.TemporaryDirectory() as folder:
        yield lambda name, content: _written(Path(folder, name), content)


def _written(path, content):
    path.write_bytes(content)
    return path


def result_of(read, mention):
    """What a function returns; None if it names a mistake, in one line with a mention."""
    try:
        return read()
    except UserError as error:
        mistake = str(error)
    assert mention in mistake
    assert "\n" not in mistake
    return None


class TestCollections:
    @given(documents=st.dictionaries(IDS, st.tuples(TEXT, TEXT), min_size=1, max_size=6), windows=st.booleans())
    def test_json_lines_come_back(self, documents, windows):
        rows = [{"_id": id_, "title": title, "text": text} for id_, (title, text) in documents.items()]
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps(row, ensure_ascii=len(rows) % 2 == 0) for row in rows]
            content = ("\ufeff" * windows) + "".join(line + "\r\n" * windows + "\n" * (not windows) for line in lines)
            Path(folder, "corpus.jsonl").write_bytes(content.encode())
            loaded = load_collection(folder)
        expected = {id_: f"{title} {text}".strip() for id_, (title, text) in documents.items()}
        assert dict(loaded.documents.items()) == expected

    @given(content=st.lists(RECORDS.map(json.dumps)).map("\n".join).map(str.encode) | st.binary(max_size=80) | NOISE)
    @pytest.mark.parametrize("ending", [*TABLES, ".jsonl.gz", ".csv.zst"])
    def test_any_bytes_are_records_or_a_mistake_that_is_named(self, file, ending, content):
        path = file(f"corpus{ending}", content)
        rows = result_of(lambda: list(read_table(path, DOCUMENT_COLUMNS)), str(path))
        assert rows is None or all(isinstance(record, dict) for _, record in rows)

    @given(
        content=st.lists(st.tuples(*[st.text(st.sampled_from('q1é\u0660.-+"'), max_size=4)] * 3), max_size=4).map(
            lambda rows: "\n".join(map("\t".join, rows)).encode()
        )
        | NOISE
    )
    @pytest.mark.parametrize("ending", [ending for ending in JUDGMENTS if ending != ".parquet"])
    def test_any_bytes_are_judgments_or_a_mistake_that_is_named(self, file, ending, content):
        path = file(f"qrels{ending}", content)
        table = Table(path, (path,))
        found = result_of(lambda: list(judgments_in(table)), str(path)) or ()
        assert all(isinstance(row.relevance, int) and row.query_id and row.document_id for row in found)


class TestVectors:
    @given(content=st.lists(st.dictionaries(st.sampled_from(["_id", "vector", "text"]), JSON).map(json.dumps)))
    def test_any_lines_are_vectors_or_a_mistake_that_is_named(self, file, content):
        path = file("vectors.jsonl", "\n".join(content).encode())
        table = result_of(lambda: read_vectors(path, unit=True), str(path))
        assert table is None or len(table.ids) == len(set(table.ids)) == len(table.vectors)

    @given(content=st.binary(max_size=150) | st.binary(max_size=60).map(lambda end: b"\x93NUMPY\x01\x00\x76\x00" + end))
    def test_any_bytes_of_an_array_are_refused_by_name(self, file, content):
        path = file("documents.npy", content)
        file("documents.ids.txt", b"a\nb\n")
        assert result_of(lambda: read_vectors(path, unit=False), "documents") is None


class TestSettings:
    @given(value=JSON)
    def test_plain_values_come_back_from_yaml(self, value):
        assert same(read_yaml(yaml.safe_dump(value), "x"), yaml.safe_load(yaml.safe_dump(value)))

    @given(text=st.text(st.sampled_from("ab:-[]{}&*!|>?,'\"# \n<0.~%@`\t"), max_size=40))
    def test_any_text_is_yaml_or_a_mistake_that_is_named(self, text):
        result_of(lambda: read_yaml(text, "somewhere"), "somewhere")

    @given(content=st.binary(max_size=60))
    def test_any_bytes_are_yaml_and_json_or_a_mistake_that_is_named(self, file, content):
        path = file("x", content)
        result_of(lambda: read_yaml(short_text(path), str(path)), str(path))
        result_of(lambda: read_json(path), str(path))

    @given(value=JSON)
    def test_any_json_is_a_manifest_or_a_mistake_that_is_named(self, file, value):
        path = file("manifest.json", json.dumps(value).encode())
        with pytest.raises(UserError, match=r"manifest\.json"):
            Manifest.read(path.parent)

    @pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "9" * 5000], ids=["lists", "objects", "digits"])
    def test_json_beyond_pythons_limits_is_a_value_error(self, text):
        with pytest.raises(ValueError, match=r"nested|digits"):
            parse_json(text)

    def test_a_key_that_comes_twice_is_refused(self):
        with pytest.raises(UserError, match="'students' comes twice"):
            read_yaml("students: {}\nname: x\nstudents: {}\n", "recipe.yaml")

    def test_a_merged_mapping_may_be_overridden(self):
        assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", "x")["b"] == {"x": 3, "y": 2}

    def test_aliases_that_multiply_are_refused(self):
        levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
        with pytest.raises(UserError, match="aliases"):
            read_yaml("\n".join(["a0: &a0 [x]", *levels]), "x")

    def test_a_value_that_holds_itself_is_refused(self):
        with pytest.raises(UserError, match="alias"):
            read_yaml("a: &a [*a]", "x")


def same(value, other):
    """Equal, NaN included."""
    if isinstance(value, float) and math.isnan(value):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    return len(value) == len(other) and all(map(same, value, other)) if isinstance(value, list) else value == other


TABLE = pa.table(
    {
        "year": [2001, None, -5, 2**62],
        "share": [0.5, None, 1e300, -0.0],
        "lang": ["de", None, "", "é"],
        "open": [True, None, False, True],
        "day": pa.array([datetime.date(2020, 1, 31), None, datetime.date(1, 1, 1), datetime.date(9999, 12, 31)]),
        "tags": [["x", "y"], None, [], ["é"]],
    }
)
COMPARED = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class TestFilters:
    @given(st.sampled_from([*COMPARED]), st.sampled_from(["year", "share"]), st.integers(-(2**62), 2**62))
    def test_numbers_compare_as_in_python(self, operator, field, wanted):
        mask = mask_of(parse_filter({field: {operator: wanted}}, TABLE.schema), TABLE)
        values = TABLE[field].to_pylist()
        wanted = float(wanted) if field == "share" else wanted
        assert mask.tolist() == [value is not None and COMPARED[operator](value, wanted) for value in values]

    @given(st.sampled_from([*COMPARED]), st.sampled_from([0.5, -5.5, 2000.9]))
    def test_a_fraction_compares_with_integers_of_any_size(self, operator, wanted):
        mask = mask_of(parse_filter({"year": {operator: wanted}}, TABLE.schema), TABLE)
        values = TABLE["year"].to_pylist()
        assert mask.tolist() == [value is not None and COMPARED[operator](value, wanted) for value in values]

    @given(st.sampled_from([*COMPARED]), st.sampled_from(["", "de", "é", "z", "\U0001f600"]))
    def test_strings_compare_as_in_python(self, operator, wanted):
        mask = mask_of(parse_filter({"lang": {operator: wanted}}, TABLE.schema), TABLE)
        values = TABLE["lang"].to_pylist()
        assert mask.tolist() == [value is not None and COMPARED[operator](value, wanted) for value in values]

    @given(st.text(st.sampled_from("yearlngopdtsx<>=! \"'{}[]:,.-0129é\0"), max_size=30) | st.text(max_size=10))
    def test_any_text_is_a_filter_or_a_mistake_that_is_named(self, written):
        mask = result_of(lambda: mask_of(read_filters([written], TABLE.schema), TABLE), "filter")
        assert mask is None or len(mask) == TABLE.num_rows

    @given(st.dictionaries(st.sampled_from([*TABLE.column_names, "or", "none"]), JSON, min_size=1, max_size=3))
    def test_any_object_is_a_filter_or_a_mistake_that_is_named(self, given_filter):
        mask = result_of(lambda: mask_of(parse_filter(given_filter, TABLE.schema), TABLE), "")
        assert mask is None or len(mask) == TABLE.num_rows
