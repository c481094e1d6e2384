"""The command trim, and the spaces that trimmed models search."""

import json
import shlex

import numpy as np
import pytest
from backbones import backbone, bi_encoder

import retrodistill as rd
from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.runtime import set_quiet
from retrodistill.encoders import load_encoder
from retrodistill.encoders.contract import STUDENT_MANIFEST, searched_space
from retrodistill.encoders.space import EmbeddingSpace
from retrodistill.students import save_student, static_student


@pytest.fixture
def dense(tmp_path):
    """Name of a bi-encoder with byte pairs, of which the tiny collection uses a part."""
    return f"dense:{bi_encoder('bert', tmp_path / 'model')}"


@pytest.fixture
def student(dense, tiny, tmp_path):
    """Name of a static student of its space."""
    space = load_encoder(dense)
    manifest = Manifest("student", {"corpus": "c"}, {"seed": 3}, {**searched_space(space), "seconds": 1.5})
    save_student(static_student(space, tiny.documents).cpu(), manifest, tmp_path / "student")
    return f"static:{tmp_path / 'student'}"


class TestTheCommand:
    @pytest.mark.parametrize("kind", ["dense", "multi-vector", "cross-encoder"])
    def test_ends_with_the_next_one_which_runs(self, kind, dense, tiny_folder, tmp_path, call):
        set_quiet(False)
        place = dense.partition(":")[2]
        if kind == "multi-vector":
            from retrodistill.encoders.multi_vector import token_encoder

            token_encoder(place).save_pretrained(str(tmp_path / "tokens"), create_model_card=False)
            place = tmp_path / "tokens"
        if kind == "cross-encoder":
            place = backbone("bert", tmp_path / "scores", "ForSequenceClassification")
        status, _, err = call(
            "trim", f"{kind}:{place}", "--collection", tiny_folder, "--out", tmp_path / "small", "--min-count", "3"
        )
        assert status == 0, err
        about = json.loads((tmp_path / "small" / STUDENT_MANIFEST).read_text())["about"]["trimmed"]
        assert about["tokens"] < about["before"]
        assert f"{about['tokens']} of {about['before']} tokens" in err
        status, _, err = call(*shlex.split(err.rpartition("next: retrodistill ")[2]))
        assert status == 0, err

    def test_makes_a_small_table(self, student, tiny_folder, tiny, tmp_path, call):
        options = ["--dimension", "0.99", "--precision", "int8"]
        status, _, err = call("trim", student, "--collection", tiny_folder, "--out", tmp_path / "small", *options)
        assert status == 0, err
        whole, small = load_encoder(student), load_encoder(f"static:{tmp_path / 'small'}")
        texts = tiny.documents.texts
        assert (small.encode(texts, "query") * whole.encode(texts, "query")).sum(axis=1).min() > 0.95
        sizes = [
            sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            for folder in (tmp_path / "student", tmp_path / "small")
        ]
        assert sizes[1] < sizes[0] / 2

    def test_reads_files_of_texts(self, student, tmp_path, call):
        (tmp_path / "log.txt").write_text("what star\n\nall about violin\n")
        (tmp_path / "more.jsonl").write_text('{"text": "jury and judge"}\n')
        files = ["--texts", tmp_path / "log.txt", "--texts", tmp_path / "more.jsonl"]
        status, _, err = call("trim", student, "--out", tmp_path / "small", *files)
        assert status == 0, err
        whole, small = load_encoder(student), load_encoder(f"static:{tmp_path / 'small'}")
        texts = ["what star", "all about violin", "jury and judge"]
        np.testing.assert_array_equal(small.encode(texts, "query"), whole.encode(texts, "query"))

    def test_queries_of_the_test_split_keep_nothing(self, student, tmp_path):
        folder = tmp_path / "collection"
        (folder / "qrels").mkdir(parents=True)
        (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "a star"}')
        queries = [{"_id": "asked", "text": "a galaxy"}, {"_id": "measured", "text": "a violin"}]
        (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nmeasured\td\t1\n")
        trimmed = rd.trim(student, str(folder), out=tmp_path / "small")
        words = [len(trimmed.model.tokenizer.encode(word, add_special_tokens=False)) for word in ("galaxy", "violin")]
        assert words[0] == 1 < words[1]


class TestSpaces:
    def test_a_student_searches_the_space_that_it_was_distilled_into(self, student, dense, tiny, tiny_folder, tmp_path):
        trimmed = rd.trim(student, str(tiny_folder), out=tmp_path / "small")
        whole = load_encoder(student)
        assert trimmed.query_space == whole.query_space
        assert trimmed.query_space_contract == whole.query_space_contract
        assert EmbeddingSpace.of(load_encoder(dense)).differences(trimmed) == []
        found = Manifest.read(tmp_path / "small", STUDENT_MANIFEST)
        assert found.settings["seed"] == 3
        assert found.inputs["corpus"] == "c"  # that it was trained on
        assert found.about["seconds"] == 1.5
        rd.build_index(tiny, load_encoder(dense), trimmed)  # which refuses queries of other spaces

    def test_a_trimmed_encoder_of_documents_has_a_space_of_its_own(self, dense, tiny_folder, tmp_path):
        trimmed = rd.trim(dense, str(tiny_folder), out=tmp_path / "small")
        space = EmbeddingSpace.of(load_encoder(dense))
        assert trimmed.query_space == trimmed.document_space != space.fingerprint
        assert space.differences(trimmed)
        assert EmbeddingSpace.of(trimmed).differences(trimmed) == []

    def test_for_queries_only_it_searches_the_documents_of_the_whole_one(self, dense, tiny_folder, tmp_path):
        trimmed = rd.trim(dense, str(tiny_folder), queries_only=True, out=tmp_path / "small")
        assert EmbeddingSpace.of(load_encoder(dense)).differences(trimmed) == []


class TestMistakes:
    def refused(self, call, *arguments):
        status, _, err = call("trim", *arguments)
        assert status == 2
        return err

    def test_no_texts(self, student, tmp_path, call):
        assert "needs texts" in self.refused(call, student, "--out", tmp_path / "small")

    def test_no_such_file(self, student, tmp_path, call):
        assert "no file" in self.refused(call, student, "--out", tmp_path / "small", "--texts", tmp_path / "no.txt")

    def test_its_own_folder(self, student, tiny_folder, call):
        own = student.partition(":")[2]
        assert "would be lost" in self.refused(call, student, "--collection", tiny_folder, "--out", own)

    def test_a_folder_of_something_else(self, student, tiny_folder, call):
        assert "other files" in self.refused(call, student, "--collection", tiny_folder, "--out", tiny_folder)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--precision", "int4"], "int4"),
            (["--dimension", "0"], "dimension"),
            (["--dimension", "32"], "choose 1 to 31"),
            (["--min-count", "1000"], "in 1000 of the texts"),
            (["--split", "moon"], "moon"),
        ],
    )
    def test_values(self, options, said, student, tiny_folder, tmp_path, call):
        out = tmp_path / "small"
        assert said in self.refused(call, student, "--collection", tiny_folder, "--out", out, *options)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("name", "options", "said"),
        [
            ("dense", ["--precision", "int8"], "static model"),
            ("dense", ["--dimension", "8"], "static model"),
            ("static", [], "not a token table"),
            ("bm25", [], "trim works for"),
            ("sparse", ["--queries-only"], "cannot search documents of the whole model"),
        ],
    )
    def test_models(self, name, options, said, dense, tiny_folder, tmp_path, call):
        given = f"{name}:{dense.partition(':')[2]}"
        assert said in self.refused(call, given, "--collection", tiny_folder, "--out", tmp_path / "small", *options)

    def test_in_python_they_are_errors(self, student, tmp_path):
        with pytest.raises(UserError, match="needs texts"):
            rd.trim(student, out=tmp_path / "small")
