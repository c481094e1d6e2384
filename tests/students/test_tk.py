"""TK: kernel pooling by brute force, masks, the mix, stored documents, saving; what it refuses."""

import math

import numpy as np
import pytest
import torch

from retrodistill.core.errors import UserError
from retrodistill.students.cross_encoder import CrossEncoderStudent
from retrodistill.students.late_interaction import StoredDocuments, below_stored, module_of
from retrodistill.students.registry import load_student
from retrodistill.students.tk import CENTRES, TK, inverse_frequencies, kernel_sums, tk_student

QUERY = "what star"
DOCUMENTS = ["the comet and the moon today", "star", "bread and butter and olive and pepper today", ""]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture
def student(tiny_model):
    def student(precision="float32", **settings):
        model = tk_student(tiny_model, DOCUMENTS, **{"layers": 1, **settings})
        late = model[0]
        late.precision = precision
        with torch.no_grad():  # away from the start, where half of the kernels count nothing
            generator = torch.Generator().manual_seed(0)
            late.logs.copy_(torch.randn(len(CENTRES), generator=generator) / 10)
            late.means.copy_(torch.randn(len(CENTRES), generator=generator))
        return CrossEncoderStudent(model.eval(), "cross-encoder:tk")

    return student


@torch.no_grad()
def by_hand(late, query, document):
    """The score of one pair, token by token (the paper's section 3)."""

    def vectors(text):
        ids = torch.tensor([late.tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.int64)
        if not ids.shape[1]:
            return ids[0], np.zeros((0, 1))
        bert = late.backbone
        words, hidden = bert.embeddings.word_embeddings(ids)[0], bert.embeddings(input_ids=ids)
        for layer in bert.encoder.layer:
            hidden = layer(hidden, None)
        found = words / words.norm(dim=1, keepdim=True)
        if len(bert.encoder.layer):
            context = hidden[0] / hidden[0].norm(dim=1, keepdim=True)
            found = late.alpha * found + (1 - late.alpha) * context
        if late.projection is not None:
            found = late.projection(found)
        return ids[0], found.numpy()

    (ids, left), (_, right) = vectors(query), vectors(document)
    total = 0.0
    for token, one in zip(ids, left, strict=True):
        weight = 1.0 if late.gate is None else float(late.gate[token])
        cosines = [one @ other / np.linalg.norm(one) / np.linalg.norm(other) for other in right]
        for center, log_weight, mean_weight in zip(CENTRES, late.logs, late.means, strict=True):
            count = sum(math.exp(-((cosine - center) ** 2) / (2 * 0.1**2)) for cosine in cosines)
            total += weight * float(log_weight) * math.log2(max(count, 1e-10))
            total += weight * float(mean_weight) * count / max(1, len(right))
    return total


class TestKernels:
    def test_their_centres_are_the_authors(self):
        assert len(CENTRES) == 11
        np.testing.assert_allclose(CENTRES, [1, *np.arange(0.9, -1, -0.2)], atol=1e-12)

    def test_masked_tokens_count_nothing(self):
        match = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
        mask = torch.tensor([[True, True, True, False, False], [True] * 5])
        found = kernel_sums(match, mask, torch.tensor(CENTRES))
        assert found.shape == (2, 3, 11)
        for text, query, kernel in np.ndindex(2, 3, 11):
            wanted = sum(
                math.exp(-((float(match[text, query, token]) - CENTRES[kernel]) ** 2) / 0.02)
                for token in range(3 if text == 0 else 5)
            )
            assert float(found[text, query, kernel]) == pytest.approx(wanted, abs=1e-6)

    @pytest.mark.parametrize(
        "settings", [{}, {"layers": 0}, {"gated": False}, {"dimension": 12}, {"layers": 2, "dimension": 32}], ids=str
    )
    def test_scores_are_those_of_a_loop_over_tokens(self, student, settings):
        one = student(**settings)
        wanted = [by_hand(module_of(one), *pair) for pair in PAIRS]
        np.testing.assert_allclose(one.score(PAIRS), wanted, rtol=1e-4, atol=1e-4)


class TestScores:
    def test_a_pair_scores_the_same_in_any_batch(self, student):
        one = student()
        np.testing.assert_allclose(one.score(PAIRS), [one.score([pair])[0] for pair in PAIRS], atol=1e-5)

    def test_a_query_without_tokens_scores_nothing(self, student):
        assert student().score([("", DOCUMENTS[0])]) == pytest.approx([0.0])

    def test_as_it_starts_a_match_ranks_first_and_no_document_last(self, tiny_model):
        one = CrossEncoderStudent(tk_student(tiny_model, DOCUMENTS, layers=0).eval(), "cross-encoder:tk")
        scores = one.score([("star", document) for document in DOCUMENTS])
        assert scores.argmax() == 1
        assert scores.argmin() == 3

    @pytest.mark.parametrize("settings", [{}, {"dimension": 12}], ids=str)
    def test_gradients_reach_everything(self, student, settings):
        late = module_of(student(**settings)).train()
        late(late.preprocess(PAIRS[:3]))["scores"].square().sum().backward()
        still = [name for name, one in late.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
        assert still == []

    def test_an_empty_document_keeps_gradients_finite(self, student):
        late = module_of(student())
        late(late.preprocess(PAIRS))["scores"].sum().backward()
        assert all(torch.isfinite(one.grad).all() for one in late.parameters() if one.grad is not None)


class TestTokenWeights:
    def test_they_are_bm25s_idf_over_its_highest(self, student):
        late = module_of(student())
        found = inverse_frequencies(late, DOCUMENTS)
        vocabulary = late.tokenizer.get_vocab()
        highest = math.log(1 + 4.5 / 0.5)
        for word, times in {"and": 2, "today": 2, "the": 1, "violin": 0}.items():
            wanted = math.log(1 + (4 - times + 0.5) / (times + 0.5)) / highest
            assert float(found[vocabulary[word]]) == pytest.approx(wanted, rel=1e-5)


class TestStored:
    @pytest.mark.parametrize("settings", [{}, {"dimension": 12}, {"precision": "float16"}], ids=str)
    def test_stored_documents_score_as_a_full_pass(self, student, settings):
        one = student(**settings)
        found = StoredDocuments(one, DOCUMENTS).score(QUERY, np.array([3, 1, 0, 2]))
        np.testing.assert_allclose(found, one.score(PAIRS)[[3, 1, 0, 2]], atol=1e-4)

    def test_frozen_below_it_gives_the_same_scores_and_trains_the_rest(self, student):
        one = student(dimension=12)
        late, wanted = module_of(one), one.score(PAIRS)
        with below_stored(one, DOCUMENTS):
            np.testing.assert_allclose(one.score(PAIRS), wanted, atol=0.05)  # its states are kept in float16
            late(late.preprocess(PAIRS))["scores"].sum().backward()
            moving = {name for name, each in late.named_parameters() if each.grad is not None}
        assert moving == {"alpha", "projection.weight", "gate", "logs", "means"}
        assert all(each.requires_grad for each in late.parameters())


class TestSaving:
    @pytest.mark.parametrize("settings", [{"layers": 0}, {"dimension": 12, "gated": False}], ids=str)
    def test_it_comes_back_with_equal_scores_and_settings(self, student, tmp_path, settings):
        one = student(**settings)
        one.model.save_pretrained(str(tmp_path / "s"), create_model_card=False)
        again = load_student(tmp_path / "s")
        assert isinstance(module_of(again), TK)
        assert module_of(again).get_config_dict() == module_of(one).get_config_dict()
        np.testing.assert_array_equal(again.score(PAIRS), one.score(PAIRS))
        assert again.kind == "tk"


class TestRefusals:
    @pytest.mark.parametrize("layers", [-1, 3])
    def test_layers_that_it_does_not_have(self, tiny_model, layers):
        with pytest.raises(UserError, match=rf"^layers={layers}: the model has 2; choose 0 to 2"):
            tk_student(tiny_model, DOCUMENTS, layers=layers)

    def test_a_width_that_it_does_not_have(self, tiny_model):
        with pytest.raises(UserError, match=r"^dimension=33: the model's tokens have 32"):
            tk_student(tiny_model, DOCUMENTS, dimension=33)

    def test_longer_texts_than_it_reads(self, tiny_model):
        with pytest.raises(UserError, match=r"^texts of 65 tokens: the model reads 64"):
            tk_student(tiny_model, DOCUMENTS, max_length=65)

    def test_a_table_of_tokens(self, tiny_static):
        with pytest.raises(UserError, match=r"a tk student runs a transformer.s layers apart; start from"):
            tk_student(tiny_static, DOCUMENTS)

    def test_another_precision(self, tiny_model):
        late = tk_student(tiny_model, DOCUMENTS)[0]
        with pytest.raises(UserError, match=r"^unknown precision 'float8'"):
            TK(late.backbone, late.tokenizer, document_length=32, precision="float8")
