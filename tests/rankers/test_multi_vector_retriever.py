import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.embeddings import TokenVectors, embed
from retrodistill.encoders.multi_vector import MultiVectorModel, maxsim, token_encoder
from retrodistill.rankers import Ranker
from retrodistill.rankers.bi_encoder import MultiVectorRanker

TEXTS = ["heart artery", "star orbit planet.", "violin", "heart artery"]


class TestStore:
    def test_it_gives_what_the_encoder_gives(self, tiny_multi):
        found, wanted = embed(tiny_multi, TEXTS, "document"), tiny_multi.encode(TEXTS, "document")
        np.testing.assert_array_equal(found.bounds, wanted.bounds)
        np.testing.assert_allclose(found.vectors, wanted.vectors, atol=1e-3)

    def test_a_text_is_encoded_once(self, tiny_multi, monkeypatch):
        embed(tiny_multi, TEXTS[:2], "document")
        encoded = []
        plain = MultiVectorModel.encode
        monkeypatch.setattr(
            MultiVectorModel, "encode", lambda *given, **options: encoded.extend(given[1]) or plain(*given, **options)
        )
        embed(tiny_multi, TEXTS, "document")
        embed(tiny_multi, TEXTS[::-1], "document")
        assert encoded == ["violin"]

    def test_roles_are_kept_apart(self, tiny_multi):
        embed(tiny_multi, TEXTS, "document")
        assert TokenVectors(tiny_multi, "query").missing(TEXTS) == TEXTS[:3]

    def test_many_parts_are_one_store(self, tiny_multi, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.embeddings._PART", 1)
        texts = [f"star {word}" for word in ("orbit", "planet", "comet", "moon", "court judge jury")]
        found, wanted = embed(tiny_multi, texts, "document"), tiny_multi.encode(texts, "document")
        np.testing.assert_allclose(found.vectors, wanted.vectors, atol=1e-3)
        assert embed(tiny_multi, [], "document").vectors.shape == (0, 32)

    def test_a_text_that_is_not_there(self, tiny_multi):
        with pytest.raises(UserError, match=r"^1 texts are not in the store; embed them first.$"):
            TokenVectors(tiny_multi, "document").gather(["nobody"])


class TestRetriever:
    def test_it_is_a_retriever(self, tiny_multi):
        assert isinstance(MultiVectorRanker(tiny_multi), Ranker)

    @pytest.mark.parametrize("block", [7, 256])
    def test_it_ranks_by_maxsim(self, tiny, tiny_multi, monkeypatch, block):
        monkeypatch.setattr("retrodistill.rankers.bi_encoder._TOKEN_BLOCK", block)
        queries = tiny.split("test")
        exact = maxsim(
            tiny_multi.encode(queries.texts, "query"),
            tiny_multi.encode(tiny.documents.texts, "document"),
        )
        for row, (_, documents, scores) in enumerate(MultiVectorRanker(tiny_multi).search(queries, tiny, 6)):
            np.testing.assert_allclose(scores, -np.sort(-exact[row])[:6], atol=1e-2)
            np.testing.assert_allclose(exact[row][tiny.documents.positions(documents)], scores, atol=1e-2)

    def test_it_answers_as_its_responder_does(self, tiny, tiny_multi):
        retriever = MultiVectorRanker(tiny_multi)
        queries = tiny.split("test")
        rows, _ = retriever.query_fn(tiny, 3)(queries.texts[0])
        run = retriever.search(queries, tiny, 3).to_dict()
        assert [tiny.documents.ids[row] for row in rows[0]] == list(run[queries.ids[0]])

    def test_mean_maxsim_divides_by_the_query(self, tiny, tiny_multi, tiny_model):
        mean = token_encoder(tiny_model)
        mean.similarity_fn_name = "meanmaxsim"
        queries = tiny.split("test")
        found = MultiVectorRanker(load_encoder(mean)).search(queries, tiny, 4)
        wanted = MultiVectorRanker(tiny_multi).search(queries, tiny, 4)
        lengths = np.repeat(tiny_multi.encode(queries.texts, "query").lengths, 4)
        np.testing.assert_allclose(found.scores * lengths, wanted.scores, atol=1e-3)

    def test_bytes_are_those_of_float16_tokens(self, tiny, tiny_multi):
        tokens = len(tiny_multi.encode(tiny.documents.texts, "document").vectors)
        assert MultiVectorRanker(tiny_multi).bytes_per_document(tiny) == 2 * 32 * tokens / 60

    def test_queries_of_another_space(self, tiny_multi, tiny_model):
        other = load_encoder(token_encoder(tiny_model, 8, seed=1))
        with pytest.raises(UserError, match=r"have 8 dimensions, the documents by .* have 32"):
            MultiVectorRanker(tiny_multi, other)
