"""Regularizers of sparse students: what keeps texts at few terms, and at some; and the alarms when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from retrodistill import objectives as pure
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log, main_first, processes
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import SparseStore
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.objectives.registry import get_regularizer
from retrodistill.runs.run import top_k
from retrodistill.students.lexical_terms import lexical_terms_of, saturated_terms
from retrodistill.students.stored_states import (
    BLOCK,
    HeadScorer,
    States,
    StoredStatesRanker,
    head_of,
    segment_max,
    store_from_states,
    stored_states,
    train_head,
)
from retrodistill.students.vdr import own_tokens, vocabulary_pooling
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import VectorScorer, View
from retrodistill.training.settings import RegularizerSettings
from retrodistill.training.stages import BothEncoders, StageRun, evaluating, train_both
from retrodistill.training.trainer import History, Monitor

_DENSE = 0.1  # share of the vocabulary that an inverted index does not pay for any more
_EMPTY = 0.1  # share of texts without a term


@dataclass(frozen=True)
class Regularizer:
    """One weighted regularizer of a stage.

    Attributes:
        name: One of `retrodistill.objectives.registry.REGULARIZERS`.
        weight: In the loss, once warm.
        side: The side that it sees: ``document`` or ``query``.
        terms: How many of a text's terms ``top-k`` lets live.
        warmup: Share of the steps over which the weight grows, with the square of the step (SPLADE, arXiv 2107.05720).
    """

    name: str
    weight: float
    side: str = "document"
    terms: int = 128
    warmup: float = 1 / 3

    def __post_init__(self) -> None:
        get_regularizer(self.name)  # refuses an unknown one

    @classmethod
    def of(cls, settings: RegularizerSettings) -> Regularizer:
        """As a recipe writes it."""
        return cls(settings.name, settings.weight, settings.side, settings.terms, settings.warmup)

    def __call__(self, weights: Tensor, progress: float | None) -> Tensor:
        """Its weighted value at some point of the training.

        Args:
            weights: (texts, terms) term weights of the side, of all processes (`retrodistill.objectives.whole_batch`).
            progress: Share of the steps done, from 0 to 1; None counts as warm.
        """
        warm = 1.0 if progress is None or not self.warmup else min(1.0, progress / self.warmup) ** 2
        return self.weight * warm * self.value(weights)

    def value(self, weights: Tensor) -> Tensor:
        """Its value, unweighted."""
        return get_regularizer(self.name)(weights, self.terms)


def regularized(
    regularizers: Sequence[Regularizer], queries: Tensor, documents: Tensor, progress: float | None
) -> dict[str, Tensor]:
    """Weighted values by ``name-side``; those of one name and side are added up.

    Args:
        regularizers: Of the stage.
        queries: (texts, terms) term weights.
        documents: (texts, terms) term weights.
        progress: Share of the steps done.
    """
    parts: dict[str, Tensor] = {}
    for one in regularizers:
        key = f"{one.name}-{one.side}"
        value = one(documents if one.side == "document" else queries, progress)
        parts[key] = parts[key] + value if key in parts else value
    return parts


class SparsityAlarm:
    """Says once, in a training, that texts lose all their terms, and once that they have too many.

    Attributes:
        notes: What was said, for the student's manifest.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._said: set[str] = set()

    def __call__(self, alive: Sequence[int], vocabulary: int, final: bool = False) -> None:
        """Look at the numbers of live terms of some documents.

        Args:
            alive: Terms of each document.
            vocabulary: Terms there are.
            final: Whether training has ended: documents start dense in SPLADE, so density says nothing before.
        """
        empty = sum(count == 0 for count in alive) / max(len(alive), 1)
        mean = sum(alive) / max(len(alive), 1)
        if empty > _EMPTY:
            self._say(
                "empty",
                f"the student collapses: {100 * empty:.0f}% of the documents looked at have no term; lower the "
                "regularizers' weights or add anti-zero",
            )
        if final and mean > _DENSE * vocabulary:
            self._say(
                "dense",
                f"the student is dense: {mean:.0f} of {vocabulary} terms a document; raise the weight of flops, or "
                "take top-k",
            )

    def _say(self, reason: str, line: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self.notes.append(line)
            log(f"warning: {line}")


_REGULARIZED = 32  # documents drawn for each step, whose weights of the batch's terms the regularizers see


def train_sparse(run: StageRun) -> History:
    """Train a sparse student through a stage.

    Raises:
        UserError: Nothing to learn from, or a student that lacks what the stage trains.
    """
    regularizers, alarm = [Regularizer.of(one) for one in run.stage.regularizers], SparsityAlarm()
    train = _train_head if run.stage.train == "head" else _train_both
    history = train(run, regularizers, alarm)
    history.notes = alarm.notes
    return history


def _train_both(run: StageRun, regularizers: list[Regularizer], alarm: SparsityAlarm) -> History:
    student: SparseTextEncoder = run.student

    def watch(queries: Sequence[str], documents: Sequence[str], ranked: np.ndarray) -> Monitor:
        def terms() -> dict[str, float]:
            with evaluating(student.model):
                vectors = student.encode(documents, "document")
            alive = np.diff(vectors.indptr)
            alarm(alive.tolist(), vectors.shape[1])
            return {"terms": float(alive.mean())}

        return terms

    pooling = vocabulary_pooling(student.model) if run.stage.own_tokens else None
    if run.stage.own_tokens and pooling is None:
        raise UserError("own_tokens is for sparse students of head: vdr; this one has another.")
    scorer = TermScorer(student.similarity == "cosine", regularizers, run.stage.own_tokens, pooling)
    return train_both(run, BothEncoders(scorer, watch=watch))


class TermScorer(VectorScorer):
    """Inner products of term weights, which regularizers see.

    Args:
        cosine: As of `VectorScorer`.
        regularizers: Of the stage.
        own_tokens: Weight of the objectives on scores of which one side is its own tokens, each of weight 1, for VDR's
            head (the semi-parametric half of its loss): the mean over the two sides. Such a side needs no model.
        pooling: VDR's, where `own_tokens` is not 0.
    """

    def __init__(
        self, cosine: bool, regularizers: Sequence[Regularizer] = (), own_tokens: float = 0.0, pooling: Any = None
    ) -> None:
        super().__init__(cosine)
        self._regularizers, self._own_tokens, self._pooling = list(regularizers), own_tokens, pooling

    def own_terms(self, encoded: Any, batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Regularizers of the batch's queries and documents, by name and side."""
        if not self._regularizers:
            return {}
        queries, *sides = (side.float() for side in encoded)
        documents, there = torch.cat(sides), batch.mask.T.reshape(-1)  # masked positions hold the empty text
        documents = pure.whole_batch(documents)[pure.whole_batch(there[:, None].float())[:, 0] > 0]
        return regularized(self._regularizers, pure.whole_batch(queries), documents, progress)

    def views(self, columns: Sequence[Any]) -> Callable[[Any], list[View]] | None:
        """The batch with its own tokens for queries, and for documents."""
        if not self._own_tokens:
            return None
        bags = [own_tokens(features, self._pooling.dimension, self._pooling.special).float() for features in columns]

        def views(encoded: Sequence[Tensor]) -> list[View]:
            (query, *documents), (bag, *others) = encoded, bags
            half = self._own_tokens / 2
            return [("own-query", half, [bag, *documents]), ("own-document", half, [query, *others])]

        return views


def _train_head(run: StageRun, regularizers: list[Regularizer], alarm: SparsityAlarm) -> History:
    student, corpus = run.student, run.data.collection.documents.texts
    with main_first():
        states = stored_states(student, corpus, "document")
    scorer = TermHeadScorer(student, states, regularizers, run.data.seed, corpus)

    def terms(documents: np.ndarray) -> dict[str, float]:
        alive, vocabulary = scorer.alive(documents)
        alarm(alive, vocabulary)
        return {"terms": float(np.mean(alive))}

    return train_head(run, scorer, terms)


def query_weights_of(student: SparseTextEncoder) -> Any:
    """The (vocabulary,) parameter of inference-free queries.

    Raises:
        UserError: Queries go through a model.
    """
    parts = student.modules("query")
    if [type(part).__name__ for part in parts] != ["SparseStaticEmbedding"]:
        raise UserError(
            "train: head trains a sparse student with queries: inference-free; where a model encodes queries, set "
            "train: both_encoders."
        )
    return parts[0].weight


def activations_of(student: SparseTextEncoder) -> int:
    """How many times log(1 + x) is taken of a positive logit before the maximum over tokens: once or twice.

    Raises:
        UserError: The pooling sums over tokens.
    """
    pooling = next((part for part in student.modules("document") if type(part).__name__ == "SpladePooling"), None)
    if pooling is None or pooling.pooling_strategy != "max":
        raise UserError(f"model {student.name} does not take the maximum over tokens; set train: both_encoders.")
    return 2 if pooling.activation_function == "log1p_relu" else 1


class TermHead:
    """``log(1 + relu(max_i <d_t, h_i> + b_t))`` over the document's hidden states h_i, and lexical terms if there are.

    Args:
        student: A sparse student with a head behind its transformer.
        states: Of the documents.
        texts: The documents; only read where the student has lexical terms.

    Attributes:
        parameters: (vocabulary, d) vectors, (vocabulary,) biases, and lexical terms' (vocabulary,) weights if any.

    Raises:
        UserError: No such head, or a pooling that does not take the maximum.
    """

    def __init__(self, student: SparseTextEncoder, states: States, texts: Sequence[str]) -> None:
        head, own = head_of(student).linear, lexical_terms_of(student)
        self.parameters: list[nn.Parameter] = [head.weight, head.bias, *([own.weight] if own is not None else [])]
        self._logarithms = activations_of(student)
        self._states = states
        self._own: csr_array | None = saturated_terms(student, own, texts) if own is not None else None

    def weights(self, chosen: Sequence[Tensor], terms: Tensor, documents: np.ndarray) -> Tensor:
        """(documents, terms) weights of some terms in some documents.

        Args:
            chosen: The rows of `parameters` (or of their copies) that belong to the terms.
            terms: (terms,) int64 places in the vocabulary.
            documents: (m,) corpus positions.
        """
        vectors, biases, *own = chosen
        states, lengths = self._states.gather(documents, vectors.device)
        weights = torch.relu(segment_max(states @ vectors.T, lengths) + biases)
        for _ in range(self._logarithms):
            weights = torch.log1p(weights)
        if self._own is None:
            return weights
        counts = torch.from_numpy(self._own[documents][:, terms.cpu().numpy()].toarray()).to(weights.device)
        return weights + torch.relu(own[0]) * counts


class TermHeadScorer(HeadScorer):
    """Of inference-free sparse students: a vector and a bias for each term, and the terms' weights in queries.

    Args:
        student: The student.
        documents: Hidden states of the corpus.
        regularizers: Of term weights. They see the terms of the batch's queries in documents drawn from the corpus:
            other terms have no gradient in this step, and FLOPS is a sum over terms.
        seed: Seed of the random draws.
        texts: The corpus, which a student with lexical terms counts.

    Raises:
        UserError: The student's queries, head or pooling are others.
    """

    def __init__(
        self,
        student: SparseTextEncoder,
        documents: States,
        regularizers: Sequence[Regularizer] = (),
        seed: int = 0,
        texts: Sequence[str] = (),
    ) -> None:
        self._head = TermHead(student, documents, texts)
        weights = query_weights_of(student)
        if student.similarity != "dot":
            raise UserError("train: head trains sparse students of the dot product; this one uses the cosine.")
        super().__init__(documents, [weights, *self._head.parameters])
        self._regularizers = list(regularizers)
        self._seed = seed

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> list[Tensor]:
        """The distinct terms of each text."""
        features = columns[0]
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        return [torch.unique(ids[row][mask[row]]) for row in range(len(ids))]

    def scores(self, parameters: Sequence[Tensor], queries: list[Tensor], documents: np.ndarray) -> Tensor:
        """(batch, n) scores."""
        used = torch.unique(torch.cat(queries))
        weights, *head = (parameter[used] for parameter in parameters)  # once: else each query costs a table
        scores = []
        for terms, row in zip(queries, documents, strict=True):
            places, there = torch.searchsorted(used, terms), np.flatnonzero(row >= 0)
            alive = self._head.weights([part[places] for part in head], terms, row[there])
            full = alive.new_zeros(len(row))
            scores.append(full.index_put((torch.from_numpy(there).to(full.device),), alive @ weights[places]))
        return torch.stack(scores)

    def matrix(self, queries: list[Tensor], documents: np.ndarray) -> Tensor:
        """(queries, documents) scores."""
        used = torch.unique(torch.cat(queries))
        weights, *head = (parameter[used] for parameter in self.trained)
        asked = torch.stack([torch.isin(used, terms) for terms in queries]) * weights
        return asked @ self._head.weights(head, used, documents).T

    def held_out(self, student: SparseTextEncoder, texts: list[str]) -> list[Tensor]:
        """The distinct terms of held-out texts."""
        from sentence_transformers.util import batch_to_device

        features = student.model.preprocess(texts, prompt=student.prompt("query") or None, task="query")
        return self.encode(student.model, [batch_to_device(features, student.model.device)], np.arange(len(texts)))

    def alive(self, documents: np.ndarray) -> tuple[list[int], int]:
        """How many terms each of some documents has, and how many there are."""
        weights, *head = self.trained
        every = torch.arange(len(weights), device=weights.device)
        with torch.no_grad():
            counts = [
                int((self._head.weights(head, every, documents[one : one + 1]) > 0).sum())
                for one in range(len(documents))
            ]
        return counts, len(weights)

    def own_terms(self, encoded: list[Tensor], batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Regularizers of the batch's terms in documents drawn for this step."""
        if not self._regularizers:
            return {}
        used = _of_all_processes(torch.unique(torch.cat(encoded)), len(self.trained[0]))
        weights, *head = (parameter[used] for parameter in self.trained)
        generator = np.random.default_rng([self._seed, round(1e6 * (progress or 0.0))])
        size = min(_REGULARIZED, len(self.documents))
        drawn = np.sort(generator.choice(len(self.documents), size, replace=False))
        alive = self._head.weights(head, used, drawn)
        asked = torch.stack([torch.isin(used, terms) for terms in encoded]) * weights
        return regularized(self._regularizers, pure.whole_batch(asked), alive, progress)


def exhaustive(student: SparseTextEncoder, name: str) -> StoredStatesRanker:
    """Exact search by stored hidden states: only the terms of the queries are looked at, a tenth of the vocabulary.

    Raises:
        UserError: Queries go through a model, or the student keeps a limited number of terms: which ones cannot be told
            from the terms of the queries alone.
    """
    if not student.is_inference_free or student.model.max_active_dims:
        raise UserError(
            f"student {name}: exhaustive search by stored states is for queries: inference-free without a limit of "
            "terms; set evaluation.exhaustive: false."
        )
    return StoredStatesRanker(student, name, _search)


def _search(
    student: SparseTextEncoder, states: States, queries: Texts, corpus: Texts, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Only documents that share a term with the query are in the results."""
    encoded: Any = student.encode(queries.texts, "query")
    used = np.unique(encoded.indices)
    head = TermHead(student, states, corpus.texts)
    terms = torch.from_numpy(used).long().to(head.parameters[0].device)
    chosen = [parameter[terms] for parameter in head.parameters]
    blocks = [np.arange(start, min(start + BLOCK, len(states))) for start in range(0, len(states), BLOCK)]
    weights = np.concatenate([head.weights(chosen, terms, block).cpu().numpy() for block in blocks])
    scores = encoded[:, used] @ weights.T
    order = top_k(scores, k)
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(best > 0, order, -1), best


def store_documents(student: SparseTextEncoder, texts: Sequence[str]) -> None:
    """Put a student's documents into its store where the cache has their hidden states, as train: head leaves it.

    No transformer runs for its index then. float16 states change a value by a thousandth.
    """
    # With a limit of terms, or VDR's, which terms are kept depends on all of them.
    if student.model.max_active_dims or vocabulary_pooling(student.modules("document")) is not None:
        return
    store_from_states(student, SparseStore(student, "document"), texts, _rows)


def _rows(student: SparseTextEncoder, states: States, texts: Sequence[str]) -> Iterator[tuple[int, csr_array]]:
    head = TermHead(student, states, texts)
    every = torch.arange(student.dimension, device=head.parameters[0].device)
    for start in range(0, len(states), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(states)))
        weights = [head.weights(head.parameters, every, rows[place : place + 1]) for place in range(len(rows))]
        yield start, csr_array(torch.cat(weights).cpu().numpy())


def _of_all_processes(terms: Tensor, vocabulary: int) -> Tensor:
    """Terms that a text of any process has, so that FLOPS does not depend on how many there are."""
    if processes() == 1:
        return terms
    flags = torch.zeros(vocabulary, dtype=torch.int32, device=terms.device).index_fill(0, terms, 1)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags.nonzero()[:, 0]
