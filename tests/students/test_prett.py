"""PreTT: what reads apart and what together, by brute force; stored documents; saving; what it refuses."""

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.students.cross_encoder import CrossEncoderStudent, cross_encoder_student
from retrodistill.students.late_interaction import StoredDocuments, below_stored, late_interaction, module_of
from retrodistill.students.prett import PreTT, prett_student
from retrodistill.students.registry import load_student

QUERY = "what star"
DOCUMENTS = ["the comet and the moon today", "court", "bread and butter and olive and pepper today", ""]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture
def student(tiny_cross_encoder):
    def student(**settings):
        start = louder(cross_encoder_student(tiny_cross_encoder))
        given = {"join": 1, "query_length": 8, "document_length": 16, "precision": "float32", **settings}
        late = PreTT(start[0].auto_model, start.tokenizer, **given)
        late.fit_compressor(DOCUMENTS)
        return CrossEncoderStudent(late_interaction(late, "cpu").eval(), "cross-encoder:prett")

    return student


def louder(model):
    """The tiny model with larger weights, so that a pair's score depends on its tokens."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2:
                weights.mul_(1 if "embeddings" in name else 10)
    return model


def in_one_sequence(late, query, document):
    """The paper's way: one sequence, all layers, attention between the halves blocked below the join."""
    bert, tokenizer = late.backbone.bert, late.tokenizer
    left = tokenizer(query, add_special_tokens=False)["input_ids"]
    right = tokenizer(document, add_special_tokens=False)["input_ids"]
    left = [tokenizer.cls_token_id, *left, tokenizer.sep_token_id]
    right = [*right, tokenizer.sep_token_id]
    ids = torch.tensor([left + right])
    positions = torch.tensor([[*range(len(left)), *(late.query_length + place for place in range(len(right)))]])
    side = torch.tensor([0] * len(left) + [1] * len(right))
    hidden = bert.embeddings(input_ids=ids, token_type_ids=side[None], position_ids=positions)
    for number, layer in enumerate(bert.encoder.layer):
        apart = (side[:, None] != side[None, :]) & (number < late.join)
        hidden = layer(hidden, apart[None, None].float() * torch.finfo(torch.float32).min)
    return float(late.backbone.classifier(bert.pooler(hidden))[0, 0].detach())


class TestBlockMask:
    @pytest.mark.parametrize("join", [0, 1])
    def test_scores_are_those_of_one_sequence_with_blocked_attention(self, student, join):
        one = student(join=join)
        wanted = [in_one_sequence(module_of(one), *pair) for pair in PAIRS]
        np.testing.assert_allclose(one.score(PAIRS), wanted, atol=1e-5)
        assert np.ptp(wanted) > 1e-3

    def test_what_stands_below_the_join_is_read_apart(self, student):
        together, apart = student(join=0).score(PAIRS), student(join=1).score(PAIRS)
        assert abs(together - apart).max() > 1e-4

    def test_without_layers_apart_it_is_the_cross_encoder(self, student, tiny_cross_encoder):
        whole = CrossEncoderStudent(louder(cross_encoder_student(tiny_cross_encoder)), "cross-encoder:whole")
        length = 4  # [CLS] what star [SEP]: a document's positions then follow the query's
        np.testing.assert_allclose(student(join=0, query_length=length).score(PAIRS), whole.score(PAIRS), atol=1e-5)

    def test_a_documents_states_do_not_change_with_the_query_nor_its_batch(self, student):
        late = module_of(student())
        seen = []
        late.compare = lambda queries, documents, mask: seen.append((documents, mask)) or documents[:, 0, 0]
        for query in (QUERY, "a much longer question about law and order"):
            late(late.preprocess([(query, document) for document in DOCUMENTS]))
        late(late.preprocess([(QUERY, DOCUMENTS[0])]))
        (first, mask), (second, _), (alone, _) = seen
        assert torch.equal(first, second)
        torch.testing.assert_close(first[0][mask[0]], alone[0], rtol=0, atol=1e-6)


class TestScores:
    def test_a_pair_scores_the_same_in_any_batch(self, student):
        one = student()
        alone = [one.score([pair])[0] for pair in PAIRS]
        np.testing.assert_allclose(one.score(PAIRS), alone, atol=1e-6)

    def test_pairs_that_share_texts_keep_their_order(self, student):
        one = student()
        mixed = [("court", DOCUMENTS[2]), (QUERY, DOCUMENTS[0]), ("court", DOCUMENTS[0]), (QUERY, DOCUMENTS[2])]
        np.testing.assert_allclose(one.score(mixed), [one.score([pair])[0] for pair in mixed], atol=1e-6)

    def test_longer_texts_are_cut(self, student):
        one = student(document_length=4)
        whole = "the comet and"
        np.testing.assert_allclose(one.score([(QUERY, f"{whole} the moon")]), one.score([(QUERY, whole)]), atol=1e-6)

    @pytest.mark.parametrize("dimension", [None, 12])
    def test_gradients_reach_everything(self, student, dimension):
        late = module_of(student(dimension=dimension)).train()
        late(late.preprocess(PAIRS))["scores"].square().sum().backward()
        still = [name for name, one in late.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
        assert still == []


class TestStored:
    @pytest.mark.parametrize("dimension", [None, 12])
    def test_stored_documents_score_as_a_full_pass(self, student, dimension):
        one = student(dimension=dimension)
        stored = StoredDocuments(one, DOCUMENTS)
        np.testing.assert_allclose(stored.score(QUERY, np.arange(4)), one.score(PAIRS), atol=1e-5)
        np.testing.assert_allclose(stored.score(QUERY, np.array([2, 0])), one.score(PAIRS)[[2, 0]], atol=1e-5)

    def test_half_precision_is_in_the_full_pass_too(self, student):
        whole, half = student(), student(precision="float16")
        np.testing.assert_allclose(
            StoredDocuments(half, DOCUMENTS).score(QUERY, np.arange(4)), half.score(PAIRS), atol=1e-5
        )
        assert 0 < abs(half.score(PAIRS) - whole.score(PAIRS)).max() < 1e-2

    def test_bytes_are_those_of_the_states(self, student):
        tokens = sum(len(document.split()) + 1 for document in DOCUMENTS)
        places = 16
        for settings, width in [({}, 4 * 32), ({"precision": "float16"}, 2 * 32), ({"dimension": 12}, 4 * 12)]:
            stored = StoredDocuments(student(**settings), DOCUMENTS)
            assert stored.bytes_per_document == pytest.approx(tokens * width / 4 + places)

    def test_a_trained_student_does_not_read_what_it_stored_before(self, student):
        one = student()
        before = StoredDocuments(one, DOCUMENTS).score(QUERY, np.arange(4))
        late = module_of(one)
        with torch.no_grad():
            late.backbone.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
        again = CrossEncoderStudent(one.model, "cross-encoder:prett")
        after = StoredDocuments(again, DOCUMENTS).score(QUERY, np.arange(4))
        np.testing.assert_allclose(after, again.score(PAIRS), atol=1e-5)
        assert abs(after - before).max() > 1e-4

    def test_a_compressor_of_full_width_loses_nothing(self, student):
        np.testing.assert_allclose(student(dimension=32).score(PAIRS), student().score(PAIRS), atol=1e-4)

    def test_frozen_below_the_join_it_gives_the_same_scores_and_trains_the_rest(self, student):
        one = student()
        late, wanted = module_of(one), one.score(PAIRS)
        with below_stored(one, DOCUMENTS):
            np.testing.assert_allclose(one.score(PAIRS), wanted, atol=1e-3)  # its states are kept in float16
            late(late.preprocess(PAIRS))["scores"].sum().backward()
            moving = {name for name, each in late.named_parameters() if each.grad is not None}
            with pytest.raises(UserError, match=r"^1 documents have no stored states, among them 'another'"):
                one.score([(QUERY, "another")])
        assert moving
        assert not any("embeddings" in name or "layer.0." in name for name in moving)
        assert all(each.requires_grad for each in late.parameters())
        np.testing.assert_array_equal(one.score(PAIRS), wanted)

    def test_a_cross_encoder_stores_nothing(self, tiny_cross_encoder):
        plain = CrossEncoderStudent(cross_encoder_student(tiny_cross_encoder), "cross-encoder:c")
        assert plain.kind == "cross-encoder"
        with pytest.raises(UserError, match=r"^cross-encoder:c reads pairs as a whole and stores no documents"):
            StoredDocuments(plain, DOCUMENTS)


class TestSaving:
    def test_it_comes_back_with_equal_scores_and_settings(self, student, tmp_path):
        one = student(dimension=12, precision="float16")
        one.model.save_pretrained(str(tmp_path / "s"), create_model_card=False)
        again = load_student(tmp_path / "s")
        assert isinstance(module_of(again), PreTT)
        assert module_of(again).get_config_dict() == module_of(one).get_config_dict()
        last_bits = 1e-6 if torch.cuda.is_available() else 0  # on a GPU they were seen to differ
        np.testing.assert_allclose(again.score(PAIRS), one.score(PAIRS), rtol=last_bits)
        assert again.kind == "prett"

    def test_its_fingerprint_tells_the_join(self, student):
        prints = {student(join=join).fingerprint("query") for join in (0, 1)}
        assert len(prints) == 2
        assert student().fingerprint("query") == student().fingerprint("document")


class TestRefusals:
    @pytest.mark.parametrize("join", [-1, 2, 3])
    def test_a_join_that_leaves_no_layer_for_both(self, tiny_cross_encoder, join):
        with pytest.raises(UserError, match=rf"^join={join}: the model has 2 layers, .* choose 0 to 1"):
            prett_student(tiny_cross_encoder, DOCUMENTS, join=join)

    def test_a_width_that_it_does_not_have(self, tiny_cross_encoder):
        with pytest.raises(UserError, match=r"^dimension=33: the model's tokens have 32"):
            prett_student(tiny_cross_encoder, DOCUMENTS, dimension=33)

    def test_more_tokens_than_it_has_positions(self, tiny_cross_encoder):
        with pytest.raises(UserError, match=r"tokens of a query and 60 of a document: the model reads 64 together"):
            prett_student(tiny_cross_encoder, DOCUMENTS, max_length=60)

    def test_a_table_of_tokens(self, tiny_static):
        with pytest.raises(UserError):
            prett_student(tiny_static, DOCUMENTS)
