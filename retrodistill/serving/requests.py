"""The bodies of requests, checked with the sentences that recipes and options get."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import Field

from retrodistill.core.json_files import parse_json
from retrodistill.core.settings import Settings, validated
from retrodistill.serving.guard import ApiError

Body = TypeVar("Body", bound=Settings)


class SearchBody(Settings):
    """A query for one system."""

    query: str | None = None
    """The text; or leave it out and give `query_id`."""
    query_id: str | None = None
    """A query of the test set."""
    system: str | None = None
    """Name of a system of `/info`; by default the first student."""
    k: int | None = None
    """Documents; 10 by default, or all of fewer."""
    filter: Any = None
    """Conditions on fields: an object such as `{"year": {">=": 2020}}`, a string such as `year>=2020`, or a list of
    strings, which must all hold."""
    texts: int | None = Field(default=None, ge=0)
    """How many of the documents come with title, text, and fields; all by default."""
    characters: int = Field(default=1000, ge=1)
    """Of a text; the rest is cut."""


class EmbedBody(Settings):
    """Texts for an encoder."""

    texts: str | list[str]
    """One text, or several."""
    system: str | None = None
    """Name of a system of `/info`; by default the first student."""
    role: Literal["query", "document"] = "query"
    """What the texts are."""


class JudgeBody(Settings):
    """A judgment of a document."""

    query: str | None = None
    """The text of the query; or give `query_id`."""
    query_id: str | None = None
    """A query of the test set."""
    document_id: str
    """A document that is served."""
    relevance: int = Field(ge=0, le=100)
    """0 for not relevant, 1 or a higher grade for relevant."""


class QueriesQuery(Settings):
    """Which test queries are listed."""

    first: str | None = None
    """The system that the differences are from."""
    second: str | None = None
    """The system whose gain or loss is listed."""
    order: Literal["lost", "won", "file"] = "lost"
    """Largest losses of the second system first, largest gains first, or the order of the collection."""
    offset: int = Field(default=0, ge=0)
    """Queries that are passed over."""
    limit: int = Field(default=50, ge=1, le=500)
    """Queries that are listed."""


class EmbeddingsBody(Settings):
    """As in OpenAI's API."""

    input: str | list[str]
    """One text, or several."""
    model: str | None = None
    """Name of a system of `/info`; by default the first student."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or little-endian float32 in base64."""
    dimensions: int | None = None
    """Only the model's own number."""
    input_type: Literal["query", "document"] = "query"
    """What the texts are, as in the APIs of Cohere and Voyage."""
    user: str | None = None
    """Ignored."""


class DocumentText(Settings):
    """A document of a request to re-rank."""

    text: str
    """Its text."""


class RerankBody(Settings):
    """As in Cohere's API."""

    query: str
    """The text of the query."""
    documents: list[str | DocumentText]
    """Texts, or objects with a `text`."""
    model: str | None = None
    """Name of a system of `/info` that re-ranks; by default the first one."""
    top_n: int | None = Field(default=None, ge=1)
    """Documents of the answer, best first; all by default."""
    return_documents: bool = False
    """Whether their texts come back."""


def body_of(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that reads a JSON object as this kind; an ApiError (400) for what is not JSON, else a UserError."""

    async def read(request: Request) -> Body:
        try:
            content = parse_json(await request.body())
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON ({error}).") from error
        if not isinstance(content, dict):
            raise ApiError(400, f"the body is a JSON {type(content).__name__}; send an object.")
        return validated(kind, content, "request", "field")

    return read


def schema_of_body(kind: type[Settings]) -> dict[str, Any]:
    """The entry of a route in the OpenAPI description."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}
