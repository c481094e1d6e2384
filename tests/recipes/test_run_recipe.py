import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from children import Child

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json
from retrodistill.encoders import load_encoder
from retrodistill.indexes import load_index
from retrodistill.recipes import load_recipe, parse_recipe, run_recipe
from retrodistill.runs import Run, read_run, write_run

NUMBERS = ("name", "ndcg@10", "mrr@10", "recall@100", "retention", "bytes_per_document")


def numbers(out):
    """What results.json says of each system, times aside."""
    return [[system[key] for key in NUMBERS] for system in json.loads((out / "results.json").read_text())["systems"]]


def no_training(monkeypatch):
    monkeypatch.setattr("retrodistill.training.stages.train", lambda *_, **__: pytest.fail("trained again"))


class TestAStaticStudentOfAnEnsemble:
    def test_results_have_the_shape_that_programs_read(self, content, tmp_path):
        content["evaluation"]["latency_queries"] = 2
        results = run_recipe(parse_recipe(content), tmp_path / "out", command="retrodistill run x")
        written = read_json(tmp_path / "out" / "results.json")
        assert written == json.loads(json.dumps(results.to_json()))
        assert [one["name"] for one in written["systems"]] == ["bm25", "teacher", "ensemble", "control", "student"]
        assert (written["split"], written["queries"], written["taught_by"]) == ("test", 12, "ensemble")
        assert {"load", "evaluate", "distill student", "index student", "train student"} <= set(written["seconds"])
        for system in written["systems"]:
            assert 0 <= system["ndcg@10"] <= 1
            assert {"p50", "p95"} <= set(system["query_ms"])
            assert system["bytes_per_document"] > 0
            assert system["documents_by"]
            assert system["queries_by"]
        pairs = {(one["a"], one["b"]) for one in written["comparisons"]}
        assert pairs == {("student", other) for other in ("bm25", "teacher", "ensemble", "control")}
        assert len(written["examples"]) == 2
        by_name = {one["name"]: one for one in written["systems"]}
        student, ensemble = by_name["student"], by_name["ensemble"]
        assert student["retention"] == pytest.approx(student["ndcg@10"] / ensemble["ndcg@10"])

    def test_everything_else_is_next_to_them(self, content, tmp_path):
        run_recipe(parse_recipe(content), tmp_path / "out")
        out = tmp_path / "out"
        assert load_recipe(out / "recipe.yaml") == parse_recipe(content)
        for name in ("bm25", "teacher", "ensemble", "control", "student"):
            assert len(read_run(out / "runs" / f"{name}.run").query_ids) == 12
        per_query = pq.read_table(out / "per-query.parquet").to_pylist()
        mine = [row["ndcg@10"] for row in per_query if row["system"] == "student"]
        assert len(mine) == 12
        assert numbers(out)[4][1] == pytest.approx(sum(mine) / 12)
        assert "<html" in (out / "report.html").read_text()
        assert not list((out / "students").glob(".*"))  # no checkpoints are left

    def test_a_second_call_trains_nothing_and_says_the_same(self, content, tmp_path, monkeypatch):
        run_recipe(parse_recipe(content), tmp_path / "out")
        first = numbers(tmp_path / "out")
        no_training(monkeypatch)
        run_recipe(parse_recipe(content), tmp_path / "out")
        assert numbers(tmp_path / "out") == first

    def test_the_other_processes_of_torchrun_return_without_results(self, content, tmp_path, monkeypatch):
        run_recipe(parse_recipe(content), tmp_path / "out")
        written = (tmp_path / "out" / "results.json").stat().st_mtime_ns
        monkeypatch.setenv("RANK", "1")
        assert run_recipe(parse_recipe(content), tmp_path / "out") is None
        assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == written

    def test_another_folder_gets_the_same_numbers(self, content, tmp_path):
        for name in ("one", "two"):
            run_recipe(parse_recipe(content), tmp_path / name)
        assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
        weights = [tmp_path / name / "students" / "student" / "model.safetensors" for name in ("one", "two")]
        weights = [path if path.exists() else next(path.parent.rglob("model.safetensors")) for path in weights]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_changed_settings_train_again_and_leave_the_other_students(self, content, tmp_path):
        out = tmp_path / "out"
        run_recipe(parse_recipe(content), out)
        manifest, control = (
            (out / "students" / name / "retrodistill.json").read_text() for name in ("student", "control")
        )
        content["students"]["student"]["stages"][1]["training"]["epochs"] = 3
        run_recipe(parse_recipe(content), out)
        assert (out / "students" / "student" / "retrodistill.json").read_text() != manifest
        assert (out / "students" / "control" / "retrodistill.json").read_text() == control

    def test_a_changed_index_is_built_again_without_training(self, content, tmp_path, monkeypatch):
        out = tmp_path / "out"
        run_recipe(parse_recipe(content), out)
        no_training(monkeypatch)
        content["index"] = {"factory": "SQ8"}
        run_recipe(parse_recipe(content), out)
        assert numbers(out)[4][5] < 100

    def test_changed_fields_are_written_into_the_indexes_and_nothing_is_built_again(
        self, content, tiny_folder, tmp_path, monkeypatch
    ):
        folder, out = tmp_path / "corpus", tmp_path / "out"
        shutil.copytree(tiny_folder, folder)
        content["collection"] = str(folder)
        run_recipe(parse_recipe(content), out)
        assert load_index(out / "indexes" / "student").columns is None
        no_training(monkeypatch)
        monkeypatch.setattr("retrodistill.recipes.systems.build_index", lambda *_, **__: pytest.fail("built again"))
        documents = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
        for year, document in enumerate(documents):
            document["year"] = year
        (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        before = numbers(out)
        run_recipe(parse_recipe(content), out)
        assert load_index(out / "indexes" / "student").columns["year"].to_pylist() == list(range(len(documents)))
        assert numbers(out) == before
        content["index"] = {"fields": ["yaer"]}
        with pytest.raises(UserError, match=r"'yaer'.*'year'"):
            run_recipe(parse_recipe(content), out)


class TestOtherStudents:
    def test_a_dense_query_encoder_searches_the_document_encoders_vectors(self, dense_content, tiny_model, tmp_path):
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        student = results.system("student")
        assert student.documents_by == f"dense:{tiny_model}"
        assert student.queries_by == "dense:student"
        assert [system.name for system in results.systems] == ["bm25", "teacher", "ensemble", "student"]

    def test_both_encoders_trained_search_their_own_documents(self, dense_content, tmp_path):
        student = dense_content["students"]["student"]
        student |= {"documents": "student", "dimension": 16, "control": "contrastive"}
        student["stages"][0] |= {"train": "both_encoders", "groups": {"documents": 4}}
        student["stages"][0]["texts"] = {"titles": True, "sentences": 0}
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        assert results.system("student").documents_by == "dense:student"
        assert results.system("student").bytes_per_document < 80
        assert results.system("control").ndcg10 is not None

    def test_alignment_may_come_before_training_both_encoders(self, dense_content, tmp_path):
        student = dense_content["students"]["student"]
        student |= {"documents": "student", "dimension": "space"}
        student["stages"] = [
            {"objectives": "leaf", "texts": {"sentences": 0}, "training": {"max_steps": 2}},
            {**student["stages"][0], "train": "both_encoders"},
        ]
        assert run_recipe(parse_recipe(dense_content), tmp_path / "out").system("student").ndcg10 is not None

    def test_margins_of_another_teacher_that_is_in_the_table(self, content, tiny_static, tmp_path):
        content["teacher"] = f"static:{tiny_static}"
        content["students"]["student"]["control"] = None
        content["students"]["student"]["stages"] = [
            {"objectives": "margin-mse", "candidates": {"depth": 10}, "training": {"max_steps": 2}}
        ]
        results = run_recipe(parse_recipe(content), tmp_path / "out")
        assert [system.name for system in results.systems] == ["bm25", "teacher", "target", "student"]
        assert results.taught_by == "target"


class TestSharedDocuments:
    def test_if_a_batch_shares_the_whole_corpus_training_is_that_over_the_corpus(self, content, tmp_path):
        content["students"]["student"]["control"] = None
        stage = content["students"]["student"]["stages"][1]
        queries = ["why do stars shine", "cheese"]
        vectors = []
        for candidates in ({"depth": "all"}, {"depth": 5, "shared": 1000}, {"depth": 5, "shared": 20}):
            stage["candidates"] = candidates
            out = tmp_path / str(len(vectors))
            run_recipe(parse_recipe(content), out)
            vectors.append(load_encoder(f"static:{out / 'students' / 'student'}").encode(queries, "query"))
        np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-4)
        assert np.abs(vectors[2] - vectors[0]).max() > 1e-3

    def test_groups_of_encoded_documents_have_random_ones_too(self, dense_content, tmp_path):
        dense_content["students"]["student"] |= {"control": "contrastive", "documents": "student"}
        stage = dense_content["students"]["student"]["stages"][0]
        stage |= {"train": "both_encoders", "candidates": {"depth": 5, "shared": 20}, "texts": {"sentences": 1}}
        stage |= {"groups": {"documents": 3, "random": 2}, "training": {"max_steps": 2, "batch_size": 4}}
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        assert {"control", "student"} <= {system.name for system in results.systems}

    def test_a_corpus_too_large_for_lists_of_all_documents_is_refused_before_training(
        self, content, tmp_path, monkeypatch
    ):
        no_training(monkeypatch)
        monkeypatch.setattr("retrodistill.training.scoring.WHOLE", 59)
        with pytest.raises(UserError, match=r"takes each of 60 documents .* at most 59; set candidates to {depth: 100"):
            run_recipe(parse_recipe(content), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_teacher_of_pairs_is_refused_before_training(self, content, tiny_cross_encoder, tmp_path, monkeypatch):
        no_training(monkeypatch)
        stage = content["students"]["student"]["stages"][1]
        stage |= {"teacher": f"cross-encoder:{tiny_cross_encoder}", "candidates": {"depth": 5, "shared": 20}}
        with pytest.raises(UserError, match="cannot score a whole corpus"):
            run_recipe(parse_recipe(content), tmp_path / "out")


class TestRecordedTeachers:
    @pytest.fixture
    def recorded(self, content, tiny, tmp_path):
        rows = {
            query: {f"d{(place + 7 * step) % 60}": float(20 - step) for step in range(8)}
            for place, query in enumerate(tiny.split("train").ids[:30])
        }
        write_run(Run.from_dict(rows), tmp_path / "teacher.run")
        content["teacher"] = f"run:{tmp_path / 'teacher.run'}"
        content["students"]["student"]["stages"][1]["candidates"] = {"depth": 100}
        return content

    def test_the_recipe_needs_nothing_but_the_file(self, recorded, tmp_path):
        results = run_recipe(parse_recipe(recorded), tmp_path / "out")
        assert [system.name for system in results.systems] == ["bm25", "teacher", "control", "student"]
        assert results.taught_by is None
        assert any("of 35 training queries, which taught the student" in note for note in results.notes)

    def test_over_the_whole_corpus_it_is_refused_before_training(self, recorded, tmp_path, monkeypatch):
        no_training(monkeypatch)
        recorded["students"]["student"]["stages"][1]["candidates"] = {"depth": "all"}
        with pytest.raises(
            UserError, match=r"is recorded and does not score every document: leave candidates.depth: all, "
        ):
            run_recipe(parse_recipe(recorded), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_in_an_ensemble_it_teaches_and_is_not_measured(self, recorded, tmp_path):
        recorded["teacher"] = ["bm25", recorded["teacher"]]
        lists = recorded["students"]["student"]["stages"][1]
        lists["texts"] = {"titles": False, "sentences": 0}
        lists["candidates"] = {"depth": 100, "sources": [recorded["teacher"][1]]}
        results = run_recipe(parse_recipe(recorded), tmp_path / "out")
        assert [system.name for system in results.systems] == ["bm25", "teacher", "control", "student"]
        assert any("is not in the table" in note for note in results.notes)


class TestCollectionsWithoutTrainingQueries:
    def test_with_test_judgments_only_pseudo_queries_teach(self, content, tiny_folder, tmp_path):
        folder = tmp_path / "testonly"
        shutil.copytree(tiny_folder, folder)
        wanted = {f"q{number}" for number in range(54, 60)} | {f"t{number}" for number in range(6)}
        lines = [
            line for line in (folder / "queries.jsonl").read_text().splitlines() if json.loads(line)["_id"] in wanted
        ]
        (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
        for split in ("train", "dev"):
            (folder / "qrels" / f"{split}.tsv").unlink()
        content["collection"] = str(folder)
        results = run_recipe(parse_recipe(content), tmp_path / "out")
        assert results.provenance["training queries"] == "0"
        assert results.system("student").ndcg10 is not None

    def test_unjudged_queries_are_training_queries(self, content, tiny_folder, tmp_path):
        folder = tmp_path / "unjudged"
        shutil.copytree(tiny_folder, folder)
        for split in ("train", "dev"):
            (folder / "qrels" / f"{split}.tsv").unlink()
        content["collection"] = str(folder)
        content["students"]["student"]["stages"] = content["students"]["student"]["stages"][:1]
        assert (
            run_recipe(parse_recipe(content), tmp_path / "out").provenance["training queries"] == "39"
        )  # of 48, those that are not near test queries

    def test_training_queries_that_are_test_queries_are_dropped_and_noted(self, content, tiny_folder, tmp_path):
        folder = tmp_path / "leaking"
        shutil.copytree(tiny_folder, folder)
        with (folder / "qrels" / "train.tsv").open("a") as file:
            file.write("t0\td0\t1\nt1\td1\t1\n")
        content["collection"] = str(folder)
        content["students"]["student"]["stages"] = content["students"]["student"]["stages"][:1]
        results = run_recipe(parse_recipe(content), tmp_path / "out")
        assert results.provenance["training queries"] == "35"
        assert any("training queries are left out: 2 are test queries" in note for note in results.notes)


class TestRefusalsBeforeAnyWork:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"split": {"test": "holdout"}}, "has no split 'holdout'; splits: train"),
            ({"split": {"train": "holdout"}}, "has no split 'holdout'; splits: train"),
            (
                {"index": {"factory": "OPQ4,PQ4"}},
                "factory 'OPQ4,PQ4' needs at least 256 vectors to train, there are 60",
            ),
            ({"index": {"factory": "Flatt"}}, "factory 'Flatt' does not parse for 32 dimensions"),
            ({"index": {"parameters": "nprobe=8"}}, "search parameters 'nprobe=8' do not fit this index"),
            ({"document_encoder": "dense:nobody/none"}, "model 'nobody/none' is not a folder here"),
            ({"teacher": "run:/nowhere.run"}, "no run file /nowhere.run"),
            ({"collection": "/nowhere"}, "no collection '/nowhere'"),
        ],
    )
    def test_one_line_and_no_folder(self, content, tmp_path, monkeypatch, change, message):
        no_training(monkeypatch)
        with pytest.raises(UserError) as error:
            run_recipe(parse_recipe({**content, **change}), tmp_path / "out")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_a_cross_encoder_cannot_score_the_whole_corpus(self, content, tiny_cross_encoder, tmp_path):
        content["teacher"] = f"cross-encoder:{tiny_cross_encoder}"
        with pytest.raises(
            UserError, match=r"scores pairs and cannot score a whole corpus; set candidates.depth to a num"
        ):
            run_recipe(parse_recipe(content), tmp_path / "out")

    def test_a_recorded_run_of_no_training_query(self, content, tmp_path):
        write_run(Run.from_dict({"t0": {"d0": 1.0, "d1": 0.5}}), tmp_path / "a.run")
        content["teacher"] = f"run:{tmp_path / 'a.run'}"
        content["students"]["student"]["stages"][1]["candidates"] = {"depth": 10}
        with pytest.raises(UserError, match=r"has rows for none of the 35 training queries; record some"):
            run_recipe(parse_recipe(content), tmp_path / "out")

    def test_a_place_that_cannot_be_written(self, content, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match=r"^cannot write to .*file/out: "):
            run_recipe(parse_recipe(content), tmp_path / "file" / "out")

    def test_other_files_in_the_folder_of_a_student(self, content, tmp_path):
        (tmp_path / "out" / "students" / "control").mkdir(parents=True)
        (tmp_path / "out" / "students" / "control" / "notes.txt").write_text("x")
        with pytest.raises(UserError, match=r"students/control holds other files .* would be lost"):
            run_recipe(parse_recipe(content), tmp_path / "out")


class TestCrossEncoders:
    def test_one_teaches_from_mined_lists(self, dense_content, tiny_cross_encoder, tmp_path):
        dense_content["teacher"] = f"cross-encoder:{tiny_cross_encoder}"
        dense_content["evaluation"]["rerank"] = 7
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        assert results.taught_by == "target"
        target = results.system("target")
        assert target.documents_by == "the first 7 of bm25"
        assert target.query_ms is target.cost is None
        assert results.system("student").retention == pytest.approx(results.system("student").ndcg10 / target.ndcg10)
        assert results.system("student").agreement.teacher == target.queries_by

    def test_with_a_searcher_it_is_measured_and_not_timed(self, dense_content, tiny_cross_encoder, tmp_path):
        dense_content["teacher"] = ["bm25", f"cross-encoder:{tiny_cross_encoder}"]
        results = run_recipe(parse_recipe(dense_content), tmp_path / "out")
        assert results.system("ensemble").ndcg10 is not None
        assert results.system("ensemble").query_ms is None


SLOWLY = """
import sys, time
from retrodistill.recipes import run_recipe
from retrodistill.training.loss import DistillationLoss
whole = DistillationLoss.forward
def slowly(self, features, labels):
    time.sleep(0.15)
    return whole(self, features, labels)
DistillationLoss.forward = slowly
run_recipe(sys.argv[1], sys.argv[2])
"""


@pytest.mark.xdist_group("children")
class TestKilling:
    def test_killed_in_the_second_stage_and_run_again_it_gives_the_same_numbers(self, content, write_recipe, tmp_path):
        content["students"]["student"]["control"] = None
        path = write_recipe(content)
        killed = Child(SLOWLY, path, tmp_path / "killed")
        work, deadline = tmp_path / "killed" / ".training", time.monotonic() + 90
        while not (list(work.glob("*/retrodistill.json")) and list(work.glob("*/checkpoint-*/trainer_state.json"))):
            assert killed.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "no checkpoint of stage 2 appeared"
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        assert not (tmp_path / "killed" / "results.json").exists()
        for name in ("killed", "whole"):
            run_recipe(path, tmp_path / name)
        assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
        weights = [next((tmp_path / name / "students").rglob("model.safetensors")) for name in ("killed", "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert not work.exists()
