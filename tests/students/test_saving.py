import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders.contract import STUDENT_MANIFEST
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.students import dense_student, load_student, save_student

MANIFEST = Manifest("student", {"corpus": "c"}, {"seed": 3}, {"query_space": "0123456789abcdef", "seconds": 1.5})


class TestSaving:
    def test_the_manifest_reads_back(self, tiny_model, tmp_path):
        save_student(dense_student(tiny_model), MANIFEST, tmp_path / "student")
        found = Manifest.read(tmp_path / "student", STUDENT_MANIFEST)
        assert found.fingerprint == MANIFEST.fingerprint
        assert MANIFEST.about.items() <= found.about.items()  # beside them the checksums of its files

    def test_the_encoder_that_comes_back_is_what_was_saved(self, tiny_model, tmp_path):
        student = dense_student(tiny_model, dimension=8)
        encoder = save_student(student, MANIFEST, tmp_path / "student")
        found, wanted = encoder.model.state_dict(), student.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        # The last bit of a product may depend on where a matrix lies in memory.
        np.testing.assert_allclose(encoder.encode(["star"], "query"), student.encode(["star"]), atol=1e-6)
        assert encoder.name == f"dense:{tmp_path / 'student'}"

    def test_its_queries_belong_to_the_space_of_the_manifest(self, tiny_model, tmp_path):
        encoder = save_student(dense_student(tiny_model), MANIFEST, tmp_path / "student")
        assert encoder.query_space == "0123456789abcdef"
        assert encoder.document_space != "0123456789abcdef"

    def test_without_one_it_searches_its_own_space(self, tiny_model, tmp_path):
        encoder = save_student(dense_student(tiny_model), Manifest("student"), tmp_path / "student")
        assert encoder.query_space == encoder.document_space

    def test_a_token_table_is_known_as_static(self, tiny_static, tmp_path):
        save_student(load_bi_encoder(tiny_static), MANIFEST, tmp_path / "student")
        assert load_student(tmp_path / "student").name == f"static:{tmp_path / 'student'}"

    def test_a_newer_student_takes_the_place_of_the_older(self, tiny_model, tmp_path):
        for layers in (2, 1):
            save_student(dense_student(tiny_model, layers=layers), MANIFEST, tmp_path / "student")
        assert load_student(tmp_path / "student").model[0].auto_model.config.num_hidden_layers == 1
        assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["student"]


class TestFailing:
    @pytest.fixture
    def saved(self, tiny_model, tmp_path):
        save_student(dense_student(tiny_model, layers=1), MANIFEST, tmp_path / "student")
        return tmp_path / "student"

    def test_a_disk_that_fills_up_leaves_the_older_student(self, tiny_model, saved, monkeypatch):
        import safetensors.torch

        def full(*_, **__):
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

        model = dense_student(tiny_model)
        monkeypatch.setattr(type(model), "save_pretrained", full)
        with pytest.raises(
            UserError, match=r"^cannot write .*student: no space left on device; nothing half-written was left there\.$"
        ):
            save_student(model, MANIFEST, saved)
        assert load_student(saved).model[0].auto_model.config.num_hidden_layers == 1
        assert not list(saved.parent.glob(".*student*"))

    def test_another_failure_is_not_called_a_full_disk(self, tiny_model, saved, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("a bug")

        model = dense_student(tiny_model)
        monkeypatch.setattr(type(model), "save_pretrained", broken)
        with pytest.raises(RuntimeError, match=r"a bug"):
            save_student(model, MANIFEST, saved)
        assert load_student(saved).dimension == 32

    def test_somebodys_folder_is_not_replaced(self, tiny_model, tmp_path):
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("x")
        with pytest.raises(UserError, match=r"letters holds other files .*, which would be lost; choose another.$"):
            save_student(dense_student(tiny_model), MANIFEST, tmp_path / "letters")
        assert (tmp_path / "letters" / "dear.txt").read_text() == "x"

    def test_a_place_below_a_file(self, tiny_model, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}/file: "):
            save_student(dense_student(tiny_model), MANIFEST, tmp_path / "file" / "student")

    def test_weights_in_half_precision_load_in_full(self, tiny_model, tmp_path):
        encoder = save_student(dense_student(tiny_model).half(), MANIFEST, tmp_path / "student")
        assert {tensor.dtype for tensor in encoder.model.parameters()} == {torch.float32}
