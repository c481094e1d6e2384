import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.quantizers import QuantizerSettings, learn_quantizer
from retrodistill.quantizers.learning import query_student

ASKED = ["heart and artery", "star and planet", "bread"]


@pytest.fixture
def turn():
    generator = np.random.default_rng(0)
    return (np.eye(32) + 0.2 * generator.normal(size=(32, 32))).astype(np.float32)


class TestQueryStudent:
    def test_gives_the_mapped_queries_as_unit_vectors(self, tiny_model, turn):
        encoder = load_encoder(f"dense:{tiny_model}")
        mapped = encoder.encode(ASKED, "query") @ turn.T
        student = load_encoder(query_student(encoder, turn))
        wanted = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        np.testing.assert_allclose(student.encode(ASKED, "query"), wanted, atol=1e-5)

    def test_leaves_the_encoder_as_it_was(self, tiny_model, turn):
        encoder = load_encoder(f"dense:{tiny_model}")
        before = encoder.encode(ASKED, "query")
        query_student(encoder, turn)
        np.testing.assert_array_equal(encoder.encode(ASKED, "query"), before)

    def test_saves_and_loads(self, tiny_model, turn, tmp_path):
        student = query_student(load_encoder(f"dense:{tiny_model}"), turn)
        student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
        again = load_encoder(f"dense:{tmp_path / 'student'}")
        np.testing.assert_allclose(
            again.encode(ASKED, "query"), load_encoder(student).encode(ASKED, "query"), atol=1e-6
        )

    def test_refuses_a_map_of_another_width(self, tiny_model):
        with pytest.raises(UserError, match=r"shape \(8, 8\) for vectors of 32 dimensions"):
            query_student(load_encoder(f"dense:{tiny_model}"), np.eye(8, dtype=np.float32))


class TestLearnedMap:
    def test_there_is_none_unless_asked_for(self):
        vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
        settings = QuantizerSettings(steps=10, evaluations=2, start_iterations=1, batch_size=8)
        plain = learn_quantizer(vectors, vectors[:30], "OPQ2,PQ2x4", settings)
        mapped = learn_quantizer(vectors, vectors[:30], "OPQ2,PQ2x4", settings.model_copy(update={"query_map": True}))
        assert plain.query_map is None
        assert mapped.query_map is None or mapped.query_map.shape == (8, 8)
        assert mapped.improved == (mapped.query_map is not None)

    def test_mapped_queries_have_the_agreement_that_was_reported(self):
        from retrodistill.runs.agreement import rank_agreement

        generator = np.random.default_rng(0)
        vectors = generator.normal(size=(400, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = vectors[:200, ::-1] * np.linspace(1, 3, 16, dtype=np.float32)
        queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        settings = QuantizerSettings(steps=80, evaluations=4, start_iterations=2, batch_size=32, query_map=True)
        learned = learn_quantizer(vectors, queries, "OPQ4,PQ4x4", settings)
        assert learned.query_map is not None
        held = settings.split(np.full(200, -1), np.random.default_rng(settings.seed))[1]
        exact = np.argsort(-(queries[held] @ vectors.T), axis=1)[:, :10]
        found = learned.index.search(np.ascontiguousarray(queries[held] @ learned.query_map.T), 10)[1]
        assert rank_agreement(found, exact).mean() == pytest.approx(learned.agreement[1], abs=1e-3)
