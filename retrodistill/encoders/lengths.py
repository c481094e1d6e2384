"""How many documents are longer than what a model reads of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from retrodistill.core.runtime import log
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts

_SAMPLE = 100  # documents whose tokens are counted
_READ = 8  # characters per token that is read: the rest of a sampled document is not tokenized
_SAID: set[tuple[str, str]] = set()  # models and documents that a warning was logged for


def count_longer(encoder: Any, documents: Texts) -> int:
    """The number of documents with more tokens than an encoder reads, about: 0 for one that reads whole texts.

    The tokens per byte of a sample tell it, from the documents' bytes; nothing else is tokenized.
    """
    if not encoder.has_weights or (limit := encoder.contract("document")["max_length"]) is None:
        return 0
    tokenizer = getattr(encoder.modules("document")[0], "tokenizer", None)
    sizes = [pc.binary_length(chunk).to_numpy(zero_copy_only=False) for chunk in documents.table["text"].chunks]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *sizes])
    likely = np.flatnonzero(lengths > limit)  # a token has a byte or more
    if not len(likely) or not callable(tokenizer):
        return 0
    rows = likely[np.unique(np.linspace(0, len(likely) - 1, _SAMPLE, dtype=np.int64))]
    texts = [documents.column[row][: _READ * limit] for row in rows.tolist()]
    tokens = sum(map(len, tokenizer(texts, truncation=False, verbose=False)["input_ids"]))
    per_byte = tokens / max(1, sum(len(text.encode()) for text in texts))
    return int((lengths * per_byte > limit).sum())


def length_warning(encoder: Any, collection: Collection) -> str | None:
    """A line on documents, or passages, of which an encoder reads the beginning only; None if there are none."""
    longer, count = count_longer(encoder, collection.documents), len(collection.documents)
    if not longer:
        return None
    limit = encoder.contract("document")["max_length"]
    if collection.parents is None:
        return f"about {longer} of {count} documents exceed {limit} tokens of {encoder.name}; set passages."
    return f"about {longer} of {count} passages exceed {limit} tokens of {encoder.name}; set fewer passages.words."


def warn_of_length(encoder: Any, collection: Collection) -> None:
    """Log `length_warning`, once for a model and documents."""
    key = (encoder.name, collection.documents.fingerprint)
    if key not in _SAID:
        _SAID.add(key)
        if line := length_warning(encoder, collection):
            log(f"warning: {line}")
