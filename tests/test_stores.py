import hashlib
import threading

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodistill.core import stores
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.stores import KeyIndex, PartStore, slug, text_keys

OWNER = Manifest("teacher", {"weights": "abc"}, {"max_length": 64})
KINDS = [".parquet", ".arrow"]


def table(*values):
    return pa.table({"key": pa.array(values, pa.int64())})


def keys(store):
    return [value for part in store.parts() for value in part["key"].to_pylist()]


@pytest.fixture(params=KINDS)
def ending(request):
    return request.param


@pytest.fixture
def store(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(stores, "_COMPACT_ABOVE", 3)
    return PartStore(tmp_path / "store", OWNER, ending)


class TestParts:
    def test_are_kept_in_order_across_opening(self, store, ending):
        for values in ((1, 2), (3,), (4, 5)):
            store.append(table(*values))
        assert keys(PartStore(store.folder, OWNER, ending)) == [1, 2, 3, 4, 5]

    def test_a_half_written_part_does_not_count_and_is_swept_by_the_next_writer(self, store, ending):
        store.append(table(1))
        leftover = store.folder / f".retrodistill-part-000001-abcd{ending}.part"
        leftover.write_bytes(b"half")
        assert keys(PartStore(store.folder, OWNER, ending)) == [1]
        with PartStore(store.folder, OWNER, ending).writing():
            assert not leftover.exists()

    def test_the_folder_is_listed_once_for_all_parts_of_a_writer(self, store, monkeypatch):
        listed, glob = [], type(store.folder).glob
        monkeypatch.setattr(type(store.folder), "glob", lambda path, pattern: listed.append(1) or glob(path, pattern))
        store.append(table(0))
        before = len(listed)
        for value in range(1, 30):
            store.append(table(value))
        assert len(listed) == before
        assert keys(store) == list(range(30))

    def test_two_writers_merge_their_parts_while_they_write(self, store, ending, monkeypatch):
        monkeypatch.setattr(stores, "_MERGED", 4)
        other = PartStore(store.folder, OWNER, ending)
        for value in range(11):
            store.append(table(value))
            other.append(table(100 + value))
        assert len(store.parts()) == 2 * (2 + 3)
        assert [key for key in keys(store) if key < 100] == list(range(11))
        store.append(table(11))
        other.compact()  # takes the parts that the first one has not merged
        for value in range(12, 16):
            store.append(table(value))
        assert sorted(keys(store)) == [*range(16), *range(100, 111)]

    @pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[: len(data) // 2], lambda data: b""])
    def test_one_cut_short_is_named_and_kept_under_another_name(self, store, ending, damage, capsys):
        store.append(table(*range(1000)))
        store.append(table(7))
        path = sorted(store.folder.glob("part-*"))[0]
        cut = damage(path.read_bytes())
        path.write_bytes(cut)
        assert keys(store) == [7]
        assert [line.split(" is damaged")[0] for line in capsys.readouterr().err.splitlines()] == [str(path)]
        assert (store.folder / f"damaged-{path.name}").read_bytes() == cut

    def test_one_that_cannot_be_renamed_is_refused(self, store, monkeypatch):
        store.append(table(7))
        path = next(store.folder.glob("part-*"))
        path.write_bytes(b"")
        monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only")))
        with pytest.raises(UserError, match=rf"{path.name} is damaged: .*; delete this file"):
            store.parts()

    def test_one_of_another_owner_is_not_used(self, store, ending, tmp_path):
        other = PartStore(tmp_path / "other", Manifest("teacher", {"weights": "xyz"}), ending)
        other.append(table(1))
        store.append(table(2))
        part = next(other.folder.glob("part-*"))
        part.rename(store.folder / part.name)
        assert keys(store) == [2]

    def test_twice_under_two_names_changes_nothing(self, store):
        store.append(table(1, 2))
        part = next(store.folder.glob("part-*"))
        part.with_name(f"part-000009-copy{part.suffix}").write_bytes(part.read_bytes())
        found = np.array(keys(store))
        assert found[KeyIndex(found).find(np.array([1, 2]))].tolist() == [1, 2]

    def test_of_an_earlier_version_without_checksums_is_read(self, store, ending):
        store.append(table(1))
        if ending == ".parquet":
            pq.write_table(table(2), store.folder / "part-000001-aaaaaaaa.parquet")
        else:
            with pa.ipc.new_file(store.folder / "part-000001-aaaaaaaa.arrow", table(2).schema) as writer:
                writer.write_table(table(2))
        assert keys(store) == [1, 2]

    def test_arrow_parts_are_memory_mapped(self, tmp_path):
        store = PartStore(tmp_path / "store", OWNER, ".arrow")
        store.append(table(*range(200_000)))
        before = pa.total_allocated_bytes()
        part = store.parts()[0]
        assert pa.total_allocated_bytes() - before < 10_000
        assert part["key"].chunk(0).to_numpy(zero_copy_only=True)[-1] == 199_999

    def test_a_full_disk_leaves_the_parts_as_they_were(self, store, monkeypatch):
        store.append(table(1))
        monkeypatch.setattr(
            "retrodistill.core.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        with pytest.raises(UserError, match=r"cannot write .*part-000001.*no space left"):
            store.append(table(2))
        assert sorted(path.name[:5] for path in store.folder.glob("*part*")) == ["part-"]
        assert keys(store) == [1]


class TestCompaction:
    def test_keeps_every_row_and_one_part(self, store):
        for value in range(3):
            store.append(table(value))
        store.compact()
        assert len(store.parts()) == 3
        store.append(table(3))
        store.compact()
        assert len(store.parts()) == 1
        store.append(table(4))
        assert keys(store) == [0, 1, 2, 3, 4]

    def test_does_not_take_damaged_values_over(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(stores, "_COMPACT_ABOVE", 2)
        store = PartStore(tmp_path / "store", OWNER, ".arrow")
        for value in range(3):
            values = np.random.default_rng(value).integers(0, 255, 1 << 18, dtype=np.uint8)
            store.append(pa.table({"key": pa.array([value]), "bytes": pa.array([values.tobytes()])}))
        path = sorted(store.folder.glob("part-*"))[1]
        data = bytearray(path.read_bytes())
        data[1 << 17] ^= 4
        path.write_bytes(data)
        assert keys(store) == [0, 1, 2]
        store.compact()
        assert keys(store) == [0, 2]
        assert f"{path} is damaged: it is altered near byte 131,072" in capsys.readouterr().err

    def test_a_kill_between_merge_and_removal_leaves_equal_answers(self, store, ending, monkeypatch):
        for value in range(5):
            store.append(table(value, value + 10))
        unlink = type(store.folder).unlink
        gone = []

        def killed(path, missing_ok=False):
            if path.name.startswith("part-"):
                if len(gone) == 2:
                    raise KeyboardInterrupt
                gone.append(path)
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(type(store.folder), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
        monkeypatch.undo()
        again = PartStore(store.folder, OWNER, ending)
        found = np.array(keys(again))
        index = KeyIndex(found)
        assert set(found) == {value + more for value in range(5) for more in (0, 10)}
        assert found[index.find(np.arange(5))].tolist() == [0, 1, 2, 3, 4]
        again.append(table(99))
        again.compact()
        assert set(keys(again)) == {*found, 99}

    def test_a_reader_that_listed_the_parts_before_looks_again(self, store, ending):
        reader = PartStore(store.folder, OWNER, ending)
        for value in range(4):
            store.append(table(value))
        real, listed = reader._paths, []

        def stale():
            listed.append(real())
            if len(listed) == 1:
                store.compact()
            return listed[-1]

        reader._paths = stale
        assert keys(reader) == [0, 1, 2, 3]
        assert len(listed) == 2


class TestOwner:
    def test_another_is_refused_and_nothing_changes(self, store, ending):
        store.append(table(1))
        other = Manifest("teacher", {"weights": "xyz"}, {"max_length": 64})
        with pytest.raises(
            UserError, match=r"belongs to another teacher: it holds .*abc.* expected .*xyz.*; choose another"
        ):
            PartStore(store.folder, other, ending)
        assert keys(PartStore(store.folder, OWNER, ending)) == [1]

    def test_a_manifest_cut_short_is_refused(self, store, ending):
        store.append(table(1))
        (store.folder / FILE_NAME).write_text('{"artifact"')
        with pytest.raises(UserError, match=r"manifest.json is not JSON .*cut short"):
            PartStore(store.folder, OWNER, ending)

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path, ending):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write to .*; choose a writable folder"):
            PartStore(tmp_path / "file" / "store", OWNER, ending).append(table(1))

    def test_a_store_that_is_only_read_is_not_made(self, store, ending):
        assert store.parts() == []
        assert not store.folder.exists()


class TestLock:
    def test_readers_do_not_wait_for_a_writer(self, store, ending):
        found = []
        reader = threading.Thread(target=lambda: found.append(PartStore(store.folder, OWNER, ending).parts()))
        with store.writing():
            reader.start()
            reader.join(20)
            assert found == [[]]

    def test_a_second_writer_says_that_it_waits(self, store, monkeypatch):
        told, other = [], filelock.FileLock(store.folder / ".lock")
        monkeypatch.setattr("retrodistill.core.locks._WAIT_SECONDS", 0.01)
        monkeypatch.setattr("retrodistill.core.locks.log", lambda line: (told.append(line), other.release()))
        other.acquire()
        with store.writing():
            assert told == [f"waiting for another process that is writing to {store.folder}"]
        monkeypatch.setattr("retrodistill.core.locks.log", told.append)
        with store.writing():
            assert len(told) == 1

    def test_two_sets_of_keys_are_computed_at_once_and_the_same_set_by_one(self, store, ending, monkeypatch):
        other, told = PartStore(store.folder, OWNER, ending), []
        monkeypatch.setattr("retrodistill.core.locks._WAIT_SECONDS", 0.01)
        with store.computing(text_keys(["a", "b"])):
            monkeypatch.setattr("retrodistill.core.locks.log", pytest.fail)
            with other.computing(text_keys(["c", "d"])):
                other.append(table(1))
            store.append(table(2))
        assert sorted(keys(store)) == [1, 2]
        first = store.computing(text_keys(["a", "b"]))
        first.__enter__()
        ended = lambda line: (told.append(line), first.__exit__(None, None, None))  # noqa: E731 - of two steps
        monkeypatch.setattr("retrodistill.core.locks.log", ended)
        with other.computing(text_keys(["b", "a", "a"])):
            assert told == [f"waiting for another process that is writing to {store.folder}"]

    def test_is_given_back_after_a_failure(self, store):
        with pytest.raises(RuntimeError), store.writing():
            raise RuntimeError
        with filelock.FileLock(store.folder / ".lock", timeout=1):
            pass


class TestKeys:
    def test_are_blake2b_of_the_text(self):
        found = text_keys(["a", "ü", "", "a"])
        assert found.dtype == np.dtype("<u8")
        assert found[1] == int.from_bytes(hashlib.blake2b("ü".encode(), digest_size=8).digest(), "little")
        assert found[0] == found[3]
        assert len(set(found.tolist())) == 3
        assert len(text_keys([])) == 0

    def test_index_is_the_brute_force(self):
        generator = np.random.default_rng(0)
        for size in (0, 1, 50):
            held = generator.integers(0, 40, size).astype(np.uint64)
            asked = generator.integers(0, 50, 30).astype(np.uint64)
            place = {}
            for row, key in enumerate(held.tolist()):
                place.setdefault(key, row)
            assert KeyIndex(held).find(asked).tolist() == [place.get(key, -1) for key in asked.tolist()]

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("dense:sentence-transformers/all-MiniLM-L6-v2", "dense-sentence-transformers-all-MiniLM-L6-v2"),
            ("a b/ü", "a-b"),
            ("..", "model"),
            ("/", "model"),
            ("x" * 100, "x" * 60),
        ],
    )
    def test_slug_is_a_safe_file_name(self, name, wanted):
        assert slug(name) == wanted
