"""Files that were made to do harm: what they claim is compared with their size before it is acted on."""

import errno
import io
import json
import random
import resource
import shutil
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import faiss as library
import numpy as np
import pyarrow as pa
import pytest
import yaml

from retrodistill.core.arrays import read_array, read_arrays
from retrodistill.core.checksums import open_arrow
from retrodistill.core.downloads import unpack
from retrodistill.core.errors import UserError
from retrodistill.core.faiss import read_faiss
from retrodistill.core.yaml_files import read_yaml
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.indexes.registry import load_index

FACTORIES = [
    *("Flat", "SQ8", "PQ8x4", "IVF8,Flat", "IVF8,PQ8x4", "HNSW8,Flat", "OPQ8,IVF8,PQ8x4", "PQ8x4,RFlat", "IDMap,Flat"),
    *("PQ8x4fs", "IVF16_HNSW8,SQ8", "RQ4x4", "PCA8,SQ4", "IVF8,RaBitQ"),
]
QUICK = ("Flat", "IVF8,PQ8x4", "HNSW8,Flat")
VECTORS = np.random.default_rng(0).standard_normal((600, 16)).astype("f4")


def written(factory, path):
    index = library.index_factory(16, factory, library.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    if factory.startswith("IDMap"):
        index.add_with_ids(VECTORS, np.arange(len(VECTORS)))
    else:
        index.add(VECTORS)
    library.write_index(index, str(path))
    return path


@pytest.fixture
def little_memory():
    """At most 8 GB more address space than now, as a header that claims more must not be believed."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class TestFaissFiles:
    @pytest.mark.parametrize("memory_map", [False, True])
    @pytest.mark.parametrize(
        "factory", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in FACTORIES]
    )
    def test_a_whole_file_is_read(self, factory, memory_map, tmp_path):
        index = read_faiss(written(factory, tmp_path / "i"), memory_map=memory_map)
        expected = library.read_index(str(tmp_path / "i")).search(VECTORS[:9], 5)
        for ours, its in zip(index.search(VECTORS[:9], 5), expected, strict=True):
            np.testing.assert_array_equal(ours, its)

    @pytest.mark.parametrize("claimed", [1 << 30, 1 << 38, 1 << 46, (1 << 63) - 1])
    def test_no_memory_is_taken_for_what_a_header_claims(self, claimed, tmp_path, little_memory):
        path = written("Flat", tmp_path / "i")
        content = path.read_bytes()
        place = content.index(struct.pack("<Q", VECTORS.size))  # the length of the vectors
        path.write_bytes(content[:place] + struct.pack("<Q", claimed) + content[place + 8 :])
        with pytest.raises(UserError, match="i is not a whole FAISS file"):
            read_faiss(path)

    @pytest.mark.parametrize("memory_map", [False, True])
    @pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat"])
    @pytest.mark.parametrize("kept", [0, 3, 26, 40, 500])
    def test_a_file_that_is_cut_short(self, factory, kept, memory_map, tmp_path):
        path = written(factory, tmp_path / "i")
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(UserError, match=r"i is not a whole FAISS file.*build the index again") as caught:
            read_faiss(path, memory_map=memory_map)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"no file .*index"):
            read_faiss(tmp_path / "index.faiss")

    def test_the_limits_are_those_of_before_after_reading(self, tmp_path):
        before = library.get_deserialization_vector_byte_limit(), library.get_deserialization_loop_limit()
        read_faiss(written("Flat", tmp_path / "i"))
        after = library.get_deserialization_vector_byte_limit(), library.get_deserialization_loop_limit()
        assert after == before

    @pytest.mark.slow
    @pytest.mark.xdist_group("children")
    @pytest.mark.parametrize("memory_map", [False, True])
    def test_no_change_of_a_file_ends_the_process(self, memory_map, tmp_path):
        """7,000 changed files, read and searched in one process: no signal, no time-out."""
        from children import Child

        for factory in FACTORIES:
            written(factory, tmp_path / f"{factory}.faiss")
        status, out, error = Child(MUTATIONS, tmp_path, int(memory_map), 500).wait(600)
        assert (status, error) == (0, ""), (tmp_path / "number").read_text()
        read, refused = map(int, out.split())
        assert read > 500
        assert refused > 500


MUTATIONS = """
import pathlib, random, signal, sys
import numpy as np
from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss, read_faiss
folder, memory_map, times = pathlib.Path(sys.argv[1]), bool(int(sys.argv[2])), int(sys.argv[3])
faiss.omp_set_num_threads(1)
vectors, counts = np.random.default_rng(1).standard_normal((3, 16)).astype('f4'), [0, 0]
for file in sorted(folder.glob('*.faiss')):
    content, draw = file.read_bytes(), random.Random(file.name)
    for number in range(times):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 4])):
            # headers are where most harm is done
            place = draw.randrange(min(len(changed), 400)) if draw.random() < .6 else draw.randrange(len(changed))
            for offset in range(place, min(place + draw.choice([1, 4, 8]), len(changed))):
                changed[offset] = draw.choice([0, 255, 127, draw.randrange(256)])
        changed = changed[: draw.randrange(len(changed))] if draw.random() < .1 else changed
        index = None  # a file is not rewritten while it is mapped
        (folder / 'changed').write_bytes(changed)
        (folder / 'number').write_text(f'{file.name}, change {number}')  # where it was if a signal ends it
        signal.alarm(20)
        try:
            index = read_faiss(folder / 'changed', memory_map=memory_map)
            counts[0] += 1
            if index.d == 16:
                index.search(vectors, 5)
        except (UserError, RuntimeError, AssertionError):
            counts[1] += 1
print(*counts)
"""


class TestArrays:
    @pytest.mark.parametrize("array", [np.zeros((0, 4)), np.arange(6).reshape(2, 3), np.array(3.0), np.ones((2, 3)).T])
    @pytest.mark.parametrize("memory_map", [False, True])
    def test_a_whole_file_is_read(self, array, memory_map, tmp_path):
        np.save(tmp_path / "a.npy", array)
        again = read_array(tmp_path / "a.npy", memory_map=memory_map)
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)

    def test_no_memory_is_taken_for_what_a_header_claims(self, tmp_path, little_memory):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
        (tmp_path / "a.npy").write_bytes(content.getvalue() + bytes(64))
        with pytest.raises(UserError, match=r"a\.npy is cut short or altered"):
            read_array(tmp_path / "a.npy")

    @pytest.mark.parametrize("read", [read_array, read_arrays])
    def test_python_objects_are_refused(self, read, tmp_path):
        np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object), allow_pickle=True)
        np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match=r"a\.np. is cut short or altered"):
            read(tmp_path / ("a.npy" if read is read_array else "a.npz"))

    def test_compressed_arrays_are_refused(self, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 20))
        with pytest.raises(UserError, match="compressed"):
            read_arrays(tmp_path / "a.npz")

    def test_whole_archives_are_read(self, tmp_path):
        np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.ones((2, 2)))
        assert {name: array.tolist() for name, array in read_arrays(tmp_path / "a.npz").items()} == {
            "a": [0, 1, 2],
            "b": [[1, 1], [1, 1]],
        }


def opened(path):
    return open_arrow(path, advice="make it again", is_own=False)


class TestTables:
    @staticmethod
    def with_offsets(path, offsets, kind):
        """An Arrow file of texts whose offsets are these."""
        width = np.int64 if pa.types.is_large_string(kind) else np.int32
        buffers = [None, pa.py_buffer(np.array(offsets, width).tobytes()), pa.py_buffer(b"abcdef")]
        table = pa.table({"text": pa.Array.from_buffers(kind, len(offsets) - 1, buffers)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
    def test_whole_texts_are_read(self, kind, tmp_path):
        self.with_offsets(tmp_path / "t.arrow", [0, 2, 2, 6], kind=kind)
        assert opened(tmp_path / "t.arrow")["text"].to_pylist() == ["ab", "", "cdef"]

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
    @pytest.mark.parametrize("offsets", [[0, 2, 1, 6], [0, 1 << 30, 1 << 30, 6], [0, -5, 3, 6], [0, 1, 2, 1 << 30]])
    def test_texts_outside_the_file_are_refused(self, offsets, kind, tmp_path):
        self.with_offsets(tmp_path / "t.arrow", [0, 2, 2, 6], kind=kind)
        width = np.int64 if kind == pa.large_string() else np.int32
        content = (tmp_path / "t.arrow").read_bytes()
        as_before = np.array([0, 2, 2, 6], width).tobytes()
        assert content.count(as_before) == 1
        (tmp_path / "t.arrow").write_bytes(content.replace(as_before, np.array(offsets, width).tobytes()))
        with pytest.raises(UserError, match=r"t\.arrow is damaged"):
            opened(tmp_path / "t.arrow")

    def test_an_index_outside_a_dictionary_is_refused(self, tmp_path):
        values = pa.DictionaryArray.from_arrays(pa.array([0, 99], pa.int32()), pa.array(["a"]), safe=False)
        table = pa.table({"text": values})
        with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match=r"t\.arrow is damaged"):
            opened(tmp_path / "t.arrow")


@pytest.fixture
def copied(tmp_path, tiny_model):
    return shutil.copytree(tiny_model, tmp_path / "model")


class TestModelFiles:
    @pytest.mark.parametrize("length", [0, 7, 1 << 20, 1 << 40, (1 << 64) - 1])
    def test_a_header_longer_than_the_file_is_refused(self, length, copied):
        weights = copied / "model.safetensors"
        weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
        with pytest.raises(UserError, match=r"model\.safetensors is cut short or altered"):
            load_bi_encoder(str(copied))

    @pytest.mark.parametrize("change", ["beyond", "overlap", "inverted"])
    def test_offsets_that_do_not_fit_the_file_are_refused(self, change, copied):
        weights = copied / "model.safetensors"
        content = weights.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        name = next(name for name in header if name != "__metadata__")
        start, end = header[name]["data_offsets"]
        offsets = {"beyond": [start, end + (1 << 40)], "overlap": [start, end + 64], "inverted": [end, start]}
        header[name]["data_offsets"] = offsets[change]
        text = json.dumps(header).encode()
        weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        with pytest.raises(UserError, match=r"model\.safetensors is cut short or altered"):
            load_bi_encoder(str(copied))

    @pytest.mark.parametrize(
        ("key", "value"), [("num_hidden_layers", 10**8), ("vocab_size", 10**12), ("max_position_embeddings", 10**11)]
    )
    def test_sizes_that_the_weights_cannot_have_are_refused(self, key, value, copied):
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=rf"config\.json says {key}: {value}"):
            load_bi_encoder(str(copied))

    @pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b", "C:\\models", "..\\b"])
    def test_modules_outside_the_folder_are_refused(self, path, copied):
        modules = json.loads((copied / "modules.json").read_text())
        modules[1]["path"] = path
        (copied / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(UserError, match=r"modules\.json names the folder"):
            load_bi_encoder(str(copied))

    def test_shards_outside_the_folder_are_refused(self, copied):
        (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../other"}}))
        with pytest.raises(UserError, match=r"index\.json names the file '../../other'"):
            load_bi_encoder(str(copied))

    @pytest.mark.parametrize("seed", range(12))
    def test_a_damaged_tokenizer_is_one_line(self, seed, copied):
        draw = random.Random(seed)
        file = copied / "tokenizer.json"
        content = json.loads(file.read_text())
        key = draw.choice(["normalizer", "pre_tokenizer", "post_processor", "model", "decoder"])
        content[key] = draw.choice([
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Replace", "pattern": {"Regex": "(((((" * 50}, "content": ""},
            {"type": "Nothing"},
            [[]],
        ])  # fmt: skip
        file.write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            load_bi_encoder(str(copied))
        assert "\n" not in str(caught.value)

    def test_weights_that_cannot_be_opened_are_not_called_damaged(self, copied, monkeypatch):
        opened = Path.open

        def refused(path, *arguments, **options):
            if path.suffix == ".safetensors":
                raise OSError(errno.EMFILE, "Too many open files", str(path))
            return opened(path, *arguments, **options)

        monkeypatch.setattr(Path, "open", refused)
        with pytest.raises(UserError, match=r"^cannot read .*model\.safetensors: too many open files\.$"):
            load_bi_encoder(str(copied))


def zip_of(path, *entries):
    """A zip file of (name, content) pairs, or of a `ZipInfo` in place of the name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link(name, target):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target


class TestArchives:
    def test_only_the_named_folder_is_written(self, tmp_path):
        zip_of(tmp_path / "z", ("set/corpus.jsonl", "a"), ("set/qrels/test.tsv", "b"), ("__MACOSX/x", "c"))
        (tmp_path / "out").mkdir()
        unpack(tmp_path / "z", tmp_path / "out", "set", "z")
        found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
        assert found == ["corpus.jsonl", "qrels", "qrels/test.tsv"]

    @pytest.mark.parametrize(
        "name",
        ["set/../../evil", "/evil", "../evil", "set/..\\..\\evil", "C:/evil", "C:evil", "\\\\host\\evil", "set/a\0b"],
    )
    def test_names_that_lead_out_are_refused(self, name, tmp_path):
        content = zip_of(tmp_path / "z", ("set/ok", "a"), (name.replace("\0", "~"), "b")).read_bytes()
        (tmp_path / "z").write_bytes(content.replace(b"set/a~b", b"set/a\0b"))
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="leads out"):
            unpack(tmp_path / "z", tmp_path / "out", "set", "z")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "z"]

    def test_links_are_refused(self, tmp_path):
        zip_of(tmp_path / "z", link("set/qrels", "/etc"), ("set/qrels/passwd", "b"))
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="a link"):
            unpack(tmp_path / "z", tmp_path / "out", "set", "z")
        assert list((tmp_path / "out").iterdir()) == []

    def test_what_unpacks_to_far_more_than_its_size_is_refused(self, tmp_path):
        zip_of(tmp_path / "z", ("set/corpus.jsonl", bytes(65 << 20)))
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match=r"would unpack to 1 files of 68,157,440 bytes"):
            unpack(tmp_path / "z", tmp_path / "out", "set", "z")

    def test_a_size_that_is_not_the_declared_one_is_refused(self, tmp_path):
        content = bytearray(zip_of(tmp_path / "z", ("set/corpus.jsonl", bytes(1 << 20))).read_bytes())
        place = content.rindex(b"PK\x01\x02") + 24  # the declared size in the central directory
        content[place : place + 4] = struct.pack("<I", 1000)
        (tmp_path / "z").write_bytes(content)
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="not a whole zip file"):
            unpack(tmp_path / "z", tmp_path / "out", "set", "z")

    @pytest.mark.parametrize("names", [("set/a", "set/a"), ("set/a", "set/a/b")])
    def test_a_name_that_is_there_twice_is_refused(self, names, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zip_of(tmp_path / "z", *((name, "x") for name in names))
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError):
            unpack(tmp_path / "z", tmp_path / "out", "set", "z")


NUMBER = "a: 9" + "9" * 5000


class TestYaml:
    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system ''", "!x 1"])
    def test_python_objects_are_refused(self, tag):
        with pytest.raises(UserError, match="r is not YAML"):
            read_yaml(f"name: {tag}", "r")

    def test_aliases_that_multiply_are_refused(self):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
        with pytest.raises(UserError, match="more than 100,000 values"):
            read_yaml("\n".join(lines), "r")

    def test_aliases_are_read(self):
        assert read_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "r")["c"] == {"x": 1, "y": 2}

    @pytest.mark.parametrize("text", ["[" * 60 + "]" * 60, "[" * 10_000, "{a: " * 5000], ids=["closed", "open", "keys"])
    def test_depth_is_limited(self, text):
        with pytest.raises(UserError):
            read_yaml(text, "r")

    @pytest.mark.parametrize(
        "text",
        ["a: &a [*a]", "a: 2001-99-99", NUMBER, "a: !!binary é", "? [a]\n: 1"],
        ids=["self", "date", "number", "binary", "key"],
    )
    def test_what_the_parser_fails_at_is_one_line(self, text):
        with pytest.raises(UserError) as caught:
            read_yaml(text, "r")
        assert "\n" not in str(caught.value)

    def test_length_is_limited(self):
        with pytest.raises(UserError, match="1,048,576 at most"):
            read_yaml("a: " + "x" * (1 << 20), "r")

    @pytest.mark.parametrize("text", ["", "a: 1", "- 1\n- {b: null}", "2", "'x'"])
    def test_plain_values_are_those_of_the_library(self, text):
        assert read_yaml(text, "r") == yaml.safe_load(text)


def test_a_file_of_an_index_that_claims_too_much_is_refused_by_name(tmp_path, tiny, tiny_model):
    """With checksums that fit, as an attacker writes them."""
    from retrodistill.core.checksums import file_checksum
    from retrodistill.core.json_files import read_json, write_json
    from retrodistill.indexes import build_index

    build_index(tiny, documents=f"dense:{tiny_model}").save(tmp_path / "index")
    file = tmp_path / "index" / "index.faiss"
    content = file.read_bytes()
    size = struct.pack("<Q", len(tiny.documents) * 32)
    file.write_bytes(content.replace(size, struct.pack("<Q", 1 << 50)))
    assert file.read_bytes() != content
    manifest = read_json(tmp_path / "index" / "manifest.json")
    manifest["about"]["checksums"]["index.faiss"] = file_checksum(file)
    write_json(tmp_path / "index" / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"index\.faiss is not a whole FAISS file"):
        load_index(tmp_path / "index")
