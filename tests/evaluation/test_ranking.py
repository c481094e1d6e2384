import copy
import math
import re
from typing import ClassVar

import ir_measures as ir
import numpy as np
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval

from retrodistill.core.errors import UserError
from retrodistill.evaluation import evaluate_run, means
from retrodistill.evaluation import measures as ranking
from retrodistill.runs import Run

CUTS = [1, 3, 10, 100]
MEASURES = [f"{name}@{k}" for name in ("ndcg", "map", "recall", "precision") for k in CUTS]


def random_case(seed, ties):
    """Graded qrels and a run over the same queries; with ties the scores have five levels."""
    generator = np.random.default_rng(seed)
    qrels, run = {}, {}
    for number in range(25):
        query, documents = f"q{number}", [str(document) for document in generator.permutation(150)]
        judged = generator.integers(1, 30)
        qrels[query] = {document: int(generator.integers(0, 4)) for document in documents[:judged]}
        found = generator.choice(documents, 110, replace=False)
        scores = generator.integers(0, 5, 110) / 4 if ties else generator.permutation(110) / 7
        run[query] = {str(document): float(score) for document, score in zip(found, scores, strict=True)}
    return qrels, run


def ranks(run):
    """The run with strictly descending ranks as scores, which no library can order otherwise."""
    orders = {query: best_first(scores) for query, scores in run.items()}
    return {query: {name: -float(rank) for rank, name in enumerate(order)} for query, order in orders.items()}


def by_beir(qrels, run):
    complete = {query: ranks(run).get(query, {}) for query in qrels}
    found = {}
    for part in EvaluateRetrieval.evaluate(copy.deepcopy(qrels), complete, CUTS, ignore_identical_ids=False):
        for name, value in part.items():
            measure, cut = name.lower().split("@")
            found[f"{'precision' if measure == 'p' else measure}@{cut}"] = value
    return found


def best_first(scores):
    """Score descending, ties by document id ascending."""
    return sorted(scores, key=lambda document: (-scores[document], document))


def brute(measure, judged, scores):
    name, cut = measure.split("@")
    ranked, relevant = best_first(scores), {document for document, grade in judged.items() if grade > 0}
    top = ranked[: int(cut)]
    hits = [place for place, document in enumerate(top, start=1) if document in relevant]
    if name == "mrr":
        return 1 / hits[0] if hits else 0.0
    if name == "precision":
        return len(hits) / int(cut)
    if not relevant:
        return 0.0
    if name == "recall":
        return len(hits) / len(relevant)
    if name == "map":
        return sum(number / place for number, place in enumerate(hits, start=1)) / len(relevant)
    ideal = sorted(judged.values(), reverse=True)[: int(cut)]
    gains = [judged.get(document, 0) for document in top]
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1)) / sum(
        gain / math.log2(place + 1) for place, gain in enumerate(ideal, start=1)
    )


class TestBeir:
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_evaluate_retrieval_on_complete_runs(self, seed, ties):
        qrels, run = random_case(seed, ties)
        found = means(evaluate_run(Run.from_dict(run), qrels, MEASURES))
        wanted = by_beir(qrels, run)
        assert set(found) == set(wanted)
        for name, value in found.items():
            assert round(value, 5) == pytest.approx(wanted[name], abs=1.01e-5), name

    @pytest.mark.parametrize("seed", range(4))
    def test_equals_its_mrr_where_nothing_ties(self, seed):
        qrels, run = random_case(seed, ties=False)
        found = means(evaluate_run(Run.from_dict(run), qrels, ["mrr@3", "mrr@10"]))
        (wanted,) = [EvaluateRetrieval.evaluate_custom(qrels, run, [3, 10], "mrr")]
        assert found["mrr@3"] == pytest.approx(wanted["MRR@3"], abs=1e-5)
        assert found["mrr@10"] == pytest.approx(wanted["MRR@10"], abs=1e-5)

    def test_missing_queries_equal_beir_padded_with_nothing(self):
        qrels, run = random_case(9, ties=True)
        for query in ("q3", "q7"):
            del run[query]
        found = evaluate_run(Run.from_dict(run), qrels, MEASURES)
        wanted = by_beir(qrels, run)
        for name, value in means(found).items():
            assert value == pytest.approx(wanted[name], abs=1e-5), name
        row = found["query_id"].to_pylist().index("q3")
        assert all(found[name][row].as_py() == 0 for name in MEASURES)

    def test_a_document_with_the_querys_id_counts_as_any_other(self):
        run = Run.from_dict({"1": {"1": 9.0, "2": 1.0}})
        assert means(evaluate_run(run, {"1": {"2": 1}}, ["P@1", "Success@1"])) == {"precision@1": 0, "Success@1": 0}
        assert means(evaluate_run(run, {"1": {"1": 1}}, ["P@1", "Success@1"])) == {"precision@1": 1, "Success@1": 1}


class TestPerQuery:
    @pytest.mark.parametrize("seed", range(3))
    def test_values_are_the_brute_force(self, seed):
        qrels, run = random_case(seed + 20, ties=True)
        del run["q4"]
        measures = [*MEASURES, "mrr@3", "mrr@10"]
        table = evaluate_run(Run.from_dict(run), qrels, measures)
        assert table.column_names == ["query_id", *measures]
        assert table["query_id"].to_pylist() == list(qrels)
        for measure in measures:
            wanted = [brute(measure, qrels[query], run.get(query, {})) for query in qrels]
            np.testing.assert_allclose(table[measure].to_numpy(), wanted, atol=1e-6, err_msg=measure)

    def test_means_are_over_all_judged_queries(self):
        table = evaluate_run(Run.from_dict({"a": {"x": 1.0}}), {"a": {"x": 1}, "b": {"y": 1}}, ["ndcg@10"])
        assert means(table) == {"ndcg@10": 0.5}

    def test_queries_without_judgments_are_passed_over(self):
        table = evaluate_run(Run.from_dict({"a": {"x": 1.0}, "z": {"x": 1.0}}), {"a": {"x": 1}})
        assert table["query_id"].to_pylist() == ["a"]

    def test_a_reciprocal_rank_beyond_the_cut_is_0(self):
        run = Run.from_dict({"q": {f"d{place:02}": -float(place) for place in range(20)}})
        for place in range(20):
            values = means(evaluate_run(run, {"q": {f"d{place:02}": 1}}, ["mrr@10"]))
            assert values["mrr@10"] == pytest.approx(1 / (place + 1) if place < 10 else 0.0)

    def test_an_empty_run_has_0_throughout(self):
        assert means(evaluate_run(Run.from_dict({}), {"a": {"x": 1}})) == {"ndcg@10": 0, "mrr@10": 0, "recall@100": 0}

    def test_grades_below_0_gain_nothing_but_are_judgments(self):
        qrels, run = {"q": {"a": -1, "b": 2, "c": 0}}, Run.from_dict({"q": {"a": 3.0, "b": 2.0, "x": 1.0}})
        found = means(evaluate_run(run, qrels, ["ndcg@2", "map@2", "hole@2"]))
        assert found == {"ndcg@2": pytest.approx(1 / math.log2(3)), "map@2": 0.5, "hole@2": 0.0}

    def test_the_order_of_queries_and_documents_in_a_run_makes_no_difference(self):
        qrels, run = random_case(5, ties=True)
        other = {query: dict(reversed(run[query].items())) for query in reversed(run)}
        measures = [*MEASURES, "mrr@10", "hole@10"]
        whole = evaluate_run(Run.from_dict(run), qrels, measures)
        assert evaluate_run(Run.from_dict(other), qrels, measures).equals(whole)


class TestRefusals:
    @pytest.mark.parametrize(
        "name", ["ndgc@10", "ndcg", "ndcg@0", "ndcg@x", "nDGC@10", "nDCG@0", "nDCG@2.5", "nDCG@10 + 1", ""]
    )
    def test_an_unknown_measure(self, name):
        with pytest.raises(
            UserError, match=f"unknown measure '{re.escape(name)}'.*Known: hole@k, map@k, mrr@k, ndcg@k.*Rprec"
        ):
            evaluate_run(Run.from_dict({"a": {"x": 1.0}}), {"a": {"x": 1}}, [name])

    def test_no_judged_query(self):
        with pytest.raises(UserError, match="no judged query to measure on; choose a split with judgments"):
            evaluate_run(Run.from_dict({"a": {"x": 1.0}}), {})


class TestHoles:
    QRELS: ClassVar = {"q": {"a": 2, "b": 0}, "p": {"x": 1}, "none": {"x": 1}}

    def test_is_the_share_of_the_top_that_nobody_judged_for_this_query(self):
        run = Run.from_dict({"q": {"a": 4.0, "x": 3.0, "b": 2.0, "y": 1.0}, "p": {"x": 1.0}})
        table = evaluate_run(run, self.QRELS, ["hole@2", "hole@3", "hole@10"])
        assert table["hole@2"].to_pylist() == [0.5, 0.0, 0.0]
        assert table["hole@3"].to_pylist() == pytest.approx([1 / 3, 0.0, 0.0])
        assert table["hole@10"].to_pylist() == pytest.approx([0.5, 0.0, 0.0])

    def test_stands_beside_graded_measures_of_the_same_name_in_trec_eval(self):
        table = evaluate_run(Run.from_dict({"q": {"b": 2.0, "y": 1.0}}), self.QRELS, ["precision@2", "hole@2"])
        assert table["precision@2"].to_pylist() == [0.0, 0.0, 0.0]
        assert table["hole@2"].to_pylist() == [0.5, 0.0, 0.0]


class TestIrMeasures:
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_it_per_query_where_nothing_ties(self, seed):
        qrels, run = random_case(seed + 40, ties=False)
        names = {"ndcg": "nDCG", "map": "AP", "recall": "R", "precision": "P", "mrr": "RR"}
        theirs = {f"{name}@{k}": ir.parse_measure(f"{names[name]}@{k}") for name in names for k in (3, 10, 100)}
        found = evaluate_run(Run.from_dict(run), qrels, [*theirs, "hole@10"])
        wanted = {}
        for value in ir.iter_calc([*theirs.values(), ir.Judged @ 10], qrels, run):
            wanted[str(value.measure), value.query_id] = value.value
        for name, measure in theirs.items():
            for query, value in zip(found["query_id"].to_pylist(), found[name].to_pylist(), strict=True):
                assert value == pytest.approx(wanted[str(measure), query], abs=1e-5), (name, query)
        for query, value in zip(found["query_id"].to_pylist(), found["hole@10"].to_pylist(), strict=True):
            assert 1 - value == pytest.approx(wanted["Judged@10", query])

    @pytest.mark.parametrize("seed", range(4))
    def test_equals_trec_eval_on_the_ranks_with_ties_and_grades_below_0(self, seed):
        generator = np.random.default_rng(seed)
        qrels, run = random_case(seed + 60, ties=True)
        qrels = {query: {name: int(generator.integers(-1, 5)) for name in judged} for query, judged in qrels.items()}
        theirs = ["AP", "nDCG", "RR", "AP(rel=2)@10", "P(rel=2)@5", "R(rel=3)@10", "RR(rel=3)"]
        found = evaluate_run(Run.from_dict(run), qrels, theirs)
        rows = {query: row for row, query in enumerate(found["query_id"].to_pylist())}
        parsed = {ir.parse_measure(name): name for name in theirs}
        for value in ir.pytrec_eval.evaluator(list(parsed), qrels).iter_calc(ranks(run)):
            ours = found[parsed[value.measure]][rows[value.query_id]].as_py()
            assert ours == pytest.approx(value.value, abs=1e-12), value


class TestAnyStringOfIrMeasures:
    def test_grades_below_minus_1_do_not_end_the_process(self):
        for seed in range(20):
            generator = np.random.default_rng(seed)
            qrels, run = random_case(seed, ties=False)
            qrels = {
                query: {name: int(generator.integers(-4, 3)) for name in judged} for query, judged in qrels.items()
            }
            at_least = {
                query: {name: max(grade, -1) for name, grade in judged.items()} for query, judged in qrels.items()
            }
            found, wanted = (evaluate_run(Run.from_dict(run), each, ["Rprec", "Bpref"]) for each in (qrels, at_least))
            assert found.equals(wanted)

    STRINGS: ClassVar = [
        *("RR(rel=2)@10", "RR(rel=3)", "Rprec", "infAP", "Success@5", "Bpref", "AP", "AP(rel=2)@20", "NumRet"),
        *("nDCG(gains={1: 5, 2: 1})@10", "nDCG", "P(judged_only=True)@5", "R(rel=2)@50", "Judged@10", "Compat(p=0.9)"),
    ]

    @pytest.mark.parametrize("seed", range(2))
    def test_has_the_values_of_ir_measures_where_nothing_ties(self, seed):
        qrels, run = random_case(seed + 60, ties=False)
        found = evaluate_run(Run.from_dict(run), qrels, self.STRINGS)
        for measure in map(ir.parse_measure, self.STRINGS):  # one by one: gains of one reach others of the same call
            wanted = {value.query_id: value.value for value in ir.iter_calc([measure], qrels, run)}
            assert found[str(measure)].to_pylist() == pytest.approx([wanted[query] for query in qrels]), measure

    def test_queries_without_results_count_0(self):
        qrels, run = random_case(3, ties=False)
        del run["q3"]
        found = evaluate_run(Run.from_dict(run), qrels, self.STRINGS).to_pylist()[3]
        assert found == {"query_id": "q3", **{name: 0.0 for name in found if name != "query_id"}}

    EVERY_PROVIDER: ClassVar = ["RR", "RR@1", "Judged@1", "Success@1", "Compat(p=0.9)", "infAP", "hole@1"]

    def test_ties_go_by_ascending_id_in_every_measure(self):
        run = Run.from_dict({"q": {"c": 1.0, "a": 1.0, "b": 1.0}})
        assert run.top(1).document_ids.tolist() == ["a"]
        found = evaluate_run(run, {"q": {"a": 1}}, self.EVERY_PROVIDER).to_pylist()[0]
        assert list(found.values())[1:] == [1.0, 1.0, 1.0, 1.0, pytest.approx(1.0), 1.0, 0.0]

    def test_near_ties_of_float64_keep_their_order_in_every_measure(self):
        scores = {f"d{place}": 0.9 - place * 1e-9 for place in (1, 5, 6, 7)}
        assert len({np.float32(score) for score in scores.values()}) == 1
        for order in (scores, dict(reversed(scores.items()))):
            found = evaluate_run(Run.from_dict({"q": order}), {"q": {"d1": 1}}, self.EVERY_PROVIDER).to_pylist()[0]
            assert list(found.values())[1:] == [1.0, 1.0, 1.0, 1.0, pytest.approx(1.0), 1.0, 0.0]
        last = evaluate_run(Run.from_dict({"q": scores}), {"q": {"d7": 1}}, ["RR", "infAP", "mrr@10"]).to_pylist()[0]
        assert list(last.values())[1:] == pytest.approx([0.25, 0.25, 0.25])

    @pytest.mark.parametrize(
        ("text", "name", "cutoff"),
        [
            *(
                ("nDCG@10", "ndcg@10", 10),
                ("RR@10", "mrr@10", 10),
                ("MRR@10", "mrr@10", 10),
                ("R@100", "recall@100", 100),
            ),
            *(("AP@1000", "map@1000", 1000), ("P@5", "precision@5", 5), ("p@5", "precision@5", 5)),
            *(("RR(rel=2)@10", "RR(rel=2)@10", 10), ("rr@3", None, 3), ("AP", "AP", None), ("hole@10", "hole@10", 10)),
        ],
    )
    def test_what_results_json_has_a_short_name_for_keeps_it(self, text, name, cutoff):
        if name is None:
            with pytest.raises(UserError, match="unknown measure"):
                ranking.parse_measure(text)
        else:
            measure = ranking.parse_measure(text)
            assert (measure.name, measure.cutoff) == (name, cutoff)

    def test_one_that_needs_another_package_says_which(self):
        with pytest.raises(UserError, match=r"'alpha_nDCG@10'.*pip install.*ndeval"):
            ranking.parse_measure("alpha_nDCG@10")
        with pytest.raises(UserError, match="'ERR@20' cannot be computed"):
            ranking.parse_measure("ERR@20")


class TestManyQueries:
    def test_blocks_of_queries_give_the_same_values(self, monkeypatch):
        qrels, run = random_case(3, ties=True)
        measures = ["Rprec", "Judged@10", *MEASURES]
        whole = evaluate_run(Run.from_dict(run), qrels, measures)
        monkeypatch.setattr(ranking, "_BLOCK", 4)
        assert evaluate_run(Run.from_dict(run), qrels, measures).equals(whole)
