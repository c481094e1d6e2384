import numpy as np
import pytest

from retrodistill.api import evaluate
from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import EmbeddingStore, TextVectors
from retrodistill.rankers import bi_encoder, load_ranker
from retrodistill.rankers.bi_encoder import DenseRanker
from retrodistill.rankers.ensemble import Ensemble


@pytest.fixture(params=["dense", "static"])
def retriever(request, tiny_model, tiny_static):
    return DenseRanker(load_encoder(f"{request.param}:{tiny_model if request.param == 'dense' else tiny_static}"))


@pytest.fixture
def blocks(monkeypatch):
    """Every corpus is large, and goes by in blocks of seven documents."""
    monkeypatch.setattr(bi_encoder, "HELD", 0)
    monkeypatch.setattr(bi_encoder, "BLOCK", 7)


class TestStreaming:
    @pytest.mark.parametrize("k", [1, 10, 60])
    def test_gives_the_run_of_the_whole(self, tiny, retriever, blocks, k):
        queries = tiny.split("test")
        found, wanted = retriever.stream(queries, tiny, k), retriever.search(queries, tiny, k)
        everything = retriever.search(queries, tiny, 60).to_dict()
        assert found.query_ids == queries.ids
        assert found.name == wanted.name
        for query, scores in wanted.to_dict().items():
            ours = found.to_dict()[query]
            np.testing.assert_allclose(sorted(ours.values()), sorted(scores.values()), atol=1e-5)
            assert all(
                everything[query][document] == pytest.approx(score, abs=1e-5) for document, score in ours.items()
            )

    @pytest.mark.parametrize("k", [1, 3, 20])
    def test_the_first_of_equal_documents_are_found(self, tiny_static, blocks, k):
        texts = {f"d{row:02}": "a bright star" if row % 2 else "a cup of tea" for row in range(30)}
        twins = Collection.from_parts("twins", texts, {"q": "a bright star"}, {})
        found = DenseRanker(load_encoder(f"static:{tiny_static}")).stream(twins.queries, twins, k)
        assert found.document_ids.tolist() == sorted(texts, key=lambda id_: ("tea" in texts[id_], id_))[:k]

    def test_evaluation_comes_out_the_same(self, tiny, retriever, monkeypatch):
        held = evaluate({"x": retriever}, tiny, measures=["ndcg@10", "recall@10"]).means
        monkeypatch.setattr(bi_encoder, "HELD", 0)
        monkeypatch.setattr(bi_encoder, "BLOCK", 7)
        assert evaluate({"x": retriever}, tiny, measures=["ndcg@10", "recall@10"]).means["x"] == pytest.approx(
            held["x"]
        )

    def test_no_more_than_a_block_of_texts_is_ever_asked_for(self, tiny, retriever, blocks, monkeypatch):
        queries, sizes, cut = tiny.split("test"), [], Texts.slice

        def counted(texts, start, stop):
            found = cut(texts, start, stop)
            sizes.append(len(found))
            return found

        asked = queries.texts
        monkeypatch.setattr(Texts, "slice", counted)
        every = property(lambda self: asked if len(self) == len(asked) else pytest.fail("read the whole corpus"))
        monkeypatch.setattr(Texts, "texts", every)
        retriever.stream(queries, tiny, 5)
        assert sizes == [7] * 8 + [4]

    def test_scores_of_any_document_are_read_by_row(self, tiny, tiny_model, monkeypatch):
        ranker, queries = DenseRanker(load_encoder(f"dense:{tiny_model}")), tiny.split("test")
        wanted = ranker.corpus_scores(queries, tiny)
        monkeypatch.setattr(bi_encoder, "HELD", 0)
        scores, rows, documents = ranker.corpus_scores(queries, tiny), np.array([3, 0]), np.array([50, 2, 7])
        assert isinstance(scores.documents, TextVectors)
        np.testing.assert_array_equal(scores.of(rows, documents), wanted.of(rows, documents))
        np.testing.assert_array_equal(scores.pairs(rows, documents[:2]), wanted.pairs(rows, documents[:2]))

    def test_an_ensemble_streams_its_members(self, tiny, tiny_model, monkeypatch):
        ensemble = Ensemble([load_ranker("bm25"), DenseRanker(load_encoder(f"dense:{tiny_model}"))])
        wanted = ensemble.search(tiny.split("test"), tiny, 5).to_dict()
        monkeypatch.setattr(bi_encoder, "HELD", 0)
        monkeypatch.setattr(DenseRanker, "search", lambda *_: pytest.fail("held the whole corpus"))
        for query, scores in ensemble.search(tiny.split("test"), tiny, 5).to_dict().items():
            assert scores == pytest.approx(wanted[query], abs=1e-5)

    def test_stored_vectors_are_used_and_others_not_stored(self, tiny, tiny_model, blocks):
        encoder = load_encoder(f"dense:{tiny_model}")
        store = EmbeddingStore(encoder, "document")
        store.fill(tiny.documents.slice(0, 14))
        encoded, encode = [], encoder.encode
        encoder.encode = lambda texts, role, **options: (
            encoded.append((role, len(texts))) or encode(texts, role, **options)
        )
        DenseRanker(encoder).stream(tiny.split("test"), tiny, 5)
        assert sum(count for role, count in encoded if role == "document") == 60 - 14
        assert len(EmbeddingStore(encoder, "document").missing(tiny.documents.texts)) == 60 - 14

    def test_small_corpora_are_left_to_the_retriever(self, tiny, retriever, monkeypatch):
        monkeypatch.setattr(DenseRanker, "_blocks", lambda *_: pytest.fail("streamed"))
        assert len(retriever.stream(tiny.split("test"), tiny, 3)) == 36

    def test_a_vector_that_is_not_finite_is_named(self, tiny, tiny_static, blocks):
        encoder = load_encoder(f"static:{tiny_static}")
        encode = encoder.encode
        encoder.encode = lambda texts, role, **options: (
            encode(texts, role, **options) * (np.nan if role == "document" else 1)
        )
        with pytest.raises(UserError, match=r"7 vectors are NaN or infinite \('d0', 'd1', 'd2' and 4 more\)"):
            DenseRanker(encoder).stream(tiny.split("test"), tiny, 5)
