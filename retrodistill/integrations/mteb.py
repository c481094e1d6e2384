"""MTEB: students as models that `mteb.evaluate` runs, with the document encoder that their queries search."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.data.hubs import from_datasets
from retrodistill.encoders.any_encoder import DENSE, MULTI_VECTOR, SPARSE
from retrodistill.indexes import build_index
from retrodistill.indexes.base import load_sides
from retrodistill.report.text import short_name

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise UserError(f"MTEB needs {error.name}; pip install 'retrodistill[mteb]'.") from error

_SIMILARITIES = {
    "cosine": ScoringFunction.COSINE,
    "dot": ScoringFunction.DOT_PRODUCT,
    "maxsim": ScoringFunction.MAX_SIM,
    "meanmaxsim": ScoringFunction.MAX_SIM,
}
_TYPES = {"sparse": "sparse", "multi-vector": "late-interaction"}  # others are dense


class RetrodistillEncoder(AbsEncoder):
    """A model of MTEB whose queries and documents are encoded by the two sides of an embedding space.

    Texts that a task calls neither queries nor documents (classification, clustering, similarity) are encoded by the
    query encoder, as queries. Prompts and lengths are those of the encoders; MTEB's prompts are not used, and neither
    is its `batch_size`: `encode_with` sets ours. MTEB stores results by the model's name and revision; the revision is
    a digest of both encoders, so that a student that was trained again is measured again.

    Args:
        documents: Name or object of a dense document encoder.
        queries: Query encoder in the same space, such as a student; by default the document encoder.
        name: Name in MTEB's results; by default that of the query encoder.

    Raises:
        UserError: An encoder is not found or not dense, or the queries belong to another space.
    """

    def __init__(self, documents: Any, queries: Any = None, *, name: str | None = None) -> None:
        self.documents, self.queries, _ = load_sides(documents, queries, DENSE)
        self.mteb_model_meta = _meta(self.documents, self.queries, name)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_options: Any) -> np.ndarray:
        """(n, dimension) float32 vectors of the texts of MTEB's batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.document:
            return self.documents.encode(texts, "document")
        return self.queries.encode(texts, "query")


class RetrodistillIndex:
    """A model of MTEB for retrieval and re-ranking tasks: an index of a task's documents, in memory.

    It runs students of all kinds, sparse and multi-vector ones too, and compressed indexes. Vectors are stored in the
    cache, so that a second index of the same documents does not encode them again.

    Args:
        documents: Name or object of the document encoder, whose kind determines that of the index.
        queries: Query encoder in the same space, such as a student; by default the document encoder.
        name: Name in MTEB's results; by default that of the query encoder.
        options: Those of `build_index`, such as ``factory="SQ8"``; they are part of the revision.

    Raises:
        UserError: An encoder is not found, the queries belong to another space, or, in a task, as `build_index`.
    """

    def __init__(self, documents: Any, queries: Any = None, *, name: str | None = None, **options: Any) -> None:
        self.documents, self.queries, _ = load_sides(documents, queries, (*DENSE, *SPARSE, *MULTI_VECTOR))
        self.options = options
        self.mteb_model_meta = _meta(self.documents, self.queries, name, options)
        self._index: Any = None

    def index(self, corpus: Any, *, task_metadata: Any, **_options: Any) -> None:
        """Index the documents of a task."""
        queries = Dataset.from_dict({"_id": [], "text": []})
        collection = from_datasets(corpus, queries, {}, task_metadata.name)
        self._index = build_index(collection, self.documents, self.queries, **{"fields": "none", **self.options})

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, Sequence[str]] | None = None, **_options: Any
    ) -> dict[str, dict[str, float]]:
        """Scores of the best `top_k` documents by query id, for re-ranking tasks among those of `top_ranked`."""
        texts = dict(zip(queries["id"], queries["text"], strict=True))
        k = min(top_k, self._index.size)
        found: dict[str, dict[str, float]] = {id_: {} for id_ in texts}
        if top_ranked is None:
            return found | self._index.search(texts, k=k).to_dict()
        for id_, text in texts.items():
            found |= self._index.search({id_: text}, k=k, filter={"document_id": list(top_ranked[id_])}).to_dict()
        return found


def _meta(documents: Any, queries: Any, name: str | None, options: Mapping[str, Any] | None = None) -> ModelMeta:
    shown = re.sub(r"[/:]", "--", name or short_name(queries.name))
    about = {
        "name": f"retrodistill/{shown}",
        "revision": digest(queries.fingerprint("query"), documents.fingerprint("document"), options or {}),
        "similarity_fn_name": _SIMILARITIES.get(documents.similarity),
        "embed_dim": documents.dimension,
        "model_type": [_TYPES.get(documents.kind, "dense")],
    }
    return ModelMeta.create_empty(about)
