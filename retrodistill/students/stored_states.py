"""Stored hidden states: a frozen transformer reads each text once, and the head after it is trained on what it gave.

Sparse and multi-vector students share it: an inference-free sparse score, ``sum_t w_t log(1 + relu(max_i <d_t, h_i> +
b_t))`` over the query's terms t, is MaxSim (ColBERT, arXiv 2004.12832) of hidden states h_i and a vector for each term.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from retrodistill.core.arrays import save_array
from retrodistill.core.cache import cache_folder, open_once
from retrodistill.core.checksums import DamagedError, checked, map_sealed, seal, sealed_file
from retrodistill.core.digests import digest, texts_digest
from retrodistill.core.errors import UserError
from retrodistill.core.runtime import average_gradients, bar, keep_freed_memory, release_freed_memory
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role, current_encoding, tokens_per_pass
from retrodistill.encoders.embeddings import TextStore
from retrodistill.encoders.modules import configurations, settings_of, tokenizers_digest, weights_digest
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run
from retrodistill.students.clustering import padded
from retrodistill.training.groups import require_groups
from retrodistill.training.lists import ListBatch
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.prepared import labeled_places, teacher_rows, training_rows
from retrodistill.training.scorers import Scorer
from retrodistill.training.stages import StageRun, drawn_groups, evaluating, fit
from retrodistill.training.trainer import History, RankMonitor

_STATES, _PLACES = "states.bin", "places.npy"
_DEPTH = 10  # documents of the teacher that the monitor compares with
_SAMPLE = 1000  # documents that held-out queries rank, the teacher's best among them
_COUNTED = 16  # sampled documents whose terms are counted over the whole vocabulary
_RELEASED = 16  # batches after which freed memory is given back
_BLOCK = 64  # documents that a monitor scores at a time
BLOCK = 256  # documents at a time in search and storing

Reader = Callable[[list[str]], tuple[Tensor, Tensor]]  # texts -> (n, tokens, d) states and (n, tokens) bool mask
Watch = Callable[[np.ndarray], dict[str, float]]  # corpus positions of documents -> further monitored values
TokenStudent = SparseTextEncoder | MultiVectorModel


@dataclass(frozen=True, eq=False)
class States:
    """Ragged hidden states of texts: (total, d) float vectors, memory-mapped, and (n, 2) int64 starts and lengths."""

    vectors: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows of consecutive texts, `BLOCK` at a time."""
        return (np.arange(start, min(start + BLOCK, len(self))) for start in range(0, len(self), BLOCK))

    def gather(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(sum of lengths, d) float32 states of the texts at (m,) rows, concatenated, and (m,) int64 lengths."""
        places = self.places[rows]
        of_texts = (checked(self.vectors[start : start + count]) for start, count in places)
        joined = np.concatenate([self.vectors[:0], *of_texts])
        return torch.from_numpy(joined).to(device).float(), torch.from_numpy(places[:, 1].copy()).to(device)

    def padded(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(n, tokens, d) float32 states of the texts at (n,) rows, 0 after a text's end, and (n, tokens) bool mask."""
        flat, lengths = self.gather(rows, device)
        return padded(list(flat.split(lengths.tolist())))


def cached_states(
    key: str,
    texts: Sequence[str],
    read: Reader,
    what: str,
    *,
    dtype: Any = np.float16,
    device: Any = "cpu",
    longest: int | None = None,
) -> States:
    """States of texts, in order, from the cache or into it; masked tokens are left out.

    The key is a digest of everything that decides the states, ``what`` titles the progress bar, and ``read`` works on
    the torch ``device`` and reads at most ``longest`` tokens of a text. float16, rather than float32, takes 2 x width
    bytes a token: 0.9 GB for 5,000 abstracts at width 384. States that it cannot hold, and those that are not finite,
    are refused.
    """
    folder, dtype = cache_folder() / "states" / key, np.dtype(dtype)

    def make(temporary: Path) -> None:
        keep_freed_memory()
        bytes_of = [len(text.encode()) for text in texts]
        batches = current_encoding().batches(bytes_of, longest, tokens_per_pass(device))
        _write(texts, batches, read, temporary, what, dtype)
        seal(temporary / _PLACES, owner=key)
        seal(temporary / _STATES, owner=key, lazy=[(0, (temporary / _STATES).stat().st_size)])
        release_freed_memory()

    return open_once(folder, make, lambda: _opened(folder, dtype))


def _opened(folder: Path, dtype: np.dtype) -> States:
    advice = f"delete the folder {folder} of the cache, and it is made again"
    try:
        places = np.load(sealed_file(folder / _PLACES, owner=folder.name, advice=advice), allow_pickle=False)
        states = map_sealed(folder / _STATES, owner=folder.name, advice=advice).lazily().content
    except FileNotFoundError as error:
        raise DamagedError(Path(error.filename or folder), "it is missing", advice) from error
    total = int(places[:, 1].sum())
    if len(states) % (dtype.itemsize * max(total, 1)):
        raise DamagedError(folder / _STATES, "it is cut short", advice)
    return States(states.view(dtype).reshape(total, -1) if total else np.zeros((0, 1), dtype), places)


def _write(
    texts: Sequence[str], batches: Sequence[np.ndarray], read: Reader, to: Path, what: str, dtype: np.dtype
) -> None:
    places, written = np.zeros((len(texts), 2), dtype=np.int64), 0
    with (to / _STATES).open("wb") as file, bar(len(texts), what, "texts") as progress, torch.no_grad():
        for number, rows in enumerate(batches, 1):
            states, mask = read([texts[row] for row in rows])
            kept = states[mask].float()
            if dtype == np.float16 and not bool((kept.abs() <= np.finfo(np.float16).max).all()):
                raise UserError("the student has hidden states that float16 cannot hold; set train: both_encoders.")
            file.write(kept.cpu().numpy().astype(dtype).tobytes())
            counts = mask.sum(dim=1).cpu().numpy()
            places[rows, 0] = written + np.concatenate([[0], np.cumsum(counts)[:-1]])
            places[rows, 1] = counts
            written += int(counts.sum())
            progress.update(len(rows))
            if number % _RELEASED == 0:
                release_freed_memory()
    save_array(to / _PLACES, places)


def head_of(student: TokenStudent) -> Any:
    """The linear map after the transformer, to the vocabulary or to the width of token vectors; UserError without."""
    dense = [module for module in student.modules("document") if type(module).__name__ == "Dense"]
    if len(dense) == 1 and dense[0].module_input_name == "token_embeddings" and not dense[0].use_residual:
        return dense[0]
    if student.kind == "sparse":
        raise UserError(
            f"model {student.name} has its term head inside the transformer; train: head needs one after it, as "
            "students from bi-encoders have: start from a bi-encoder, or set train: both_encoders."
        )
    raise UserError(
        f"model {student.name} has no projection after its transformer for train: head to train; set the student's "
        "dimension below the transformer's width, or train: both_encoders."
    )


def backbone_of(student: TokenStudent, role: Role) -> list[Any]:
    """The modules before the head, which give hidden states, and those that mask tokens."""
    modules, head = student.modules(role), head_of(student)
    end = modules.index(head) if head in modules else len(modules)
    return modules[:end] + [module for module in modules[end:] if type(module).__name__ == "MultiVectorMask"]


def through_modules(modules: Sequence[Any], features: dict[str, Any], role: Role) -> dict[str, Any]:
    """Features after some modules of a model, each told the role where it takes one."""
    for module in modules:
        takes_task = "task" in getattr(module, "forward_kwargs", ())
        features = module(features, task=role) if takes_task else module(features)
    return features


def stored_states(student: TokenStudent, texts: Sequence[str], role: Role) -> States:
    """Hidden states of texts before the student's head, as `cached_states`; of the tokens that its mask leaves."""
    backbone = backbone_of(student, role)

    def read(batch: list[str]) -> tuple[Tensor, Tensor]:
        with student.encoding.autocast(student.model.device):
            features = through_modules(backbone, features_of(student, batch, role), role)
        return features["token_embeddings"], features["attention_mask"].bool()

    with evaluating(student.model):
        return cached_states(
            _key(student, texts, role),
            texts,
            read,
            f"hidden states ({role})",
            device=student.model.device,
            longest=getattr(backbone[0], "max_seq_length", None),
        )


def features_of(student: TokenStudent, texts: list[str], role: Role) -> dict[str, Any]:
    """Tokens of texts as the student reads them, on its device."""
    features = student.model.preprocess(texts, prompt=student.prompt(role) or None, task=role)
    return dict(batch_to_device(features, student.model.device))


def _key(student: TokenStudent, texts: Sequence[str], role: Role) -> str:
    backbone = backbone_of(student, role)
    weights, length = weights_digest(nn.Sequential(*backbone)), getattr(backbone[0], "max_seq_length", None)
    settings = [[settings_of(module) for module in backbone], tokenizers_digest(backbone), configurations(backbone)]
    precision = [] if student.encoding.precision == "float32" else [student.encoding.precision]  # as stores have it
    return digest(weights, settings, length, student.prompt(role), role, texts_digest(texts), *precision)


def best_products(states: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
    """(texts, n) largest inner products of each text's (length, d) states with (n, d) vectors; 0 without states.

    The texts' states are consecutive rows of ``states``, and ``lengths`` are their (texts,) numbers.
    """
    if states.is_cuda or torch.is_grad_enabled():
        products = states @ vectors.T
        maxima: Tensor = torch.segment_reduce(products, "max", lengths=lengths, axis=0, initial=None, unsafe=False)
        return maxima.masked_fill((lengths == 0)[:, None], 0.0)
    # Without gradients a text at a time takes a fifth of the time: its products stay in the processor's cache.
    best = states.new_zeros(len(lengths), len(vectors))
    for row, part in zip(best, states.split(lengths.tolist()), strict=True):
        if len(part):
            torch.amax(part @ vectors.T, dim=0, out=row)
    return best


class StoredStatesRanker(Ranker):
    """Exact search of a sparse or multi-vector student by the hidden states that its training stored.

    No transformer runs for documents. It compares students during development; what is served is an index. ``search``
    is ``(student, states, queries, corpus, k) -> ((queries, k) rows, (queries, k) scores)``.
    """

    can_search = True

    def __init__(self, student: Any, name: str, search: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        self.student, self.name, self._search = student, name, search

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest score of each query."""
        corpus = collection.documents
        states = stored_states(self.student, corpus.column, "document")
        with torch.no_grad():
            rows, scores = self._search(self.student, states, queries, corpus, min(k, len(corpus)))
        return Run.from_matrix(queries.ids, corpus.ids, rows, scores, name=self.name)

    def fingerprint(self, collection: Collection) -> str:
        """Contracts of the student's roles."""
        return digest("stored states", self.student.fingerprint("query"), self.student.fingerprint("document"))


def store_from_states(
    student: TokenStudent,
    store: TextStore,
    texts: Sequence[str],
    blocks: Callable[[Any, States, Sequence[str]], Iterator[tuple[int, Any]]],
) -> None:
    """Put a student's document vectors into its store if the cache has their hidden states, as train: head leaves them.

    float16 states change a value by a thousandth. ``blocks`` gives the row of the first document and the vectors of
    `BLOCK` documents at a time.
    """
    try:
        folder = cache_folder() / "states" / _key(student, texts, "document")
    except UserError:  # without a head of its own a student has no stored states
        return
    if not store.missing(texts) or not (folder / _PLACES).exists():
        return
    states = stored_states(student, texts, "document")
    with bar(len(texts), f"vectors from stored states ({student.name})", "texts") as progress, torch.no_grad():
        for start, vectors in blocks(student, states, texts):
            store.put(texts[start : start + BLOCK], vectors)
            progress.update(min(BLOCK, len(texts) - start))


class HeadScorer(Scorer):
    """Scores by a head whose parameters, ``trained``, learn outside the model's forward pass; one text column."""

    def __init__(self, documents: States, trained: Sequence[nn.Parameter]) -> None:
        self.documents, self.trained = documents, list(trained)
        self._start: list[Tensor] = []

    @abstractmethod
    def scores(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """(batch, n) scores of queries, as `encode` gives, with documents at (batch, n) corpus positions.

        Parameters are in place of `trained`. The score of padding, at position -1, is 0.
        """

    @abstractmethod
    def matrix(self, queries: Any, documents: np.ndarray) -> Tensor:
        """(queries, documents) scores of queries, as `encode` gives, with documents at (m,) corpus positions."""

    @abstractmethod
    def held_out(self, student: Any, texts: list[str]) -> Any:
        """Held-out texts as `matrix` takes queries, for the monitor."""

    def lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores."""
        return self.scores(self.trained, encoded, batch.documents)

    def own_documents(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, batch) scores."""
        return self.matrix(encoded, np.maximum(batch.own, 0))

    def keep_start(self, model: Any) -> None:
        """Keep a copy of the parameters."""
        self._start = [parameter.detach().clone() for parameter in self.trained]

    def start_lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores by the parameters of the stage's start."""
        return self.scores(self._start, encoded, batch.documents)


@contextlib.contextmanager
def only_trained(model: Any, trained: Sequence[Any]) -> Iterator[None]:
    """Freeze everything of a model but some parameters inside the block."""
    frozen = nn.ParameterList([parameter for parameter in model.parameters() if not parameter.requires_grad])
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    yield
    model.requires_grad_(True)
    frozen.requires_grad_(False)


def train_head(run: StageRun, scorer: HeadScorer, watch: Watch = lambda documents: {}) -> History:
    """Train a student's head alone; ``watch`` gives further monitored values, of documents at some corpus positions."""
    model, texts = run.student.model, run.prepared.texts.texts.texts
    groups = require_groups(drawn_groups(run).of_texts(training_rows(run.prepared, run.stage)))
    with only_trained(model, scorer.trained):
        average_gradients(scorer.trained)  # the wrapped model's forward would do it, and does not run
        loss = DistillationLoss(model, run.prepared.terms, scorer, groups)
        columns = {"query": [texts[row] for row in groups.text_rows]}
        return fit(run, loss, columns, groups.text_rows, range(len(groups)), _head_monitor(run, scorer, watch))


def _head_monitor(run: StageRun, scorer: HeadScorer, watch: Watch) -> RankMonitor | None:
    texts, held_out = run.prepared.texts.texts.texts, run.prepared.held_out
    queries = scorer.held_out(run.student, [texts[row] for row in held_out]) if len(held_out) > 1 else None

    def scores(sample: np.ndarray) -> np.ndarray:
        blocks = [sample[start : start + _BLOCK] for start in range(0, len(sample), _BLOCK)]
        with torch.no_grad():
            return np.concatenate([scorer.matrix(queries, block).cpu().numpy() for block in blocks], axis=1)

    return sampled_monitor(run, len(scorer.documents), scores, watch)


def sampled_monitor(
    run: StageRun, documents: int, scores_of: Callable[[np.ndarray], np.ndarray], watch: Watch
) -> RankMonitor | None:
    """Agreement with the teacher, and with labels, over a sample of the corpus; None for fewer than two held-out texts.

    ``scores_of`` gives (held out, m) scores of documents at (m,) corpus positions, of which there are ``documents``.
    """
    prepared = run.prepared
    if len(prepared.held_out) < 2:
        return None
    best = teacher_rows(prepared, _DEPTH)
    others = np.random.default_rng(run.data.seed).permutation(documents)[: max(0, _SAMPLE - best.size)]
    sample = np.unique(np.concatenate([best[best >= 0], others]))
    ranked = np.where(best >= 0, np.searchsorted(sample, np.maximum(best, 0)), -1)
    counted = sample[np.linspace(0, len(sample) - 1, min(_COUNTED, len(sample)), dtype=int)]
    grades = labeled_places(prepared, run.data, prepared.held_out, sample)
    return RankMonitor(lambda: scores_of(sample), ranked, lambda: watch(counted), grades)
