import numpy as np
import pytest

from retrodistill.core.errors import UserError
from retrodistill.encoders import load_encoder, precision
from retrodistill.encoders.contract import EncodingSettings, current_encoding, encode_with
from retrodistill.encoders.embeddings import embed, store_of
from retrodistill.rankers import load_ranker
from retrodistill.recipes import load_recipe

MEASURED = precision.bfloat16_speedup.__wrapped__  # tests have another in its place
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
        assert (plain.encoding.batch_size, fast.encoding.batch_size) == ("auto", 2)


class TestFloat16Stores:
    @pytest.fixture
    def halved(self, tiny_model):
        with encode_with(store_precision="float16"):
            return load_encoder(f"dense:{tiny_model}")

    def test_stored_vectors_are_rounded_and_take_half_the_bytes(self, tiny_model, halved, tmp_path):
        plain = load_encoder(f"dense:{tiny_model}")
        exact, rounded = (embed(one, TEXTS, "document", tmp_path) for one in (plain, halved))
        assert rounded.dtype == np.float32
        assert np.array_equal(rounded, exact.astype(np.float16).astype(np.float32))
        assert not np.array_equal(rounded, exact)
        columns = [store_of(one, "document", tmp_path)._store.parts()[0]["vector"] for one in (plain, halved)]
        assert columns[0].nbytes == 2 * columns[1].nbytes
        assert np.array_equal(embed(halved, TEXTS[::-1], "document", tmp_path), rounded[::-1])  # from the store

    def test_stores_are_apart_in_one_space(self, tiny_model, halved):
        plain = load_encoder(f"dense:{tiny_model}")
        with encode_with(precision="bfloat16", store_precision="float16"):
            both = load_encoder(f"dense:{tiny_model}")
        assert len({one.fingerprint("document") for one in (plain, halved, both)}) == 3
        assert plain.document_space == halved.document_space

    def test_token_vectors_are_float16_anyway(self, tiny_multi):
        with encode_with(store_precision="float16"):
            same = load_encoder(tiny_multi.model)
        assert same.kind == "multi-vector"
        assert same.fingerprint("document") == tiny_multi.fingerprint("document")

    def test_numbers_beyond_float16_are_rejected(self, halved, tmp_path):
        store, size = store_of(halved, "document", tmp_path), halved.dimension
        with pytest.raises(UserError, match=r"vectors by dense:.* hold numbers that float16 cannot hold"):
            store.put(["huge"], np.full((1, size), 7e4, dtype=np.float32))
        assert store.missing(["huge"]) == ["huge"]


class TestAuto:
    @pytest.fixture
    def faster(self, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.precision.bfloat16_speedup", lambda device: 2.0)

    def test_it_is_resolved_when_a_model_is_loaded(self, tiny, tiny_model, tiny_cross_encoder, faster):
        chosen = load_encoder(f"dense:{tiny_model}"), load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        with encode_with(precision="bfloat16"):
            given = load_encoder(f"dense:{tiny_model}"), load_ranker(f"cross-encoder:{tiny_cross_encoder}")
        assert [each.encoding.precision for each in chosen] == ["bfloat16"] * 2
        assert chosen[0].fingerprint("document") == given[0].fingerprint("document")
        assert chosen[1].fingerprint(tiny) == given[1].fingerprint(tiny)

    @pytest.mark.parametrize(("speedup", "chosen"), [(0.0, "float32"), (1.2, "float32"), (1.3, "bfloat16")])
    def test_bfloat16_must_be_clearly_faster(self, tiny_model, monkeypatch, speedup, chosen):
        monkeypatch.setattr("retrodistill.encoders.precision.bfloat16_speedup", lambda device: speedup)
        assert load_encoder(f"dense:{tiny_model}").encoding.precision == chosen

    @pytest.mark.usefixtures("faster")
    def test_what_no_product_makes_stays_float32(self, tiny_static):
        table = load_encoder(f"static:{tiny_static}")
        assert table.encoding.precision == "float32"
        assert table.fingerprint("query") == table.document_space

    @pytest.mark.usefixtures("faster")
    def test_a_model_in_half_precision_keeps_its_own(self, tiny_model):
        assert load_encoder(load_encoder(f"dense:{tiny_model}").model.half()).encoding.precision == "float32"

    def test_without_instructions_nothing_is_measured(self, monkeypatch):
        monkeypatch.setattr("retrodistill.encoders.precision.has_bfloat16", lambda device: False)
        assert MEASURED("cpu") == 0


class TestBatches:
    def test_a_number_is_a_number_of_texts_longest_first(self):
        batches = EncodingSettings(batch_size=2).batches([1, 5, 3, 5, 2], None, 1)
        assert [rows.tolist() for rows in batches] == [[1, 3], [2, 4], [0]]

    def test_auto_keeps_to_the_tokens_of_a_pass(self):
        sizes = np.random.default_rng(0).integers(0, 2000, 500)
        batches = EncodingSettings().batches(sizes, 256, 4096)
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert all(len(rows) * min(sizes[rows].max() // 4 + 2, 256) <= 4096 for rows in batches)
        assert len(batches[0]) == 16
        assert [len(rows) for rows in EncodingSettings().batches([10**6, 8], None, 4096)] == [1, 1]

    def test_vectors_do_not_depend_on_them(self, tiny_model, tiny):
        encoder = load_encoder(f"dense:{tiny_model}")
        texts = tiny.documents.texts
        expected = encoder.model.encode(list(texts), normalize_embeddings=True)
        for size in (None, 1, 7):
            assert encoder.encode(texts, "document", batch_size=size) == pytest.approx(expected, abs=1e-6)


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
