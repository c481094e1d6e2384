import numpy as np
import pyarrow as pa
import pytest
from store_children import PART, TEXTS, Log, LoggedEncoder, fake_vector, kill_after, start

from retrodistill.core import checksums, stores
from retrodistill.core.errors import UserError
from retrodistill.data.texts import Texts
from retrodistill.encoders import embeddings
from retrodistill.encoders.embeddings import EmbeddingStore, TextVectors, embed, seconds_to_embed

WANTED = np.stack([fake_vector(text) for text in TEXTS])
CHILD = """
    from retrodistill.encoders import embeddings
    embeddings._PART = PART
    root, log, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    found = embeddings.embed(LoggedEncoder(log, delay), TEXTS, "document", root)
    assert (found == [fake_vector(text) for text in TEXTS]).all()
"""


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "_PART", PART)


@pytest.fixture
def encoder(tmp_path):
    return LoggedEncoder(tmp_path / "log")


@pytest.mark.xdist_group("children")
class TestKill:
    def test_in_the_middle_loses_at_most_one_part_and_embeds_nothing_twice(self, tmp_path, small_parts):
        rest = LoggedEncoder(tmp_path / "rest")
        EmbeddingStore(rest, "document", tmp_path)
        log = Log(tmp_path / "log")
        computed = kill_after(start(CHILD, tmp_path, log.path, 0.002), log, 100)
        missing = len(EmbeddingStore(rest, "document", tmp_path).missing(TEXTS))
        assert 0 <= computed - (len(TEXTS) - missing) <= PART
        np.testing.assert_array_equal(embed(rest, TEXTS, "document", tmp_path), WANTED)
        assert sum(rest.log.counts().values()) == missing
        assert set(rest.log.counts().values()) == {1}

    def test_two_processes_at_once_embed_every_text_once(self, tmp_path):
        EmbeddingStore(LoggedEncoder(tmp_path / "none"), "document", tmp_path)
        log = Log(tmp_path / "log")
        children = [start(CHILD, tmp_path, log.path, 0.0005) for _ in range(2)]
        for child in children:
            status, _, said = child.wait()  # that it waits for the other, on a slow machine
            assert status == 0, said
        assert log.counts() == dict.fromkeys(TEXTS, 1)


class TestStore:
    def test_vectors_come_back_to_the_bit_in_any_order(self, tmp_path, encoder, small_parts):
        embed(encoder, TEXTS[:100], "query", tmp_path)
        order = np.random.default_rng(0).integers(0, 300, 500)
        found = embed(encoder, [TEXTS[place] for place in order], "query", tmp_path)
        assert found.dtype == np.float32
        assert found.tobytes() == WANTED[order].tobytes()
        assert set(encoder.log.counts().values()) == {1}

    def test_roles_and_versions_do_not_mix(self, tmp_path, encoder):
        embed(encoder, TEXTS[:5], "query", tmp_path)
        embed(encoder, TEXTS[:5], "document", tmp_path)
        embed(LoggedEncoder(tmp_path / "log", version="2"), TEXTS[:5], "query", tmp_path)
        assert set(encoder.log.counts().values()) == {3}

    def test_parts_are_memory_mapped(self, tmp_path, encoder):
        store = EmbeddingStore(encoder, "query", tmp_path)
        big = [f"text {number}" for number in range(3000)]
        store.fill(big)
        before = pa.total_allocated_bytes()
        opened = EmbeddingStore(encoder, "query", tmp_path)
        assert pa.total_allocated_bytes() - before < 3000 * 8 * 4 / 4
        assert not any(block.flags.owndata or block.flags.writeable for block in opened._blocks)

    def test_nothing_to_embed(self, tmp_path, encoder):
        assert embed(encoder, [], "query", tmp_path).shape == (0, 8)
        assert seconds_to_embed(encoder, [], "query", tmp_path) == (0, 0.0)

    def test_compaction_keeps_every_vector(self, tmp_path, encoder, small_parts, monkeypatch):
        monkeypatch.setattr(stores, "_COMPACT_ABOVE", 4)
        embed(encoder, TEXTS, "query", tmp_path)
        store = EmbeddingStore(encoder, "query", tmp_path)
        assert len(list(store._store.folder.glob("part-*"))) == 1
        store._store.append(store._store.parts()[0])  # a compaction that was killed leaves rows twice
        again = EmbeddingStore(encoder, "query", tmp_path)
        np.testing.assert_array_equal(again.gather(TEXTS), WANTED)


class TestDamage:
    @pytest.mark.parametrize("place", [-40, 0.4])
    def test_of_a_part_is_named_and_its_texts_are_embedded_again(
        self, tmp_path, encoder, small_parts, place, capsys, monkeypatch
    ):
        monkeypatch.setattr(checksums, "_BLOCK", 64)
        embed(encoder, TEXTS, "query", tmp_path)
        path = sorted(tmp_path.rglob("part-*"))[3]
        data = bytearray(path.read_bytes())
        data[place if place < 0 else int(place * len(data))] ^= 16  # keys and footer, or vectors
        path.write_bytes(data)
        rest = LoggedEncoder(tmp_path / "rest")
        np.testing.assert_array_equal(embed(rest, TEXTS, "query", tmp_path), WANTED)
        assert f"{path} is damaged" in capsys.readouterr().err
        assert sum(rest.log.counts().values()) == PART
        assert not path.exists()

    def test_that_is_found_as_rows_are_read_is_refused_by_name(self, tmp_path, encoder, monkeypatch):
        monkeypatch.setattr(checksums, "_BLOCK", 64)
        texts = Texts.from_pairs((str(row), text) for row, text in enumerate(TEXTS))
        vectors = TextVectors(encoder, texts, "document", tmp_path)
        path = next(tmp_path.rglob("part-*"))
        mapped = np.memmap(path, np.uint8, "r+")
        mapped[len(mapped) // 3] ^= 1
        with pytest.raises(UserError, match=rf"{path.name} is damaged: .*it was renamed to damaged-{path.name}"):
            vectors[:]


class TestTextVectors:
    @pytest.mark.parametrize("stored", [True, False])
    def test_rows_are_those_of_all_vectors(self, tmp_path, encoder, stored, monkeypatch):
        monkeypatch.setattr(encoder, "needs_store", lambda _: stored, raising=False)
        texts = Texts.from_pairs((str(row), text) for row, text in enumerate(TEXTS))
        vectors = TextVectors(encoder, texts, "document", tmp_path)
        assert vectors.shape == WANTED.shape
        for rows in (slice(3, 50), slice(len(TEXTS) - 5, None), np.array([7, 0, 7])):
            np.testing.assert_array_equal(vectors[rows], WANTED[rows])


class TestRefusals:
    def test_a_text_that_was_not_embedded(self, tmp_path, encoder):
        with pytest.raises(UserError, match=r"2 texts are not in the store; embed them first"):
            EmbeddingStore(encoder, "query", tmp_path).gather(["a", "b"])


class TestPlan:
    def test_counts_distinct_texts(self, tmp_path, encoder):
        embed(encoder, TEXTS[:100], "query", tmp_path)
        items, seconds = seconds_to_embed(encoder, TEXTS * 2, "query", tmp_path)
        assert items == 200
        assert seconds > 0
        assert seconds_to_embed(encoder, TEXTS[:100], "query", tmp_path) == (0, 0.0)
