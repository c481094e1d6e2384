import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import EncodingSettings, current_encoding, encode_with
from retrodistill.rankers import load_ranker
from retrodistill.recipes import load_recipe

TEXTS = ["heart artery blood", "star planet orbit galaxy", "bread"]


class TestPrecision:
    def test_bfloat16_agrees_with_float32_and_has_stores_of_its_own(self, tiny_model):
        plain = load_encoder(f"dense:{tiny_model}")
        with encode_with(precision="bfloat16"):
            fast = load_encoder(f"dense:{tiny_model}")
        one, other = plain.encode(TEXTS, "document"), fast.encode(TEXTS, "document")
        assert other.dtype == np.float32
        assert not np.array_equal(one, other)
        assert (one * other).sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-3)
        assert np.linalg.norm(other, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)
        assert plain.fingerprint("document") != fast.fingerprint("document")
        assert plain.document_space == fast.document_space

    def test_float32_changes_no_key(self, tiny_model):
        plain = load_encoder(f"dense:{tiny_model}")
        assert plain.fingerprint("document") == plain.document_space

    def test_a_token_table_has_one_precision(self, tiny_static):
        plain = load_encoder(f"static:{tiny_static}")
        with encode_with(precision="bfloat16"):
            assert load_encoder(f"static:{tiny_static}").fingerprint("query") == plain.fingerprint("query")

    def test_a_cross_encoder_keeps_scores_apart(self, tiny, tiny_cross_encoder):
        plain = load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        with encode_with(precision="bfloat16", batch_size=2):
            fast = load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        assert plain.fingerprint(tiny) != fast.fingerprint(tiny)
        assert (plain.batch_size, fast.batch_size) == (EncodingSettings().batch_size, 2)


class TestSettings:
    def test_they_end_with_their_block(self):
        with encode_with(batch_size=4), encode_with(precision="bfloat16") as inner:
            assert inner == EncodingSettings(batch_size=4, precision="bfloat16")
        assert current_encoding() == EncodingSettings()

    def test_a_recipe_sets_them(self):
        recipe = load_recipe("static-leaf", ["encoding.batch_size=8", "encoding.precision=bfloat16"])
        assert recipe.encoding == EncodingSettings(batch_size=8, precision="bfloat16")
        with pytest.raises(UserError, match=r"encoding\.precision"):
            load_recipe("static-leaf", ["encoding.precision=float8"])
