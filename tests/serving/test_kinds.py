import numpy as np
import pytest
from answers import message
from sparse_models import inference_free, splade

from retrodistill.encoders import load_encoder
from retrodistill.indexes import build_index, load_index


def of_tokens(tiny_tokens, folder):
    tiny_tokens.save_pretrained(str(folder), create_model_card=False)
    return f"multi-vector:{folder}"


def of_splade(_, folder):
    splade(folder.with_name("bert")).save_pretrained(str(folder), create_model_card=False)
    return f"sparse:{folder}"


def of_weights(_, folder):
    inference_free(folder.with_name("bert")).save_pretrained(str(folder), create_model_card=False)
    return f"sparse:{folder}"


@pytest.fixture(params=[of_tokens, of_splade, of_weights], ids=["multi-vector", "splade", "inference-free"])
def encoder(request, tiny_tokens, tmp_path):
    """Name of an encoder of another kind than dense."""
    return request.param(tiny_tokens, tmp_path / "model")


class TestKinds:
    def test_batches_find_what_single_searches_find(self, served, small, encoder, tmp_path):
        build_index(small, encoder).save(tmp_path / "index")
        client = served(tmp_path / "index")
        own = load_index(tmp_path / "index")
        system = client.server.served.systems["index"]
        from retrodistill.serving.systems import Search

        queries = ["the moon", "bread and butter", "heart"]
        answers = system.answer([Search(query, 3) for query in queries])
        for query, answer in zip(queries, answers, strict=True):
            wanted = own.search(query, k=3).to_dict().get("0", {})
            assert {hit.document_id: hit.score for hit in answer.value} == pytest.approx(wanted, abs=1e-4)
            found = client.post("/search", json={"query": query, "k": 3}).json()["documents"]
            assert [hit["document_id"] for hit in found] == list(wanted)

    def test_vectors_have_the_form_of_their_kind(self, served, small, encoder, tmp_path):
        build_index(small, encoder).save(tmp_path / "index")
        client = served(tmp_path / "index")
        (vector,) = client.post("/embed", json={"texts": "the moon"}).json()["vectors"]
        own = load_encoder(encoder).encode(["the moon"], "query")
        if encoder.startswith("multi-vector"):
            assert np.allclose(vector, own[0], atol=1e-5)
        else:
            row = np.zeros(own.shape[1])
            row[vector["indices"]] = vector["values"]
            assert np.allclose(row, own.toarray()[0], atol=1e-5)
        assert "no system here can give one vector per text" in message(
            client.post("/v1/embeddings", json={"input": "a"})
        )
