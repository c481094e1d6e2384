"""Language models behind a chat API (in OpenAI's form: OpenAI, vLLM, Ollama, llama.cpp...), and their answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jmespath
import numpy as np
import pyarrow as pa

from retrodistill.core.cache import cache_folder
from retrodistill.core.engines import Computation
from retrodistill.core.http import ApiSettings, Client, UnreadableError, filled, tokens_of
from retrodistill.core.manifest import Manifest
from retrodistill.core.spending import Bill, current_spending
from retrodistill.core.stores import slug, text_keys
from retrodistill.encoders.embeddings import KeyedStore

_ANSWER = "choices[0].message.content || message.content"


def chat_request(settings: ApiSettings, prompt: str, tokens: int, **more: Any) -> str:
    """The body of a request for one prompt, as JSON; `tokens` are the most of the answer.

    `more` are other keys of OpenAI's form, and placeholders of a body of the user's own.
    """
    body = settings.body or {
        "model": "{model}",
        "messages": [{"role": "user", "content": "{prompt}"}],
        "max_tokens": "{tokens}",
        **more,
    }
    placeholders = {"model": settings.model, "prompt": prompt, "tokens": tokens, **more}
    return as_json({**filled(body, placeholders), **settings.extra})


def chat_text(answer: Any, settings: ApiSettings) -> str:
    """The text of an answer; an `UnreadableError` if it has none."""
    text = jmespath.search(settings.answer or _ANSWER, answer)
    if not isinstance(text, str):
        raise UnreadableError(f"no text but {type(text).__name__}")
    return re.sub(r"(?s).*</think>", "", text)  # what reasoning models say first


class ChatModel:
    """A model whose answers are kept by their whole requests, so that none is paid for twice.

    Args:
        name: Of the model, for messages.
        settings: Of the API.
        root: Folder for the answers; the shared cache by default.
    """

    def __init__(self, name: str, settings: ApiSettings, root: Path | None = None) -> None:
        self.name, self.settings, self.root = name, settings, root

    @cached_property
    def store(self) -> AnswerStore:
        """All answers of the model, to whatever was asked: a request says everything."""
        owner = Manifest("language model", {"url": self.settings.url, "model": self.settings.model})
        return AnswerStore(self.name, owner, self.root)

    def answers(self, requests: Sequence[str], check: Callable[[Any], Any], tokens: int) -> Iterator[Any]:
        """The answer to each request, from the store or the API; None for one that cannot be read.

        `check` raises `UnreadableError` for an answer that is not one; `tokens` are the most of an answer.
        """
        if len(self.store.missing(requests)):
            client = Client(self.name, self.settings, current_spending())

            def read(answer: Any) -> Any:
                check(answer)
                return answer

            def ask(part: Sequence[str]) -> list[Any]:
                return [client.ask(json.loads(body), read, tokens) for body in part]

            self.store.fill(requests, Computation(ask, part=1, threads=self.settings.concurrency))
        return self.store.gather(requests)

    def bill(self, requests: Sequence[str], left: np.ndarray, tokens: int, times: np.ndarray | None = None) -> Bill:
        """What the requests at positions `left` will cost, each sent once or the number of (requests,) `times`."""
        times = np.ones(len(requests), dtype=int) if times is None else times
        count = int(times[left].sum())
        sent = tokens_of(sum(int(times[row]) * len(requests[row].encode()) for row in left.tolist()))
        return self.settings.bill(count, sent, count * tokens)


class Requests(Sequence[str]):
    """Requests, or texts in them, made when they are needed: those of a training set take gigabytes."""

    def __init__(self, count: int, make: Callable[[int], str]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < self._count:
            raise IndexError(row)
        return self._make(int(row))


class AnswerStore(KeyedStore):
    """Answers of a language model as JSON, by the JSON of their requests."""

    unit = "requests"

    def __init__(self, name: str, owner: Manifest, root: Path | None = None) -> None:
        folder = root / slug(name) if root else cache_folder() / "answers" / f"{slug(name)}-{owner.fingerprint}"
        self.name = name
        super().__init__(folder, owner, ".parquet")

    def missing(self, bodies: Sequence[str]) -> np.ndarray:
        """Positions of the distinct requests without an answer, in order."""
        return self._absent(text_keys(bodies))

    def fill(self, bodies: Sequence[str], computation: Computation, *, longest_first: bool = False) -> None:
        """Ask what has no answer, in order. Safe to kill and to run concurrently: only requests in flight are lost."""
        sizes = np.fromiter((len(body) if longest_first else 0 for body in bodies), np.int64, len(bodies))
        self._fill(text_keys(bodies), sizes, bodies.__getitem__, computation, f"asking ({self.name})")

    def gather(self, bodies: Sequence[str]) -> Iterator[Any]:
        """The answer to each request; None for one that could not be read."""
        rows = self._index.find(text_keys(bodies))
        return (None if row < 0 else json.loads(self._answers[int(row)].as_py()) for row in rows)

    def _part(self, items: Sequence[str], results: Sequence[Any]) -> pa.Table:
        known = [(body, as_json(answer)) for body, answer in zip(items, results, strict=True) if answer is not None]
        keys = text_keys([body for body, _ in known])
        return pa.table({"key": pa.array(keys), "answer": pa.array([answer for _, answer in known], pa.large_string())})

    def _read(self, tables: list[pa.Table]) -> np.ndarray:
        table = pa.concat_tables([self._part([], []), *tables])
        self._answers = table["answer"]
        return table["key"].to_numpy()


def as_json(value: Any) -> str:
    """A value as the JSON that requests and answers are kept as: the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
