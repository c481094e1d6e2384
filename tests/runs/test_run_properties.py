"""Runs behave as dictionaries of dictionaries, whatever their ids and scores are (Hypothesis)."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from random_runs import ranking

from retrodistill.core.errors import UserError
from retrodistill.runs import Run, fuse, read_run, union, write_run
from retrodistill.runs.run import align, look_up, top_k

# Few ids and scores, so that pairs and scores of several runs are often the same; and any others.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=4)
IDS = st.sampled_from(["a", "b", "10", "9", "é", "\U0001f600", "\uffff"]) | TEXT
WORDS = IDS.filter(lambda id_: id_.split() == [id_])
SCORES = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0]) | st.floats(-1e100, 1e100, allow_subnormal=False)


def dictionaries(ids=IDS, least=0):
    """{query: {document: score}} without queries that found nothing."""
    return st.dictionaries(ids, st.dictionaries(ids, SCORES, min_size=1, max_size=8), min_size=least, max_size=5)


def ranked(scores):
    return {query: ranking(found) for query, found in scores.items()}


def orders(run):
    return {query: list(documents) for query, documents, _ in run}


class TestOneRun:
    @given(dictionaries())
    def test_is_the_dictionary_it_was_made_from(self, scores):
        run = Run.from_dict(scores)
        assert run.to_dict() == scores
        assert run.query_ids == list(scores)

    @given(dictionaries())
    def test_ranks_by_score_and_then_by_id(self, scores):
        run = Run.from_dict(scores)
        assert orders(run.ranked()) == ranked(scores)
        rank = {(q, d): place for q, found in ranked(scores).items() for place, d in enumerate(found, start=1)}
        pairs = [(q, d) for q, documents, _ in run for d in documents]
        assert run.ranks.tolist() == [rank[pair] for pair in pairs]

    @given(dictionaries(), st.integers(1, 9))
    def test_top_cuts_each_ranking(self, scores, k):
        assert orders(Run.from_dict(scores).top(k)) == {query: found[:k] for query, found in ranked(scores).items()}

    @given(dictionaries(), st.sets(IDS))
    def test_select_keeps_known_queries(self, scores, wanted):
        kept = {query: found for query, found in scores.items() if query in wanted}
        assert Run.from_dict(scores).select(wanted).to_dict() == kept

    @given(dictionaries(), st.dictionaries(IDS, IDS))
    def test_without_drops_a_pair(self, scores, pairs):
        kept = {q: {d: s for d, s in found.items() if pairs.get(q) != d} for q, found in scores.items()}
        assert Run.from_dict(scores).without(pairs).to_dict() == {q: found for q, found in kept.items() if found}

    @given(dictionaries(), st.sets(IDS))
    def test_without_documents_drops_them_everywhere(self, scores, gone):
        kept = {q: {d: s for d, s in found.items() if d not in gone} for q, found in scores.items()}
        run = Run.from_dict(scores).without_documents(gone)
        assert run.to_dict() == {q: found for q, found in kept.items() if found}

    @given(dictionaries(), st.randoms())
    def test_the_fingerprint_knows_no_order(self, scores, draw):
        rows = [(q, d, s) for q, found in scores.items() for d, s in found.items()]
        shuffled = draw.sample(rows, len(rows))
        columns = [list(column) for column in zip(*shuffled, strict=True)] or [[], [], []]
        assert Run.from_arrays(*columns).fingerprint == Run.from_dict(scores).fingerprint

    @given(dictionaries(least=1), dictionaries(least=1))
    def test_the_fingerprint_tells_runs_apart(self, scores, others):
        assume(scores != others)
        assert Run.from_dict(scores).fingerprint != Run.from_dict(others).fingerprint


class TestSeveralRuns:
    @given(st.lists(dictionaries(), min_size=1, max_size=4))
    def test_align_puts_scores_side_by_side(self, parts):
        pairs, matrix = align([Run.from_dict(part) for part in parts])
        rows = [(q, d) for q, documents, _ in pairs for d in documents]
        assert sorted(rows) == sorted({(q, d) for part in parts for q, found in part.items() for d in found})
        expected = [[part.get(q, {}).get(d, math.nan) for part in parts] for q, d in rows]
        np.testing.assert_array_equal(matrix, np.array(expected).reshape(matrix.shape))

    @given(dictionaries(), dictionaries())
    def test_look_up_finds_scores(self, scores, asked):
        pairs = Run.from_dict(asked)
        rows = [(q, d) for q, documents, _ in pairs for d in documents]
        found = look_up(Run.from_dict(scores), pairs)
        np.testing.assert_array_equal(found, [scores.get(q, {}).get(d, math.nan) for q, d in rows])

    @given(st.lists(dictionaries(), min_size=1, max_size=4))
    def test_union_names_its_sources_and_sums_reciprocal_ranks(self, parts):
        united = union([Run.from_dict(part, f"run{number}") for number, part in enumerate(parts)])
        expected: dict = {}
        for number, part in enumerate(parts):
            for q, found in ranked(part).items():
                for rank, d in enumerate(found, start=1):
                    score, sources = expected.get((q, d), (0.0, []))
                    expected[q, d] = (score + 1 / (60 + rank), [*sources, f"run{number}"])
        rows = united.table.to_pylist()
        assert {(row["query_id"], row["document_id"]) for row in rows} == set(expected)
        for row in rows:
            score, sources = expected[row["query_id"], row["document_id"]]
            assert row["score"] == pytest.approx(score)
            assert row["sources"] == "+".join(sources)

    @given(st.lists(dictionaries(least=1), min_size=1, max_size=3), st.data())
    def test_min_max_fusion_is_the_weighted_sum_over_the_runs_with_a_pair(self, parts, data):
        weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(parts), max_size=len(parts)))
        runs = [Run.from_dict(part) for part in parts]
        for part in parts:
            assume(any(len(set(found.values())) > 1 for found in part.values()))
        fused = fuse(runs, weights, "minmax", missing="mean").to_dict()
        for q, found in fused.items():
            for d, score in found.items():
                here = [(w, part[q]) for w, part in zip(weights, parts, strict=True) if d in part.get(q, {})]
                scaled = [(w, _share(listed, d)) for w, listed in here]
                mean = sum(w * s for w, s in scaled) / sum(w for w, _ in scaled)
                assert score == pytest.approx(mean * sum(weights), abs=1e-9)

    @given(dictionaries(least=1), st.floats(0.5, 20), st.floats(-50, 50))
    def test_z_scores_do_not_depend_on_a_rankers_scale(self, scores, factor, offset):
        whole = {q: {d: round(s) % 7 for d, s in found.items()} for q, found in scores.items()}
        assume(len({s for found in whole.values() for s in found.values()}) > 1)
        moved = {q: {d: s * factor + offset for d, s in found.items()} for q, found in whole.items()}
        runs = [fuse([Run.from_dict(part)], method="zscore") for part in (whole, moved)]
        np.testing.assert_allclose(look_up(runs[0], runs[1]), runs[1].scores, atol=1e-6)


def _share(listed, document):
    lowest, highest = min(listed.values()), max(listed.values())
    return (listed[document] - lowest) / (highest - lowest) if highest > lowest else 0.0


class TestTopK:
    @given(st.lists(SCORES, min_size=1, max_size=400), st.integers(1, 420))
    def test_is_the_head_of_a_stable_sort(self, scores, k):
        expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
        assert top_k(np.array(scores), k).tolist() == expected

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(1, 320), st.integers(0, 99))
    def test_ties_at_the_end_keep_the_lowest_keys(self, scores, k, seed):
        keys = np.random.default_rng(seed).permutation(len(scores))
        found = top_k(np.array(scores, dtype=np.float64), k, lambda rows: keys[rows])
        assert set(found) == set(sorted(range(len(scores)), key=lambda place: (-scores[place], keys[place]))[:k])


class TestFiles:
    @pytest.mark.parametrize("ending", [".run", ".run.gz", ".jsonl", ".jsonl.gz", ".parquet"])
    @given(scores=dictionaries(WORDS, least=1))
    def test_a_run_comes_back_from_its_file(self, ending, scores):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"x{ending}")
            write_run(Run.from_dict(scores, "name"), file)
            back = read_run(file)
        assert back.to_dict() == scores
        assert orders(back) == ranked(scores)
        assert back.name == "name"

    @pytest.mark.parametrize("ending", [".run", ".jsonl", ".parquet"])
    @given(scores=dictionaries(least=1))
    def test_ids_that_a_format_cannot_hold_are_refused_and_others_come_back(self, ending, scores):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"x{ending}")
            try:
                write_run(Run.from_dict(scores), file)
            except UserError:
                ids = {id_ for q, found in scores.items() for id_ in (q, *found)}
                assert ending == ".run"
                assert any(id_.split() != [id_] for id_ in ids)
                return
            assert read_run(file).to_dict() == scores

    @pytest.mark.parametrize("ending", [".run", ".jsonl", ".parquet", ".run.gz"])
    @given(content=st.binary(max_size=200) | st.text(st.sampled_from("qd 0\t1.e-nainf\n"), max_size=60).map(str.encode))
    def test_any_bytes_are_a_run_or_a_mistake_that_is_named(self, ending, content):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"x{ending}")
            file.write_bytes(content)
            try:
                run, mistake = read_run(file), ""
            except UserError as error:
                run, mistake = Run.from_dict({}), str(error)
        assert not mistake or str(file) in mistake
        assert np.isfinite(run.scores).all()
