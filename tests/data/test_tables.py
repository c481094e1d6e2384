"""Collections in every format that is read, and what cannot be read, which is always named."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_collection import DOCUMENTS, QUERIES, jsonl, left_in

from retrodistill.core.errors import UserError
from retrodistill.data.beir import load_folder
from retrodistill.data.tables import Columns, read_table

PAIRS = [("q1", "d1", 1), ("q2", "d2", 0)]
GRADES = {"q1": {"d1": 1}, "q2": {"d2": 0}}
JUDGED = {
    "BEIR with a header": ("test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t0\n"),
    "BEIR without": ("test.tsv", "q1\td1\t1\nq2\td2\t0\n"),
    "columns in another order": ("test.tsv", "score\tcorpus-id\tquery-id\n1\td1\tq1\n0\td2\tq2\n"),
    "other names": ("test.tsv", "qid\tdocid\trelevance\nq1\td1\t1\nq2\td2\t0\n"),
    "TREC by spaces": ("test.txt", "q1 0 d1 1\nq2  Q0 d2 0\n"),
    "TREC by tabs": ("test.trec", "q1\t0\td1\t1\nq2\t0\td2\t0\n"),
    "TREC in a tsv": ("test.tsv", "q1 0 d1 1\nq2 0 d2 0\n"),
    "three by spaces": ("test.qrels", "q1 d1 1\nq2 d2 0\n"),
    "whole floats": ("test.tsv", "q1\td1\t1.0\nq2\td2\t0.\n"),
    "commas": ("test.csv", "query-id,corpus-id,score\nq1,d1,1\nq2,d2,0\n"),
    "commas without a header": ("test.csv", "q1,d1,1\r\nq2,d2,0\r\n"),
    "lines of JSON": ("test.jsonl", jsonl({"query-id": q, "corpus-id": d, "score": s} for q, d, s in PAIRS)),
    "lines of JSON, other keys": (
        "test.jsonl",
        jsonl({"query_id": q, "doc_id": d, "relevance": float(s)} for q, d, s in PAIRS),
    ),
    "a JSON array": ("test.json", json.dumps([{"qid": q, "docid": d, "grade": s} for q, d, s in PAIRS])),
    "an ending in capitals": ("TEST.TSV", "q1\td1\t1\nq2\td2\t0\n"),
    "a folder of parts": ("test/part-0.tsv", "q1\td1\t1\nq2\td2\t0\n"),
    "a file called qrels": ("../qrels.tsv", "q1\td1\t1\nq2\td2\t0\n"),
    "a file called qrels.test": ("../qrels.test.txt", "q1 0 d1 1\nq2 0 d2 0\n"),
    "a file called test.qrels": ("../test.qrels", "q1 0 d1 1\nq2 0 d2 0\n"),
    "a file of the split's name": ("../test.tsv", "q1\td1\t1\nq2\td2\t0\n"),
}


@pytest.fixture
def judged(make_folder):
    """A collection folder whose only judgments are in one file, at a path from its folder qrels."""

    def make(file, content):
        folder = make_folder(qrels={})
        path = folder / "qrels" / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return make


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


class TestJudgments:
    @pytest.mark.parametrize(("file", "content"), JUDGED.values(), ids=JUDGED)
    def test_every_form_gives_the_same(self, judged, file, content):
        collection = load_folder(judged(file, content))
        assert {split: rows.to_dict() for split, rows in collection.qrels.items()} == {"test": GRADES}
        assert collection.split("auto").ids == ["q3"]
        assert collection.warnings == []

    @pytest.mark.parametrize(("ending", "packed"), [(".gz", gzip.compress), (".zst", zstd), (".ZST", zstd)])
    def test_each_may_be_compressed(self, judged, ending, packed):
        collection = load_folder(judged(f"train.txt{ending}", packed(b"q1 0 d1 1\n")))
        assert collection.relevance("train").to_dict() == {"q1": {"d1": 1}}

    @pytest.mark.parametrize("file", ["test.xlsx", "test", "test.tsv.bak", "train.jsonl.bz2", "old/notes.doc"])
    def test_what_cannot_be_read_is_named(self, judged, cache, file):
        with pytest.raises(UserError, match=file.partition("/")[0]):
            load_folder(judged(file, "q1\td1\t1\n"))
        assert left_in(cache) == []

    @pytest.mark.parametrize("file", ["../qrels", "../qrels.xlsx", "../qrels.test.doc"])
    def test_so_is_a_file_next_to_the_corpus(self, make_folder, cache, file):
        folder = make_folder(qrels={})
        (folder / "qrels").rmdir()
        (folder / file.removeprefix("../")).write_text("q1\td1\t1\n")
        with pytest.raises(UserError, match=file.removeprefix("../")):
            load_folder(folder)
        assert left_in(cache) == []

    def test_a_readme_is_only_warned_of(self, judged):
        folder = judged("test.tsv", "q1\td1\t1\n")
        for name in ("README.md", ".DS_Store", "LICENSE"):
            (folder / "qrels" / name).write_text("x")
        assert len(load_folder(folder).warnings) == 1
        assert all(name in load_folder(folder).warnings[0] for name in ("README.md", ".DS_Store", "LICENSE"))

    def test_two_files_of_a_split_in_two_formats_are_refused(self, judged):
        folder = judged("test.tsv", "q1\td1\t1\n")
        (folder / "qrels.txt").write_text("q1 0 d1 1\n")
        with pytest.raises(UserError, match=r"qrels.txt .*test.tsv|test.tsv .*qrels.txt"):
            load_folder(folder)

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("test.txt", "q1 0 d1 1\nq2 0 d2 0.5\n", "test.txt, line 2: the score '0.5'"),
            ("test.csv", "q1,d1,1\nq2,d2,0.5\n", "test.csv, line 2: the score '0.5'"),
            ("test.jsonl", '{"query-id": "q1", "corpus-id": "d1", "score": 0.5}', "test.jsonl, line 1: the score 0.5"),
            ("test.jsonl", '{"query-id": "q1", "corpus-id": "d1"}', "test.jsonl, line 1: 'score' is missing"),
            ("test.json", '[{"query-id": "q1", "score": 1}]', "test.json, item 1: 'corpus-id' is missing"),
            ("test.tsv", "query-id\tdocument\tscore\nq1\td1\t1\n", "line 2: 'corpus-id' is missing"),
            ("test.trec", "q1 Q0 d1 1 0.5 bm25\n", "test.trec, line 1: 6 columns"),
            ("test.txt", b"q1 0 d1 1\nq\xe9 0 d1 1\n", "test.txt, line 2: not UTF-8 (byte 0xe9 at 1)"),
            ("test.tsv.zst", zstd(b"q1\td1\t1\n" * 99)[:-9], "not a whole zstd file"),
        ],
    )
    def test_mistakes_name_the_line(self, judged, cache, file, content, message):
        with pytest.raises(UserError) as caught:
            load_folder(judged(file, content))
        assert message in str(caught.value)
        assert left_in(cache) == []


def tabs(rows, names):
    return "".join("\t".join(row) + "\n" for row in [names, *([row.get(name, "") for name in names] for row in rows)])


def commas(rows, names):
    return "".join(
        ",".join(f'"{value}"' for value in line.split("\t")) + "\n" for line in tabs(rows, names).splitlines()
    )


def in_parquet(rows, folder, stem):
    pq.write_table(pa.Table.from_pylist([{"title": "", **row} for row in rows]), folder / f"{stem}.parquet")


def in_parts(rows, folder, stem):
    (folder / stem).mkdir()
    for number, row in enumerate(rows):
        (folder / stem / f"part-{number}.jsonl").write_text(jsonl([row]))


def written(ending, text):
    return lambda rows, folder, stem: (folder / f"{stem}{ending}").write_bytes(
        text(rows) if isinstance(text(rows), bytes) else text(rows).encode()
    )


NAMES = ("_id", "title", "text")
FORMATS = {
    "tsv": written(".tsv", lambda rows: tabs(rows, NAMES)),
    "csv with a byte order mark": written(".csv", lambda rows: "\ufeff" + commas(rows, NAMES)),
    "other names in capitals": written(
        ".tsv", lambda rows: tabs(rows, NAMES).replace("_id\ttitle\ttext", "ID\tTitle\tText")
    ),
    "json": written(".json", lambda rows: json.dumps(rows, indent=1)),
    "jsonl.zst": written(".jsonl.zst", lambda rows: zstd(jsonl(rows).encode())),
    "JSONL.GZ": written(".JSONL.GZ", lambda rows: gzip.compress(jsonl(rows).encode())),
    "parquet": in_parquet,
    "a folder of parts": in_parts,
}


class TestTexts:
    @pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
    def test_every_format_gives_the_same(self, make_folder, write):
        plain, other = make_folder(), make_folder(name="other")
        for stem, rows in (("corpus", DOCUMENTS), ("queries", QUERIES)):
            (other / f"{stem}.jsonl").unlink()
            write(rows, other, stem)
        assert load_folder(other).fingerprint == load_folder(plain).fingerprint

    @pytest.mark.parametrize("other", ["corpus.parquet", "corpus.TSV", "corpus.jsonl.gz", "corpus/part.jsonl"])
    def test_two_candidates_are_both_named(self, make_folder, cache, other):
        folder = make_folder()
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"")
        with pytest.raises(UserError, match=r"corpus.jsonl") as caught:
            load_folder(folder)
        assert other.partition("/")[0] in str(caught.value)
        assert left_in(cache) == []

    @pytest.mark.parametrize("file", ["queries.xlsx", "queries.jsonl.bz2", "queries.txt"])
    def test_queries_that_cannot_be_read_are_named(self, make_folder, file):
        folder = make_folder(qrels={})
        (folder / "queries.jsonl").rename(folder / file)
        with pytest.raises(UserError, match=file):
            load_folder(folder)

    def test_a_part_that_cannot_be_read_is_named(self, make_folder):
        folder = make_folder(qrels={})
        (folder / "corpus.jsonl").unlink()
        in_parts(DOCUMENTS, folder, "corpus")
        (folder / "corpus" / "part-4.xml").write_text("x")
        with pytest.raises(UserError, match=r"part-4.xml"):
            load_folder(folder)

    def test_quotes_in_a_text_are_its_own(self, make_folder):
        folder = make_folder(qrels={})
        (folder / "queries.jsonl").unlink()
        (folder / "queries.tsv").write_text('q1\t"Heart" of a star\nq2\t"a\ttab"\nq3\tsaid "no\n')
        assert load_folder(folder).queries.texts == ['"Heart" of a star', "a\ttab", 'said "no']

    def test_a_comma_and_a_line_end_in_quotes(self, make_folder):
        folder = make_folder(qrels={})
        (folder / "queries.jsonl").unlink()
        (folder / "queries.csv").write_text('qid,text\nq1,"one, two\nthree"\nq2,four\n')
        assert load_folder(folder).queries.texts == ["one, two\nthree", "four"]

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("corpus.tsv", "d1\ta title\ta text\n", "corpus.tsv, line 1: 3 columns"),
            ("corpus.tsv", "id\ttext\nd1\tx\textra\n", "corpus.tsv, line 2: 3 columns"),
            ("corpus.csv", 'id,text\nd1,"x" y\n', "corpus.csv, line 2: not CSV"),
            ("corpus.csv", "id,text\nd1,x\nd2,\xe9\n".encode("latin-1"), "corpus.csv, line 3: not UTF-8"),
            ("corpus.csv", "id,contents\nd1,x\n", "corpus.csv, line 2: a document has no 'text'"),
            ("corpus.json", '{"d1": {"text": "x"}}', "corpus.json is not a JSON array"),
            ("corpus.json", '[{"_id": "d1", "text": "x"}, {"_id": oops}]', "corpus.json, item 2: not JSON"),
            ("corpus.json", '[{"_id": "d1", "text": "x"}', "corpus.json, item 2: not JSON"),
            ("corpus.json", '[{"_id": "d1", "text": "x"}][]', "corpus.json, item 2: something follows"),
            ("corpus.json", "[]", "corpus.json is empty"),
            ("corpus.parquet", b"PAR1 no", "corpus.parquet, after row 0: not a whole Parquet file"),
            ("corpus.jsonl", json.dumps({"_id": "a" * 10_001, "text": "x"}), "'_id' has 10001 characters"),
            ("corpus.jsonl", '{"_id": "a\\u0000b", "text": "x"}', "'_id' is 'a\\x00b' (str), with a NUL"),
        ],
    )  # fmt: skip
    def test_mistakes_name_the_place(self, make_folder, cache, file, content, message):
        folder = make_folder(qrels={})
        (folder / "corpus.jsonl").unlink()
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as caught:
            load_folder(folder)
        assert message in str(caught.value)
        assert left_in(cache) == []

    def test_an_array_in_many_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr("retrodistill.data.tables._CHUNK", 7)
        rows = [{"_id": f"é{n}", "text": 'a "quoted" \\ ] text'} for n in range(50)]
        (tmp_path / "x.json").write_text(json.dumps(rows, indent=2))
        found = [record for _, record in read_table(tmp_path / "x.json", Columns({}, {}, ""))]
        assert found == rows
