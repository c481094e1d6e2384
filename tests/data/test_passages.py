"""Documents cut into passages."""

from itertools import pairwise

import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, load_collection
from retrodistill.data.parents import PassageSettings
from retrodistill.data.passages import cut, with_passages

LONG = "Cats sleep all day. They wake at night! Then they hunt mice. Mice are quick. Few are caught."


@pytest.fixture
def long() -> Collection:
    documents = {"a": ("Cats", LONG), "b": ("", "Dogs bark."), "c": ("Empty", "")}
    return Collection.from_parts("long", documents, {"q": "mice"}, {"test": {"q": {"a": 2, "b": 0, "x": 1}}})


class TestCutting:
    def test_whole_sentences_are_packed(self):
        assert cut(LONG, 8, 0) == [
            "Cats sleep all day. They wake at night!",
            "Then they hunt mice. Mice are quick.",
            "Few are caught.",
        ]

    def test_the_last_sentences_are_repeated(self):
        passages = cut(LONG, 8, 4)
        assert passages == [
            "Cats sleep all day. They wake at night!",
            "They wake at night! Then they hunt mice.",
            "Then they hunt mice. Mice are quick.",
            "Mice are quick. Few are caught.",
        ]

    def test_no_sentence_is_repeated_that_is_longer_than_the_overlap(self):
        assert cut(LONG, 8, 2) == cut(LONG, 8, 0)

    def test_every_passage_has_something_new(self):
        passages = cut("A b. C d. E f. G h. I j k l m n.", 6, 5)
        assert all(not after.startswith(before) and after not in before for before, after in pairwise(passages))
        assert passages[-1].endswith("I j k l m n.")

    def test_a_sentence_that_is_too_long_is_cut_at_words(self):
        words = [f"w{number}" for number in range(25)]
        parts = [part.split() for part in cut(" ".join(words), 10, 3)]
        assert [len(part) for part in parts] == [10, 10, 10, 4]
        assert [part[0] for part in parts] == ["w0", "w7", "w14", "w21"]
        assert parts[-1][-1] == "w24"

    def test_nothing_is_lost_without_overlap(self):
        text = " ".join(f"word{number}" + "." * (number % 7 == 6) for number in range(200))
        assert " ".join(cut(text, 13, 0)).split() == text.split()

    def test_characters_count_where_words_have_no_spaces(self):
        text = "猫整天睡觉晚上醒来然后抓老鼠"
        assert cut(text, 5, 0) == [text[start : start + 5] for start in range(0, len(text), 5)]

    def test_endless_words_count_by_their_characters(self):
        passages = cut("x" * 1000, 5, 0)
        assert "".join(passages) == "x" * 1000
        assert max(map(len, passages)) == 200

    def test_an_empty_text_is_a_passage(self):
        assert cut("", 10, 2) == [""]


class TestACollectionOfPassages:
    def test_documents_are_passages_under_the_documents_title(self, long):
        cats = with_passages(long, "8,0").documents
        assert cats.ids == ["a#1", "a#2", "a#3", "b#1", "c#1"]
        assert cats["a#3"] == "Cats Few are caught."
        assert cats["c#1"] == "Empty"

    def test_it_knows_the_documents(self, long):
        cut_up = with_passages(long, "8,0")
        assert cut_up.parents.rows.tolist() == [0, 0, 0, 1, 2]
        assert cut_up.parents.ids.to_pylist() == ["a", "b", "c"]
        assert cut_up.whole.documents.ids == ["a", "b", "c"]
        assert long.whole is long

    def test_judgments_stay_on_documents(self, long):
        cut_up = with_passages(long, "8,0")
        assert cut_up.relevance("test").to_dict() == {"q": {"a": 2, "b": 0, "x": 1}}
        on_passages = cut_up.passage_labels(cut_up.relevance("test")).to_dict()
        assert on_passages == {"q": {"a#1": 2, "a#2": 2, "a#3": 2, "b#1": 0}}

    def test_another_rule_is_another_collection(self, long):
        prints = {
            with_passages(long, rule).fingerprint for rule in ("8,0", "8,4", "words=8,overlap=0,aggregate=mean@2")
        }
        assert len({long.fingerprint, *prints}) == 4

    def test_it_is_read_from_the_cache(self, long, monkeypatch):
        first = with_passages(long, "8,0")
        monkeypatch.setattr("retrodistill.data.passages.cut", None)
        again = with_passages(long, {"words": 8, "overlap": 0, "aggregate": "mean@2"})
        assert again.documents == first.documents
        assert again.parents.settings.aggregate == "mean@2"

    def test_passages_are_not_cut_again(self, long):
        with pytest.raises(UserError, match="passages already"):
            with_passages(with_passages(long, "8,0"), "4,0")

    def test_queries_that_are_replaced_are_those_of_the_whole(self, long):
        from dataclasses import replace

        other = replace(with_passages(long, "8,0"), qrels={})
        assert other.whole.qrels == {}

    def test_a_folder_is_loaded_in_passages(self, tiny_folder):
        loaded = load_collection(tiny_folder, passages="10,3")
        assert len(loaded.whole.documents) == 60
        assert len(loaded.documents) == len(loaded.parents.rows) > 60
        assert np.diff(loaded.parents.bounds).min() >= 1


class TestSettings:
    @pytest.mark.parametrize("given", ["90,10", "words=90,overlap=10", {"words": 90, "overlap": 10}])
    def test_they_are_written_in_three_ways(self, given):
        assert PassageSettings.of(given).cut == {"words": 90, "overlap": 10}

    @pytest.mark.parametrize(
        ("given", "fact"),
        [
            ("20,20", "overlap"),
            ("120,20,3", "WORDS,OVERLAP"),
            ({"aggregate": "mean@0"}, "mean@3"),
            ({"word": 3}, "words"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, given, fact):
        with pytest.raises(UserError, match=fact):
            PassageSettings.of(given)
