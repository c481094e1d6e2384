import json
import time

import pytest
from api_server import KEY, score_of, settings_file
from store_children import start

from retrodistill.core.errors import UserError
from retrodistill.core.http import Client, read_api
from retrodistill.core.spending import current_spending, spend
from retrodistill.rankers import load_ranker, remaining, score
from retrodistill.rankers.ensemble import Ensemble
from retrodistill.rankers.rerank_api import RerankApi
from retrodistill.runs import Run, write_run


@pytest.fixture
def api(server, tmp_path, quick_retries):
    defaults = {"url": f"{server.url}/rerank", "model": "m", "batch_size": 8}
    return lambda **settings: f"rerank-api:{settings_file(tmp_path / 'api.yaml', defaults, settings)}"


@pytest.fixture
def pairs(tiny):
    """Ten documents for each of three queries."""
    documents = tiny.documents.ids[:10]
    return Run.from_dict({query: dict.fromkeys(documents, 0.0) for query in tiny.queries.ids[:3]})


def expected(tiny, pairs):
    return {
        query: {document: score_of(tiny.queries[query], tiny.documents[document]) for document in documents}
        for query, documents in pairs.to_dict().items()
    }


class TestScores:
    def test_are_those_of_the_server_in_the_order_of_its_indexes(self, tiny, pairs, api):
        [run] = score(tiny, pairs, [api()])
        for query, documents in expected(tiny, pairs).items():
            assert run.to_dict()[query] == pytest.approx(documents)

    def test_are_asked_for_once_with_one_query_per_request(self, tiny, pairs, api, server):
        score(tiny, pairs, [api()])
        score(tiny, pairs, [api()])
        assert set(server.pairs.values()) == {1}
        assert len(server.pairs) == 30
        assert sorted(len(body["documents"]) for _, _, body in server.requests) == [2, 2, 2, 8, 8, 8]

    def test_come_from_several_requests_at_once_within_the_limit(self, tiny, pairs, api, server):
        server.delay = 0.05
        score(tiny, pairs, [api(concurrency=3)])
        assert server.most_at_once == 3

    def test_of_another_model_are_asked_for_again(self, tiny, pairs, api, server):
        score(tiny, pairs, [api()])
        score(tiny, pairs, [api(model="other")])
        assert set(server.pairs.values()) == {2}

    def test_follow_a_template_and_an_expression(self, tiny, pairs, api, server):
        body = {"documents": "{documents}", "query": "{query}", "note": "about {query}", "deep": [{"m": "{model}"}]}
        answer = "results[*].{index: index, score: relevance_score}"
        [run] = score(tiny, pairs, [api(body=body, answer=answer, extra={"top": 3})])
        sent = server.requests[0][2]
        assert run.to_dict()[pairs.query_ids[0]] == pytest.approx(expected(tiny, pairs)[pairs.query_ids[0]])
        assert (sent["note"], sent["deep"], sent["top"]) == (f"about {sent['query']}", [{"m": "m"}], 3)

    def test_may_be_plain_numbers_in_the_order_of_the_documents(self, tiny, api, server):
        pair = Run.from_dict({tiny.queries.ids[0]: {tiny.documents.ids[0]: 0.0, tiny.documents.ids[1]: 0.0}})
        server.faults = [b"[0.25, 0.5]"]
        [run] = score(tiny, pair, [api()])
        by_text = {tiny.documents[document]: value for document, value in run.to_dict()[tiny.queries.ids[0]].items()}
        assert [by_text[text] for text in server.requests[0][2]["documents"]] == [0.25, 0.5]

    def test_see_the_first_words_of_a_document(self, tiny, pairs, api, server):
        score(tiny, pairs, [api(max_words=2)])
        assert {len(text.split()) for _, _, body in server.requests for text in body["documents"]} == {2}


class TestFaults:
    FAULTS = (429, (503, {"Retry-After": "0.01"}), 500, "drop", "truncate", b"not JSON")

    def test_of_the_server_are_repeated_until_every_pair_has_its_score(self, tiny, pairs, api, server):
        server.faults = list(self.FAULTS)
        with spend() as spending:
            [run] = score(tiny, pairs, [api()])
        assert len(run) == 30
        assert run.to_dict()[pairs.query_ids[2]] == pytest.approx(expected(tiny, pairs)[pairs.query_ids[2]])
        [spent] = spending.models.values()
        assert (spent.requests, spent.failed, spent.unreadable) == (12, 5, 1)

    def test_wait_as_long_as_the_server_asks(self, tiny, pairs, api, server):
        server.faults = [(429, {"Retry-After": "0.3"})]
        started = time.monotonic()
        score(tiny, pairs.select(pairs.query_ids[:1]), [api(concurrency=1)])
        assert time.monotonic() - started > 0.3

    def test_in_an_answer_leave_pairs_out_and_never_give_a_score(self, tiny, pairs, api, server):
        server.faults = [b'{"results": [{"index": 0, "relevance_score": null}]}'] * 3
        [run] = score(tiny, pairs, [api(concurrency=1)])
        assert len(run) == 22
        [later] = score(tiny, pairs, [api()])
        assert len(later) == 30

    def test_in_every_answer_end_the_work_after_a_few(self, tiny, pairs, api, server):
        server.faults = [b'{"results": []}'] * 100
        with pytest.raises(UserError, match="answer"):
            score(tiny, pairs, [api(concurrency=1, batch_size=1)])
        assert len(server.requests) == 15

    def test_that_stay_keep_what_was_answered(self, tiny, pairs, api, server):
        one = pairs.select(pairs.query_ids[:1])
        score(tiny, one, [api()])
        server.faults = [500] * 100
        with pytest.raises(UserError, match="status 500"):
            score(tiny, pairs, [api(retries=2, concurrency=1)])
        server.faults = []
        score(tiny, pairs, [api()])
        assert set(server.pairs.values()) == {1}

    def test_of_one_request_stop_the_others(self, tiny, pairs, api, server):
        server.faults = [404] + [503] * 100
        with pytest.raises(UserError, match="status 404"):
            score(tiny, pairs, [api(concurrency=4, retries=50)])
        assert len(server.requests) < 20

    def test_of_one_request_are_named_by_those_that_they_stop(self, server):
        server.faults = [404]
        client = Client("model", read_api(f"{server.url}/rerank#m", RerankApi), current_spending())
        for _ in range(2):
            with pytest.raises(UserError, match="status 404"):
                client.ask({}, lambda answer: answer)
        assert len(server.requests) == 1

    def test_of_an_ensembles_member_leave_the_pair_out_for_all(self, tiny, pairs, api, server):
        server.faults = [b"{}"] * 3
        members = [load_ranker("bm25"), load_ranker(api(concurrency=1))]
        run = Ensemble(members).score(tiny.queries, tiny, pairs)
        assert len(run) == 22


class TestLimits:
    def test_of_cost_stop_before_they_are_passed_and_keep_answers(self, tiny, pairs, api, server):
        name = api(request_price=1000, concurrency=1)
        with spend(max_cost=2.5) as spending, pytest.raises(UserError, match="max_cost"):
            score(tiny, pairs, [name])
        assert spending.total.cost == 2
        assert len(server.requests) == 2
        score(tiny, pairs, [name])
        assert len(server.requests) == 6

    def test_count_requests_in_flight(self, tiny, pairs, api, server):
        server.delay = 0.05
        with spend(max_requests=3), pytest.raises(UserError, match="max_requests"):
            score(tiny, pairs, [api(concurrency=6)])
        assert len(server.requests) == 3

    def test_of_cost_need_a_price(self, tiny, pairs, api, server):
        with spend(max_cost=1), pytest.raises(UserError, match="input_price"):
            score(tiny, pairs, [api()])
        assert not server.requests

    def test_of_the_rate_space_requests(self, tiny, pairs, api, server):
        started = time.monotonic()
        score(tiny, pairs, [api(requests_per_minute=1200)])
        assert time.monotonic() - started > 0.2  # six requests, 50 ms apart

    def test_survive_in_a_ledger(self, tiny, pairs, api, tmp_path):
        with spend(ledger=tmp_path / "ledger.jsonl"):
            score(tiny, pairs, [api(request_price=1000)])
        with spend(ledger=tmp_path / "ledger.jsonl") as later:
            assert later.total.cost == 6
            assert later.total.tokens == 600  # by the server's own count


class TestPlan:
    def test_counts_requests_tokens_and_money_and_sends_nothing(self, tiny, pairs, api, server):
        [work] = remaining(tiny, pairs, [api(request_price=2, input_price=1)]).values()
        texts = sum(len(tiny.documents[document]) for document in pairs.document_ids)
        queries = 2 * sum(len(tiny.queries[query]) for query in pairs.query_ids)
        assert (work.items, work.bill.requests, work.bill.tokens) == (30, 6, -(-(texts + queries) // 4))
        assert work.bill.cost == pytest.approx(6 * 2 / 1e3 + work.bill.tokens / 1e6)
        assert not server.requests

    def test_leaves_out_what_was_answered(self, tiny, pairs, api):
        name = api()
        score(tiny, pairs.select(pairs.query_ids[:2]), [name])
        [work] = remaining(tiny, pairs, [name]).values()
        assert (work.items, work.bill.requests) == (10, 2)


class TestKey:
    def test_is_sent_from_the_environment(self, tiny, pairs, api, server, monkeypatch):
        monkeypatch.setenv("MY_KEY", KEY)
        server.key = KEY
        [run] = score(tiny, pairs, [api(key_variable="MY_KEY")])
        assert len(run) == 30

    def test_is_sent_from_a_file_that_others_cannot_read(self, tiny, pairs, api, server, tmp_path):
        path = tmp_path / "key"
        path.write_text(KEY)
        path.chmod(0o644)
        server.key = KEY
        with pytest.raises(UserError, match="chmod 600"):
            score(tiny, pairs, [api(key_file=str(path))])
        path.chmod(0o600)
        assert len(score(tiny, pairs, [api(key_file=str(path))])[0]) == 30

    def test_that_is_missing_is_reported_before_a_request(self, tiny, pairs, api, server):
        with pytest.raises(UserError, match="NO_SUCH_KEY"):
            score(tiny, pairs, [api(key_variable="NO_SUCH_KEY")])
        assert not server.requests

    def test_is_in_no_error_log_or_file(self, tiny, pairs, api, server, monkeypatch, tmp_path, capfd):
        monkeypatch.setenv("RETRODISTILL_API_KEY", KEY)
        server.key = "another"  # so that the server repeats the wrong one in its error
        with spend(ledger=tmp_path / "ledger.jsonl"), pytest.raises(UserError) as error:
            score(tiny, pairs, [api()], store=tmp_path / "store")
        server.key = KEY
        with spend(ledger=tmp_path / "ledger.jsonl"):
            score(tiny, pairs, [api()], store=tmp_path / "store")
        shown = str(error.value) + "".join(capfd.readouterr())
        assert "[key]" in shown
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert KEY not in shown
        assert not any(KEY.encode() in content for content in written)

    @pytest.mark.parametrize(
        "settings",
        [
            {"url": "http://user:secret@host/rerank"},
            {"url": "https://host/rerank?api_key=secret"},
            {"url": "ftp://host"},
            {"answer": "results["},
            {"modle": "m"},
        ],
    )
    def test_or_nonsense_in_settings_is_refused(self, api, settings):
        with pytest.raises(UserError, match=r"api\.yaml"):
            load_ranker(api(**settings))

    def test_is_not_sent_unencrypted_to_another_machine(self, tiny, pairs, api, monkeypatch):
        monkeypatch.setenv("RETRODISTILL_API_KEY", KEY)
        with pytest.raises(UserError, match="https"):
            score(tiny, pairs, [api(url="http://192.0.2.1/rerank")])

    def test_does_not_follow_a_redirect(self, tiny, pairs, api, server):
        server.faults = [(302, {"Location": f"{server.url}/elsewhere"})]
        with pytest.raises(UserError, match="status 302"):
            score(tiny, pairs, [api(concurrency=1)])
        assert len(server.requests) == 1


class TestNames:
    def test_are_a_url_with_a_model_or_a_file(self, server):
        ranker = load_ranker(f"rerank-api:{server.url}/rerank#some/model")
        assert (ranker.settings.url, ranker.settings.model) == (f"{server.url}/rerank", "some/model")

    def test_of_a_missing_file_say_what_to_give(self):
        with pytest.raises(UserError, match="URL#MODEL"):
            load_ranker("rerank-api:nowhere.yaml")

    def test_that_can_only_score_are_refused_for_search(self, api):
        with pytest.raises(UserError, match="cannot search"):
            load_ranker(api(), needs="search")


def test_the_ledger_has_one_line_per_request(tiny, pairs, api, tmp_path):
    with spend(ledger=tmp_path / "ledger.jsonl"):
        score(tiny, pairs, [api()])
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["requests"] for line in lines] == [1] * 6


CHILD = """
    from retrodistill.data import load_collection
    from retrodistill.rankers import score
    from retrodistill.runs import read_run
    folder, run, name, store = sys.argv[1:]
    score(load_collection(folder), read_run(run), [name], store=store)
"""


@pytest.mark.xdist_group("children")
def test_a_kill_loses_only_the_requests_in_flight(tiny, tiny_folder, pairs, api, server, tmp_path):
    write_run(pairs, tmp_path / "pairs.run")
    name, store = api(batch_size=1, concurrency=3), tmp_path / "store"
    server.delay = 0.02
    child = start(CHILD, tiny_folder, tmp_path / "pairs.run", name, store)
    deadline = time.monotonic() + 120
    while len(server.requests) < 12:
        assert child.poll() is None, child.wait()[2]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    child.wait()
    [run] = score(tiny, pairs, [name], store=store)
    assert run.to_dict()[pairs.query_ids[1]] == pytest.approx(expected(tiny, pairs)[pairs.query_ids[1]])
    twice = sum(count > 1 for count in server.pairs.values())
    assert len(server.pairs) == 30
    assert twice <= 2 * 3  # in flight, or answered and not yet written
