"""Queries by a language model behind a chat API (InPars, arXiv 2202.05144; Promptagator, arXiv 2209.11755)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrodistill.core.errors import UserError
from retrodistill.core.http import UnreadableError, filled, read_api
from retrodistill.generation.generator import queries_in
from retrodistill.generation.settings import GenerationSettings
from retrodistill.rankers.chat import ChatModel, Requests, chat_request, chat_text
from retrodistill.rankers.llm import LlmApi
from retrodistill.rankers.protocol import Work

_PROMPT = (
    "Write {count} search queries that someone who looks for the document below could type into a search engine. Let "
    "them differ in wording and length: some of one to three words, some questions. Write each on a line of its own, "
    "and nothing else.\n\nDocument: {document}\n\nQueries:"
)


class LlmGenerator:
    """Asks for all queries of a document in one request. The settings file is that of a judge, and may be the same."""

    def __init__(self, name: str, settings: GenerationSettings, store: Path | None = None) -> None:
        self.name, self.settings, self.api = f"llm:{name}", settings, read_api(name, LlmApi)
        for key, instead in (("top_k", "extra: {top_k: ...}"), ("max_length", "max_words")):
            if getattr(settings, key) is not None:
                raise UserError(f"{self.name}: {key} is for local models; set {instead} in the API's settings file.")
        self._tokens = settings.per_document * settings.query_tokens
        self._chat = ChatModel(self.name, self.api, store)

    @property
    def fingerprint(self) -> str:
        """Digest of URL, model, and form of requests."""
        return self.api.fingerprint

    def requests(self, documents: Sequence[str]) -> Sequence[str]:
        """The body of the request for each document."""
        settings, template = self.settings, self.settings.prompt or _PROMPT
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}

        def request(row: int) -> str:
            values = {"count": settings.per_document, "document": self.api.shortened(documents[row])}
            return chat_request(self.api, filled(template, values), self._tokens, **sampling)

        return Requests(len(documents), request)

    def answers(self, requests: Sequence[str]) -> Iterator[str | None]:
        """The answer to each request; None for one without a query, also when asked again."""
        answers = self._chat.answers(requests, self._check, self._tokens)
        return (None if answer is None else chat_text(answer, self.api) for answer in answers)

    def remaining(self, requests: Sequence[str]) -> Work:
        """The requests without an answer, with tokens and dollars."""
        left = self._chat.store.missing(requests)
        bill = self._chat.bill(requests, left, self._tokens)
        return Work(len(left), "documents", bill.seconds, bill)

    def _check(self, answer: Any) -> None:
        text = chat_text(answer, self.api)
        if not queries_in(text, 1):
            raise UnreadableError(f"no query in {text[:80]!r}")
