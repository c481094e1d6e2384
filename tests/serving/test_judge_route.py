import errno

import filelock
import pytest
from answers import message

from retrodistill.data import load_collection, with_judgments


class TestJudge:
    def test_the_qrels_are_read_by_an_evaluation(self, served, index_folder, small_folder, tmp_path):
        client = served(index_folder, collection=str(small_folder), judgments=str(tmp_path / "judged"))
        for body in (
            {"query_id": "q1", "document_id": "d", "relevance": 1},
            {"query": "star in orbit", "document_id": "a", "relevance": 0},
            {"query": "heart", "document_id": "a", "relevance": 1},
        ):
            assert client.post("/judge", json=body).status_code == 200
        judged = with_judgments(load_collection(small_folder), tmp_path / "judged")
        typed = next(id_ for id_ in judged.queries.ids if id_.startswith("typed-"))
        assert judged.relevance("test").to_dict() == {
            "q1": {"b": 1, "d": 1, "a": 0},
            "q2": {"c": 1},
            typed: {"a": 1},
        }
        assert judged.queries[typed] == "heart"

    def test_a_later_search_shows_it(self, served, index_folder, tmp_path):
        client = served(index_folder, judgments=str(tmp_path / "judged"))
        client.post("/judge", json={"query": "moon", "document_id": "d", "relevance": 1})
        client.post("/judge", json={"query": "moon", "document_id": "b", "relevance": 0})
        answer = client.post("/search", json={"query": "moon"}).json()
        judged = {hit["document_id"]: hit["relevance"] for hit in answer["documents"] if "relevance" in hit}
        assert (judged, answer["relevant"]) == ({"d": 1, "b": 0}, 1)
        assert client.get("/info").json()["judgments"] == 2

    @pytest.mark.parametrize(
        ("body", "fact"),
        [
            ({"query": "moon", "document_id": "z", "relevance": 1}, "'z' is not served"),
            ({"query": "moon", "document_id": "../../etc/passwd", "relevance": 1}, "is not served"),
            ({"query": "moon", "document_id": "d", "relevance": -1}, "relevance"),
            ({"query": "moon", "document_id": "d"}, "relevance"),
            ({"document_id": "d", "relevance": 1}, "either query or query_id"),
        ],
    )
    def test_bad_input_leaves_nothing(self, served, index_folder, tmp_path, body, fact):
        client = served(index_folder, judgments=str(tmp_path / "judged"))
        answer = client.post("/judge", json=body)
        assert answer.status_code == 422
        assert fact in message(answer)
        assert not (tmp_path / "judged").exists()

    def test_a_lock_that_is_refused_is_not_the_clients_mistake(self, served, index_folder, tmp_path, monkeypatch):
        client = served(index_folder, judgments=str(tmp_path / "judged"))

        def refused(*_, **__):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(filelock.FileLock, "acquire", refused)
        answer = client.post("/judge", json={"query": "moon", "document_id": "d", "relevance": 1})
        assert answer.status_code == 507
        assert "cannot be written to (too many open files)" in message(answer)
        assert str(tmp_path) not in message(answer)

    def test_a_folder_that_cannot_be_written_is_said(self, served, index_folder, tmp_path):
        (tmp_path / "judged").write_text("a file")
        client = served(index_folder, judgments=str(tmp_path / "judged"))
        answer = client.post("/judge", json={"query": "moon", "document_id": "d", "relevance": 1})
        assert answer.status_code == 507
        assert "was not kept" in message(answer)
