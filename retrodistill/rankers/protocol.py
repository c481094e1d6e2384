"""The protocol of rankers: a ranker searches a corpus, scores pairs, or both. Attributes state which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.spending import Bill
from retrodistill.data.collection import Collection
from retrodistill.data.records import require_utf8
from retrodistill.data.texts import Texts, blank_rows
from retrodistill.encoders.names import ModelName, cannot_search
from retrodistill.rankers.corpus import CorpusScores
from retrodistill.runs.run import Run

Stage = Callable[[Any], Any]
Queries = str | Sequence[str] | Mapping[str, str] | Texts
DEPTH = 10  # documents per query by default


@dataclass(frozen=True)
class Work:
    """The work that remains before all pairs of a ranker have scores."""

    items: int
    unit: str  # ``pairs`` or ``texts``
    seconds: float  # an estimate, from a rate measured just now
    bill: Bill = field(default_factory=Bill)  # of requests to an API

    def __add__(self, other: Work) -> Work:
        """The work of two rankers together."""
        units = {work.unit for work in (self, other) if work.items} or {self.unit}
        items, unit = self.items + other.items, "/".join(sorted(units))
        return Work(items, unit, self.seconds + other.seconds, self.bill + other.bill)


class Ranker:
    """A teacher, retriever, re-ranker, ensemble, recorded run, index or exported store.

    Subclass it, set the attributes that apply and override the methods that they promise. The rest has defaults.
    Callers check the attributes, never the class. A method whose attribute is false raises `UserError`.

    Attributes:
        name: Name of its runs and scores; `load_ranker` accepts it if the ranker was loaded by name.
        kind: Kind of model, as in ``kind:name``; empty if no name describes it.
        can_search: `search` finds the best documents of a whole corpus.
        can_score_pairs: `score` scores any (query, document) pair, or every pair that was recorded.
        can_score_corpus: `corpus_scores` gives the score of any query with any document at the cost of a product.
        can_time_pairs: `pair_fn` scores new pairs as a server would.
        is_recorded: It only returns what was recorded before.
        is_cheap: It can score every pair without planning the cost.
        weights: Of the members; 1 for a single ranker.
        method: How an ensemble fuses its members; None for a single ranker.
        run: The recorded scores, of a recorded run.
        documents: Encoder of documents, if there is one.
        queries: Encoder of queries, if there is one.
    """

    name: str
    kind: str = ""
    can_search: bool = False
    can_score_pairs: bool = False
    can_score_corpus: bool = False
    can_time_pairs: bool = False
    is_recorded: bool = False
    is_cheap: bool = False
    weights: Sequence[float] = (1.0,)
    method: str | None = None
    run: Run | None = None
    documents: Any = None
    queries: Any = None

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> Ranker:
        """The ranker of a ``kind:NAME`` whose kind `MODEL_KINDS` maps to this class; `store` is a folder for scores."""
        return cls(name.name)  # type: ignore[call-arg]

    def fingerprint(self, collection: Collection) -> str:
        """Digest of everything except the texts that determines its scores; empty (never reused) if unknown."""
        return ""

    def known_run(self, collection: Collection, queries: Texts | None = None) -> Run | None:
        """The recorded scores of queries and documents of the collection, and of `queries`; None without a `run`."""
        return None

    def changes(self, collection: Collection) -> str | None:
        """How a collection differs from the documents that it holds, in words; None if it does not, or holds none."""
        return None

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The best k documents of each query, or fewer if the ranker finds fewer."""
        raise UserError(cannot_search(self.name))

    def stream(self, queries: Texts, collection: Collection, k: int) -> Run:
        """As `search`, with memory that does not grow with the corpus if the ranker supports that."""
        return self.search(queries, collection, k)

    def ranks_documents(self, collection: Collection) -> bool:
        """Whether it searches whole documents where it is measured on a collection of passages."""
        return False

    def holds(self, collection: Collection) -> bool:
        """Whether it searches in memory, so that it can be timed; otherwise `stream` works in blocks."""
        return True

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The same pairs with this ranker's raw scores, higher is better; a pair without a score is an error."""
        raise UserError(cannot_score(self.name))

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """What `score` has left to compute for these pairs, and how long it takes."""
        return Work(0, "pairs", 0.0)

    def require_corpus_scores(self) -> None:
        """Check that it can score a whole corpus."""
        if not self.can_score_corpus:
            raise UserError(
                f"teacher {self.name} scores pairs and cannot score a whole corpus; set candidates.depth to a number, "
                "without candidates.shared, groups.random or in-batch-margin-mse."
            )

    def corpus_scores(self, queries: Texts, collection: Collection) -> CorpusScores:
        """The scores of any queries and documents, by rows. This call embeds texts; scores follow on demand."""
        self.require_corpus_scores()
        raise NotImplementedError(f"{type(self).__name__} promises corpus scores and has no corpus_scores")

    @property
    def members(self) -> Sequence[Ranker]:
        """The rankers that an ensemble fuses; a single ranker is its only member."""
        return [self]

    @property
    def can_be_timed(self) -> bool:
        """Whether `query_fn` answers new queries as a server would."""
        return False

    def query_fn(self, collection: Collection, k: int) -> Callable[[str], Any]:
        """A function that answers one query text as a server would, without caches: for timing."""
        if not self.can_be_timed:
            raise UserError(f"{self.name} does not answer new queries by itself, so it has no latency.")
        stages = self.timed_stages(collection, k)
        return lambda text: functools.reduce(lambda value, stage: stage(value), stages, [text])

    def timed_stages(self, collection: Collection, k: int) -> Sequence[Stage]:
        """A chain of functions that starts with query texts: encoding and search, or a single one for both."""
        answer = self.query_fn(collection, k)
        return [lambda texts: [answer(text) for text in texts]]

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """A function from a query text and (n,) rows of documents to (n,) scores, without a cache of queries."""
        raise UserError(f"{self.name} keeps the scores of its pairs, so it has no latency.")

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Bytes per document that serving keeps; None if unknown."""
        return None

    @property
    def library_model(self) -> Any:
        """The sentence-transformers model that it runs; None if there is none."""
        return getattr(self.queries, "model", None)

    @property
    def documents_by(self) -> str:
        """Name of the encoder of the documents; empty if unknown."""
        return getattr(self.documents, "name", "")

    @property
    def queries_by(self) -> str:
        """Name of the encoder of the queries; empty if unknown."""
        return getattr(self.queries, "name", "")


def cannot_score(name: str) -> str:
    """The message for a ranker that only searches."""
    return f"{name} searches a corpus and cannot score pairs; use the model of its documents as a teacher."


def distinct_texts(
    queries: Texts, collection: Collection, pairs: Run
) -> tuple[np.ndarray, list[str], np.ndarray, list[str]]:
    """For queries, then for documents: each pair's (rows,) position among the distinct texts, and these texts."""
    rows, columns = pairs.positions(queries, collection.documents)
    return *_distinct(rows, queries), *_distinct(columns, collection.documents)


def pair_texts(queries: Texts, collection: Collection, pairs: Run) -> tuple[list[str], list[str]]:
    """The texts of each pair, two parallel lists of (rows,); each distinct text is one Python string."""
    query_places, query_texts, document_places, document_texts = distinct_texts(queries, collection, pairs)
    return [query_texts[place] for place in query_places], [document_texts[place] for place in document_places]


def _distinct(positions: np.ndarray, texts: Texts) -> tuple[np.ndarray, list[str]]:
    chosen, places = np.unique(positions, return_inverse=True)
    return places, [texts.column[position] for position in chosen]


def with_content(run: Run, queries: Texts, collection: Collection) -> Run:
    """A run without blank queries and documents (`is_blank`), whose vectors say nothing."""
    if not queries.blank.isdisjoint(run.query_ids):
        run = run.select(set(run.query_ids) - queries.blank)
    return run.without_documents(collection.documents.blank)


def check_k(k: int, documents: int) -> None:
    """Reject a k below 1 or above the number of documents."""
    if not 1 <= k <= documents:
        raise UserError(f"k={k}: the corpus has {documents} documents; choose k from 1 to {documents}.")


def wanted_depth(k: int | None, documents: int) -> int:
    """The given k, checked as by `check_k`; by default 10 or the number of documents, if that is less."""
    k = min(DEPTH, documents) if k is None and documents else k or 0
    check_k(k, documents)
    return k


def as_queries(queries: Queries) -> Texts:
    """Convert one text, several (ids "0", "1"...) or a mapping of ids to texts; refuse empty ones and other types."""
    if not isinstance(queries, Texts):
        several = [queries] if isinstance(queries, str) else queries
        pairs = list(several.items() if isinstance(several, Mapping) else enumerate(several))
        for id_, text in pairs:
            if not isinstance(text, str):
                raise UserError(f"query {id_!r} is {type(text).__name__}; give texts, or a mapping of ids to texts.")
        require_utf8((text for _, text in pairs), "query")
        queries = Texts.from_pairs((str(id_), text) for id_, text in pairs)
    check_queries(queries.texts)
    return queries


def check_queries(texts: Sequence[str]) -> None:
    """Reject empty queries and those that are not UTF-8; the error names the first."""
    require_utf8(texts, "query")
    empty = blank_rows(texts)
    if empty:
        raise UserError(f"query {empty[0] + 1} of {len(texts)} is empty; a query needs at least one word.")
