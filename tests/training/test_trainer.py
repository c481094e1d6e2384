import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child
from losses import over_corpus

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.vectors import exact_search
from retrodistill.training import trainer
from retrodistill.training.loss import DistillationLoss, TeacherVectors, Term
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import HeldOutMonitor, TextColumns, mean_cosine, train

SETTINGS = TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-3, warmup=0)


def digest(model):
    return load_encoder(model).weights_digest


def aligned(folder, texts, targets, place, settings=SETTINGS, prompts=(), **options):
    """Align a copy of the model in `folder` to some vectors."""
    model = load_bi_encoder(folder)
    columns = TextColumns({"text": texts}, range(len(texts)), dict(prompts))
    loss = DistillationLoss(model, [Term("leaf")], StoredVectorScorer(True), None, TeacherVectors(targets))
    return model, train(model, loss, columns, settings, Path(place), **options)


@pytest.fixture
def texts(tiny):
    return tiny.documents.texts


@pytest.fixture
def targets(texts):
    vectors = np.random.default_rng(0).standard_normal((len(texts), 32)).astype("f4")
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestLearning:
    def test_the_loss_falls_and_agreement_rises(self, tiny, tiny_model, tiny_static, tmp_path):
        teacher, model = load_encoder(f"dense:{tiny_model}"), load_bi_encoder(tiny_static)
        student, queries = load_encoder(model), tiny.split("train").texts
        documents = teacher.encode(tiny.documents.texts, "document")
        documents -= documents.mean(axis=0)
        scores = teacher.encode(queries, "query") @ documents.T
        lists = over_corpus(scores / scores.std(), np.full(len(queries), -1))
        loss = DistillationLoss(
            model, [Term("kl", student_temperature=0.2)], StoredVectorScorer(True, documents), lists
        )
        monitor = HeldOutMonitor(student, queries, np.argsort(-scores, axis=1)[:, :10], lambda: documents)
        settings = TrainingSettings(epochs=30, batch_size=16, learning_rate=0.1)
        dataset = TextColumns({"text": queries}, range(len(queries)))
        history = train(model, loss, dataset, settings, tmp_path / "work", monitor=monitor)
        assert history.losses[-1]["loss"] < 0.7 * history.losses[0]["loss"]
        assert history.monitors[0]["agreement"] < 0.5
        assert history.monitors[-1]["agreement"] > 0.8
        assert (history.monitors[0]["step"], history.monitors[-1]["step"]) == (0, history.steps)

    def test_bfloat16_learns_the_same_with_float32_weights(self, tiny_model, texts, targets, tmp_path):
        losses, trained = [], set()
        for precision in ("float32", "bfloat16"):
            settings = SETTINGS.model_copy(update={"precision": precision})
            model, history = aligned(tiny_model, texts, targets, tmp_path / precision, settings)
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            losses.append(history.losses[-1]["loss"])
            trained.add(digest(model))
        assert len(trained) == 2
        assert losses[1] == pytest.approx(losses[0], rel=0.01)

    def test_weights_that_are_not_finite_end_the_training(self, tiny_static, texts, targets, tmp_path):
        targets[:] = np.nan
        with pytest.raises(UserError, match=r"diverged: by step 1, .*learning_rate below 0\.001"):
            aligned(tiny_static, texts, targets, tmp_path)

    @pytest.mark.parametrize(("speedup", "same"), [(1.0, "float32"), (3.0, "bfloat16")])
    def test_auto_is_the_faster_one(self, tiny_model, texts, targets, tmp_path, monkeypatch, speedup, same):
        monkeypatch.setattr("retrodistill.encoders.precision.bfloat16_speedup", lambda device: speedup)
        one, other = (
            digest(
                aligned(tiny_model, texts, targets, tmp_path / name, SETTINGS.model_copy(update={"precision": name}))[0]
            )
            for name in ("auto", same)
        )
        assert one == other

    def test_a_model_trained_in_bfloat16_encodes_in_float32(self, tiny_model, texts, targets, tmp_path):
        settings = SETTINGS.model_copy(update={"precision": "bfloat16"})
        model = aligned(tiny_model, texts, targets, tmp_path / "work", settings)[0]
        model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        saved = load_encoder(f"dense:{tmp_path / 'saved'}")
        assert np.array_equal(load_encoder(model).encode(texts, "query"), saved.encode(texts, "query"))

    def test_a_monitor_encodes_as_the_saved_model(self, tiny_model, texts, targets, tmp_path):
        model, watched = load_bi_encoder(tiny_model), []
        student = load_encoder(model)
        settings = SETTINGS.model_copy(update={"precision": "bfloat16"})
        columns = TextColumns({"text": texts}, range(len(texts)))
        loss = DistillationLoss(model, [Term("leaf")], StoredVectorScorer(True), None, TeacherVectors(targets))
        seen = HeldOutMonitor(student, texts, np.zeros((len(texts), 1), dtype=np.int64), None)

        def monitor():
            watched.append(seen()["mean_cosine"])
            return {}

        train(model, loss, columns, settings, tmp_path / "work", monitor=monitor)
        assert watched[-1] == mean_cosine(student.encode(texts, "query", batch_size=32))

    def test_processes_that_tokenize_ahead_change_nothing(self, tiny_model, texts, targets, tmp_path, monkeypatch):
        expected = digest(aligned(tiny_model, texts, targets, tmp_path / "one")[0])
        assert trainer.tokenizing_processes("cpu") == 0 < trainer.tokenizing_processes("cuda:0")
        monkeypatch.setattr(trainer, "tokenizing_processes", lambda device: 2)
        assert digest(aligned(tiny_model, texts, targets, tmp_path / "three")[0]) == expected

    def test_terms_are_logged_by_name(self, tiny_model, texts, targets, tmp_path):
        _, history = aligned(tiny_model, texts, targets, tmp_path / "work")
        assert history.steps == 16
        assert history.seconds > 0
        assert {"step", "loss", "leaf"} <= set(history.losses[0])

    def test_the_models_prompts_are_applied_in_training(self, tiny_model, texts, targets, tmp_path, monkeypatch):
        seen = []
        forward = DistillationLoss.forward

        def listening(self, sentence_features, labels):
            features = list(sentence_features)
            seen.extend(self.model.tokenizer.batch_decode(features[0]["input_ids"]))
            return forward(self, features, labels)

        monkeypatch.setattr(DistillationLoss, "forward", listening)
        aligned(tiny_model, texts[:8], targets[:8], tmp_path / "work", prompts={"text": "all about "})
        assert seen
        assert all("all about" in text for text in seen)

    def test_steps_are_bounded(self, tiny_model, texts, targets, tmp_path):
        settings = SETTINGS.model_copy(update={"max_steps": 3})
        assert aligned(tiny_model, texts, targets, tmp_path / "work", settings)[1].steps == 3


class TestHeldOutAgreement:
    """Which student a training ends with, and when it stops, with a monitor that is told what to measure."""

    def run(self, place, tiny_model, texts, targets, agreements, **changes):
        """The model, its history, and the weights at each measurement."""
        model, seen = load_bi_encoder(tiny_model), []
        values = iter(agreements)

        def monitor():
            seen.append(digest(model))
            value = next(values)
            return value if isinstance(value, dict) else {"agreement": value}

        columns = TextColumns({"text": texts}, range(len(texts)))
        loss = DistillationLoss(model, [Term("leaf")], StoredVectorScorer(True), None, TeacherVectors(targets))
        history = train(model, loss, columns, SETTINGS.model_copy(update=changes), place, monitor=monitor)
        return model, history, seen

    def test_the_best_student_is_kept_and_noted(self, tiny_model, texts, targets, tmp_path):
        agreements = [0.1, 0.2, 0.9, 0.3, 0.9, *[0.2] * 20]
        model, history, seen = self.run(tmp_path / "best", tiny_model, texts, targets, agreements, keep="best")
        best = history.monitors[2]["step"]
        assert digest(model) == seen[2] != seen[-1]
        note = f"the student of step {best} of {history.steps} was kept: its agreement on held-out queries is 0.9000"
        assert history.notes == [f"{note}, at the end 0.2000."]
        last, history, seen = self.run(tmp_path / "last", tiny_model, texts, targets, agreements)
        assert digest(last) == seen[-1]
        assert history.notes == []

    def test_the_start_is_kept_if_training_only_harms(self, tiny_model, texts, targets, tmp_path):
        falling = np.linspace(0.9, 0.1, 40)
        model, _, _ = self.run(tmp_path, tiny_model, texts, targets, falling, keep="best")
        assert digest(model) == digest(load_bi_encoder(tiny_model))

    def test_labels_may_decide(self, tiny_model, texts, targets, tmp_path):
        values = [{"agreement": at / 20, "ndcg@10": 0.5 if at == 1 else 0.4} for at in range(20)]
        options = {"keep": "best", "patience": 3, "keep_by": "ndcg@10"}
        model, history, seen = self.run(tmp_path / "labels", tiny_model, texts, targets, values, **options)
        assert len(seen) == 5
        assert digest(model) == seen[1]
        assert "its ndcg@10 on held-out queries is 0.5000, at the end 0.4000" in history.notes[0]
        with pytest.raises(UserError, match=r"^training\.keep_by: ndcg@10 needs held-out training queries with labels"):
            self.run(tmp_path / "none", tiny_model, texts, targets, [0.1] * 20, **options)

    def test_patience_stops(self, tiny_model, texts, targets, tmp_path):
        agreements = [0.1, 0.5, 0.4, 0.3, *[0.2] * 20]
        _, history, seen = self.run(tmp_path, tiny_model, texts, targets, agreements, patience=2)
        assert len(seen) == 4
        assert history.steps == history.monitors[-1]["step"] == 3 * history.monitors[1]["step"]

    def test_a_killed_training_keeps_the_best_student(self, tiny_model, texts, targets, tmp_path):
        agreements = [0.1, 0.2, 0.9, *[0.2] * 20]
        whole, curves, _ = self.run(tmp_path / "whole", tiny_model, texts, targets, agreements, keep="best")

        def stopping():
            yield from agreements[:6]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "killed", tiny_model, texts, targets, stopping(), keep="best")
        resumed, history, _ = self.run(tmp_path / "killed", tiny_model, texts, targets, [0.2] * 20, keep="best")
        assert (history.monitors, history.losses) == (curves.monitors, curves.losses)
        assert digest(resumed) == digest(whole)


class TestRepeating:
    def test_the_same_seed_gives_the_same_bytes(self, tiny_model, texts, targets, tmp_path):
        one, same = (digest(aligned(tiny_model, texts, targets, tmp_path / name)[0]) for name in "ab")
        assert one == same

    def test_another_seed_gives_others(self, tiny_model, texts, targets, tmp_path):
        one, other = (digest(aligned(tiny_model, texts, targets, tmp_path / str(n), seed=n)[0]) for n in (3, 4))
        assert one != other


class TestResuming:
    def test_a_finished_training_is_not_repeated(self, tiny_model, texts, targets, tmp_path):
        first, _ = aligned(tiny_model, texts, targets, tmp_path / "work")
        again, history = aligned(tiny_model, texts, targets, tmp_path / "work")
        assert digest(again) == digest(first)
        assert history.steps == 16

    def test_not_even_by_a_step_where_an_epoch_had_more(self, tiny_model, texts, targets, tmp_path):
        settings = SETTINGS.model_copy(update={"max_steps": 3, "schedule": "constant"})
        first, whole = aligned(tiny_model, texts, targets, tmp_path / "work", settings)
        again, history = aligned(tiny_model, texts, targets, tmp_path / "work", settings)
        assert digest(again) == digest(first)
        assert (history.steps, history.losses) == (3, whole.losses)

    def test_an_earlier_checkpoint_leads_to_the_same_bytes_and_a_torn_one_is_skipped(
        self, tiny_model, texts, targets, tmp_path
    ):
        first, whole = aligned(tiny_model, texts, targets, tmp_path / "work")
        checkpoints = sorted((tmp_path / "work").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        assert len(checkpoints) == 2
        state = checkpoints[-1] / "trainer_state.json"
        state.write_text(state.read_text()[:40])
        again, history = aligned(tiny_model, texts, targets, tmp_path / "work")
        assert digest(again) == digest(first)
        assert [entry["step"] for entry in history.losses] == [entry["step"] for entry in whole.losses]

    def test_the_curves_and_the_patience_of_a_killed_training_go_on(self, tiny_model, texts, targets, tmp_path):
        values = {}  # by digest of the weights

        def run(place, stopped_at=None):
            def monitor():
                seen = digest(model)
                if len(values) == stopped_at and seen not in values:
                    raise KeyboardInterrupt
                return {"agreement": values.setdefault(seen, [0.1, 0.5, *[0.2] * 20][len(values)])}

            model = load_bi_encoder(tiny_model)
            loss = DistillationLoss(model, [Term("leaf")], StoredVectorScorer(True), None, TeacherVectors(targets))
            settings = SETTINGS.model_copy(update={"max_steps": 13, "patience": 4})  # a checkpoint every third step
            return train(model, loss, TextColumns({"text": texts}, range(len(texts))), settings, place, monitor=monitor)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", stopped_at=5)
        resumed, whole = run(tmp_path / "killed"), run(tmp_path / "whole")
        assert whole.steps == 5
        assert (resumed.monitors, resumed.losses, resumed.steps) == (whole.monitors, whole.losses, whole.steps)

    def test_a_folder_without_its_state_is_deleted(self, tiny_model, texts, targets, tmp_path):
        torn = tmp_path / "work" / "checkpoint-99"
        torn.mkdir(parents=True)
        (torn / "model.safetensors").write_bytes(b"half")
        fresh, _ = aligned(tiny_model, texts, targets, tmp_path / "clean")
        assert digest(aligned(tiny_model, texts, targets, tmp_path / "work")[0]) == digest(fresh)
        assert not torn.exists()


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from retrodistill.encoders import load_encoder
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.training import trainer
from retrodistill.training.loss import DistillationLoss, Term, TeacherVectors
from retrodistill.training.scorers import StoredVectorScorer
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import TextColumns, train

folder, work, slow = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
if slow:
    import time
    whole = DistillationLoss.forward
    def slowly(self, features, labels):
        time.sleep(slow)
        return whole(self, features, labels)
    DistillationLoss.forward = slowly
model = load_bi_encoder(folder)
texts = [f"star planet {word}" for word in "heart artery bread cheese violin piano court judge wave coral".split()] * 4
targets = np.random.default_rng(0).standard_normal((40, 32)).astype("f4")
targets /= np.linalg.norm(targets, axis=1, keepdims=True)
loss = DistillationLoss(model, [Term("leaf")], StoredVectorScorer(True), None, TeacherVectors(targets))
settings = TrainingSettings(epochs=4, batch_size=4, learning_rate=1e-3)
train(model, loss, TextColumns({"text": texts}, range(40)), settings, work)
print(load_encoder(model).weights_digest)
"""


@pytest.mark.xdist_group("children")
class TestKilling:
    def test_killed_and_run_again_it_gives_the_bytes_of_an_unkilled_run(
        self, tiny_model, tmp_path, monkeypatch, capsys
    ):
        killed = Child(PROGRAM, tiny_model, tmp_path / "work", "0.1")
        deadline = time.monotonic() + 90
        while not list((tmp_path / "work").glob("checkpoint-*/trainer_state.json")):
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.02)
        killed.kill()
        assert killed.wait()[:2] == (-signal.SIGKILL, "")
        digests = []
        for place in ("work", "whole"):
            monkeypatch.setattr(sys, "argv", ["program", tiny_model, str(tmp_path / place), "0"])
            exec(PROGRAM, {})
            digests.append(capsys.readouterr().out.strip())
        assert len(digests[0]) == 16
        assert digests[0] == digests[1]


class TestFullDisks:
    def test_a_checkpoint_that_cannot_be_written_is_one_line(self, tiny_model, texts, targets, tmp_path, monkeypatch):
        def full(*_, **__):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"^cannot write .*work: .*inline_container.*nothing half-written"):
            aligned(tiny_model, texts, targets, tmp_path / "work")

    def test_another_error_is_not_hidden(self, tiny_model, texts, targets, tmp_path, monkeypatch):
        monkeypatch.setattr(DistillationLoss, "forward", lambda *_: exact_search(None, None, 1))
        with pytest.raises((TypeError, AttributeError)):
            aligned(tiny_model, texts, targets, tmp_path / "work")
