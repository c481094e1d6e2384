import gzip
import hashlib
import io
import types
import typing
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
import requests
from small_collection import DOCUMENTS, QUERIES, jsonl, left_in

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import set_quiet
from retrodistill.data import load_collection
from retrodistill.data.beir import PUBLIC, load_folder

HEADER = "query-id\tcorpus-id\tscore\n"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def refused(folder, cache):
    """The one-line message that loading a folder is refused with; nothing may be left in the cache."""
    with pytest.raises(UserError) as caught:
        load_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert left_in(cache) == []
    return message


class TestLoading:
    def test_reads_documents_queries_and_judgments(self, make_folder):
        collection = load_folder(make_folder())
        assert collection.name == "small"
        assert collection.documents.texts == ["Cats Cats sleep most of the day.", *(d["text"] for d in DOCUMENTS[1:])]
        assert collection.titles.texts == ["Cats", "", ""]
        assert collection.split("test")["q1"] == "cats"
        assert collection.split("auto").ids == ["q2", "q3"]
        assert collection.relevance("test").to_dict() == {"q1": {"d1": 1}}
        assert collection.warnings == []

    def test_second_load_opens_the_cache_and_reads_no_line(self, make_folder, monkeypatch):
        folder = make_folder()
        first = load_folder(folder)
        monkeypatch.setattr("retrodistill.data.tables.read_lines", None)
        second = load_folder(folder)
        assert second.fingerprint == first.fingerprint
        assert list(second.documents.items()) == list(first.documents.items())

    def test_the_fingerprint_kept_in_the_cache_is_that_of_the_content(self, make_folder):
        from retrodistill.data import Texts

        collection = load_folder(make_folder())
        assert Texts(collection.documents.table).fingerprint == collection.documents.fingerprint
        assert Texts.from_pairs(collection.documents.items()).fingerprint == collection.documents.fingerprint

    def test_holding_a_cached_collection_takes_no_arrow_memory(self, make_folder):
        folder = make_folder(corpus=[{"_id": str(n), "title": "t", "text": "word " * 200} for n in range(5000)])
        load_folder(folder)
        before = pa.total_allocated_bytes()
        collection = load_folder(folder)
        assert collection.documents.table.nbytes > 4_000_000
        assert len(collection.titles) == len(collection.bodies) == 5000
        assert pa.total_allocated_bytes() - before < 50_000

    def test_what_a_killed_process_left_is_cleared(self, make_folder, cache):
        load_folder(folder := make_folder())
        stored = next(cache.glob("collections/*/"))
        left = stored.rename(stored.with_name(f".retrodistill-{stored.name}.part"))
        assert len(load_folder(folder).documents) == 3
        assert not left.exists()

    def test_a_changed_file_is_read_anew(self, make_folder):
        folder = make_folder()
        before = load_folder(folder)
        (folder / "queries.jsonl").write_text(jsonl([*QUERIES, {"_id": "q4", "text": "fish"}]))
        assert len(load_folder(folder).queries) == len(before.queries) + 1

    def test_gzip_gives_the_same(self, make_folder):
        plain, packed = make_folder(), make_folder(name="packed")
        for stem in ("corpus", "queries"):
            (packed / f"{stem}.jsonl.gz").write_bytes(gzip.compress((packed / f"{stem}.jsonl").read_bytes()))
            (packed / f"{stem}.jsonl").unlink()
        assert load_folder(packed).fingerprint == load_folder(plain).fingerprint

    def test_many_documents_cross_batches(self, make_folder):
        folder = make_folder(corpus=[{"_id": str(n), "text": f"text {n}"} for n in range(9000)])
        documents = load_folder(folder).documents
        assert documents["8999"] == "text 8999"
        assert documents.slice(4095, 4097) == ["text 4095", "text 4096"]

    def test_tolerates_byte_order_marks_blank_lines_and_windows_line_ends(self, make_folder):
        corpus = b"\xef\xbb\xbf" + jsonl(DOCUMENTS).replace("\n", "\r\n\r\n").encode()
        qrels = "\ufeff" + (HEADER + "q1\td1\t1\n\n").replace("\n", "\r\n")
        collection = load_folder(make_folder(corpus=corpus, qrels={"test": qrels}))
        assert collection.documents.ids == ["d1", "d2", "d3"]
        assert collection.relevance("test").to_dict() == {"q1": {"d1": 1}}

    def test_line_separators_inside_a_text_do_not_end_the_line(self, make_folder):
        corpus = '{"_id": "a", "text": "one\u2028two\x85three"}\n'
        assert load_folder(make_folder(corpus=corpus)).documents["a"] == "one\u2028two\x85three"

    def test_integer_ids_become_strings(self, make_folder):
        folder = make_folder([{"_id": 7, "text": "x"}], [{"_id": 1, "text": "y"}], {"test": HEADER + "1\t7\t1\n"})
        collection = load_folder(folder)
        assert (collection.documents.ids, collection.queries.ids, collection.warnings) == (["7"], ["1"], [])

    def test_null_titles_and_null_texts_are_empty_and_named(self, make_folder):
        corpus = [{"_id": "a", "title": None, "text": "x"}, {"_id": "b", "title": None, "text": None}]
        collection = load_folder(make_folder(corpus, qrels={}))
        assert collection.documents.texts == ["x", ""]
        assert "1 documents have no text ('b')" in collection.warnings[0]

    def test_without_judgments_every_query_is_unjudged(self, make_folder):
        assert load_folder(make_folder(qrels={})).split("auto").ids == ["q1", "q2", "q3"]

    def test_documents_alone_are_a_collection_without_queries(self, make_folder):
        folder = make_folder(qrels={})
        (folder / "queries.jsonl").unlink()
        collection = load_folder(folder)
        assert len(collection.split("auto")) == 0
        assert "no queries.jsonl" in collection.warnings[0]
        with pytest.raises(UserError, match="it has no queries at all"):
            collection.split("test")


class TestJudgments:
    def load(self, make_folder, rows):
        return load_folder(make_folder(qrels={"test": rows}))

    def test_the_header_is_optional(self, make_folder):
        assert self.load(make_folder, "q1\td1\t1\nq2\td2\t2\n").relevance("test").to_dict() == {
            "q1": {"d1": 1},
            "q2": {"d2": 2},
        }

    def test_quoted_ids_are_unquoted_as_beir_does(self, make_folder):
        corpus = [{"_id": '<dbpedia:"Weird_Al">', "text": "x"}]
        folder = make_folder(corpus, qrels={"test": HEADER + 'q1\t"<dbpedia:""Weird_Al"">"\t1\n'})
        assert load_folder(folder).warnings == []

    def test_validation_is_called_dev(self, make_folder):
        assert list(load_folder(make_folder(qrels={"validation": HEADER + "q1\td1\t1\n"})).qrels) == ["dev"]

    def test_repeated_pairs_are_counted(self, make_folder):
        collection = self.load(make_folder, HEADER + "q1\td1\t1\nq1\td1\t2\n")
        assert collection.relevance("test").to_dict() == {"q1": {"d1": 2}}
        assert collection.warnings == ["test: 1 judgments repeat a query-document pair; the last counts, as in beir."]

    def test_unknown_ids_are_warned_of(self, make_folder):
        collection = self.load(make_folder, HEADER + "q1\tgone\t1\nnobody\td1\t1\n")
        assert collection.relevance("test").to_dict() == {"q1": {"gone": 1}}
        assert len(collection.warnings) == 2


GOOD = '{"_id": "d1", "text": "x"}\n'
BAD_CORPORA = {
    "malformed JSON": (GOOD + '{"_id": "d2", "text": \n', "corpus.jsonl, line 2: not JSON"),
    "not an object": (GOOD + '["d2", "x"]\n', "corpus.jsonl, line 2: a JSON list, not an object"),
    "missing id": (GOOD + '{"key": "d2", "text": "x"}\n', "line 2: '_id' is missing (fields: 'key', 'text')"),
    "null id": ('{"_id": null, "text": "x"}', "line 1: '_id' is null; expected a non-empty string"),
    "empty id": ('{"_id": "", "text": "x"}', "line 1: '_id' is '' (str)"),
    "fractional id": ('{"_id": 1.5, "text": "x"}', "line 1: '_id' is 1.5 (float)"),
    "text a list": (GOOD + '\n{"_id": "d2", "text": ["x"]}', "line 3: 'text' is ['x'] (list); expected a string"),
    "no text": ('{"_id": "d1", "contents": "x"}', "line 1: a document has no 'text' (fields: '_id', 'contents')"),
    "title a number": ('{"_id": "d1", "title": 3, "text": "x"}', "line 1: 'title' is 3 (int)"),
    "duplicate id": (GOOD + "\n" + GOOD, "corpus.jsonl, line 3: id 'd1' is already on line 1; ids must be unique"),
    "duplicate as text": ('{"_id": 1, "text": "x"}\n{"_id": "1", "text": "y"}', "line 2: id '1' is already"),
    "empty": ("", "corpus.jsonl is empty: it holds no document"),
    "only blank lines": ("\n \n", "corpus.jsonl is empty"),
    "undecodable bytes": (GOOD.encode() + b'{"_id": "d2", "text": "caf\xe9"}', "line 2: not UTF-8 (byte 0xe9 at 26)"),
    "UTF-16": (GOOD.encode("utf-16"), "corpus.jsonl, line 1: not UTF-8"),
    "lone surrogate": ('{"_id": "d1", "text": "\\ud83d"}', "line 1: 'text' holds half a character ('\\ud83d'"),
    "bottomless": ("[" * 100_000, "corpus.jsonl, line 1: not JSON"),
}  # fmt: skip
BAD_QUERIES = {
    "empty": ("", "queries.jsonl is empty: it holds no query"),
    "null text": ('{"_id": "q", "text": null}', "queries.jsonl, line 1: 'text' is null; expected a string"),
    "no text": ('{"_id": "q", "query": "x"}', "line 1: query 'q' has no 'text' (fields: '_id', 'query')"),
    "duplicate id": ('{"_id": "q", "text": "x"}\n' * 3, "queries.jsonl, line 2: id 'q' is already on line 1"),
}
BAD_QRELS = {
    "two columns": (HEADER + "q1\td1\n", "test.tsv, line 2: 2 columns ('q1', 'd1')"),
    "score a word": (HEADER + "q1\td1\tyes\n", "test.tsv, line 2: the score 'yes' is not an integer"),
    "score a fraction": (HEADER + "q1\td1\t0.5\n", "line 2: the score '0.5' is not an integer"),
    "score too large": (HEADER + "q1\td1\t3000000000\n", "line 2: the score '3000000000' is not an integer"),
    "a bad first row is not a header": ("q1\td1\tx\n", "line 1: the score 'x' is not an integer"),
    "empty id": (HEADER + "q1\t\t1\n", "line 2: 'corpus-id' is ''"),
    "stray quote": (HEADER + '"q1\td1\t1\nq2\td2\t1\n', "test.tsv, line 2: a quote has no end"),
}


class TestRefusals:
    @pytest.mark.parametrize(("corpus", "message"), BAD_CORPORA.values(), ids=BAD_CORPORA)
    def test_corpus(self, make_folder, cache, corpus, message):
        assert message in refused(make_folder(corpus=corpus), cache)

    @pytest.mark.parametrize(("queries", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES)
    def test_queries(self, make_folder, cache, queries, message):
        assert message in refused(make_folder(queries=queries), cache)

    @pytest.mark.parametrize(("qrels", "message"), BAD_QRELS.values(), ids=BAD_QRELS)
    def test_qrels(self, make_folder, cache, qrels, message):
        assert message in refused(make_folder(qrels={"test": qrels}), cache)

    def test_truncated_gzip(self, make_folder, cache):
        folder = make_folder()
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes())[:-12])
        (folder / "corpus.jsonl").unlink()
        assert "not a whole gzip file" in refused(folder, cache)

    def test_not_gzip(self, make_folder, cache):
        folder = make_folder()
        (folder / "corpus.jsonl").rename(folder / "corpus.jsonl.gz")
        assert "not a whole gzip file" in refused(folder, cache)

    def test_a_folder_without_corpus_names_those_below_that_have_one(self, tmp_path, make_folder, cache):
        make_folder(name="forums/android")
        message = refused(tmp_path / "forums", cache)
        assert "it has no corpus.jsonl (but its folders android do: name one of them)" in message

    def test_judgments_without_queries(self, make_folder, cache):
        folder = make_folder()
        (folder / "queries.jsonl").unlink()
        assert "has judgments but no queries.jsonl" in refused(folder, cache)

    def test_two_files_for_one_split(self, make_folder, cache):
        assert "are both the split 'dev'" in refused(make_folder(qrels={"dev": HEADER, "validation": HEADER}), cache)

    @pytest.mark.parametrize("name", ["documents.arrow", "queries.arrow", "qrels-0.arrow", "collection.json"])
    @pytest.mark.parametrize("size", [0, 100, None])
    def test_a_damaged_cache_is_named_and_made_again(self, make_folder, cache, capsys, name, size):
        wanted = load_folder(folder := make_folder()).fingerprint
        stored = next(cache.rglob(name))
        if size is None:
            stored.unlink()
        else:
            stored.write_bytes(stored.read_bytes()[:size])
        assert load_folder(folder).fingerprint == wanted
        assert f"{stored} is damaged" in capsys.readouterr().err


def zipped(folder):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder.parent))
    return content.getvalue()


class _Answer:
    """What a session of requests gets."""

    headers: typing.ClassVar = {}

    def __init__(self, content):
        self.iter_content = lambda size: iter([content[:100], content[100:]])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def raise_for_status(self):
        pass


@pytest.fixture
def server(monkeypatch):
    """What the downloader meets in place of the network: `server.content` is sent, or `server.error` raised."""
    server = types.SimpleNamespace(content=b"", error=None, asked=[])

    def get(session, url, **_):
        server.asked.append(url)
        if server.error:
            raise server.error
        return _Answer(server.content)

    monkeypatch.setattr(requests.Session, "get", get)
    monkeypatch.setitem(PUBLIC, "scifact", None)  # these tests send other files
    return server


class TestPublic:
    def test_downloads_once_and_keeps_no_zip(self, make_folder, cache, server):
        server.content = zipped(make_folder(name="zipped/scifact"))
        assert load_collection("beir/scifact").name == "scifact"
        assert len(load_collection("beir/scifact").documents) == 3
        assert [url.rpartition("/")[2] for url in server.asked] == ["scifact.zip"]
        found = sorted(path.name for path in (cache / "beir" / "scifact").iterdir())
        assert found == ["corpus.jsonl", "qrels", "queries.jsonl"]

    @pytest.mark.parametrize("kept", [200, 0, -30])
    def test_a_part_of_a_zip_is_not_taken_for_the_whole(self, make_folder, cache, server, kept):
        server.content = zipped(make_folder(name="zipped/scifact"))[:kept]
        for _ in range(2):
            with pytest.raises(UserError, match="download of beir/scifact is not a whole zip file"):
                load_collection("beir/scifact")
            assert left_in(cache) == []

    def test_a_zip_of_something_else_is_not_taken_for_it(self, make_folder, cache, server):
        server.content = zipped(make_folder(name="zipped/other"))
        with pytest.raises(UserError, match="download of beir/scifact holds no folder 'scifact'"):
            load_collection("beir/scifact")
        assert left_in(cache) == []

    def test_offline_is_one_line_that_says_where_to_put_it(self, cache, server):
        server.error = requests.ConnectionError("HTTPSConnectionPool(...): Max retries\nexceeded")
        with pytest.raises(UserError) as caught:
            load_collection("beir/scifact")
        message = str(caught.value)
        assert "cannot download beir/scifact (ConnectionError)" in message
        assert f"/BEIR/datasets/scifact.zip to {cache / 'beir' / 'scifact'}" in message
        assert "\n" not in message
        assert left_in(cache) == []

    def test_a_file_that_is_not_the_published_one_is_refused(self, make_folder, cache, server, monkeypatch):
        server.content = zipped(make_folder(name="zipped/scifact"))
        published = hashlib.md5(server.content).hexdigest()
        monkeypatch.setitem(PUBLIC, "scifact", published)
        server.content = server.content[:-1] + b"x"
        with pytest.raises(UserError, match=f"beir/scifact.*MD5.*{published}"):
            load_collection("beir/scifact")
        assert left_in(cache) == []

    def test_without_a_published_digest_the_log_says_which_file_came(self, make_folder, server, capsys):
        set_quiet(False)
        server.content = zipped(make_folder(name="zipped/scifact"))
        load_collection("beir/scifact")
        assert hashlib.sha256(server.content).hexdigest() in capsys.readouterr().err

    def test_a_folder_already_there_is_used(self, make_folder, cache):
        make_folder(name="cache/beir/cqadupstack/android")
        assert load_collection("beir/cqadupstack/android").name == "cqadupstack-android"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("scfact", r"no public collection 'scfact'. Did you mean 'beir/scifact'\? Public: arguana, "),
            ("", "no public collection ''"),
            ("../etc", "no public collection '..'"),
            ("cqadupstack", "has no documents of its own; write beir/cqadupstack/<forum> with one of android, "),
            ("cqadupstack/andriod", "has no forum 'andriod'; write beir/cqadupstack/<forum> with one of android, "),
            ("scifact/test", "beir/scifact has no part 'test'; write beir/scifact"),
        ],
    )
    def test_unknown_names(self, name, message, cache):
        with pytest.raises(UserError, match=message):
            load_collection(f"beir/{name}")
        assert left_in(cache) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are not here")
class TestRealCollections:
    @pytest.mark.parametrize(
        ("name", "documents", "sizes", "rows"),
        [
            ("scifact", 5183, {"train": 809, "test": 300, "all": 1109}, {"train": 919, "test": 339}),
            (
                "nfcorpus",
                3633,
                {"train": 2590, "dev": 324, "test": 323, "all": 3237},
                {"train": 110575, "dev": 11385, "test": 12334},
            ),
            ("cranfield", 1400, {"test": 225, "all": 225}, {"test": 1612}),
        ],
    )
    def test_counts(self, name, documents, sizes, rows):
        collection = load_collection(SHARED / name)
        assert len(collection.documents) == documents
        assert collection.split_sizes == sizes
        assert {split: len(qrels) for split, qrels in collection.qrels.items()} == rows

    def test_cranfields_empty_documents_are_named(self):
        assert load_collection(str(SHARED / "cranfield")).warnings == [
            "2 documents have no text ('471', '995'): they are kept but cannot be retrieved."
        ]

    @pytest.mark.parametrize("name", ["scifact", "cranfield"])
    def test_agrees_with_beirs_own_loader(self, name):
        from beir.datasets.data_loader import GenericDataLoader

        corpus, queries, qrels = GenericDataLoader(str(SHARED / name)).load("test")
        collection = load_collection(SHARED / name)
        joined = {id_: (both["title"] + " " + both["text"]).strip() for id_, both in corpus.items()}
        assert dict(collection.documents) == joined
        assert dict(collection.split("test")) == queries
        assert collection.relevance("test").to_dict() == qrels
