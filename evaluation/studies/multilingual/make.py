"""Make the study's collections from XQuAD-R: `python evaluation/studies/multilingual/make.py FOLDER --data DATA`.

FOLDER has XQuAD-R (Roy et al. 2020, LAReQA) in BEIR layout, a folder per language: `xquad_r_en`, `xquad_r_de`... Its
documents are sentences, `ARTICLE-PARAGRAPH-SENTENCE`; paragraphs and questions are the same in all languages.
The collections are `xquad_r_de_en`...: German questions over the English documents. Every third article is for testing.
`pairs.tsv` has the translations of the other articles: their questions, their sentences where a paragraph has as many
in both languages, and else their whole paragraphs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

from retrodistill.data import Collection, Texts, load_collection
from retrodistill.data.leaks import ExcludedQueries

LANGUAGES = ("de", "es", "ru")


def main() -> None:
    """Write a collection for each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with xquad_r_en, xquad_r_de, ...")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for the collections")
    args = parser.parse_args()
    english = load_collection(args.folder / "xquad_r_en")
    others = {language: load_collection(args.folder / f"xquad_r_{language}") for language in LANGUAGES}
    article = {
        query: int(next(iter(judged)).split("-")[0]) for query, judged in english.qrels["test"].to_dict().items()
    }
    test = [query for query in english.queries.ids if article[query] % 3 == 0]
    train = [query for query in english.queries.ids if article[query] % 3 != 0]
    pairs = [pair for other in others.values() for pair in translations(english, other, train)]
    kept = without_test_questions(pairs, [english, *others.values()], test)
    print(
        f"{len(test)} test questions, {len(train)} for training, {len(kept)} pairs ({len(pairs) - len(kept)} left out)"
    )
    for language, other in others.items():
        place = args.data / f"xquad_r_{language}_en"
        (place / "qrels").mkdir(parents=True, exist_ok=True)
        shutil.copy(args.folder / "xquad_r_en" / "corpus.jsonl", place)
        lines = [json.dumps({"_id": query, "text": other.queries[query]}, ensure_ascii=False) for query in test]
        (place / "queries.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        grades = english.qrels["test"].to_dict()
        rows = [f"{query}\t{document}\t{grade}\n" for query in test for document, grade in grades[query].items()]
        (place / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
        (place / "pairs.tsv").write_text("".join(f"{source}\t{text}\n" for source, text in kept), encoding="utf-8")


def translations(english: Collection, other: Collection, train: list[str]) -> list[tuple[str, str]]:
    """Pairs of questions, and of sentences or paragraphs of the training articles."""
    pairs = [(english.queries[query], other.queries[query]) for query in train]
    ours, theirs = paragraphs(english), paragraphs(other)
    for name in sorted(ours):
        if int(name.split("-")[0]) % 3 != 0:
            both = ours[name], theirs[name]
            aligned = len(both[0]) == len(both[1])
            pairs += zip(*both, strict=True) if aligned else [tuple(" ".join(sentences) for sentences in both)]
    return [tuple(" ".join(text.replace("\ufeff", "").split()) for text in pair) for pair in pairs]


def paragraphs(collection: Collection) -> dict[str, list[str]]:
    """The sentences of each paragraph, in order."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for id_, text in collection.documents.items():
        name, _, place = id_.rpartition("-")
        found[name].append((int(place), text))
    return {name: [text for _, text in sorted(of_name)] for name, of_name in found.items()}


def without_test_questions(
    pairs: list[tuple[str, str]], collections: list[Collection], test: list[str]
) -> list[tuple[str, str]]:
    """Pairs of which neither text is a test question in any language, or nearly."""
    leaked: set[str] = set()
    texts = Texts.from_pairs(
        (str(row), text) for row, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))
    )
    for collection in collections:
        leaked |= {leak.text for leak in ExcludedQueries(collection.queries.select(test)).leaks_in(texts)}
    return [pair for pair in pairs if leaked.isdisjoint(pair)]


if __name__ == "__main__":
    main()
