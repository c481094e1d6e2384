import pydantic
import pytest

from retrodistill.recipes.student_settings import StudentSettings
from retrodistill.training.settings import RegularizerSettings, StageSettings


def student(model, train="both_encoders", objectives="kl", **more):
    stage = {"objectives": objectives, "train": train, **more.pop("stage", {})}
    return StudentSettings.model_validate({"model": model, "stages": [stage], **more})


class TestKinds:
    @pytest.mark.parametrize("model", ["sparse:x", "multi-vector:x", "cross-encoder:x"])
    def test_those_without_a_dense_vector_search_their_own_documents(self, model):
        assert student(model).documents == "student"
        assert student(model).kind.name == model.partition(":")[0]
        with pytest.raises(pydantic.ValidationError, match=r"has no vectors in a dense space; set documents: student"):
            student(model, documents="frozen")

    @pytest.mark.parametrize(
        ("model", "train", "wanted"),
        [
            ("static", "head", "query_encoder or both_encoders"),
            ("dense:x", "head", "query_encoder or both_encoders"),
            ("sparse:x", "lexical", "head or both_encoders or query_encoder"),
            ("multi-vector:x", "lexical", "head or both_encoders"),
            ("cross-encoder:x", "head", "both_encoders"),
        ],
    )
    def test_parts_that_a_kind_does_not_have(self, model, train, wanted):
        with pytest.raises(pydantic.ValidationError, match=rf"does not train .* students; set train: {wanted}"):
            student(model, train)

    @pytest.mark.parametrize(
        ("model", "option", "value"),
        [
            ("dense:x", "queries", "inference-free"),
            ("sparse:x", "expansion", 32),
            ("sparse:x", "dimension", 64),
            ("cross-encoder:x", "dimension", 64),
            ("multi-vector:x", "queries", "inference-free"),
        ],
    )
    def test_options_of_another_kind(self, model, option, value):
        with pytest.raises(pydantic.ValidationError, match=rf"{option} is for .* students; this one is"):
            student(model, **{option: value})

    def test_a_head_is_that_of_splade(self):
        assert student("sparse:x", "head", queries="inference-free").queries == "inference-free"
        assert student("sparse:x", "head", queries="model").queries == "model"
        with pytest.raises(pydantic.ValidationError, match=r"head: vdr, set train: both_encoders"):
            student("sparse:x", "head", queries="model", head="vdr")

    @pytest.mark.parametrize(
        ("control", "objective", "what"),
        [("contrastive", "kl", "control: contrastive"), (None, "contrastive", "two doc")],
    )
    def test_joined_texts_have_no_positive(self, control, objective, what):
        with pytest.raises(pydantic.ValidationError, match=what):
            StudentSettings.model_validate(
                {
                    "model": "static",
                    "control": control,
                    "stages": [{"objectives": objective, "texts": {"joined": True}}],
                }
            )

    @pytest.mark.parametrize(
        ("model", "head", "wanted"),
        [
            ("cross-encoder:x", "vdr", "set head: segments or cls"),
            ("prett:x", "vdr", "set head: segments or cls"),
            ("sparse:x", "segments", "head: splade or vdr"),
            ("tk:x", "segments", "head is for .* students; this one is tk"),
        ],
    )
    def test_heads_of_another_kind(self, model, head, wanted):
        with pytest.raises(pydantic.ValidationError, match=wanted):
            student(model, head=head)

    def test_the_head_that_earlier_versions_wrote_for_every_kind_is_the_default(self):
        assert student("dense:x", documents="student", head="splade").head is None
        assert student("cross-encoder:x", head="splade").head is None
        assert student("sparse:x", head="splade").head == "splade"

    def test_there_is_nothing_to_align(self):
        with pytest.raises(pydantic.ValidationError, match=r"has no embedding to align; use list objectives"):
            student("multi-vector:x", objectives=["kl", "leaf"])

    def test_a_tokens_width_is_a_number(self):
        with pytest.raises(pydantic.ValidationError, match=r"dimension is a number: that of a token's vector"):
            student("multi-vector:x", dimension="space")


class TestRegularizers:
    def test_they_are_for_sparse_students(self):
        stage = {"regularizers": [{"name": "flops", "weight": 0.01}]}
        assert student("sparse:x", stage=stage).stages[0].regularizers[0].side == "document"
        with pytest.raises(pydantic.ValidationError, match=r"regularizers need term weights, which a dense student"):
            student("dense:x", documents="student", stage=stage)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"name": "flop", "weight": 1}, r"unknown regularizer 'flop'. Did you mean 'flops'\?"),
            ({"name": "l1", "weight": 0}, r"greater than 0"),
            ({"name": "l1", "weight": 1, "side": "both"}, r"'document' or 'query'"),
            ({"name": "top-k", "weight": 1, "terms": 0}, r"greater than or equal to 1"),
            ({"name": "l1", "weight": 1, "warmup": 2}, r"less than or equal to 1"),
            ({"name": "flops", "weight": 1, "threshold": 0}, r"greater than or equal to 1"),
            ({"name": "anti-zero", "weight": 1, "threshold": 5}, r"threshold is for flops, l1, and top-k"),
        ],
    )
    def test_mistakes(self, given, message):
        with pytest.raises(pydantic.ValidationError, match=message):
            RegularizerSettings.model_validate(given)

    def test_stages_have_none_by_default(self):
        assert StageSettings(objectives="kl").regularizers == []
