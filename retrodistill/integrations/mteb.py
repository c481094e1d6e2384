"""MTEB: dense students as models that `mteb.evaluate` runs, with the document encoder that their queries search."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.indexes.base import load_sides
from retrodistill.report.text import short_name

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise UserError(f"MTEB needs {error.name}; pip install 'retrodistill[mteb]'.") from error

_SIMILARITIES = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}


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
        self.documents, self.queries, space = load_sides(documents, queries, DENSE)
        shown = name or short_name(self.queries.name)
        about = {
            "name": f"retrodistill/{shown.replace('/', '--').replace(':', '--')}",
            "revision": digest(self.queries.fingerprint("query"), self.documents.fingerprint("document")),
            "similarity_fn_name": _SIMILARITIES[space.similarity],
            "embed_dim": space.dimension,
        }
        self.mteb_model_meta = ModelMeta.create_empty(about)

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_options: Any) -> np.ndarray:
        """(n, dimension) float32 vectors of the texts of MTEB's batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.document:
            return self.documents.encode(texts, "document")
        return self.queries.encode(texts, "query")
