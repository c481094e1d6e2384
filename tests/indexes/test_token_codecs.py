import functools

import numpy as np
import pytest
from ragged_tokens import ragged

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import read_json, write_json
from retrodistill.encoders.multi_vector import Tokens
from retrodistill.indexes.codecs import CODECS, DROPPED, CodecSettings, ResidualCodec, fit_codec, load_codec, save_codec

DOCUMENTS = ragged(300)
VECTORS = DOCUMENTS.vectors  # about 2,000 of 16 dimensions


def one_text(vectors):
    return Tokens(vectors, np.array([0, len(vectors)]))


@functools.cache
def fitted(codec, **settings):
    return fit_codec(CodecSettings(codec=codec, **settings), one_text(VECTORS))


def error(codec, vectors=VECTORS):
    return float(np.mean(np.sum((codec.decode(codec.encode(vectors)) - vectors) ** 2, axis=1)))


class TestEveryCodec:
    @pytest.mark.parametrize(("name", "width"), [("float32", 64), ("float16", 32), ("residual", 6)])
    def test_a_code_has_the_bytes_it_says(self, name, width):
        codec = fitted(name)
        codes = codec.encode(VECTORS)
        assert codes.dtype == np.uint8
        assert codes.shape == (len(VECTORS), codec.bytes_per_vector) == (len(VECTORS), width)

    @pytest.mark.parametrize(("name", "most"), [("float32", 0), ("float16", 1e-6), ("residual", 0.2)])
    def test_decoded_vectors_are_near(self, name, most):
        assert error(fitted(name)) <= most

    @pytest.mark.parametrize("name", ["float32", "float16", "residual"])
    def test_it_decodes_the_same_after_saving(self, name, tmp_path):
        codec = fitted(name)
        codes = codec.encode(VECTORS[:50])
        save_codec(codec, tmp_path)
        loaded = load_codec(tmp_path)
        np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
        np.testing.assert_array_equal(loaded.encode(VECTORS[:50]), codes)
        assert (loaded.bytes_per_vector, loaded.own_bytes) == (codec.bytes_per_vector, codec.own_bytes)

    @pytest.mark.parametrize("name", ["float32", "float16", "residual"])
    def test_a_vector_has_the_same_code_in_any_company(self, name):
        codec = fitted(name)
        np.testing.assert_array_equal(codec.encode(VECTORS[7:8])[0], codec.encode(VECTORS)[7])

    @pytest.mark.parametrize("name", ["float32", "float16", "residual"])
    def test_codes_do_not_follow_later_changes_of_vectors(self, name):
        codec, vectors = fitted(name), VECTORS[:5].copy()
        codes = codec.encode(vectors)
        vectors[:] = 0
        np.testing.assert_array_equal(codes, codec.encode(VECTORS[:5]))

    @pytest.mark.parametrize("name", ["residual"])
    def test_it_encodes_nothing_to_nothing(self, name):
        codec = fitted(name)
        assert codec.encode(VECTORS[:0]).shape == (0, codec.bytes_per_vector)
        assert codec.decode(codec.encode(VECTORS[:0])).shape == (0, 16)


class TestResiduals:
    def test_codes_by_hand(self):
        """Two centroids; dimension 0 is cut at -.1, 0, .1 into -.2, -.05, .05, .2, dimension 1 at tenfold."""
        cutoffs = np.array([[-0.1, -1], [0, 0], [0.1, 1]], dtype=np.float32)
        values = np.array([[-0.2, -2], [-0.05, -0.5], [0.05, 0.5], [0.2, 2]], dtype=np.float32)
        centroids = np.array([[0, 0], [10, 10]], dtype=np.float32)
        codec = ResidualCodec(centroids, cutoffs, values, unit=False)
        codes = codec.encode(np.array([[10.3, 9.7], [-0.04, 5]], dtype=np.float32))
        np.testing.assert_array_equal(codes, [[1, 0, 3 | 1 << 2], [0, 0, 1 | 3 << 2]])
        np.testing.assert_allclose(codec.decode(codes), [[10.2, 9.5], [-0.05, 2]], atol=1e-6)

    def test_more_bits_are_nearer(self):
        errors = [error(fitted("residual", bits=bits, centroids=16)) for bits in (1, 2, 4)]
        assert errors[0] > 1.5 * errors[1] > 3 * errors[2]

    def test_a_bucket_decodes_to_the_mean_of_what_fell_into_it(self):
        raw = ragged(300, unit=False).vectors
        codec = fit_codec(CodecSettings(codec="residual", centroids=1, bits=2), one_text(raw))
        codes = codec.encode(raw)
        first = codes[:, 2] & 3
        for bucket in range(4):
            inside = first == bucket
            assert 0.2 < inside.mean() < 0.3  # quantiles
            np.testing.assert_allclose(codec.decode(codes)[inside, 0], raw[inside, 0].mean(), atol=1e-4)

    def test_widths_that_fill_no_byte(self):
        vectors = ragged(200, dimension=13).vectors
        codec = fit_codec(CodecSettings(codec="residual", bits=2, centroids=8), one_text(vectors))
        assert codec.bytes_per_vector == 2 + 4
        assert codec.decode(codec.encode(vectors)).shape == vectors.shape
        assert error(codec, vectors) < 0.2

    def test_the_seed_decides(self):
        codes = [fitted("residual", seed=seed, centroids=16).encode(VECTORS) for seed in (3, 3, 4)]
        np.testing.assert_array_equal(codes[0], codes[1])
        assert (codes[0] != codes[2]).any()


class TestUnitLength:
    @pytest.mark.parametrize("name", ["residual"])
    def test_unit_vectors_decode_to_unit_vectors(self, name):
        codec = fitted(name)
        lengths = np.linalg.norm(codec.decode(codec.encode(VECTORS)), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)

    def test_others_keep_their_length(self):
        raw = 3 * ragged(300, unit=False).vectors
        codec = fit_codec(CodecSettings(codec="residual", bits=4), one_text(raw))
        lengths = np.linalg.norm(codec.decode(codec.encode(raw)), axis=1)
        assert np.corrcoef(lengths, np.linalg.norm(raw, axis=1))[0, 1] > 0.9


class TestRefusals:
    def test_more_centroids_than_vectors(self):
        with pytest.raises(UserError, match=r"^64 centroids need at least as many token vectors, there are 10"):
            fit_codec(CodecSettings(codec="residual", centroids=64), one_text(VECTORS[:10]))

    def test_a_file_that_is_missing(self, tmp_path):
        save_codec(fitted("residual"), tmp_path)
        (tmp_path / "tokens.codec.npz").unlink()
        with pytest.raises(UserError, match=r"^no file .*tokens.codec.npz"):
            load_codec(tmp_path)

    @pytest.mark.parametrize("codec", DROPPED)
    def test_a_codec_that_was_dropped(self, codec, tmp_path):
        with pytest.raises(ValueError, match=f"'{codec}' was dropped.*residual"):
            CodecSettings(codec=codec)
        save_codec(fitted("residual"), tmp_path)
        about = read_json(tmp_path / "tokens.codec.json")
        write_json(tmp_path / "tokens.codec.json", {**about, "codec": codec})
        with pytest.raises(UserError, match=f"'{codec}' was dropped.*residual"):
            load_codec(tmp_path)

    def test_every_codec_can_be_asked_for(self):
        assert [CodecSettings(codec=name).codec for name in CODECS] == list(CODECS)


def test_numbers_beyond_float16_are_refused():
    codec = fitted("float16")
    assert codec.decode(codec.encode(np.full((1, 16), -65504, dtype=np.float32))).min() == -65504
    with pytest.raises(UserError, match=r"that float16 cannot hold \(beyond 65,504\); use float32"):
        codec.encode(np.full((1, 16), -7e4, dtype=np.float32))
