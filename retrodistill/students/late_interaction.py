"""Late-interaction re-rankers: documents are read alone, stored, and meet the query late (arXiv 2010.02666).

PreTT and TK are modules of sentence-transformers' CrossEncoder: they train, save, load and score pairs as one.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.files import atomic_folder, cache_folder, digest
from retrodistill.core.runtime import bar, main_first
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.modules import weights_digest
from retrodistill.rankers.protocol import Ranker, pair_positions
from retrodistill.runs.run import Run
from retrodistill.students.cross_encoder import CrossEncoderStudent, train_pairs
from retrodistill.students.stored_states import States
from retrodistill.training.stages import StageRun
from retrodistill.training.trainer import History

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

QUERY_LENGTH, DOCUMENT_LENGTH = 64, 200
Precision = Literal["float16", "float32"]
PRECISIONS = ("float16", "float32")


class Side(NamedTuple):
    """Texts of one side.

    Attributes:
        ids: (n, tokens) int64 token ids.
        mask: (n, tokens) bool, true where there is a token.
        states: (n, tokens, d).
    """

    ids: Tensor
    mask: Tensor
    states: Tensor

    def take(self, places: Tensor) -> Side:
        """The texts at (m,) places."""
        return Side(self.ids[places], self.mask[places], self.states[places])


class LateInteraction(InputModule):
    """What PreTT and TK share: texts are read apart, once each, and the pairs of a batch share them.

    Three steps: `lower` reads a text alone; `packed` makes of a document what a re-ranker stores; `compare` sees both
    sides. A forward pass over pairs takes all three, and rounds what would be stored, so that stored documents score as
    they did in training.

    Args:
        backbone: A BERT of transformers.
        tokenizer: Of transformers.
        query_length: Tokens of a query that are read, special ones included.
        document_length: The same of a document.
        precision: Precision of a document's stored states.

    Raises:
        UserError: Another architecture than BERT, texts longer than it reads, or another precision.
    """

    tokenizer: Any
    kind: ClassVar[str]
    specials: ClassVar[dict[Role, int]] = {"query": 0, "document": 0}
    config_file_name = "late_interaction.json"
    config_keys: list[str] = ["query_length", "document_length", "precision"]  # noqa: RUF012 - the base's
    save_in_root = True

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        query_length: int = QUERY_LENGTH,
        document_length: int = DOCUMENT_LENGTH,
        precision: Precision = "float16",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
        for name, length in (("query_length", query_length), ("document_length", document_length)):
            if length < 3:
                raise UserError(f"{name}={length}: give at least 3 tokens.")
        self.backbone, self.tokenizer = backbone, tokenizer
        self.query_length, self.document_length, self.precision = query_length, document_length, precision
        self.stored: Any = None  # a `TextStates`, while the lower part is frozen

    @property
    def processor(self) -> Any:
        """The tokenizer, by the name that the trainer knows."""
        return self.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a pair."""
        return self.query_length + self.document_length

    @abstractmethod
    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """A text's token ids with those special ones that its side has."""

    @abstractmethod
    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) states of texts that are read alone."""

    @abstractmethod
    def packed(self, states: Tensor) -> Tensor:
        """(n, tokens, width) of documents as they are stored, before rounding."""

    @abstractmethod
    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) raw scores of matched texts, higher is better.

        Args:
            queries: With their states of `lower`.
            documents: (n, tokens, width) of `packed`.
            mask: (n, tokens) bool of the documents.
        """

    @abstractmethod
    def lower_parameters(self) -> list[nn.Parameter]:
        """What `lower` is made of: frozen where its states are stored for training."""

    @classmethod
    @abstractmethod
    def empty_backbone(cls, config: Any) -> Any:
        """A backbone of a configuration, to be filled with weights."""

    def rounded(self, packed: Tensor) -> Tensor:
        """What is left after storing; gradients pass straight through."""
        if self.precision == "float32":
            return packed
        return packed + (packed.half().float() - packed).detach()

    def tokens(self, texts: Sequence[str], role: Role) -> tuple[Tensor, Tensor]:
        """(n, tokens) int64 ids and bool mask, at least one column; longer texts are cut."""
        longest = (self.query_length if role == "query" else self.document_length) - self.specials[role]
        cut = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
        rows = [self.framed(list(one), role) for one in cut]
        width = max([1, *map(len, rows)])
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id or 0), dtype=torch.int64)
        for row, one in enumerate(rows):
            ids[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
        lengths = torch.tensor([len(one) for one in rows])
        return ids, torch.arange(width)[None, :] < lengths[:, None]

    def side(self, texts: Sequence[str], role: Role) -> Side:
        """Texts with their states of `lower`, on the model's device."""
        device = next(self.parameters()).device
        ids, mask = (one.to(device) for one in self.tokens(texts, role))
        return Side(ids, mask, self.lower(ids, mask, role))

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Features of (query, document) pairs; a text that is in several is read once.

        Args:
            inputs: Pairs of texts.
            prompt: Prefix of each query.
            kwargs: Of the library; nothing here takes them.
        """
        queries, query_places = _distinct([(prompt or "") + query for query, _ in inputs])
        documents, document_places = _distinct([document for _, document in inputs])
        ids, mask = self.tokens(queries, "query")
        found = {"query_ids": ids, "query_mask": mask}
        if self.stored is None:
            found["document_ids"], found["document_mask"] = self.tokens(documents, "document")
        else:
            found["document_states"], found["document_mask"] = self.stored.of(documents)
        return {**found, "query_places": query_places, "document_places": document_places}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Features of `preprocess` with ``scores``, (pairs,) raw."""
        ids, mask, there = features["query_ids"], features["query_mask"], features["document_mask"]
        queries = Side(ids, mask, self.lower(ids, mask, "query"))
        states = features.get("document_states")
        if states is None:
            states = self.lower(features["document_ids"], there, "document")
        documents, at = self.rounded(self.packed(states)), features["document_places"]
        scores = self.compare(queries.take(features["query_places"]), documents[at], there[at])
        return {**features, "scores": scores}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Settings, configuration, tokenizer and all weights, in one folder."""
        self.save_config(output_path)
        self.backbone.config.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> LateInteraction:
        """As the library loads any module; no code of the folder runs."""
        from transformers import AutoConfig, AutoTokenizer

        place: dict[str, Any] = {"subfolder": subfolder, "token": token, "revision": revision}
        found = {**place, "cache_dir": cache_folder, "local_files_only": local_files_only}
        config = AutoConfig.from_pretrained(model_name_or_path, **found)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **found)
        place |= {"cache_folder": cache_folder, "local_files_only": local_files_only}
        module = cls(cls.empty_backbone(config), tokenizer, **cls.load_config(model_name_or_path, **place))
        return cls.load_torch_weights(model_name_or_path, model=module, **place)


def through(layers: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """(n, tokens, d) through BERT's layers, each token seeing those where (n, tokens) `mask` is true."""
    hide = (~mask[:, None, None, :]).to(hidden.dtype) * torch.finfo(hidden.dtype).min
    for layer in layers:
        hidden = layer(hidden, hide)
    return hidden


def require_bert(config: Any, source: str, kind: str) -> None:
    """Reject models that are not a BERT.

    Raises:
        UserError: Another architecture.
    """
    if getattr(config, "model_type", None) != "bert":
        raise UserError(
            f"model {source} is a {getattr(config, 'model_type', 'model without layers')}; a {kind} student runs the "
            "layers of a BERT apart: start from one, such as all-MiniLM-L6-v2."
        )


def late_interaction(module: LateInteraction, device: Any) -> Any:
    """The CrossEncoder around a module, with raw logits."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(modules=[module], device=str(device), activation_fn=nn.Identity())


def _distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts in their order, and (n,) int64: for each text its place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), torch.tensor([places[text] for text in texts], dtype=torch.int64)


def check_dimension(settings: Any) -> None:
    """Refuse a stored token's width that is not a number.

    Raises:
        ValueError: It is ``space``.
    """
    if settings.dimension == "space":
        raise ValueError("the dimension of a student that stores tokens is a number: that of a token's vector")


_STATES, _PLACES = "states.bin", "places.npy"
_LARGEST = 65504.0  # of float16
_BATCH = 32
_PAIRS = 50  # documents that meet a query at once


@dataclass(frozen=True, eq=False)
class StoredDocuments:
    """A corpus as a late-interaction student serves it.

    Attributes:
        student: Reads the documents.
        states: Stored states, in the corpus' order.
    """

    student: CrossEncoderStudent
    states: States

    @property
    def bytes_per_document(self) -> float:
        """States, and where each document's begin."""
        return float(self.states.vectors.nbytes + self.states.places.nbytes) / max(1, len(self.states))

    def score(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(n,) float32 raw scores of one query with the documents at (n,) integer rows."""
        late = module_of(self.student)
        found = []
        with _evaluating(late), torch.inference_mode():
            side = late.side([self.student.prompt("query") + query], "query")
            for start in range(0, len(rows), _PAIRS):
                states, mask = padded(self.states, rows[start : start + _PAIRS])
                documents, there = states.to(side.ids.device), mask.to(side.ids.device)
                every = side.take(torch.zeros(len(there), dtype=torch.int64, device=there.device))
                found.append(late.compare(every, documents, there).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


class StoredDocumentsRanker(Ranker):
    """A PreTT or TK student as a ranker: it scores pairs by documents that it read once and stored.

    Args:
        student: The student.
    """

    can_score_pairs = can_time_pairs = True

    def __init__(self, student: CrossEncoderStudent) -> None:
        self.student, self.name, self.kind = student, student.name, student.kind

    @classmethod
    def of_model(cls, model: CrossEncoder, name: str) -> StoredDocumentsRanker:
        """The ranker of a loaded model."""
        return cls(CrossEncoderStudent(model, name))

    def fingerprint(self, collection: Collection) -> str:
        """What decides a score."""
        return digest("stored documents", self.student.fingerprint("query"))

    def score(self, queries: Texts, collection: Collection, pairs: Run) -> Run:
        """The pairs with raw scores, one query's documents at a time."""
        score, texts = self.pair_fn(collection), queries.texts
        query_rows, rows = pair_positions(queries, collection, pairs)
        scores = np.zeros(len(rows), dtype=np.float32)
        for query in np.unique(query_rows):
            places = np.flatnonzero(query_rows == query)
            scores[places] = score(texts[query], rows[places])
        return pairs.with_scores(scores, self.name)

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """Reads the query and compares it with stored documents."""
        return stored_documents(self.student, collection.documents.texts).score

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Stored states, and where each document's begin."""
        return stored_documents(self.student, collection.documents.texts).bytes_per_document

    @property
    def queries_by(self) -> str:
        """The student."""
        return self.name


class TextStates:
    """States of texts, found by the text: what training looks up in place of reading documents.

    Args:
        states: Of the texts.
        texts: In their order; kept in memory.
    """

    def __init__(self, states: States, texts: Sequence[str]) -> None:
        self.states, self.rows = states, {text: row for row, text in enumerate(texts)}

    def of(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, tokens, d) float32 states and (n, tokens) bool mask.

        Raises:
            UserError: A text that is not stored.
        """
        lost = [text for text in texts if text not in self.rows]
        if lost:
            raise UserError(f"{len(lost)} documents have no stored states, among them {lost[0][:40]!r}.")
        return padded(self.states, np.array([self.rows[text] for text in texts], dtype=np.int64))

    def __deepcopy__(self, memo: dict[int, Any]) -> TextStates:
        """Itself: a copy of the student reads the same file."""
        return self


def stored_documents(student: CrossEncoderStudent, texts: Sequence[str], root: Path | None = None) -> StoredDocuments:
    """Documents as a student serves them, from the cache or into it.

    Args:
        student: A PreTT or TK.
        texts: Documents, in the corpus' order.
        root: Folder of the cache; the shared one by default.

    Raises:
        UserError: Another student, or states that its precision cannot hold.
    """
    return StoredDocuments(student, _states(student, texts, packed=True, root=root))


@contextlib.contextmanager
def below_stored(student: CrossEncoderStudent, documents: Sequence[str], root: Path | None = None) -> Iterator[None]:
    """Freeze what a late-interaction student does before it compares, and take documents' states of it from a store.

    Training then moves the rest: PreTT's upper layers, TK's projection, gate and kernel weights.

    Args:
        student: A PreTT or TK.
        documents: Those that will be seen, in the corpus' order.
        root: Folder of the cache; the shared one by default.

    Raises:
        UserError: Another student, or a state that float16 cannot hold.
    """
    late = module_of(student)
    texts = [*documents, ""]  # the empty text fills masked positions
    frozen = [parameter for parameter in late.lower_parameters() if parameter.requires_grad]
    late.stored = TextStates(_states(student, texts, packed=False, root=root), texts)
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        late.stored = None
        for parameter in frozen:
            parameter.requires_grad_(True)


def train_late_interaction(run: StageRun) -> History:
    """Train a PreTT or TK; with ``train: head`` what compares query and document, documents' states below it stored.

    Raises:
        UserError: Nothing to learn from.
    """
    if run.stage.train != "head":
        return train_pairs(run)
    with contextlib.ExitStack() as stack:
        with main_first():
            stack.enter_context(below_stored(run.student, run.data.collection.documents.texts))
        return train_pairs(run)


def module_of(student: CrossEncoderStudent) -> LateInteraction:
    """The PreTT or TK of a student.

    Raises:
        UserError: Another student.
    """
    module = student.model[0]
    if not isinstance(module, LateInteraction):
        raise UserError(f"{student.name} reads pairs as a whole and stores no documents; a prett or tk student does.")
    return module


def padded(states: States, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(n, tokens, d) float32 and (n, tokens) bool of the texts at (n,) rows; at least one column."""
    flat, lengths = states.gather(rows)
    width = max(1, int(lengths.max())) if len(lengths) else 1
    mask = torch.arange(width)[None, :] < lengths[:, None]
    found = torch.zeros(len(rows), width, states.width)
    found[mask] = flat
    return found, mask


def _states(student: CrossEncoderStudent, texts: Sequence[str], *, packed: bool, root: Path | None) -> States:
    """As packed: by all weights and in the student's precision; as read: by what `lower` is made of, in float16."""
    late = module_of(student)
    dtype = np.dtype(np.float32 if packed and late.precision == "float32" else np.float16)
    key = digest("packed" if packed else "lower", _made_by(student, packed=packed), digest(*texts))
    folder = (root or cache_folder()) / "states" / key
    if not (folder / _PLACES).exists():
        with atomic_folder(folder) as temporary:
            _write(late, texts, temporary, packed=packed, dtype=dtype)
    places, file = np.load(folder / _PLACES), folder / _STATES
    total = int(places[:, 1].sum())
    width = file.stat().st_size // (dtype.itemsize * total) if total else 1
    mapped = np.memmap(file, dtype=dtype, mode="r", shape=(total, width)) if total else np.zeros((0, 1), dtype)
    return States(mapped, places)


def _made_by(student: CrossEncoderStudent, *, packed: bool) -> list[Any]:
    """What decides stored states; training the rest leaves those of `lower` as they are."""
    late = module_of(student)
    if packed:
        return [student.fingerprint("document"), late.kind]
    below = nn.ParameterList(late.lower_parameters())
    return [weights_digest(below), late.kind, late.get_config_dict(), late.tokenizer.get_vocab()]


def _write(late: LateInteraction, texts: Sequence[str], to: Path, *, packed: bool, dtype: np.dtype) -> None:
    """Longest texts first: running out of memory shows at the start, and there is little padding."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    places = np.zeros((len(texts), 2), dtype=np.int64)
    written = 0
    with (
        (to / _STATES).open("wb") as file,
        bar(len(texts), "documents' states", "texts") as progress,
        _evaluating(late),
        torch.inference_mode(),
    ):
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            side = late.side([texts[row] for row in rows], "document")
            kept = (late.packed(side.states) if packed else side.states)[side.mask].float()
            if dtype == np.float16 and not bool((kept.abs() <= _LARGEST).all()):
                raise UserError(
                    f"the {late.kind} student has states that float16 cannot hold; set train: both_encoders."
                )
            file.write(kept.cpu().numpy().astype(dtype).tobytes())
            counts = side.mask.sum(dim=1).cpu().numpy()
            places[rows, 0] = written + np.concatenate([[0], np.cumsum(counts)[:-1]])
            places[rows, 1] = counts
            written += int(counts.sum())
            progress.update(len(rows))
    np.save(to / _PLACES, places)


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """A module without dropout for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
