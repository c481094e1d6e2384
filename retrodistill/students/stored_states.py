"""Stored hidden states: what a frozen transformer makes of each token, once, for training the head that follows it."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, cache_folder, digest
from retrodistill.core.runtime import average_gradients, bar, keep_freed_memory
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.embeddings import TextStore
from retrodistill.encoders.modules import weights_digest
from retrodistill.encoders.multi_vector import MultiVectorModel
from retrodistill.encoders.sparse import SparseTextEncoder
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run
from retrodistill.training.lists import ListBatch, require_lists
from retrodistill.training.loss import DistillationLoss
from retrodistill.training.prepared import teacher_rows, training_rows
from retrodistill.training.scorers import Scorer
from retrodistill.training.stages import StageRun, drawn_groups, fit
from retrodistill.training.trainer import History, RankMonitor

_STATES, _PLACES = "states.bin", "places.npy"
_LARGEST = 65504.0  # of float16
_BATCH = 32
BLOCK = 256  # documents at a time


class States:
    """Hidden states of texts, ragged, memory-mapped.

    Args:
        vectors: (total, d) float16.
        places: (n, 2) int64: where each text's states begin, and how many it has.
    """

    def __init__(self, vectors: np.ndarray, places: np.ndarray) -> None:
        self.vectors, self.places = vectors, places

    def __len__(self) -> int:
        return len(self.places)

    @property
    def width(self) -> int:
        """Of a state."""
        return int(self.vectors.shape[1])

    def gather(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """States of some texts, one text after the other.

        Args:
            rows: (m,) integer rows of texts.
            device: Where they are wanted.

        Returns:
            (sum of lengths, d) float32 and (m,) int64 lengths.
        """
        places = self.places[rows]
        parts = [self.vectors[start : start + length] for start, length in places]
        joined = np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float16)
        return torch.from_numpy(joined).to(device).float(), torch.from_numpy(places[:, 1].copy()).to(device)


def head_of(student: SparseTextEncoder | MultiVectorModel) -> Any:
    """The linear map behind the transformer: to the vocabulary of a sparse student, to the width of token vectors.

    Raises:
        UserError: There is none that can be trained on its own.
    """
    found = [part for part in student.modules("document") if type(part).__name__ == "Dense"]
    if len(found) == 1 and found[0].module_input_name == "token_embeddings" and not found[0].use_residual:
        return found[0]
    if student.kind == "sparse":
        raise UserError(
            f"model {student.name} has its term head inside the transformer; train: head trains one that stands "
            "behind it, as students from bi-encoders have: start from one, or set train: both_encoders."
        )
    raise UserError(
        f"model {student.name} has no projection behind its transformer for train: head to train; set the student's "
        "dimension below the transformer's width, or train: both_encoders."
    )


def backbone_of(student: SparseTextEncoder | MultiVectorModel, role: Role) -> list[Any]:
    """The modules in front of the head, and those that mask tokens: they give hidden states and tell which count."""
    parts, head = student.modules(role), head_of(student)
    front = parts[: next((place for place, part in enumerate(parts) if part is head), len(parts))]
    return front + [part for part in parts[len(front) :] if type(part).__name__ == "MultiVectorMask"]


def stored_states(
    student: SparseTextEncoder | MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None = None
) -> States:
    """Hidden states of texts before the student's head, from the cache or into it.

    Only tokens that the student's mask leaves are kept: they are all that a score sees. float16 takes 2 x width bytes
    a token: 0.9 GB for 5,000 abstracts at width 384.

    Args:
        student: Its transformer runs.
        texts: In order.
        role: ``query`` or ``document``: it decides route, prompt and mask.
        root: Folder of the cache; the shared one by default.

    Raises:
        UserError: A state is not finite, or too large for float16.
    """
    folder = _folder(student, texts, role, root)
    if not (folder / _PLACES).exists():
        keep_freed_memory()
        with atomic_folder(folder) as temporary:
            _write(student, backbone_of(student, role), texts, role, temporary)
    places = np.load(folder / _PLACES)
    total = int(places[:, 1].sum())
    file = folder / _STATES
    width = file.stat().st_size // (2 * total) if total else 1
    mapped = np.memmap(file, dtype=np.float16, mode="r", shape=(total, width)) if total else np.zeros((0, 1), "f2")
    return States(mapped, places)


def has_states(
    student: SparseTextEncoder | MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None = None
) -> bool:
    """Whether `stored_states` would find them all in the cache."""
    try:
        return (_folder(student, texts, role, root) / _PLACES).exists()
    except UserError:  # no head behind a transformer
        return False


def _folder(student: SparseTextEncoder | MultiVectorModel, texts: Sequence[str], role: Role, root: Path | None) -> Path:
    backbone = backbone_of(student, role)
    settings = [[type(part).__name__, part.get_config_dict()] for part in backbone]
    length = getattr(backbone[0], "max_seq_length", None)
    key = digest(weights_digest(nn.Sequential(*backbone)), settings, length, student.prompt(role), role, digest(*texts))
    return (root or cache_folder()) / "states" / key


def segment_max(values: Tensor, lengths: Tensor) -> Tensor:
    """(segments, columns) maxima over consecutive rows; 0 for an empty segment.

    Args:
        values: (rows, columns).
        lengths: (segments,) int64, adding up to the rows.
    """
    found: Tensor = torch.segment_reduce(values, "max", lengths=lengths, axis=0, initial=None, unsafe=False)
    return torch.where((lengths > 0)[:, None], found, torch.zeros_like(found))


def _write(
    student: SparseTextEncoder | MultiVectorModel, backbone: list[nn.Module], texts: Sequence[str], role: Role, to: Path
) -> None:
    order = np.argsort([-len(text) for text in texts], kind="stable")
    places = np.zeros((len(texts), 2), dtype=np.int64)
    written = 0
    training = student.model.training
    student.model.eval()
    with (
        (to / _STATES).open("wb") as file,
        bar(len(texts), f"hidden states ({role})", "texts") as progress,
        torch.no_grad(),
    ):
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            states, mask = _states(student, backbone, [texts[row] for row in rows], role)
            counts = mask.sum(dim=1).cpu().numpy()
            kept = states[mask].float()
            if not bool((kept.abs() <= _LARGEST).all()):
                raise UserError(
                    f"model {student.name} has hidden states that float16 cannot hold; set train: both_encoders."
                )
            file.write(kept.cpu().numpy().astype(np.float16).tobytes())
            places[rows, 0] = written + np.concatenate([[0], np.cumsum(counts)[:-1]])
            places[rows, 1] = counts
            written += int(counts.sum())
            progress.update(len(rows))
    student.model.train(training)
    np.save(to / _PLACES, places)


def _states(
    student: SparseTextEncoder | MultiVectorModel, backbone: list[nn.Module], texts: list[str], role: Role
) -> tuple[Tensor, Tensor]:
    """(batch, tokens, d) and (batch, tokens) bool."""
    from sentence_transformers.util import batch_to_device

    prompt = student.prompt(role) or None
    features = batch_to_device(student.model.preprocess(texts, prompt=prompt, task=role), student.model.device)
    for module in backbone:
        keys = getattr(module, "forward_kwargs", ())
        features = module(features, task=role) if "task" in keys else module(features)
    return features["token_embeddings"], features["attention_mask"].bool()


class StoredStatesRanker(Ranker):
    """Exact search of a sparse or multi-vector student by the hidden states that its training stored.

    They give the student's exact scores and no transformer runs again. That is how students are compared while they are
    worked on; what is served is an index.

    Args:
        student: Encodes the queries.
        name: What its runs are called.
        search: ``(student, states, queries, corpus, k) -> ((queries, k) rows, (queries, k) scores)``.
    """

    can_search = True

    def __init__(self, student: Any, name: str, search: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
        self.student, self.name, self._search = student, name, search

    def search(self, queries: Texts, collection: Collection, k: int) -> Run:
        """The k documents of highest score of each query."""
        corpus = collection.documents
        states = stored_states(self.student, corpus.texts, "document")
        with torch.no_grad():
            rows, scores = self._search(self.student, states, queries, corpus, min(k, len(corpus)))
        return Run.from_matrix(queries.ids, corpus.ids, rows, scores, name=self.name)

    def fingerprint(self, collection: Collection) -> str:
        """Contracts of the student's roles."""
        return digest("stored states", self.student.fingerprint("query"), self.student.fingerprint("document"))


def store_from_states(
    student: SparseTextEncoder | MultiVectorModel,
    store: TextStore,
    texts: Sequence[str],
    blocks: Callable[[Any, States, Sequence[str]], Iterator[tuple[int, Any]]],
) -> None:
    """Put a student's document vectors into its store where the cache has their hidden states.

    Args:
        student: Of any training.
        store: Its documents'.
        texts: The corpus.
        blocks: Gives the row of the first document and the vectors of `BLOCK` documents at a time.
    """
    if not store.missing(texts) or not has_states(student, texts, "document"):
        return
    states = stored_states(student, texts, "document")
    with bar(len(texts), f"vectors from stored states ({student.name})", "texts") as progress, torch.no_grad():
        for start, vectors in blocks(student, states, texts):
            store.put(texts[start : start + BLOCK], vectors)
            progress.update(min(BLOCK, len(texts) - start))


_DEPTH = 10
_DOCUMENTS = 1000  # that held-out queries are ranked over, those that the teacher ranks highest among them
_COUNTED = 16  # sampled documents whose terms are counted over the whole vocabulary
_BLOCK = 64


class HeadScorer(Scorer):
    """What both kinds share: one text column, and parameters that learn outside the model's forward pass.

    Args:
        documents: Hidden states of the corpus.
        trained: Parameters that learn.

    Attributes:
        documents: Hidden states of the corpus.
        trained: Parameters that learn.
    """

    def __init__(self, documents: States, trained: Sequence[nn.Parameter]) -> None:
        self.documents, self.trained = documents, list(trained)
        self._began: list[Tensor] = []

    @abstractmethod
    def scores(self, parameters: Sequence[Tensor], queries: Any, documents: np.ndarray) -> Tensor:
        """(batch, n) scores of each query with its own documents, by some parameters.

        Args:
            parameters: As those that learn.
            queries: As `encode` gives.
            documents: (batch, n) corpus positions, -1 for padding, whose score is 0.
        """

    @abstractmethod
    def matrix(self, queries: Any, documents: np.ndarray) -> Tensor:
        """(queries, documents) scores of every query with every document, by the parameters that learn.

        Args:
            queries: As `encode` gives.
            documents: (m,) corpus positions.
        """

    @abstractmethod
    def held_out(self, student: Any, texts: list[str]) -> Any:
        """Held-out texts as `matrix` takes queries, for the monitor."""

    def lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores."""
        return self.scores(self.trained, encoded, batch.documents)

    def own_documents(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, batch) scores."""
        return self.matrix(encoded, np.maximum(batch.own, 0))

    def batch_documents(self, encoded: Any, batch: ListBatch, scores: Tensor) -> tuple[Tensor, np.ndarray]:
        """The texts' own documents."""
        return self.own_documents(encoded, batch), batch.own

    def keep_start(self, model: Any) -> None:
        """Keep the parameters as they are."""
        self._began = [parameter.detach().clone() for parameter in self.trained]

    def start_lists(self, encoded: Any, batch: ListBatch) -> Tensor:
        """(batch, n) scores by the parameters of the stage's start."""
        return self.scores(self._began, encoded, batch.documents)


@contextlib.contextmanager
def only_trained(model: Any, trained: Sequence[Any]) -> Iterator[None]:
    """Freeze all of a model but some parameters for a while; a later stage may train all of it.

    Args:
        model: A student.
        trained: Parameters that learn, used outside the model's forward pass.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    average_gradients(trained)  # the wrapped model's forward would do it
    yield
    model.requires_grad_(True)
    for parameter in frozen:
        parameter.requires_grad_(False)


def train_head(
    run: StageRun, scorer: HeadScorer, watch: Callable[[np.ndarray], dict[str, float]] | None = None
) -> History:
    """Train a student's head on both sides; all else is frozen meanwhile.

    Args:
        run: The stage.
        scorer: By the head.
        watch: What else is monitored, on some corpus positions.

    Raises:
        UserError: No list objective, or nothing to learn from.
    """
    model, texts = run.student.model, run.prepared.texts.texts.texts
    groups = require_lists(drawn_groups(run).of_texts(training_rows(run.prepared, run.stage)))
    with only_trained(model, scorer.trained):
        loss = DistillationLoss(model, run.prepared.terms, scorer, groups)
        columns = {"query": [texts[row] for row in groups.text_rows]}
        return fit(run, loss, columns, groups.text_rows, range(len(groups)), _monitor(run, scorer, watch))


def _monitor(
    run: StageRun, scorer: HeadScorer, watch: Callable[[np.ndarray], dict[str, float]] | None
) -> RankMonitor | None:
    """Agreement with the teacher over a sample of the corpus."""
    prepared, texts = run.prepared, run.prepared.texts.texts.texts
    if len(prepared.held_out) < 2:
        return None
    best = teacher_rows(prepared, _DEPTH)
    others = np.random.default_rng(run.data.seed).permutation(len(scorer.documents))[: max(0, _DOCUMENTS - best.size)]
    sample = np.unique(np.concatenate([best[best >= 0], others]))
    ranked = np.where(best >= 0, np.searchsorted(sample, np.maximum(best, 0)), -1)
    queries = scorer.held_out(run.student, [texts[row] for row in prepared.held_out])

    def scores() -> np.ndarray:
        with torch.no_grad():
            parts = [
                scorer.matrix(queries, sample[start : start + _BLOCK]).cpu().numpy()
                for start in range(0, len(sample), _BLOCK)
            ]
        return np.concatenate(parts, axis=1)

    counted = sample[np.linspace(0, len(sample) - 1, min(_COUNTED, len(sample)), dtype=int)]
    return RankMonitor(scores, ranked, None if watch is None else lambda: watch(counted))
