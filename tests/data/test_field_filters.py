"""Filters against an oracle in plain Python, what the command line writes, and refusals."""

import datetime
import operator
import random

import pyarrow as pa
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data.fields import fields_table
from retrodistill.data.filters import mask_of, parse_filter, read_filters

DAYS = [datetime.date(2020, 1, day) for day in (1, 2, 3)]
VALUES = {
    "n": [-1, 0, 2, 2**53 + 1],
    "f": [-0.5, 0.0, 1.5],
    "b": [True, False],
    "s": ["", "a", "b", "é"],
    "d": DAYS,
    "t": [datetime.datetime(2020, 1, 1, hour, tzinfo=datetime.UTC) for hour in (0, 1)],
    "l": [[], ["a"], ["a", "b"], ["é"]],
    "m": [[1], [1, 2], []],
}
ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def passes(record, given):
    """Whether a record passes, as the guide describes it."""
    return all(
        any(passes(record, part) for part in wanted)
        if name == "or"
        else all(holds(record.get(name), word, value) for word, value in wanted.items())
        for name, wanted in given.items()
    )


def holds(own, word, value):
    if word in ("exists", "null"):
        return (own is None) == (value if word == "null" else not value)
    if own is None:
        return False
    mine, wanted = own if isinstance(own, list) else [own], value if isinstance(value, list) else [value]
    if word in ORDER:
        return ORDER[word](own, value)
    return any(item in wanted for item in mine) == (word in ("==", "in", "contains"))


def random_filter(draw, depth=1):
    given = {}
    for name in draw.sample(sorted(VALUES), draw.randint(0, 2)):
        values = [item for own in VALUES[name] for item in (own if isinstance(own, list) else [own])]
        words = ["==", "!=", "in", "not in", "exists", "null"]
        words += ["contains"] if name in "lm" else [] if name == "b" else list(ORDER)
        word = draw.choice(words)
        value = draw.choice(values)
        if word in ("in", "not in"):
            value = draw.sample(values, draw.randint(0, 2))
        given[name] = {word: draw.random() < 0.5 if word in ("exists", "null") else value}
    if depth and draw.random() < 0.4:
        given["or"] = [random_filter(draw, depth - 1) for _ in range(2)]
    return given


def random_table(draw, rows):
    records = {
        str(row): {name: draw.choice(values) for name, values in VALUES.items() if draw.random() < 0.8}
        for row in range(rows)
    }
    return fields_table(records, records)[0], list(records.values())


@pytest.mark.parametrize("seed", range(4))
def test_random_filters_pass_what_the_oracle_passes(seed):
    draw = random.Random(seed)
    table, records = random_table(draw, 40)
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 20), table.slice(27)])
    for _ in range(60):
        given = random_filter(draw)
        expected = [passes(record, given) for record in records]
        assert mask_of(parse_filter(given, pieces.schema), pieces).tolist() == expected, given


TABLE = fields_table(
    {
        "0": {"year": 2019, "lang": "de", "tags": ["x", "y"], "by": "A B", "a b": 1.5, "day": DAYS[0], "ok": True},
        "1": {"year": 2021, "lang": "fr", "tags": [], "by": "Smith, John", "a b": 2, "day": DAYS[1], "ok": False},
        "2": {"tags": ["z"]},
    },
    "012",
)[0]


def rows_of(given):
    parsed = read_filters(given, TABLE.schema) if isinstance(given, list) else parse_filter(given, TABLE.schema)
    return [row for row, passed in enumerate(mask_of(parsed, TABLE)) if passed]


class TestMappings:
    @pytest.mark.parametrize(
        ("given", "rows"),
        [
            ({}, [0, 1, 2]),
            ({"lang": "de"}, [0]),
            ({"lang": ["de", "fr"], "year": {">": 2019, "<=": 2021}}, [1]),
            ({"lang": None}, [2]),
            ({"tags": "x"}, [0]),
            ({"year": 2019.5}, []),
            ({"year": {">": 2019.5}}, [1]),
            ({"a b": 2}, [1]),
            ({"day": {">=": "2020-01-02"}}, [1]),
            ({"or": [{"year": 2021}, {"tags": {"contains": "z"}}]}, [1, 2]),
        ],
    )
    def test_values_lists_and_operators(self, given, rows):
        assert rows_of(given) == rows


class TestWritten:
    @pytest.mark.parametrize(
        ("written", "rows"),
        [
            (["year>=2020"], [1]),
            (["year = 2019"], [0]),
            (["year==2019", "lang=fr"], []),
            (["year<2020.5"], [0]),
            (["lang in de, fr"], [0, 1]),
            (["lang  not in de"], [1]),
            (["tags contains x"], [0]),
            (["tags != x"], [1, 2]),
            (['by = "A B"'], [0]),
            (["by = A B"], [0]),
            (["by = Smith, John"], [1]),
            (['by in "Smith, John",x'], [1]),
            (['"a b" > 1.75'], [1]),
            (["day<=2020-01-01"], [0]),
            (["ok=true"], [0]),
            (["year exists"], [0, 1]),
            (["year null"], [2]),
            (['{"or": [{"year": 2019}, {"lang": "fr"}]}'], [0, 1]),
        ],
    )
    def test_conditions(self, written, rows):
        assert rows_of(written) == rows


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "facts"),
        [
            ({"yaer": 1}, ["'yaer'", "Did you mean 'year'", "tags (list of strings)", "day (date)"]),
            ({"year": "2020"}, ["'year'", "'2020'", "year (integer)"]),
            ({"year": True}, ["True"]),
            ({"year": 2**63}, [str(2**63)]),
            ({"year": {">=": None}}, ["None"]),
            ({"year": {"=>": 1}}, ["'=>'", ">="]),
            ({"year": {}}, ["'year'"]),
            ({"year": {"in": 3}}, ["list"]),
            ({"year": {"==": [3]}}, ["'in'"]),
            ({"year": {"exists": 1}}, ["true or false"]),
            ({"year": {"contains": 3}}, ["'contains'", "integer"]),
            ({"tags": {"<": "x"}}, ["'<'", "list of strings"]),
            ({"ok": {"<": True}}, ["boolean"]),
            ({"a b": float("nan")}, ["nan"]),
            ({"day": "2020"}, ["2020-01-31"]),
            ({"day": datetime.datetime(2020, 1, 1)}, ["2020-01-31"]),
            ({"lang": "\ud83d"}, ["half a character"]),
            ({"or": []}, ["'or'"]),
            (["year"], ["'year'"]),
            (["lang in"], ["'lang in'"]),
            (["year >= x"], ["'x'"]),
            (["{"], ["JSON"]),
        ],
    )
    def test_the_message_is_one_line_with_the_facts(self, given, facts):
        with pytest.raises(UserError) as caught:
            rows_of(given)
        assert "\n" not in str(caught.value)
        for fact in facts:
            assert fact in str(caught.value)

    def test_another_type_is_named(self):
        with pytest.raises(UserError, match="list"):
            parse_filter(["year>3"], TABLE.schema)
