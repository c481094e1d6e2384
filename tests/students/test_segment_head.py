"""The head of segments by brute force, where it is the default, and that it is saved and taken over."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from retrodistill.core.errors import UserError
from retrodistill.rankers.loading import load_ranker
from retrodistill.students.cross_encoder import CrossEncoderStudent, cross_encoder_student
from retrodistill.students.late_interaction import StoredDocuments, module_of
from retrodistill.students.prett import prett_student
from retrodistill.students.registry import load_student, weights_to_start_from
from retrodistill.students.segment_head import SegmentHead
from retrodistill.students.tk import tk_student

QUERY = "what star"
DOCUMENTS = ["the comet and the moon today", "court", "bread and butter and olive and pepper today", ""]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture
def whole(tiny_model):
    """A cross-encoder from a bi-encoder, with a correction as if it were trained."""
    return CrossEncoderStudent(corrected(cross_encoder_student(tiny_model)).eval(), "cross-encoder:c")


def corrected(model):
    with torch.no_grad():
        for weights in heads_of(model)[0].correction.parameters():
            weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    return model


def heads_of(model):
    return [module for module in model.modules() if isinstance(module, SegmentHead)]


@torch.no_grad()
def by_hand(model, query, document, *, alike=False, join=0):
    """The score of a pair from its tokens, read apart below a layer; ``alike``: both are read as by a bi-encoder."""
    (head,) = heads_of(model)
    bert = getattr(model[0], "backbone", None) or model[0].auto_model
    sides = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, document)]
    first, last = [model.tokenizer.cls_token_id], [model.tokenizer.sep_token_id]
    left = [*first, *sides[0], *last]
    ids = [*left, *(first if alike else []), *sides[1], *last]
    is_document = torch.arange(len(ids)) >= len(left)
    places = torch.arange(len(ids)) - is_document * alike * len(left)
    segments = is_document.long() * (not alike)
    hidden = bert.embeddings(input_ids=torch.tensor([ids]), token_type_ids=segments[None], position_ids=places[None])
    for number, layer in enumerate(bert.encoder.layer):
        apart = (is_document[:, None] != is_document[None, :]) & (number < join)
        hidden = layer(hidden, apart[None, None].float() * torch.finfo(torch.float32).min)
    states = hidden[0].numpy()
    q, d = states[: len(left)].mean(axis=0), states[len(left) :].mean(axis=0)
    score = float(head.scale) * q @ d / np.linalg.norm(q) / np.linalg.norm(d)
    between = np.tanh(head.dense.weight.numpy() @ states[0] + head.dense.bias.numpy())
    return score + float(head.correction.weight.numpy()[0] @ between) + float(head.correction.bias[0])


class TestScores:
    def test_they_are_the_scaled_cosine_of_the_means_and_the_correction(self, whole):
        np.testing.assert_allclose(whole.score(PAIRS), [by_hand(whole.model, *pair) for pair in PAIRS], atol=1e-4)

    def test_untrained_they_are_the_cosine_alone(self, tiny_model):
        model = cross_encoder_student(tiny_model)
        scores = CrossEncoderStudent(model, "cross-encoder:c").score(PAIRS)
        np.testing.assert_allclose(scores, [by_hand(model, *pair) for pair in PAIRS], atol=1e-4)
        (head,) = heads_of(model)
        assert float(head.scale.detach()) == 20
        assert not any(weights.any() for weights in head.correction.parameters())
        assert abs(scores).max() <= 20

    @pytest.mark.parametrize("join", [0, 1])
    def test_of_prett_they_are_those_of_one_sequence_with_blocked_attention(self, tiny_model, join):
        model = prett_student(tiny_model, DOCUMENTS, join=join, max_length=16)
        model[0].precision = "float32"
        corrected(model)
        one = CrossEncoderStudent(model.eval(), "cross-encoder:p")
        wanted = [by_hand(model, *pair, alike=True, join=join) for pair in PAIRS]
        np.testing.assert_allclose(one.score(PAIRS), wanted, atol=1e-4)
        np.testing.assert_allclose(StoredDocuments(one, DOCUMENTS).score(QUERY, np.arange(4)), wanted, atol=1e-4)

    @pytest.mark.parametrize("kind", ["cross-encoder", "prett"])
    def test_gradients_reach_all_that_is_read(self, kind, whole, tiny_model):
        model = whole.model if kind == "cross-encoder" else corrected(prett_student(tiny_model, DOCUMENTS))
        model.train()
        model(model.preprocess(PAIRS))["scores"].square().sum().backward()
        still = {name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0}
        assert all("pooler" in name for name in still)


class TestChoice:
    def test_a_model_that_scores_pairs_keeps_its_own(self, tiny_cross_encoder, tiny_model):
        for head in (None, "cls"):
            model = cross_encoder_student(tiny_cross_encoder, head=head)
            assert (
                CrossEncoderStudent(model, "c").score(PAIRS).tolist()
                == load_ranker(f"cross-encoder:{tiny_cross_encoder}").logits(PAIRS).tolist()
            )
        assert heads_of(prett_student(tiny_cross_encoder, DOCUMENTS)) == []
        assert heads_of(prett_student(tiny_model, DOCUMENTS, head="cls")) == []

    def test_a_new_head_is_refused_where_there_is_one(self, tiny_cross_encoder):
        with pytest.raises(UserError, match=r"^head: segments is for models without a head; .* has one"):
            cross_encoder_student(tiny_cross_encoder, head="segments")

    def test_a_model_that_reads_no_pairs_is_refused(self, tiny_static):
        with pytest.raises(UserError, match=r"\(StaticEmbedding\) does not read pairs; start from a transformer"):
            cross_encoder_student(tiny_static)

    def test_layers_and_length_are_cut(self, tiny_model):
        model = cross_encoder_student(tiny_model, layers=1, max_length=6)
        assert len(model[0].auto_model.encoder.layer) == 1
        one = CrossEncoderStudent(model, "c")
        cut = one.score([(QUERY, "the comet and today")])
        np.testing.assert_allclose(one.score([(QUERY, "the comet and today today")]), cut, atol=1e-6)
        with pytest.raises(UserError, match=r"^max_length=65: model .* reads 1 to 64 tokens"):
            cross_encoder_student(tiny_model, max_length=65)


class TestSaving:
    def test_it_comes_back_with_equal_scores(self, whole, tmp_path):
        whole.model.max_seq_length = 6
        whole.model.save_pretrained(str(tmp_path / "c"), create_model_card=False)
        modules = json.loads((tmp_path / "c" / "modules.json").read_text())
        assert modules[1]["type"] == "retrodistill.students.segment_head.SegmentHead"
        wanted = whole.score(PAIRS)
        np.testing.assert_array_equal(load_student(tmp_path / "c").score(PAIRS), wanted)
        np.testing.assert_allclose(load_ranker(f"cross-encoder:{tmp_path / 'c'}").logits(PAIRS), wanted, atol=1e-6)
        library = CrossEncoder(str(tmp_path / "c"), trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(library.predict(PAIRS), wanted, atol=1e-5)

    def test_prett_comes_back_with_equal_scores(self, tiny_model, tmp_path):
        one = CrossEncoderStudent(corrected(prett_student(tiny_model, DOCUMENTS)).eval(), "cross-encoder:p")
        one.model.save_pretrained(str(tmp_path / "p"), create_model_card=False)
        again = load_student(tmp_path / "p")
        assert module_of(again).head == "segments"
        np.testing.assert_array_equal(again.score(PAIRS), one.score(PAIRS))

    def test_prett_takes_over_the_head_of_a_saved_cross_encoder(self, whole, tmp_path):
        whole.model.save_pretrained(str(tmp_path / "c"), create_model_card=False)
        model = prett_student(str(tmp_path / "c"), DOCUMENTS, join=0)
        for name, weights in heads_of(whole.model)[0].state_dict().items():
            assert torch.equal(heads_of(model)[0].state_dict()[name], weights)


class TestStart:
    def test_prett_and_tk_take_over_the_layers_of_a_cross_encoder(self, whole, tiny_model):
        with torch.no_grad():
            for weights in whole.model[0].parameters():
                weights.add_(0.1)
        given = whole.model[0].auto_model
        for model in (prett_student(tiny_model, DOCUMENTS), tk_student(tiny_model, DOCUMENTS, layers=1)):
            weights = weights_to_start_from(model, whole.model, "student:c")
            backbone = model[0].backbone
            backbone.load_state_dict(weights, strict=False)
            for layer, other in zip(backbone.encoder.layer, given.encoder.layer, strict=False):
                assert torch.equal(layer.output.dense.weight, other.output.dense.weight)
