"""BM25 over a collection's documents (bm25s, Snowball stemmer), its index kept in the cache."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, cache_folder, digest, make_folder
from retrodistill.core.runtime import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.corpus import CorpusScores, Products
from retrodistill.rankers.protocol import Ranker, Stage
from retrodistill.runs.run import Run, top_k

if TYPE_CHECKING:
    import bm25s

LANGUAGE = "english"  # of stop words (bm25s) and stemmer (Snowball)
_FORMULA: dict[str, Any] = {"method": "lucene", "k1": 1.5, "b": 0.75}  # bm25s's defaults
_SETTINGS = {**_FORMULA, "stemmer": LANGUAGE, "stopwords": LANGUAGE}
_BLOCK = 8192  # documents whose tokens are Python objects at once


class BM25:
    """BM25 with bm25s's defaults: k1 1.5, b 0.75, Lucene's idf, and stop words and stemmer of `LANGUAGE`."""

    def __init__(self, documents: Texts) -> None:
        self.documents = documents

    @cached_property
    def fingerprint(self) -> str:
        """Digest of settings and corpus, whose statistics determine the scores."""
        return digest("bm25", _SETTINGS, self.documents.fingerprint)

    def scores(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """For each query text, (documents,) float32 scores of the whole corpus; 0 if no term is shared."""
        for terms in _tokenize(list(texts)):
            known = [term for term in terms if term in self._index.vocab_dict]
            yield self._index.get_scores(known) if known else np.zeros(len(self.documents), dtype=np.float32)

    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents that share a term with the query.

        Returns:
            rows (q, k) int64, padded with -1, and scores (q, k) float32; the order of ties is undefined.
        """
        k = min(k, len(self.documents))
        rows = np.full((len(texts), k), -1, dtype=np.int64)
        best_scores = np.zeros((len(texts), k), dtype=np.float32)
        for query, scores in enumerate(self.scores(texts)):
            best = top_k(scores, k)
            best = best[scores[best] > 0]
            rows[query, : len(best)], best_scores[query, : len(best)] = best, scores[best]
        return rows, best_scores

    def products(self, texts: Sequence[str]) -> Products:
        """Scores of query texts with any document, from (texts, terms) counts and (documents, terms) scores."""
        ids, terms = self._index.vocab_dict, len(self._index.scores["indptr"]) - 1
        known = [[ids[term] for term in query if ids.get(term, terms) < terms] for query in _tokenize(list(texts))]
        counts = _counts(known, np.arange(terms, dtype=np.int32), terms)
        arrays = (self._index.scores[part] for part in ("data", "indices", "indptr"))
        return Products(counts, csc_array(tuple(arrays), shape=(len(self.documents), terms)).tocsr())

    @cached_property
    def bytes_per_document(self) -> float:
        """Bytes of the inverted index (scores, document numbers, pointers) per document."""
        arrays = self._index.scores
        return sum(arrays[part].nbytes for part in ("data", "indices", "indptr")) / len(self.documents)

    @cached_property
    def _index(self) -> bm25s.BM25:
        library = load_bm25s()
        folder = make_folder(cache_folder() / "bm25") / self.fingerprint
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                index = library.BM25(**_FORMULA)
                index.vocab_dict, index.scores = _indexed(self.documents)
                index.nonoccurrence_array = None  # this formula has none
                with atomic_folder(folder) as temporary:
                    index.save(temporary, show_progress=False)
        try:
            return library.BM25.load(folder, mmap=True)
        except (OSError, ValueError, KeyError, EOFError) as error:
            reason = f"is damaged ({str(error).splitlines()[0]})"
            raise UserError(f"BM25 index {folder} {reason}; delete this folder and it is built again.") from error


class BM25Ranker(Ranker):
    """BM25 over a collection; a pair that shares no term has 0, which is its true score."""

    name = kind = "bm25"
    can_search = can_score_pairs = can_score_corpus = is_cheap = can_be_timed = True
    documents_by = queries_by = "bm25"

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> BM25Ranker:
        """BM25, which takes no name."""
        return cls()

    def fingerprint(self, collection: Collection) -> str:
        """As `BM25.fingerprint`."""
        return BM25(collection.documents).fingerprint

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k best documents that share a term with the query."""
        rows, scores = BM25(collection.documents).search(queries.texts, k)
        return Run.from_matrix(queries.ids, collection.documents.ids, rows, scores, name=self.name)

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with BM25 scores."""
        rows = pairs.positions(queries, collection.documents)[1]
        products = self.corpus_scores(queries.select(pairs.query_ids), collection)
        return pairs.with_scores(products.pairs(pairs.query_codes, rows), self.name)

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """Products of the numbers of the queries' terms and the terms' scores in documents."""
        return BM25(collection.documents).products(queries.texts)

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Search only: nothing is encoded."""
        ranker = BM25(collection.documents)
        return list, lambda texts: ranker.search(texts, k)

    def bytes_per_document(self, collection: Collection) -> float | None:
        """As `BM25.bytes_per_document`."""
        return BM25(collection.documents).bytes_per_document


def _indexed(documents: Texts) -> tuple[dict[str, int], dict[str, Any]]:
    """The vocabulary, and the scores of terms in documents as bm25s stores them, which it would compute as well.

    Its own `BM25.index` takes the tokens of the whole corpus as Python strings.
    """
    vocabulary: dict[str, int] = {}
    parts, lengths = [], []
    with bar(len(documents), "BM25 index", "documents") as progress:
        for start in range(0, len(documents), _BLOCK):
            tokens = _tokenize(documents.slice(start, start + _BLOCK), return_ids=True)
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


def _tokenize(texts: list[str], *, return_ids: bool = False) -> Any:
    """Terms of each text, a list of strings; or their numbers, and the vocabulary of these texts."""
    import Stemmer

    return load_bm25s().tokenize(
        texts, stopwords=LANGUAGE, stemmer=Stemmer.Stemmer(LANGUAGE), return_ids=return_ids, show_progress=False
    )


@cache
def load_bm25s() -> Any:
    """Import bm25s without JAX: bm25s would start an installed JAX, which takes most of a GPU's memory."""
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # makes Python's import fail
    try:
        import bm25s
    finally:
        del sys.modules["jax"]
        if jax is not None:
            sys.modules["jax"] = jax
    return bm25s
