import json
import re
from collections import Counter

import pytest
from api_server import Server, settings_file

from retrodistill.core.errors import UserError
from retrodistill.core.spending import spend
from retrodistill.rankers import load_ranker, remaining, score
from retrodistill.rankers.ensemble import SoftLabels
from retrodistill.rankers.llm import _permutation
from retrodistill.runs import Run


class Judge(Server):
    """Answers prompts of all three kinds by the number of words that query and passage share."""

    def result(self, path, body):
        prompt = body["messages"][0]["content"]
        query = set(re.search(r"Query: (.*)", prompt)[1].split())
        if "Passage A: " in prompt:
            first, second = (re.search(rf"Passage {letter}: (.*)", prompt)[1] for letter in "AB")
            text = "A" if self.shared(query, first) >= self.shared(query, second) else "B"
        elif "[1]" in prompt and "passages" in prompt:
            passages = dict(re.findall(r"^\[(\d+)\] (.*)$", prompt, re.MULTILINE))
            text = " > ".join(
                f"[{number}]" for number in sorted(passages, key=lambda number: -self.shared(query, passages[number]))
            )
        else:
            text = str(min(3, self.shared(query, re.search(r"Passage: (.*)", prompt)[1])))
        with self.lock:
            self.pairs[prompt] += 1
        content = {"message": {"content": text}}
        if body.get("logprobs"):
            top = [{"token": "1", "logprob": -0.6931471805599453}, {"token": "3", "logprob": -0.6931471805599453}]
            content["logprobs"] = {"content": [{"top_logprobs": [*top, {"token": "yes", "logprob": -0.1}]}]}
        return {"choices": [content], "usage": {"prompt_tokens": 50, "completion_tokens": 2}}

    @staticmethod
    def shared(query, text):
        return len(query & set(text.split()))


@pytest.fixture
def server():
    judge = Judge()
    yield judge
    judge.close()


@pytest.fixture
def api(server, tmp_path, quick_retries):
    defaults = {"url": f"{server.url}/chat", "model": "m"}
    return lambda **settings: f"llm:{settings_file(tmp_path / 'api.yaml', defaults, settings)}"


@pytest.fixture
def pairs(tiny):
    """Twelve documents for each of two queries, in the order of their numbers."""
    documents = tiny.documents.ids[:12]
    scores = {document: -float(place) for place, document in enumerate(documents)}
    return Run.from_dict(dict.fromkeys(tiny.queries.ids[:2], scores))


def shared(tiny, query, document):
    return Judge.shared(set(tiny.queries[query].split()), tiny.documents[document])


def wanted_order(tiny, pairs, query):
    """By words in common; sorting is stable, as the judge's ties are."""
    return sorted(pairs.to_dict()[query], key=lambda document: -shared(tiny, query, document))


class TestPointwise:
    def test_scores_are_the_grades(self, tiny, pairs, api):
        [run] = score(tiny, pairs, [api()])
        for query, graded in run.to_dict().items():
            assert graded == {document: min(3, shared(tiny, query, document)) for document in graded}

    def test_scores_are_means_by_the_probabilities_of_grades(self, tiny, pairs, api):
        [run] = score(tiny, pairs, [api(logprobs=True)])
        assert run.scores == pytest.approx(2.0)  # of 1 and 3, equally likely; other tokens do not count

    def test_an_answer_is_paid_for_once(self, tiny, pairs, api, server):
        score(tiny, pairs, [api()])
        score(tiny, pairs, [api()])
        assert Counter(server.pairs.values()) == {1: 24}

    @pytest.mark.parametrize(
        ("text", "grade"), [("2", 2), (" 2.\n", 2), ("Grade: 2", 2), ("<think>1 or 3</think> 2", 2), ("0.5", 0.5)]
    )
    def test_a_grade_is_found_in_an_answer(self, tiny, pairs, api, server, text, grade):
        server.faults = [json.dumps({"choices": [{"message": {"content": text}}]}).encode()]
        one = Run.from_dict({tiny.queries.ids[0]: {"d0": 0.0}})
        assert score(tiny, one, [api()])[0].scores.tolist() == [grade]

    @pytest.mark.parametrize("text", ["", "I cannot say", "7", "1 or 2", None])
    def test_an_answer_without_a_grade_is_left_out(self, tiny, pairs, api, server, text):
        server.faults = [json.dumps({"choices": [{"message": {"content": text}}]}).encode()] * 3
        [run] = score(tiny, pairs, [api(concurrency=1)])
        assert len(run) == 23

    def test_a_prompt_of_ones_own_is_filled(self, tiny, pairs, api, server, tmp_path):
        (tmp_path / "prompt.txt").write_text("{best}? Query: {query}\nPassage: {document}")
        score(tiny, pairs, [api(prompt=str(tmp_path / "prompt.txt"), best=9)])
        query, document = tiny.queries[pairs.query_ids[0]], tiny.documents["d0"]
        assert f"9? Query: {query}\nPassage: {document}" in server.pairs


class TestListwise:
    @pytest.mark.parametrize(("window", "step", "asked"), [(20, 10, 1), (6, 3, 3), (12, 5, 1)])
    def test_windows_slide_from_the_last_to_the_first(self, tiny, pairs, api, server, window, step, asked):
        [run] = score(tiny, pairs, [api(judge="listwise", window=window, step=step)])
        assert len(server.requests) == 2 * asked
        for query in pairs.query_ids:
            best = run.top(window - step if asked > 1 else 12).select([query]).to_dict()[query]
            scores = [shared(tiny, query, document) for document in best]
            assert (
                scores == [shared(tiny, query, document) for document in wanted_order(tiny, pairs, query)][: len(best)]
            )

    def test_scores_are_places_from_the_end(self, tiny, pairs, api):
        [run] = score(tiny, pairs, [api(judge="listwise")])
        query = pairs.query_ids[0]
        places = {document: 12 - rank for rank, document in enumerate(wanted_order(tiny, pairs, query))}
        assert run.to_dict()[query] == places

    def test_documents_below_the_depth_share_the_lowest_score(self, tiny, pairs, api):
        [run] = score(tiny, pairs, [api(judge="listwise", depth=5)])
        scores = run.to_dict()[pairs.query_ids[1]]
        assert sorted(scores[f"d{number}"] for number in range(5)) == [1, 2, 3, 4, 5]
        assert {scores[f"d{number}"] for number in range(5, 12)} == {0}

    def test_a_query_without_a_readable_ranking_is_left_out(self, tiny, pairs, api, server):
        server.faults = [b'{"choices": [{"message": {"content": "no idea"}}]}'] * 3
        [run] = score(tiny, pairs, [api(judge="listwise", concurrency=1)])
        assert run.query_ids == pairs.query_ids[1:]

    @pytest.mark.parametrize(
        ("text", "order"),
        [
            ("[2] > [3] > [1]", [1, 2, 0]),
            ("2, 3, 1", [1, 2, 0]),
            ("[3]", [2, 0, 1]),
            ("[2] > [2] > [9] > [1]", [1, 0, 2]),
        ],
    )
    def test_numbers_that_are_repeated_missing_or_too_large_are_mended(self, text, order):
        assert _permutation(text, 3) == order


class TestPairwise:
    def test_n_passes_find_the_first_n(self, tiny, pairs, api, server):
        [run] = score(tiny, pairs, [api(judge="pairwise", passes=3)])
        for query in pairs.query_ids:
            best = [shared(tiny, query, document) for document in run.top(3).to_dict()[query]]
            assert best == [shared(tiny, query, document) for document in wanted_order(tiny, pairs, query)][:3]

    def test_a_judge_that_prefers_a_place_changes_nothing(self, tiny, pairs, api, server):
        server.faults = [b'{"choices": [{"message": {"content": "B"}}]}'] * 100
        [run] = score(tiny, pairs, [api(judge="pairwise")])
        assert list(run.ranked().to_dict()[pairs.query_ids[0]]) == tiny.documents.ids[:12]


class TestPlan:
    @pytest.mark.parametrize(
        ("settings", "requests"),
        [({}, 24), ({"judge": "listwise", "window": 6, "step": 3}, 6), ({"judge": "pairwise", "passes": 2}, 88)],
    )
    def test_counts_the_requests_that_will_be_sent(self, tiny, pairs, api, server, settings, requests):
        [work] = remaining(tiny, pairs, [api(**settings)]).values()
        assert (work.items, work.bill.requests, server.requests) == (24, requests, [])
        score(tiny, pairs, [api(**settings)])
        assert len(server.requests) <= requests  # equal requests are sent once
        [work] = remaining(tiny, pairs, [api(**settings)]).values()
        assert work.bill.requests == 0

    def test_prices_answers_too(self, tiny, pairs, api):
        [work] = remaining(tiny, pairs, [api(input_price=0, output_price=1)]).values()
        assert work.bill.cost == pytest.approx(24 * 16 / 1e6)

    def test_what_was_spent_is_by_the_servers_count(self, tiny, pairs, api):
        with spend() as spending:
            score(tiny, pairs, [api(input_price=1, output_price=10)])
        assert spending.total.cost == pytest.approx(24 * (50 + 2 * 10) / 1e6)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "fact"),
        [
            ({"prompt": "no {query} alone"}, "{document}"),
            ({"judge": "listwise", "window": 5, "step": 6}, "step 6"),
            ({"judge": "pairwise", "logprobs": True}, "pointwise"),
            ({"prompt": "missing.txt"}, "missing.txt"),
            ({"judge": "best"}, "listwise"),
        ],
    )
    def test_that_do_not_fit_are_refused_before_a_request(self, api, settings, fact):
        with pytest.raises(UserError, match=re.escape(fact)):
            load_ranker(api(**settings))


class TestRankLabels:
    def test_are_the_discount_of_dcg_at_each_rank(self, tiny):
        run = Run.from_dict({"q0": {"a": 3.0, "b": 2.0, "c": 9.0}, "q1": {"a": 1.0, "b": 1.0, "c": 0.0}})

        class Recorded:
            name, is_recorded, is_cheap = "recorded", True, True

            def score(self, *_):
                return run

        labels = SoftLabels([Recorded()], "ranks").score(None, None, run).to_dict()
        assert labels["q0"] == pytest.approx({"c": 1, "a": 0.6309297535714575, "b": 0.5})
        assert labels["q1"]["a"] == labels["q1"]["b"] == pytest.approx(0.7564707973660299)  # of rank 1.5
