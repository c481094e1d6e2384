"""Conversations: raw queries that depend on earlier turns, and self-contained versions of them for teachers."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError, sample_of
from retrodistill.core.paths import path_of
from retrodistill.data.collection import Collection, check_parts, normalized
from retrodistill.data.records import id_of, text_of
from retrodistill.data.tables import read_records
from retrodistill.data.texts import Texts

SEPARATOR = " | "
EXPANSION_WORDS = 3
_REQUIRED, _OPTIONAL = ("conversation_id", "turn", "utterance"), ("rewrite", "response", "query_id", "history")
_FADING = 0.8  # weight of a word relative to the same word one question later
_COMMON = 0.1  # words in more than this share of the documents say nothing of a topic


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; the fields are the keys of a JSONL line.

    Attributes:
        conversation_id: Id of the conversation.
        turn: Position in the conversation; any increasing integers.
        utterance: The question in the user's words.
        rewrite: The same question, self-contained; '' if unknown. A first turn is its own rewrite.
        response: The answer, '' if unknown.
        query_id: Id of the turn as a query, to match judgments; ``<conversation_id>_<turn>`` if it is ''.
        history: What was said before, from the start, utterances and responses in turn. By default, the earlier turns
            of the conversation that are given.
    """

    conversation_id: str
    turn: int
    utterance: str
    rewrite: str = ""
    response: str = ""
    query_id: str = ""
    history: tuple[str, ...] | None = None

    @property
    def id(self) -> str:
        """Id of the turn as a query."""
        return self.query_id or f"{self.conversation_id}_{self.turn}"


@dataclass(frozen=True)
class Conversations:
    """Sets of queries with the same ids: one for the student, the others for its teacher.

    As in DiSCo (SIGIR 2025, arXiv 2410.14609), the teacher scores the rewrite and the student learns these scores for
    the raw query; the documents stay the same. Because the ids agree, a run of the rewrites is also a run of the raw
    queries.

    Attributes:
        raw: The current utterance followed by the history, latest turn first: encoders truncate the end of a long
            text, and the current utterance must not be lost.
        utterances: The current utterance alone.
        rewrites: The self-contained rewrites of the turns that have one, and first turns as they are.
        conversations: Number of conversations.
        earlier: By id, the earlier utterances of the conversation, all of them, latest first.
    """

    raw: Texts
    utterances: Texts
    rewrites: Texts
    conversations: int
    earlier: dict[str, list[str]] = field(repr=False)

    @classmethod
    def from_turns(
        cls, turns: Iterable[Turn], *, separator: str = SEPARATOR, history: int | None = None, responses: bool = True
    ) -> Conversations:
        """Join each turn with its history.

        Args:
            turns: In any order.
            separator: Between utterances. ``" [SEP] "`` is one token for BERT models but three for others.
            history: Maximum number of earlier turns; None for all.
            responses: Whether the history includes answers.
        """
        if history is not None and history < 0:
            raise UserError(f"history={history}: give a number of earlier turns, 0 or more.")
        by_conversation: dict[str, list[Turn]] = {}
        for turn in turns:
            by_conversation.setdefault(turn.conversation_id, []).append(turn)
        if not by_conversation:
            raise UserError("there is no turn in the conversations; give at least one.")
        raw: list[tuple[str, str]] = []
        rewrites: list[tuple[str, str]] = []
        utterances: list[tuple[str, str]] = []
        said: dict[str, list[str]] = {}
        for name, conversation in by_conversation.items():
            conversation.sort(key=lambda turn: turn.turn)
            twice = next((a.turn for a, b in itertools.pairwise(conversation) if a.turn == b.turn), None)
            if twice is not None:
                raise UserError(f"conversation {name!r} has turn {twice} twice; number its turns.")
            exchanges: list[tuple[str, str]] = []  # utterances and their responses, latest first
            for turn in conversation:
                before = exchanges if turn.history is None else _exchanges(turn.history)
                parts = [turn.utterance]
                for utterance, response in before[:history]:
                    parts += [response, utterance] if responses and response else [utterance]
                raw.append((turn.id, separator.join(parts)))
                utterances.append((turn.id, turn.utterance))
                said[turn.id] = [utterance for utterance, _ in before]
                if rewrite := turn.rewrite or ("" if before else turn.utterance):
                    rewrites.append((turn.id, rewrite))
                exchanges.insert(0, (turn.utterance, turn.response))
        made = [Texts.from_pairs(pairs) for pairs in (raw, utterances, rewrites)]
        return cls(made[0], made[1], made[2], len(by_conversation), said)

    def of(self, collection: Collection, queries: Texts | None = None) -> Collection:
        """Replace the queries of a collection with the raw queries, or with other ones of the same ids.

        Judgments of these queries (by id) are kept; others are dropped and counted in `Collection.warnings`.
        """
        queries = self.raw if queries is None else queries
        qrels, warnings = check_parts(collection.documents, queries, collection.qrels)
        return replace(
            collection, name=f"{collection.name}-conversations", queries=queries, qrels=qrels, warnings=warnings
        )

    def expansions(self, documents: Sequence[str], words: int = EXPANSION_WORDS) -> Texts:
        """Rewrites without a language model: each utterance with the most telling words of the earlier ones.

        A word counts by its inverse document frequency in the documents, times 0.8 to the power of the number of
        utterances since, summed over the utterances that have it. Words that no document has, or more than a tenth of
        them, are left out, and so are those of the utterance. Scripts without spaces between words get no expansion.

        Args:
            documents: The documents that are searched; they are read once.
            words: Most words that are added to an utterance, at least 1.
        """
        if words < 1:
            raise UserError(f"words={words}: an expansion has at least 1 word.")
        rarity = _rarity(set().union(*map(_words, self.utterances.texts)), documents)
        expanded = []
        for id_, utterance in self.utterances.items():
            weights: dict[str, float] = {}
            for age, text in enumerate(self.earlier[id_]):
                for word in sorted(_words(text) & rarity.keys() - _words(utterance)):
                    weights[word] = weights.get(word, 0.0) + rarity[word] * _FADING**age
            best = sorted(weights, key=lambda word: (-weights[word], word))[:words]
            expanded.append((id_, " ".join([utterance, *best])))
        return Texts.from_pairs(expanded)


def load_conversations(
    path: str | os.PathLike[str], *, separator: str = SEPARATOR, history: int | None = None, responses: bool = True
) -> Conversations:
    """Read a JSONL file of turns (see `read_turns`); other arguments as in `Conversations.from_turns`."""
    return Conversations.from_turns(read_turns(path), separator=separator, history=history, responses=responses)


def read_turns(path: str | os.PathLike[str]) -> list[Turn]:
    """Read a JSONL file of turns, whose keys are the attributes of `Turn`; the first three are required."""
    lines: dict[tuple[str, object], int] = {}
    turns = []
    for place, record in read_records(path_of(path), "turn", _REQUIRED, _OPTIONAL):
        turn = _turn(record, f"{path}, line", place)
        for what, key in (
            (f"turn {turn.turn} of conversation {turn.conversation_id!r}", (turn.conversation_id, turn.turn)),
            (f"query id {turn.id!r}", ("", turn.id)),
        ):
            if lines.setdefault(key, place) != place:
                where = f"{path}, line {place}"
                raise UserError(f"{where}: {what} is in line {lines[key]} already; give every turn its own.")
        turns.append(turn)
    return turns


def load_rewrites(path: str | os.PathLike[str]) -> Texts:
    """Read a JSONL file of ``{"query_id": .., "text": ..}``: rewrites for some or all queries."""
    first: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    where = f"{path}, line"
    for number, record in read_records(path_of(path), "rewrite", ("query_id", "text")):
        query = id_of(record["query_id"], "query_id", where, number)
        text = text_of(record["text"], "text", where, number)
        if not text.strip():
            raise UserError(f"{where} {number}: 'text' is empty; leave out queries without a rewrite.")
        if first.setdefault(query, number) != number:
            raise UserError(f"{where} {number}: query {query!r} has a rewrite in line {first[query]} already.")
        pairs.append((query, text))
    return Texts.from_pairs(pairs)


def with_rewrites(texts: Texts, rewrites: Texts) -> Texts:
    """The texts in their order, each replaced by its rewrite if it has one."""
    known = dict(zip(rewrites.ids, rewrites.texts, strict=True))
    return Texts.from_pairs((id_, known.get(id_, text)) for id_, text in zip(texts.ids, texts.texts, strict=True))


def check_rewrites(rewrites: Texts, queries: Texts, where: str) -> str:
    """Check that all rewrites belong to these queries; returns a line for the results about how many have one."""
    unknown = [query for query in rewrites.ids if query not in queries]
    if unknown:
        raise UserError(
            f"{where}: {len(unknown)} rewrites belong to queries that are not in the collection ({sample_of(unknown)})."
        )
    return (
        f"the teacher used rewrites for {len(rewrites)} of {len(queries)} queries and the original text for the "
        "others; the students always used the original text."
    )


def make_turns(queries: Texts, length: int = 4, *, common: float = 0.05, seed: int = 0) -> list[Turn]:
    """Make synthetic conversations from the queries of a collection.

    They are not real dialogue, and their rewrites are perfect: they show that the code works and how much a student
    uses the history, not its quality on real conversations. A conversation is a chain of queries in which each shares
    words with the previous one. An utterance is the query without the words of earlier queries, the first such run
    replaced by "it"; the rewrite is the query itself, under its own id. Because only uttered words are dropped, the
    history of a turn contains everything that its utterance lacks.

    Args:
        queries: Queries of a single split, so that no test query becomes the history of a training query.
        length: Maximum number of turns, at least 2; each query is in at most one conversation.
        common: Words in more than this share of the queries (and in more than two) link nothing and are never dropped.
        seed: Seed of the order in which conversations start.

    Returns:
        Turns, numbered from 1, of conversations of at least two turns; queries without a neighbor are left out.
    """
    if length < 2:
        raise UserError(f"length={length}: a conversation has at least 2 turns.")
    words = [_words(text) for text in queries.texts]
    frequency = Counter(word for in_query in words for word in in_query)
    limit = max(2.0, common * len(queries))
    words = [{word for word in in_query if frequency[word] <= limit} for in_query in words]
    chains = _chains(words, frequency, length, np.random.default_rng(seed).permutation(len(queries)).tolist())
    ids, texts = queries.ids, queries.texts
    turns = []
    for chain in chains:
        earlier: set[str] = set()
        for number, row in enumerate(chain, start=1):
            turns.append(Turn(ids[chain[0]], number, _shortened(texts[row], earlier), texts[row], query_id=ids[row]))
            earlier |= words[row]
    if not turns:
        shared = f"no two of {len(queries)} queries share a word that is not common"
        raise UserError(f"{shared}; no conversation can be made.")
    return turns


def _chains(words: Sequence[set[str]], frequency: Counter[str], length: int, order: Sequence[int]) -> list[list[int]]:
    """Greedy chains of rows that share words; each row is in at most one."""
    rows_with: dict[str, list[int]] = {}
    for row in order:
        for word in words[row]:
            rows_with.setdefault(word, []).append(row)
    free = set(order)

    def following(last: int, earlier: set[str]) -> int | None:
        """The free query that shares the rarest words with the last one and adds a new word, if any."""
        weight: dict[int, float] = {}
        for word in sorted(words[last]):
            for row in rows_with[word]:
                if row in free and not words[row] <= earlier:
                    weight[row] = weight.get(row, 0.0) + 1 / frequency[word]
        return max(weight, key=lambda row: (weight[row], -row)) if weight else None

    chains = []
    for start in order:
        chain, earlier = [start], set(words[start])
        while start in free and len(chain) < length and (added := following(chain[-1], earlier)) is not None:
            chain.append(added)
            earlier |= words[added]
        if len(chain) > 1:
            chains.append(chain)
            free -= set(chain)
    return chains


def _shortened(text: str, earlier: set[str]) -> str:
    """The text without the words of earlier queries; a pronoun replaces the first run of them."""
    kept: list[str] = []
    dropped = False
    for word in text.split():
        if not (parts := _words(word)) or not parts <= earlier:
            kept.append(word)
        elif not dropped:
            kept.append("it")
            dropped = True
    return " ".join(kept)


def _exchanges(history: Sequence[str]) -> list[tuple[str, str]]:
    """Utterances and their responses, latest first; the last may have none."""
    said = [text.strip() for text in history]
    return list(itertools.zip_longest(said[::2], said[1::2], fillvalue=""))[::-1]


def _words(text: str) -> set[str]:
    return set(normalized(text).split())


def _rarity(words: set[str], documents: Sequence[str]) -> dict[str, float]:
    """Inverse document frequency of the words that some documents have, and at most a tenth of them."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(_words(text) & words)
    most = max(1.0, _COMMON * len(documents))
    return {word: log((len(documents) + 1) / count) for word, count in counts.items() if count <= most}


def _turn(record: dict[str, Any], where: str, place: int) -> Turn:
    number = record["turn"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{where} {place}: 'turn' is {number!r}; expected an integer.")
    if not text_of(record["utterance"], "utterance", where, place).strip():
        raise UserError(f"{where} {place}: 'utterance' is empty; every turn has {', '.join(_REQUIRED)}.")
    rewrite, response, query_id, history = map(record.get, _OPTIONAL)
    if not isinstance(history, list | None):
        kind = type(history).__name__
        raise UserError(f"{where} {place}: 'history' is {history!r} ({kind}); expected a list of strings.")
    return Turn(
        id_of(record["conversation_id"], "conversation_id", where, place),
        number,
        record["utterance"],
        "" if rewrite is None else text_of(rewrite, "rewrite", where, place).strip(),
        "" if response is None else text_of(response, "response", where, place).strip(),
        "" if query_id is None else id_of(query_id, "query_id", where, place),
        None if history is None else _history(history, where, place),
    )


def _history(said: list[Any], where: str, place: int) -> tuple[str, ...]:
    texts = tuple(text_of(text, "history", where, place) for text in said)
    if not all(text.strip() for text in texts[::2]):
        raise UserError(f"{where} {place}: an utterance in 'history' is empty; utterances and responses are in turn.")
    return texts
