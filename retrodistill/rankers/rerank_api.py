"""A re-ranker behind an HTTP API, such as those of Cohere, Jina, Voyage, vLLM and TEI, or any JSON API that scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jmespath
import numpy as np

from retrodistill.core.http import ApiSettings, Client, UnreadableError, filled, read_api, tokens_of
from retrodistill.core.manifest import Manifest
from retrodistill.core.spending import current_spending
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.cross_encoder import ScoreStore
from retrodistill.rankers.protocol import Ranker, Work, pair_texts
from retrodistill.runs.run import Run

_BODY = {"model": "{model}", "query": "{query}", "documents": "{documents}"}
_ANSWER = "results || data || @"
_SCORES = ("relevance_score", "score")  # keys of a score


class RerankApi(ApiSettings):
    """A model that scores the documents of a query; its body may hold `{query}` and `{documents}`, a list."""


class RerankApiRanker(Ranker):
    """Scores of an API, kept in a store by the texts of the pair, so that no pair is paid for twice.

    The name is ``rerank-api:FILE`` or ``rerank-api:URL#MODEL``. A request has one query and up to ``batch_size``
    documents. A pair whose score cannot be read, also when asked again, is missing: it never gets a score of 0.
    """

    kind = "rerank-api"
    can_score_pairs = True

    def __init__(self, settings: RerankApi, name: str, root: Path | None = None) -> None:
        self.settings, self.name, self.root = settings, name, root

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> RerankApiRanker:
        """The model of a settings file or URL; nothing is sent."""
        return cls(read_api(name.name, RerankApi), str(name), store)

    @cached_property
    def _owner(self) -> Manifest:
        about = {"name": self.name, "url": self.settings.url, "model": self.settings.model}
        return Manifest("teacher", {"api": self.settings.fingerprint}, {}, about)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of URL, model, and what a request says; what the API changes behind them is not known here."""
        return self._owner.fingerprint

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with the API's scores, without those that it did not score; their number is logged."""
        store, texts = self._store(), pair_texts(queries, collection, pairs)
        if len(store.missing(*texts)):
            client = Client(self.name, self.settings, current_spending())
            part, threads = self.settings.batch_size, self.settings.concurrency
            store.fill(*texts, lambda pairs: self._ask(client, pairs), part=part, threads=threads, by_query=True)
        return store.scored(pairs, texts)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Pairs that are not in the store, with requests, tokens and cost; nothing is sent."""
        query_texts, document_texts = pair_texts(queries, collection, pairs)
        todo = self._store().missing(query_texts, document_texts)
        bytes_of: dict[str, list[int]] = {}
        for row in todo:
            sent = len(self.settings.shortened(document_texts[row]).encode())
            bytes_of.setdefault(query_texts[row], []).append(sent)
        requests = total = 0
        for query, sizes in bytes_of.items():
            own = -(-len(sizes) // self.settings.batch_size)
            requests += own
            total += sum(sizes) + own * len(query.encode())
        bill = self.settings.bill(requests, tokens_of(total))
        return Work(len(todo), "pairs", bill.seconds, bill)

    @property
    def queries_by(self) -> str:
        """Its own name: it reads queries and documents together."""
        return self.name

    def _store(self) -> ScoreStore:
        return ScoreStore(self.name, self._owner, self.root, is_complete=False)

    def _ask(self, client: Client, part: Sequence[tuple[str, str]]) -> np.ndarray:
        """(documents,) float32 scores of one query's documents, NaN where there is none."""
        settings = self.settings
        documents = [settings.shortened(document) for _, document in part]
        values = {"model": settings.model, "query": part[0][0], "documents": documents}
        scores = client.ask({**filled(settings.body or _BODY, values), **settings.extra}, _reader(len(part), settings))
        return np.full(len(part), np.nan, dtype=np.float32) if scores is None else scores


def _reader(count: int, settings: RerankApi) -> Callable[[Any], np.ndarray]:
    """What finds the scores of `count` documents in an answer: objects with index and score, or numbers in order."""
    expression = jmespath.compile(settings.answer or _ANSWER)

    def read(answer: Any) -> np.ndarray:
        rows = expression.search(answer)
        if not isinstance(rows, list) or not rows:
            raise UnreadableError(f"no list of scores but {type(rows).__name__}")
        scores = np.full(count, np.nan, dtype=np.float32)
        for place, row in enumerate(rows):
            index, score = place, row
            if isinstance(row, dict):
                index, score = row.get("index", place), next((row[key] for key in _SCORES if key in row), None)
            is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
            if isinstance(index, int) and 0 <= index < count and is_number:
                scores[index] = score
        if not np.isfinite(scores).all():
            raise UnreadableError(f"scores for {int(np.isfinite(scores).sum())} of {count} documents")
        return scores

    return read
