import json

import numpy as np
import pytest

from retrodistill import cli
from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.pseudo_queries import generated_id, load_generated, source_document
from retrodistill.encoders import load_encoder
from retrodistill.generation import keep_round_trips


@pytest.fixture
def queries(tiny):
    """A query of each document: a few of its words, which others have as well."""
    words = {id_: text.replace(".", " ").split() for id_, text in tiny.documents.items()}
    return Texts.from_pairs((generated_id(id_, f"{id_}-1"), " ".join(words[id_][4:7])) for id_ in words)


class TestKept:
    @pytest.mark.parametrize("depth", [1, 3, 60])
    def test_are_those_whose_source_is_among_the_first(self, tiny, tiny_model, queries, depth, monkeypatch):
        monkeypatch.setattr("retrodistill.generation.round_trip._PART", 7)
        encoder = load_encoder(f"dense:{tiny_model}")
        scores = encoder.encode(queries.texts, "query") @ encoder.encode(tiny.documents.texts, "document").T
        ranks = (scores > scores.diagonal()[:, None]).sum(axis=1)
        kept = keep_round_trips(queries, tiny, encoder, depth)
        assert kept.ids == [queries.ids[row] for row in np.flatnonzero(ranks < depth)]
        assert 0 < len(kept) < 60 or depth == 60

    def test_a_query_that_finds_nothing_is_lost(self, tiny):
        queries = Texts.from_pairs(
            [(generated_id("d0", "1"), "xylophone"), (generated_id("d0", "2"), tiny.titles["d0"])]
        )
        assert keep_round_trips(queries, tiny, "bm25", 60).ids == queries.ids[1:]

    def test_a_copy_counts_as_the_document(self):
        documents = {"a": "green tea leaves", "b": "green tea leaves", "c": "cold milk"}
        queries = Texts.from_pairs([(generated_id(id_, "1"), "green tea") for id_ in documents])
        kept = keep_round_trips(queries, Collection.from_parts("c", documents, {}, {}), "bm25", 1)
        assert [source_document(id_) for id_ in kept.ids] == ["a", "b"]

    def test_any_passage_of_the_document_counts(self, tiny_folder):
        corpus = load_collection(tiny_folder, passages="3,0")
        second = corpus.documents.ids.index("d0#2")
        queries = Texts.from_pairs([(generated_id("d0#1", "1"), corpus.bodies.texts[second])])
        assert len(keep_round_trips(queries, corpus, "bm25", 1)) == 1

    def test_none_is_kept_of_none(self, tiny):
        assert len(keep_round_trips(Texts.from_pairs([]), tiny, "bm25", 1)) == 0


class TestCommand:
    @pytest.fixture
    def given(self, tiny, queries, tmp_path):
        path = tmp_path / "given.jsonl"
        rows = (
            {"_id": id_, "text": queries[generated_id(id_, f"{id_}-1")], "document_id": id_} for id_ in tiny.documents
        )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def run(self, *arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["generate", *map(str, arguments)])
        return end.value.code

    def test_filters_a_file(self, tiny, tiny_folder, given, tmp_path):
        out = tmp_path / "kept.jsonl"
        assert not self.run(
            "--collection", tiny_folder, "--from", given, "--round-trip", "bm25", "--depth", 2, "--out", out
        )
        expected = keep_round_trips(load_generated(given, tiny), tiny, "bm25", 2)
        assert dict(load_generated(out, tiny)) == dict(expected)
        manifest = json.loads((tmp_path / "kept.manifest.json").read_text())
        assert manifest["settings"] == {"round_trip": "bm25", "depth": 2}
        assert manifest["about"] == {"before_round_trip": 60, "queries": len(expected)}

    def test_generates_and_filters(self, tiny, tiny_folder, tiny_seq2seq, tmp_path, capsys):
        out = tmp_path / "made.jsonl"
        arguments = ["--collection", tiny_folder, "--model", f"seq2seq:{tiny_seq2seq}", "--documents", 8, "--out", out]
        arguments += ["--query-tokens", 5, "--round-trip", "bm25", "--depth", 30]
        assert not self.run(*arguments, "--dry-run")
        assert "8 documents left" in capsys.readouterr().out
        assert not out.exists()
        assert not self.run(*arguments)
        about = json.loads((tmp_path / "made.manifest.json").read_text())["about"]
        assert about["documents"] == 8
        assert about["queries"] == len(load_generated(out, tiny)) < about["before_round_trip"] == about["generated"]

    @pytest.mark.parametrize(
        ("arguments", "fact"),
        [
            ([], "one of them"),
            (["--model", "llm:x", "--from", "y"], "one of them"),
            (["--from", "y.jsonl"], "--round-trip"),
            (["--from", "y.jsonl", "--round-trip", "bm25", "--dry-run"], "--dry-run"),
            (["--from", "y.jsonl", "--round-trip", "bm25", "--depth", "61"], "60 documents"),
            (["--from", "y.jsonl", "--round-trip", "llm:http://localhost#m"], "cannot search"),
        ],
    )
    def test_mistakes_are_one_line(self, tiny_folder, tmp_path, arguments, fact, capsys):
        assert self.run("--collection", tiny_folder, "--out", tmp_path / "out.jsonl", *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert fact in error
        assert "\n" not in error
        assert not (tmp_path / "out.jsonl").exists()


def test_a_depth_above_the_corpus_is_refused(tiny, queries):
    with pytest.raises(UserError, match="60 documents"):
        keep_round_trips(queries, tiny, "bm25", 61)
