import datetime
import math
from collections import namedtuple
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from small_collection import DOCUMENTS, left_in

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, load_collection
from retrodistill.data.fields import FieldWriter, fields_table, type_name
from retrodistill.data.texts import BATCH

DAY, NOON = datetime.date(2020, 1, 31), datetime.datetime(2020, 1, 31, 12)


def column(*values):
    """The table of one field `x`, its type, and the warnings."""
    rows = {str(row): {"x": value} for row, value in enumerate(values)}
    table, warnings = fields_table(rows, rows)
    return table["x"].to_pylist(), type_name(table.schema.field("x").type), warnings


class TestTypes:
    @pytest.mark.parametrize(
        ("values", "kept", "kind"),
        [
            ([1, None, -3], [1, None, -3], "integer"),
            ([1, 2.5], [1.0, 2.5], "float"),
            ([1.5, math.nan], [1.5, None], "float"),
            ([Decimal("1.5")], [1.5], "float"),
            ([True, None], [True, None], "boolean"),
            ([np.int64(3), 4], [3, 4], "integer"),
            ([np.array(["a"])], [["a"]], "list of strings"),
            (["a", "", None], ["a", "", None], "string"),
            ([["a", "b"], [], None], [["a", "b"], [], None], "list of strings"),
            ([[]], [[]], "list of strings"),
            ([[], [1, 2]], [[], [1, 2]], "list of integers"),
            ([("a", None)], [["a", None]], "list of strings"),
            (["2020-01-31", None], [DAY, None], "date"),
            ([DAY], [DAY], "date"),
            (["2020-01-31", "2020-01-31T12:00:00"], [NOON.replace(hour=0), NOON], "time"),
            (["2020-01-31T12:00:00Z", "2020-01-31T14:00:00+02:00"], [NOON.replace(tzinfo=datetime.UTC)] * 2, "time"),
            (["2020-01-31", "soon"], ["2020-01-31", "soon"], "string"),
            (["2020"], ["2020"], "string"),
            ([{"a": [1, "é"]}], ['{"a": [1, "é"]}'], "string"),
            ([[["a"]]], ['[["a"]]'], "string"),
        ],
    )
    def test_of_a_column(self, values, kept, kind):
        assert column(*values) == (kept, kind, [])

    @pytest.mark.parametrize(
        ("values", "kept", "named"),
        [
            ([1, "a", True], ["1", "a", "true"], "x (boolean, integer, string)"),
            (["a", ["b"]], ["a", '["b"]'], "x (list of strings, string)"),
            ([DAY, 1], ["2020-01-31", "1"], "x (date, integer)"),
            ([2**63, 1], [str(2**63), "1"], "x (integer, string)"),
        ],
    )
    def test_values_of_several_types_become_strings_with_one_warning(self, values, kept, named):
        texts, kind, warnings = column(*values)
        assert (texts, kind, len(warnings)) == (kept, "string", 1)
        assert named in warnings[0]

    @pytest.mark.parametrize("value", [b"x", [0.5, 1], {"a": b"x"}])
    def test_bytes_and_vectors_are_left_out_and_named(self, value):
        table, warnings = fields_table({"a": {"x": value, "y": 1}}, ["a"])
        assert table.column_names == ["y"]
        assert "'x'" in warnings[0]

    def test_types_follow_from_all_batches(self):
        rows = {str(row): {"n": row, "s": "2020-01-31"} for row in range(BATCH)}
        rows |= {"float": {"n": 0.5}, "last": {"n": 1, "s": "x", "late": [1]}}
        table, warnings = fields_table(rows, rows)
        assert table.num_rows == len(rows)
        assert table.schema.types == [pa.float64(), pa.string(), pa.list_(pa.int64())]
        assert table.slice(BATCH - 1).to_pylist() == [
            {"n": BATCH - 1.0, "s": "2020-01-31", "late": None},
            {"n": 0.5, "s": None, "late": None},
            {"n": 1.0, "s": "x", "late": [1]},
        ]
        assert warnings == []

    def test_numbers_of_earlier_batches_become_strings_too(self):
        rows = {str(row): {"n": row} for row in range(BATCH)} | {"last": {"n": "x"}}
        assert fields_table(rows, rows)[0]["n"].to_pylist()[-2:] == [str(BATCH - 1), "x"]

    def test_a_record_holds_no_more_than_256_fields(self):
        table, warnings = fields_table({"a": {f"f{number}": 1 for number in range(300)}}, ["a"])
        assert table.num_columns == 256
        assert "44 fields" in warnings[0]


class TestFolders:
    def test_other_keys_and_those_of_metadata_are_fields(self, make_folder):
        metadata = [{"url": "u1", "stars": 2}, {"url": "u2"}, {}]
        corpus = [
            {**d, "year": 2000 + n, "metadata": m} for n, (d, m) in enumerate(zip(DOCUMENTS, metadata, strict=True))
        ]
        for _ in range(2):  # from the files, and from the cache
            fields = load_collection(make_folder(corpus=corpus, name=f"f{_}")).fields
            assert fields.to_pydict() == {
                "year": [2000, 2001, 2002],
                "url": ["u1", "u2", None],
                "stars": [2, None, None],
            }

    def test_none_without_any(self, make_folder):
        corpus = [{**document, "metadata": {}} for document in DOCUMENTS]
        assert load_collection(make_folder(corpus=corpus)).fields is None

    def test_a_key_of_metadata_that_the_document_has_is_named(self, make_folder):
        corpus = [{**DOCUMENTS[0], "year": 1, "metadata": {"year": 2, "title": "x"}}]
        collection = load_collection(make_folder(corpus=corpus, qrels={}))
        assert collection.fields.to_pydict() == {"year": [1]}
        assert "'year', 'title'" in collection.warnings[0]

    def test_a_string_that_is_not_text_is_refused_by_line(self, make_folder, cache):
        corpus = '{"_id": "a", "text": "x"}\n{"_id": "b", "text": "x", "tags": ["\\ud83d"]}\n'
        with pytest.raises(UserError, match="line 2: 'tags' holds half a character"):
            load_collection(make_folder(corpus=corpus))
        assert left_in(cache) == []

    def test_a_changed_field_changes_neither_texts_nor_fingerprint(self, make_folder):
        one, two = ([{**d, "year": year} for d in DOCUMENTS] for year in (1, 2))
        before, after = load_collection(make_folder(one)), load_collection(make_folder(two, name="other"))
        assert before.documents.fingerprint == after.documents.fingerprint
        assert before.fields["year"].to_pylist() == [1, 1, 1]
        assert after.fields["year"].to_pylist() == [2, 2, 2]

    def test_fields_are_memory_mapped(self, make_folder):
        folder = make_folder([{"_id": str(n), "text": "x", "s": "word " * 200} for n in range(5000)])
        load_collection(folder)
        before = pa.total_allocated_bytes()
        assert load_collection(folder).fields.nbytes > 4_000_000
        assert pa.total_allocated_bytes() - before < 50_000


class TestOtherSources:
    def test_columns_of_a_dataset(self, make_folder):
        datasets = pytest.importorskip("datasets")
        from retrodistill.data.hubs import from_datasets

        rows = [{**d, "title": "", "tags": ["a", f"b{n}"], "metadata": {"n": n}} for n, d in enumerate(DOCUMENTS)]
        queries = datasets.Dataset.from_list([{"_id": "q", "text": "x"}])
        collection = from_datasets(datasets.Dataset.from_list(rows), queries, {}, "c")
        expected = {"tags": [["a", "b0"], ["a", "b1"], ["a", "b2"]], "n": [0, 1, 2]}
        assert collection.fields.to_pydict() == expected
        rows[0]["tags"] = ["a"]  # the cache does not return the old ones
        changed = from_datasets(datasets.Dataset.from_list(rows), queries, {}, "c")
        assert changed.fields["tags"][0].as_py() == ["a"]
        assert changed.documents.fingerprint == collection.documents.fingerprint

    def test_attributes_of_irdatasets(self):
        from retrodistill.data.hubs import _ir_documents

        row = namedtuple("Doc", "doc_id title text date authors")("d", "t", "x", "2020-01-31", ("A", "B"))
        dataset = namedtuple("Dataset", "docs_iter")(lambda: iter([row]))
        writer = FieldWriter("w")
        for document in _ir_documents(dataset, "w"):
            writer.append(document.fields, document.place)
        schema, batches, _ = writer.finish()
        assert pa.Table.from_batches(batches, schema).to_pylist() == [{"date": DAY, "authors": ["A", "B"]}]


class TestFromParts:
    def test_by_document_in_their_order(self):
        fields = {"b": {"year": 2}, "a": {"lang": "de"}}
        collection = Collection.from_parts("c", {"a": "x", "b": "y"}, {}, {}, fields)
        assert collection.fields.to_pylist() == [{"lang": "de", "year": None}, {"lang": None, "year": 2}]

    @pytest.mark.parametrize(
        ("fields", "fact"), [({"z": {}}, "'z'"), ({"a": 3}, "int"), ({"a": {"text": "x"}}, "'text'")]
    )
    def test_refusals(self, fields, fact):
        with pytest.raises(UserError, match=fact):
            Collection.from_parts("c", {"a": "x"}, {}, {}, fields)
