import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodistill.core import checksums
from retrodistill.core.checksums import (
    DamagedError,
    check_rows,
    checked,
    file_checksum,
    map_sealed,
    open_arrow,
    seal,
    sealed_file,
    write_arrow,
)

TABLE = pa.table(
    {
        "id": pa.array([f"d{row}" for row in range(300)]),
        "text": pa.array([f"text {row} " * (row % 7) for row in range(300)], pa.large_string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2400, dtype=np.float32)), 8),
        "tags": pa.array([["a"] * (row % 3) if row % 5 else None for row in range(300)]),
        "year": pa.array([row if row % 2 else None for row in range(300)]),
    }
)
LAZY = ("text", "vector", "tags", "year")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", 256)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "table.arrow"
    write_arrow(path, TABLE.schema, TABLE.to_batches(max_chunksize=100), owner="me", lazy=LAZY)
    return path


def opened(path, **given):
    return open_arrow(path, advice="make it again", **{"owner": "me", **given})


def flipped(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


class TestArrow:
    def test_is_what_was_written_and_a_plain_arrow_file(self, file):
        assert checked(opened(file)).equals(TABLE)
        assert pa.ipc.open_file(str(file)).read_all().equals(TABLE)

    def test_every_flipped_byte_is_noticed_or_harmless(self, file):
        data, messages = file.read_bytes(), []
        seal_at = data.index(checksums._MAGIC)
        for place in [*range(0, len(data), 41), *range(seal_at, seal_at + 8)]:
            flipped(file, 8 * place + place % 8)
            try:
                assert checked(opened(file)).equals(TABLE)
                assert seal_at <= place < seal_at + 8  # without this mark, the file is one of an earlier version
            except DamagedError as error:
                messages.append(str(error))
            file.write_bytes(data)
        assert len(messages) >= len(data) // 41
        assert all(line.startswith(f"{file} is damaged: ") and "\n" not in line for line in messages)

    def test_cut_short_anywhere_is_noticed(self, file):
        data = file.read_bytes()
        for size in range(0, len(data), 197):
            file.write_bytes(data[:size])
            with pytest.raises(DamagedError):
                opened(file)

    def test_of_another_owner_or_another_seal_is_noticed(self, file):
        with pytest.raises(DamagedError, match="another owner"):
            opened(file, owner="you")
        with pytest.raises(DamagedError, match="another file"):
            opened(file, expected="xxh3:0000000000000000")
        mine = write_arrow(file, TABLE.schema, TABLE.to_batches(), owner="me")
        assert opened(file, expected=mine).equals(TABLE)

    def test_small_batches_become_few(self, tmp_path):
        write_arrow(tmp_path / "t.arrow", TABLE.schema, TABLE.to_batches(max_chunksize=1))
        assert open_arrow(tmp_path / "t.arrow", advice="").column("id").num_chunks == 1

    def test_without_rows_is_read(self, tmp_path):
        write_arrow(tmp_path / "t.arrow", TABLE.schema, iter([]), lazy=LAZY)
        assert open_arrow(tmp_path / "t.arrow", advice="").equals(TABLE.slice(0, 0))


class TestLaziness:
    def test_values_are_verified_when_they_are_read(self, file):
        flipped(file, 8 * file.read_bytes().find(b"text 299") + 3)
        table = opened(file)
        assert checked(table["text"].slice(0, 100)).equals(TABLE["text"].slice(0, 100))
        assert checked(table["vector"]).equals(TABLE["vector"])
        with pytest.raises(DamagedError, match="altered near byte"):
            checked(table["text"].slice(299, 1))

    @pytest.mark.parametrize("name", LAZY)
    def test_every_kind_of_column_is_verified_whole(self, file, name):
        data, places = file.read_bytes(), set()
        base = np.frombuffer(data, np.uint8).ctypes.data
        for chunk in pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()[name].chunks:
            places |= {buffer.address - base for buffer in chunk.buffers() if buffer is not None and buffer.size}
        assert places
        for place in places:
            flipped(file, 8 * place)
            with pytest.raises(DamagedError):
                checked(opened(file)[name])
            file.write_bytes(data)

    def test_rows_of_a_matrix_verify_their_blocks(self, file):
        flipped(file, 8 * file.read_bytes().find(np.arange(80, 88, dtype=np.float32).tobytes()))
        chunk = opened(file)["vector"].chunk(0)
        matrix = chunk.flatten().to_numpy().reshape(-1, 8)
        check_rows(matrix, np.array([60, 99]))
        with pytest.raises(DamagedError):
            check_rows(matrix, np.array([99, 10]))

    def test_each_block_is_verified_once(self, file, monkeypatch):
        table, counted = opened(file), []
        digest = checksums.xxhash.xxh3_64_intdigest
        monkeypatch.setattr(
            checksums.xxhash, "xxh3_64_intdigest", lambda data: counted.append(len(data)) or digest(data)
        )
        checked(table)
        first = len(counted)
        checked(table.slice(10, 50))
        assert 0 < first == len(counted)

    def test_a_mapping_ends_with_its_last_user(self, file):
        table = opened(file)
        column = table["text"].slice(100, 5)
        del table
        checked(column)
        data = checksums._REGISTRY.files[-1][3]
        assert data() is not None
        del column
        assert data() is None

    def test_memory_of_no_file_is_left_alone(self, file):
        table = opened(file)
        assert checked(TABLE) is TABLE
        assert checked(np.arange(3)).tolist() == [0, 1, 2]
        assert checked(pa.array([], pa.string())).to_pylist() == []
        assert table.num_rows == 300


class TestOtherFiles:
    @pytest.mark.parametrize("ending", ["parquet", "npy"])
    def test_every_flipped_byte_is_noticed_or_harmless(self, tmp_path, ending):
        path = tmp_path / f"file.{ending}"
        numbers = np.arange(500)
        if ending == "npy":
            np.save(path, numbers)
        else:
            pq.write_table(pa.table({"a": numbers}), path)
        seal(path, owner="me")
        data = path.read_bytes()

        def read():
            file = sealed_file(path, owner="me", advice="make it again")
            return np.load(file) if ending == "npy" else pq.read_table(file)["a"].to_numpy()

        assert read().tolist() == numbers.tolist()
        noticed = 0
        for place in range(0, len(data), 23):
            flipped(path, 8 * place + place % 8)
            try:
                assert read().tolist() == numbers.tolist()
            except (DamagedError, OSError, ValueError):
                noticed += 1
            path.write_bytes(data)
        assert noticed >= len(data) // 23 - 1

    def test_a_parquet_file_can_be_read_by_others(self, tmp_path):
        pq.write_table(TABLE, tmp_path / "t.parquet")
        seal(tmp_path / "t.parquet")
        assert pq.read_table(tmp_path / "t.parquet").equals(TABLE)

    def test_content_ends_before_the_seal(self, tmp_path):
        path = tmp_path / "states.bin"
        path.write_bytes(b"abc" * 1000)
        seal(path)
        mapped = map_sealed(path, advice="").verify()
        assert mapped.content.tobytes() == b"abc" * 1000

    def test_one_without_a_seal_is_read_as_it_is(self, tmp_path):
        (tmp_path / "states.bin").write_bytes(b"abc")
        assert map_sealed(tmp_path / "states.bin", advice="").verify().content.tobytes() == b"abc"
        with pytest.raises(DamagedError):
            map_sealed(tmp_path / "states.bin", advice="", expected="xxh3:0000000000000000")

    def test_the_checksum_of_a_file_is_xxhash(self, tmp_path):
        data = bytes(itertools.islice(itertools.cycle(range(251)), 10_000_000))
        (tmp_path / "file").write_bytes(data)
        assert file_checksum(tmp_path / "file") == "xxh3:" + checksums.xxhash.xxh3_128(data).hexdigest()
