import numpy as np
import pytest
from ragged_tokens import brute_maxsim, ragged

from retrodistill.core.errors import UserError
from retrodistill.core.json_files import CHECKSUMS
from retrodistill.core.paths import make_folder
from retrodistill.encoders.multi_vector import Tokens, best_documents, maxsim
from retrodistill.indexes.codecs import CodecSettings, fit_codec
from retrodistill.indexes.tokens import TokenStore, TokenWriter, check_tokens

DOCUMENTS = ragged(50)


def plain():
    return fit_codec(CodecSettings(codec="float32"), DOCUMENTS)


def filled(*parts):
    store = TokenStore.empty(plain())
    for part in parts or (DOCUMENTS,):
        store.append(part)
    return store


def same(result, expected):
    np.testing.assert_array_equal(result.bounds, expected.bounds)
    np.testing.assert_array_equal(result.vectors, expected.vectors)


class TestReading:
    @pytest.mark.parametrize("rows", [[3], [7, 2, 2, 40], [], list(range(10, 20)), list(range(50))])
    def test_documents_by_row_in_the_order_asked_for(self, rows):
        result = filled(DOCUMENTS.slice(0, 15), DOCUMENTS.slice(15, 50)).gather(np.array(rows, dtype=np.int64))
        same(result, Tokens.of([DOCUMENTS[row] for row in rows], 16))

    @pytest.mark.parametrize("tokens", [1, 30, 10_000])
    def test_blocks_are_all_documents_once(self, tokens):
        blocks = list(filled().blocks(tokens=tokens))
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[:-1].tolist()
        same(Tokens.of([block[row] for _, block in blocks for row in range(len(block))], 16), DOCUMENTS)

    @pytest.mark.parametrize("tokens", [1, 30, 10_000])
    def test_blocks_of_rows_are_these_in_their_order(self, tokens):
        rows = np.array([3, 40, 7, 8, 9])
        blocks = list(filled().blocks(rows, tokens=tokens))
        assert [first for first, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[:-1].tolist()
        same(Tokens.of([block[row] for _, block in blocks for row in range(len(block))], 16), filled().gather(rows))

    def test_rounded_blocks_of_several_parts(self, monkeypatch):
        monkeypatch.setattr("retrodistill.indexes.tokens._ROUNDED_BLOCK", 30)
        store = filled(DOCUMENTS.slice(0, 15), DOCUMENTS.slice(15, 16), DOCUMENTS.slice(16, 50))
        store = store.without(np.isin(np.arange(50), [3, 15, 16, 30]))
        rows = np.array([0, 1, 2, 3, 4, 12, 13, 14, 20, 45])
        blocks = [(start, block.vectors.clone(), block) for start, block in store.rounded_blocks(rows)]
        assert len(blocks) > 2
        assert [start for start, _, _ in blocks] == np.cumsum([0, *(len(b.limits) for *_, b in blocks)])[:-1].tolist()
        limits = np.concatenate([block.limits for *_, block in blocks])
        scales = np.repeat(limits[:, 0], store.lengths[rows])[:, None]
        vectors = np.concatenate([vectors for _, vectors, _ in blocks])
        np.testing.assert_array_equal(vectors, np.round(store.gather(rows).vectors * (1 / scales)))

    def test_it_counts_its_bytes(self):
        store = filled()
        assert store.lengths.sum() == len(DOCUMENTS.vectors)
        assert store.nbytes == (4 + 1) * DOCUMENTS.vectors.size + 8 * 51 + 12 * 50


class TestRemoving:
    def test_the_others_stay_as_they_were(self):
        gone = np.zeros(50, dtype=bool)
        gone[[0, 13, 49]] = True
        store = filled().without(gone)
        same(store.gather(np.arange(47)), Tokens.of([DOCUMENTS[row] for row in np.flatnonzero(~gone)], 16))

    def test_saving_leaves_their_codes_out(self, tmp_path):
        gone = np.arange(50) < 20
        filled().without(gone).save(tmp_path)
        assert (tmp_path / "tokens.bin").stat().st_size == 64 * DOCUMENTS.lengths[20:].sum()
        assert (tmp_path / "tokens.int8.bin").stat().st_size == 16 * DOCUMENTS.lengths[20:].sum()
        same(TokenStore.load(tmp_path).gather(np.arange(30)), DOCUMENTS.slice(20, 50))


class TestFiles:
    def test_a_loaded_store_is_memory_mapped(self, tmp_path):
        filled().save(tmp_path)
        store = TokenStore.load(tmp_path)
        assert isinstance(store.parts[0], np.memmap)
        same(store.gather(np.arange(50)), DOCUMENTS)

    def test_a_loaded_store_grows_without_touching_its_files(self, tmp_path):
        filled(DOCUMENTS.slice(0, 40)).save(tmp_path)
        before = (tmp_path / "tokens.bin").read_bytes()
        store = TokenStore.load(tmp_path)
        store.append(DOCUMENTS.slice(40, 50))
        same(store.gather(np.arange(50)), DOCUMENTS)
        assert (tmp_path / "tokens.bin").read_bytes() == before

    def test_rounded_vectors_are_read_and_equal_those_made_of_the_codes(self, tmp_path):
        filled().save(tmp_path)
        (loaded,) = (block for _, block in TokenStore.load(tmp_path).rounded_blocks())
        for name in ("tokens.int8.bin", "tokens.int8.npy"):  # as version 0.1.0 saved it
            (tmp_path / name).unlink()
        old = TokenStore.load(tmp_path)
        (made,) = (block for _, block in old.rounded_blocks())
        same(old.gather(np.arange(50)), DOCUMENTS)
        np.testing.assert_array_equal(loaded.vectors, made.vectors)
        np.testing.assert_array_equal(loaded.limits, made.limits)
        scales = np.repeat(made.limits[:, 0], DOCUMENTS.lengths)[:, None]
        np.testing.assert_allclose(scales * made.vectors.numpy(), DOCUMENTS.vectors, atol=0.5 * scales.max() + 1e-6)
        old.append(DOCUMENTS.slice(0, 5))
        old.save(make_folder(tmp_path / "again"))
        assert TokenStore.load(tmp_path / "again").rounded is not None

    def test_an_empty_store(self, tmp_path):
        TokenStore.empty(plain()).save(tmp_path)
        assert len(TokenStore.load(tmp_path)) == 0

    @pytest.mark.parametrize("cut", [1, 64, 640])
    def test_one_cut_short_is_refused(self, tmp_path, cut):
        filled().save(tmp_path)
        with (tmp_path / "tokens.bin").open("r+b") as file:
            file.truncate((tmp_path / "tokens.bin").stat().st_size - cut)
        with pytest.raises(UserError, match=r"tokens.bin holds \d+ tokens of 64 bytes, tokens.bounds.npy counts"):
            TokenStore.load(tmp_path)

    def test_rounded_vectors_that_are_cut_short_are_refused(self, tmp_path):
        filled().save(tmp_path)
        with (tmp_path / "tokens.int8.bin").open("r+b") as file:
            file.truncate(64)
        with pytest.raises(UserError, match=r"tokens.int8.bin holds 4 tokens of 50 documents, tokens.bin \d+ of 50;"):
            TokenStore.load(tmp_path)

    @pytest.mark.parametrize("name", ["tokens.bin", "tokens.bounds.npy", "tokens.int8.bin"])
    def test_one_without_a_file_is_refused(self, tmp_path, name):
        filled().save(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=f"^no file .*{name}"):
            TokenStore.load(tmp_path)


class TestWriting:
    def test_it_writes_what_it_was_given(self, tmp_path):
        writer = TokenWriter(tmp_path, plain)
        for start in range(0, 50, 10):
            writer.append(DOCUMENTS.slice(start, start + 10))
        store = writer.finish()
        same(store.gather(np.arange(50)), DOCUMENTS)
        np.testing.assert_array_equal(store.rounded[0], filled().rounded[0])

    def test_it_continues_after_it_was_finished(self, tmp_path):
        for start in (0, 25):
            writer = TokenWriter(tmp_path, plain)
            writer.append(DOCUMENTS.slice(start, start + 25))
            store = writer.finish()
        same(store.gather(np.arange(50)), DOCUMENTS)
        np.testing.assert_array_equal(store.rounded[0], filled().rounded[0])

    @pytest.mark.parametrize(("file", "cut"), [("tokens.bin", 1), ("tokens.bin", 700), ("tokens.lengths.bin", 3)])
    def test_a_kill_between_writes_loses_only_documents_that_are_not_whole(self, tmp_path, file, cut):
        TokenWriter(tmp_path, plain).append(DOCUMENTS.slice(0, 30))
        with (tmp_path / file).open("r+b") as opened:
            opened.truncate((tmp_path / file).stat().st_size - cut)
        writer = TokenWriter(tmp_path, self.never)
        assert 0 < writer.documents < 30
        writer.append(DOCUMENTS.slice(writer.documents, 50))
        same(writer.finish().gather(np.arange(50)), DOCUMENTS)

    def test_codes_without_their_lengths_are_written_again(self, tmp_path):
        writer = TokenWriter(tmp_path, plain)
        writer.append(DOCUMENTS.slice(0, 10))
        with (tmp_path / "tokens.bin").open("ab") as file:
            file.write(b"half a document")
        again = TokenWriter(tmp_path, self.never)
        assert again.documents == 10
        again.append(DOCUMENTS.slice(10, 50))
        same(again.finish().gather(np.arange(50)), DOCUMENTS)

    @pytest.mark.parametrize("limits", ["whole", "cut short", "missing"])
    def test_a_kill_before_the_checksums_loses_no_document(self, tmp_path, limits):
        writer = TokenWriter(tmp_path, plain)
        writer.append(DOCUMENTS)
        writer.finish()
        (tmp_path / CHECKSUMS).unlink()
        limits_file = tmp_path / "tokens.int8.npy"
        if limits == "cut short":
            limits_file.write_bytes(limits_file.read_bytes()[:-9])
        elif limits == "missing":
            limits_file.unlink()
        assert TokenStore.finished(tmp_path, 50) is None
        again = TokenWriter(tmp_path, self.never)
        assert again.documents == 50
        again.finish()
        same(TokenStore.finished(tmp_path, 50).gather(np.arange(50)), DOCUMENTS)

    @staticmethod
    def never():
        raise AssertionError("the codec was saved and need not be fitted again")


class TestMaxsim:
    def test_equals_a_loop(self):
        queries = ragged(7, seed=3)
        np.testing.assert_allclose(maxsim(queries, DOCUMENTS), brute_maxsim(queries, DOCUMENTS), atol=1e-5)

    @pytest.mark.parametrize("k", [1, 5, 50])
    @pytest.mark.parametrize("tokens", [20, 10_000])
    def test_the_best_of_blocks_are_the_best_of_all(self, k, tokens):
        queries = ragged(7, seed=3)
        scores = maxsim(queries, DOCUMENTS)
        rows, result = best_documents(queries, filled().blocks(tokens=tokens), k)
        np.testing.assert_allclose(result, -np.sort(-scores, axis=1)[:, :k], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(scores, rows, axis=1), result, atol=1e-5)

    def test_equal_documents_come_in_their_order(self):
        # Whole numbers: their sums are exact in any order, which a matrix product may take from column to column.
        twice = Tokens.of([np.round(4 * DOCUMENTS[0])] * 30, 16)
        blocks = [(start, twice.slice(start, start + 3)) for start in range(0, 30, 3)]
        query_vectors = ragged(2, seed=3)
        rows, _ = best_documents(Tokens(np.round(4 * query_vectors.vectors), query_vectors.bounds), blocks, 2)
        np.testing.assert_array_equal(rows, [[0, 1], [0, 1]])

    @pytest.mark.parametrize("limit", ["_QUERY_TOKENS", "_DOCUMENT_TOKENS"])
    def test_many_tokens_are_cut_into_blocks(self, monkeypatch, limit):
        queries = ragged(20, seed=3)
        whole = maxsim(queries, DOCUMENTS)
        monkeypatch.setattr(f"retrodistill.encoders.multi_vector.{limit}", 15)
        np.testing.assert_allclose(maxsim(queries, DOCUMENTS), whole, atol=1e-5)


class TestChecks:
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_named_by_text(self, bad):
        vectors = ragged(4).vectors.copy()
        tokens = Tokens(vectors, ragged(4).bounds)
        vectors[[tokens.bounds[1], tokens.bounds[3]]] = bad
        with pytest.raises(UserError, match=r"^documents: 2 token vectors of 2 texts are NaN or infinite \('b', 'd'\)"):
            check_tokens(tokens, ["a", "b", "c", "d"], "documents")

    def test_a_text_without_tokens_is_named(self):
        tokens = Tokens(np.ones((3, 2), dtype=np.float32), np.array([0, 2, 2, 3]))
        with pytest.raises(UserError, match=r"^documents: 1 have no token \('y'\)"):
            check_tokens(tokens, ["x", "y", "z"], "documents")

    def test_another_number_of_ids(self):
        with pytest.raises(UserError, match=r"^documents: 3 ids for the tokens of 4 texts"):
            check_tokens(ragged(4), ["a", "b", "c"], "documents")
