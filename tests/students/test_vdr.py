"""VDR's head: its weights, what it keeps, and that it comes back from its folder."""

import numpy as np
import pytest
import torch
from sparse_models import masked_model

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.students.sparse import sparse_student
from retrodistill.students.vdr import (
    VocabularyPooling,
    own_token_queries,
    vocabulary_pooling,
    with_vdr_head,
)

TEXTS = ["star planet orbit", "the judge and the jury"]


@pytest.fixture
def student(tiny, tiny_model):
    model = sparse_student(tiny_model, tiny.documents, head="vdr")
    vocabulary_pooling(model).terms = 5
    return SparseTextEncoder(model, "sparse:student")


def features(seed=0, vocabulary=12):
    generator = torch.Generator().manual_seed(seed)
    return {
        "token_embeddings": 2 * torch.randn(2, 4, vocabulary, generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "input_ids": torch.tensor([[0, 3, 4, 1], [0, 5, 7, 7]]),
    }


class TestPooling:
    def test_is_elu_plus_one_of_the_maximum_over_tokens_that_count(self):
        given = features()
        found = VocabularyPooling(12)(dict(given))["sentence_embedding"]
        for row, length in enumerate((4, 2)):
            highest = given["token_embeddings"][row, :length].amax(dim=0)
            expected = torch.where(highest > 0, highest + 1, highest.exp())
            torch.testing.assert_close(found[row], expected)

    def test_the_highest_terms_and_the_texts_own_are_kept(self):
        given = features()
        whole = VocabularyPooling(12, special=[0, 1])(dict(given))["sentence_embedding"]
        found = VocabularyPooling(12, terms=3, special=[0, 1])(dict(given))["sentence_embedding"]
        for row, own in enumerate(({3, 4}, {5})):
            best = set(whole[row].topk(3).indices.tolist())
            kept = best | own
            assert set(found[row].nonzero()[:, 0].tolist()) == kept
            torch.testing.assert_close(found[row][sorted(kept)], whole[row][sorted(kept)])
        assert not whole[:, :2].any()

    def test_gradients_reach_what_is_kept_alone(self):
        given = features()
        logits = given["token_embeddings"].requires_grad_(True)
        VocabularyPooling(12, terms=3)(dict(given))["sentence_embedding"].sum().backward()
        reached = logits.grad.abs().sum(dim=1) > 0
        kept = VocabularyPooling(12, terms=3)(dict(features()))["sentence_embedding"] > 0
        assert torch.equal(reached, kept)

    def test_a_text_without_tokens_has_no_term(self):
        given = features()
        given["attention_mask"] = torch.zeros(2, 4, dtype=torch.int64)
        found = VocabularyPooling(12, terms=3)(given)["sentence_embedding"]
        assert not found.any()

    def test_own_tokens_are_those_that_are_not_masked(self):
        found = VocabularyPooling(12, special=[0, 1]).own_tokens(features())
        assert [row.nonzero()[:, 0].tolist() for row in found] == [[3, 4], [5]]

    def test_none_to_keep(self):
        with pytest.raises(UserError, match=r"^terms=0: a text keeps at least 1"):
            VocabularyPooling(12, terms=0)


class TestStudent:
    def test_texts_always_have_their_own_tokens(self, student):
        vectors = student.encode(TEXTS, "document")
        tokenizer = student.model.tokenizer
        for row, text in enumerate(TEXTS):
            own = set(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)))
            found = set(vectors[[row]].indices.tolist())
            assert own <= found
            assert len(found - own) <= 5
            assert found.isdisjoint(tokenizer.all_special_ids)

    def test_it_comes_back_from_its_folder(self, student, tmp_path):
        student.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
        again = load_encoder(f"sparse:{tmp_path / 'saved'}")
        assert vocabulary_pooling(again.model).terms == 5
        np.testing.assert_array_equal(again.encode(TEXTS, "query").toarray(), student.encode(TEXTS, "query").toarray())
        assert again.fingerprint("document") == student.fingerprint("document")

    def test_a_masked_language_model_gives_its_own_head(self, tiny, tmp_path):
        model = sparse_student(str(masked_model(tmp_path / "masked")), tiny.documents, head="vdr")
        assert vocabulary_pooling(model) is not None
        assert SparseTextEncoder(model, "sparse:student").encode(TEXTS, "query").nnz > 0

    def test_queries_of_their_own_tokens_search_the_same_documents(self, student, tmp_path):
        own_token_queries(student.model).save_pretrained(str(tmp_path / "own"), create_model_card=False)
        own = load_encoder(f"sparse:{tmp_path / 'own'}")
        assert own.is_inference_free
        EmbeddingSpace.of(student).check_query_encoder(own)
        np.testing.assert_array_equal(
            own.encode(TEXTS, "document").toarray(), student.encode(TEXTS, "document").toarray()
        )
        found, tokenizer = own.encode(TEXTS, "query"), student.model.tokenizer
        for row, text in enumerate(TEXTS):
            tokens = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
            assert set(found[[row]].indices.tolist()) == set(tokens)

    def test_it_is_made_once(self, student):
        assert with_vdr_head(student.model) is student.model
