"""Output that is not UTF-8: a pipe on Windows, a container with an ASCII locale."""

import io
import json
import sys

import pytest

from retrodistill import cli
from retrodistill.data import Collection


@pytest.fixture
def printed(monkeypatch, tiny_model, tmp_path):
    """What ``search`` prints about two documents, as bytes of an encoding."""
    from retrodistill.indexes import build_index

    (tmp_path / "c").mkdir()
    texts = {"a": "北京 heart", "b": "Ελλάδα é star"}
    rows = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
    (tmp_path / "c" / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    build_index(Collection.from_parts("c", texts, {}, {}), documents=f"dense:{tiny_model}").save(tmp_path / "index")

    def run(encoding, *options):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
        with pytest.raises(SystemExit) as stopped:
            cli.main(["search", str(tmp_path / "index"), "heart", "--collection", str(tmp_path / "c"), *options])
        assert not stopped.value.code
        sys.stdout.flush()
        return raw.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xe9"), ("cp1252", "é"), ("utf-8", "é")])
def test_what_an_encoding_lacks_is_escaped(printed, encoding, shown):
    lines = printed(encoding).splitlines()
    assert {line.split()[1] for line in lines} == {"a", "b"}
    assert shown in " ".join(lines)
    assert ("北京" if encoding == "utf-8" else "\\u5317") in " ".join(lines)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_stays_json(printed, encoding):
    rows = json.loads(printed(encoding, "--json"))
    assert {row["text"] for row in rows} == {"北京 heart", "Ελλάδα é star"}


def test_an_argument_that_is_not_utf8_is_one_line(call, tmp_path):
    status, _, error = call("search", tmp_path, "caf\udce9")
    assert (status, error.count("\n")) == (2, 1)
    assert "0xe9" in error
