import numpy as np
import pyarrow as pa
import pytest
from random_runs import random_scores, ranking

from retrodistill.core.errors import UserError
from retrodistill.data import Texts, texts
from retrodistill.runs import Run, fuse, union
from retrodistill.runs.run import align, look_up

SEEDS = range(5)
EMPTY = Run.from_dict({})


def rows_of(run):
    return [(query, document, score) for query, ids, scores in run for document, score in zip(ids, scores, strict=True)]


class TestConstruction:
    def test_all_ways_give_the_same_rows(self):
        wanted = [("q1", "a", 2.0), ("q1", "b", 1.0), ("q2", "a", -0.5)]
        queries, documents, scores = zip(*wanted, strict=True)
        table = pa.table({"score": scores, "document_id": documents, "more": [1, 2, 3], "query_id": queries})
        found = np.array([[0, 1, -1], [0, -1, -1]])
        matrix = np.array([[2.0, 1.0, -3.4e38], [-0.5, np.nan, -np.inf]])
        runs = [
            Run.from_arrays(queries, documents, scores),
            Run.from_arrays(pa.array(queries), pa.array(documents, pa.large_string()), np.array(scores)),
            Run.from_dict({"q1": {"a": 2.0, "b": 1.0}, "q2": {"a": -0.5}, "q3": {}}),
            Run.from_table(table),
            Run.from_table(pa.concat_tables([table.slice(0, 1), table.slice(1)])),
            Run.from_matrix(["q1", "q2"], ["a", "b"], found, matrix),
        ]
        for run in runs:
            assert rows_of(run) == wanted
            assert run.query_ids == ["q1", "q2"]
            assert run.bounds.tolist() == [0, 2, 3]
            assert run.table.column_names == ["query_id", "document_id", "score"]
        assert len({run.fingerprint for run in runs}) == 1

    def test_empty_places_of_a_matrix_are_dropped_and_never_name_the_last_document(self):
        run = Run.from_matrix(["q1", "q2"], ["a", "b"], np.array([[1, -1], [-1, -1]]), np.array([[0.5, 9], [9, 9]]))
        assert rows_of(run) == [("q1", "b", 0.5)]

    def test_a_matrix_run_does_not_carry_the_corpus(self):
        corpus = [str(number) for number in range(1000)]
        run = Run.from_matrix(["q"], corpus, np.array([[999, 3]]), np.array([[2.0, 1.0]]))
        assert len(run.table["document_id"].chunk(0).dictionary) == 2

    def test_rows_of_a_query_come_together_in_order_of_appearance(self):
        run = Run.from_arrays(["q2", "q1", "q2"], ["a", "a", "b"], [1, 2, 3])
        assert rows_of(run) == [("q2", "a", 1), ("q2", "b", 3), ("q1", "a", 2)]

    @pytest.mark.parametrize("ids", [[1, 10, 2], pa.array([1, 10, 2]), pa.array([1, 10, 2]).dictionary_encode()])
    def test_integer_ids_become_strings(self, ids):
        run = Run.from_arrays(["q"] * 3, ids, [0.0, 0.0, 0.0])
        assert run.document_ids.tolist() == ["1", "10", "2"]

    def test_a_dictionary_that_names_an_id_twice_is_made_whole(self):
        queries = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["q", "q"]))
        assert Run.from_arrays(queries, ["a", "b"], [1, 2]).query_ids == ["q"]
        with pytest.raises(UserError, match="1 pairs appear twice, first query 'q' with document 'a'"):
            Run.from_arrays(queries, ["a", "a"], [1, 2])

    def test_sources_are_kept_through_every_cut(self):
        run = Run.from_arrays(["q", "q"], ["a", "b"], [1, 2], sources=["bm25", "bm25+dense"])
        assert run.top(1).table["sources"].to_pylist() == ["bm25+dense"]
        assert run.filter(np.array([True, False])).table["sources"].to_pylist() == ["bm25"]


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
    def test_a_score_that_is_not_finite_is_named(self, bad):
        with pytest.raises(UserError, match="run e5: 1 scores are NaN or infinite, first query 'q' with document 'b'"):
            Run.from_arrays(["q", "q"], ["a", "b"], [1.0, bad], name="e5")
        table = pa.table({"query_id": ["q", "q"], "document_id": ["a", "b"], "score": pa.array([1.0, bad])})
        with pytest.raises(UserError, match="first query 'q' with document 'b'"):
            Run.from_table(table)
        with pytest.raises(UserError, match="first query 'q' with document 'b'"):
            Run.from_dict({"q": {"a": 1.0, "b": 0.0}}).with_scores(np.array([1.0, bad], dtype=float))

    def test_double_pairs_are_counted_and_the_first_is_named(self):
        with pytest.raises(UserError, match="2 pairs appear twice, first query 'q' with document 'a'"):
            Run.from_arrays(["q", "q", "p", "q"], ["a", "a", "a", "a"], [1, 1, 1, 2])

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ((["q"], ["a", "b"], [1.0]), "columns of different length"),
            ((["q", None], ["a", "b"], [1.0, 2.0]), "1 ids are missing; every row needs both ids"),
            ((["q", 1], ["a", "b"], [1.0, 2.0]), "ids must be strings"),
            ((["q"], ["a"], ["high"]), "scores must be numbers"),
        ],
    )
    def test_columns_that_are_no_run(self, columns, message):
        with pytest.raises(UserError, match=message):
            Run.from_arrays(*columns)

    def test_a_missing_column_is_named(self):
        with pytest.raises(UserError, match="no column 'document_id' among"):
            Run.from_table(pa.table({"query_id": ["q"], "score": [1.0]}))
        with pytest.raises(UserError, match="scores must be numbers"):
            Run.from_table(pa.table({"query_id": ["q"], "document_id": ["a"], "score": ["high"]}))

    def test_rows_of_unknown_ids_are_left_out_with_their_count(self):
        queries, others, documents = (
            Texts.from_pairs((id_, "") for id_ in ids) for ids in (["q1"], ["q2"], ["a", "b"])
        )
        run = Run.from_dict({"q1": {"a": 1, "x": 2, "y": 3}, "q2": {"b": 1}, "q3": {"a": 1}})
        known, line = run.known([queries, others], documents)
        assert known.to_dict() == {"q1": {"a": 1}, "q2": {"b": 1}}
        assert "1 queries ('q3') and 2 documents ('x', 'y')" in line
        again, line = known.known([queries, others], documents)
        assert (len(again), line) == (2, None)

    @pytest.mark.parametrize("scores", [{"q1": {"x": 1}}, {"q3": {"a": 1}}, {"q1": {"x": 1}, "q3": {"a": 1}}])
    def test_a_run_of_unknown_ids_alone_is_refused(self, scores):
        queries, documents = (Texts.from_pairs((id_, "") for id_ in ids) for ids in (["q1"], ["a"]))
        with pytest.raises(UserError, match=r"'(x|q3)'"):
            Run.from_dict(scores).known([queries], documents)

    def test_only_ids_that_stand_in_rows_count_as_unknown(self):
        queries, documents = (Texts.from_pairs((id_, "") for id_ in ids) for ids in (["q1"], ["a"]))
        run = Run.from_dict({"q1": {"a": 1, "x": 2}}).filter(np.array([True, False]))
        assert run.known([queries], documents)[1] is None

    @pytest.mark.parametrize("many", [1, 10**6])  # ids, from which they are looked up in Arrow arrays
    def test_positions_are_those_of_texts(self, many, monkeypatch):
        monkeypatch.setattr(texts, "_MANY", many)
        queries, documents = (Texts.from_pairs((id_, "") for id_ in ids) for ids in (["q2", "q1"], ["y", "x", "a"]))
        run = Run.from_dict({"q1": {"a": 1, "x": 2}, "q2": {"y": 3}})
        rows, columns = run.positions(queries, documents)
        assert (rows.tolist(), columns.tolist()) == ([1, 1, 0], [2, 1, 0])
        with pytest.raises(UserError, match=r"2 document ids are not in the collection \('a', 'x'\)"):
            run.positions(queries, documents.select(["y"]))


class TestRanking:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_ranks_are_the_brute_force(self, seed):
        scores = random_scores(seed)
        run = Run.from_dict(scores)
        wanted = [ranking(scores[query]).index(id_) + 1 for query, ids, _ in run for id_ in ids]
        assert run.ranks.tolist() == wanted
        assert run.ranked().ranks.tolist() == [rank + 1 for _, ids, _ in run for rank in range(len(ids))]

    def test_ties_go_by_id_as_text(self):
        run = Run.from_dict({"q": {"9": 1.0, "10": 1.0, "b": 1.0, "B": 1.0, "é": 1.0, "x": 2.0}})
        assert run.ranked().document_ids.tolist() == ["x", "10", "9", "B", "b", "é"]

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("k", [1, 3, 1000])
    def test_top_k_is_the_brute_force(self, seed, k):
        scores = random_scores(seed)
        top = Run.from_dict(scores).top(k)
        assert top.query_ids == list(scores)
        assert {query: ids.tolist() for query, ids, _ in top} == {
            query: ranking(found)[:k] for query, found in scores.items()
        }
        assert all(
            value == scores[query][id_] for query, found in top.to_dict().items() for id_, value in found.items()
        )

    def test_extreme_scores_keep_their_order(self):
        scores = {"a": 1e308, "b": -1e308, "c": 5e-324, "d": 0.0, "e": 1 + 2**-52, "f": 1.0}
        assert Run.from_dict({"q": scores}).ranked().document_ids.tolist() == list("aefcdb")


class TestCuts:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_select_without_and_filter_are_the_brute_force(self, seed):
        scores = random_scores(seed)
        run = Run.from_dict(scores)
        assert run.select(["q1", "q4", "unknown"]).to_dict() == {q: f for q, f in scores.items() if q in ("q1", "q4")}
        excluded_queries = {query: ranking(found)[0] for query, found in scores.items() if query != "q3"}
        left = {q: {d: s for d, s in found.items() if d != excluded_queries.get(q)} for q, found in scores.items()}
        assert run.without(excluded_queries).to_dict() == {q: found for q, found in left.items() if found}
        positive = {q: {d: s for d, s in found.items() if s > 0} for q, found in scores.items()}
        assert run.filter(run.scores > 0).to_dict() == {q: found for q, found in positive.items() if found}

    def test_an_empty_document_id_is_an_id_like_another(self):
        run = Run.from_dict({"q": {"": 1.0, "a": 2.0}})
        assert run.without({}).to_dict() == run.to_dict()
        assert run.without({"q": ""}).to_dict() == {"q": {"a": 2.0}}

    def test_codes_and_bounds_fit_after_a_cut(self):
        run = Run.from_dict({"q1": {"a": 1}, "q2": {"b": 1, "c": 2}, "q3": {"a": 5}}).select(["q2", "q3"])
        assert (run.query_codes.tolist(), run.bounds.tolist()) == ([0, 0, 1], [0, 2, 3])

    def test_with_scores_keeps_pairs_and_names(self):
        run = Run.from_dict({"q": {"a": 1, "b": 2}}, name="old")
        assert run.with_scores(np.array([5, 4])).to_dict() == {"q": {"a": 5.0, "b": 4.0}}
        assert (run.with_scores(run.scores).name, run.with_scores(run.scores, "new").name) == ("old", "new")
        assert run.renamed("other").name == "other"


class TestFingerprint:
    def test_does_not_depend_on_the_order_of_rows_or_queries_or_on_the_name(self):
        rows = [("q1", "a", 1.0), ("q1", "b", 2.0), ("q2", "a", 2.0), ("q2", "c", 2.0)]
        prints = set()
        for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 0, 1], [2, 0, 3, 1]):
            queries, documents, scores = zip(*(rows[place] for place in order), strict=True)
            prints.add(Run.from_arrays(queries, documents, scores, name=str(order)).fingerprint)
        assert len(prints) == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"q": {"a": 1.0}},
            {"q": {"a": 1.0, "b": 2.0000001}},
            {"q": {"a": 2.0, "b": 1.0}},
            {"p": {"a": 1.0, "b": 2.0}},
        ],
    )
    def test_depends_on_pairs_and_scores(self, other):
        assert Run.from_dict(other).fingerprint != Run.from_dict({"q": {"a": 1.0, "b": 2.0}}).fingerprint

    def test_ids_cannot_run_into_each_other(self):
        assert Run.from_dict({"q\ta": {"b": 1}}).fingerprint != Run.from_dict({"q": {"a\tb": 1}}).fingerprint
        first, second = ({"q": {"a": 1, "bc": 1}}, {"q": {"ab": 1, "c": 1}})
        assert Run.from_dict(first).fingerprint != Run.from_dict(second).fingerprint


class TestEmptyRun:
    def test_behaves_everywhere(self):
        for run in (EMPTY, EMPTY.ranked(), EMPTY.top(5), EMPTY.select(["q"]), EMPTY.without({"q": "a"})):
            assert (len(run), run.query_ids, run.to_dict(), list(run)) == (0, [], {}, [])
            assert run.bounds.tolist() == [0]
        assert EMPTY.fingerprint == Run.from_arrays([], [], []).fingerprint
        assert len(EMPTY.filter(np.zeros(0, dtype=bool)).with_scores(np.zeros(0))) == 0
        assert EMPTY.known([Texts.from_pairs([])], Texts.from_pairs([])) == (EMPTY, None)

    @pytest.mark.parametrize("method", ["zscore", "zscore-per-query", "minmax", "reciprocal-rank"])
    def test_fuses_to_an_empty_run(self, method):
        assert len(fuse([EMPTY, EMPTY], method=method)) == 0

    def test_unites_with_others(self):
        other = Run.from_dict({"q": {"a": 1.0}}, name="other")
        assert len(union([EMPTY, EMPTY])) == 0
        assert union([EMPTY, other]).table["sources"].to_pylist() == ["other"]

    def test_from_a_matrix_of_nothing(self):
        assert len(Run.from_matrix([], ["a"], np.zeros((0, 3), dtype=int), np.zeros((0, 3)))) == 0
        assert len(Run.from_matrix(["q"], [], np.full((1, 3), -1), np.zeros((1, 3)))) == 0


class TestAlign:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_is_the_brute_force(self, seed):
        scores = [random_scores(seed + offset) for offset in (0, 100, 200)]
        pairs, matrix = align([Run.from_dict(one) for one in scores])
        wanted = {(q, d): [one.get(q, {}).get(d, np.nan) for one in scores] for q, d in all_pairs(scores)}
        keys = [(query, document) for query, document, _ in rows_of(pairs)]
        assert set(keys) == set(wanted)
        np.testing.assert_array_equal(matrix, [wanted[key] for key in keys])

    @pytest.mark.parametrize("seed", SEEDS)
    def test_look_up_is_the_brute_force(self, seed):
        have, want = random_scores(seed), random_scores(seed + 100)
        pairs = Run.from_dict(want)
        wanted = [have.get(query, {}).get(document, np.nan) for query, document, _ in rows_of(pairs)]
        np.testing.assert_array_equal(look_up(Run.from_dict(have), pairs), wanted)
        assert np.isnan(look_up(EMPTY, pairs)).all()
        assert len(look_up(pairs, EMPTY)) == 0


def all_pairs(dictionaries):
    return {(query, document) for one in dictionaries for query, found in one.items() for document in found}
