"""Blank texts are counted, and never found, proposed, trained on or scored; indexes know what they were made from."""

import json

import pytest

from retrodistill import cli
from retrodistill.api import evaluate
from retrodistill.candidates import mine
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import Collection
from retrodistill.data.pseudo_queries import document_texts
from retrodistill.data.texts import Texts, is_blank
from retrodistill.encoders import load_encoder
from retrodistill.encoders.multi_vector import token_encoder
from retrodistill.exports import export_index
from retrodistill.indexes import build_index, load_index
from retrodistill.rankers import load_ranker, score
from retrodistill.runs import Run

BLANK = {"nothing": "", "white": " \t\n\u3000\u2003", "joiner": "\u200b\u200d\ufeff", "hyphen": "\u00ad\u2060",
         "control": "\x07\x1b", "unassigned": "\u0378\U000e0001", "filler": "\u3164\u2800\ufe0f"}  # fmt: skip
SEEN = ["a", ".", "é", "中", "🙂", "\u0301a", " \u200b7", "\ue000"]


@pytest.fixture
def encoders(tiny_model, tiny_static):
    return {
        "dense": load_encoder(f"dense:{tiny_model}"),
        "static": load_encoder(f"static:{tiny_static}"),
        "multi-vector": load_encoder(token_encoder(tiny_model)),
    }


def changed(collection, **texts):
    """A collection with other documents; None leaves one out."""
    documents = {**dict(collection.documents), **texts}
    kept = {id_: text for id_, text in documents.items() if text is not None}
    return Collection.from_parts("changed", kept, dict(collection.queries), {"test": {"q54": {"d54": 1}}})


@pytest.fixture
def holes(tiny):
    """The tiny collection with blank documents and a blank query, some judged."""
    documents = {**BLANK, **dict(tiny.documents)}
    qrels = {split: judged.to_dict() for split, judged in tiny.qrels.items()}
    qrels["test"]["q54"] = {"d54": 1, "nothing": 1}
    qrels["test"]["blank"] = {"d3": 1}
    return Collection.from_parts("holes", documents, {**dict(tiny.queries), "blank": "\u200b"}, qrels)


class TestDefinition:
    @pytest.mark.parametrize("text", BLANK.values(), ids=BLANK)
    def test_what_shows_nothing_is_blank(self, text):
        assert is_blank(text)
        assert Texts.from_pairs([("seen", "x"), ("it", text)]).blank == {"it"}

    @pytest.mark.parametrize("text", SEEN)
    def test_what_is_seen_is_not(self, text):
        assert not is_blank(text)
        assert not Texts.from_pairs([("it", text)]).blank

    def test_loading_counts_by_it(self, holes):
        documents, queries = (line for line in holes.warnings if "no text" in line)
        assert documents.startswith(f"{len(BLANK)} documents")
        assert queries.startswith("1 queries")

    def test_none_is_a_pseudo_query(self, holes):
        assert len(document_texts(holes)) == 60


class TestSearch:
    @pytest.mark.parametrize("kind", ["dense", "static", "multi-vector"])
    def test_finds_none_and_finds_nothing_for_one(self, holes, encoders, kind, tmp_path):
        queries = holes.split("test")
        index = build_index(holes, encoders[kind])
        index.save(tmp_path / "index")
        loaded = load_index(tmp_path / "index", encoders[kind])
        for ranker in (load_ranker(encoders[kind]), index, loaded):
            run = ranker.search(queries, holes, len(holes.documents))
            assert set(run.document_ids) == set(holes.documents.ids) - BLANK.keys()
            assert set(run.query_ids) == set(queries.ids) - {"blank"}
        assert not BLANK.keys() & set(loaded.search("star", k=60).document_ids)
        with pytest.raises(UserError, match="empty"):
            loaded.search("\ufeff")

    def test_adding_leaves_them_out(self, tiny, encoders):
        index = build_index(tiny, encoders["dense"])
        index.add(Texts.from_pairs([("new", "star"), ("hole", "\u200b")]))
        assert (len(index), index.ids[-1]) == (61, "new")

    def test_an_exported_encoder_has_none(self, holes, encoders, tmp_path):
        assert export_index(encoders["dense"], f"parquet:{tmp_path}/encoder", holes).documents == 60

    def test_evaluation_counts_them_against_recall(self, holes, encoders):
        table = evaluate({"dense": encoders["dense"]}, holes, measures=["recall@1000"]).per_query["dense"]
        values = dict(zip(table["query_id"].to_pylist(), table["recall@1000"].to_pylist(), strict=True))
        assert (values["blank"], values["q54"]) == (0, 0.5)

    def test_of_passages_finds_none(self, holes, encoders):
        from retrodistill.data import with_passages

        index = build_index(with_passages(holes, "10,0"), encoders["dense"])
        assert index.size == 60
        assert not BLANK.keys() & set(index.search(holes.split("test"), holes, 60).document_ids)


class TestCandidates:
    def test_none_is_proposed_or_scored(self, holes, encoders):
        recorded = Run.from_dict({"q0": {"nothing": 3.0, "d0": 2.0, "joiner": 1.0}})
        sources = [encoders["dense"], "bm25", recorded]
        pool = mine(holes, "train", sources, depth=len(holes.documents), random=len(holes.documents))
        assert not BLANK.keys() & set(pool.document_ids)
        [scored] = score(holes, recorded, [encoders["dense"]])
        assert list(scored.to_dict()["q0"]) == ["d0"]


class TestSource:
    @pytest.fixture
    def index(self, tiny, encoders, tmp_path):
        build_index(tiny, encoders["static"]).save(tmp_path / "index")
        return load_index(tmp_path / "index")

    def test_of_the_same_collection_there_is_nothing_to_say(self, tiny, index):
        assert index.changes(tiny) is None

    @pytest.mark.parametrize(
        ("texts", "fact"),
        [
            ({"a": "one", "b": "two"}, "2 new"),
            ({"d3": None}, "1 missing"),
            ({"a": "one", "d3": None}, "1 new and 1 missing"),
            ({"d3": "another text"}, "other texts"),
            ({"d3": " "}, "1 missing"),
        ],
    )
    def test_new_missing_and_other_documents_are_told(self, tiny, index, texts, fact):
        assert fact in index.changes(changed(tiny, **texts))

    def test_an_index_keeps_track_of_what_is_added_and_removed(self, tiny, index, tmp_path):
        index.add(Texts.from_pairs([("a", "a star")]))
        index.remove(["d1"])
        assert "1 new and 1 missing" in index.changes(tiny)
        index.save(tmp_path / "again")
        assert load_index(tmp_path / "again").changes(changed(tiny, a="a star", d1=None)) is None

    def test_evaluation_says_it(self, tiny, index):
        notes = evaluate({"ours": index}, changed(tiny, a="one"), measures=["ndcg@10"]).results.notes
        assert any("ours" in note and "1 new" in note for note in notes)

    def test_search_and_export_say_it(self, tiny, tiny_folder, index, tmp_path, capsys):
        other = tmp_path / "other"
        other.mkdir()
        lines = [json.dumps({"_id": id_, "text": f"{text} again"}) for id_, text in tiny.documents.items()]
        (other / "corpus.jsonl").write_text("\n".join(lines))
        set_quiet(False)
        for corpus, says in ((other, True), (tiny_folder, False)):
            for command in (["search", "star"], ["export", "--out", tmp_path / f"{says}", "--to", "parquet"]):
                name, *rest = command
                arguments = [name, tmp_path / "index", *rest, "--collection", corpus]
                with pytest.raises(SystemExit) as stopped:
                    cli.main([str(argument) for argument in arguments])
                assert not stopped.value.code
                assert ("other texts" in capsys.readouterr().err) is says
