import numpy as np
import pytest
import torch
from losses import groups_loss, stored_loss

from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.token_dropping import keep_share, make_length_adaptive
from retrodistill.students.dense_variants import LengthAdaptiveLoss, MatryoshkaLoss
from retrodistill.training.loss import Term
from retrodistill.training.settings import TrainingSettings
from retrodistill.training.trainer import TextColumns, train

TEXTS = [
    "what star and what planet in what orbit and a comet today",
    "violin and chord and melody today about all the music",
    "bread",
    "judge and jury and court all about what they said today",
]
SETTINGS = LengthAdaptiveSettings(layers=[1], keep=[0.5, 0.25], fewest=2)
TARGETS = np.random.default_rng(0).standard_normal((4, 32)).astype("f4")


@pytest.fixture
def model(tiny_model):
    model = load_bi_encoder(tiny_model)
    make_length_adaptive(model, SETTINGS)
    return model.eval()


def stored(model, cut=32):
    return stored_loss(model, [Term("leaf")], embeddings=TARGETS[:, :cut])


def at(model, keep):
    """LEAF of the vectors of a share of the tokens."""
    vectors = torch.from_numpy(keep_share(model, keep).encode(TEXTS))
    return stored(model).compute_loss_from_embeddings([vectors], torch.arange(4))["leaf"]


class TestTheLoss:
    def test_is_that_of_all_tokens_of_the_fewest_and_of_a_random_share(self, model, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda shape: torch.tensor(0.4))
        loss = LengthAdaptiveLoss(model, SETTINGS, *(stored(model) for _ in range(3)))
        parts = loss([model.preprocess(TEXTS)], torch.arange(4))
        expected = {"leaf": at(model, 1), "leaf@keep-0.25": at(model, 0.25), "leaf@keep-random": at(model, 0.55)}
        assert parts.keys() == expected.keys()
        assert len({float(value) for value in expected.values()}) == 3
        for name, value in expected.items():
            torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)

    def test_random_shares_are_between_the_smallest_and_all(self, model, monkeypatch):
        drawn = []

        class Noted(LengthAdaptiveSettings):
            def left_after(self, keep):
                drawn.append(keep)
                return super().left_after(keep)

        loss = LengthAdaptiveLoss(model, Noted(**SETTINGS.model_dump()), *(stored(model) for _ in range(3)))
        for _ in range(20):
            loss([model.preprocess(TEXTS)], torch.arange(4))
        random = [keep for keep in drawn if keep != 0.25]
        assert len(set(random)) == 20
        assert 0.25 < min(random) < 0.45
        assert 0.8 < max(random) < 1

    def test_of_truncations(self, model):
        def cut():
            return MatryoshkaLoss(model, {32: stored(model), 8: stored(model, 8)})

        parts = LengthAdaptiveLoss(model, SETTINGS, cut(), cut(), cut())([model.preprocess(TEXTS)], torch.arange(4))
        suffixes = ["", "@8", "@keep-0.25", "@8@keep-0.25", "@keep-random", "@8@keep-random"]
        assert list(parts) == [f"leaf{suffix}" for suffix in suffixes]

    def test_of_groups_of_documents(self, model):
        kl = Term("kl", student_temperature=0.1, teacher_temperature=0.5)

        def grouped(model):
            targets = np.random.default_rng(0).standard_normal((3, 2)).astype("f4")
            return groups_loss(model, [kl], targets, np.ones((3, 2), dtype=bool), np.zeros(3, dtype=np.int64))

        columns = [TEXTS[:3], TEXTS[1:], TEXTS[::-1][:3]]
        loss = LengthAdaptiveLoss(model, SETTINGS, *(grouped(model) for _ in range(3)))
        parts = loss([model.preprocess(column) for column in columns], torch.arange(3))
        fewest = keep_share(model, 0.25).eval()
        expected = grouped(fewest)([fewest.preprocess(column) for column in columns], torch.arange(3))
        torch.testing.assert_close(parts["kl@keep-0.25"], expected["kl"], atol=1e-5, rtol=1e-4)

    def test_the_start_reads_all_tokens(self, model):
        class Start(torch.nn.Module):
            def compute_loss_from_embeddings(self, embeddings, labels, start):
                return {"distance": (embeddings[0] - start[0]).square().sum()}

        loss = LengthAdaptiveLoss(model, SETTINGS, Start(), Start(), Start(), start=keep_share(model, 1))
        parts = loss([model.preprocess(TEXTS)], torch.arange(4))
        assert parts["distance"].item() == 0
        assert parts["distance@keep-0.25"].item() > 1e-3


class TestTraining:
    def test_brings_vectors_of_fewer_tokens_to_those_of_all(self, model, tmp_path):
        targets = model.encode(TEXTS)
        losses = [stored_loss(model, [Term("leaf")], embeddings=targets) for _ in range(3)]
        loss = LengthAdaptiveLoss(model, SETTINGS, *losses)
        before = np.square(keep_share(model, 0.25).encode(TEXTS) - targets).sum()
        settings = TrainingSettings(epochs=15, batch_size=4, learning_rate=3e-3)
        history = train(model, loss, TextColumns({"text": TEXTS}, range(4)), settings, tmp_path / "checkpoints")
        assert {"leaf", "leaf@keep-0.25", "leaf@keep-random"} <= set(history.losses[0])
        assert np.square(keep_share(model, 0.25).encode(TEXTS) - targets).sum() < 0.7 * before
