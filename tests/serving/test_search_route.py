from concurrent.futures import ThreadPoolExecutor

import pytest
from answers import message

from retrodistill.indexes import load_index


class TestSearch:
    def test_it_gives_what_the_index_gives_with_texts_and_fields(self, client, index_folder):
        answer = client.post("/search", json={"query": "the moon", "k": 3}).json()
        run = load_index(index_folder).search("the moon", k=3).to_dict()["0"]
        assert {hit["document_id"]: hit["score"] for hit in answer["documents"]} == pytest.approx(run)
        assert [hit["rank"] for hit in answer["documents"]] == [1, 2, 3]
        of_d = next(hit for hit in answer["documents"] if hit["document_id"] == "d")
        assert (of_d["title"], of_d["text"]) == ("moon", "the moon is a planet of gravity")
        assert of_d["fields"] == {"year": 2022, "tags": ["y"]}
        assert answer["batch"] == 1

    def test_the_default_is_ten_documents_or_all_of_fewer(self, client):
        assert len(client.post("/search", json={"query": "moon"}).json()["documents"]) == 5

    def test_texts_are_cut_and_left_out_as_asked(self, client):
        answer = client.post("/search", json={"query": "moon", "texts": 1, "characters": 8}).json()["documents"]
        assert len(answer[0]["text"]) <= 8
        assert not any("text" in hit for hit in answer[1:])

    @pytest.mark.parametrize("given", [{"year": {">=": 2021}}, "year>=2021", ["year>=2021"]])
    def test_a_filter_in_any_form(self, client, given):
        found = client.post("/search", json={"query": "moon", "filter": given}).json()["documents"]
        assert {hit["document_id"] for hit in found} == {"c", "d"}

    def test_batched_requests_get_what_single_ones_get(self, served, index_folder):
        client = served(index_folder, batch=8)
        queries = ["moon", "heart", "bread and butter", "piano", "star", "whale", "orbit", "garlic"]
        bodies = [{"query": each, "k": 1 + place % 3} for place, each in enumerate(queries)]
        bodies += [{**each, "filter": "tags contains y"} for each in bodies]
        alone = [client.post("/search", json=body).json()["documents"] for body in bodies]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda body: client.post("/search", json=body).json()["documents"], bodies))
        for one, other in zip(alone, together, strict=True):
            assert [hit["document_id"] for hit in one] == [hit["document_id"] for hit in other]
            assert [hit["score"] for hit in one] == pytest.approx([hit["score"] for hit in other], abs=1e-6)

    def test_a_test_query_by_its_id_or_its_text_has_its_judgments(self, served, index_folder, small_folder):
        client = served(index_folder, collection=str(small_folder))
        for asked in ({"query_id": "q1"}, {"query": "star in orbit"}):
            answer = client.post("/search", json=asked).json()
            assert (answer["query_id"], answer["relevant"]) == ("q1", 1)
            judged = {hit["document_id"]: hit["relevance"] for hit in answer["documents"] if "relevance" in hit}
            assert judged == {"b": 1}


class TestBadInput:
    @pytest.mark.parametrize(
        ("body", "fact"),
        [
            ({"query": "moon", "k": 0}, "k=0"),
            ({"query": "moon", "k": 6}, "5 documents"),
            ({"query": "moon", "k": 5000}, "at most 1000"),
            ({"query": "moon", "k": "many"}, "k: Input should be a valid integer"),
            ({"query": "  "}, "empty"),
            ({"query": "half \ud800"}, "surrogate"),
            ({"query": "x" * 10_001}, "10,001 characters"),
            ({}, "either query or query_id"),
            ({"query_id": "nothing"}, "'nothing' is not in the test set"),
            ({"query": "moon", "kk": 3}, "Did you mean 'k'"),
            ({"query": "moon", "filter": {"yeer": 2020}}, "Did you mean 'year'"),
            ({"query": "moon", "filter": {"year": "soon"}}, "a whole number"),
            ({"query": "moon", "filter": "year ~ 2020"}, "FIELD OPERATOR VALUE"),
            ({"query": "moon", "filter": [{"year": 2020}]}, "list of conditions"),
        ],
    )
    def test_it_is_one_sentence(self, client, body, fact):
        import json

        sent = json.dumps(body).encode()
        answer = client.post("/search", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert fact in message(answer)
        assert "\n" not in message(answer)

    @pytest.mark.parametrize(
        "sent", [b"{", b"", b"\xff", b"[1]", b"[" * 100_000], ids=["cut", "empty", "bytes", "list", "deep"]
    )
    def test_what_is_not_a_json_object_is_400(self, client, sent):
        answer = client.post("/search", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "JSON" in message(answer)

    def test_an_unknown_system_is_404_and_the_nearest_is_named(self, client):
        answer = client.post("/search", json={"query": "moon", "system": "indexx"})
        assert answer.status_code == 404
        assert "Did you mean 'index'" in message(answer)

    def test_unknown_routes_and_methods_are_json(self, client):
        assert client.get("/nothing").status_code == 404
        assert "/nothing" in message(client.get("/nothing"))
        assert client.get("/search").status_code == 405
        assert client.get("/../../etc/passwd").status_code == 404

    def test_a_failure_of_the_program_is_500_without_its_words(self, client, monkeypatch):
        monkeypatch.setattr("retrodistill.serving.app.Search", lambda *_: 1 / 0)
        answer = client.post("/search", json={"query": "moon"})
        assert answer.status_code == 500
        assert "ZeroDivisionError" in message(answer)


class TestEmbed:
    def test_vectors_are_those_of_the_encoder(self, client, index_folder):
        texts = ["the moon", "a heart"]
        answer = client.post("/embed", json={"texts": texts}).json()
        wanted = load_index(index_folder).queries.encode(texts, "query")
        assert answer["vectors"] == [pytest.approx(row.tolist(), abs=1e-6) for row in wanted]
        assert answer["dimension"] == 32

    def test_too_many_texts_and_none_are_refused(self, served, index_folder):
        client = served(index_folder, texts=2)
        assert "3 texts; send 1 to 2" in message(client.post("/embed", json={"texts": ["a", "b", "c"]}))
        assert "0 texts" in message(client.post("/embed", json={"texts": []}))


class TestFacts:
    def test_info_lists_systems_and_fields_without_paths(self, client, tmp_path):
        answer = client.get("/info")
        (system,) = answer.json()["systems"]
        assert (system["name"], system["documents"]) == ("index", 5)
        assert system["fields"] == {"year": "integer", "tags": "list of strings", "document_id": "string"}
        assert str(tmp_path) not in answer.text

    def test_metrics_count_requests_and_batches_without_queries(self, client):
        client.post("/search", json={"query": "moon"})
        client.post("/search", json={"query": ""})
        text = client.get("/metrics").text
        assert 'retrodistill_requests_total{route="/search",status="200"} 1.0' in text
        assert 'retrodistill_requests_total{route="/search",status="422"} 1.0' in text
        assert 'retrodistill_batch_size_count{system="index"} 1.0' in text
        assert 'retrodistill_waiting{system="index"} 0.0' in text
        assert "moon" not in text

    def test_test_queries_are_listed_in_parts(self, served, index_folder, small_folder):
        client = served(index_folder, collection=str(small_folder))
        answer = client.get("/queries", params={"limit": 1, "offset": 1}).json()
        assert (answer["total"], [row["query_id"] for row in answer["queries"]]) == (2, ["q2"])
        assert client.get("/queries", params={"limit": 0}).status_code == 422

    def test_the_openapi_description_has_the_bodies(self, client):
        paths = client.get("/openapi.json").json()["paths"]
        body = paths["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "filter" in body["properties"]
