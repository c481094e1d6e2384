import shutil

import pytest
from answers import message

from retrodistill.indexes import build_index, load_index

TOKEN = {"authorization": "Bearer t"}


@pytest.fixture
def folder(index_folder, tmp_path):
    """A copy of the index that may change."""
    return shutil.copytree(index_folder, tmp_path / "index")


class TestReload:
    def test_the_new_index_answers_and_old_requests_keep_the_old_one(self, served, folder):
        client = served(folder, token="t")
        old = client.server.served
        index = load_index(folder)
        index.remove(["d"])
        index.save(folder)
        answer = client.post("/reload", headers=TOKEN)
        assert answer.json() == {"status": "reloaded", "systems": ["index"]}
        found = client.post("/search", json={"query": "moon"}, headers=TOKEN).json()["documents"]
        assert {hit["document_id"] for hit in found} == {"a", "b", "c", "e"}
        assert client.server.served is not old
        assert not old.workers["index"]._thread.is_alive()

    @pytest.mark.parametrize("harm", ["missing", "damaged"])
    def test_a_bad_index_is_refused_and_the_old_one_goes_on(self, served, folder, harm):
        client = served(folder, token="t")
        if harm == "missing":
            shutil.rmtree(folder)
        else:
            (folder / "ids.parquet").write_bytes(b"x")
        answer = client.post("/reload", headers=TOKEN)
        assert answer.status_code == 422
        assert str(folder.name) in message(answer)
        assert client.post("/search", json={"query": "moon"}, headers=TOKEN).status_code == 200

    def test_it_needs_a_server_with_a_token(self, client):
        answer = client.post("/reload")
        assert answer.status_code == 403
        assert "RETRODISTILL_TOKEN" in message(answer)

    def test_it_needs_the_token(self, served, folder):
        assert served(folder, token="t").post("/reload").status_code == 401


class TestPlaces:
    def test_two_indexes_are_served_side_by_side(self, served, small, tiny_model, index_folder, tmp_path):
        build_index(small, f"dense:{tiny_model}", factory="SQ8").save(tmp_path / "int8")
        client = served(index_folder, tmp_path / "int8")
        assert client.get("/info").json()["pair"] == ["index", "int8"]
        for system in ("index", "int8"):
            answer = client.post("/search", json={"query": "moon", "system": system}).json()
            assert (answer["system"], len(answer["documents"])) == (system, 5)

    def test_a_name_twice_is_refused(self, served, index_folder):
        from retrodistill.core.errors import UserError

        with pytest.raises(UserError, match="'index'"):
            served(index_folder, index_folder)

    def test_models_by_name_search_a_collection(self, served, small_folder, tiny_model):
        client = served("bm25", f"dense:{tiny_model}", collection=str(small_folder))
        names = [system["name"] for system in client.get("/info").json()["systems"]]
        answer = client.post("/search", json={"query": "bread", "system": "bm25", "filter": "year>=2020"}).json()
        assert [hit["document_id"] for hit in answer["documents"]] == ["c"]
        answer = client.post("/search", json={"query": "bread", "system": names[1], "k": 2}).json()
        assert len(answer["documents"]) == 2

    def test_a_re_ranker_orders_what_passes_the_filter(self, served, small_folder, tiny_cross_encoder):
        client = served(f"rerank@3:cross-encoder:{tiny_cross_encoder}@bm25", collection=str(small_folder))
        body = {"query": "the moon and bread", "filter": "year>=2021"}
        found = client.post("/search", json=body).json()["documents"]
        assert {hit["document_id"] for hit in found} == {"c", "d"}
        assert found[0]["score"] >= found[1]["score"]

    def test_texts_that_are_not_stored_are_left_out_and_it_is_said(self, served, small, tiny_model, tmp_path):
        build_index(small, f"dense:{tiny_model}").save(tmp_path / "bare")
        client = served(tmp_path / "bare")
        assert client.get("/info").json()["has_texts"] is False
        assert not any("text" in hit for hit in client.post("/search", json={"query": "moon"}).json()["documents"])

    def test_an_index_of_other_queries_comes_with_its_documents_own_model(self, served, small, tiny_model, tmp_path):
        import retrodistill as rd

        model = f"dense:{tiny_model}"
        training = {"epochs": 1, "batch_size": 4}
        rd.distill(small, model, objective="leaf", document_encoder=model, training=training, out=tmp_path / "student")
        build_index(small, f"dense:{tiny_model}", f"static:{tmp_path / 'student'}").save(tmp_path / "index")
        client = served(tmp_path / "index")
        assert client.get("/info").json()["pair"] == ["index, teacher's queries", "index"]
        run = load_index(tmp_path / "index", f"dense:{tiny_model}").search("moon").to_dict()["0"]
        body = {"query": "moon", "system": "index, teacher's queries"}
        found = client.post("/search", json=body).json()["documents"]
        assert {hit["document_id"]: hit["score"] for hit in found} == pytest.approx(run, abs=1e-6)
        refused = client.post("/embed", json={"texts": "moon", "role": "document", "system": "index"})
        assert "another model" in message(refused)
