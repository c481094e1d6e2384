"""PyTerrier: a retriever and a re-ranker as transformers. Neither needs Java."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data import Texts, load_collection
from retrodistill.integrations.searching import Searcher
from retrodistill.rankers import load_ranker
from retrodistill.runs.run import Run

try:
    import pandas as pd
    import pyterrier as pt
except ImportError as error:
    raise UserError(f"PyTerrier needs {error.name}; pip install 'retrodistill[pyterrier]'.") from error


class RetrodistillRetriever(pt.Transformer):
    """From queries (qid, query) to ranked documents (qid, query, docno, score, rank) of an index, a store or a ranker.

    Further columns of the queries are kept. Blank queries find nothing.

    Args:
        index: The folder of an index, an exported store (``qdrant:PLACE#NAME``, ``pgvector:ADDRESS#NAME``), or an
            `Index`; with a collection, also a name such as ``bm25`` or ``rerank:TEACHER@bm25``.
        collection: Of the documents, where `index` is such a name.
        queries: Query encoder, by default the index's own.
        num_results: Documents per query.
        filter: Only documents whose fields match: a mapping, a condition such as ``year>=2020``, or a list of them.

    Raises:
        UserError: The index cannot be opened or searched, or an argument does not fit.
    """

    def __init__(
        self, index: Any, collection: Any = None, queries: Any = None, *, num_results: int = 1000, filter: Any = None
    ) -> None:
        super().__init__()
        self._searcher = Searcher(index, collection, queries, texts=False)
        self.num_results, self.filter = num_results, filter

    def __repr__(self) -> str:
        return f"RetrodistillRetriever({self._searcher.name})"  # the name in an experiment's table

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Search for each query."""
        pt.validate.columns(inp, includes=["qid", "query"])
        asked = _queries_of(inp)
        queries = Texts.from_pairs(zip(asked["qid"], asked["query"], strict=True))
        runs = self._searcher.runs(queries, self.num_results, self.filter)
        found = pd.concat([_frame([], [], []), *map(_frame_of, runs)], ignore_index=True)
        return pt.model.add_ranks(asked.merge(found, on="qid"))


class RetrodistillReranker(pt.Transformer):
    """Scores of a teacher or another ranker for (qid, query, docno), with new ranks.

    Scores are stored and found again, as everywhere in this package.

    Args:
        ranker: What `load_ranker` takes and can score pairs, such as ``cross-encoder:NAME``.
        collection: Of the documents' texts: a collection, or what `load_collection` takes.

    Raises:
        UserError: Not found, or it cannot score pairs; in use, a document is not in the collection, or appears twice.
    """

    def __init__(self, ranker: Any, collection: Any) -> None:
        super().__init__()
        self._collection, self._ranker = load_collection(collection), load_ranker(ranker, needs="score")

    def __repr__(self) -> str:
        return f"RetrodistillReranker({self._ranker.name})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score each pair."""
        pt.validate.result_frame(inp, extra_columns=["query"])
        asked, rows = _queries_of(inp), inp.drop(columns=["score", "rank"], errors="ignore")
        scored = _frame([], [], [])
        if len(rows):
            pairs = Run.from_arrays(rows["qid"], rows["docno"], np.zeros(len(rows)), name="results")
            queries = Texts.from_pairs(zip(asked["qid"], asked["query"], strict=True))
            scored = _frame_of(self._ranker.score(queries, self._collection, pairs))
        return pt.model.add_ranks(rows.merge(scored, on=["qid", "docno"]))


def _queries_of(inp: pd.DataFrame) -> pd.DataFrame:
    """A row for each query, with the columns that are about queries."""
    return inp[pt.model.query_columns(inp)].drop_duplicates("qid")


def _frame_of(run: Run) -> pd.DataFrame:
    queries = np.asarray(run.query_ids, dtype=object)[run.query_codes]
    return _frame(queries, run.document_ids, run.scores)


def _frame(queries: Any, documents: Any, scores: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "qid": pd.Series(queries, dtype=object),
            "docno": pd.Series(documents, dtype=object),
            "score": pd.Series(scores, dtype="float64"),
        }
    )
