"""Settings of generated queries."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from retrodistill.core.errors import UserError
from retrodistill.core.paths import short_text
from retrodistill.core.settings import Settings


class GenerationSettings(Settings):
    """How queries are generated for documents."""

    per_document: int = Field(default=3, ge=1, le=1000)
    """Most queries of a document. Equal ones are dropped, so that a document may have fewer."""
    documents: Annotated[int, Field(ge=1)] | None = None
    """Documents to draw, evenly by the seed; all by default. Blank documents and copies of others get no queries."""
    prompt: str | None = None
    """What the model gets: a text with `{document}`, and for a language model `{count}`; or the path of a text file
    that holds it, for example with a few documents and queries as examples (InPars, Promptagator). By default, a
    sequence-to-sequence model gets the document alone, and a language model is asked for a number of queries."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the sampling; 0 takes the most likely tokens."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Sample from the most likely tokens that have this probability together."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Sample from this number of most likely tokens; 25 by default. For local models."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a prompt that a local model reads; 350 by default. For an API, `max_words` in its settings file."""
    query_tokens: int = Field(default=64, ge=1)
    """Most tokens of a query."""
    seed: int = Field(default=0, ge=0)
    """Of the documents that are drawn, and of the sampling, as far as an API takes one."""

    @field_validator("prompt")
    @classmethod
    def _of_file(cls, prompt: str | None) -> str | None:
        if prompt is None or "{document}" in prompt:
            return prompt
        try:
            written = short_text(prompt).strip()
        except UserError as error:
            raise ValueError(f"prompt {prompt!r} lacks {{document}} and is not a readable file ({error})") from error
        if "{document}" not in written:
            raise ValueError(f"the prompt in {prompt} lacks {{document}}")
        return written
