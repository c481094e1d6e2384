"""Make a collection of conversations that people wrote, for the jobs of this study on real conversations.

    python evaluation/studies/disco/make.py FOLDER DATA/NAME

FOLDER is a collection in BEIR layout whose queries are turns, with a file ``queries.history.jsonl`` of ``{"_id",
"topic", "history", "utterance"}``: the conversation, what was said before, utterances and responses in turn, and the
turn's own utterance. DATA/NAME gets the same documents, with judgments of every second conversation as the split for
testing, and ``turns.jsonl`` for the recipe key `conversations`: all turns of the other conversations, for training, and
the judged ones of the test conversations. The study's names are ``inscit`` (INSCIT, the conversations for development)
and ``mtrag`` (MTRAG, turns with judged passages).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retrodistill.data import load_collection
from retrodistill.data.tables import read_records

JUDGED_TRAINING = "judged-training.jsonl"  # judgments of the training conversations: for `versions.py`, not for recipes


def main() -> None:
    """Write the collection and its turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    make(given.folder, given.out)


def make(folder: Path, out: Path) -> None:
    """Write the collection of a folder."""
    keys = ("_id", "topic", "history", "utterance")
    qrels = load_collection(folder).relevance("test").to_dict()
    rows = [row for _, row in read_records(folder / "queries.history.jsonl", "turn", keys, ("rewrite_llm",))]
    rows = [row for row in rows if row["_id"] in qrels]
    topics = sorted({row["topic"] for row in rows})
    for_testing = set(topics[::2])
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    (out / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes())
    judged = {topic: [row for row in rows if row["topic"] == topic] for topic in topics}
    tests = [row for topic in topics if topic in for_testing for row in judged[topic]]
    _write_lines(out / "queries.jsonl", ({"_id": row["_id"], "text": row["utterance"]} for row in rows))
    lines = [f"{row['_id']}\t{document}\t{grade}\n" for row in tests for document, grade in qrels[row["_id"]].items()]
    (out / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    trained = [turn for topic in topics if topic not in for_testing for turn in _all_turns(judged[topic])]
    _write_lines(out / "turns.jsonl", [*trained, *map(_turn, tests)])
    _write_lines(
        out / JUDGED_TRAINING,
        ({"query": row["_id"], **qrels[row["_id"]]} for row in rows if row["topic"] not in for_testing),
    )
    print(f"{len(for_testing)} conversations with {len(tests)} turns for testing, {len(trained)} turns for training")


def _turn(row: dict[str, Any]) -> dict[str, Any]:
    number = len(row["history"]) // 2 + 1
    turn = {"conversation_id": row["topic"], "turn": number, "utterance": row["utterance"]}
    return {**turn, "query_id": row["_id"], "history": row["history"]}


def _all_turns(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The judged turns of a conversation, and those before them."""
    judged = {len(row["history"]) // 2 + 1: row for row in rows}
    longest = max(rows, key=lambda row: len(row["history"]))
    said = [*longest["history"], longest["utterance"]]
    for number, place in enumerate(range(0, len(said), 2), start=1):
        if number in judged:
            yield _turn(judged[number])
        else:
            turn = {"conversation_id": longest["topic"], "turn": number, "utterance": said[place]}
            yield {**turn, "history": said[:place]}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
