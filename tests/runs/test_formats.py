import errno
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_runs import random_scores

from retrodistill.core.errors import UserError
from retrodistill.runs import Run, formats, read_run, write_run

ENDINGS = [".run", ".trec", ".txt", ".tsv", ".jsonl", ".parquet", ".run.gz", ".jsonl.gz", ".RUN"]
RECORDED = Path(__file__).parents[3] / "shared/data/scifact/teacher_runs/e5_large_v2.run"
AWKWARD = {"q": {"a": 0.1, "b": 1 / 3, "c": 1e-308, "d": -1.7e308, "e": 5e-324, "f": 0.1 + 0.2, "g": -0.0, "ü": 3.0}}


class TestRoundTrip:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_is_exact_to_the_bit(self, ending, tmp_path):
        scores = {**random_scores(0), **AWKWARD}
        run = Run.from_dict(scores, name="e5-large")
        write_run(run, tmp_path / f"x{ending}")
        found = read_run(tmp_path / f"x{ending}")
        assert found.to_dict() == scores
        assert (found.name, found.fingerprint) == ("e5-large", run.fingerprint)
        assert found.document_ids.tolist() == run.ranked().document_ids.tolist()

    def test_ids_with_spaces_go_through_all_but_trec(self, tmp_path):
        run = Run.from_dict({"q 1": {"a\tb": 1.0, "": 2.0}})
        for ending in (".jsonl", ".parquet"):
            write_run(run, tmp_path / f"x{ending}")
            assert read_run(tmp_path / f"x{ending}").to_dict() == run.to_dict()
        with pytest.raises(UserError, match=r"query_id 'q 1' is empty or has a space, .* write .parquet or .jsonl"):
            write_run(run, tmp_path / "x.run")
        assert not list(tmp_path.glob("*.run"))

    def test_parquet_keeps_sources(self, tmp_path):
        run = Run.from_arrays(["q", "q"], ["a", "b"], [2, 1], sources=["bm25", "bm25+dense"])
        write_run(run, tmp_path / "x.parquet")
        assert read_run(tmp_path / "x.parquet").table["sources"].to_pylist() == ["bm25", "bm25+dense"]

    @pytest.mark.parametrize("ending", ENDINGS)
    def test_the_same_run_gives_the_same_bytes(self, ending, tmp_path, monkeypatch):
        run = Run.from_dict(random_scores(1))
        write_run(run, tmp_path / f"x{ending}")
        monkeypatch.setattr("time.time", lambda: 1.0)
        write_run(run, tmp_path / f"y{ending}")
        assert (tmp_path / f"x{ending}").read_bytes() == (tmp_path / f"y{ending}").read_bytes()

    def test_a_trec_line_is_what_others_write(self, tmp_path):
        write_run(Run.from_dict({"q": {"b": 1.5, "a": 1.5, "c": 2.0}}, name="my run"), tmp_path / "x.run")
        assert (tmp_path / "x.run").read_text() == "q Q0 c 1 2.0 my_run\nq Q0 a 2 1.5 my_run\nq Q0 b 3 1.5 my_run\n"


class TestForeignFiles:
    def test_rank_is_ignored_blank_lines_and_marks_are_passed_over(self, tmp_path):
        path = tmp_path / "x.run"
        path.write_bytes(b"\xef\xbb\xbfq1 Q0 a 1 0.5 tag\r\n\n q1\tQ0\tb 2 0.75 tag \nq2 0 a 1 3\n")
        assert read_run(path).to_dict() == {"q1": {"a": 0.5, "b": 0.75}, "q2": {"a": 3.0}}
        assert (read_run(path).name, read_run(path, "given").name) == ("tag", "given")

    def test_json_numbers_are_ids_too(self, tmp_path):
        path = tmp_path / "x.jsonl"
        path.write_text('{"query_id": 1, "document_id": 10, "score": 2}\n')
        assert read_run(path).to_dict() == {"1": {"10": 2.0}}
        assert read_run(path).name == "x"

    @pytest.mark.skipif(not RECORDED.exists(), reason="the shared data is not here")
    def test_a_real_recorded_run(self):
        run = read_run(RECORDED)
        lines = [line.split() for line in RECORDED.read_text().splitlines()]
        assert (len(run), run.name) == (len(lines), "e5-large-v2")
        assert run.to_dict()[lines[7][0]][lines[7][2]] == float(lines[7][4])
        assert [row[0] for row in run] == list(dict.fromkeys(fields[0] for fields in lines))


class TestRefusals:
    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("x.run", "q Q0 a 1 0.5 t\nq Q0 b\n", "line 2: 3 columns; expected 'query Q0 document rank score tag'"),
            ("x.run", "q Q0 a 1 high t\n", "line 1: could not convert string to float: 'high'; expected"),
            ("x.run", "q Q0 a 1 1 t\n\nq Q0 b 2 nan t\n", "line 3: score nan of query 'q', document 'b' is not finite"),
            ("x.run", "q Q0 a 1 inf t\n", "line 1: score inf of query 'q'"),
            ("x.run", "q Q0 a 1 1 t\nq Q0 a 2 1 t\n", "1 pairs appear twice, first query 'q' with document 'a'"),
            ("x.run", "", "is empty: it was cut short, or its system found no document"),
            ("x.run", "\n\n", "is empty: it was cut short, or its system found no document"),
            ("x.run", b"q Q0 \xff\xfe 1 1 t\n", "line 1: not UTF-8"),
            ("x.jsonl", "[1]\n", "line 1: not a JSON object; expected"),
            ("x.jsonl", "{", "line 1: Expecting property name"),
            ("x.jsonl", '{"query_id": "q", "score": 1}', "line 1: document_id is None; expected"),
            ("x.jsonl", '{"query_id": null, "document_id": "a", "score": 1}', "line 1: query_id is None; expected"),
            ("x.jsonl", '{"query_id": "q", "document_id": "a", "score": "1"}', "line 1: score is '1'; expected"),
            ("x.jsonl", '{"query_id": "q", "document_id": "a", "score": NaN}', "line 1: score nan"),
            ("x.parquet", b"PAR1 and no more", "is not a whole Parquet file"),
            ("x.parquet", b"", "is damaged: it is empty"),
            ("x.run.gz", b"no gzip", "not a whole gzip file"),
        ],
    )
    def test_a_bad_file_is_named_with_the_line(self, file, content, message, tmp_path):
        path = tmp_path / file
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{message}") as caught:
            read_run(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:30] + b"\0" * 40 + data[70:]])
    def test_a_damaged_archive(self, damage, tmp_path):
        path = tmp_path / "x.run.gz"
        path.write_bytes(damage(gzip.compress("".join(f"q Q0 d{n} 1 {n / 7} t\n" for n in range(500)).encode())))
        with pytest.raises(UserError, match=r"x.run.gz, after line \d+: not a whole gzip file"):
            read_run(path)

    def test_a_parquet_table_that_is_no_run(self, tmp_path):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"query_id": ["q"], "score": [1.0]}), path)
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: run x: no column 'document_id'"):
            read_run(path)

    def test_a_missing_file(self, tmp_path):
        for path in (tmp_path / "x.run", tmp_path):
            with pytest.raises(UserError, match=r"no run file .*; give a .run, .trec, .parquet or .jsonl file"):
                read_run(path)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("x.parquets", "Did you mean '.parquet'?"),
            ("x.json", "Did you mean '.jsonl'?"),
            ("x.parquet.gz", "Known: .jsonl"),
            ("x", "Known: .jsonl"),
        ],
    )
    def test_an_unknown_ending_names_the_nearest(self, name, hint, tmp_path):
        (tmp_path / name).write_text("q Q0 a 1 1 t\n")
        with pytest.raises(UserError, match=f"unknown run file ending .*{re.escape(hint)}"):
            read_run(tmp_path / name)
        with pytest.raises(UserError, match="unknown run file ending"):
            write_run(Run.from_dict({"q": {"a": 1.0}}), tmp_path / name)
        assert (tmp_path / name).read_text() == "q Q0 a 1 1 t\n"


class TestFailedWriting:
    OLD, NEW = Run.from_dict({"q": {"a": 1.0}}), Run.from_dict(random_scores(0))

    @pytest.mark.parametrize("ending", [".run", ".jsonl", ".run.gz"])
    def test_leaves_the_old_file_and_no_other(self, ending, tmp_path, monkeypatch):
        path = tmp_path / f"x{ending}"
        write_run(self.OLD, path)

        class Broken(list):
            def tolist(self):
                raise RuntimeError("in the middle")

        monkeypatch.setattr(Run, "__iter__", lambda run: iter([("q", ["a"], [1.0]), ("q2", ["a"], Broken())]))
        with pytest.raises((RuntimeError, AttributeError)):
            write_run(self.NEW, path)
        monkeypatch.undo()
        assert read_run(path).to_dict() == self.OLD.to_dict()
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_a_full_disk_is_one_line(self, tmp_path, monkeypatch):
        path = tmp_path / "x.parquet"
        write_run(self.OLD, path)

        def full(table, place, **_):
            Path(place).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(formats.pq, "write_table", full)
        with pytest.raises(UserError, match=r"cannot write .*x.parquet: no space left on device; nothing half-written"):
            write_run(self.NEW, path)
        assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]
        assert read_run(path).to_dict() == self.OLD.to_dict()

    def test_a_place_below_a_file_is_one_line(self, tmp_path):
        (tmp_path / "file").write_text(json.dumps(1))
        with pytest.raises(UserError, match=r"cannot write to .*file: .*; choose a writable folder"):
            write_run(self.NEW, tmp_path / "file" / "x.run")
