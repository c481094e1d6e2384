import numpy as np
import pytest
from scipy.sparse import csr_array, vstack
from sparse_models import inference_free, splade
from store_children import TEXTS

from retrodistill.core.errors import UserError
from retrodistill.encoders import embeddings
from retrodistill.encoders.any_encoder import load_encoder
from retrodistill.encoders.contract import EncodingSettings
from retrodistill.encoders.embeddings import SparseStore, embed


class CountingEncoder:
    """What the store needs of an encoder: text n holds n % 7 terms."""

    name, kind, dimension = "sparse:fake", "sparse", 100
    encoding = EncodingSettings()
    loaded_from = part = None
    threads, has_weights = 1, True
    members = ()

    def __init__(self, version="1", breaks_after=10**9):
        self.version, self.breaks_after, self.encoded = version, breaks_after, []

    def contract(self, role):
        return {"role": role, "version": self.version}

    def fingerprint(self, role):
        return f"{role}{self.version}"

    def needs_store(self, role):
        return True

    def encode(self, texts, role, *, batch_size=32):
        if len(self.encoded) + len(texts) > self.breaks_after:
            raise KeyboardInterrupt
        self.encoded += texts
        return csr_array(vstack([wanted(text) for text in texts], format="csr"))


def wanted(text):
    number = int(text.split()[1])
    row = np.zeros((1, 100), dtype=np.float32)
    row[0, number % 50 : number % 50 + number % 7] = np.arange(1, number % 7 + 1) + number / 1000
    return csr_array(row)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "_PART", 16)


class TestStore:
    def test_vectors_come_back_to_the_bit_in_any_order(self, tmp_path):
        encoder = CountingEncoder()
        embed(encoder, TEXTS[:100], "document", tmp_path)
        order = np.random.default_rng(0).integers(0, 300, 500)
        found = embed(encoder, [TEXTS[place] for place in order], "document", tmp_path)
        assert found.dtype == np.float32
        assert (found != vstack([wanted(TEXTS[place]) for place in order])).nnz == 0
        assert sorted(encoder.encoded) == sorted({*TEXTS[:100], *(TEXTS[place] for place in order)})

    def test_an_interruption_loses_at_most_one_part(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            embed(CountingEncoder(breaks_after=100), TEXTS, "document", tmp_path)
        rest = CountingEncoder()
        found = embed(rest, TEXTS, "document", tmp_path)
        assert len(rest.encoded) == 300 - 96
        assert (found != vstack([wanted(text) for text in TEXTS])).nnz == 0

    def test_roles_and_versions_have_stores_of_their_own(self, tmp_path):
        for encoder in (CountingEncoder(), CountingEncoder("2")):
            for role in ("query", "document"):
                embed(encoder, TEXTS[:3], role, tmp_path)
            assert len(encoder.encoded) == 6

    def test_no_text_is_no_row(self, tmp_path):
        assert embed(CountingEncoder(), [], "document", tmp_path).shape == (0, 100)

    def test_what_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"^2 texts are not in the store; embed them first\.$"):
            SparseStore(CountingEncoder(), "document", tmp_path).gather(TEXTS[:2])

    def test_a_damaged_part_is_named_and_encoded_again(self, tmp_path, capsys):
        wanted = embed(CountingEncoder(), TEXTS[:3], "document", tmp_path).toarray()
        part = next(tmp_path.rglob("part-*.arrow"))
        part.write_bytes(part.read_bytes()[:100])
        np.testing.assert_array_equal(embed(CountingEncoder(), TEXTS[:3], "document", tmp_path).toarray(), wanted)
        assert f"{part} is damaged" in capsys.readouterr().err


class TestRealEncoders:
    def test_the_store_changes_nothing(self, tmp_path):
        encoder = load_encoder(splade(tmp_path / "bert"))
        texts = ["star planet", "", "the court", "star planet"]
        found = embed(encoder, texts, "document", tmp_path)
        np.testing.assert_allclose(found.toarray(), encoder.encode(texts, "document").toarray(), rtol=1e-5)
        assert list((tmp_path / "sparse").iterdir())

    def test_token_weights_skip_it(self, tmp_path):
        encoder = load_encoder(inference_free(tmp_path / "bert"))
        assert embed(encoder, ["star"], "query", tmp_path).nnz == 1
        assert not (tmp_path / "sparse").exists()
