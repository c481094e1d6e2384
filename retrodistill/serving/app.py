"""The application: routes of the JSON API, and the page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import library_versions
from retrodistill.core.settings import validated
from retrodistill.data.fields import to_json, type_name
from retrodistill.data.judgments import JudgmentLog, typed_id
from retrodistill.data.texts import GENERATED
from retrodistill.evaluation.examples import MEASURE, snippet
from retrodistill.indexes.columns import TEXTS
from retrodistill.rankers.protocol import check_k, check_queries, wanted_depth
from retrodistill.serving import metrics
from retrodistill.serving.batching import QueueFullError
from retrodistill.serving.guard import ApiError, Guard, Limits
from retrodistill.serving.opening import Served
from retrodistill.serving.page import page
from retrodistill.serving.requests import (
    EmbedBody,
    JudgeBody,
    QueriesQuery,
    SearchBody,
    body_of,
    schema_of_body,
)
from retrodistill.serving.shapes import add_shapes, vectors_json
from retrodistill.serving.systems import Answer, Embed, Hit, Search, System, check_side
from retrodistill.serving.systems import Request as Work

_LOG = logging.getLogger(__name__)
_GONE = 499  # the client disconnected; nobody reads this status


class Server:
    """What is served now, with the judgments and the metrics; routes go through it.

    Args:
        open_served: Opens what is served, for the start and for each reload.
        limits: Of requests.
        judgments: Folder to which judgments are appended; by default what is served says it.
    """

    def __init__(self, open_served: Callable[[], Served], limits: Limits, judgments: str | None = None) -> None:
        self._open, self.limits = open_served, limits
        self.served = self._started()
        self.log = JudgmentLog(judgments or self.served.judgments)
        self.metrics = metrics.Metrics(lambda: {name: len(own) for name, own in self.served.workers.items()})
        self._reloading = asyncio.Lock()

    def _started(self) -> Served:
        return self._open().start(batch=self.limits.batch, waiting=self.limits.waiting)

    async def reload(self) -> Served:
        """Open everything anew, and then answer from it; on an error, what was served stays.

        Requests that were taken before are answered by what they were meant for.
        """
        if self._reloading.locked():
            raise ApiError(409, "a reload is under way; wait for it.")
        async with self._reloading:
            new = await asyncio.to_thread(self._started)
            old, self.served = self.served, new
            self.metrics.event("reload")
            await asyncio.to_thread(old.stop)
            return new

    async def compute(self, request: Request, served: Served, system: System, work: Work) -> Answer:
        """The answer of a system's thread; an ApiError if it is busy, or takes too long."""
        try:
            future = asyncio.wrap_future(served.workers[system.name].submit(work))
        except QueueFullError as error:
            self.metrics.event("queue full")
            raise ApiError(503, f"{system.name} has too many requests; try again.", {"retry-after": "1"}) from error
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait(
                {future, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
        if future in done:
            answer: Answer = future.result()
            self.metrics.batch(system.name, answer.batch, answer.seconds)
            return answer
        future.cancel()
        self.metrics.event("disconnect" if gone in done else "time limit")
        if gone in done:
            raise ApiError(_GONE, "the client disconnected.")
        raise ApiError(504, f"{system.name} did not answer within {self.limits.seconds:g} seconds.")

    def pick(self, name: str | None, can: str, is_able: Callable[[System], bool]) -> tuple[Served, System]:
        """The served systems and one of them; an ApiError (404) for an unknown name."""
        served = self.served
        try:
            return served, served.system(name, can, is_able)
        except KeyError as error:
            raise ApiError(404, error.args[0]) from error

    def texts(self, given: str | Sequence[str], what: str) -> list[str]:
        """Texts of a request, none of them empty and not too many; else a UserError."""
        texts = [given] if isinstance(given, str) else list(given)
        if not 1 <= len(texts) <= self.limits.texts:
            raise UserError(f"{what}: {len(texts)} texts; send 1 to {self.limits.texts}.")
        check_queries(texts)
        return texts

    def query(self, text: str | None, query_id: str | None) -> tuple[str, str]:
        """Text and id of a query, from either; else a UserError. A text of the test set has its id there."""
        served = self.served
        if (text is None) == (query_id is None):
            raise UserError("request: give either query or query_id.")
        if query_id is not None:
            if query_id not in served.queries:
                raise UserError(f"query_id {query_id!r} is not in the test set of {served.name}.")
            return served.queries[query_id], query_id
        if len(text or "") > self.limits.query:
            raise UserError(f"query: {len(text or ''):,} characters; at most {self.limits.query:,}.")
        check_queries([text or ""])
        return text or "", served.ids_by_text.get(text or "") or typed_id(text or "")


def make_app(server: Server, *, token: str | None = None, hosts: Sequence[str] | None = None) -> Guard:
    """The application around a server.

    Args:
        server: What is served.
        token: Bearer token of all routes but the page and ``/health``; None for none, and then nothing is reloaded.
        hosts: Names under which the server may be addressed; None for any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.served.close)

    app = FastAPI(
        title="retrodistill",
        version=_version(),
        docs_url=None,  # its pages of documentation load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    _add_errors(app)
    _add_facts(app, server)
    _add_search(app, server)
    _add_judging(app, server)
    add_shapes(app, server)

    @app.post("/reload")
    async def reload() -> dict[str, Any]:
        """Open everything that is served anew, without a pause. Needs a token."""
        if token is None:
            raise ApiError(403, "reloading needs a token: start the server with RETRODISTILL_TOKEN set.")
        served = await server.reload()
        return {"status": "reloaded", "systems": list(served.systems)}

    routes = [str(getattr(route, "path", "")) for route in app.routes]
    return Guard(app, server.limits, server.metrics, token=token, hosts=hosts, routes=routes)


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": {"message": message}}, status, headers)

    @app.exception_handler(ApiError)
    async def of_api(_: Request, error: ApiError) -> JSONResponse:
        return answer(error.status, error.message, error.headers)

    @app.exception_handler(UserError)
    async def of_user(_: Request, error: UserError) -> JSONResponse:
        return answer(422, " ".join(str(error).split()))

    @app.exception_handler(HTTPException)
    async def of_route(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        known = {
            404: f"there is no {path}; /info lists what is served.",
            405: f"{path} does not take {request.method}.",
        }
        return answer(error.status_code, known.get(error.status_code, str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def of_program(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("a request failed", exc_info=error)
        return answer(500, f"the server failed ({type(error).__name__}); its log says where.")


def _add_facts(app: FastAPI, server: Server) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        html, policy = page()
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @app.get("/health")
    async def health() -> dict[str, str]:
        """That the server answers."""
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """What is served: systems, fields, the number of test queries, limits."""
        served = server.served
        return {
            "name": served.name,
            "version": _version(),
            "collection": None if served.collection is None else served.collection.name,
            "systems": [_system_json(system) for system in served.systems.values()],
            "pair": list(served.pair),
            "queries": len(served.queries),
            "measure": MEASURE if served.values else None,
            "has_texts": served.has_texts,
            "judgments": len(server.log),
            "limits": server.limits.model_dump(),
        }

    @app.get("/metrics")
    async def of_prometheus() -> Response:
        """Counts and times for Prometheus."""
        return Response(server.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/queries")
    async def queries(request: Request) -> dict[str, Any]:
        """Test queries, in the order of the difference of two systems."""
        asked = validated(QueriesQuery, dict(request.query_params), "request", "parameter")
        served = server.served
        for name in (asked.first, asked.second):
            server.pick(name, "search", lambda system: system.can_search)
        ids, gains = served.by_difference(asked.first or "", asked.second or "")
        order = range(len(ids))
        if gains is not None and asked.order != "file":
            sign = 1 if asked.order == "lost" else -1
            order = (sign * gains).argsort(kind="stable").tolist()
        rows = [
            {
                "query_id": ids[place],
                "text": served.queries[ids[place]],
                "difference": None if gains is None else float(gains[place]),
            }
            for place in order[asked.offset : asked.offset + asked.limit]
        ]
        return {"total": len(ids), "measure": None if gains is None else MEASURE, "queries": rows}


def _add_search(app: FastAPI, server: Server) -> None:
    @app.post("/search", openapi_extra=schema_of_body(SearchBody))
    async def search(request: Request, body: Annotated[SearchBody, Depends(body_of(SearchBody))]) -> dict[str, Any]:
        """The best documents of a query."""
        served, system = server.pick(body.system, "search", lambda system: system.can_search)
        text, query_id = server.query(body.query, body.query_id)
        if body.k is not None and body.k > server.limits.k:
            raise UserError(f"k={body.k}: this server gives at most {server.limits.k} documents.")
        if body.k is not None:
            check_k(body.k, system.size)
        k, chosen = wanted_depth(body.k, system.size), system.filter_of(body.filter)
        # The document that the query itself is does not count, as in evaluation.
        own = {} if served.collection is None else served.collection.own_documents([query_id])
        asked = system.rewrites.get(query_id, text)
        work = Search(asked, min(k + len(own), system.size), chosen)
        answer = await server.compute(request, served, system, work)
        hits: list[Hit] = [hit for hit in answer.value if hit.document_id != own.get(query_id)][:k]
        shown = hits if body.texts is None else hits[: body.texts]
        records = served.records(system, [hit.passage_id or hit.document_id for hit in shown])
        grades = {**served.grades.get(query_id, {}), **server.log.of(query_id)}
        documents = [_hit_json(rank, hit, grades) for rank, hit in enumerate(hits, 1)]
        for document, record in zip(documents, records, strict=False):  # the first of them
            document.update(_record_json(record, body.characters))
        return {
            "system": system.name,
            "query": text,
            "query_id": query_id,
            "milliseconds": round(1000 * answer.seconds, 3),
            "batch": answer.batch,
            "relevant": sum(grade > 0 for grade in grades.values()),
            MEASURE: served.values.get(system.name, {}).get(query_id),
            "documents": documents,
        }

    @app.post("/embed", openapi_extra=schema_of_body(EmbedBody))
    async def embed(request: Request, body: Annotated[EmbedBody, Depends(body_of(EmbedBody))]) -> dict[str, Any]:
        """The vectors of texts."""
        served, system = server.pick(body.system, "embed", lambda system: system.encoder is not None)
        texts = server.texts(body.texts, "texts")
        check_side(system, body.role)
        answer = await server.compute(request, served, system, Embed(texts, body.role))
        return {
            "system": system.name,
            "milliseconds": round(1000 * answer.seconds, 3),
            **vectors_json(answer.value[0]),
        }


def _add_judging(app: FastAPI, server: Server) -> None:
    @app.post("/judge", openapi_extra=schema_of_body(JudgeBody))
    async def judge(body: Annotated[JudgeBody, Depends(body_of(JudgeBody))]) -> dict[str, Any]:
        """Append a judgment to the qrels; the last one of a pair counts."""
        served = server.served
        text, query_id = server.query(body.query, body.query_id)
        if query_id.startswith(GENERATED):  # a sentence of a document; such ids stand in no file
            query_id = typed_id(text)
        if not served.holds(body.document_id):
            raise UserError(f"document_id {body.document_id!r} is not served here.")
        typed = None if query_id in served.queries else text
        try:
            await asyncio.to_thread(server.log.append, query_id, body.document_id, body.relevance, typed)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ApiError(507, f"the judgment was not kept: its folder cannot be written to ({reason}).") from error
        server.metrics.event("judgment")
        return {"query_id": query_id, "document_id": body.document_id, "relevance": body.relevance}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@cache
def _version() -> str:
    return library_versions().get("retrodistill", "")


def _system_json(system: System) -> dict[str, Any]:
    return {
        "name": system.name,
        "role": system.role,
        "documents_by": system.documents_by,
        "queries_by": system.queries_by,
        "documents": system.size,
        "can_search": system.can_search,
        "can_embed": system.encoder is not None,
        "can_rerank": system.judge is not None,
        "is_recorded": system.is_recorded,
        "fields": {field.name: type_name(field.type) for field in system.schema if field.name not in TEXTS},
    }


def _hit_json(rank: int, hit: Hit, grades: dict[str, int]) -> dict[str, Any]:
    passage = {} if hit.passage_id is None else {"passage_id": hit.passage_id}
    judged = {"relevance": grades[hit.document_id]} if hit.document_id in grades else {}
    return {"rank": rank, "document_id": hit.document_id, "score": hit.score, **passage, **judged}


def _record_json(record: dict[str, Any], characters: int) -> dict[str, Any]:
    texts = {name: snippet(record[name], characters) for name in TEXTS if record.get(name)}
    fields = {name: to_json(value) for name, value in record.items() if name not in TEXTS}
    return {**texts, **({"fields": fields} if fields else {})}
