import numpy as np
import pytest
from ragged_tokens import brute_maxsim, ragged

from retrodistill.encoders.multi_vector import Tokens, best_documents
from retrodistill.indexes import maxsim, tokens
from retrodistill.indexes.codecs import CodecSettings, fit_codec
from retrodistill.indexes.maxsim import best_of_store
from retrodistill.indexes.tokens import TokenStore

DOCUMENTS, QUERIES = ragged(200), ragged(7, seed=3)


def filled(*parts, codec="float32"):
    store = TokenStore.empty(fit_codec(CodecSettings(codec=codec), DOCUMENTS))
    for part in parts:
        store.append(part)
    return store


@pytest.fixture(params=[True, False], ids=["int8", "float32"])
def either(request, monkeypatch):
    monkeypatch.setattr(maxsim, "_has_int8", lambda: request.param)


@pytest.mark.usefixtures("either")
class TestSearch:
    @pytest.mark.parametrize("k", [1, 10, 99, 150, 200])
    @pytest.mark.parametrize("codec", ["float32", "float16", "residual"])
    def test_it_is_brute_force(self, k, codec):
        store = filled(DOCUMENTS, codec=codec)
        exact = brute_maxsim(QUERIES, store.gather(np.arange(200)))
        rows, scores = best_of_store(store, QUERIES, k)
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-5)

    @pytest.mark.parametrize("k", [1, 10, 40, 100])
    @pytest.mark.parametrize("codec", ["float32", "float16"])
    def test_among_candidates_it_is_brute_force(self, k, codec):
        store, candidates = filled(DOCUMENTS, codec=codec), np.arange(3, 200, 3)
        exact = brute_maxsim(QUERIES, store.gather(candidates))
        rows, scores = best_of_store(store, QUERIES, k, candidates)
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-5)
        np.testing.assert_allclose(
            np.take_along_axis(exact, np.searchsorted(candidates, rows), axis=1), scores, atol=1e-5
        )

    def test_no_query(self):
        rows, scores = best_of_store(filled(DOCUMENTS), QUERIES.slice(0, 0), 5)
        assert rows.shape == scores.shape == (0, 5)

    def test_of_several_parts(self):
        rows, _ = best_of_store(filled(DOCUMENTS.slice(0, 50), DOCUMENTS.slice(50, 200)), QUERIES, 5)
        np.testing.assert_array_equal(rows, best_of_store(filled(DOCUMENTS), QUERIES, 5)[0])

    def test_equal_documents_come_in_their_order(self):
        # Whole numbers: their sums are exact in any order.
        twice = Tokens.of([np.round(4 * DOCUMENTS[0])] * 30, 16)
        queries = Tokens(np.round(4 * QUERIES.vectors), QUERIES.bounds)
        np.testing.assert_array_equal(best_of_store(filled(twice), queries, 3)[0], [[0, 1, 2]] * 7)

    def test_a_document_that_differs_only_below_8_bits_is_found(self):
        almost = [DOCUMENTS[0] * (1 + place * 1e-5) for place in range(30)]
        rows, _ = best_of_store(filled(Tokens.of(almost, 16)), Tokens.of([DOCUMENTS[0]], 16), 2)
        np.testing.assert_array_equal(rows, [[29, 28]])

    def test_documents_and_query_tokens_of_zeros(self):
        zeros = Tokens.of([np.zeros((3, 16)), *(DOCUMENTS[row] for row in range(20)), np.zeros((2, 16))], 16)
        queries = Tokens.of([np.concatenate([QUERIES[0], np.zeros((2, 16))]), -QUERIES[1]], 16)
        exact = brute_maxsim(queries, zeros)
        np.testing.assert_allclose(
            best_of_store(filled(zeros), queries, 5)[1], -np.sort(-exact, axis=1)[:, :5], atol=1e-5
        )

    @pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e20])
    @pytest.mark.parametrize("others", [1, 1e3])
    def test_very_small_and_large_vectors(self, scale, others):
        # Groups of documents that differ less than rounding to 8 bits does, which are therefore ranked by exact scores.
        random = np.random.default_rng(1)
        texts = [text + 1e-3 * random.standard_normal((20, 3, 64)) for text in random.standard_normal((4, 3, 64))]
        arrays = [(scale if row % 2 else scale * others) * array for row, array in enumerate(np.concatenate(texts))]
        documents, queries = Tokens.of(arrays, 64), Tokens.of([text[0, :2] for text in texts], 64)
        store = TokenStore.empty(fit_codec(CodecSettings(codec="float32"), documents))
        store.append(documents)
        exact = brute_maxsim(queries, documents)
        rows, scores = best_of_store(store, queries, 5)
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, rtol=1e-5)

    @pytest.mark.parametrize("codec", ["float32", "float16", "residual"])
    @pytest.mark.parametrize("candidates", [np.arange(200), np.flatnonzero(np.arange(200) % 7 < 4)])
    def test_in_many_blocks_it_is_the_float32_computation(self, monkeypatch, codec, candidates):
        for name, size in (("_BLOCK", 40), ("_ROUNDED_BLOCK", 60)):
            monkeypatch.setattr(tokens, name, size)
        monkeypatch.setattr(maxsim, "_SCORES", 90)
        store = filled(DOCUMENTS.slice(0, 90), DOCUMENTS.slice(90, 91), DOCUMENTS.slice(91, 200), codec=codec)
        rows, scores = best_of_store(store, QUERIES, 6, candidates)
        places, expected = best_documents(QUERIES, store.blocks(candidates, tokens=40), 6)
        np.testing.assert_array_equal(rows, candidates[places])
        np.testing.assert_allclose(scores, expected, atol=1e-6)

    def test_documents_that_were_removed(self):
        gone = np.arange(200) % 3 == 0
        rows, _ = best_of_store(filled(DOCUMENTS).without(gone), QUERIES, 5)
        np.testing.assert_array_equal(
            np.flatnonzero(~gone)[rows], best_of_store(filled(DOCUMENTS), QUERIES, 5, np.flatnonzero(~gone))[0]
        )

    def test_documents_that_were_added_later(self):
        store = filled(DOCUMENTS)
        best_of_store(store, QUERIES, 1)
        store.append(Tokens(100 * DOCUMENTS.vectors, DOCUMENTS.bounds))
        assert (best_of_store(store, QUERIES, 5)[0] >= 200).all()


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_no_score_is_further_from_the_exact_one_than_the_bound_says(codec, scale, unit):
    documents = ragged(300, seed=5, unit=unit)
    store = filled(Tokens(scale * documents.vectors, documents.bounds), codec=codec)
    documents = store.gather(np.arange(300))
    opposite = Tokens(
        np.concatenate([QUERIES.vectors, -QUERIES.vectors]), np.append(QUERIES.bounds, 2 * len(QUERIES.vectors))
    )
    for _, rounded in store.rounded_blocks():
        scan = maxsim._RoundedQueries(opposite)
        scores, errors = scan.bounds(scan.scores(rounded), rounded.limits)
        exact = brute_maxsim(opposite, documents)
        assert (np.abs(scores - exact) <= errors).all()
        assert (errors <= 0.05 * opposite.lengths[:, None] * np.linalg.norm(documents.vectors, axis=1).max()).all()
