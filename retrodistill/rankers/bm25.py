"""BM25 over a collection's documents (bm25s, Snowball stemmer), its index kept in the cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from retrodistill.core.cache import cache_folder, open_once
from retrodistill.core.checksums import DamagedError
from retrodistill.core.digests import digest
from retrodistill.core.errors import first_line
from retrodistill.core.json_files import check_checksums, write_checksums
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.analyzers import AUTO, DEFAULT, Analyzer, load_analyzer, load_bm25s, not_english, setting_for
from retrodistill.rankers.corpus import CorpusScores, Products
from retrodistill.rankers.protocol import Ranker, Stage
from retrodistill.runs.run import Run, top_k

if TYPE_CHECKING:
    import bm25s

_FORMULA: dict[str, Any] = {"method": "lucene", "k1": 1.5, "b": 0.75}  # bm25s's defaults
_BLOCK = 8192  # documents whose tokens are Python objects at once


class BM25:
    """BM25 with bm25s's defaults: k1 1.5, b 0.75, Lucene's idf; terms by a setting other than ``auto``."""

    def __init__(self, documents: Texts, setting: str = DEFAULT) -> None:
        self.documents, self._analyze = documents, load_analyzer(setting)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of settings, versions of the libraries that make terms, and the corpus with its statistics."""
        return digest("bm25", {**_FORMULA, **self._analyze.settings}, _versions(), self.documents.fingerprint)

    def scores(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """For each query text, (documents,) float32 scores of the whole corpus; 0 if no term is shared."""
        for terms in self._terms(texts):
            known = [term for term in terms if term in self._index.vocab_dict]
            yield self._index.get_scores(known) if known else np.zeros(len(self.documents), dtype=np.float32)

    def search(self, texts: Sequence[str], k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents that share a term with the query, of all or of those in the (m,) rows `among`.

        Returns:
            rows (q, k) int64, padded with -1, and scores (q, k) float32, best first. Of documents that tie for the last
            places, those of the lowest ids.
        """
        k = min(k, len(self.documents))
        rows = np.full((len(texts), k), -1, dtype=np.int64)
        best_scores = np.zeros((len(texts), k), dtype=np.float32)
        for query, scores in enumerate(self.scores(texts)):
            if among is not None:
                passing = np.zeros_like(scores)
                passing[among] = scores[among]
                scores = passing  # noqa: PLW2901 - the others do not count
            best = top_k(scores, k, self.documents.id_order)
            best = best[scores[best] > 0]
            rows[query, : len(best)], best_scores[query, : len(best)] = best, scores[best]
        return rows, best_scores

    def products(self, texts: Sequence[str]) -> Products:
        """Scores of query texts with any document, from (texts, terms) counts and (documents, terms) scores."""
        ids, terms = self._index.vocab_dict, len(self._index.scores["indptr"]) - 1
        known = [[ids[term] for term in query if ids.get(term, terms) < terms] for query in self._terms(texts)]
        counts = _counts(known, np.arange(terms, dtype=np.int32), terms)
        arrays = (self._index.scores[part] for part in ("data", "indices", "indptr"))
        return Products(counts, csc_array(tuple(arrays), shape=(len(self.documents), terms)).tocsr())

    def _terms(self, texts: Sequence[str]) -> list[list[str]]:
        tokens = self._analyze(texts)
        terms = {number: term for term, number in tokens.vocab.items()}
        return [[terms[number] for number in numbers] for numbers in tokens.ids]

    @cached_property
    def bytes_per_document(self) -> float:
        """Bytes of the inverted index (scores, document numbers, pointers) per document."""
        arrays = self._index.scores
        return sum(arrays[part].nbytes for part in ("data", "indices", "indptr")) / len(self.documents)

    @cached_property
    def _index(self) -> bm25s.BM25:
        library = load_bm25s()
        folder = cache_folder() / "bm25" / self.fingerprint

        def make(temporary: Path) -> None:
            index = library.BM25(**_FORMULA)
            index.vocab_dict, index.scores = _indexed(self.documents, self._analyze)
            index.nonoccurrence_array = None  # this formula has none
            index.save(temporary, show_progress=False)
            write_checksums(temporary)

        def read() -> bm25s.BM25:
            check_checksums(folder, advice)
            try:
                return library.BM25.load(folder, mmap=True)
            except (OSError, ValueError, KeyError, EOFError) as error:
                raise DamagedError(folder, first_line(error), advice) from error

        advice = "delete this folder and it is built again"
        return open_once(folder, make, read)


class BM25Ranker(Ranker):
    """BM25 over a collection; a pair that shares no term has 0, which is its true score.

    Args:
        setting: What makes the terms, see `retrodistill.rankers.analyzers.SETTINGS`: empty for bm25s's English, a
            language, ``auto``, ``characters``, or a model.

    Raises:
        UserError: There is no such setting or model.
    """

    kind = "bm25"
    can_search = can_score_pairs = can_score_corpus = is_cheap = can_be_timed = True

    def __init__(self, setting: str = DEFAULT) -> None:
        self.setting, self.name = setting, str(ModelName("bm25", setting))
        if setting != AUTO:
            load_analyzer(setting)

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> BM25Ranker:
        """BM25 by its setting."""
        return cls(name.name)

    def of(self, collection: Collection) -> BM25Ranker:
        """The same ranker, with the language of the documents for ``auto``."""
        return BM25Ranker(setting_for(collection.documents)) if self.setting == AUTO else self

    def warning(self, collection: Collection) -> str | None:
        """A line where the default, English, is used for documents in another language; logged the first time."""
        return not_english(collection.documents) if self.setting == DEFAULT else None

    def ranks_documents(self, collection: Collection) -> bool:
        """Yes, unless the passages' settings say otherwise: BM25 reads texts of any length."""
        return collection.parents is None or collection.parents.settings.bm25 == "documents"

    def fingerprint(self, collection: Collection) -> str:
        """As `BM25.fingerprint`."""
        return self._ranker(collection).fingerprint

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k best documents that share a term with the query."""
        rows, scores = self._ranker(collection).search(queries.texts, k)
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with BM25 scores."""
        rows = pairs.positions(queries, collection.documents)[1]
        products = self.corpus_scores(queries.select(pairs.query_ids), collection)
        return pairs.with_scores(products.pairs(pairs.query_codes, rows), self.name)

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """Products of the numbers of the queries' terms and the terms' scores in documents."""
        return self._ranker(collection).products(queries.texts)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Search only: nothing is encoded."""
        ranker = self._ranker(collection)
        return list, lambda texts: ranker.search(texts, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """As `BM25.bytes_per_document`."""
        return self._ranker(collection).bytes_per_document

    @property
    def documents_by(self) -> str:
        """Its name, with the setting."""
        return self.name

    queries_by = documents_by

    def _ranker(self, collection: Collection) -> BM25:
        self.warning(collection)
        return BM25(collection.documents, self.of(collection).setting)


def _indexed(documents: Texts, analyze: Analyzer) -> tuple[dict[str, int], dict[str, Any]]:
    """The vocabulary, and the scores of terms in documents as bm25s stores them, which it would compute as well.

    Its own `BM25.index` takes the tokens of the whole corpus as Python strings.
    """
    vocabulary: dict[str, int] = {}
    parts, lengths = [], []
    with bar(len(documents), "BM25 index", "documents") as progress:
        for start in range(0, len(documents), _BLOCK):
            tokens = analyze(documents.slice(start, start + _BLOCK))
            of_block = np.empty(len(tokens.vocab), dtype=np.int32)  # the block's numbers -> the corpus's
            for term in sorted(tokens.vocab):  # in any process the same numbers
                of_block[tokens.vocab[term]] = vocabulary.setdefault(term, len(vocabulary))
            lengths.append(np.array([len(ids) for ids in tokens.ids]))
            parts.append(_counts(tokens.ids, of_block, len(vocabulary)))
            progress.update(len(tokens.ids))
    if not vocabulary:  # bm25s needs at least one term: one that no query has
        vocabulary["\0"], lengths[0][0] = 0, 1
        parts[0] = csr_array(([np.float32(1)], ([0], [0])), shape=(len(lengths[0]), 1))
    frequencies = np.zeros(len(vocabulary), dtype=np.int64)
    for part in parts:
        part.resize(part.shape[0], len(vocabulary))
        frequencies += np.bincount(part.indices, minlength=len(vocabulary))
    rarity = np.log(1 + (len(documents) - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    mean, k1, b = np.concatenate(lengths).mean(), _FORMULA["k1"], _FORMULA["b"]
    for part, own in zip(parts, lengths, strict=True):
        saturation = np.repeat(k1 * ((1 - b) + b * own / mean), np.diff(part.indptr))
        part.data = (rarity[part.indices] * (part.data / (saturation + part.data))).astype(np.float32)
    matrix = csc_array(vstack(parts, format="csr"))
    scores = {"data": matrix.data, "indices": matrix.indices.astype(np.int32), "indptr": matrix.indptr.astype(np.int64)}
    return vocabulary, {**scores, "num_docs": len(documents)}


def _counts(texts: list[list[int]], terms: np.ndarray, vocabulary: int) -> csr_array:
    """(texts, vocabulary) float32 counts of `terms`, by their numbers in texts."""
    bounds = np.cumsum([0, *map(len, texts)])
    columns = terms[np.fromiter(itertools.chain.from_iterable(texts), dtype=np.int64, count=bounds[-1])]
    counts = csr_array((np.ones(len(columns), dtype=np.float32), columns, bounds), shape=(len(texts), vocabulary))
    counts.sum_duplicates()
    return counts


@cache
def _versions() -> list[str]:
    """Of what splits texts and drops stop words, and of what stems: another one may make other terms."""
    return [metadata.version(name) for name in ("bm25s", "PyStemmer")]
