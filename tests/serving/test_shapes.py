import base64

import numpy as np
import pytest
from answers import message
from sentence_transformers import CrossEncoder

from retrodistill.encoders import load_encoder

PAIRS = ["the moon in orbit", "bread and butter", "a heart"]


class TestEmbeddings:
    def test_the_shape_is_openai_s(self, served, tiny_static):
        client = served(tiny_static)
        answer = client.post("/v1/embeddings", json={"input": ["the moon", "bread"], "model": "table"}).json()
        wanted = load_encoder(f"static:{tiny_static}").encode(["the moon", "bread"], "query")
        assert answer["object"] == "list"
        assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", 0), ("embedding", 1)]
        assert np.allclose([row["embedding"] for row in answer["data"]], wanted, atol=1e-6)
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 2
        assert answer["model"] == "table"

    def test_base64_holds_the_same_numbers(self, served, tiny_static):
        client = served(tiny_static)
        numbers, encoded = (
            client.post("/v1/embeddings", json={"input": "moon", "encoding_format": form}).json()["data"][0][
                "embedding"
            ]
            for form in ("float", "base64")
        )
        assert np.allclose(np.frombuffer(base64.b64decode(encoded), "<f4"), numbers)

    @pytest.mark.parametrize(
        ("body", "status", "fact"),
        [
            ({"input": []}, 422, "0 texts"),
            ({"input": [1, 2]}, 422, "input"),
            ({"input": "moon", "dimensions": 8}, 422, "has 32"),
            ({"input": "moon", "model": "other"}, 404, "'other'"),
        ],
    )
    def test_bad_input(self, served, tiny_static, body, status, fact):
        answer = served(tiny_static).post("/v1/embeddings", json=body)
        assert answer.status_code == status
        assert fact in message(answer)

    def test_a_model_alone_does_not_search(self, served, tiny_static):
        client = served(tiny_static)
        assert "no system here can search" in message(client.post("/search", json={"query": "moon"}))


class TestRerank:
    @pytest.fixture
    def client(self, served, tiny_cross_encoder):
        return served(tiny_cross_encoder)

    def test_the_shape_is_cohere_s_and_scores_are_sigmoids(self, client, tiny_cross_encoder):
        body = {"query": "moon", "documents": [*PAIRS[:2], {"text": PAIRS[2]}], "return_documents": True}
        results = client.post("/v1/rerank", json=body).json()["results"]
        scores = CrossEncoder(tiny_cross_encoder).predict([("moon", text) for text in PAIRS])  # its own sigmoid
        assert [row["index"] for row in results] == np.argsort(-scores).tolist()
        assert [row["relevance_score"] for row in results] == pytest.approx(sorted(scores.tolist(), reverse=True))
        assert [row["document"]["text"] for row in results] == [PAIRS[row["index"]] for row in results]

    def test_the_first_n_without_texts(self, client):
        results = client.post("/v1/rerank", json={"query": "moon", "documents": PAIRS, "top_n": 2}).json()["results"]
        assert len(results) == 2
        assert "document" not in results[0]

    def test_bad_input(self, client):
        assert "documents" in message(client.post("/v1/rerank", json={"query": "moon"}))
        assert "0 texts" in message(client.post("/v1/rerank", json={"query": "moon", "documents": []}))
        assert "no system here can give one vector" in message(client.post("/v1/embeddings", json={"input": "moon"}))
