import errno
import hashlib
import os
import re
import stat
from pathlib import Path

import pytest

from retrodistill.core import files
from retrodistill.core.cache import cache_folder
from retrodistill.core.digests import digest, file_digest
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_file, atomic_folder, check_replaceable, read_whole, temporary_folder
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.locks import exclusive
from retrodistill.core.paths import make_folder, path_of, short_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_in(writing, write, error):
    with writing as temporary:
        write(temporary)
        raise error


class TestAtomicFile:
    def test_appears_whole_and_only_at_the_end(self, tmp_path):
        with atomic_file(tmp_path / "new" / "a.txt") as temporary:
            temporary.write_text("half")
            assert not (tmp_path / "new" / "a.txt").exists()
            temporary.write_text("whole")
        assert names(tmp_path / "new") == ["a.txt"]
        assert (tmp_path / "new" / "a.txt").read_text() == "whole"

    @pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
    def test_a_failure_in_the_middle_leaves_the_old_file(self, error, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(type(error)):
            fail_in(atomic_file(path), lambda temporary: temporary.write_text("half"), error)
        assert (names(tmp_path), path.read_text()) == (["a.txt"], "old")

    @pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
    def test_a_full_disk_is_one_line_and_leaves_the_old_file(self, step, tmp_path, monkeypatch):
        path = tmp_path / "a.txt"
        path.write_text("old")
        monkeypatch.setattr(f"retrodistill.core.files.{step}", full)
        with (
            pytest.raises(UserError, match=r"^cannot write .*a.txt: no space left on device; nothing half-written"),
            atomic_file(path) as temporary,
        ):
            temporary.write_text("new")
        assert (names(tmp_path), path.read_text()) == (["a.txt"], "old")

    def test_a_name_that_the_system_refuses_is_one_line(self, tmp_path):
        with pytest.raises(UserError, match="file name too long"), atomic_file(tmp_path / ("x" * 250)) as temporary:
            temporary.write_text("")
        assert names(tmp_path) == []

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_pipe_or_a_device_stays_what_it_is(self, linked, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
        if linked:
            path = tmp_path / "link"
            path.symlink_to(tmp_path / "pipe")
        with pytest.raises(UserError, match="device or a pipe"), atomic_file(path) as temporary:
            temporary.write_text("new")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    def test_a_writer_that_writes_nothing_is_an_error(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*no such file"), atomic_file(tmp_path / "a"):
            pass

    def test_a_reason_of_many_lines_becomes_one(self, tmp_path):
        with pytest.raises(UserError) as caught, atomic_file(tmp_path / "a"):
            raise OSError("Failed:\nmuch more\nDetail")
        assert str(caught.value).count("\n") == 0


class TestAtomicFolder:
    @staticmethod
    def write(folder, text):
        with atomic_folder(folder) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "a").write_text(text)

    def test_takes_the_place_of_the_old_one_whole(self, tmp_path):
        self.write(tmp_path / "out", "old")
        (tmp_path / "out" / "extra").write_text("goes away")
        self.write(tmp_path / "out", "new")
        assert names(tmp_path) == ["out"]
        assert names(tmp_path / "out") == ["inner"]
        assert (tmp_path / "out" / "inner" / "a").read_text() == "new"

    def test_a_failure_in_the_middle_leaves_the_old_one(self, tmp_path):
        self.write(tmp_path / "out", "old")
        with pytest.raises(RuntimeError):
            fail_in(
                atomic_folder(tmp_path / "out"), lambda temporary: (temporary / "a").write_text("half"), RuntimeError()
            )
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "inner" / "a").read_text() == "old"

    @pytest.mark.parametrize("swaps", [True, False])
    def test_a_reader_never_misses_it_where_the_system_swaps_names(self, swaps, tmp_path, monkeypatch):
        if not swaps:
            monkeypatch.setattr(files, "of_libc", lambda name: None)
        seen, step = [], os.rename
        self.write(tmp_path / "out", "old")
        monkeypatch.setattr(os, "rename", lambda *names: (step(*names), seen.append((tmp_path / "out").exists())))
        self.write(tmp_path / "out", "new")
        assert seen == ([] if swaps else [False, True])
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "inner" / "a").read_text() == "new"

    def test_the_old_one_comes_back_when_the_new_one_cannot_take_its_place(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)  # as on a system that cannot
        self.write(tmp_path / "out", "old")
        real, calls = os.rename, []

        def second_fails(source, target):
            calls.append(target)
            if len(calls) == 2:
                full()
            real(source, target)

        monkeypatch.setattr(files, "of_libc", lambda name: None)
        monkeypatch.setattr(files.os, "rename", second_fails)
        with pytest.raises(UserError, match=r"cannot write .*out: no space left on device"):
            self.write(tmp_path / "out", "new")
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "inner" / "a").read_text() == "old"

    @pytest.mark.parametrize("swaps", [True, False])
    def test_one_that_another_process_made_meanwhile_is_replaced(self, swaps, tmp_path, monkeypatch):
        if not swaps:
            monkeypatch.setattr(files, "of_libc", lambda name: None)
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("second")
            real = os.rename

            def other_first(source, target):
                monkeypatch.setattr(os, "rename", real)
                self.write(tmp_path / "out", "first")
                real(source, target)

            monkeypatch.setattr(os, "rename", other_first)
        assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["a"])

    def test_a_full_disk_at_once_is_one_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "mkdir", lambda path, **options: None if "parents" in options else full())
        with pytest.raises(UserError, match=r"cannot write .*out: no space left"), atomic_folder(tmp_path / "out"):
            pass

    def test_a_file_of_that_name_is_left_alone(self, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(UserError, match="a file has that name"), atomic_folder(tmp_path / "out"):
            pass
        assert (tmp_path / "out").read_text() == "mine"


class TestReadWhole:
    @staticmethod
    def replace(folder, text):
        with atomic_folder(folder) as temporary:
            for name in ("a", "b"):
                (temporary / name).write_text(text)

    def test_is_called_again_when_the_folder_was_replaced_between_two_files(self, tmp_path):
        self.replace(tmp_path / "out", "old")
        calls = []

        def read():
            first = (tmp_path / "out" / "a").read_text()
            if not calls:
                self.replace(tmp_path / "out", "new")
            calls.append(first)
            return first, (tmp_path / "out" / "b").read_text()

        assert read_whole(tmp_path / "out", read) == ("new", "new")
        assert calls == ["old", "new"]

    def test_an_error_counts_only_if_the_folder_stayed_the_same(self, tmp_path):
        self.replace(tmp_path / "out", "old")
        calls = []

        def read():
            calls.append(1)
            if len(calls) == 1:
                self.replace(tmp_path / "out", "new")
            raise ValueError(len(calls))

        with pytest.raises(UserError, match=r"out is damaged or was altered \(ValueError: 2\)"):
            read_whole(tmp_path / "out", read)

    def test_an_error_is_itself_where_there_is_no_folder(self, tmp_path):
        with pytest.raises(KeyError):
            read_whole(tmp_path / "nowhere", lambda: {}["x"])

    def test_one_that_is_replaced_during_each_call_is_refused(self, tmp_path):
        self.replace(tmp_path / "out", "old")
        with pytest.raises(UserError, match="out is replaced again and again"):
            read_whole(tmp_path / "out", lambda: self.replace(tmp_path / "out", "new"))

    def test_waits_between_the_two_renames_of_a_writer(self, tmp_path, monkeypatch):
        self.replace(tmp_path / "out", "old")
        (tmp_path / "out").rename(tmp_path / ".retrodistill-out.12345678.old")
        (tmp_path / "next").mkdir()
        (tmp_path / "next" / "a").write_text("new")
        monkeypatch.setattr(files.time, "sleep", lambda _: (tmp_path / "next").rename(tmp_path / "out"))
        assert read_whole(tmp_path / "out", (tmp_path / "out" / "a").read_text) == "new"

    def test_one_that_is_absent_is_read_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files.time, "sleep", pytest.fail)
        with pytest.raises(FileNotFoundError):
            read_whole(tmp_path / "out", (tmp_path / "out" / "a").read_text)


class TestLeftovers:
    """What killed processes left: a file or folder under a temporary name, which nobody has locked."""

    @pytest.fixture
    def left(self, tmp_path):
        (tmp_path / ".retrodistill-a.part").write_text("half")
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / ".retrodistill-b.part").mkdir()
        (tmp_path / "below" / ".retrodistill-b.part" / "c").write_text("half")
        return tmp_path

    def test_are_removed_by_whoever_writes_the_same(self, left):
        with atomic_file(left / "a") as temporary:
            temporary.write_text("new")
        with atomic_folder(left / "below" / "b") as temporary:
            assert names(temporary) == []
        assert (names(left), names(left / "below")) == (["a", "below"], ["b"])

    def test_are_removed_by_a_job_that_has_its_folder_alone(self, left):
        (left / "below" / "mine.part").write_text("another program's")
        with exclusive(left / ".lock"):
            assert (names(left), names(left / "below")) == ([".lock", "below"], ["mine.part"])

    def test_are_removed_from_the_folder_of_temporary_files(self, left, monkeypatch):
        monkeypatch.setattr(files.tempfile, "tempdir", str(left))
        with temporary_folder() as first, temporary_folder() as second:
            (first / "a").write_text("mine")
            assert names(left) == sorted(["below", first.name, second.name])
        assert (names(left), names(left / "below")) == (["below"], [".retrodistill-b.part"])

    def test_do_not_keep_a_folder_from_being_used(self, tmp_path):
        """Those of a writer that was killed before its first file."""
        (tmp_path / ".lock").touch()
        (tmp_path / ".retrodistill-manifest.json.part").touch()
        assert check_replaceable(tmp_path, "manifest.json") == tmp_path

    def test_are_not_what_is_being_written(self, tmp_path):
        with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "a") as second:
            first.write_text("first")
            second.write_text("second")
            with exclusive(tmp_path / ".lock"):
                assert first.read_text() == "first"
        assert (names(tmp_path), (tmp_path / "a").read_text()) == ([".lock", "a"], "first")

    def test_a_link_in_their_place_is_not_followed(self, tmp_path):
        (tmp_path / "mine").write_text("mine")
        (tmp_path / ".retrodistill-a.part").symlink_to("mine")
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("new")
        assert ((tmp_path / "a").read_text(), (tmp_path / "mine").read_text()) == ("new", "mine")

    def test_stay_where_a_disk_has_no_locks_and_nothing_is_added_to_them(self, left, monkeypatch):
        def refused(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(files.fcntl, "flock", refused)
        with atomic_folder(left / "c") as temporary:
            (temporary / "a").write_text("")
        with atomic_file(left / "d") as temporary:
            temporary.write_text("")
        assert names(left) == [".retrodistill-a.part", "below", "c", "d"]


class TestFolders:
    def test_a_place_below_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(
                UserError, match=f"cannot write to {re.escape(str(path))}: .*; choose a writable folder"
            ):
                make_folder(path)

    def test_a_folder_that_is_not_writable_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # the tests may run as root
        with pytest.raises(UserError, match="permission denied; choose a writable folder"):
            make_folder(tmp_path)

    def test_the_cache_is_where_the_environment_says(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RETRODISTILL_CACHE", str(tmp_path))
        assert cache_folder() == tmp_path
        monkeypatch.setenv("RETRODISTILL_CACHE", "")
        assert cache_folder().name == "retrodistill"


class TestJson:
    def test_goes_through_unchanged(self, tmp_path):
        value = {"ü": [1, 0.1, None, True], "b": {"c": "\n"}}
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
        assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")

    def test_nan_is_refused_and_nothing_is_written(self, tmp_path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", float("nan"))
        assert names(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xff"])
    def test_a_file_cut_short_is_named(self, content, tmp_path):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a.json is not JSON .*; it may be cut short: delete it and make it again"):
            read_json(tmp_path / "a.json")

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        with pytest.raises(UserError, match=r"no file .*a.json"):
            read_json(tmp_path / "a.json")
        with pytest.raises(UserError, match=r"cannot read .*: is a directory"):
            read_json(tmp_path)


class TestDigests:
    def test_depend_on_content_and_not_on_the_order_of_keys(self):
        assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        assert re.fullmatch("[0-9a-f]{16}", digest("x"))

    def test_different_values_differ(self):
        values = [(1,), ("1",), (1, 2), ([1, 2],), (None,), ("",), (), ({"a": 1},), ({"a": 2},), (True,), (0.1,)]
        assert len({digest(*value) for value in values}) == len(values)

    def test_of_a_file_are_hashlibs(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc" * 100000)
        assert file_digest(tmp_path / "a", "sha256") == hashlib.sha256(b"abc" * 100000).hexdigest()
        assert file_digest(tmp_path / "a") == hashlib.blake2b(b"abc" * 100000).hexdigest()


class TestInput:
    """What cannot be a file is refused where it is given."""

    @pytest.mark.parametrize("given", ["x" * 300, "a/" * 3000, "a\0b", "\udcff", "~nobody-at-all/x"], ids=ascii)
    def test_paths_that_no_file_has(self, given):
        with pytest.raises(UserError, match=r"long|NUL|UTF-8|home") as refused:
            path_of(given)
        str(refused.value).encode()
        assert len(str(refused.value)) < 2100

    @pytest.mark.parametrize("read", [short_text, read_json, file_digest])
    def test_a_pipe_or_a_device_is_not_read(self, tmp_path, read):
        os.mkfifo(tmp_path / "pipe")
        for place in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(UserError, match="a pipe, a socket, or a device"):
                read(place)

    def test_a_text_that_no_person_wrote(self, tmp_path):
        (tmp_path / "long").write_bytes(b"x" * (1 << 20 | 1))
        with pytest.raises(UserError, match="larger than 1 MiB"):
            short_text(tmp_path / "long")
        (tmp_path / "binary").write_bytes(b"\xff")
        with pytest.raises(UserError, match=r"cannot read .*binary"):
            short_text(tmp_path / "binary")
