"""Training of sparse students, whole or of their head alone; their documents from stored hidden states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log, main_first, processes
from retrodistill.data.texts import Texts
from retrodistill.encoders.embeddings import SparseStore
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.encoders.vectors import best_of_blocks
from retrodistill.objectives.registry import get_regularizer
from retrodistill.objectives.sparsity import l0_mask, whole_batch
from retrodistill.students.lexical_terms import lexical_terms_of, saturated_terms
from retrodistill.students.stored_states import (
    HeadScorer,
    States,
    StoredStatesRanker,
    best_products,
    features_of,
    head_of,
    store_from_states,
    stored_states,
    train_head,
)
from retrodistill.students.vdr import vocabulary_pooling
from retrodistill.training.lists import ListBatch
from retrodistill.training.scorers import VectorScorer, View
from retrodistill.training.settings import RegularizerSettings
from retrodistill.training.stages import BothEncoders, StageRun, evaluating, train_both
from retrodistill.training.trainer import History, Monitor

_DENSE = 0.1  # share of the vocabulary above which an inverted index does not pay off
_EMPTY = 0.1  # share of texts without a term
_TERMS = 4096  # whose weights are computed at once in a search
_COUNTED = 1024  # other terms that a document's number of terms is estimated from
_TOKENIZED = 10_000  # texts at a time
_REGULARIZED = 32  # documents drawn for each step, whose weights of the batch's terms the regularizers see


def regularized(
    regularizers: Sequence[RegularizerSettings],
    queries: Tensor,
    documents: Tensor,
    progress: float | None,
    document_terms: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weighted values by ``name-side`` of (texts, terms) term weights; those of one name and side are added up.

    ``document_terms`` are the documents' numbers of terms, where the weights are of a part of the vocabulary.

    The weight grows with the square of the step over the regularizer's warm-up (SPLADE, arXiv 2107.05720); without a
    ``progress``, the share of the steps done, it is warm.
    """
    parts: dict[str, Tensor] = {}
    for settings in regularizers:
        key = f"{settings.name}-{settings.side}"
        warm = 1.0 if progress is None or not settings.warmup else min(1.0, progress / settings.warmup) ** 2
        weights, counts = (documents, document_terms) if settings.side == "document" else (queries, None)
        if settings.threshold is not None:
            weights = l0_mask(weights, settings.threshold, counts)
        value = settings.weight * warm * get_regularizer(settings.name)(weights, settings.terms)
        parts[key] = parts[key] + value if key in parts else value
    return parts


class SparsityAlarm:
    """Warns once per training when regularizers leave texts no terms, and once when too many; ``notes`` has it."""

    def __init__(self, texts: str = "sampled documents") -> None:
        self.texts = texts
        self.notes: list[str] = []

    def __call__(self, alive: Sequence[int], vocabulary: int, final: bool = False) -> None:
        """Check the numbers of terms of some texts; density only at the end (``final``): SPLADE starts dense."""
        empty = sum(count == 0 for count in alive) / max(len(alive), 1)
        mean = sum(alive) / max(len(alive), 1)
        if empty > _EMPTY:
            share = f"{100 * empty:.0f}% of the {self.texts} have no term"
            self._warn("collapses", f"{share}; lower the regularizers' weights or add anti-zero")
        if final and mean > _DENSE * vocabulary:
            terms = f"{mean:.0f} of {vocabulary} terms per document"
            self._warn("is dense", f"{terms}; raise the weight of flops, or use top-k")

    def _warn(self, state: str, details: str) -> None:
        if not any(f"student {state}:" in note for note in self.notes):
            self.notes.append(f"the student {state}: {details}")
            log(f"warning: {self.notes[-1]}")


def train_head_or_both(run: StageRun) -> History:
    """Train a sparse student through a stage: its head, or both encoders."""
    alarm = SparsityAlarm()
    history = _train_head(run, alarm) if run.stage.train == "head" else _train_both(run, alarm)
    history.notes = alarm.notes
    return history


def _train_both(run: StageRun, alarm: SparsityAlarm) -> History:
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
    scorer = TermScorer(student.similarity == "cosine", run.stage.regularizers, run.stage.own_tokens, pooling)
    return train_both(run, BothEncoders(scorer, watch=watch))


class TermScorer(VectorScorer):
    """Inner products of term weights, which regularizers see.

    ``own_tokens`` weighs the list objectives on scores for which one side is replaced by its own tokens, each of weight
    1: the semi-parametric half of VDR's loss, the mean over the two sides.
    """

    def __init__(
        self,
        cosine: bool,
        regularizers: Sequence[RegularizerSettings] = (),
        own_tokens: float = 0.0,
        pooling: Any = None,
    ) -> None:
        super().__init__(cosine)
        self._regularizers, self._own_tokens, self._pooling = list(regularizers), own_tokens, pooling

    def own_terms(self, encoded: Any, batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Regularizers of the batch's queries and documents, by name and side."""
        if not self._regularizers:
            return {}
        queries, *sides = (side.float() for side in encoded)
        documents, kept = torch.cat(sides), batch.mask.T.reshape(-1)  # masked positions hold the empty text
        documents = whole_batch(documents)[whole_batch(kept[:, None].float())[:, 0] > 0]
        return regularized(self._regularizers, whole_batch(queries), documents, progress)

    def views(self, columns: Sequence[Any]) -> Callable[[Any], list[View]] | None:
        """The batch with queries replaced by their own tokens, and with documents."""
        if not self._own_tokens:
            return None
        bags = [self._pooling.own_tokens(features).float() for features in columns]

        def views(encoded: Sequence[Tensor]) -> list[View]:
            (query, *documents), (bag, *others) = encoded, bags
            half = self._own_tokens / 2
            return [("own-query", half, [bag, *documents]), ("own-document", half, [query, *others])]

        return views


def _train_head(run: StageRun, alarm: SparsityAlarm) -> History:
    student, corpus, regularizers = run.student, run.data.collection.documents.column, run.stage.regularizers
    _limit_expansions(student, run.prepared.texts.texts.texts)
    with main_first():
        states = stored_states(student, corpus, "document")
        encoded = student.modules("query") == student.modules("document")
        queries = stored_states(student, run.prepared.texts.texts.texts, "query") if encoded else None
    head = TermHead(student, states, corpus)
    if queries is None:
        scorer: TermHeadScorer = QueryWeightsScorer(student, head, states, regularizers, run.data.seed)
    else:
        scorer = QueryStatesScorer(head, states, queries, regularizers, run.data.seed)

    def terms(documents: np.ndarray) -> dict[str, float]:
        alive, vocabulary = scorer.alive(documents)
        alarm(alive, vocabulary)
        return {"terms": float(np.mean(alive))}

    return train_head(run, scorer, terms)


def _limit_expansions(student: SparseTextEncoder, texts: Sequence[str]) -> None:
    """Expand documents to terms of training texts only, and of those of earlier stages; see `LexicalTerms.expand_to`.

    Documents keep other terms that they have as lexical terms.
    """
    own, table = lexical_terms_of(student), student.token_weights("query")
    if own is None or table is None:
        return
    for start in range(0, len(texts), _TOKENIZED):  # tokens, not vectors: a token of weight 0 may learn another
        block = [table.prompt + text for text in texts[start : start + _TOKENIZED]]
        encodings = table.tokenizer.encode_batch(block, add_special_tokens=False)
        own.expand_to(torch.tensor(sorted({token for encoding in encodings for token in encoding.ids})))


class TermHead:
    """``log(1 + relu(max_i <d_t, h_i> + b_t))`` over the document's hidden states h_i, plus lexical terms if any.

    ``parameters`` are (vocabulary, d) vectors, (vocabulary,) biases, and (vocabulary,) weights of lexical terms if any.
    """

    def __init__(self, student: SparseTextEncoder, states: States, texts: Sequence[str]) -> None:
        head, pooling, own = head_of(student).linear, _pooling_of(student), lexical_terms_of(student)
        self.parameters: list[nn.Parameter] = [head.weight, head.bias, *([own.weight] if own is not None else [])]
        self._logarithms = 2 if pooling.activation_function == "log1p_relu" else 1
        self._states = states
        self._expanded = None if own is None else own.expanded
        self._own: csr_array | None = saturated_terms(student, own, texts) if own is not None else None

    def of_states(self, states: Tensor, lengths: Tensor, chosen: Sequence[Tensor]) -> Tensor:
        """(texts, terms) weights of terms whose rows of parameters are ``chosen``, without lexical ones.

        States are (sum of lengths, d), those of one text after the other, and lengths are (texts,).
        """
        weights = torch.relu(best_products(states, chosen[0], lengths) + chosen[1])
        for _ in range(self._logarithms):
            weights = torch.log1p(weights)
        return weights

    def weights(self, chosen: Sequence[Tensor], terms: Tensor, documents: np.ndarray) -> Tensor:
        """(m, terms) weights of (terms,) places in the vocabulary, whose rows of parameters are ``chosen``."""
        weights = self.of_states(*self._states.gather(documents, chosen[0].device), chosen)
        if self._own is None:
            return weights
        if self._expanded is not None:
            weights = weights * self._expanded.to(weights.device)[terms.to(weights.device)]
        counts = torch.from_numpy(self._own[documents][:, terms.cpu().numpy()].toarray()).to(weights.device)
        return weights + torch.relu(chosen[2]) * counts

    def all_weights(self, documents: np.ndarray) -> Iterator[Tensor]:
        """(1, vocabulary) weights of each document, one by one: a block would hold all tokens' logits."""
        device, size = self.parameters[0].device, len(self.parameters[0])
        terms = torch.arange(size, device=device) if self._expanded is None else self._expanded.nonzero()[:, 0]
        chosen = [parameter[terms] for parameter in self.parameters[:2]]  # a third of the vocabulary, often
        for row in documents[:, None]:
            expansions = self.of_states(*self._states.gather(row, device), chosen)
            weights = expansions.new_zeros(1, size).index_copy(1, terms, expansions)
            if self._own is not None:
                counts = torch.from_numpy(self._own[row].toarray()).to(device)
                weights = weights + torch.relu(self.parameters[2]) * counts
            yield weights


def check_head(student: SparseTextEncoder) -> None:
    """Refuse students that `train: head` does not train; the error names what they lack."""
    head_of(student)
    _pooling_of(student)
    if student.similarity != "dot":
        raise UserError("train: head trains sparse students of the dot product; this one uses the cosine.")


def _pooling_of(student: SparseTextEncoder) -> Any:
    pooling: list[Any] = [module for module in student.modules("document") if type(module).__name__ == "SpladePooling"]
    if not pooling or pooling[0].pooling_strategy != "max":
        raise UserError(f"model {student.name} does not take the maximum over tokens; set train: both_encoders.")
    return pooling[0]


class TermHeadScorer(HeadScorer):
    """Scores of sparse students whose head is trained: the inner products of term weights.

    Only terms that a query has are computed in documents; others neither score nor have a gradient. Regularizers see
    the batch's terms in documents drawn from the corpus: FLOPS is a sum over terms.
    """

    def __init__(
        self,
        head: TermHead,
        documents: States,
        regularizers: Sequence[RegularizerSettings],
        seed: int,
        of_queries: Sequence[nn.Parameter] = (),
    ) -> None:
        super().__init__(documents, [*of_queries, *head.parameters])
        self.head, self._of_queries = head, len(of_queries)
        self._regularizers, self._seed = list(regularizers), seed

    @abstractmethod
    def query_terms(self, parameters: Sequence[Tensor], queries: Any) -> list[tuple[Tensor, Tensor]]:
        """(terms,) ascending places of each query's terms in the vocabulary, and their (terms,) weights."""

    def scores(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """(batch, n) scores."""
        terms_and_weights = self.query_terms(parameters, queries)
        used, head = self._used(parameters, terms_and_weights)
        scores = []
        for (terms, weights), row in zip(terms_and_weights, documents, strict=True):
            places, kept = torch.searchsorted(used, terms), np.flatnonzero(row >= 0)
            alive = self.head.weights([part[places] for part in head], terms, row[kept])
            full = alive.new_zeros(len(row))
            scores.append(full.index_put((torch.from_numpy(kept).to(full.device),), alive @ weights))
        return torch.stack(scores)

    def matrix(self, queries: Any, documents: np.ndarray) -> Tensor:
        """(queries, documents) scores."""
        terms_and_weights = self.query_terms(self.trained, queries)
        used, head = self._used(self.trained, terms_and_weights)
        return _rows_of(terms_and_weights, used) @ self.head.weights(head, used, documents).T

    def alive(self, documents: np.ndarray) -> tuple[list[int], int]:
        """The number of terms of each of some documents, and the size of the vocabulary."""
        with torch.no_grad():
            counts = [int((weights > 0).sum()) for weights in self.head.all_weights(documents)]
        return counts, len(self.head.parameters[0])

    def own_terms(self, encoded: Any, batch: ListBatch, progress: float | None) -> dict[str, Tensor]:
        """Regularizers of the batch's terms in documents drawn for this step."""
        if not self._regularizers:
            return {}
        terms_and_weights = self.query_terms(self.trained, encoded)
        used, head = self._used(self.trained, terms_and_weights)
        if processes() > 1:  # terms of any process, so that FLOPS does not depend on the number of processes
            flags = torch.zeros(len(self.head.parameters[0]), dtype=torch.int32, device=used.device)
            flags.index_fill_(0, used, 1)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
            used = flags.nonzero()[:, 0]
            head = [parameter[used] for parameter in self.head.parameters]
        # Drawn by seed and step, so that a resumed training draws the same documents.
        generator = np.random.default_rng([self._seed, round(1e6 * (progress or 0.0))])
        size = min(_REGULARIZED, len(self.documents))
        drawn = np.sort(generator.choice(len(self.documents), size, replace=False))
        alive, counts = self.head.weights(head, used, drawn), None
        if any(settings.threshold is not None and settings.side == "document" for settings in self._regularizers):
            counts = self._counts(alive, used, drawn, generator)
        queries = whole_batch(_rows_of(terms_and_weights, used))
        return regularized(self._regularizers, queries, alive, progress, counts)

    def _counts(self, weights: Tensor, used: Tensor, documents: np.ndarray, generator: np.random.Generator) -> Tensor:
        """(m,) numbers of terms: those of ``weights``, whose terms are ``used``, and an estimate of the others."""
        others = np.setdiff1d(np.arange(len(self.head.parameters[0])), used.cpu().numpy())
        drawn = np.sort(generator.choice(others, min(_COUNTED, len(others)), replace=False))
        terms = torch.from_numpy(drawn).to(used.device)
        with torch.no_grad():
            sample = self.head.weights([parameter[terms] for parameter in self.head.parameters], terms, documents)
            scale = len(others) / max(len(drawn), 1)
            return (weights > 0).sum(dim=1) + scale * (sample > 0).sum(dim=1)

    def _used(
        self, parameters: Sequence[Tensor], terms_and_weights: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """The terms of any query, and their rows of the head: once, since each query would cost a whole table."""
        used = torch.unique(torch.cat([terms for terms, _ in terms_and_weights]))
        return used, [parameter[used] for parameter in parameters[self._of_queries :]]


def _rows_of(terms_and_weights: Sequence[tuple[Tensor, Tensor]], used: Tensor) -> Tensor:
    """(queries, used) weights of queries, 0 for terms that they do not have."""
    rows = [
        weights.new_zeros(len(used)).index_put((torch.searchsorted(used, terms),), weights)
        for terms, weights in terms_and_weights
    ]
    return torch.stack(rows)


class QueryWeightsScorer(TermHeadScorer):
    """For inference-free queries: each token has a weight, which is trained together with the documents' head."""

    def __init__(
        self,
        student: SparseTextEncoder,
        head: TermHead,
        documents: States,
        regularizers: Sequence[RegularizerSettings] = (),
        seed: int = 0,
    ) -> None:
        query = student.modules("query")
        if [type(module).__name__ for module in query] != ["SparseStaticEmbedding"]:
            raise UserError(
                "train: head trains a sparse student with queries: inference-free, or one whose queries are encoded "
                "as its documents are; set train: both_encoders."
            )
        super().__init__(head, documents, regularizers, seed, [query[0].weight])

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> list[Tensor]:
        """The distinct terms of each text."""
        ids, mask = columns[0]["input_ids"], columns[0]["attention_mask"].bool()
        return [torch.unique(ids[row][mask[row]]) for row in range(len(ids))]

    def held_out(self, student: SparseTextEncoder, texts: list[str]) -> list[Tensor]:
        """The distinct terms of held-out texts."""
        return self.encode(student.model, [features_of(student, texts, "query")], np.arange(len(texts)))

    def query_terms(self, parameters: Sequence[Tensor], queries: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The terms of each query with their trained weights."""
        used = torch.unique(torch.cat(queries))
        weights = parameters[0][used]
        return [(terms, weights[torch.searchsorted(used, terms)]) for terms in queries]


class QueryStatesScorer(TermHeadScorer):
    """For queries that the same head encodes as it does documents, from stored hidden states."""

    def __init__(
        self,
        head: TermHead,
        documents: States,
        queries: States,
        regularizers: Sequence[RegularizerSettings] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(head, documents, regularizers, seed)
        self._queries = queries

    def encode(self, model: Any, columns: Sequence[dict[str, Tensor]], texts: np.ndarray) -> _EncodedQueries:
        """Hidden states of the batch's texts."""
        return _EncodedQueries(*self._queries.gather(texts, columns[0]["input_ids"].device), is_batch=True)

    def held_out(self, student: SparseTextEncoder, texts: list[str]) -> _EncodedQueries:
        """Hidden states of held-out texts."""
        states = stored_states(student, texts, "query").gather(np.arange(len(texts)), student.model.device)
        return _EncodedQueries(*states, is_batch=False)

    def query_terms(self, parameters: Sequence[Tensor], queries: _EncodedQueries) -> list[tuple[Tensor, Tensor]]:
        """All terms of weight above 0, of the whole vocabulary."""
        if queries.terms is not None and parameters is self.trained:
            return queries.terms
        weights = self.head.of_states(queries.states, queries.lengths, parameters)
        active = [(row > 0).nonzero()[:, 0] for row in weights]
        terms = [(places, row[places]) for places, row in zip(active, weights, strict=True)]
        if queries.is_batch and parameters is self.trained:
            queries.terms = terms
        return terms


@dataclass(eq=False)
class _EncodedQueries:
    """Hidden states of texts, (sum of lengths, d), one text after the other, and (texts,) lengths.

    The terms of a training batch are kept: scores and regularizers both read them, and they are most of a step's work.
    """

    states: Tensor
    lengths: Tensor
    is_batch: bool
    terms: list[tuple[Tensor, Tensor]] | None = None


def exhaustive(student: SparseTextEncoder, name: str) -> StoredStatesRanker:
    """Exact search by stored hidden states; only the terms that some query has are computed."""
    # A limited number of terms depends on all of them.
    if student.model.max_active_dims:
        raise UserError(
            f"student {name}: exhaustive search by stored states is for students without a limit of terms; set "
            "evaluation.exhaustive: false."
        )
    return StoredStatesRanker(student, name, _search)


def _search(
    student: SparseTextEncoder, states: States, queries: Texts, corpus: Texts, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Only documents that share a term with the query are in the results."""
    encoded: Any = student.encode(queries.texts, "query")
    used = np.unique(encoded.indices)
    head = TermHead(student, states, corpus.column)
    terms = torch.from_numpy(used).long().to(head.parameters[0].device)
    # In parts: a block has some 50,000 tokens, and queries that a model encodes may have most of the vocabulary.
    parts = [(part, [parameter[part] for parameter in head.parameters]) for part in terms.split(_TERMS)]
    query_weights = encoded[:, used]

    def scores(block: np.ndarray) -> np.ndarray:
        weights = torch.cat([head.weights(chosen, part, block).cpu() for part, chosen in parts], dim=1)
        return np.asarray(query_weights @ weights.numpy().T)

    blocks = ((int(block[0]), scores(block)) for block in states.blocks())
    rows, best = best_of_blocks(blocks, len(queries), k, corpus.id_order)
    return np.where(best > 0, rows, -1), best


def store_documents(student: SparseTextEncoder, texts: Sequence[str]) -> None:
    """Put a student's documents into its store where the cache has their hidden states, as `store_from_states`."""
    # Which terms a limit, or VDR's head, keeps depends on all of them.
    if not student.model.max_active_dims and vocabulary_pooling(student.modules("document")) is None:
        store_from_states(student, SparseStore(student, "document"), texts, _rows)


def _rows(student: SparseTextEncoder, states: States, texts: Sequence[str]) -> Iterator[tuple[int, csr_array]]:
    head = TermHead(student, states, texts)
    for block in states.blocks():
        yield int(block[0]), csr_array(torch.cat(list(head.all_weights(block))).cpu().numpy())
