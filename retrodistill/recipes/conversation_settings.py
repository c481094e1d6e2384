"""Conversations in the place of a collection's queries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retrodistill.training.settings import Settings


class ConversationSettings(Settings):
    """Conversations whose raw queries are asked, while the teacher is asked their rewrites (DiSCo, SIGIR 2025).

    Attributes:
        path: A JSONL of turns (see `retrodistill.data.conversations.read_turns`); ``made`` chains the
            collection's own queries to conversations, which are no conversations of people.
        history: At most so many earlier turns stand behind a query; all by default.
        responses: Whether answers are part of the history.
        teacher: What the teacher is asked: ``rewrites``, or ``raw`` as the students are, which is the control.
    """

    path: str
    history: int | None = Field(default=None, ge=0)
    responses: bool = True
    teacher: Literal["rewrites", "raw"] = "rewrites"
