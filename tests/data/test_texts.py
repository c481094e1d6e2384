import numpy as np
import pyarrow as pa
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Texts
from retrodistill.data.texts import column_digest

PAIRS = [("a", "first"), ("b", ""), ("c", "dritte Ü"), ("d", "fourth")]


def chunked(pairs, size):
    pieces = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    tables = [pa.table({"id": [p[0] for p in piece], "text": [p[1] for p in piece]}) for piece in pieces]
    return Texts(pa.concat_tables(tables))


class TestMapping:
    def test_looks_up_by_id_and_keeps_order(self):
        texts = Texts.from_pairs(PAIRS)
        assert (len(texts), texts.ids, texts.texts) == (4, ["a", "b", "c", "d"], [text for _, text in PAIRS])
        assert texts["c"] == "dritte Ü"
        assert dict(texts) == dict(PAIRS)
        assert "b" in texts
        assert "x" not in texts

    def test_an_unknown_id_is_a_key_error(self):
        with pytest.raises(KeyError):
            Texts.from_pairs(PAIRS)["x"]

    def test_positions_are_minus_one_where_unknown(self):
        positions = Texts.from_pairs(PAIRS).positions(["d", "x", "a"])
        assert positions.dtype == np.int64
        assert positions.tolist() == [3, -1, 0]
        assert Texts.from_pairs(PAIRS).position("b") == 1

    def test_a_few_positions_of_many_do_not_hold_all_ids(self, monkeypatch):
        pairs = [(f"d{number}", "x") for number in range(200)]
        monkeypatch.setattr("retrodistill.data.texts._MANY", 100)
        large = chunked(pairs, 64)
        assert large.positions(["d199", "x", "d0", "d70", "d199"]).tolist() == [199, -1, 0, 70, 199]
        assert large.select(["d130", "d2"]).ids == ["d130", "d2"]
        assert "_places" not in large.__dict__
        assert "ids" not in large.__dict__

    @pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 99), (3, 1), (-2, 4), (0, 0)])
    def test_slices_as_a_list_does(self, start, stop):
        assert chunked(PAIRS, 3).slice(start, stop) == [text for _, text in PAIRS][start:stop]

    def test_the_column_of_texts_is_a_sequence_of_strings(self):
        table = pa.table({"id": ["a", "b", "c"], "text": pa.chunked_array([["x", "y"], ["z"]])})
        column = Texts(table).column
        assert list(column) == column == ["x", "y", "z"] == column[:]
        assert (column[-1], column[np.int64(1)], column[1:], column[::-1]) == ("z", "y", ["y", "z"], ["z", "y", "x"])
        assert column not in (["x", "y"], "xyz")
        with pytest.raises(IndexError):
            column[3]

    def test_an_empty_one_is_usable(self):
        empty = Texts.from_pairs([])
        assert (len(empty), empty.ids, empty.slice(0, 5), empty.positions(["a"]).tolist()) == (0, [], [], [-1])
        assert len(empty.select([])) == 0
        assert empty.fingerprint == (empty + empty).fingerprint

    def test_nulls_are_refused(self):
        with pytest.raises(UserError, match="1 ids or texts are null"):
            Texts(pa.table({"id": ["a"], "text": pa.array([None], pa.string())}))


class TestSelect:
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_keeps_the_given_order_across_chunks(self, size):
        selected = chunked(PAIRS, size).select(["d", "a", "c"])
        assert list(selected.items()) == [PAIRS[3], PAIRS[0], PAIRS[2]]

    def test_many_rows_agree_with_arrows_own_take(self):
        texts = chunked([(str(n), f"text {n}") for n in range(1000)], 37)
        rows = np.random.default_rng(0).permutation(1000)[:400]
        assert texts.select([str(row) for row in rows]).table.equals(texts.table.take(pa.array(rows)))

    def test_an_unknown_id_is_named(self):
        with pytest.raises(UserError, match="no text with id 'x': 1 of 2 ids"):
            Texts.from_pairs(PAIRS).select(["a", "x"])


class TestJoining:
    def test_concatenates(self):
        joined = Texts.from_pairs(PAIRS[:2]) + Texts.from_pairs(PAIRS[2:])
        assert list(joined.items()) == PAIRS

    def test_duplicate_ids_are_refused(self):
        with pytest.raises(UserError, match="id 'b' appears more than once"):
            Texts.from_pairs(PAIRS[:2]) + Texts.from_pairs(PAIRS[1:])
        with pytest.raises(UserError, match="id 'a' appears more than once"):
            Texts.from_pairs([("a", "x"), ("a", "y")])


class TestFingerprint:
    def test_does_not_depend_on_chunks_or_string_type(self):
        whole = Texts.from_pairs(PAIRS).fingerprint
        assert {chunked(PAIRS, size).fingerprint for size in (1, 2, 3, 4)} == {whole}
        assert Texts(Texts.from_pairs([("z", "z"), *PAIRS]).table.slice(1)).fingerprint == whole

    def test_depends_on_ids_texts_order_and_where_one_text_ends(self):
        variants = [
            PAIRS,
            PAIRS[::-1],
            [("A", "first"), *PAIRS[1:]],
            [("a", "firs"), ("b", "t"), *PAIRS[2:]],
            PAIRS[:3],
        ]
        assert len({Texts.from_pairs(pairs).fingerprint for pairs in variants}) == len(variants)

    def test_null_is_not_the_empty_text(self):
        assert column_digest([pa.array(["a", None])]) != column_digest([pa.array(["a", ""])])
