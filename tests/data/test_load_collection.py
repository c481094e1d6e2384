import subprocess
import sys
from pathlib import Path

import pytest
from small_collection import left_in

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, load_collection


class TestForms:
    def test_a_collection_passes(self):
        collection = Collection.from_parts("x", {"a": "b"}, {}, {})
        assert load_collection(collection) is collection

    def test_a_folder_as_string_or_path(self, make_folder):
        folder = make_folder()
        assert load_collection(str(folder)).fingerprint == load_collection(folder).fingerprint

    def test_the_name_wins_over_a_folder_of_that_name(self, make_folder, monkeypatch, tmp_path):
        make_folder(name="demo")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("retrodistill.data.load_demo", lambda: "the demo")
        assert load_collection("demo") == "the demo"
        assert len(load_collection("./demo").documents) == 3
        assert len(load_collection(Path("demo")).documents) == 3

    @pytest.mark.parametrize("source", ["scifact", "", "no/such/folder", Path("nowhere")])
    def test_anything_else_lists_the_five_forms(self, source, cache):
        with pytest.raises(UserError) as caught:
            load_collection(source)
        assert str(caught.value) == (
            f"no collection {str(source)!r}: no such folder, nor a known form; give 'demo', 'beir/<name>', "
            "'ir_datasets:<id>', 'hf:<name or folder>', or a folder in BEIR's layout."
        )
        assert left_in(cache) == []

    def test_a_file_is_not_a_folder(self, make_folder):
        with pytest.raises(UserError, match=r"no collection '.*corpus.jsonl': no such folder"):
            load_collection(make_folder() / "corpus.jsonl")

    def test_another_type_is_named(self):
        with pytest.raises(UserError, match="cannot be made from int; give 'demo'"):
            load_collection(3)


def test_importing_it_brings_no_heavy_library():
    heavy = "{'torch', 'datasets', 'beir', 'transformers', 'ir_datasets', 'pandas'}"
    program = f"import sys, retrodistill.data; print({heavy} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"
