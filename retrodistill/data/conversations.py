"""Conversations: raw queries that depend on earlier turns, and their self-contained rewrites."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.data.collection import Collection, check_parts, normalized
from retrodistill.data.records import id_of, read_records, text_of
from retrodistill.data.texts import Texts

SEPARATOR = " | "
_REQUIRED = ("conversation_id", "turn", "utterance", "rewrite")
_OPTIONAL = ("response", "query_id")
_PRONOUN = "it"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; the fields are the keys of a line.

    Attributes:
        conversation_id: Id of the conversation.
        turn: Position in the conversation; any increasing integers.
        utterance: The question in the user's words.
        rewrite: The same question, self-contained.
        response: The answer, '' if unknown.
        query_id: Id of the turn as a query, so that judgments fit; ``<conversation_id>_<turn>`` where it is ''.
    """

    conversation_id: str
    turn: int
    utterance: str
    rewrite: str
    response: str = ""
    query_id: str = ""

    @property
    def id(self) -> str:
        """The id of the turn as a query."""
        return self.query_id or f"{self.conversation_id}_{self.turn}"


@dataclass(frozen=True)
class Conversations:
    """Two sets of queries with the same ids: one for the student and one for its teacher.

    DiSCo (SIGIR 2025, arXiv 2410.14609): the teacher's scores of the rewrite are the target of the raw query, while
    the documents stay as they are. Since the ids agree, a run of the rewrites is a run of the raw queries as it is.

    Attributes:
        raw: The current utterance, then what was said before it, the latest first: encoders cut the end of a long
            text, and the current utterance must not be what is lost.
        rewrites: The same queries in full.
        conversations: Number of conversations.
    """

    raw: Texts
    rewrites: Texts
    conversations: int

    @classmethod
    def from_turns(
        cls, turns: Iterable[Turn], *, separator: str = SEPARATOR, history: int | None = None, responses: bool = True
    ) -> Conversations:
        """Join each turn with its history.

        Args:
            turns: In any order.
            separator: Between utterances; ``" [SEP] "`` is one token to BERT's relatives and three to others.
            history: At most this many earlier turns; None for all.
            responses: Whether answers are part of the history.

        Raises:
            UserError: There is no turn, a conversation has a turn twice, or two turns have one query id.
        """
        if history is not None and history < 0:
            raise UserError(f"history={history}: it is a number of earlier turns, 0 or more.")
        talks: dict[str, list[Turn]] = {}
        for turn in turns:
            talks.setdefault(turn.conversation_id, []).append(turn)
        if not talks:
            raise UserError("there is no turn in the conversations; give at least one.")
        raw: list[tuple[str, str]] = []
        rewrites: list[tuple[str, str]] = []
        for name, talk in talks.items():
            talk.sort(key=lambda turn: turn.turn)
            twice = next((turn.turn for turn, after in itertools.pairwise(talk) if turn.turn == after.turn), None)
            if twice is not None:
                raise UserError(f"conversation {name!r} has turn {twice} twice; number its turns.")
            earlier: list[str] = []  # the latest first; a response follows its utterance, so it comes first here
            sizes: list[int] = []
            for turn in talk:
                kept = sum(sizes[:history])
                raw.append((turn.id, separator.join([turn.utterance, *earlier[:kept]])))
                rewrites.append((turn.id, turn.rewrite))
                exchange = [turn.response] * (responses and bool(turn.response)) + [turn.utterance]
                earlier, sizes = exchange + earlier, [len(exchange), *sizes]
        return cls(Texts.from_pairs(raw), Texts.from_pairs(rewrites), len(talks))

    def of(self, collection: Collection, raw: bool = True) -> Collection:
        """The collection with these queries in place of its own, for training and measuring.

        Judgments are kept where they name one of these queries by its id; others are dropped and counted in
        `Collection.warnings`.

        Args:
            collection: Documents and judgments.
            raw: Whether the raw queries, or the rewrites.
        """
        queries = self.raw if raw else self.rewrites
        qrels, warnings = check_parts(collection.documents, queries, collection.qrels)
        return Collection(
            f"{collection.name}-{'conversations' if raw else 'rewrites'}",
            collection.documents,
            titles=collection.titles,
            bodies=collection.bodies,
            queries=queries,
            qrels=qrels,
            warnings=warnings,
        )


def load_conversations(
    path: str | os.PathLike[str], *, separator: str = SEPARATOR, history: int | None = None, responses: bool = True
) -> Conversations:
    """Read a JSONL of turns; arguments as for `Conversations.from_turns`.

    Raises:
        UserError: It cannot be read, or a line is wrong; the message names the line.
    """
    return Conversations.from_turns(read_turns(path), separator=separator, history=history, responses=responses)


def read_turns(path: str | os.PathLike[str]) -> list[Turn]:
    """Read a JSONL of turns, with keys conversation_id, turn, utterance, rewrite and optionally response, query_id.

    Raises:
        UserError: The file cannot be read or is empty, or a line is no JSON object, lacks a key or has an unknown one,
            has an empty utterance or rewrite, or repeats a turn or a query id; the message names the line.
    """
    lines: dict[tuple[str, object], int] = {}
    turns = []
    for place, record in read_records(Path(path), "turn", _REQUIRED, _OPTIONAL):
        turn = _turn(record, f"{path}, line", place)
        for what, key in (
            (f"turn {turn.turn} of conversation {turn.conversation_id!r}", (turn.conversation_id, turn.turn)),
            (f"query id {turn.id!r}", ("", turn.id)),
        ):
            if lines.setdefault(key, place) != place:
                raise UserError(
                    f"{path}, line {place}: {what} is in line {lines[key]} already; give every turn its own."
                )
        turns.append(turn)
    return turns


def load_rewrites(path: str | os.PathLike[str]) -> Texts:
    """Read a JSONL of ``{"query_id": .., "text": ..}``, one better query for each query that has one.

    Raises:
        UserError: It cannot be read or is empty, or a line is malformed, has an empty text or repeats a query.
    """
    first: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    where = f"{path}, line"
    for number, record in read_records(Path(path), "rewrite", ("query_id", "text")):
        query = id_of(record["query_id"], "query_id", where, number)
        text = text_of(record["text"], "text", where, number)
        if not text.strip():
            raise UserError(f"{where} {number}: 'text' is empty; leave a query without a rewrite out.")
        if first.setdefault(query, number) != number:
            raise UserError(f"{where} {number}: query {query!r} has a rewrite in line {first[query]} already.")
        pairs.append((query, text))
    return Texts.from_pairs(pairs)


def with_rewrites(texts: Texts, better: Texts) -> Texts:
    """The texts in their order, each replaced by its better query where it has one."""
    known = dict(zip(better.ids, better.texts, strict=True))
    return Texts.from_pairs((id_, known.get(id_, text)) for id_, text in zip(texts.ids, texts.texts, strict=True))


def check_rewrites(better: Texts, queries: Texts, where: str) -> str:
    """Check that rewrites are for these queries.

    Returns:
        A line for the results: how many queries have one, and that the others stand for themselves.

    Raises:
        UserError: A rewrite of an unknown query, or none at all for these.
    """
    lost = [query for query in better.ids if query not in queries]
    if lost:
        raise UserError(f"{where}: {len(lost)} rewrites are of no query of the collection ({sample_of(lost)}).")
    return (
        f"the teacher was asked rewrites of {len(better)} of {len(queries)} queries, and the others unchanged; the "
        "students are asked the queries themselves."
    )


def make_turns(queries: Texts, length: int = 4, *, common: float = 0.05, seed: int = 0) -> list[Turn]:
    """Make synthetic conversations out of the queries of a collection.

    They are not real dialogue and their rewrites are perfect. They show that the code works and how much a student uses
    the history, not how good it is on real conversations. A conversation is a chain of queries, each sharing
    words with the previous one. The words that an earlier query has said are dropped from the utterance, the first of
    them replaced by "it"; the query itself is the rewrite, under its own id. A word is dropped only after it was
    uttered, so the history of a turn always holds what its utterance lacks.

    Args:
        queries: Of one split, so that no test query becomes the history of a training query.
        length: At most this many turns, at least 2; each query is in at most one conversation.
        common: Words in more than this share of the queries (and in more than two) link nothing and are never dropped.
        seed: Seed of the order in which conversations start.

    Returns:
        Turns, from 1, of conversations of at least two; a query without a neighbor is in none.

    Raises:
        UserError: A length below 2, or no two queries that share a word.
    """
    if length < 2:
        raise UserError(f"length={length}: a conversation has at least 2 turns.")
    words = [_words(text) for text in queries.texts]
    spread = Counter(word for found in words for word in found)
    limit = max(2.0, common * len(queries))
    words = [{word for word in found if spread[word] <= limit} for found in words]
    chains = _chains(words, spread, length, np.random.default_rng(seed).permutation(len(queries)).tolist())
    ids, texts = queries.ids, queries.texts
    turns = []
    for chain in chains:
        earlier: set[str] = set()
        for number, row in enumerate(chain, start=1):
            turns.append(Turn(ids[chain[0]], number, _shortened(texts[row], earlier), texts[row], query_id=ids[row]))
            earlier |= words[row]
    if not turns:
        raise UserError(
            f"no two of {len(queries)} queries share a word that is not common; no conversation can be made."
        )
    return turns


def _chains(words: Sequence[set[str]], spread: Counter[str], length: int, order: Sequence[int]) -> list[list[int]]:
    """Greedy chains of rows, no row in two of them."""
    holders: dict[str, list[int]] = {}
    for row in order:
        for word in words[row]:
            holders.setdefault(word, []).append(row)
    free = set(order)
    chains = []
    for start in order:
        chain, earlier = [start], set(words[start])
        while start in free and len(chain) < length:
            following = _following(words, spread, holders, chain[-1], earlier, free)
            if following is None:
                break
            chain.append(following)
            earlier |= words[following]
        if len(chain) > 1:
            chains.append(chain)
            free -= set(chain)
    return chains


def _following(
    words: Sequence[set[str]],
    spread: Counter[str],
    holders: dict[str, list[int]],
    last: int,
    earlier: set[str],
    free: set[int],
) -> int | None:
    """The free query that shares the rarest words with the last one and brings a new word; None where there is none."""
    weight: dict[int, float] = {}
    for word in sorted(words[last]):
        for row in holders[word]:
            if row in free and not words[row] <= earlier:
                weight[row] = weight.get(row, 0.0) + 1 / spread[word]
    return max(weight, key=lambda row: (weight[row], -row)) if weight else None


def _shortened(text: str, earlier: set[str]) -> str:
    """The text without the words of earlier queries. A pronoun replaces the first run of them."""
    kept: list[str] = []
    dropped = False
    for word in text.split():
        if (parts := _words(word)) and parts <= earlier:
            if not dropped:
                kept.append(_PRONOUN)
            dropped = True
        else:
            kept.append(word)
    return " ".join(kept)


def _words(text: str) -> set[str]:
    return set(normalized(text).split())


def _turn(record: dict[str, Any], where: str, place: int) -> Turn:
    number = record["turn"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{where} {place}: 'turn' is {number!r}; wanted an integer.")
    response, query_id = record.get("response"), record.get("query_id")
    return Turn(
        id_of(record["conversation_id"], "conversation_id", where, place),
        number,
        _string(record, "utterance", where, place),
        _string(record, "rewrite", where, place),
        "" if response is None else text_of(response, "response", where, place).strip(),
        "" if query_id is None else id_of(query_id, "query_id", where, place),
    )


def _string(record: dict[str, Any], key: str, where: str, place: int) -> str:
    text = text_of(record[key], key, where, place)
    if not text.strip():
        raise UserError(f"{where} {place}: {key!r} is empty; every turn has {', '.join(_REQUIRED)}.")
    return text
