"""A cache that holds all that is needed is used where it cannot be written: nothing there is opened for writing."""

import builtins
import errno
import io
import os
from pathlib import Path

import filelock
import pytest

from retrodistill.api import evaluate
from retrodistill.core.cache import cache_folder, make_once
from retrodistill.core.errors import UserError
from retrodistill.core.rates import remember, remembered
from retrodistill.data import load_collection
from retrodistill.encoders import load_encoder
from retrodistill.encoders.embeddings import embed, seconds_to_embed
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.evaluation.check import check
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker
from retrodistill.students.late_interaction import StoredDocuments
from retrodistill.students.registry import load_student

SAVED = Path(__file__).parent / "fixtures" / "saved_at_0.1.0"


def content(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


class Sealed:
    """Folders that are read-only for this process, root or not, as a mounted disk is."""

    def __init__(self, monkeypatch):
        self.patch, self.before = monkeypatch, {}
        opened = lambda mode="r", *_, **__: set(mode) & set("wax+")  # noqa: E731 - of several of one form
        self.refuse(builtins, "open", opened)
        self.refuse(io, "open", opened)
        self.refuse(os, "open", lambda flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        self.refuse(os, "access", lambda mode, **_: mode & os.W_OK, lambda *_: False)
        for name in ("mkdir", "replace", "rename", "unlink", "remove"):
            self.refuse(os, name, lambda *_, **__: True)
        acquire = filelock.BaseFileLock.acquire

        def acquire_checked(lock, *arguments, **options):
            assert not self.holds(lock.lock_file), f"a lock was taken: {lock.lock_file}"
            return acquire(lock, *arguments, **options)

        monkeypatch.setattr(filelock.BaseFileLock, "acquire", acquire_checked)

    def __call__(self, folder):
        self.before[folder] = content(folder)

    def holds(self, path):
        place = isinstance(path, (str, os.PathLike)) and Path(path).absolute()
        return place and any(place.is_relative_to(folder) for folder in self.before)

    def refuse(self, module, name, writes, instead=None):
        function = getattr(module, name)

        def checked(path, *arguments, **options):
            if not (self.holds(path) and writes(*arguments, **options)):
                return function(path, *arguments, **options)
            if instead is None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return instead(path)

        self.patch.setattr(module, name, checked)


@pytest.fixture
def seal(monkeypatch):
    sealed = Sealed(monkeypatch)
    yield sealed
    for folder, before in sealed.before.items():
        assert content(folder) == before


class TestWhatIsThere:
    def test_rankers_of_all_kinds_are_evaluated_again(self, tiny_folder, tiny_model, tiny_cross_encoder, seal):
        def measured():
            systems = {
                "bm25": "bm25",
                "dense": f"dense:{tiny_model}",
                "reranked": f"rerank@5:cross-encoder:{tiny_cross_encoder}@bm25",
                "sparse": load_encoder(load_student(SAVED / "sparse").model),
                "tokens": load_encoder(token_encoder(tiny_model)),
            }
            return evaluate(systems, str(tiny_folder), measures=["ndcg@10"]).means

        before = measured()
        seal(cache_folder())
        assert measured() == before

    def test_indexes_are_built_saved_elsewhere_searched_and_checked(self, tiny_folder, tiny_model, tmp_path, seal):
        tiny = load_collection(tiny_folder)
        multi = load_encoder(token_encoder(tiny_model))
        build_index(tiny, multi, codec="float32")
        build_index(tiny, f"dense:{tiny_model}").save(tmp_path / "index")
        index = load_index(tmp_path / "index")
        before = index.search(tiny.split("test"), tiny, 5).to_dict(), check(index, tiny, latency_queries=0)
        build_index(tiny, multi, codec="residual", bits=1, centroids=8)
        seal(cache_folder())
        seal(tmp_path / "index")
        tiny, index = load_collection(tiny_folder), load_index(tmp_path / "index")
        assert (index.search(tiny.split("test"), tiny, 5).to_dict(), check(index, tiny, latency_queries=0)) == before
        for options in ({"codec": "float32"}, {"codec": "residual", "bits": 1, "centroids": 8}):
            built = build_index(tiny, multi, **options)
            built.save(tmp_path / "multi")
            assert len(load_index(tmp_path / "multi", multi)) == len(tiny.documents)

    def test_stored_documents_of_a_re_ranking_student(self, tiny, seal):
        student = load_student(SAVED / "prett")
        before = StoredDocuments(student, tiny.documents.column).score("star", [1, 2, 3])
        seal(cache_folder())
        assert (StoredDocuments(student, tiny.documents.column).score("star", [1, 2, 3]) == before).all()

    def test_rates_are_read_and_new_ones_are_forgotten(self, seal):
        remember("known", {"seconds": 1.0})
        seal(cache_folder())
        remember("new", {"seconds": 2.0})
        assert (remembered("known"), remembered("new")) == ({"seconds": 1.0}, None)

    def test_a_folder_that_is_made_once(self, tmp_path, seal):
        make_once(tmp_path / "sealed" / "made", lambda folder: (folder / "file").write_text("x"))
        seal(tmp_path / "sealed")
        make_once(tmp_path / "sealed" / "made", lambda folder: pytest.fail("it is there"))


class TestWhatIsMissing:
    def test_the_error_names_the_folder(self, tiny, tiny_model, tiny_cross_encoder, seal):
        encoder = load_encoder(f"dense:{tiny_model}")
        embed(encoder, tiny.queries.texts[:2], "query")
        seal(cache_folder())
        assert seconds_to_embed(encoder, tiny.queries.texts[:3], "query")[0] == 1  # an estimate writes nothing
        for work, place in (
            (lambda: embed(encoder, ["a new text"], "query"), "embeddings/query-"),
            (lambda: embed(encoder, ["a new text"], "document"), "embeddings/document-"),
            (lambda: load_ranker("bm25").search(tiny.queries, tiny, 3), "bm25"),
            (lambda: load_collection("demo"), "collections"),
        ):
            with pytest.raises(UserError) as caught:
                work()
            message = str(caught.value)
            assert f"{cache_folder()}/{place}" in message
            assert "\n" not in message
