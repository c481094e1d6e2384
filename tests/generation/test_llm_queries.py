import json
import re
import time
from collections import Counter

import pytest
from api_server import KEY, Server, settings_file
from children import MAIN, Child

from retrodistill.core.errors import UserError
from retrodistill.core.spending import spend
from retrodistill.data import Collection
from retrodistill.generation import generate_queries, plan_generation
from retrodistill.generation.generator import queries_in


class Writer(Server):
    """Answers with a list of the last words of the document."""

    def result(self, path, body):
        prompt = body["messages"][0]["content"]
        document = re.search(r"Document: (.*)", prompt)[1]
        with self.lock:
            self.texts[document] += 1
        lines = [f"{number}. {' '.join(document.split()[-number:])}" for number in (1, 2, 3)]
        content = {"message": {"content": "Here they are:\n" + "\n".join(lines)}}
        return {"choices": [content], "usage": {"prompt_tokens": 50, "completion_tokens": 10}}


@pytest.fixture
def server():
    writer = Writer()
    yield writer
    writer.close()


@pytest.fixture
def api(server, tmp_path, quick_retries):
    defaults = {"url": f"{server.url}/chat", "model": "m"}
    return lambda **settings: f"llm:{settings_file(tmp_path / 'api.yaml', defaults, settings)}"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "generated.jsonl"


def answer(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class TestReading:
    @pytest.mark.parametrize(
        ("text", "queries"),
        [
            ("what is tea\ngreen tea", ["what is tea", "green tea"]),
            ("1. what is tea\n2) green tea\n(3) tea", ["what is tea", "green tea", "tea"]),
            ("- what is tea?\n* 'green tea'\n• “black tea”", ["what is tea?", "green tea", "black tea"]),
            ("Sure! Here are 3 queries:\n\nQuery 1: tea\nSearch query: more tea", ["tea", "more tea"]),
            ("Tea\ntea\nTEA\nmilk", ["Tea", "milk"]),
            ("**tea**\n```\n\n \n3.5 mm jack\n2019 election", ["tea", "3.5 mm jack", "2019 election"]),
            ("", []),
            ("Queries:", []),
        ],
    )
    def test_a_query_is_a_line_without_what_is_around_it(self, text, queries):
        assert queries_in(text, 3) == queries

    def test_no_more_than_wanted(self):
        assert queries_in("a\nb\nc", 2) == ["a", "b"]


class TestGenerating:
    def test_each_document_is_asked_for_once(self, tiny, api, server, out):
        queries = generate_queries(tiny, api(), out)
        words = tiny.documents["d0"].split()
        first = [json.loads(line) for line in out.read_text().splitlines()[:3]]
        texts = [" ".join(words[-number:]) for number in (1, 2, 3)]
        assert first == [
            {"_id": f"d0-{number}", "text": text, "document_id": "d0"} for number, text in enumerate(texts, start=1)
        ]
        again = generate_queries(tiny, api(), out)
        assert (len(queries), dict(again)) == (180, dict(queries))
        assert Counter(server.texts.values()) == {1: 60}

    def test_a_request_has_the_sampling_and_the_number(self, tiny, api, server, out):
        generate_queries(
            tiny, api(max_words=3), out, {"documents": 1, "per_document": 5, "temperature": 0.7, "seed": 4}
        )
        [(_, _, body)] = server.requests
        assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.7, 0.95, 4, 320)
        assert "Write 5 search queries" in body["messages"][0]["content"]
        assert len(next(iter(server.texts)).split()) == 3

    def test_a_prompt_of_ones_own_may_have_examples(self, tiny, api, server, out, tmp_path):
        template = 'Document: {"a": 1}\nQuery: what is a\n\nDocument: {document}\nQuery:'
        (tmp_path / "prompt.txt").write_text(template)
        generate_queries(tiny, api(), out, {"documents": 1, "prompt": str(tmp_path / "prompt.txt")})
        prompt = server.requests[0][2]["messages"][0]["content"]
        document = re.findall(r"Document: (.*)", prompt)[1]
        assert prompt == template.replace("{document}", document)
        assert document in tiny.documents.texts

    def test_the_file_of_a_judge_serves(self, tiny, api, out):
        assert len(generate_queries(tiny, api(judge="listwise", depth=50), out, {"documents": 2})) == 6

    def test_blank_documents_and_copies_are_not_asked_for(self, api, server, out):
        documents = {"a": "tea is hot", "b": "", "c": "tea is hot", "d": "milk is cold"}
        queries = generate_queries(Collection.from_parts("c", documents, {}, {}), api(), out)
        assert sorted(server.texts) == ["milk is cold", "tea is hot"]
        assert len(queries) == 6

    def test_an_answer_without_a_query_is_asked_again_then_left_out_and_counted(self, tiny, api, server, out):
        server.faults = [answer(""), answer("Queries:"), answer(" \n")]
        with spend() as spending:
            queries = generate_queries(tiny, api(concurrency=1), out)
        assert (len(queries), spending.total.unreadable, len(server.requests)) == (177, 3, 62)
        about = json.loads(out.with_name("generated.manifest.json").read_text())["about"]
        assert (about["documents"], about["documents_without_queries"], about["queries"]) == (60, 1, 177)

    def test_none_at_all_is_an_error(self, api, server, out):
        server.faults = [answer("")] * 3
        with pytest.raises(UserError, match="no query for any of 1 documents"):
            generate_queries(Collection.from_parts("c", {"a": "tea"}, {}, {}), api(), out)
        assert not out.exists()

    @pytest.mark.parametrize(("settings", "fact"), [({"top_k": 5}, "top_k"), ({"max_length": 9}, "max_words")])
    def test_what_is_for_local_models_is_refused(self, tiny, api, server, out, settings, fact):
        with pytest.raises(UserError, match=fact):
            generate_queries(tiny, api(), out, settings)
        assert not server.requests

    def test_the_key_is_in_no_file(self, tiny, api, server, out, tmp_path, monkeypatch):
        monkeypatch.setenv("RETRODISTILL_API_KEY", KEY)
        server.key = KEY
        generate_queries(tiny, api(), out, {"documents": 3})
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 4
        assert not [path for path in files if KEY.encode() in path.read_bytes()]


class TestCost:
    def test_a_plan_has_requests_and_dollars_and_sends_nothing(self, tiny, api, server, out):
        model = api(input_price=0, output_price=1)
        work = plan_generation(tiny, model, {"per_document": 2})
        assert (work.items, work.unit, work.bill.requests, server.requests) == (60, "documents", 60, [])
        assert work.bill.cost == pytest.approx(60 * 2 * 64 / 1e6)
        generate_queries(tiny, model, out, {"per_document": 2})
        assert plan_generation(tiny, model, {"per_document": 2}).bill.requests == 0

    def test_at_a_limit_what_was_answered_is_kept(self, tiny, api, server, out):
        with spend(max_requests=25), pytest.raises(UserError, match="max_requests"):
            generate_queries(tiny, api(), out)
        assert not out.exists()
        assert len(server.requests) == 25
        generate_queries(tiny, api(), out)
        assert Counter(server.texts.values()) == {1: 60}


@pytest.mark.slow
@pytest.mark.xdist_group("children")
class TestKilled:
    def test_it_goes_on_without_asking_twice(self, tiny, tiny_folder, api, server, out, tmp_path):
        model = api(concurrency=1)
        generate_queries(tiny, model, out, store=tmp_path / "whole")
        whole, server.delay = out.read_bytes(), 0.02
        out.unlink()
        server.texts.clear()
        arguments = ["generate", "--collection", tiny_folder, "--model", model, "--out", out]
        child = Child(MAIN, *arguments)
        while len(server.texts) < 10 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        child.wait()
        assert not out.exists()
        assert 10 <= len(server.texts) < 60
        server.delay = 0
        status, _, error = Child(MAIN, *arguments).wait()
        assert (status, out.read_bytes()) == (0, whole), error
        assert len(server.texts) == 60
        assert sum(server.texts.values()) <= 61  # the request in flight is sent again
