import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from losses import over_corpus, stored_loss

from retrodistill.core.errors import UserError
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.training.loss import STATE_FILE, Term, objective_keeper
from retrodistill.training.trainer import TextColumns

TEXTS = ["star planet", "violin chord", "bread cheese", "judge jury", "wave coral", "heart valve", "piano", "court"]
GENERATOR = np.random.default_rng(0)
DOCUMENTS = GENERATOR.standard_normal((6, 32)).astype("f4")
LISTS = over_corpus(GENERATOR.standard_normal((8, 6)).astype("f4"), np.full(8, -1))


def taught(folder, place, name="taid", resume=None):
    """Train six steps with checkpoints; the loss that was left."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = load_bi_encoder(folder)
    loss = stored_loss(model, [Term(name, student_temperature=0.2)], documents=DOCUMENTS, lists=LISTS)
    arguments = SentenceTransformerTrainingArguments(
        str(place), max_steps=6, per_device_train_batch_size=4, save_steps=2, save_strategy="steps", report_to="none",
        disable_tqdm=True, use_cpu=True, learning_rate=1e-3,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=TextColumns({"text": TEXTS}, range(8)).dataset(), loss=loss
    )
    trainer.add_callback(objective_keeper(loss))
    trainer.train(resume_from_checkpoint=resume)
    return loss


class TestKeeping:
    def test_a_resumed_training_continues_its_schedule(self, tiny_model, tmp_path):
        whole = taught(tiny_model, tmp_path / "work").objective_state()
        assert whole["0"]["t"] > 0.85
        saved = json.loads((tmp_path / "work" / "checkpoint-4" / STATE_FILE).read_text())
        assert saved["losses"][0]["0"]["t"] < whole["0"]["t"]
        resumed = taught(tiny_model, tmp_path / "work", resume=str(tmp_path / "work" / "checkpoint-4"))
        for name, value in whole["0"].items():
            assert resumed.objective_state()["0"][name] == pytest.approx(value, rel=1e-6), name

    def test_without_its_file_it_follows_the_straight_line(self, tiny_model, tmp_path):
        taught(tiny_model, tmp_path / "work")
        (tmp_path / "work" / "checkpoint-4" / STATE_FILE).unlink()
        resumed = taught(tiny_model, tmp_path / "work", resume=str(tmp_path / "work" / "checkpoint-4"))
        assert resumed.objective_state()["0"]["t"] >= 0.4 + 0.6 * 5 / 6

    def test_another_file_in_its_place_is_rejected(self, tiny_model, tmp_path):
        taught(tiny_model, tmp_path / "work")
        checkpoint = tmp_path / "work" / "checkpoint-4"
        (checkpoint / STATE_FILE).write_text("[]")
        with pytest.raises(UserError, match=rf"{STATE_FILE} .*delete its checkpoint"):
            taught(tiny_model, tmp_path / "work", resume=str(checkpoint))
        shutil.rmtree(checkpoint)

    def test_objectives_without_state_leave_no_file(self, tiny_model, tmp_path):
        loss = taught(tiny_model, tmp_path / "work", name="kl")
        assert loss.objective_state() == {}
        assert not list((tmp_path / "work").glob(f"*/{STATE_FILE}"))
        assert loss.progress == pytest.approx(5 / 6)

    def test_other_losses_are_left_alone(self, tiny_model, tmp_path):
        model = load_bi_encoder(tiny_model)
        ours = stored_loss(model, [Term("taid")], documents=DOCUMENTS, lists=LISTS)
        other = torch.nn.Linear(2, 2)
        keeper = objective_keeper(torch.nn.ModuleList([other, ours]))
        state = SimpleNamespace(global_step=1, max_steps=4)
        arguments = SimpleNamespace(output_dir=str(tmp_path))
        keeper.on_step_begin(arguments, state, None)
        keeper.on_save(arguments, state, None)
        assert ours.progress == 0.25
        assert not hasattr(other, "progress")
        assert not (tmp_path / "checkpoint-1").exists()  # no schedule has begun
        ours.load_objective_state({"0": {"t": 0.5}})
        (tmp_path / "checkpoint-1").mkdir()
        keeper.on_save(arguments, state, None)
        saved = json.loads((tmp_path / "checkpoint-1" / STATE_FILE).read_text())["losses"]
        assert [one["0"]["t"] for one in saved] == [0.5]  # one entry: the other loss has none
