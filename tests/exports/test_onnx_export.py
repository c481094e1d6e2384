"""Models exported to ONNX: the same vectors without torch, in the same space, and int8 within its limit."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import sparse_models
import torch
from backbones import ARCHITECTURES, bi_encoder

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.encoders import encode_with, load_encoder, onnx_runtime
from retrodistill.encoders.int8_layers import int8_layers
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.modules import save_pretrained
from retrodistill.encoders.onnx_encoders import OnnxModel
from retrodistill.encoders.token_dropping import make_length_adaptive
from retrodistill.exports import onnx as export_module
from retrodistill.exports.onnx import export_onnx
from retrodistill.rankers.loading import load_ranker

pytestmark = pytest.mark.xdist_group("onnx")  # one process exports the models that they share

TEXTS = ["whale", "all about the moon and the orbit", "a court judge and a lawyer with a verdict " * 20, "zzz"]


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "model"
    export_onnx(f"dense:{tiny_model}", folder)
    return folder


@pytest.fixture
def traced(exported, monkeypatch):
    """The tiny model is not traced again, which takes two seconds: its graph is copied."""

    def copied(modules, inputs, path, name, *, scores=False):
        shutil.copy(exported / "onnx" / "model.onnx", path)
        return "sentence_embedding"

    monkeypatch.setattr(export_module, "write_graph", copied)


@pytest.fixture(scope="module")
def quantized(tiny_model, tiny_folder, tmp_path_factory):
    from retrodistill.data import load_collection

    folder = tmp_path_factory.mktemp("onnx") / "model"
    report = export_onnx(f"dense:{tiny_model}", folder, load_collection(tiny_folder), {"quantize": "int8"})
    return folder, report


def in_torch(name):
    with encode_with(runtime="torch", precision="float32"):
        return load_encoder(name)


def vectors_of(encoder, role):
    found = encoder.encode(TEXTS, role)
    return found.toarray() if hasattr(found, "toarray") else found


class TestVectors:
    def test_are_those_of_torch(self, exported, tiny_model):
        graph, model = load_encoder(f"dense:{exported}"), in_torch(f"dense:{tiny_model}")
        assert isinstance(graph, OnnxModel)
        for role in ("query", "document"):
            np.testing.assert_allclose(vectors_of(graph, role), vectors_of(model, role), atol=1e-5)

    @pytest.mark.parametrize(
        "architecture",
        [pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)],
    )
    def test_are_those_of_torch_for_each_architecture(self, architecture, tmp_path):
        name = f"dense:{bi_encoder(architecture, tmp_path)}"
        export_onnx(name, tmp_path / "onnx")
        graph, model = load_encoder(f"dense:{tmp_path / 'onnx'}"), in_torch(name)
        np.testing.assert_allclose(vectors_of(graph, "query"), vectors_of(model, "query"), atol=1e-4)

    def test_of_a_token_table(self, tiny_static, tiny, tmp_path):
        report = export_onnx(f"static:{tiny_static}", tmp_path / "int8", tiny, {"quantize": "int8"})
        assert report.megabytes["int8"] < 0.75 * report.megabytes["float32"]
        export_onnx(f"static:{tiny_static}", tmp_path / "onnx")
        graph, model = load_encoder(f"static:{tmp_path / 'onnx'}"), in_torch(f"static:{tiny_static}")
        assert isinstance(graph, OnnxModel)
        assert graph.is_static
        np.testing.assert_allclose(vectors_of(graph, "query"), vectors_of(model, "query"), atol=1e-6)

    @pytest.mark.slow
    def test_of_a_hybrid_student(self, tiny_model, tiny, tmp_path):
        from retrodistill.students.hybrid import hybrid_student

        model = hybrid_student(in_torch(f"dense:{tiny_model}").model, 16, tiny.documents)
        model.save_pretrained(str(tmp_path / "hybrid"), create_model_card=False)
        export_onnx(f"dense:{tmp_path / 'hybrid'}", tmp_path / "onnx")
        graph, student = load_encoder(f"dense:{tmp_path / 'onnx'}"), in_torch(f"dense:{tmp_path / 'hybrid'}")
        assert graph.dimension == 48
        np.testing.assert_allclose(vectors_of(graph, "query"), vectors_of(student, "query"), atol=1e-5)

    @pytest.mark.parametrize(
        ("activation", "most"), [("relu", 5), pytest.param("log1p_relu", None, marks=pytest.mark.slow)]
    )
    def test_of_a_sparse_encoder(self, activation, most, tmp_path):
        model = sparse_models.splade(tmp_path / "bert", activation, max_active_dims=most)
        model.save_pretrained(str(tmp_path / "splade"), create_model_card=False)
        export_onnx(f"sparse:{tmp_path / 'splade'}", tmp_path / "onnx")
        graph, sparse = load_encoder(f"sparse:{tmp_path / 'onnx'}"), in_torch(f"sparse:{tmp_path / 'splade'}")
        assert isinstance(graph, OnnxModel)
        np.testing.assert_allclose(vectors_of(graph, "document"), vectors_of(sparse, "document"), atol=1e-5)

    @pytest.mark.slow
    def test_of_documents_whose_queries_need_no_model(self, tmp_path):
        model = sparse_models.inference_free(tmp_path / "bert")
        model.save_pretrained(str(tmp_path / "free"), create_model_card=False)
        export_onnx(f"sparse:{tmp_path / 'free'}", tmp_path / "onnx")
        graph, sparse = load_encoder(f"sparse:{tmp_path / 'onnx'}"), in_torch(f"sparse:{tmp_path / 'free'}")
        assert list(graph.export.roles) == ["document"]
        for role in ("query", "document"):
            np.testing.assert_allclose(vectors_of(graph, role), vectors_of(sparse, role), atol=1e-5)
        assert graph.is_inference_free

    @pytest.mark.slow
    def test_have_the_prompts_of_their_roles(self, tiny_model, tmp_path):
        model = in_torch(f"dense:{tiny_model}").model
        model.prompts = {"query": "what whale ", "document": ""}
        model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
        export_onnx(f"dense:{tmp_path / 'prompted'}", tmp_path / "onnx")
        graph, prompted = load_encoder(f"dense:{tmp_path / 'onnx'}"), in_torch(f"dense:{tmp_path / 'prompted'}")
        np.testing.assert_allclose(vectors_of(graph, "query"), vectors_of(prompted, "query"), atol=1e-5)
        assert not np.allclose(vectors_of(graph, "query"), vectors_of(graph, "document"))

    @pytest.mark.slow
    def test_of_a_truncated_model(self, tiny_model, tmp_path):
        model = in_torch(f"dense:{tiny_model}").model
        model.truncate_dim = 8
        model.save_pretrained(str(tmp_path / "short"), create_model_card=False)
        export_onnx(f"dense:{tmp_path / 'short'}", tmp_path / "onnx")
        graph, short = load_encoder(f"dense:{tmp_path / 'onnx'}"), in_torch(f"dense:{tmp_path / 'short'}")
        assert graph.dimension == short.dimension == 8
        np.testing.assert_allclose(vectors_of(graph, "query"), vectors_of(short, "query"), atol=1e-5)


class TestCrossEncoders:
    def test_scores_are_those_of_torch(self, tiny_cross_encoder, tiny, tmp_path):
        export_onnx(f"cross-encoder:{tiny_cross_encoder}", tmp_path / "onnx")
        graph = load_ranker(f"cross-encoder:{tmp_path / 'onnx'}")
        with encode_with(runtime="torch", precision="float32"):
            model = load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        assert graph.is_exported
        pairs = [(query, text) for query in TEXTS for text in TEXTS]
        np.testing.assert_allclose(graph.logits(pairs), model.logits(pairs), atol=1e-5)
        assert graph.fingerprint(tiny) != model.fingerprint(tiny)
        assert graph.logits([]).shape == model.logits([]).shape == (0,)

    @pytest.mark.slow
    def test_of_a_student_with_a_head_of_segments(self, tiny_model, tmp_path):
        from retrodistill.encoders.contract import STUDENT_MANIFEST
        from retrodistill.students.cross_encoder import cross_encoder_student
        from retrodistill.students.registry import save_student

        save_student(cross_encoder_student(tiny_model), Manifest("student"), tmp_path / "student")
        export_onnx(f"cross-encoder:{tmp_path / 'student'}", tmp_path / "onnx")
        assert "onnx/model.onnx" in Manifest.read(tmp_path / "onnx", STUDENT_MANIFEST).files
        graph = load_ranker(f"cross-encoder:{tmp_path / 'onnx'}")
        pairs = [(query, text) for query in TEXTS for text in TEXTS]
        with encode_with(runtime="torch", precision="float32"):
            student = load_ranker(f"cross-encoder:{tmp_path / 'student'}")
        np.testing.assert_allclose(graph.logits(pairs), student.logits(pairs), atol=1e-4)

    @pytest.mark.slow
    def test_int8_is_checked_on_what_bm25_finds(self, tiny_cross_encoder, tiny, tmp_path):
        settings = {"quantize": "int8", "min_agreement": 0.5}
        report = export_onnx(f"cross-encoder:{tiny_cross_encoder}", tmp_path / "onnx", tiny, settings)
        assert 0.5 <= report.fidelity.agreement <= 1


class TestSpace:
    def test_is_that_of_the_model(self, exported, tiny_model):
        graph, model = load_encoder(f"dense:{exported}"), in_torch(f"dense:{tiny_model}")
        assert graph.document_space == model.document_space
        assert graph.query_space_contract == model.query_space_contract

    def test_stores_keep_graphs_apart(self, exported, quantized, tiny_model):
        encoders = [
            load_encoder(f"dense:{exported}"),
            load_encoder(f"dense:{quantized[0]}"),
            in_torch(f"dense:{tiny_model}"),
        ]
        assert len({encoder.fingerprint("document") for encoder in encoders}) == 3

    def test_an_index_of_the_model_admits_queries_of_the_graph(self, exported, tiny_model, tiny):
        from retrodistill.indexes import build_index

        model = in_torch(f"dense:{tiny_model}")
        own = build_index(tiny, model).search(tiny.split("test"), k=10)
        found = build_index(tiny, model, f"dense:{exported}").search(tiny.split("test"), k=10)
        assert found.to_dict().keys() == own.to_dict().keys()
        np.testing.assert_allclose(found.scores, own.scores, atol=1e-5)

    @pytest.mark.usefixtures("traced")
    def test_a_student_keeps_the_space_of_its_documents(self, tiny_model, tmp_path):
        from retrodistill.encoders.contract import STUDENT_MANIFEST
        from retrodistill.students.registry import save_student

        about = {"query_space": "2-other", "query_space_contract": {"dimension": 32}}
        save_student(in_torch(f"dense:{tiny_model}").model, Manifest("student", about=about), tmp_path / "student")
        export_onnx(tmp_path / "student", tmp_path / "onnx")
        graph = load_encoder(f"dense:{tmp_path / 'onnx'}")
        assert isinstance(graph, OnnxModel)
        assert graph.query_space == "2-other"
        assert "onnx/model.onnx" in Manifest.read(tmp_path / "onnx", STUDENT_MANIFEST).files


class TestInt8:
    def test_agreement_is_reported_and_kept(self, quantized):
        folder, report = quantized
        assert report.fidelity.agreement >= 0.9
        kept = Manifest.read(folder / "onnx").about["fidelity"]
        assert kept == {**vars(report.fidelity)}

    def test_is_what_runs(self, quantized):
        assert "qint8" in load_encoder(f"dense:{quantized[0]}").export.file.name

    def test_a_vector_does_not_depend_on_the_other_texts(self, quantized):
        graph = load_encoder(f"dense:{quantized[0]}")
        together = graph.encode(TEXTS, "query")
        alone = np.concatenate([graph.encode([text], "query") for text in TEXTS])
        assert np.array_equal(together, alone)

    @pytest.mark.skipif(onnx_runtime.instructions() == "avx2", reason="a graph for AVX2 has 7 bits")
    def test_quantization_aware_training_computes_what_the_graph_does(self, quantized, tiny_model):
        wanted = load_encoder(f"dense:{quantized[0]}").encode(TEXTS, "query")
        model = load_bi_encoder(tiny_model)
        whole = model.encode(TEXTS, batch_size=1)
        with int8_layers(model):
            found = model.encode(TEXTS, batch_size=1)
        # A number that is on the border of two levels may be on the other.
        assert np.abs(found - wanted).max() < 0.3 * np.abs(whole - wanted).max()

    @pytest.mark.usefixtures("traced")
    def test_matrices_that_lose_most_stay_in_float32_first(self, tiny_model, tiny, tmp_path, monkeypatch):
        from retrodistill.exports.onnx_fidelity import VectorComparison

        plain, tried = VectorComparison.fidelity, []

        def strict(self, export):
            fidelity = plain(self, export)
            tried.append(fidelity.similarity)
            return fidelity if len(tried) > 2 else type(fidelity)(0.0, fidelity.similarity)

        monkeypatch.setattr(VectorComparison, "fidelity", strict)
        report = export_onnx(f"dense:{tiny_model}", tmp_path / "onnx", tiny, {"quantize": "int8"})
        assert report.fidelity.matrices == 12
        assert report.fidelity.kept == 3  # an eighth would be 2
        assert tried == sorted(tried)

    @pytest.mark.usefixtures("traced")
    def test_less_agreement_than_wanted_is_refused_with_the_figure(self, tiny_model, tiny, tmp_path, monkeypatch):
        from retrodistill.exports.onnx_fidelity import Fidelity, VectorComparison

        monkeypatch.setattr(VectorComparison, "fidelity", lambda self, export: Fidelity(0.25, 0.5))
        with pytest.raises(UserError, match=r"int8 finds 25\.0% .* 6 of 12 matrices in float32.*min_agreement=0\.9"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx", tiny, {"quantize": "int8"})
        assert not (tmp_path / "onnx").exists()

    def test_test_queries_are_not_looked_at(self, tiny_model, tiny, monkeypatch):
        from retrodistill.training.texts import tuning_queries

        assert not set(tuning_queries(tiny).texts) & set(tiny.split("test").texts)

    @pytest.mark.usefixtures("traced")
    def test_a_graph_that_does_not_run_here_cannot_be_checked(self, tiny_model, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_runtime, "instructions", lambda: "avx2")
        settings = {"quantize": "int8", "instructions": "avx512_vnni"}
        with pytest.raises(UserError, match="this processor does not have them"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx", tiny, settings)

    def test_a_graph_for_vnni_is_left_alone_elsewhere(self, quantized, monkeypatch):
        monkeypatch.setattr(onnx_runtime, "instructions", lambda: "avx2")
        export = onnx_runtime.OnnxExport.open(quantized[0])
        made_for = export.manifest.about["graphs"]["int8"]
        assert export.file.name == ("model.onnx" if "vnni" in made_for else made_for)

    @pytest.mark.parametrize(
        ("processor", "runs"),
        [
            ("avx2", {"avx2": True, "avx512_vnni": False, "arm64": False}),
            ("avx512_vnni", {"avx2": True, "avx512_vnni": True, "arm64": True}),
            ("arm64", {"avx2": True, "avx512_vnni": True, "arm64": True}),
        ],
    )
    def test_sums_of_8_bit_weights_overflow_without_vnni(self, processor, runs, monkeypatch):
        monkeypatch.setattr(onnx_runtime, "instructions", lambda: processor)
        assert {name: onnx_runtime.runs_here(f"model_qint8_{name}.onnx") for name in runs} == runs

    def test_as_many_ranks_are_compared_as_half_of_a_few_documents(self):
        from retrodistill.exports.onnx_fidelity import _agreement

        whole = {"query": np.eye(4, dtype=np.float32), "document": np.eye(4, dtype=np.float32) * [4, 3, 2, 1]}
        assert _agreement(whole, whole) == 1
        assert _agreement({**whole, "document": whole["document"][::-1]}, whole) < 1


class TestRuntime:
    def test_torch_is_taken_on_request(self, exported):
        assert not isinstance(in_torch(f"dense:{exported}"), OnnxModel)

    def test_a_model_without_an_export_is_refused_by_onnx(self, tiny_model):
        with encode_with(runtime="onnx"), pytest.raises(UserError, match="has no ONNX export; make one with"):
            load_encoder(f"dense:{tiny_model}")

    def test_auto_takes_torch_without_onnxruntime(self, exported, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.any_encoder.is_installed", lambda: False)
        assert not isinstance(load_encoder(f"dense:{exported}"), OnnxModel)

    def test_bfloat16_is_refused(self):
        with pytest.raises(UserError, match="leave precision out"), encode_with(runtime="onnx", precision="bfloat16"):
            pass

    def test_a_search_does_not_import_torch(self, exported, tiny_folder, tmp_path, tiny_model):
        from retrodistill.data import load_collection
        from retrodistill.indexes import build_index

        build_index(load_collection(tiny_folder), f"dense:{tiny_model}", f"dense:{exported}").save(tmp_path / "index")
        code = (
            "import sys; from retrodistill.indexes import load_index; "
            f"run = load_index({str(tmp_path / 'index')!r}).search(['whale and coral'], k=3); "
            "print(len(run), 'torch' in sys.modules, 'transformers' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["3", "False", "False"], done.stderr

    def test_training_takes_the_model_itself(self, exported):
        encoder = load_encoder(f"dense:{exported}")
        assert type(encoder.model).__name__ == "SentenceTransformer"


class TestFolder:
    def test_is_one_of_sentence_transformers(self, exported):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(exported), device="cpu")
        graph = load_encoder(f"dense:{exported}")
        np.testing.assert_allclose(
            model.encode(TEXTS, normalize_embeddings=True), graph.encode(TEXTS, "query"), atol=1e-5
        )

    def test_graphs_have_the_outputs_that_the_library_reads(self, exported):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"))
        assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]

    def test_other_weights_are_refused(self, exported, tmp_path):
        from safetensors.torch import load_file, save_file

        shutil.copytree(exported, tmp_path / "copy")
        weights = load_file(tmp_path / "copy" / "model.safetensors")
        save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "copy" / "model.safetensors")
        with pytest.raises(UserError, match=r"was exported with another model\.safetensors; export the model"):
            load_encoder(f"dense:{tmp_path / 'copy'}")
        with encode_with(runtime="torch"):
            load_encoder(f"dense:{tmp_path / 'copy'}")

    def test_what_was_opened_stays_when_the_folder_is_replaced(self, exported, tmp_path):
        shutil.copytree(exported, tmp_path / "copy")
        encoder = load_encoder(f"dense:{tmp_path / 'copy'}")
        wanted = load_encoder(f"dense:{exported}").encode(TEXTS, "query")
        manifest = tmp_path / "copy" / "onnx" / "manifest.json"
        other = replace(Manifest.read(manifest.parent, manifest.name), inputs={"weights": "others"})
        other.write(manifest.parent)
        np.testing.assert_array_equal(encoder.encode(TEXTS, "query"), wanted)
        with pytest.raises(UserError, match="was replaced after it was opened; open it again"):
            _ = encoder.model

    def test_a_damaged_graph_is_refused(self, exported, tmp_path):
        shutil.copytree(exported, tmp_path / "copy")
        graph = tmp_path / "copy" / "onnx" / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"model\.onnx is damaged"):
            load_encoder(f"dense:{tmp_path / 'copy'}")

    @pytest.mark.usefixtures("traced")
    def test_an_earlier_export_is_replaced_and_other_folders_are_kept(self, tiny_model, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="holds other files"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "other")
        export_onnx(f"dense:{tiny_model}", tmp_path / "onnx")
        export_onnx(f"dense:{tiny_model}", tmp_path / "onnx")


class TestRefusals:
    def test_an_operation_that_onnx_lacks(self, tiny_model, tmp_path, monkeypatch):
        from sentence_transformers.sentence_transformer.modules import Normalize

        def without_graph(self, features):
            features["sentence_embedding"] = torch.linalg.qr(features["sentence_embedding"])[0]
            return features

        model = in_torch(f"dense:{tiny_model}").model
        model.append(Normalize())
        model.save_pretrained(str(tmp_path / "odd"), create_model_card=False)
        monkeypatch.setattr(Normalize, "forward", without_graph)
        with pytest.raises(UserError, match="cannot be exported to ONNX"):
            export_onnx(f"dense:{tmp_path / 'odd'}", tmp_path / "onnx")
        assert not (tmp_path / "onnx").exists()

    @pytest.mark.usefixtures("traced")
    def test_a_graph_that_gives_other_vectors(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr(export_module, "_CLOSE", 1e-12)
        with pytest.raises(UserError, match="gives other results than torch"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx")

    def test_a_model_that_drops_tokens(self, tiny_model, tmp_path):
        model = in_torch(f"dense:{tiny_model}").model
        make_length_adaptive(model, LengthAdaptiveSettings(layers=[1], keep=[0.5]))
        save_pretrained(model, tmp_path / "model")
        with pytest.raises(UserError, match=r"keep-0.5 drops tokens, .* export the model with all tokens"):
            export_onnx(f"dense:{tmp_path / 'model'}@keep-0.5", tmp_path / "onnx")
        assert not (tmp_path / "onnx").exists()

    def test_two_gigabytes(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr("retrodistill.exports.onnx_graphs._LARGEST", 1000)
        with pytest.raises(UserError, match="GiB, and an ONNX file less than 2"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx")

    def test_a_kind_with_several_vectors(self, tiny_model, tmp_path):
        with pytest.raises(UserError, match="cannot be exported to ONNX; models that can"):
            export_onnx(f"multi-vector:{tiny_model}", tmp_path / "onnx")

    def test_a_model_without_a_head_that_scores(self, tiny_model, tmp_path):
        with pytest.raises(UserError, match="no head that scores pairs"):
            export_onnx(f"cross-encoder:{tiny_model}", tmp_path / "onnx")

    def test_int8_without_a_collection(self, tiny_model, tmp_path):
        with pytest.raises(UserError, match="give a collection"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx", settings={"quantize": "int8"})

    def test_missing_packages(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            UserError, match=r"needs onnx and onnxruntime and onnxscript; install 'retrodistill\[onnx\]'"
        ):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx")

    def test_an_unknown_precision(self, tiny_model, tmp_path):
        with pytest.raises(UserError, match="int4"):
            export_onnx(f"dense:{tiny_model}", tmp_path / "onnx", settings={"quantize": "int4"})


class TestCommand:
    @pytest.mark.usefixtures("traced")
    def test_says_what_was_kept(self, call, tiny_model, tiny_folder, tmp_path):
        source, out = f"dense:{tiny_model}", tmp_path / "onnx"
        status, shown, _ = call(
            "export", source, "--to", "onnx", "--out", out, "--quantize", "int8", "--collection", tiny_folder
        )
        assert status == 0
        assert "of the same ten best documents" in shown

    @pytest.mark.usefixtures("traced")
    def test_prints_json(self, call, tiny_model, tmp_path):
        status, shown, _ = call("export", f"dense:{tiny_model}", "--to", "onnx", "--out", tmp_path / "onnx", "--json")
        assert status == 0
        assert json.loads(shown)["kind"] == "dense"
