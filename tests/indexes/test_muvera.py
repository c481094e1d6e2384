import numpy as np
import pytest
from ragged_tokens import brute_maxsim, ragged

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.muvera import Muvera, MuveraSettings

DOCUMENTS, QUERIES = ragged(80, seed=1, longest=30), ragged(20, seed=2, longest=8)
EXACT = brute_maxsim(QUERIES, DOCUMENTS)


def correlation(settings):
    """Mean over queries of the correlation of approximate and exact MaxSim over documents."""
    muvera = Muvera(settings, 16)
    result = muvera.queries(QUERIES) @ muvera.documents(DOCUMENTS).T
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(result, EXACT, strict=True)]))


def brute_encoding(muvera, tokens, repetition, *, document):
    """One text by loops over partitions, without the inner projection: (B, d)."""
    bits = 2**muvera.settings.k_sim
    codes = muvera.partitions(tokens)[:, repetition]
    rows = []
    for partition in range(bits):
        inside = [token for token, code in zip(tokens, codes, strict=True) if code == partition]
        if not document:
            rows.append(np.sum(inside, axis=0) if inside else np.zeros(tokens.shape[1]))
        elif inside:
            rows.append(np.mean(inside, axis=0))
        else:
            rows.append(tokens[min(range(len(tokens)), key=lambda n: bin(int(codes[n]) ^ partition).count("1"))])
    return np.array(rows)


class TestEncodings:
    @pytest.mark.parametrize("document", [False, True])
    def test_equal_a_loop_over_partitions(self, document):
        muvera = Muvera(MuveraSettings(repetitions=3, k_sim=3, d_proj=None), 16)
        texts = DOCUMENTS.slice(0, 6)
        result = (muvera.documents if document else muvera.queries)(texts).reshape(6, 3, 8, 16)
        for text in range(6):
            for repetition in range(3):
                expected = brute_encoding(muvera, texts[text], repetition, document=document) / np.sqrt(3)
                np.testing.assert_allclose(result[text, repetition], expected, atol=1e-5)

    def test_one_partition_is_the_sum_against_the_mean(self):
        muvera = Muvera(MuveraSettings(repetitions=2, k_sim=0, d_proj=None), 16)
        result = muvera.queries(QUERIES) @ muvera.documents(DOCUMENTS).T
        for query in range(3):
            for document in range(3):
                expected = QUERIES[query].sum(axis=0) @ DOCUMENTS[document].mean(axis=0)
                assert result[query, document] == pytest.approx(expected, abs=1e-4)

    def test_single_token_documents_are_exact_without_a_projection(self):
        single = ragged(30, seed=5, longest=1)
        muvera = Muvera(MuveraSettings(repetitions=2, k_sim=4, d_proj=None), 16)
        result = muvera.queries(QUERIES) @ muvera.documents(single).T
        np.testing.assert_allclose(result, brute_maxsim(QUERIES, single), atol=1e-4)

    def test_inner_projections_keep_inner_products_in_the_mean(self):
        single = ragged(30, seed=5, longest=1)
        muvera = Muvera(MuveraSettings(repetitions=400, k_sim=0, d_proj=8), 16)
        result = muvera.queries(QUERIES) @ muvera.documents(single).T
        exact = brute_maxsim(QUERIES, single)
        np.testing.assert_allclose(result, exact, atol=0.15 * np.abs(exact).max())
        assert result.mean() == pytest.approx(exact.mean(), abs=0.1)

    def test_a_long_block_is_cut_without_effect(self, monkeypatch):
        muvera = Muvera(MuveraSettings(repetitions=2), 16)
        whole = muvera.documents(DOCUMENTS)
        monkeypatch.setattr("retrodistill.indexes.muvera._BLOCK", 40)
        np.testing.assert_allclose(muvera.documents(DOCUMENTS), whole, atol=1e-6)

    @pytest.mark.parametrize(
        ("settings", "width"),
        [
            ({"repetitions": 5, "k_sim": 3, "d_proj": 4}, 160),
            ({"repetitions": 5, "k_sim": 3, "d_proj": None}, 640),
            ({"repetitions": 5, "k_sim": 3, "d_proj": 4, "final": 64}, 64),
        ],
    )
    def test_widths(self, settings, width):
        muvera = Muvera(MuveraSettings(**settings), 16)
        assert muvera.dimension == width
        assert muvera.documents(DOCUMENTS).shape == (80, width)
        assert muvera.queries(QUERIES).dtype == np.float32


class TestApproximation:
    def test_more_repetitions_are_nearer_to_maxsim(self):
        result = [correlation(MuveraSettings(repetitions=number, k_sim=3, d_proj=8)) for number in (1, 8, 64)]
        assert result[0] < result[1] < result[2]
        assert result[2] > 0.8

    def test_partitions_are_nearer_than_one_mean(self):
        result = [correlation(MuveraSettings(repetitions=32, k_sim=bits, d_proj=None)) for bits in (0, 3)]
        assert result[1] > result[0]

    def test_it_stays_below_maxsim_without_a_projection(self):
        """A mean of tokens, or another token, is at most the best token: MUVERA's encodings err on one side."""
        muvera = Muvera(MuveraSettings(repetitions=16, k_sim=4, d_proj=None), 16)
        result = muvera.queries(QUERIES) @ muvera.documents(DOCUMENTS).T
        assert (result <= EXACT + 1e-4).all()

    def test_a_sketch_loses_some_and_keeps_most(self):
        plain = correlation(MuveraSettings(repetitions=32, k_sim=3, d_proj=8))
        sketched = correlation(MuveraSettings(repetitions=32, k_sim=3, d_proj=8, final=1024))
        assert 0.6 * plain < sketched < plain


class TestSeeds:
    def test_the_same_seed_gives_the_same_encodings(self):
        one, same, other = (Muvera(MuveraSettings(seed=seed), 16).documents(DOCUMENTS) for seed in (4, 4, 5))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)

    def test_a_text_is_encoded_the_same_in_any_company(self):
        muvera = Muvera(MuveraSettings(), 16)
        alone = Tokens(DOCUMENTS[3], np.array([0, len(DOCUMENTS[3])]))
        np.testing.assert_allclose(muvera.documents(alone)[0], muvera.documents(DOCUMENTS)[3], atol=1e-6)
