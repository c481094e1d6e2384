"""Embeddings of a model behind an HTTP API, such as OpenAI's and those that follow it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jmespath
import numpy as np
from pydantic import Field

from retrodistill.core.engines import Computation
from retrodistill.core.errors import UserError
from retrodistill.core.http import ApiSettings, Client, UnreadableError, filled, read_api, tokens_of
from retrodistill.core.spending import Bill, current_spending
from retrodistill.data.texts import is_blank
from retrodistill.encoders.contract import Role
from retrodistill.encoders.encoder import Encoder
from retrodistill.encoders.vectors import normalized

_BODY = {"model": "{model}", "input": "{texts}"}
_ANSWER = "data[*].{index: index, vector: embedding} || embeddings || @"


class EmbeddingsApi(ApiSettings):
    """A model that embeds texts; its body may hold `{texts}`, a list, and `{role}`, `query` or `document`."""

    dimension: int = Field(ge=1)
    """Numbers in a vector. It is needed before the first request."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How vectors are compared."""
    prompts: dict[Role, str] = Field(default_factory=dict)
    """What is put before the texts of each role."""
    roles: dict[Role, str] = Field(default_factory=dict)
    """The API's words for the roles, which replace `{role}`, such as `search_query` and `search_document`."""


class ApiEncoder(Encoder):
    """Encodes texts by requests; what was embedded is in the store, so that no text is paid for twice.

    Blank texts are not sent: their vectors are zero. The name is ``embeddings-api:FILE`` or
    ``embeddings-api:URL#MODEL``.
    """

    kind = "embeddings-api"
    is_static = False
    has_weights = False

    def __init__(self, name: str, settings: EmbeddingsApi) -> None:
        super().__init__(None, name)
        self.settings, self.part, self.threads = settings, settings.batch_size, settings.concurrency
        self._client: Client | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str) -> ApiEncoder:
        """The model of a settings file or URL; nothing is sent."""
        return cls(f"{cls.kind}:{name}", read_api(name, EmbeddingsApi))

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.settings.dimension

    @property
    def similarity(self) -> str:
        """``cosine`` or ``dot``."""
        return self.settings.similarity

    def prompt(self, role: Role) -> str:
        """What is put before a text of a role."""
        return self.settings.prompts.get(role, "")

    def needs_store(self, role: Role) -> bool:
        """As `TextModel.needs_store`."""
        return True

    def contract(self, role: Role) -> dict[str, Any]:
        """URL and model, what a request says, prompt, similarity and dimension: all that is known of an API."""
        return {
            "model": self.settings.model or self.settings.url,
            "api": self.settings.fingerprint,
            "role": self.settings.roles.get(role, ""),
            "prompt": self.prompt(role),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }

    def bill(self, texts: Sequence[str], role: Role) -> Bill:
        """Requests, tokens and cost of embedding texts."""
        prompt, settings = len(self.prompt(role).encode()), self.settings
        sizes = [prompt + len(settings.shortened(text).encode()) for text in texts if not is_blank(text)]
        return settings.bill(-(-len(sizes) // settings.batch_size), tokens_of(sum(sizes)))

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> np.ndarray:
        """(n, dimension) float32; unit vectors for cosine.

        Raises:
            UserError: As `Client.ask`, or an answer without the vectors.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        asked = [row for row, text in enumerate(texts) if not is_blank(text)]
        parts = [asked[start : start + self.settings.batch_size] for start in range(0, len(asked), self.part or 1)]
        client = self._opened()
        threads = min(self.threads, len(parts))
        work = Computation(lambda rows: self._ask(client, [texts[row] for row in rows], role), threads=threads)
        for rows, answered in work.here(parts):
            vectors[rows] = answered
        return normalized(vectors) if self.similarity == "cosine" else vectors

    def _opened(self) -> Client:
        spending = current_spending()
        with self._lock:  # threads share the client, and with it the limit of the rate
            if self._client is None or self._client.is_stopped or self._client.spending is not spending:
                self._client = Client(self.name, self.settings, spending)
            return self._client

    def _ask(self, client: Client, texts: list[str], role: Role) -> np.ndarray:
        settings = self.settings
        sent = [self.prompt(role) + settings.shortened(text) for text in texts]
        values = {"model": settings.model, "texts": sent, "role": settings.roles.get(role, role)}
        body = {**filled(settings.body or _BODY, values), **settings.extra}
        vectors = client.ask(body, _reader(len(texts), settings))
        if vectors is None:
            raise UserError(f"{self.name} gave no readable vectors for {texts[0][:60]!r}...; run again to ask again.")
        return vectors


def _reader(count: int, settings: EmbeddingsApi) -> Callable[[Any], np.ndarray]:
    """What finds the vectors of `count` texts in an answer."""
    expression = jmespath.compile(settings.answer or _ANSWER)

    def read(answer: Any) -> np.ndarray:
        rows = expression.search(answer)
        if not isinstance(rows, list) or len(rows) != count:
            found = f"{len(rows)} items" if isinstance(rows, list) else type(rows).__name__
            raise UnreadableError(f"{found} in place of {count} vectors")
        vectors = np.full((count, settings.dimension), np.nan, dtype=np.float32)
        for place, row in enumerate(rows):
            index, vector = (row.get("index"), row.get("vector")) if isinstance(row, dict) else (place, row)
            index = place if index is None else index
            if not isinstance(index, int) or not 0 <= index < count or not isinstance(vector, list):
                raise UnreadableError(f"item {place} is not a vector with an index from 0 to {count - 1}")
            if len(vector) != settings.dimension:
                raise UserError(
                    f"{settings.url} gives vectors of {len(vector)} dimensions, the settings say dimension: "
                    f"{settings.dimension}; correct that."
                )
            try:
                vectors[index] = vector
            except (TypeError, ValueError) as error:
                raise UnreadableError(f"the vector of item {place} holds something that is not a number") from error
        if not np.isfinite(vectors).all():
            raise UnreadableError("vectors that are missing or not finite")
        return vectors

    return read
