"""Processes that share stores, indexes, models, and files: each reads one version, and nothing is lost or mixed."""

import json
import os
import shutil
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from children import MAIN, Child
from store_children import TEXTS, LoggedEncoder, fake_vector, start

from retrodistill.core import files
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder
from retrodistill.core.locks import exclusive, lock_file, locked
from retrodistill.core.rates import remembered
from retrodistill.core.spending import read_ledger
from retrodistill.data import load_collection
from retrodistill.data.judgments import JudgmentLog
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import EmbeddingStore
from retrodistill.indexes import build_index, load_index
from retrodistill.students import load_student

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_at_0.1.0"
STUDENTS = {"faiss": "hybrid", "inverted": "sparse", "multi-vector": "multi-vector"}
WITHOUT_SWAPS = "from retrodistill.core import files; files.of_libc = lambda name: None\n"

pytestmark = pytest.mark.xdist_group("children")


def ended(child, status=0):
    found, out, error = child.wait(100)
    assert found == status, f"exit status {found}\n{out}\n{error}"
    return out, error


class TestStores:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_what_was_stored_once_is_found_by_every_reader_from_then_on(self, seed, tmp_path):
        """Three processes fill and merge parts all the time; one that reads never misses a row that it has seen."""
        fill = """
            import random
            from retrodistill.core import stores
            stores._COMPACT_ABOVE, stores._MERGED = 4, 3
            from retrodistill.encoders import embeddings
            embeddings._PART = 4
            drawn = random.Random(int(sys.argv[2]))
            for _ in range(40):
                texts = drawn.sample(TEXTS, 12)
                store = EmbeddingStore(LoggedEncoder(sys.argv[1] + "/log"), "document", Path(sys.argv[1]))
                store.fill(texts)
                assert np.array_equal(store.gather(texts), np.stack([fake_vector(text) for text in texts]))
        """
        children = [start(fill, tmp_path, 10 * seed + number) for number in range(3)]
        seen = set()
        while any(child.poll() is None for child in children):
            store = EmbeddingStore(LoggedEncoder(tmp_path / "log"), "document", tmp_path)
            there = set(TEXTS).difference(store.missing(TEXTS))
            assert seen <= there
            seen = there
            some = sorted(there)
            if some:
                expected = np.stack([fake_vector(text) for text in some])
                assert np.array_equal(store.gather(some), expected)
        for child in children:
            ended(child)
        assert len(seen) > 200

    def test_a_reader_keeps_parts_that_another_process_merges(self, tmp_path):
        def opened():
            return EmbeddingStore(LoggedEncoder(tmp_path / "log"), "document", tmp_path)

        for first in range(0, 40, 4):
            opened().fill(TEXTS[first : first + 4])
        reader = opened()
        merge = """
            from retrodistill.core import stores
            stores._COMPACT_ABOVE = 2
            store = EmbeddingStore(LoggedEncoder(sys.argv[1] + "/log"), "document", Path(sys.argv[1]))
            store.fill(TEXTS[:44])
        """
        ended(start(merge, tmp_path))
        assert len(list(tmp_path.glob("embeddings/*/part-*"))) == 1
        assert np.array_equal(reader.gather(TEXTS[:40]), np.stack([fake_vector(text) for text in TEXTS[:40]]))
        assert len(reader.missing(TEXTS[:44])) == 4
        reader.fill(TEXTS[:44])  # finds what the other one stored
        assert max(reader.encoder.log.counts().values()) == 1

    def test_the_lock_of_a_killed_process_is_free(self, tmp_path):
        hold = """
            store = EmbeddingStore(LoggedEncoder(sys.argv[1] + "/log"), "document", Path(sys.argv[1]))
            with store._store.writing(), store._store.computing(text_keys(TEXTS[:3])):
                Path(sys.argv[1], "held").touch()
                time.sleep(600)
        """
        child = start(hold, tmp_path)
        while not (tmp_path / "held").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
        child.wait()
        future = time.time() + 10_000_000  # a clock that was wrong decides nothing
        for path in tmp_path.rglob("*"):
            os.utime(path, (future, future))
        store = EmbeddingStore(LoggedEncoder(tmp_path / "log"), "document", tmp_path)
        store.fill(TEXTS[:3])
        assert not store.missing(TEXTS[:3])


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """By kind, the folders of two indexes and what they find, and the folder of their students."""
    made, collection = {}, load_collection(SAVED / "collection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRODISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        for kind, name in STUDENTS.items():
            student, folders, found = load_student(SAVED / name), [], []
            for gone in (["d0", "d1"], ["d8", "d9"]):
                index = build_index(collection, student)
                index.remove(gone)
                folders.append(tmp_path_factory.mktemp("index") / kind)
                index.save(folders[-1])
                found.append(found_by(index))
            made[kind] = folders, found
    return made


def found_by(index):
    return index.search(["heart artery", "garlic bread", "all about a planet"], k=8).to_dict()


REPLACE = """
    import shutil, sys, time
    from pathlib import Path
    from retrodistill.core.files import atomic_folder
    out, pause, *sources = sys.argv[1:]
    while not Path(out + ".stop").exists():
        for source in sources:
            with atomic_folder(out) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)
            time.sleep(float(pause))
"""


class TestReplacedIndexes:
    @pytest.mark.slow
    @pytest.mark.parametrize("swaps", [True, False])
    @pytest.mark.parametrize("kind", [*STUDENTS])
    def test_a_reader_finds_what_one_version_finds(self, kind, swaps, versions, tmp_path):
        folders, expected = versions[kind]
        out, student = tmp_path / "index", load_student(SAVED / STUDENTS[kind])
        child = Child(("" if swaps else WITHOUT_SWAPS) + textwrap.dedent(REPLACE), out, 0.05, *folders)
        while not out.exists():
            assert child.poll() is None
        seen = []
        try:
            for number in range(60):
                index = load_index(out, student, memory_map=bool(number % 2))
                seen.append(expected.index(found_by(index)))
        finally:
            (tmp_path / "index.stop").touch()
        ended(child)
        assert set(seen) == {0, 1}
        last = expected[seen[-1]]
        with atomic_folder(out) as temporary:
            (temporary / "other").touch()
        assert found_by(index) == last  # its files are gone, and it has them


class TestReplacedModels:
    @pytest.mark.slow
    @pytest.mark.parametrize("load", [load_student, lambda folder: load_encoder(f"dense:{folder}")])
    def test_a_reader_loads_one_version(self, load, tmp_path):
        """Of weights and manifest: two students that differ in both."""
        sources = [tmp_path / "one", tmp_path / "other"]
        for number, source in enumerate(sources):
            shutil.copytree(SAVED / "hybrid", source)
            manifest = json.loads((source / "retrodistill.json").read_text())
            manifest["about"]["version"] = number
            (source / "retrodistill.json").write_text(json.dumps(manifest))
            _scale(source / "model.safetensors", 1 + number)
        expected = [load(source).encode(["heart artery"], "document") for source in sources]
        child = Child(textwrap.dedent(REPLACE), tmp_path / "out", 0.3, *sources)
        while not (tmp_path / "out").exists():
            assert child.poll() is None
        try:
            for _ in range(12):
                student = load(tmp_path / "out")
                number = student.student.about["version"]
                assert np.array_equal(student.encode(["heart artery"], "document"), expected[number])
        finally:
            (tmp_path / "out.stop").touch()
        ended(child)


def _scale(path, factor):
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * factor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


class TestOutputFolders:
    def test_a_second_run_in_a_folder_is_refused_and_names_it(self, tmp_path):
        with exclusive(tmp_path / "out" / ".lock"):
            child = Child(
                """
                import sys
                from retrodistill.core.errors import UserError
                from retrodistill.core.locks import exclusive
                try:
                    with exclusive(sys.argv[1]):
                        pass
                except UserError as error:
                    print(error)
                """,
                tmp_path / "out" / ".lock",
            )
            assert f"another run is working in {tmp_path / 'out'}" in ended(child)[0]

    @pytest.mark.parametrize("swaps", [True, False])
    def test_writers_of_one_folder_replace_each_other_whole(self, swaps, tmp_path):
        code = """
            import sys
            from retrodistill.core.files import atomic_folder
            for number in range(60):
                with atomic_folder(sys.argv[1]) as temporary:
                    for name in ("a", "b", "c"):
                        (temporary / name).write_text(f"{sys.argv[2]} {number}")
        """
        before = "" if swaps else WITHOUT_SWAPS
        children = [
            Child(before + textwrap.dedent(code), tmp_path / "out", writer) for writer in ("one", "two", "three")
        ]
        for child in children:
            ended(child)
        assert len({path.read_text() for path in (tmp_path / "out").iterdir()}) == 1
        with atomic_folder(tmp_path / "out"):  # removes what a writer left that another one got in the way of
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestSharedFiles:
    def test_no_judgment_of_two_servers_is_lost(self, tmp_path):
        code = """
            import sys
            from retrodistill.data.judgments import JudgmentLog, typed_id
            log = JudgmentLog(sys.argv[1])
            for number in range(60):
                text = f"a query {number % 5}"
                log.append(typed_id(text), f"{sys.argv[2]}-{number}", number % 3, text)
        """
        for child in [Child(code, tmp_path / "judged", server) for server in ("one", "two")]:
            ended(child)
        lines = (tmp_path / "judged" / "qrels.tsv").read_text().splitlines()
        assert (len(lines), len(set(lines)), len(JudgmentLog(tmp_path / "judged"))) == (121, 121, 120)
        assert len((tmp_path / "judged" / "queries.jsonl").read_text().splitlines()) == 5

    def test_no_rate_of_two_jobs_is_lost(self, tmp_path):
        code = """
            import sys
            from retrodistill.core.rates import remember
            for number in range(40):
                remember(f"{sys.argv[1]}-{number}", {"rate": number})
        """
        for child in [Child(code, job) for job in ("one", "two")]:
            ended(child)
        assert all(remembered(f"{job}-{number}") for job in ("one", "two") for number in range(40))

    def test_no_request_of_two_processes_is_lost_in_a_ledger(self, tmp_path):
        code = """
            import sys
            from pathlib import Path
            from retrodistill.core.spending import Spending, Spent
            spending = Spending(ledger=Path(sys.argv[1]))
            for _ in range(200):
                spending.reserve("a", None)
                spending.settle("a", None, Spent(requests=1, tokens=7))
        """
        for child in [Child(code, tmp_path / "spending.jsonl") for _ in range(2)]:
            ended(child)
        assert read_ledger(tmp_path / "spending.jsonl")["a"].tokens == 2 * 200 * 7


WITHOUT_LOCKS = """
import errno, fcntl
def refused(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refused
"""


class TestFileSystemsWithoutLocks:
    @pytest.mark.parametrize("reason", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
    def test_a_lock_that_cannot_be_had_is_one_line(self, reason, tmp_path, monkeypatch):
        number = getattr(files.errno, reason)

        def refused(file, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", refused)
        with pytest.raises(UserError, match=r"cannot lock .*\.lock: .*; its file system has no locks") as caught:
            locked(lock_file(tmp_path / ".lock")).__enter__()
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "command",
        [
            ("index", "--documents", f"dense:{SAVED / 'hybrid'}", "--out", "index"),
            ("index", "--documents", f"multi-vector:{SAVED / 'multi-vector'}", "--out", "index"),
            ("mine", "--source", "bm25", "--depth", "3", "--out", "mined.run"),
            ("evaluate", "bm25", "--out", "evaluated"),
        ],
    )
    def test_a_command_ends_with_a_line_that_names_the_folder(self, command, tmp_path):
        argv = [*command, "--collection", SAVED / "collection"]
        code = "import os, sys; os.chdir(sys.argv.pop(1))\n" + WITHOUT_LOCKS
        environment = {"RETRODISTILL_CACHE": str(tmp_path / "cache")}
        _, error = ended(Child(code + MAIN, tmp_path, *argv, environment=environment), 2)
        [line] = [line for line in error.splitlines() if "lock" in line.lower()]
        assert str(tmp_path / "cache") in line
        assert "RETRODISTILL_CACHE" in line
        assert "Traceback" not in error
