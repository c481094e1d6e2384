import json
import threading

import pytest
from children import Child

from retrodistill.core.errors import UserError
from retrodistill.data.judgments import JudgmentLog, typed_id, with_judgments

WRITER = """
import sys
from retrodistill.data.judgments import JudgmentLog
log = JudgmentLog(sys.argv[1])
for number in range(int(sys.argv[3])):
    log.append(f"{sys.argv[2]}-{number}", "document " + "x" * 50, number % 3, f"text {sys.argv[2]} {number}")
    print(number, flush=True)
"""


def rows(folder):
    """Cells of each line of the qrels, after a check that all lines are whole."""
    text = (folder / "qrels.tsv").read_text()
    assert text.endswith("\n")
    cells = [line.split("\t") for line in text.splitlines()]
    assert cells[0] == ["query-id", "corpus-id", "score"]
    assert {len(each) for each in cells} == {3}
    return cells[1:]


class TestLog:
    def test_the_last_judgment_of_a_pair_counts(self, tmp_path):
        log = JudgmentLog(tmp_path / "log")
        for grade in (1, 0, 2):
            log.append("q", "d", grade)
        assert log.of("q") == {"d": 2}
        assert rows(tmp_path / "log") == [["q", "d", "1"], ["q", "d", "0"], ["q", "d", "2"]]

    def test_it_reads_what_others_append(self, tmp_path):
        first, second = JudgmentLog(tmp_path), JudgmentLog(tmp_path)
        first.append("q", "d", 1)
        assert second.of("q") == {"d": 1}
        second.append("q", "e", 0)
        assert first.of("q") == {"d": 1, "e": 0}
        assert len(first) == 2

    def test_a_typed_query_is_written_once(self, tmp_path):
        log = JudgmentLog(tmp_path)
        for document in ("a", "b"):
            log.append(typed_id("été"), document, 1, "été")
        lines = (tmp_path / "queries.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [{"_id": typed_id("été"), "text": "été"}]

    def test_a_half_line_of_a_full_disk_is_dropped_by_the_next(self, tmp_path):
        log = JudgmentLog(tmp_path)
        log.append("q", "d", 1)
        with (tmp_path / "qrels.tsv").open("a") as file:
            file.write("q\tha")
        assert log.of("q") == {"d": 1}
        log.append("q", "e", 1)
        assert log.of("q") == {"d": 1, "e": 1}
        assert rows(tmp_path) == [["q", "d", "1"], ["q", "e", "1"]]

    @pytest.mark.parametrize("id_", ["a\tb", "a\nb", " a", "", 'a"b'])
    def test_an_id_that_would_break_the_file_is_refused(self, tmp_path, id_):
        with pytest.raises(UserError, match="TSV"):
            JudgmentLog(tmp_path / "log").append("q", id_, 1)
        assert not (tmp_path / "log").exists()

    def test_threads_do_not_interleave(self, tmp_path):
        log = JudgmentLog(tmp_path)
        threads = [
            threading.Thread(target=lambda name=name: [log.append(name, str(n), 1) for n in range(20)])
            for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(tuple, rows(tmp_path))) == sorted((name, str(n), "1") for name in "abcd" for n in range(20))


@pytest.mark.slow
@pytest.mark.xdist_group("children")
class TestProcesses:
    def test_two_do_not_interleave(self, tmp_path):
        writers = [Child(WRITER, tmp_path, name, 60) for name in ("one", "two")]
        for writer in writers:
            status, _, said = writer.wait()
            assert status == 0, said
        assert sorted(row[0] for row in rows(tmp_path)) == sorted(
            f"{name}-{n}" for name in ("one", "two") for n in range(60)
        )
        assert len((tmp_path / "queries.jsonl").read_text().splitlines()) == 120

    def test_a_kill_loses_nothing_that_was_confirmed(self, tmp_path):
        writer = Child(WRITER, tmp_path, "one", 100_000)
        path = tmp_path / "qrels.tsv"
        while not path.exists() or path.stat().st_size < 2000:
            assert writer.poll() is None
        writer.kill()
        _, out, _ = writer.wait()
        written = {row[0] for row in rows(tmp_path)}
        assert written >= {f"one-{number}" for number in out.split()}
        JudgmentLog(tmp_path).append("later", "d", 1)  # the lock of the killed process is free
        assert rows(tmp_path)[-1] == ["later", "d", "1"]


class TestCollection:
    def test_they_are_added_to_the_split_and_count_before_its_own(self, tiny, tmp_path):
        (query, judged), *_ = tiny.relevance("test").to_dict().items()
        document = next(iter(judged))
        (tmp_path / "more.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\t{document}\t0\n{query}\td0\t3\n")
        added = with_judgments(tiny, tmp_path / "more.tsv")
        assert added.relevance("test").to_dict()[query] == {**judged, document: 0, "d0": 3}
        assert added.fingerprint != tiny.fingerprint
        assert tiny.relevance("test").to_dict()[query] == judged
        assert any("2 judgments" in warning for warning in added.warnings)

    def test_those_of_another_collection_are_refused(self, tiny, tmp_path):
        (tmp_path / "more.tsv").write_text("query-id\tcorpus-id\tscore\nnobody\td0\t1\n")
        with pytest.raises(UserError, match="'nobody'"):
            with_judgments(tiny, tmp_path / "more.tsv")

    def test_a_place_without_judgments_is_refused(self, tiny, tmp_path):
        with pytest.raises(UserError, match="no judgments"):
            with_judgments(tiny, tmp_path)

    def test_a_collection_without_judgments_gets_a_test_split(self, tiny, tmp_path):
        from dataclasses import replace

        JudgmentLog(tmp_path).append("t0", "d0", 1)
        added = with_judgments(replace(tiny, qrels={}), tmp_path, "all")
        assert added.relevance("test").to_dict() == {"t0": {"d0": 1}}
