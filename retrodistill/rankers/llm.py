"""A language model as a judge of documents, behind a chat API (OpenAI's form: OpenAI, vLLM, Ollama, llama.cpp...)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jmespath
import numpy as np
from pydantic import Field, field_validator, model_validator

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.http import ApiSettings, UnreadableError, filled, read_api
from retrodistill.core.paths import short_text
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.names import ModelName
from retrodistill.rankers.chat import ChatModel, Requests, chat_request, chat_text
from retrodistill.rankers.cross_encoder import with_known_scores
from retrodistill.rankers.protocol import Ranker, Work
from retrodistill.runs.run import Run

_LOGPROBS = "choices[0].logprobs.content[0].top_logprobs[*].[token, logprob]"
_GRADE_TOKENS, _TOKENS_PER_PLACE = 16, 6  # of an answer: a grade, and one document of a ranking
_PROMPTS = {
    "pointwise": "How relevant is the passage to the query? Answer with one number from 0 (not relevant) to {best} "
    "(answers it fully), and nothing else.\n\nQuery: {query}\n\nPassage: {document}\n\nNumber:",
    "pairwise": "Which of two passages is more relevant to the query?\n\nQuery: {query}\n\nPassage A: {first}\n\n"
    "Passage B: {second}\n\nAnswer with A or B, and nothing else.",
    "listwise": "Rank {count} passages by their relevance to the query, the most relevant first. Answer with their "
    "numbers, such as [2] > [1] > [3], and nothing else.\n\nQuery: {query}\n\n{passages}\n\nQuery: {query}\n\nRanking:",
}
_NEEDED = {
    "pointwise": ("{query}", "{document}"),
    "pairwise": ("{query}", "{first}", "{second}"),
    "listwise": ("{query}", "{passages}"),
}


class LlmApi(ApiSettings):
    """A language model; its body may hold `{prompt}` and `{tokens}`, the most tokens of an answer."""

    judge: Literal["pointwise", "pairwise", "listwise"] = "pointwise"
    """`pointwise`: a grade for each document. `listwise`: rankings of overlapping windows, from the last to the first
    (RankGPT, arXiv 2304.09542). `pairwise`: neighbors are compared in both orders, from the last to the first (PRP,
    arXiv 2306.17563)."""
    prompt: str | None = None
    """The prompt, with `{query}` and `{document}`, `{first}` and `{second}`, or `{passages}` and `{count}`; or the path
    of a text file that holds it. By default, one for each judge."""
    best: int = Field(default=3, ge=1, le=100)
    """Pointwise: the highest grade; the lowest is 0."""
    logprobs: bool = False
    """Pointwise: the grade is the mean over the probabilities of the grades' tokens, for APIs that give them."""
    depth: int = Field(default=100, ge=2)
    """Listwise and pairwise: documents of a query that are ranked, by the candidates' own order. Those below share the
    lowest score."""
    window: int = Field(default=20, ge=2)
    """Listwise: documents per request."""
    step: int = Field(default=10, ge=1)
    """Listwise: documents by which the window moves."""
    passes: int = Field(default=1, ge=1)
    """Listwise and pairwise: times that the list is gone through. After n passes, the first n are in order."""

    @field_validator("prompt")
    @classmethod
    def _of_file(cls, prompt: str | None) -> str | None:
        if prompt is None or "{" in prompt:
            return prompt
        try:
            return short_text(prompt)
        except UserError as error:
            raise ValueError(f"prompt {prompt!r} has no placeholders and is not a readable file ({error})") from error

    @model_validator(mode="after")
    def _fits(self) -> LlmApi:
        missing = [mark for mark in _NEEDED[self.judge] if mark not in self.template]
        if missing:
            raise ValueError(f"a {self.judge} prompt needs {', '.join(_NEEDED[self.judge])}; it lacks {missing[0]}")
        if self.judge == "listwise" and self.step > self.window:
            raise ValueError(f"step {self.step} exceeds window {self.window}: documents between them are never ranked")
        if self.logprobs and self.judge != "pointwise":
            raise ValueError("logprobs is for judge: pointwise")
        return self

    @property
    def template(self) -> str:
        """The prompt before it is filled."""
        return self.prompt or _PROMPTS[self.judge]

    @property
    def fingerprint(self) -> str:
        """As `ApiSettings.fingerprint`, with what else decides the scores."""
        names = ("judge", "best", "logprobs", "depth", "window", "step", "passes")
        return digest(super().fingerprint, self.template, [getattr(self, name) for name in names])

    @property
    def answer_tokens(self) -> int:
        """The most tokens of an answer."""
        return _TOKENS_PER_PLACE * self.window if self.judge == "listwise" else _GRADE_TOKENS

    def windows(self, count: int) -> list[tuple[int, int]]:
        """First and last place (exclusive) of each request about a list of `count` documents, in their order."""
        if count < 2:
            return []
        width, step = (self.window, self.step) if self.judge == "listwise" else (2, 1)
        starts = [*range(count - width, 0, -step), 0] if count > width else [0]
        return [(start, min(start + width, count)) for start in starts] * self.passes

    def request(self, **values: Any) -> str:
        """The body of a request for one prompt, as JSON."""
        prompt = filled(self.template, {"best": self.best, **values})
        more = {"logprobs": True, "top_logprobs": 20} if self.logprobs else {}
        return chat_request(self, prompt, self.answer_tokens, temperature=0, **more)


class LlmRanker(Ranker):
    """Judgments of a language model; every answer is kept by its whole request, so that none is paid for twice.

    The name is ``llm:FILE`` or ``llm:URL#MODEL``. Scores are grades from 0 to `best` (pointwise), or 1 for the last of
    the ranked documents and up by one (listwise, pairwise) with 0 for those below `depth`. A pair, or with rankings a
    query, whose answer cannot be read, also when asked again, is left out: it never gets a score of 0.
    """

    kind = "llm"
    can_score_pairs = True

    def __init__(self, settings: LlmApi, name: str, root: Path | None = None) -> None:
        self.settings, self.name = settings, name
        self._chat = ChatModel(name, settings, root)

    @classmethod
    def of_name(cls, name: ModelName, store: Path | None) -> LlmRanker:
        """The model of a settings file or URL; nothing is sent."""
        return cls(read_api(name.name, LlmApi), str(name), store)

    def fingerprint(self, collection: Collection) -> str:
        """Digest of URL, model, prompt and how they are used; what the API changes behind them is not known here."""
        return self.settings.fingerprint

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with judgments, without those that have none; their number is logged."""
        texts = _Listed(queries, collection.documents, pairs, self.settings)
        scores = self._grades(texts) if self.settings.judge == "pointwise" else self._rankings(texts)
        return with_known_scores(pairs, scores, self.name)

    def remaining(self, queries: Texts, collection: Collection, pairs: Run) -> Work:
        """Requests that have no answer yet, with tokens and cost; of rankings, all if the first window has none."""
        settings, texts = self.settings, _Listed(queries, collection.documents, pairs, self.settings)
        if settings.judge == "pointwise":
            asked, times, items = texts.grades(), np.ones(len(pairs), dtype=int), np.ones(len(pairs), dtype=int)
        else:
            windows = [(query, own) for query, own in enumerate(texts.windows) if own]
            asked = texts.rankings([(query, slice(*own[0])) for query, own in windows])
            per_window = len(asked) // max(1, len(windows))  # requests
            times = np.repeat([len(own) for _, own in windows], per_window)
            items = np.repeat([len(texts.orders[query]) for query, _ in windows], per_window) / max(1, per_window)
        left = self._chat.store.missing(asked)
        bill = self._chat.bill(asked, left, settings.answer_tokens, times)
        return Work(round(items[left].sum()), "pairs", bill.seconds, bill)

    @property
    def queries_by(self) -> str:
        """Its own name: it reads queries and documents together."""
        return self.name

    def _grades(self, texts: _Listed) -> np.ndarray:
        """(pairs,) grades, NaN where there is none."""
        answers = self._answers(texts.grades())
        return np.array([math.nan if answer is None else _grade(answer, self.settings) for answer in answers])

    def _rankings(self, texts: _Listed) -> np.ndarray:
        """(pairs,) places from the end of each query's ranking, NaN for a query without one."""
        failed: set[int] = set()
        for number in range(max(map(len, texts.windows), default=0)):
            # the next window of every query at once: those of one query depend on each other
            windows = [(query, own[number]) for query, own in enumerate(texts.windows) if number < len(own)]
            places = [(query, slice(*where)) for query, where in windows if query not in failed]
            answers = self._answers(texts.rankings(places))
            for query, where in places:
                own = list(itertools.islice(answers, 2 if self.settings.judge == "pairwise" else 1))
                if None in own:
                    failed.add(query)
                else:
                    texts.orders[query][where] = self._reordered(texts.orders[query][where], own)
        return texts.scores(failed)

    def _reordered(self, rows: np.ndarray, answers: Sequence[Any]) -> np.ndarray:
        if self.settings.judge == "listwise":
            return rows[_permutation(chat_text(answers[0], self.settings), len(rows))]
        # both orders have to agree, since a model prefers a place
        swaps = [_choice(chat_text(answer, self.settings)) for answer in answers] == ["B", "A"]
        return rows[::-1] if swaps else rows

    def _answers(self, requests: Sequence[str]) -> Iterator[Any]:
        """The answer to each request; None for one that cannot be read."""
        settings = self.settings
        return self._chat.answers(requests, lambda answer: _check(answer, settings), settings.answer_tokens)


@dataclass
class _Listed:
    """The documents of each query in their order, and requests about them."""

    queries: Texts
    documents: Texts
    pairs: Run
    settings: LlmApi

    def __post_init__(self) -> None:
        rows, self._columns = self.pairs.positions(self.queries, self.documents)
        self._query = [self.queries.column[int(row)] for row in rows[self.pairs.bounds[:-1]]] if len(rows) else []
        ranks, depth = self.pairs.ranks, self.settings.depth
        ordered = [first + np.argsort(ranks[first:last]) for first, last in itertools.pairwise(self.pairs.bounds)]
        self.orders = [order[:depth] for order in ordered]  # rows of pairs, the best first
        self.windows = [self.settings.windows(len(order)) for order in self.orders]

    def grades(self) -> Requests:
        """The request for the grade of each pair."""
        return Requests(len(self.pairs), self._graded)

    def rankings(self, places: Sequence[tuple[int, slice]]) -> Requests:
        """The requests for the order of parts of queries' lists: one for each, or two for a pair in both orders."""
        orders = {place: self.orders[query][where] for place, (query, where) in enumerate(places)}
        if self.settings.judge == "listwise":
            return Requests(len(places), lambda place: self._ranked(places[place][0], orders[place]))
        return Requests(2 * len(places), lambda row: self._compared(places[row // 2][0], orders[row // 2], row % 2))

    def _graded(self, row: int) -> str:
        query = self._query[self.pairs.query_codes[row]]
        return self.settings.request(query=query, document=self._document(row))

    def _ranked(self, query: int, rows: np.ndarray) -> str:
        texts = [f"[{place}] {self._document(int(row))}" for place, row in enumerate(rows, start=1)]
        return self.settings.request(query=self._query[query], passages="\n\n".join(texts), count=len(texts))

    def _compared(self, query: int, rows: np.ndarray, is_turned: int) -> str:
        first, second = (self._document(int(row)) for row in (rows[::-1] if is_turned else rows))
        return self.settings.request(query=self._query[query], first=first, second=second)

    def scores(self, failed: set[int]) -> np.ndarray:
        """(pairs,) float64 by the orders."""
        scores = np.zeros(len(self.pairs))
        for query, order in enumerate(self.orders):
            scores[order] = np.arange(len(order), 0, -1)
            if query in failed:
                scores[self.pairs.bounds[query] : self.pairs.bounds[query + 1]] = np.nan
        return scores

    def _document(self, row: int) -> str:
        return self.settings.shortened(self.documents.column[int(self._columns[row])])


def _check(answer: Any, settings: LlmApi) -> None:
    """Raise `UnreadableError` for an answer without a judgment."""
    if settings.judge == "pointwise":
        _grade(answer, settings)
    elif settings.judge == "pairwise":
        _choice(chat_text(answer, settings))
    elif not _numbers(chat_text(answer, settings)):
        raise UnreadableError(f"no ranking in {chat_text(answer, settings)[:80]!r}")


def _grade(answer: Any, settings: LlmApi) -> float:
    """The one grade that an answer names, or the mean of the grades by the probabilities of their tokens."""
    if settings.logprobs:
        return _mean_grade(jmespath.search(_LOGPROBS, answer) or [], settings.best)
    text = chat_text(answer, settings)
    numbers = [float(number) for number in re.findall(r"(?<![\d.])\d+(?:\.\d+)?", text)]
    fitting = {number for number in numbers if number <= settings.best}
    if len(fitting) != 1:
        raise UnreadableError(f"no single grade from 0 to {settings.best} in {text[:80]!r}")
    return fitting.pop()


def _mean_grade(tokens: Sequence[Sequence[Any]], best: int) -> float:
    weights = np.zeros(best + 1)
    for token, logprob in tokens:
        if str(token).strip().isdigit() and int(token) <= best and isinstance(logprob, (int, float)):
            weights[int(token)] += math.exp(logprob)
    if not weights.sum():
        raise UnreadableError("no probabilities of grades")
    return float(weights @ np.arange(best + 1) / weights.sum())


def _choice(text: str) -> str:
    letters = set(re.findall(r"\b[AB]\b", text))
    if len(letters) != 1:
        raise UnreadableError(f"neither A nor B in {text[:80]!r}")
    return letters.pop()


def _numbers(text: str) -> list[int]:
    bracketed = re.findall(r"\[(\d+)\]", text)
    return [int(number) for number in bracketed or re.findall(r"\d+", text)]


def _permutation(text: str, count: int) -> list[int]:
    """Places in the answer's order, from 0: each once, those that it leaves out last, in their order (RankGPT)."""
    named = [number - 1 for number in dict.fromkeys(_numbers(text)) if 1 <= number <= count]
    return [*named, *(place for place in range(count) if place not in named)]
