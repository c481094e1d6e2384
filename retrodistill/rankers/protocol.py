"""The protocol of rankers: a ranker searches a corpus, scores pairs, or both. Attributes state which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName, cannot_search
from retrodistill.runs.run import Run

CorpusScorer = Callable[[slice], np.ndarray]
Stage = Callable[[Any], Any]


@dataclass(frozen=True)
class Work:
    """The work that remains before all pairs of a ranker have scores.

    Attributes:
        items: Number of pairs or texts.
        unit: ``pairs`` or ``texts``.
        seconds: Estimate, at the rate measured just now.
    """

    items: int
    unit: str
    seconds: float


class Ranker:
    """A teacher, retriever, re-ranker, ensemble, recorded run, index or exported store.

    Subclass it, set the attributes that apply and override the methods that they promise. The rest has defaults.
    Callers check the attributes, never the class.

    Attributes:
        name: What its runs and scores are called; `load_ranker` reads it where the ranker came from a name.
        kind: Kind of model, as in ``kind:name``; empty for what no name describes.
        can_search: `search` finds the best documents of a whole corpus.
        can_score_pairs: `score` scores any (query, document) pair, or every pair that was recorded.
        can_score_corpus: `corpus_scorer` scores all documents for a block of queries.
        is_recorded: It answers only what was recorded before.
        is_cheap: It can score every pair without planning the cost.
        weights: Of the members; 1 for a ranker alone.
        method: How an ensemble fuses its members; None for a ranker alone.
        run: The recorded scores, of a recorded run.
        documents: Encoder of documents, where there is one.
        queries: Encoder of queries, where there is one.
    """

    name: str
    kind: str = ""
    can_search: bool = False
    can_score_pairs: bool = False
    can_score_corpus: bool = False
    is_recorded: bool = False
    is_cheap: bool = False
    weights: Sequence[float] = (1.0,)
    method: str | None = None
    run: Run | None = None
    documents: Any = None
    queries: Any = None

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> Ranker:
        """The ranker of a model name such as ``kind:NAME``, for kinds that `MODEL_KINDS` opens by this class.

        Args:
            name: The name.
            store: Folder for what it computes; the shared cache by default.
        """
        return cls(name.name)  # type: ignore[call-arg]

    def fingerprint(self, collection: Collection) -> str:
        """Digest of everything besides the texts that determines its scores and results.

        Empty where that is unknown: nothing that was made with such a ranker is used again.
        """
        return ""

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The best k documents of each query; fewer where the ranker finds fewer.

        Raises:
            UserError: It scores pairs only.
        """
        raise UserError(cannot_search(self.name))

    def stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`, with memory that does not grow with the corpus, where the ranker knows how."""
        return self.search(queries, collection, k)

    def holds(self, collection: Collection) -> bool:
        """Whether it holds in memory what it searches, so that it can be timed; otherwise `stream` works in blocks."""
        return True

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The same pairs with this ranker's scores: raw, higher is better; every pair has one.

        Raises:
            UserError: It searches only, or a pair cannot be scored.
        """
        raise UserError(cannot_score(self.name))

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """What `score` has left to compute for these pairs, and how long it will take."""
        return Work(0, "pairs", 0.0)

    def require_corpus_scores(self) -> None:
        """Check that it can score a whole corpus.

        Raises:
            UserError: It scores pairs only.
        """
        if not self.can_score_corpus:
            raise UserError(
                f"teacher {self.name} scores pairs and cannot score a whole corpus; set candidates.depth to "
                "a number instead of 'all'."
            )

    def corpus_scorer(self, queries: Texts, collection: Collection) -> CorpusScorer:
        """A function from a slice of the queries to (block, documents) float32 raw scores.

        What is computed once, such as embeddings, is computed by this call.

        Raises:
            UserError: It scores pairs only.
        """
        self.require_corpus_scores()
        raise NotImplementedError(f"{type(self).__name__} promises corpus scores and has no corpus_scorer")

    @property
    def members(self) -> Sequence[Ranker]:
        """The rankers that an ensemble fuses; a ranker alone is its only member."""
        return [self]

    @property
    def can_be_timed(self) -> bool:
        """Whether `query_fn` answers new queries as a server would."""
        return False

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """A function that answers one query text as a server would, nothing cached: for timing.

        Raises:
            UserError: `can_be_timed` is false.
        """
        raise UserError(f"{self.name} does not answer new queries by itself, so it has no latency.")

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """Functions that pass on to each other, the first from query texts: encoding and search apart, or both in one.

        Raises:
            UserError: `can_be_timed` is false.
        """
        answer = self.query_fn(collection, k)
        return [lambda texts: [answer(text) for text in texts]]

    @property
    def can_time_pairs(self) -> bool:
        """Whether `pair_fn` scores new pairs as a server would."""
        return False

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """A function from a query text and (n,) rows of documents to (n,) scores, nothing of the query cached.

        Raises:
            UserError: `can_time_pairs` is false.
        """
        raise UserError(f"{self.name} keeps the scores of its pairs, so it has no latency.")

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes that serving keeps per document; None where they are unknown."""
        return None

    @property
    def documents_by(self) -> str:
        """Name of what encodes the documents; empty where it is unknown."""
        return getattr(self.documents, "name", "")

    @property
    def queries_by(self) -> str:
        """Name of what encodes the queries; empty where it is unknown."""
        return getattr(self.queries, "name", "")


def cannot_score(name: str) -> str:
    """The message for a ranker that only searches."""
    return f"{name} searches a corpus and cannot score pairs; use the model of its documents as a teacher."


def pair_positions(queries: Texts, collection: Collection, pairs: Run) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) positions of each pair's query in `queries` and of its document in the corpus.

    Raises:
        UserError: The pairs name unknown ids.
    """
    pairs.require(queries.ids, collection.documents.ids)
    return (
        queries.positions(pairs.query_ids)[pairs.query_codes],
        collection.documents.positions(pairs.document_ids),
    )


def pair_texts(queries: Texts, collection: Collection, pairs: Run) -> tuple[list[str], list[str]]:
    """The texts of each pair, two parallel lists of (rows,); only the texts that occur become Python strings."""
    sides = zip((queries, collection.documents), pair_positions(queries, collection, pairs), strict=True)
    (query_places, query_texts), (document_places, document_texts) = (distinct(rows, texts) for texts, rows in sides)
    return [query_texts[place] for place in query_places], [document_texts[place] for place in document_places]


def distinct(positions: np.ndarray, texts: Texts) -> tuple[np.ndarray, list[str]]:
    """For each of the (n,) positions its place among the distinct ones, and the texts of the distinct ones."""
    chosen, places = np.unique(positions, return_inverse=True)
    return places, texts.select([texts.ids[position] for position in chosen]).texts


Queries = str | Sequence[str] | Mapping[str, str] | Texts
DEPTH = 10  # documents per query by default


def check_k(k: int, documents: int) -> None:
    """Reject a k above the number of documents.

    Raises:
        UserError: k is below 1 or above the number of documents.
    """
    if not 1 <= k <= documents:
        raise UserError(f"k={k}: the corpus has {documents} documents; choose k from 1 to {documents}.")


def wanted_depth(k: int | None, documents: int) -> int:
    """The given k; by default 10, or all documents where there are fewer.

    Raises:
        UserError: k is below 1 or above the number of documents, or there are no documents.
    """
    k = min(DEPTH, documents) if k is None and documents else k or 0
    check_k(k, documents)
    return k


def cut_depth(k: int | None, documents: int) -> int | None:
    """The given k, at most the number of documents."""
    return None if k is None else min(k, documents)


def within(collection: Collection, run: Run) -> Run:
    """The run of an index, known to name documents of the collection only.

    Raises:
        UserError: The collection lacks documents of the run.
    """
    run.require(run.query_ids, collection.documents.ids)
    return run


def plain_queries(queries: Queries) -> Texts:
    """Queries with ids as they are, empty texts too: a collection may hold such, and they find nothing."""
    return queries if isinstance(queries, Texts) else as_queries(queries)


def as_queries(queries: Queries) -> Texts:
    """One text, several (their ids are "0", "1"...), or queries with ids: checked, as queries with ids.

    Raises:
        UserError: A query has no text, or is not a text.
    """
    if not isinstance(queries, Texts):
        listed = [queries] if isinstance(queries, str) else queries
        pairs = list(listed.items() if isinstance(listed, Mapping) else enumerate(listed))
        for id_, text in pairs:
            if not isinstance(text, str):
                raise UserError(f"query {id_!r} is {type(text).__name__}; give texts, or a mapping of ids to texts.")
        queries = Texts.from_pairs((str(id_), text) for id_, text in pairs)
    check_queries(queries.texts)
    return queries


def check_queries(texts: list[str]) -> None:
    """Refuse empty queries.

    Raises:
        UserError: A query has no text; its place is named.
    """
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise UserError(f"query {empty[0] + 1} of {len(texts)} is empty; a query needs at least one word.")
