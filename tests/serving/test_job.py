import json
import shutil

import pytest
from answers import client_of, message

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.runs.formats import read_run
from retrodistill.serving.opening import open_places

pytestmark = pytest.mark.slow  # it trains a job

TRAINING = {"epochs": 1, "learning_rate": 0.01}
LEAF = {"objectives": "leaf", "training": TRAINING}
MARGINS = {
    "objectives": "margin-mse",
    "train": "both_encoders",
    "candidates": {"depth": 5},
    "training": TRAINING,
}


@pytest.fixture(scope="module")
def job(tiny_folder, tiny_model, tiny_cross_encoder, tmp_path_factory):
    """The folder of a job: a static student of an ensemble, and a re-ranker."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(folder / "cache"))
        content = {
            "name": "mine",
            "collection": str(tiny_folder),
            "document_encoder": f"dense:{tiny_model}",
            "teacher": [{"model": "bm25", "weight": 0.3}, {"model": f"dense:{tiny_model}", "weight": 0.7}],
            "students": {
                "student": {"model": "static", "control": None, "stages": [LEAF]},
                "reranker": {
                    "model": f"cross-encoder:{tiny_cross_encoder}",
                    "control": None,
                    "stages": [MARGINS],
                },
            },
            "evaluation": {"latency_queries": 0, "examples": 1, "rerank": 20, "truncations": [16]},
        }
        run_recipe(parse_recipe(content), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def client(job):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(job.parent / "cache"))
        started = client_of(job)
    yield started
    started.server.served.close()


class TestSystems:
    def test_all_of_the_table_are_served_and_the_pair_is_that_of_the_report(self, client, job):
        results = json.loads((job / "results.json").read_text())
        info = client.get("/info").json()
        assert [system["name"] for system in info["systems"]] == [system["name"] for system in results["systems"]]
        assert info["pair"] == results["sides"]
        assert (info["name"], info["queries"], info["measure"]) == ("mine", 12, "ndcg@10")
        assert {system["name"] for system in info["systems"] if system["is_recorded"]} == {"teacher@16"}
        assert str(job) not in json.dumps(info)

    def test_they_find_what_the_job_measured(self, client, job):
        for system in client.get("/info").json()["systems"]:
            run = read_run(job / "runs" / f"{system['name']}.run").ranked().to_dict()
            for query in ("t0", "q55"):
                body = {"query_id": query, "system": system["name"]}
                found = client.post("/search", json=body).json()["documents"]
                wanted = list(run[query].items())[: len(found)]
                assert [hit["document_id"] for hit in found] == [id_ for id_, _ in wanted], system["name"]
                assert [hit["score"] for hit in found] == pytest.approx([score for _, score in wanted], abs=1e-4)

    def test_a_recorded_system_knows_only_test_queries(self, client):
        answer = client.post("/search", json={"query": "something else", "system": "teacher@16"})
        assert answer.status_code == 422
        assert "only the queries of the test set" in message(answer)

    def test_an_unknown_query_of_a_live_system_fills_no_store(self, client, job, tmp_path):
        before = {file for file in job.parent.rglob("*") if file.is_file()}
        for system in ("teacher", "ensemble", "student", "reranker"):
            assert client.post("/search", json={"query": "heart of the moon", "system": system}).status_code == 200
        assert {file for file in job.parent.rglob("*") if file.is_file()} == before
        made = [file for file in tmp_path.rglob("*") if file.is_file() and "bm25" not in file.parts]
        assert not made  # nor in the cache of this test, but for BM25's index, if this is the first test that needs it

    def test_the_re_ranker_and_the_student_have_the_other_apis(self, client):
        body = {"query": "heart", "documents": ["a star", "the heart"], "model": "reranker"}
        assert len(client.post("/v1/rerank", json=body).json()["results"]) == 2
        assert client.post("/v1/embeddings", json={"input": "heart"}).json()["model"] == "student"


class TestQueries:
    def test_they_are_in_the_order_of_the_difference(self, client):
        asked = {"first": "bm25", "second": "student"}
        lost = client.get("/queries", params=asked).json()["queries"]
        won = client.get("/queries", params={**asked, "order": "won"}).json()["queries"]
        differences = [row["difference"] for row in lost]
        assert differences == sorted(differences)
        assert [row["difference"] for row in won] == sorted(differences, reverse=True)
        body = {"query_id": lost[0]["query_id"], "texts": 0}
        first, second = (client.post("/search", json={**body, "system": name}).json() for name in ("bm25", "student"))
        assert second["ndcg@10"] - first["ndcg@10"] == pytest.approx(lost[0]["difference"])

    def test_an_unknown_system_is_404(self, client):
        assert client.get("/queries", params={"first": "nothing"}).status_code == 404


class TestFolders:
    def test_judgments_are_kept_in_the_job_s_folder(self, client, job):
        assert client.server.log.folder == job / "judgments"

    def test_an_unfinished_job_is_refused(self, job, tmp_path):
        shutil.copy(job / "recipe.yaml", tmp_path)
        with pytest.raises(UserError, match="not finished"):
            open_places([str(tmp_path)])

    def test_a_folder_of_other_files_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="none of what can be served"):
            open_places([str(tmp_path)])

    def test_an_index_whose_query_encoder_is_gone_is_refused(self, job, tmp_path):
        shutil.copytree(job / "indexes" / "student", tmp_path / "index")
        manifest = read_json(tmp_path / "index" / "manifest.json")
        manifest["about"]["queries_by"] = f"static:{tmp_path / 'gone'}"
        write_json(tmp_path / "index" / "manifest.json", manifest)
        with pytest.raises(UserError, match="gone"):
            open_places([str(tmp_path / "index")])

    def test_an_index_without_one_is_refused_with_what_to_do(self, small, tiny_model, tmp_path):
        from retrodistill.encoders.loading import load_bi_encoder
        from retrodistill.indexes import build_index

        build_index(small, load_bi_encoder(tiny_model)).save(tmp_path / "index")
        with pytest.raises(UserError, match="--queries"):
            open_places([str(tmp_path / "index")])
        served = open_places([str(tmp_path / "index")], queries=f"dense:{tiny_model}")
        assert list(served.systems) == ["index"]


class TestLoop:
    """Serve, judge, evaluate: what the guide says."""

    def test_evaluate_and_compare_read_what_was_judged(self, client, job, tiny_folder, tmp_path, capsys):
        from retrodistill import cli

        def call(*arguments):
            with pytest.raises(SystemExit) as stopped:
                cli.main([str(argument) for argument in arguments])
            assert not stopped.value.code
            return json.loads(capsys.readouterr().out)

        found = client.post("/search", json={"query_id": "t0", "system": "student", "k": 3}).json()["documents"]
        for hit in found:
            body = {"query_id": "t0", "document_id": hit["document_id"], "relevance": 3}
            assert client.post("/judge", json=body).status_code == 200
        options = ("--collection", tiny_folder, "--qrels", job / "judgments", "--json")
        try:
            evaluated = call("evaluate", job / "indexes" / "student", *options)
            assert any("3 judgments" in note for note in evaluated["notes"])
            compared = call("compare", f"{job}:bm25", f"{job}:student", *options)
            before = json.loads((job / "results.json").read_text())["systems"]
            means = {system["name"]: system["ndcg@10"] for system in compared["systems"]}
            old = {system["name"]: system["ndcg@10"] for system in before}
            assert means["student"] > old["student"]
            assert means["student"] == pytest.approx(evaluated["systems"][0]["ndcg@10"])
        finally:
            shutil.rmtree(job / "judgments")
