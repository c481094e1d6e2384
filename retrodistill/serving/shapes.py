"""Routes in the shapes of other APIs: embeddings as OpenAI has them, re-ranking as Cohere has it."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, Request
from scipy.special import expit

from retrodistill.core.errors import UserError
from retrodistill.serving.requests import EmbeddingsBody, RerankBody, body_of, schema_of_body
from retrodistill.serving.systems import Embed, Judge, check_side

if TYPE_CHECKING:
    from retrodistill.serving.app import Server


def add_shapes(app: FastAPI, server: Server) -> None:
    """Add ``/v1/embeddings`` and ``/v1/rerank``."""

    @app.post("/v1/embeddings", openapi_extra=schema_of_body(EmbeddingsBody))
    async def embeddings(
        request: Request, body: Annotated[EmbeddingsBody, Depends(body_of(EmbeddingsBody))]
    ) -> dict[str, Any]:
        """The vectors of texts, as OpenAI's API gives them."""
        served, system = server.pick(body.model, "give one vector per text", lambda system: system.is_dense)
        texts = server.texts(body.input, "input")
        check_side(system, body.input_type)
        answer = await server.compute(request, served, system, Embed(texts, body.input_type, count=True))
        vectors, tokens = answer.value
        if body.dimensions not in (None, vectors.shape[1]):
            raise UserError(f"dimensions={body.dimensions}: {system.name} has {vectors.shape[1]}; leave it out.")
        rows = vectors.tolist()
        if body.encoding_format == "base64":
            rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": system.name, "usage": usage}

    @app.post("/v1/rerank", openapi_extra=schema_of_body(RerankBody))
    async def rerank(request: Request, body: Annotated[RerankBody, Depends(body_of(RerankBody))]) -> dict[str, Any]:
        """Documents in the order of their relevance to a query, as Cohere's API gives them.

        A score is the sigmoid of the model's logit, from 0 to 1.
        """
        served, system = server.pick(body.model, "re-rank", lambda system: system.judge is not None)
        query = server.query(body.query, None)[0]
        texts = server.texts([each if isinstance(each, str) else each.text for each in body.documents], "documents")
        answer = await server.compute(request, served, system, Judge(query, texts))
        scores = expit(answer.value.astype(np.float64))
        order = np.argsort(-scores, kind="stable")[: body.top_n]
        results = [
            {
                "index": int(place),
                "relevance_score": float(scores[place]),
                **({"document": {"text": texts[place]}} if body.return_documents else {}),
            }
            for place in order
        ]
        return {"id": str(uuid.uuid4()), "results": results, "meta": {"api_version": {"version": "1"}}}


def vectors_json(vectors: Any) -> dict[str, Any]:
    """Vectors as JSON: numbers of a dense text, indices and values of a sparse one, a list of numbers per token."""
    if isinstance(vectors, np.ndarray):
        return {"dimension": vectors.shape[1], "vectors": vectors.tolist()}
    if hasattr(vectors, "indptr"):
        bounds = zip(vectors.indptr[:-1], vectors.indptr[1:], strict=True)
        rows = [slice(*ends) for ends in bounds]
        sparse = [{"indices": vectors.indices[row].tolist(), "values": vectors.data[row].tolist()} for row in rows]
        return {"dimension": vectors.shape[1], "vectors": sparse}
    return {"dimension": vectors.dimension, "vectors": [vectors[place].tolist() for place in range(len(vectors))]}
