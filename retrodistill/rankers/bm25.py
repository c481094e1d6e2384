"""BM25 over a collection's documents (bm25s, English Snowball stemmer), its index kept in the cache."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, cache_folder, digest, make_folder
from retrodistill.data.texts import Texts
from retrodistill.runs.top_k import top_k

if TYPE_CHECKING:
    import bm25s

_SETTINGS = {"method": "lucene", "k1": 1.5, "b": 0.75, "stemmer": "english", "stopwords": "english"}


class BM25:
    """BM25 with bm25s' defaults: k1 1.5, b 0.75, Lucene's idf, English stop words and Snowball stemmer.

    Args:
        documents: The corpus; row numbers below are positions in it.
    """

    name = "bm25"

    def __init__(self, documents: Texts) -> None:
        self.documents = documents

    @cached_property
    def fingerprint(self) -> str:
        """Digest of settings and corpus: the statistics of the corpus decide the scores."""
        return digest("bm25", _SETTINGS, self.documents.fingerprint)

    def scores(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """For each query text, (documents,) float32 scores of the whole corpus; 0 where no term is shared."""
        for terms in self._terms(texts):
            known = [term for term in terms if term in self._index.vocab_dict]
            yield (self._index.get_scores(known) if known else np.zeros(len(self.documents), dtype=np.float32))

    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents that share a term with the query.

        Returns:
            rows (q, k) int64, -1 in empty places, and scores (q, k) float32, in no promised order of ties.
        """
        k = min(k, len(self.documents))
        rows = np.full((len(texts), k), -1, dtype=np.int64)
        found = np.zeros((len(texts), k), dtype=np.float32)
        for place, scores in enumerate(self.scores(texts)):
            best = top_k(scores, k)
            best = best[scores[best] > 0]
            rows[place, : len(best)], found[place, : len(best)] = best, scores[best]
        return rows, found

    @cached_property
    def bytes_per_document(self) -> float:
        """Bytes of the inverted index (scores, document numbers, pointers) per document."""
        arrays = self._index.scores
        return sum(arrays[part].nbytes for part in ("data", "indices", "indptr")) / len(self.documents)

    def _terms(self, texts: Sequence[str]) -> list[list[str]]:
        return _tokenize(list(texts))

    @cached_property
    def _index(self) -> bm25s.BM25:
        library = load_bm25s()
        folder = make_folder(cache_folder() / "bm25") / self.fingerprint
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                index = library.BM25(method=_SETTINGS["method"], k1=_SETTINGS["k1"], b=_SETTINGS["b"])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a corpus without terms divides by zero
                    index.index(_some_term(_tokenize(self.documents.texts)), show_progress=False)
                with atomic_folder(folder) as temporary:
                    index.save(temporary, show_progress=False)
        try:
            loaded: bm25s.BM25 = library.BM25.load(folder, mmap=True)
            return loaded
        except (OSError, ValueError, KeyError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"BM25 index {folder} is cut short or altered ({reason}); delete this folder and it is built again."
            ) from error


def _some_term(terms: list[list[str]]) -> list[list[str]]:
    """The corpus' terms; bm25s needs one at least, so a corpus without any gets one that no query has."""
    return terms if any(terms) else [["\0"], *terms[1:]]


def _tokenize(texts: list[str]) -> list[list[str]]:
    import Stemmer

    terms: Any = load_bm25s().tokenize(
        texts,
        stopwords=_SETTINGS["stopwords"],
        stemmer=Stemmer.Stemmer(_SETTINGS["stemmer"]),
        return_ids=False,
        show_progress=False,
    )
    return terms


@cache
def load_bm25s() -> Any:
    """bm25s without JAX: where that is installed, bm25s' import starts it, and it takes most of a GPU's memory."""
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        import bm25s
    finally:
        del sys.modules["jax"]
        if jax is not None:
            sys.modules["jax"] = jax
    return bm25s
