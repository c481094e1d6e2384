import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.rankers.loading import load_ranker
from retrodistill.students.cross_encoder import CrossEncoderStudent, cross_encoder_student
from retrodistill.students.registry import load_student

PAIRS = [("a star", "the comet and the moon"), ("court", "bread and butter")]


class TestStart:
    def test_it_gives_raw_logits_of_one_label(self, tiny_cross_encoder):
        student = CrossEncoderStudent(cross_encoder_student(tiny_cross_encoder), "cross-encoder:s")
        teacher = load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        np.testing.assert_array_equal(student.score(PAIRS), teacher.logits(PAIRS))
        assert student.score([]).shape == (0,)

    def test_layers_and_length_are_cut(self, tiny_cross_encoder):
        model = cross_encoder_student(tiny_cross_encoder, layers=1, max_length=6)
        assert len(model[0].auto_model.bert.encoder.layer) == 1
        student = CrossEncoderStudent(model, "cross-encoder:s")
        longer = [(query, f"{document} today today") for query, document in PAIRS]
        cut = student.score([(query, f"{document} today") for query, document in longer])
        np.testing.assert_allclose(student.score(longer), cut, atol=1e-6)

    def test_the_head_of_the_library_is_random_by_the_seed(self, tiny_model):
        first, again, other = (
            CrossEncoderStudent(cross_encoder_student(tiny_model, head="cls", seed=seed), "c").score(PAIRS)
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_a_length_beyond_the_model_is_refused(self, tiny_cross_encoder):
        with pytest.raises(UserError, match=r"^max_length=65: model .* reads 1 to 64 tokens"):
            cross_encoder_student(tiny_cross_encoder, max_length=65)


class TestAfter:
    def test_a_saved_one_is_a_teacher_by_its_folder(self, tiny_cross_encoder, tmp_path):
        model = cross_encoder_student(tiny_cross_encoder)
        model.save_pretrained(str(tmp_path / "saved"))
        student = load_student(tmp_path / "saved")
        assert isinstance(student, CrossEncoderStudent)
        assert student.fingerprint("query") == CrossEncoderStudent(model, "c").fingerprint("document")
        teacher = load_ranker(f"cross-encoder:{tmp_path / 'saved'}")
        np.testing.assert_allclose(teacher.logits(PAIRS), student.score(PAIRS), atol=1e-6)
