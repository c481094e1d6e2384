"""What is written says its format; one of a later release is refused with the release that reads it."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from retrodistill.core import formats
from retrodistill.core.errors import UserError
from retrodistill.core.formats import Format, check_stamp, stamp, without_stamp
from retrodistill.core.json_files import read_json
from retrodistill.core.manifest import Manifest
from retrodistill.data import load_collection
from retrodistill.evaluation.results import Results
from retrodistill.exports import export_index
from retrodistill.indexes import build_index, load_index
from retrodistill.runs import Run, read_run, write_run
from retrodistill.students import load_student
from retrodistill.students.registry import save_student

SAVED = Path(__file__).parent / "fixtures" / "saved_at_0.1.0"


class TestStamp:
    def test_is_the_first_format_without_an_entry(self):
        check_stamp({}, "index", "here")
        assert stamp("something") == {"format": 1, "read_since": "0.1.0"}

    def test_this_format_and_those_before_are_read(self):
        for number in range(1, formats.FORMATS["index"].number + 1):
            check_stamp({"format": number}, "index", "here")

    @pytest.mark.parametrize("number", [99, "2", None, 2.5, True])
    def test_another_is_refused_with_its_place_and_release(self, number):
        with pytest.raises(UserError, match=r"^here/manifest\.json is of format .*retrodistill 7\.1\.0 and later"):
            check_stamp({"format": number, "read_since": "7.1.0"}, "index", "here/manifest.json")

    def test_is_left_out_of_the_content(self):
        assert without_stamp({**stamp("index"), "a": 1}) == {"a": 1}


@pytest.fixture
def written_later(monkeypatch):
    """Call something as if a later release wrote."""

    def call(kind, write):
        with monkeypatch.context() as patch:
            patch.setitem(formats.FORMATS, kind, Format(99, "7.1.0"))
            return write()

    return call


def refused(kind):
    return pytest.raises(UserError, match=rf"is of format 99 of {kind}, which retrodistill 7\.1\.0 and later read")


class TestArtifacts:
    @pytest.mark.parametrize("kind", ["job", "teacher", "encoder", "evaluation", "generated queries"])
    def test_manifests(self, kind, written_later, tmp_path):
        Manifest(kind).write(tmp_path)
        assert read_json(tmp_path / "manifest.json")["format"] == 1
        written_later(kind, lambda: Manifest(kind).write(tmp_path))
        with refused(kind):
            Manifest(kind).matches(tmp_path)

    def test_students(self, written_later, tmp_path):
        model = load_student(SAVED / "static").model
        save_student(model, Manifest("student"), tmp_path / "student")  # and loads it
        written_later("student", lambda: save_student(model, Manifest("student"), tmp_path / "student"))
        with refused("student"):
            load_student(tmp_path / "student")

    def test_indexes(self, written_later, tmp_path):
        student = load_student(SAVED / "hybrid")
        index = build_index(load_collection(SAVED / "collection"), student)
        index.save(tmp_path / "index")
        load_index(tmp_path / "index", student)
        written_later("index", lambda: index.save(tmp_path / "index"))
        with refused("index"):
            load_index(tmp_path / "index", student)

    @pytest.mark.parametrize(
        ("target", "kind"),
        [
            ("parquet:{}", "Parquet export"),
            ("qdrant:{}#c", "Qdrant collection"),
            ("lancedb:{}#c", "LanceDB table"),
        ],
    )
    def test_exports(self, target, kind, written_later, tmp_path):
        student = load_student(SAVED / "hybrid")
        index = build_index(load_collection(SAVED / "collection"), student)
        for folder, write in (("now", lambda export: export()), ("later", lambda export: written_later(kind, export))):
            place = target.format(tmp_path / folder)
            write(partial(export_index, index, place))
            if folder == "now":
                load_index(place, student).close()
        with refused(kind):
            load_index(place, student)

    def test_collections(self, written_later):
        written_later("collection", lambda: load_collection(SAVED / "collection"))
        with refused("collection"):
            load_collection(SAVED / "collection")

    def test_runs_in_parquet(self, written_later, tmp_path):
        path = tmp_path / "a.parquet"
        written_later("run", lambda: write_run(Run.from_dict({"q": {"d": 1.0}}), path))
        with refused("run"):
            read_run(path)
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)  # of another program
        assert read_run(path).to_dict() == {"q": {"d": 1.0}}

    def test_results(self, written_later):
        content = read_json(SAVED / "evaluated" / "results.json")
        results = Results.from_json(content)
        assert Results.from_json(results.to_json()) == results
        with refused("results"):
            Results.from_json(written_later("results", results.to_json))
