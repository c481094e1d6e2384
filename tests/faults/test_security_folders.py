"""Folders that others can write to, and names that try to be paths."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from retrodistill.api import evaluate
from retrodistill.core.cache import cache_folder
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder
from retrodistill.core.json_files import write_json
from retrodistill.core.names import check_file_name, is_file_name
from retrodistill.core.paths import make_folder
from retrodistill.core.stores import slug
from retrodistill.data import Collection, load_collection
from retrodistill.evaluation.benchmark import benchmark
from retrodistill.recipes.loading import parse_recipe

HOSTILE = {
    "up": "../../up", "parent": "..", "here": ".", "absolute": "/etc/passwd", "below": "a/b", "backslash": "..\\up",
    "NUL": "a\0b", "long": "x" * 300, "line": "a\nb", "drive": "C:x", "stream": "a:b", "device": "CON",
    "device with an ending": "nul.txt", "option": "-rf", "hidden": ".ssh", "dot": "x.", "space": "x ", "empty": "",
    "tilde": "~/x", "surrogate": "\udcff", "direction": "a\u202eb", "wildcard": "*?",
}  # fmt: skip
posix = pytest.mark.skipif(os.name != "posix", reason="links have an owner on POSIX systems only")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder that all may write to, and this user as another than the one whose links are there."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    owner = os.geteuid()
    links = []

    def link(name, target):
        (folder / name).symlink_to(target)
        links.append(str(folder / name))
        return folder / name

    real = os.lstat

    def lstat(path, *arguments, **options):
        found = real(path, *arguments, **options)
        if str(path) in links:
            return os.stat_result((*found[:4], owner + 4711, *found[5:10]))
        return found

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(Path, "lstat", lstat)
    return link


@posix
class TestLinks:
    """In a folder that others may write to, nothing is written through a link of another user."""

    @pytest.mark.parametrize("write", [lambda place: write_json(place, {}), lambda place: _write(atomic_file(place))])
    def test_a_file_is_not_replaced_through_it(self, write, shared, tmp_path):
        (tmp_path / "victim").write_text("mine")
        with pytest.raises(UserError, match="symbolic link of another user"):
            write(shared("rates.json", tmp_path / "victim"))
        assert (tmp_path / "victim").read_text() == "mine"

    def test_a_folder_is_not_replaced_through_it(self, shared, tmp_path):
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "file").write_text("mine")
        with (
            pytest.raises(UserError, match="symbolic link of another user"),
            atomic_folder(shared("index", tmp_path / "victim")),
        ):
            pass
        assert (tmp_path / "victim" / "file").read_text() == "mine"

    def test_no_part_of_the_way_is_one(self, shared, tmp_path):
        (tmp_path / "victim").mkdir()
        place = shared("scores", tmp_path / "victim")
        with pytest.raises(UserError, match="symbolic link of another user"):
            make_folder(place / "teacher")
        assert list((tmp_path / "victim").iterdir()) == []

    def test_the_cache_is_not_left_through_it(self, shared, tmp_path, monkeypatch, tiny_folder):
        (tmp_path / "victim").mkdir()
        monkeypatch.setenv("RETRODISTILL_CACHE", str(shared("cache", tmp_path / "victim")))
        with pytest.raises(UserError, match="symbolic link of another user"):
            load_collection(tiny_folder)
        assert list((tmp_path / "victim").iterdir()) == []

    def test_ones_own_link_is_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        write_json(tmp_path / "link" / "a.json", {})
        assert (tmp_path / "real" / "a.json").is_file()

    def test_a_link_in_a_folder_of_its_owner_is_followed(self, shared, tmp_path):
        link = shared("cache", tmp_path)
        link.parent.chmod(0o755)
        write_json(link / "a.json", {})
        assert (tmp_path / "a.json").is_file()


def _write(opened):
    with opened as temporary:
        temporary.write_text("x")


@posix
class TestPermissions:
    def test_folders_and_files_of_the_cache_have_the_users_umask(self, tiny_folder, tmp_path, monkeypatch):
        monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path / "cache"))
        before = os.umask(0o027)
        try:
            load_collection(tiny_folder)
        finally:
            os.umask(before)
        modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode) & 0o666) for path in cache_folder().rglob("*")}
        assert {mode for _, mode in modes} <= {0o640}

    @pytest.mark.parametrize("is_folder", [False, True])
    def test_what_somebody_put_at_the_temporary_name_is_left_alone(self, is_folder, tmp_path):
        """A link there, planted by whoever may write to a shared folder, leads to something of this user."""
        write = atomic_folder if is_folder else atomic_file
        with write(tmp_path / "f") as temporary:
            name = temporary.name
            (temporary / "x" if is_folder else temporary).write_text("first")
        mine = tmp_path / "mine"
        if is_folder:
            mine.mkdir()
        kept = mine / "thesis" if is_folder else mine
        kept.write_text("mine")
        (tmp_path / name).symlink_to(mine)
        with write(tmp_path / "f") as temporary:
            assert temporary.name != name
            (temporary / "x" if is_folder else temporary).write_text("second")
        assert kept.read_text() == "mine"
        assert (tmp_path / "f" / "x" if is_folder else tmp_path / "f").read_text() == "second"

    @pytest.mark.skipif(
        getattr(os, "geteuid", int)() != 0 or os.name != "posix", reason="only root can give a file away"
    )
    def test_a_file_of_another_user_is_not_written_to(self, tmp_path):
        with atomic_file(tmp_path / "f") as temporary:
            name = temporary.name
            temporary.write_text("first")
        (tmp_path / name).write_text("")
        os.chown(tmp_path / name, 12345, 12345)
        with atomic_file(tmp_path / "f") as temporary:
            assert temporary.name != name
            temporary.write_text("second")
        assert (tmp_path / "f").read_text() == "second"
        assert (tmp_path / "f").stat().st_uid == 0


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
class TestNames:
    def test_is_no_file_name(self, name):
        assert not is_file_name(name)
        with pytest.raises(UserError) as caught:
            check_file_name(name, "a thing")
        assert "\n" not in str(caught.value)

    def test_a_student_cannot_have_it(self, name):
        with pytest.raises(UserError):
            parse_recipe({
                "name": "r", "collection": "demo", "teacher": "bm25", "document_encoder": "dense:all-MiniLM-L6-v2",
                "students": {name: {"model": "static", "stages": [{"objectives": ["leaf"]}]}},
            })  # fmt: skip

    def test_a_slug_of_it_is_one_name(self, name):
        assert Path(slug(name)).name == slug(name)
        assert slug(name) not in ("", ".", "..")
        assert len(slug(name)) <= 60

    def test_a_collection_of_it_leaves_no_folder_elsewhere(self, name, tmp_path):
        corpus = Collection.from_parts(name, {"a": "heart"}, {"q": "heart"}, {"test": {"q": {"a": 1}}})
        with pytest.raises(UserError):
            benchmark(["bm25"], [corpus], out=tmp_path / "deep" / "out")
        assert {path.name for path in tmp_path.iterdir()} <= {"cache", "deep"}

    def test_documents_queries_and_splits_of_it_are_measured_in_their_folder(self, name, tmp_path):
        if not name.strip() or "\udcff" in name:
            return  # no id, and no text
        documents = {name: "heart and artery", "other": "star and moon"}
        try:
            corpus = Collection.from_parts("c", documents, {name: "heart"}, {name: {name: {name: 1}}})
        except UserError:
            return
        before = set(tmp_path.parent.iterdir())
        with contextlib.suppress(UserError):
            evaluate(["bm25"], corpus, split=name, out=tmp_path / "deep" / "out")
        assert set(tmp_path.parent.iterdir()) == before
        assert {path.name for path in tmp_path.iterdir()} <= {"cache", "deep"}
        assert {path.name for path in (tmp_path / "deep").glob("*")} <= {"out", ".out.lock"}
