"""Near duplicates of test queries, against a comparison of all pairs."""

import random

import pytest

from retrodistill.data import Collection, Texts, leaks
from retrodistill.data.leaks import ExcludedQueries, excluded_queries, leak_warning, without_leaks, words_of


def texts(*given):
    return Texts.from_pairs((f"{number}", text) for number, text in enumerate(given))


def collection(train, test):
    queries = {f"train{n}": text for n, text in enumerate(train)} | {f"test{n}": text for n, text in enumerate(test)}
    qrels = {
        "train": {f"train{n}": {"d": 1} for n in range(len(train))},
        "test": {f"test{n}": {"d": 1} for n in range(len(test))},
    }
    return Collection.from_parts("small", {"d": "a document"}, queries, qrels)


class TestExact:
    def test_by_normalized_text_and_by_id(self):
        excluded = ExcludedQueries(Texts.from_pairs([("2", "what  is a cat"), ("3", "dogs")]), "exact")
        found = excluded.leaks_in(Texts.from_pairs([("1", "What is a CAT?"), ("3", "birds"), ("4", "what is cat")]))
        assert [(leak.train_id, leak.test_id, leak.is_exact) for leak in found] == [("1", "2", True), ("3", "3", True)]

    @pytest.mark.parametrize("rule", ["near", "exact"])
    def test_texts_without_words_are_not_alike(self, rule):
        assert ExcludedQueries(Texts.from_pairs([("a", "!!"), ("b", "")]), rule).leaks_in(texts("???", "")) == []


class TestNear:
    def test_three_words_of_five_are_near_and_four_of_seven_are_not(self):
        excluded = ExcludedQueries(texts("a b c d", "one two three four five six seven"))
        near = Texts.from_pairs([("x", "A, b: c; e"), ("y", "one two three four")])
        assert [(leak.train_id, leak.test_id, leak.is_exact) for leak in excluded.leaks_in(near)] == [("x", "0", False)]

    def test_repeated_words_count_once(self):
        assert words_of("The cat, the CAT!") == {"the", "cat"}

    def test_characters_are_the_words_of_scripts_without_spaces(self):
        assert words_of("\u732b\u3068\u72ac 2x") == {"\u732b", "\u3068", "\u72ac", "2x"}

    def test_the_most_similar_test_query_is_named_the_first_of_equals(self):
        excluded = ExcludedQueries(texts("a b c d e", "a b c d", "d c b a"))
        assert [leak.test_id for leak in excluded.leaks_in(Texts.from_pairs([("x", "a b c d f")]))] == ["1"]

    @pytest.mark.parametrize("seed", range(5))
    def test_the_same_as_comparing_all_pairs(self, seed):
        drawn = random.Random(seed)
        words = [f"w{number}" for number in range(12)]

        def draw(count):
            return [" ".join(drawn.choices(words, k=drawn.randint(1, 9))) for _ in range(count)]

        train, test = draw(300), draw(40)
        sets = [set(text.split()) for text in test]
        expected = {
            f"train{row}"
            for row, text in enumerate(train)
            if any(5 * len(other & set(text.split())) >= 3 * len(other | set(text.split())) for other in sets)
        }
        found = leaks(collection(train, test))
        assert {leak.train_id for leak in found} == expected
        assert 0 < len(expected) < len(train)

    def test_only_exact_ones_with_the_other_rule(self):
        both = collection(["a b c e", "A B C D"], ["a b c d"])
        assert [leak.train_id for leak in leaks(both)] == ["train0", "train1"]
        assert [leak.train_id for leak in leaks(both, rule="exact")] == ["train1"]


def test_what_is_left_keeps_its_order():
    excluded = excluded_queries(collection(["x"], ["a b c d"]))
    kept, found = without_leaks(texts("one", "a b c d e", "two"), excluded)
    assert (kept.texts, [leak.train_id for leak in found]) == (["one", "two"], ["1"])
    assert without_leaks(texts("one"), None)[0].texts == ["one"]


def test_no_test_split_excludes_nothing():
    parts = Collection.from_parts("small", {"d": "a document"}, {"q": "a"}, {"train": {"q": {"d": 1}}})
    assert excluded_queries(parts) is None


def test_the_warning_counts_both_kinds():
    found = leaks(collection(["a b c e", "A B C D", "other"], ["a b c d"]))
    assert leak_warning(found) == (
        "2 training queries are left out: 1 are test queries, by id or by text and 1 share at least 60% of their words "
        "with one ('a b c e', 'A B C D')."
    )
    assert leak_warning([]) is None


def test_the_rule_is_part_of_the_fingerprint():
    queries = texts("a b")
    assert ExcludedQueries(queries).fingerprint != ExcludedQueries(queries, "exact").fingerprint
