"""Your own corpus and query log in BEIR's layout, without labels. It takes seconds after loading the model."""

import json
import sys
from pathlib import Path

import retrodistill as rd

DOCUMENTS = {
    "returns": ("Returning goods", "Send the parcel back within thirty days. The refund takes a week."),
    "shipping": ("Shipping abroad", "We ship to forty countries. Customs duties are paid by the buyer."),
    "warranty": ("Warranty", "Every appliance has two years of warranty. Batteries have six months."),
}
QUERY_LOG = {"1": "how do I send something back", "2": "do you deliver to other countries"}


def main(folder: str = "out/own-corpus", encoder: str = "dense:all-MiniLM-L6-v2") -> rd.Run:
    """Write the folder, distill on the log and the documents' sentences, and search with a new query."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    documents = [{"_id": name, "title": title, "text": text} for name, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": name, "text": text} for name, text in QUERY_LOG.items()]
    for file, rows in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection = rd.load_collection(place)
    student = rd.distill(
        collection, encoder, student="static", objective="leaf", document_encoder=encoder, out=place / "student"
    )
    index = rd.build_index(collection, documents=encoder, queries=student)
    results = index.search("is my toaster covered", k=2)
    print(results.to_dict())
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
