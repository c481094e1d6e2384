from dataclasses import replace

import pytest

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Qrels
from retrodistill.data.collection import judgments_of


def small(qrels=None, queries=None, documents=None):
    return Collection.from_parts(
        "small",
        documents or {"d1": ("Cats", "They sleep."), "d2": "Dogs bark.", "d3": ""},
        {"q1": "cats", "q2": "dogs", "q3": "birds"} if queries is None else queries,
        {"test": {"q2": {"d2": 1}}, "train": {"q3": {"d1": 0}, "q1": {"d1": 2, "d2": -1}}} if qrels is None else qrels,
    )


class TestDocuments:
    def test_text_is_title_and_text_joined_by_one_space_and_stripped(self):
        collection = small(documents={"a": ("Title", "body"), "b": ("", "body"), "c": ("Title", ""), "d": (" ", " ")})
        assert collection.documents.texts == ["Title body", "body", "Title", ""]
        assert collection.titles["a"] == "Title"
        assert collection.bodies["a"] == "body"

    def test_documents_without_text_are_kept_and_named(self):
        assert small().warnings == ["1 documents have no text ('d3'): they are kept but cannot be retrieved."]

    def test_no_documents_is_an_error(self):
        with pytest.raises(UserError, match="there are no documents"):
            Collection.from_parts("none", {}, {}, {})


class TestJudgmentsOf:
    def test_those_of_the_queries_in_all_splits_and_the_last_of_a_pair(self):
        collection = small(qrels={"train": {"q1": {"d1": 1}, "q2": {"d1": 1}}, "dev": {"q1": {"d2": 2, "d1": 3}}})
        judged = judgments_of(collection.queries.select(["q1", "q3"]), collection.qrels.values())
        assert judged.to_dict() == {"q1": {"d1": 3, "d2": 2}}
        assert judged.fingerprint == Qrels.from_dict({"q1": {"d2": 2, "d1": 3}}).fingerprint
        assert len(judgments_of(collection.queries, [])) == 0


class TestSplits:
    def test_queries_come_in_the_order_of_the_queries_file(self):
        assert small().split("train").ids == ["q1", "q3"]
        assert small().split("test").ids == ["q2"]
        assert list(small().qrels) == ["train", "test"]

    def test_all_and_unjudged(self):
        collection = small(qrels={"test": {"q2": {"d2": 1}}})
        assert collection.split("all").ids == ["q1", "q2", "q3"]
        assert collection.split("unjudged").ids == ["q1", "q3"]

    @pytest.mark.parametrize(
        ("qrels", "expected"),
        [({"train": {"q1": {"d1": 1}}}, ["q1"]), ({"test": {"q1": {"d1": 1}}}, ["q2", "q3"]), ({}, ["q1", "q2", "q3"])],
    )
    def test_auto_is_train_else_unjudged(self, qrels, expected):
        assert small(qrels=qrels).split("auto").ids == expected

    def test_auto_is_empty_where_every_query_is_a_test_query(self):
        everything = {"test": {query: {"d1": 1} for query in ("q1", "q2", "q3")}}
        assert len(small(qrels=everything).split("auto")) == 0

    @pytest.mark.parametrize("name", ["dev", "Train", ""])
    def test_an_absent_split_lists_those_there_are(self, name):
        with pytest.raises(UserError) as caught:
            small().split(name)
        assert str(caught.value) == (
            f"collection small has no split {name!r}; splits: train (2 queries), test (1 queries), all (3 queries)."
        )

    def test_a_split_without_queries_says_so(self):
        with pytest.raises(UserError, match="has no queries in split 'unjudged'"):
            small(qrels={"test": {query: {"d1": 1} for query in ("q1", "q2", "q3")}}).split("unjudged")
        with pytest.raises(UserError, match="has no queries in split 'dev'; splits: all"):
            small(qrels={"dev": {"unheard": {"d1": 1}}}, queries={"q": "x"}).split("dev")

    def test_relevance_of_an_absent_split_lists_judged_ones(self):
        with pytest.raises(UserError, match=r"no judgments for split 'all'; splits: train \(2 queries\), test"):
            small().relevance("all")

    def test_a_pseudo_splits_name_cannot_be_taken(self):
        with pytest.raises(UserError, match=r"called 'all'.*rename it"):
            small(qrels={"all": {"q1": {"d1": 1}}})


class TestJudgments:
    def test_zero_and_negative_grades_are_kept(self):
        assert small().relevance("train").to_dict() == {"q3": {"d1": 0}, "q1": {"d1": 2, "d2": -1}}
        assert len(small().relevance("train")) == 3

    def test_of_a_pair_given_twice_the_last_counts(self):
        assert Qrels.from_rows([("q", "d", 1), ("q", "e", 1), ("q", "d", 2)]).to_dict() == {"q": {"d": 2, "e": 1}}

    def test_unknown_queries_are_dropped_and_unknown_documents_kept_both_counted(self):
        collection = small(qrels={"test": {"q1": {"d1": 1, "gone": 1, "lost": 1}, "nobody": {"d1": 1, "d2": 1}}})
        assert collection.relevance("test").to_dict() == {"q1": {"d1": 1, "gone": 1, "lost": 1}}
        assert collection.warnings[1:] == [
            "test: 2 judgments of 1 unknown queries ('nobody') are dropped.",
            "test: 2 judgments name 2 documents that are not in the corpus ('gone', 'lost'): "
            "they are kept and count against recall, as in beir.",
        ]

    def test_fingerprint_does_not_depend_on_row_order_but_on_grades(self):
        rows = [("q", "d", 1), ("q", "e", 2), ("p", "d", 1)]
        assert Qrels.from_rows(rows).fingerprint == Qrels.from_rows(rows[::-1]).fingerprint
        assert Qrels.from_rows(rows).fingerprint != Qrels.from_rows([*rows, ("q", "d", 2)]).fingerprint


class TestFingerprint:
    def test_covers_documents_queries_and_judgments(self):
        variants = [
            small(),
            small(queries={"q1": "cats", "q2": "dogs", "q3": "bird"}),
            small(documents={"d1": ("Cats", "They sleep!"), "d2": "Dogs bark.", "d3": ""}),
            small(qrels={"test": {"q2": {"d2": 2}}}),
        ]
        assert len({collection.fingerprint for collection in variants}) == 4
        assert small().fingerprint == small().fingerprint


class TestOwnDocuments:
    def make(self, judged=(), same_id="auto"):
        documents = {"1": ("Title", "Stars are suns."), "2": "Bread!", "3": "a cheese", "4": "", "5": "olives"}
        queries = {"1": "stars  are suns", "2": "bread", "3": "cheese", "4": "", "6": "olives"}
        qrels = {split: {query: {document: grade}} for split, query, document, grade in judged}
        made = Collection.from_parts("c", documents, queries, qrels)
        return replace(made, same_id=same_id)

    def test_are_those_with_the_querys_id_and_text(self):
        collection = self.make([("test", "1", "2", 1)])
        assert collection.own_documents(collection.queries.ids) == {"1": "1", "2": "2"}
        assert collection.own_documents(["2", "3", "unknown"]) == {"2": "2"}

    @pytest.mark.parametrize("grade", [1, 0])
    def test_one_that_is_judged_for_the_query_is_an_answer(self, grade):
        collection = self.make([("test", "3", "3", 1), ("train", "2", "2", grade)])
        assert collection.own_documents(collection.queries.ids) == {"1": "1"}

    def test_the_rule_can_be_replaced(self):
        judged = [("test", "2", "2", 1)]
        assert self.make(judged, "keep").own_documents(["1", "2"]) == {}
        assert self.make(judged, "drop").own_documents(["1", "2", "3", "6"]) == {"1": "1", "2": "2", "3": "3"}
        with pytest.raises(UserError, match="drop"):
            self.make(judged, "drops")
