"""Search by stored hidden states: what a student's index would return, without encoding the corpus for it.

Training of a head reads hidden states that a frozen transformer made once. The same states give the student's exact
scores: the transformer does not run again, and of a sparse student only the terms of the queries are looked at, a
tenth of the vocabulary. That is how students are compared while they are being worked on; what is served is an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from retrodistill.core.errors import UserError
from retrodistill.core.files import digest
from retrodistill.core.progress import bar
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.maxsim import best_documents
from retrodistill.encoders.multi_vector import MultiVectorModel, Tokens
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.sparse_store import SparseStore
from retrodistill.encoders.text_store import TextStore
from retrodistill.encoders.token_vectors import TokenVectors
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run
from retrodistill.runs.top_k import top_k
from retrodistill.students.heads import backbone_of
from retrodistill.students.states import States, has_states, stored_states
from retrodistill.students.term_head import TermHead
from retrodistill.students.vdr import vocabulary_pooling

_BLOCK = 256  # documents at a time


class StoredStatesRanker(Ranker):
    """Exact search of a sparse or multi-vector student by the hidden states that its training stored.

    Args:
        student: Whose queries and documents these are.
        name: What its runs are called.

    Raises:
        UserError: Queries of a sparse student go through a model, or it keeps a limited number of terms: which ones
            cannot be told from the terms of the queries alone.
    """

    can_search = True

    def __init__(self, student: SparseTextEncoder | MultiVectorModel, name: str) -> None:
        if isinstance(student, SparseTextEncoder) and (not student.is_inference_free or student.model.max_active_dims):
            raise UserError(
                f"student {name}: exhaustive search by stored states is for queries: inference-free without a limit of "
                "terms; set evaluation.exhaustive: false."
            )
        self.student, self.name = student, name

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest score; of a sparse student only those that share a term with the query."""
        corpus = collection.documents
        states = stored_states(self.student, corpus.texts, "document")
        k = min(k, len(corpus))
        with torch.no_grad():
            if isinstance(self.student, SparseTextEncoder):
                return self._by_terms(states, queries, corpus, k)
            asked = self.student.encode(queries.texts, "query")
            rows, scores = best_documents(asked, token_blocks(self.student, states), k)
        return Run.from_matrix(queries.ids, corpus.ids, rows, scores, name=self.name)

    def fingerprint(self, collection: Collection) -> str:
        """Contracts of the student's roles."""
        return digest("stored states", self.student.fingerprint("query"), self.student.fingerprint("document"))

    def _by_terms(self, states: States, queries: Texts, corpus: Texts, k: int) -> Run:
        student: Any = self.student
        asked = student.encode(queries.texts, "query")
        used = np.unique(asked.indices)
        head = TermHead(student, states, corpus.texts)
        terms = torch.from_numpy(used).long().to(head.parameters[0].device)
        chosen = [parameter[terms] for parameter in head.parameters]
        blocks = [np.arange(start, min(start + _BLOCK, len(states))) for start in range(0, len(states), _BLOCK)]
        weights = np.concatenate([head.weights(chosen, terms, block).cpu().numpy() for block in blocks])
        scores = asked[:, used] @ weights.T
        order = top_k(scores, k)
        best = np.take_along_axis(scores, order, axis=1)
        return Run.from_matrix(queries.ids, corpus.ids, np.where(best > 0, order, -1), best, name=self.name)


def store_documents(student: SparseTextEncoder | MultiVectorModel, texts: Sequence[str]) -> None:
    """Put a student's document vectors into its store where the cache has hidden states, as train: head leaves it.

    No transformer runs for its index then. float16 states change a value by a thousandth.

    Args:
        student: Of any training.
        texts: The corpus.
    """
    tokens = isinstance(student, MultiVectorModel)
    store: TextStore = TokenVectors(student, "document") if tokens else SparseStore(student, "document")
    if not store.missing(texts) or not has_states(student, texts, "document"):
        return
    if not tokens and (student.model.max_active_dims or vocabulary_pooling(student.modules("document")) is not None):
        return  # which terms are kept depends on all of them
    states = stored_states(student, texts, "document")
    with bar(len(texts), f"vectors from stored states ({student.name})", "texts") as progress, torch.no_grad():
        blocks: Iterator[tuple[int, Any]]
        if isinstance(student, MultiVectorModel):
            blocks = token_blocks(student, states)
        else:
            blocks = _term_rows(student, states, texts)
        for start, vectors in blocks:
            store.put(texts[start : start + _BLOCK], vectors)
            progress.update(min(_BLOCK, len(texts) - start))


def _term_rows(student: SparseTextEncoder, states: States, texts: Sequence[str]) -> Iterator[tuple[int, csr_array]]:
    """Row of the first document and the weights of all terms, for a few documents at a time."""
    head = TermHead(student, states, texts)
    every = torch.arange(student.dimension, device=head.parameters[0].device)
    for start in range(0, len(states), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(states)))
        weights = [head.weights(head.parameters, every, rows[place : place + 1]) for place in range(len(rows))]
        yield start, csr_array(torch.cat(weights).cpu().numpy())


def token_blocks(student: MultiVectorModel, states: States) -> Iterator[tuple[int, Tokens]]:
    """Row of the first document and the student's document vectors, for a few documents at a time.

    Args:
        student: Its modules behind the transformer run.
        states: Of the documents.
    """
    front = backbone_of(student, "document")
    behind = [part for part in student.modules("document") if not any(part is one for one in front)]
    for start in range(0, len(states), _BLOCK):
        flat, lengths = states.gather(np.arange(start, min(start + _BLOCK, len(states))), student.model.device)
        padded = torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths.tolist())), batch_first=True)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        features: dict[str, Any] = {"token_embeddings": padded, "attention_mask": mask.long()}
        for part in behind:
            keys = getattr(part, "forward_kwargs", ())
            features = part(features, task="document") if "task" in keys else part(features)
        kept = features["attention_mask"].bool()
        found = zip(features["token_embeddings"], kept, strict=True)
        vectors = [one[there].float().cpu().numpy() for one, there in found]
        yield start, Tokens.of(vectors, student.dimension)
