"""Files of indexes, students, and cached collections, damaged in every way, in this process: named, or the same."""

import random
import shutil

import numpy as np
import pytest
from corruption import FAULTS

from retrodistill.core import checksums
from retrodistill.core.cache import cached_array
from retrodistill.core.checksums import DamagedError
from retrodistill.core.errors import UserError
from retrodistill.core.json_files import check_checksums, write_checksums, write_json
from retrodistill.core.manifest import Manifest
from retrodistill.core.stores import text_keys
from retrodistill.data import load_collection
from retrodistill.data.texts import Texts
from retrodistill.encoders import load_encoder
from retrodistill.indexes import build_index, load_index
from retrodistill.students import save_student

SEEDS = range(2)


def damaged_in_every_way(folder, place, other):
    """Copies of a folder with one damaged file each: the copy, the file, and the fault."""
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        name = file.relative_to(folder)
        for fault, damage in FAULTS.items():
            for seed in SEEDS if fault in ("flip", "cut") else [0]:
                copy = shutil.copytree(folder, place / f"{number}-{fault}-{seed}")
                older = other / name
                damage(copy / name, older if older.is_file() else None, random.Random(f"{number} {seed}"))
                yield copy, name.name, fault


def outcomes(folder, place, other, read):
    """What is wrong in `read` of copies with a damaged file; its result is compared with that of the whole folder."""
    wanted, wrong = read(folder), []
    for copy, name, fault in damaged_in_every_way(folder, place, other):
        try:
            if not np.array_equal(read(copy), wanted):
                wrong.append(f"{name}, {fault}: another result")
        except UserError as error:
            if (name not in str(error) and fault != "swap") or "\n" in str(error):
                wrong.append(f"{name}, {fault}: {error}")
    return wrong


@pytest.fixture(scope="module")
def other_folder(tiny_folder, tmp_path_factory):
    """The collection with one document less."""
    other = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("other") / "other")
    lines = (other / "corpus.jsonl").read_text().splitlines(keepends=True)
    (other / "corpus.jsonl").write_text("".join(lines[1:]))
    return other


def test_an_index(tiny_folder, other_folder, tiny_model, tmp_path):
    for name, folder in (("index", tiny_folder), ("other", other_folder)):
        build_index(load_collection(str(folder)), f"dense:{tiny_model}", store_texts=True).save(tmp_path / name)
    queries = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)

    def read(folder):
        index = load_index(folder, None)
        run = index.search_vectors(queries, 10).to_dict()
        texts = [index.fields_of([id_])[0]["text"] for ids in run.values() for id_ in ids]
        return [*texts, *(str(item) for ids in run.values() for item in ids.items())]

    assert outcomes(tmp_path / "index", tmp_path, tmp_path / "other", read) == []


def test_a_student(tiny_model, tmp_path):
    model = load_encoder(f"dense:{tiny_model}").model
    save_student(model, Manifest("student", {"corpus": "a"}), tmp_path / "student")
    model[0].auto_model.embeddings.word_embeddings.weight.data += 0.1
    save_student(model, Manifest("student", {"corpus": "b"}), tmp_path / "other")

    def read(folder):
        return load_encoder(f"dense:{folder}").encode(["a star"], "query")

    assert outcomes(tmp_path / "student", tmp_path, tmp_path / "other", read) == []


def test_a_student_that_people_edited(tiny_model, tmp_path):
    save_student(load_encoder(f"dense:{tiny_model}").model, Manifest("student", {}), tmp_path / "student")
    (tmp_path / "student" / "README.md").write_text("# Ours")
    (tmp_path / "student" / "onnx").mkdir()
    (tmp_path / "student" / "onnx" / "model.onnx").write_bytes(b"added")
    assert load_encoder(f"dense:{tmp_path / 'student'}").dimension == 32
    (tmp_path / "student" / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"model.safetensors is damaged: it is missing; .*delete 'files' and 'checksum'"
    ):
        load_encoder(f"dense:{tmp_path / 'student'}")


def test_a_collection_in_the_cache(tiny_folder, other_folder, tmp_path, monkeypatch):
    for name, folder in (("cache", tiny_folder), ("other", other_folder)):
        monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path / name))
        load_collection(str(folder))
    [stored] = (tmp_path / "cache" / "collections").glob("[0-9a-f]*")
    [other] = (tmp_path / "other" / "collections").glob("[0-9a-f]*")

    def read(folder):
        monkeypatch.setenv("RETRODISTILL_CACHE", str(folder.parents[1]))
        collection = load_collection(str(tiny_folder))
        texts = [*collection.documents.texts, *collection.titles.texts, *collection.queries.texts]
        return [*texts, collection.qrels["test"].fingerprint, *collection.documents.ids]

    wanted, wrong = read(stored), []
    for copy, name, fault in damaged_in_every_way(stored, tmp_path, other):
        cache = tmp_path / f"of-{copy.name}" / "collections"
        cache.mkdir(parents=True)
        copy.rename(cache / stored.name)
        if read(cache / stored.name) != wanted:
            wrong.append(f"{name}, {fault}: another result")
    assert wrong == []


USES = {
    "all": lambda collection: collection.documents.texts,
    "one by id": lambda collection: collection.documents["d40"],
    "one by row": lambda collection: collection.documents.column[-20],
    "a slice": lambda collection: collection.documents.slice(38, 42),
    "in turn": lambda collection: list(collection.documents.column),
    "a selection": lambda collection: collection.documents.select(["d40", "d3"]),
    "its copies": lambda collection: collection.documents.originals,
    "its blanks": lambda collection: blank_rows(collection.documents),
    "its fingerprint": lambda collection: Texts(collection.documents.table).fingerprint,
    "what is left of it": lambda collection: collection.documents.without(np.array([1])).texts,
    "together": lambda collection: (collection.documents + Texts.from_pairs([("new", "x")])).texts,
    "vectors": lambda collection: text_keys(collection.documents.column),
}


class TestLazyTexts:
    """A text that is damaged on disk is noticed by everything that reads it."""

    @pytest.mark.parametrize("use", USES)
    def test_is_noticed_by(self, use, tiny_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path))
        monkeypatch.setattr(checksums, "_BLOCK", 64)
        wanted = load_collection(str(tiny_folder)).documents["d40"].encode()
        file = next(tmp_path.rglob("documents.arrow"))
        data = bytearray(file.read_bytes())
        data[data.rindex(wanted) + len(wanted) // 2] ^= 1
        file.write_bytes(data)
        collection = load_collection(str(tiny_folder))
        assert collection.documents["d3"]
        with pytest.raises(DamagedError, match=r"documents\.arrow is damaged: it is altered near byte"):
            USES[use](collection)


def blank_rows(documents):
    return Texts(documents.table).blank_rows


class TestCachedArray:
    def test_is_made_again_where_it_is_damaged(self, tmp_path, capsys):
        path, made = tmp_path / "rows.npy", []

        def make():
            made.append(1)
            return np.arange(1000)

        assert cached_array(path, make).tolist() == cached_array(path, make).tolist() == list(range(1000))
        data = bytearray(path.read_bytes())
        data[4000] ^= 8
        path.write_bytes(data)
        assert cached_array(path, make).tolist() == list(range(1000))
        assert len(made) == 2
        assert f"{path} is damaged" in capsys.readouterr().err

    def test_another_one_under_its_name_is_not_used(self, tmp_path):
        cached_array(tmp_path / "a.npy", lambda: np.arange(3))
        shutil.copy(tmp_path / "a.npy", tmp_path / "b.npy")
        assert cached_array(tmp_path / "b.npy", lambda: np.arange(2)).tolist() == [0, 1]


class TestFolderOfChecksums:
    def test_names_the_file_that_differs(self, tmp_path):
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "a.bin").write_bytes(b"abc")
        write_checksums(tmp_path)
        check_checksums(tmp_path, "make it again")
        (tmp_path / "added").write_bytes(b"new")
        check_checksums(tmp_path, "make it again")
        (tmp_path / "weights" / "a.bin").write_bytes(b"abd")
        with pytest.raises(DamagedError, match=r"weights/a.bin is damaged: .*; make it again"):
            check_checksums(tmp_path, "make it again")

    def test_names_that_lead_out_of_it_are_refused(self, tmp_path):
        write_json(tmp_path / "checksums.json", {"../x": "xxh3:0"})
        with pytest.raises(DamagedError, match=r"\.\./x"):
            check_checksums(tmp_path, "make it again")
