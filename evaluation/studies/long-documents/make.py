"""Make the collection `stdlib`: `python evaluation/studies/long-documents/make.py DATA` writes DATA/stdlib.

It has the queries of the demo collection, which are first sentences of docstrings of Python's standard library. The
documents are those of a source file together, in its order: a query's relevant document is the file that has the rest
of its docstring somewhere. Files with less than `LEAST` words are left out, with their queries.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from retrodistill.data import Collection, load_collection
from retrodistill.data.demo import modules

LEAST = 180  # words, about 256 tokens


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of collections")
    place = parser.parse_args().data / "stdlib"
    demo = load_collection("demo")
    texts, file_of = by_file(demo)
    lines = {"corpus": [{"_id": name, "text": text} for name, text in texts.items()], "queries": []}
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    for split, judged in demo.qrels.items():
        pairs = [(query, file_of[document]) for query, of_query in judged.to_dict().items() for document in of_query]
        kept = [(query, name) for query, name in pairs if name in texts]
        lines["queries"] += [{"_id": query, "text": demo.queries[query]} for query, _ in kept]
        rows = ["query-id\tcorpus-id\tscore", *(f"{query}\t{name}\t1" for query, name in kept)]
        (place / "qrels" / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{split}: {len(kept)} queries")
    for name, records in lines.items():
        content = "".join(json.dumps(record) + "\n" for record in records)
        (place / f"{name}.jsonl").write_text(content, encoding="utf-8")
    print(f"{len(texts)} documents in {place}")


def by_file(demo: Collection) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by source file, and the file of each docstring."""
    files, parts, file_of = modules(), defaultdict(list), {}
    for id_, text in demo.documents.items():
        owner = id_
        while owner not in files and "." in owner:
            owner = owner.rpartition(".")[0]
        file_of[id_] = owner
        parts[owner].append(text)
    texts = {name: "\n\n".join(of_file) for name, of_file in parts.items()}
    return {name: text for name, text in texts.items() if len(text.split()) >= LEAST}, file_of


if __name__ == "__main__":
    main()
