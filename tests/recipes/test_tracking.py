import json
import sys

import pytest

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.recipes import parse_recipe, run_recipe
from retrodistill.training.tracking import TRACKERS, check_trackers, track, track_values, tracked_run

QUICK = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}


@pytest.fixture
def board():
    """``folder -> {run: {tag: [(step, value)]}}`` of the event files below it."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        runs = {}
        for path in sorted((folder / "tensorboard").iterdir()):
            events = accumulators.EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
            scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
            texts = [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]]
            runs[path.name.rpartition("-")[0]] = {**scalars, "config": texts[0] if texts else ""}
        return runs

    return read


@pytest.fixture
def tracked(content):
    return {**content, "tracking": ["tensorboard"]}


class Recorded:
    """A tracker that keeps what it gets."""

    runs: list

    def __init__(self, info):
        sys.stdout.write("trackers may print\n")
        self.info, self.values, self.is_open = info, [], True
        self.runs.append(self)

    def log(self, values, step):
        assert self.is_open
        self.values.append((step, values))

    def finish(self):
        self.is_open = False


@pytest.fixture
def recorded(monkeypatch):
    """The runs of a tracker in the place of TensorBoard."""
    kind = type("Kind", (Recorded,), {"runs": []})
    monkeypatch.setitem(TRACKERS, "tensorboard", kind)
    monkeypatch.setattr("retrodistill.training.tracking.importlib.util.find_spec", lambda name: True)
    return kind.runs


class TestJobs:
    def test_curves_and_results_are_in_the_event_files(self, tracked, tmp_path, board):
        out = tmp_path / "out"
        results = run_recipe(parse_recipe(tracked), out)
        runs = board(out)
        assert set(runs) == {"student", "results"}
        curves = json.loads((out / "students" / "student" / STUDENT_MANIFEST).read_text())["about"]["curves"]
        losses = [(entry["step"], pytest.approx(entry["loss"], rel=1e-5)) for entry in curves["losses"]]
        assert runs["student"]["train/loss"] == losses  # of both stages, with steps counted through
        measured = [(int(one["step"]), pytest.approx(one["agreement"])) for one in curves["monitors"]]
        assert runs["student"]["held_out/agreement"] == measured
        assert "train/learning_rate" in runs["student"]
        row = results.system("student")
        assert runs["student"]["results/ndcg@10"] == [(losses[-1][0], pytest.approx(row.ndcg10))]
        for system in results.systems:
            assert runs["results"][f"{system.name}/ndcg@10"] == [(0, pytest.approx(system.ndcg10))]

    def test_the_configuration_is_the_recipe_without_local_folders(self, tracked, tmp_path, board, tiny_folder):
        run_recipe(parse_recipe(tracked), tmp_path / "out")
        config = board(tmp_path / "out")["student"]["config"]
        assert '"objectives"' in config
        assert str(tiny_folder.parent) not in config
        assert f'"{tiny_folder.name}"' in config

    def test_a_finished_job_is_not_trained_again_for_it(self, content, tracked, tmp_path, board, monkeypatch):
        out = tmp_path / "out"
        run_recipe(parse_recipe(content), out)
        assert not (out / "tensorboard").exists()
        before = [Manifest.read(out).fingerprint, Manifest.read(out / "students" / "student", STUDENT_MANIFEST)]
        monkeypatch.setattr("retrodistill.training.stages.train", lambda *_, **__: pytest.fail("trained again"))
        run_recipe(parse_recipe(tracked), out)
        assert [Manifest.read(out).fingerprint, Manifest.read(out / "students" / "student", STUDENT_MANIFEST)] == before
        assert "results/ndcg@10" in board(out)["student"]

    def test_a_killed_training_continues_its_run(self, tracked, tmp_path, board, monkeypatch):
        from retrodistill.training.trainer import History

        out, keep = tmp_path / "out", History.keep

        def killed(history, checkpoint, *, is_over):
            keep(history, checkpoint, is_over=is_over)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(History, "keep", killed)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(parse_recipe(tracked), out)
        first = board(out)["student"]["train/loss"]
        run_recipe(parse_recipe(tracked), out)
        assert len(list((out / "tensorboard").glob("student-*"))) == 1
        losses = board(out)["student"]["train/loss"]
        assert losses[: len(first)] == first
        assert [step for step, _ in losses] == sorted({step for step, _ in losses})

    def test_a_learned_index_has_its_curves_and_results(self, tracked, tmp_path, board):
        learned = {**tracked, "students": {}, "index": {"learn": {"steps": 5}, "factory": "OPQ4,PQ4x4"}}
        out = tmp_path / "out"
        results = run_recipe(parse_recipe(learned), out)
        runs = board(out)
        assert {"distilled", "results"} <= set(runs)
        assert runs["distilled"]["train/loss"]
        measured = results.system("distilled").ndcg10
        assert runs["distilled"]["results/ndcg@10"][0][1] == pytest.approx(measured)

    def test_an_override_of_the_command_line(self, content, write_recipe, tmp_path, call, recorded):
        path = write_recipe(content)
        status, out, error = call("run", path, "--out", tmp_path / "out", "tracking=[tensorboard]", "--json")
        assert status == 0, error
        assert json.loads(out)["name"] == "small"  # what trackers print is not among it
        # a run of a student in each of its stages, then once for its results
        assert [run.info.name for run in recorded] == ["student", "student", "student", "results"]
        assert {run.info.job for run in recorded} == {"small"}
        assert len({run.info.key for run in recorded if run.info.name == "student"}) == 1
        assert not any(run.is_open for run in recorded)


class TestOneCall:
    def test_distill_logs_next_to_the_student(self, tiny, tiny_model, tmp_path, board):
        pool = rd.mine(tiny, "train", ["bm25"], depth=10)
        target = rd.score(tiny, pool, ["bm25"])[0]
        options = {"document_encoder": f"dense:{tiny_model}", "training": QUICK, "out": tmp_path / "student"}
        rd.distill(tiny, target, tracking=["tensorboard"], **options)
        assert len(board(tmp_path)["student"]["train/loss"]) > 1


class TestMistakes:
    def test_one_that_is_not_installed_is_refused_before_any_work(self, content, tmp_path, monkeypatch):
        monkeypatch.setattr("retrodistill.training.tracking.importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"mlflow is not installed; pip install mlflow"):
            run_recipe(parse_recipe({**content, "tracking": ["mlflow"]}), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_unknown_one_lists_the_others(self, content):
        with pytest.raises(UserError, match=r"tracker 'tensorbord'.*tensorboard"):
            parse_recipe({**content, "tracking": ["tensorbord"]})
        with pytest.raises(UserError, match=r"tracker 'x'"):
            check_trackers(["x"])

    def test_nobody_is_logged_in_to_wandb(self, monkeypatch, tmp_path):
        wandb = type("Module", (), {"api": type("Api", (), {"api_key": None})})
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        monkeypatch.setattr("retrodistill.training.tracking.importlib.util.find_spec", lambda name: True)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        with pytest.raises(UserError, match="wandb login"):
            check_trackers(["wandb"])
        monkeypatch.setenv("WANDB_MODE", "offline")
        check_trackers(["wandb"])


class TestRuns:
    def test_a_tracker_that_fails_does_not_stop_the_job(self, recorded, tmp_path, monkeypatch, capsys):
        def failing(run, values, step):
            raise RuntimeError("no network")

        monkeypatch.setattr(Recorded, "log", failing)
        with track(["tensorboard"], "job", tmp_path, {}), tracked_run("student", "key"):
            track_values("train", {"loss": 1.0}, 1)
            track_values("train", {"loss": 1.0}, 2)
        error = capsys.readouterr().err
        assert error.count("warning: tensorboard failed (no network)") == 1

    def test_keys_are_not_told(self, recorded, tmp_path):
        config = {"note": "hf_abcdefghijklmnopqrstuvwx", "list": [{"path": "/home/me/data"}]}
        with track(["tensorboard"], "job", tmp_path, config), tracked_run("student", "key"):
            pass
        assert recorded[0].info.config == {"note": "[key]", "list": [{"path": "data"}]}

    def test_values_that_are_not_finite_are_left_out(self, recorded, tmp_path):
        with track(["tensorboard"], "job", tmp_path, {}), tracked_run("student", "key", offset=10):
            track_values("train", {"loss": float("nan"), "other": 2}, 3)
            track_values("train", {"loss": float("inf")}, 4)
        assert recorded[0].values == [(13, {"train/other": 2.0})]

    def test_without_trackers_nothing_happens(self, recorded, tmp_path):
        with track([], "job", tmp_path, {}), tracked_run("student", "key"):
            track_values("train", {"loss": 1.0}, 1)
        assert recorded == []


def two_parts(tracker, folder):
    """A training that was resumed, and its results."""
    config = {"name": "job", "students": {"student": {"stages": [{"objectives": ["kl"]}]}}}
    for first, count in ((1, 3), (3, 3)):
        with track([tracker], "job", folder, config), tracked_run("student", "key"):
            for step in range(first, first + count):
                track_values("train", {"loss": 1.0 / step}, step)
    with track([tracker], "job", folder, config), tracked_run("student", "key", is_training=False):
        track_values("results", {"ndcg@10": 0.5}, 5)


class TestTheLibraries:
    """The real ones, without network."""

    @pytest.fixture(autouse=True)
    def _tell_nobody(self, monkeypatch):
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")

    def test_mlflow(self, tmp_path, monkeypatch):
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
        monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None, raising=False)
        monkeypatch.chdir(tmp_path)
        two_parts("mlflow", tmp_path)
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("retrodistill").experiment_id])
        assert (run.info.run_name, run.info.status) == ("student", "FINISHED")
        assert run.data.metrics["results/ndcg_10"] == 0.5
        assert {metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")} == {1, 2, 3, 4, 5}
        assert run.data.params["students.student.stages"] == '[{"objectives": ["kl"]}]'
        assert run.data.tags["retrodistill.job"] == "job"

    def test_trackio(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        trackio = pytest.importorskip("trackio")
        two_parts("trackio", tmp_path)
        (run,) = trackio.Api().runs("retrodistill")
        assert run.name.startswith("job/student-")

    def test_wandb_offline(self, tmp_path, monkeypatch):
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        two_parts("wandb", tmp_path)
        names = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
        assert len(names) == 3
        assert len({name.split("-")[3] for name in names}) == 1  # `wandb sync` makes one run of them
