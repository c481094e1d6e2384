"""Paths as the system sees them: links, ``~``, other working directories, and projects that move as a whole."""

import os
import shutil

import pytest

from retrodistill.api import evaluate
from retrodistill.core.cache import cache_folder
from retrodistill.core.files import atomic_file, atomic_folder
from retrodistill.core.json_files import read_json, write_json
from retrodistill.core.manifest import Manifest
from retrodistill.data import load_collection
from retrodistill.data.texts import Texts
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import searched_space
from retrodistill.encoders.loading import load_bi_encoder
from retrodistill.encoders.names import found_from, relative_to
from retrodistill.evaluation.check import check
from retrodistill.exports import export_index
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker
from retrodistill.runs.formats import read_run, write_run
from retrodistill.runs.run import Run
from retrodistill.students import save_student

NEW = Texts.from_pairs([("new", "a star and a comet")])


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_folder, tiny_model, tiny_static):
    """A folder with a model, its student and a collection; the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_folder, folder / "collection")
    monkeypatch.chdir(folder)
    about = searched_space(load_encoder("dense:model"))
    save_student(load_bi_encoder(tiny_static), Manifest("student", about=about), "out/student")
    return folder


def works(index):
    """Search by the saved query encoder, and adding by the documents' encoder."""
    loaded = load_index(index)
    assert loaded.search("star planet", k=1).to_dict() == load_index(index).search("star planet", k=1).to_dict()
    loaded.add(NEW)
    assert loaded.search("a star and a comet", k=1).to_dict()["0"].keys()
    assert len(loaded) == 61


class TestAnIndex:
    @pytest.mark.parametrize("linked", ["the folder above", "the folder itself", "the model"])
    def test_it_is_built_through_a_link_and_found_from_elsewhere(self, project, linked, monkeypatch, tmp_path):
        queries = "static:out/student"
        if linked == "the folder above":
            (project / "scratch" / "a" / "b").mkdir(parents=True)
            (project / "deep").symlink_to("scratch/a/b")
            place = "deep/index"
        elif linked == "the folder itself":
            (project / "scratch" / "a" / "index").mkdir(parents=True)
            (project / "index").symlink_to("scratch/a/index")
            place = "index"
        else:
            shutil.move(project / "out" / "student", tmp_path / "kept")
            (project / "student").symlink_to(tmp_path / "kept")
            place, queries = "index", "static:student"
        build_index(load_collection("collection"), "dense:model", queries).save(place)
        works(place)
        monkeypatch.chdir(tmp_path)
        works(project / place)
        assert (project / "index").is_symlink() == (linked == "the folder itself")

    def test_it_is_saved_after_the_working_directory_changed(self, project, tmp_path, monkeypatch):
        built = build_index(load_collection("collection"), "dense:model", "static:out/student")
        monkeypatch.chdir(tmp_path)
        built.save("project/out/index")
        works("project/out/index")

    def test_a_project_moves_as_a_whole(self, project, tmp_path, monkeypatch):
        tiny = load_collection("collection")
        build_index(tiny, "dense:model", "static:out/student").save("out/index")
        report = export_index("out/index", "parquet:out/export")
        before = evaluate({"ours": "out/index"}, tiny, measures=["ndcg@10"], out="out/results")
        monkeypatch.chdir(tmp_path)
        shutil.move(project, tmp_path / "elsewhere")
        moved = tmp_path / "elsewhere"
        works(moved / "out" / "index")
        checked = check(load_index(moved / "out" / "index"), tiny, latency_queries=0, symmetric=False)
        assert checked.queries == 12
        assert "project" not in (moved / "out" / "index" / "manifest.json").read_text()
        assert "project" not in (moved / "out" / "export" / "manifest.json").read_text()
        store = load_index(f"parquet:{moved / 'out' / 'export'}")
        found = load_index(moved / "out" / "index").search("star planet", k=3).to_dict()["0"]
        assert store.search("star planet", k=3).to_dict()["0"] == pytest.approx(found, abs=1e-5)
        assert report.documents == 60
        monkeypatch.setattr("retrodistill.evaluation.evaluating._measure", lambda *_: pytest.fail("it was measured"))
        again = evaluate({"ours": moved / "out" / "index"}, tiny, measures=["ndcg@10"], out=moved / "out" / "results")
        assert again.means == before.means

    def test_what_an_earlier_version_wrote(self, project):
        build_index(load_collection("collection"), "dense:model").save("out/index")
        file = project / "out" / "index" / "manifest.json"
        content = read_json(file)
        assert content["about"]["queries_by"] == content["about"]["space"]["documents_by"] == "dense:../../model"
        content["about"]["space"]["documents_by"] = "dense:model"  # relative to the working directory
        write_json(file, content)
        assert load_index("out/index").documents_by == "dense:model"
        works("out/index")

    def test_names_that_are_no_folders_stay(self, project):
        for name in (None, "dense:all-MiniLM-L6-v2", "bm25", "dense:gone/model"):
            assert relative_to(name, project) == found_from(name, project) == name
        assert relative_to("dense:model@exit-1", project / "out") == "dense:../model@exit-1"
        assert found_from("dense:../model@exit-1", project / "out") == f"dense:{project}/model@exit-1"


class TestHome:
    def test_it_is_written_with_a_tilde(self, project, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(project))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("RETRODISTILL_CACHE", "~/cache")
        assert cache_folder() == project / "cache"
        student = load_encoder("static:~/out/student")
        assert student.query_space == load_encoder("dense:~/model").document_space
        build_index(load_collection("~/collection"), "dense:~/model", "static:~/out/student").save("~/out/index")
        works("~/out/index")
        write_run(Run.from_dict({"q0": {"d0": 1.0}}), "~/out/one.run")
        assert len(load_ranker("run:~/out/one.run").run) == len(read_run("~/out/one.run")) == 1
        export_index("~/out/index", "parquet:~/out/export")
        assert len(load_index("parquet:~/out/export")) == 60
        assert not (tmp_path / "~").exists()


class TestWritingThroughALink:
    def test_the_link_stays_and_nothing_is_left_over(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "old").write_text("")
        (tmp_path / "link").symlink_to("real")
        with atomic_folder(tmp_path / "link") as temporary:
            (temporary / "new").write_text("")
        (tmp_path / "file").write_text("old")
        (tmp_path / "to-file").symlink_to("file")
        with atomic_file(tmp_path / "to-file") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "new"
        assert os.listdir(tmp_path / "real") == ["new"]
        assert sorted(os.listdir(tmp_path)) == ["file", "link", "real", "to-file"]
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "to-file").is_symlink()
