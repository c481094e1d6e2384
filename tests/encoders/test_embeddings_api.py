import numpy as np
import pytest
from api_server import settings_file, vector_of

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.core.spending import spend
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed
from retrodistill.rankers import load_ranker, remaining
from retrodistill.runs import Run


@pytest.fixture
def api(server, tmp_path, quick_retries):
    defaults = {"url": f"{server.url}/embed", "model": "m", "dimension": 8, "batch_size": 16}
    return lambda **settings: f"embeddings-api:{settings_file(tmp_path / 'api.yaml', defaults, settings)}"


def unit(texts):
    vectors = np.array([vector_of(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestVectors:
    def test_are_the_servers_by_index_and_of_length_one(self, tiny, api):
        texts = tiny.documents.texts
        assert embed(load_encoder(api()), texts, "document") == pytest.approx(unit(texts), abs=1e-6)

    def test_keep_their_length_for_dot_products(self, api):
        vectors = load_encoder(api(similarity="dot")).encode(["a", "b"], "query")
        assert vectors == pytest.approx(np.array([vector_of("a"), vector_of("b")]), abs=1e-6)

    def test_are_asked_for_once_in_batches(self, tiny, api, server):
        encoder = load_encoder(api())
        embed(encoder, tiny.documents.texts, "document")
        embed(load_encoder(api()), tiny.documents.texts, "document")
        assert set(server.texts.values()) == {1}
        assert sorted(len(body["input"]) for _, _, body in server.requests) == [12, 16, 16, 16]

    def test_of_roles_have_their_prompts_and_words(self, api, server):
        body = {"input": "{texts}", "input_type": "{role}"}
        encoder = load_encoder(api(body=body, prompts={"query": "query: "}, roles={"query": "search_query"}))
        encoder.encode(["a"], "query")
        encoder.encode(["a"], "document")
        assert [sent for _, _, sent in server.requests] == [
            {"input": ["query: a"], "input_type": "search_query"},
            {"input": ["a"], "input_type": "document"},
        ]

    def test_of_blank_texts_are_zero_and_not_paid_for(self, api, server):
        vectors = load_encoder(api()).encode(["a", " \n"], "document")
        assert not vectors[1].any()
        assert list(server.texts) == ["a"]

    def test_of_another_width_than_the_settings_say_are_refused(self, api):
        with pytest.raises(UserError, match="8 dimensions, the settings say dimension: 9"):
            load_encoder(api(dimension=9)).encode(["a"], "query")

    def test_that_are_missing_are_asked_for_again_and_never_made_up(self, api, server):
        server.faults = [b'{"data": []}', b'{"data": [{"index": 0, "embedding": [1, null, 1, 1, 1, 1, 1, 1]}]}']
        assert load_encoder(api()).encode(["a"], "query") == pytest.approx(unit(["a"]), abs=1e-6)
        server.faults = [b'{"data": []}'] * 3
        with pytest.raises(UserError, match="no readable vectors"):
            load_encoder(api()).encode(["b"], "query")


class TestSpaces:
    def test_differ_by_model_prompt_and_what_is_sent(self, api):
        changes = ({}, {"model": "n"}, {"prompts": {"document": "x"}}, {"extra": {"dimensions": 8}}, {"max_words": 9})
        assert len({load_encoder(api(**change)).document_space for change in changes}) == len(changes)

    def test_do_not_depend_on_how_requests_are_sent(self, api):
        changes = ({}, {"batch_size": 2}, {"concurrency": 1}, {"input_price": 3}, {"timeout": 5})
        assert len({load_encoder(api(**change)).document_space for change in changes}) == 1


class TestUses:
    def test_an_index_of_an_apis_vectors_is_searched_by_its_queries(self, tiny, api, tmp_path):
        rd.build_index(tiny, api()).save(tmp_path / "index")
        index = rd.load_index(tmp_path / "index")
        text = tiny.documents["d7"]
        assert next(iter(index.search(text, k=1).to_dict()["0"])) == "d7"
        assert not index.can_be_timed

    def test_a_student_learns_its_space_and_searches_without_the_api(self, tiny, api, server, tiny_model, tmp_path):
        student = {"model": "static", "initialize": "fitted", "tokenizer": f"dense:{tiny_model}"}
        rd.distill(
            tiny, api(), objective="leaf", document_encoder=api(), student=student, out=tmp_path / "student",
            training={"epochs": 1},
        )  # fmt: skip
        index = rd.build_index(tiny, api(), queries=f"static:{tmp_path / 'student'}")
        sent = len(server.requests)
        assert len(index.search("heart", k=3).to_dict()["0"]) == 3
        assert len(server.requests) == sent

    def test_a_plan_counts_texts_that_are_left_and_sends_nothing(self, tiny, api, server):
        pairs = Run.from_dict({tiny.queries.ids[0]: dict.fromkeys(tiny.documents.ids, 0.0)})
        name = api(input_price=1)
        [work] = remaining(tiny, pairs, [name]).values()
        assert (work.items, work.bill.requests, server.requests) == (61, 5, [])
        load_ranker(name).score(tiny.queries, tiny, pairs)
        [work] = remaining(tiny, pairs, [name]).values()
        assert (work.items, work.bill.requests) == (0, 0)

    def test_spending_is_counted(self, tiny, api):
        with spend() as spending:
            embed(load_encoder(api(input_price=10)), tiny.documents.texts, "document")
        assert (spending.total.requests, spending.total.tokens) == (4, 400)
        assert spending.total.cost == pytest.approx(400 * 10 / 1e6)
