"""What students and teachers are asked: the collection's queries, or conversations and rewrites in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from retrodistill.core.errors import UserError
from retrodistill.data import Collection, Texts
from retrodistill.data.collection import leaks_between
from retrodistill.data.conversations import (
    Conversations,
    check_rewrites,
    load_conversations,
    load_rewrites,
    make_turns,
    with_rewrites,
)
from retrodistill.recipes.settings import ConversationSettings, Recipe
from retrodistill.training.texts import training_queries

MADE = "made"
_MADE_NOTE = (
    "the conversations were made by chaining {} of the collection's {} queries and dropping the words that were said "
    "before: their rewrites are perfect, and they are no conversations of people."
)


@dataclass(frozen=True)
class Questions:
    """The queries of a job.

    Attributes:
        collection: With the queries that students are asked.
        train: Training queries.
        test: Test queries.
        rewrites: What teachers are asked in the place of queries, by their ids; None where the same.
        notes: What a reader of the results should know.
    """

    collection: Collection
    train: Texts
    test: Texts
    rewrites: Texts | None
    notes: list[str]

    @property
    def excluded_queries(self) -> Texts:
        """Texts that must not be trained on: the test queries, and their rewrites."""
        if self.rewrites is None:
            return self.test
        better = with_rewrites(self.test, self.rewrites)
        return self.test + Texts.from_pairs((f"rewrite:{id_}", better[id_]) for id_ in better.ids)


def questions_of(recipe: Recipe, loaded: Collection, test_of: Callable[[Collection], Texts]) -> Questions:
    """The recipe's queries: none that trains is a test query, by id, by its text or by its rewrite's.

    Args:
        recipe: The recipe.
        loaded: Its collection.
        test_of: Gives the test queries of a collection.

    Raises:
        UserError: A split is lacking, or conversations and rewrites do not fit the collection.
    """
    collection, rewrites, notes = loaded, None, []
    if recipe.conversations:
        found = _conversations(recipe, recipe.conversations, loaded, test_of(loaded))
        collection, rewrites = found.of(loaded), found.rewrites
        if recipe.conversations.path == MADE:
            notes.append(_MADE_NOTE.format(len(found.raw), len(loaded.queries)))
        else:
            told = f"{len(found.raw)} queries of {found.conversations} conversations"
            notes.append(f"{told} in the place of the collection's; their rewrites stand for themselves.")
    elif recipe.rewrites:
        rewrites = load_rewrites(recipe.rewrites)
        notes.append(check_rewrites(rewrites, collection.queries, recipe.rewrites))
    test = test_of(collection)
    train, warning = training_queries(collection, recipe.split.train, test)
    if rewrites is not None:
        leaked = {
            leak.train_id for leak in leaks_between(with_rewrites(train, rewrites), with_rewrites(test, rewrites))
        }
        if leaked:  # whoever is asked them
            train = train.select([query for query in train.ids if query not in leaked])
            notes.append(f"{len(leaked)} training queries have the rewrite of a test query: they are dropped.")
        if not any(query in rewrites for query in train.ids):
            raise UserError("no training query has a rewrite: nothing is better about what the teacher is asked.")
    if recipe.conversations and recipe.conversations.teacher == "raw":
        rewrites = None
        notes.append("teachers were asked the conversations as the students are, not the rewrites: a control.")
    return Questions(collection, train, test, rewrites, [*([warning] if warning else []), *notes])


def _conversations(
    recipe: Recipe, settings: ConversationSettings, collection: Collection, test: Texts
) -> Conversations:
    if settings.path != MADE:
        return load_conversations(settings.path, history=settings.history, responses=settings.responses)
    train, _ = training_queries(collection, recipe.split.train, test)
    if not len(train):
        raise UserError("conversations: made chains training queries, and there are none; give a JSONL of turns.")
    turns = [turn for queries in (train, test) for turn in make_turns(queries, seed=recipe.seed)]
    return Conversations.from_turns(turns, history=settings.history, responses=settings.responses)
