"""Late-interaction re-rankers: documents are read alone, stored, and meet the query late (arXiv 2010.02666).

Documents are stored twice: packed, for serving; and as the lower part reads them, for training what follows it.
"""

from __future__ import annotations

import contextlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from retrodistill.core.digests import digest, texts_digest
from retrodistill.core.errors import UserError, unknown
from retrodistill.core.runtime import main_first
from retrodistill.core.turns import in_turn
from retrodistill.data.collection import Collection
from retrodistill.data.texts import Texts
from retrodistill.encoders.contract import Role
from retrodistill.encoders.divided_layers import make_divisible, runs_apart
from retrodistill.encoders.layers import stack_of
from retrodistill.encoders.modules import configurations, settings_of, tokenizers_digest, weights_digest
from retrodistill.rankers.protocol import Ranker
from retrodistill.runs.run import Run
from retrodistill.students.cross_encoder import KIND as CROSS_ENCODER
from retrodistill.students.cross_encoder import CrossEncoderStudent, train_pairs
from retrodistill.students.stored_states import Reader, States, cached_states
from retrodistill.training.stages import StageRun, evaluating
from retrodistill.training.trainer import History

LENGTHS: dict[Role, int] = {"query": 64, "document": 200}  # tokens of a text by default
Precision = Literal["float16", "float32"]
_PLACE = {"subfolder", "token", "revision", "local_files_only"}  # where the library finds a model's files
_PROBED = 3  # times two tokens, by which a transformer's parts are compared with the whole
_PAIRS = 50  # documents that meet a query at once


class Side(NamedTuple):
    """Texts of one side: (n, tokens) int64 ids and bool mask, and (n, tokens, d) states."""

    ids: Tensor
    mask: Tensor
    states: Tensor

    def take(self, rows: Tensor) -> Side:
        """The texts at (m,) rows."""
        return Side(self.ids[rows], self.mask[rows], self.states[rows])


class LateInteraction(InputModule):
    """What PreTT and TK share, as modules of a CrossEncoder: the pairs of a batch share its texts, each read once.

    `lower` reads a text alone, `packed` turns a document into what a re-ranker stores, and `compare` sees both sides. A
    forward pass over pairs does all three and rounds what would be stored, so stored documents score as in training.

    Args:
        backbone: A divisible transformer, see `backbone_of`.
        tokenizer: Its tokenizer.
        dimension: Width that a document's states are stored in; the model's own by default.
        query_length: Maximum number of tokens of a query, special ones included.
        document_length: The same of a document.
        precision: Of a document's stored states.
    """

    tokenizer: Any
    read: Tensor
    kind: ClassVar[str]
    # (configuration of the transformer, settings) -> backbone, before weights are loaded
    new_backbone: ClassVar[Callable[[Any, Mapping[str, Any]], Any]]
    specials: dict[Role, int] = {"query": 0, "document": 0}  # noqa: RUF012 - subclasses have others
    config_file_name = "late_interaction.json"
    config_keys: list[str] = ["query_length", "document_length", "precision"]  # noqa: RUF012 - the base's
    save_in_root = True

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        dimension: int | None = None,
        query_length: int = LENGTHS["query"],
        document_length: int = LENGTHS["document"],
        precision: Precision = "float16",
    ) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        if dimension is not None and not 1 <= dimension <= width:
            raise UserError(f"dimension={dimension}: the model's tokens have {width}; choose from 1 to {width}.")
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        for name, length in (("query_length", query_length), ("document_length", document_length)):
            if length < 3:
                raise UserError(f"{name}={length}: give at least 3 tokens.")
        self.backbone, self.tokenizer, self.dimension = backbone, tokenizer, dimension
        self.query_length, self.document_length, self.precision = query_length, document_length, precision
        # A buffer, so that the weights' digest covers the settings that decide scores as weights do.
        self.register_buffer("read", torch.tensor([query_length, document_length, int(precision == "float16")]))
        self.stored: Reader | None = None  # gives documents' states while the lower part is frozen

    @property
    def processor(self) -> Any:
        """The tokenizer, by the name that the trainer knows."""
        return self.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a pair."""
        return self.query_length + self.document_length

    def framed(self, tokens: list[int], role: Role) -> list[int]:
        """A text's token ids with the special tokens of its side; none by default."""
        return tokens

    @abstractmethod
    def lower(self, ids: Tensor, mask: Tensor, role: Role) -> Tensor:
        """(n, tokens, d) states of texts that are read alone."""

    @abstractmethod
    def packed(self, states: Tensor) -> Tensor:
        """(n, tokens, width) of documents as they are stored, before rounding."""

    @abstractmethod
    def compare(self, queries: Side, documents: Tensor, mask: Tensor) -> Tensor:
        """(n,) raw scores of queries with states of `lower` and documents of `packed`, higher is better."""

    @abstractmethod
    def lower_parameters(self) -> list[nn.Parameter]:
        """Parameters of `lower`: frozen where its states are stored for training."""

    def rounded(self, packed: Tensor) -> Tensor:
        """What is left after storing; gradients pass straight through."""
        if self.precision == "float32":
            return packed
        return packed + (packed.half().float() - packed).detach()

    def tokens(self, texts: Sequence[str], role: Role) -> tuple[Tensor, Tensor]:
        """(n, tokens) int64 ids and bool mask, at least one column; longer texts are cut."""
        longest = (self.query_length if role == "query" else self.document_length) - self.specials[role]
        with in_turn(self):
            cut = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=longest)
        rows = [self.framed(tokens, role) for tokens in cut["input_ids"]]
        width, padding = max([1, *map(len, rows)]), [self.tokenizer.pad_token_id or 0]
        ids = torch.tensor([row + padding * (width - len(row)) for row in rows], dtype=torch.int64)
        return ids.view(len(rows), width), torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]

    def side(self, texts: Sequence[str], role: Role) -> Side:
        """Texts with their states of `lower`, on the model's device."""
        device = next(self.parameters()).device
        ids, mask = (tensor.to(device) for tensor in self.tokens(texts, role))
        return Side(ids, mask, self.lower(ids, mask, role))

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Features of (query, document) pairs, of which a text of several is read once; queries get the prompt."""
        queries, query_places = _distinct([(prompt or "") + query for query, _ in inputs])
        documents, document_places = _distinct([document for _, document in inputs])
        features = {"query_places": query_places, "document_places": document_places}
        features["query_ids"], features["query_mask"] = self.tokens(queries, "query")
        if self.stored is None:
            features["document_ids"], features["document_mask"] = self.tokens(documents, "document")
        else:
            features["document_states"], features["document_mask"] = self.stored(documents)
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Features of `preprocess` with ``scores``, (pairs,) raw."""
        ids, mask, document_mask = features["query_ids"], features["query_mask"], features["document_mask"]
        queries = Side(ids, mask, self.lower(ids, mask, "query"))
        states = features.get("document_states")
        if states is None:
            states = self.lower(features["document_ids"], document_mask, "document")
        documents, rows = self.rounded(self.packed(states)), features["document_places"]
        scores = self.compare(queries.take(features["query_places"]), documents[rows], document_mask[rows])
        return {**features, "scores": scores}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Settings, configuration, tokenizer and all weights, in one folder."""
        self.save_config(output_path)
        self.backbone.config.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, cache_folder: str | None = None, **kwargs: Any
    ) -> LateInteraction:
        """As the library loads any module; no code of the folder runs."""
        place = {name: value for name, value in kwargs.items() if name in _PLACE}
        options = {**place, "cache_dir": cache_folder, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(model_name_or_path, **options)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **options)
        place["cache_folder"] = cache_folder
        settings = cls.load_config(model_name_or_path, **place)
        module = cls(cls.new_backbone(config, settings), tokenizer, **settings)
        return cls.load_torch_weights(model_name_or_path, model=module, **place)


def backbone_of(model: Any, source: str, kind: str) -> Any:
    """The transformer of a sentence-transformers model, divisible, with the head that it has.

    A model without one, a transformer whose parts do not add up to the whole, and a tokenizer without tokens that begin
    and end a text are a UserError: what is asked is what the student does with it, not which architecture it is.
    """
    backbone, tokenizer = getattr(model[0], "auto_model", None), getattr(model, "tokenizer", None)
    wanted = f"a {kind} student runs a transformer's layers apart; start from a bi-encoder such as all-MiniLM-L6-v2."
    if backbone is None:
        raise UserError(f"model {source} is a model without layers; {wanted}")
    architecture = type(backbone).__name__
    ids = [getattr(tokenizer, name, None) for name in ("cls_token_id", "sep_token_id")]
    if None in ids:
        raise UserError(f"model {source} has no tokens that begin and end a text ({architecture}); {wanted}")
    stack_of(backbone)  # refuses a transformer without one
    make_divisible(backbone)
    probe = torch.tensor([ids * _PROBED], device=model.device)
    with evaluating(backbone):
        if not runs_apart(backbone.base_model, probe):
            raise UserError(f"model {source}: the layers of {architecture} cannot be run apart; {wanted}")
    return backbone


def new_backbone(config: Any, auto_class: Any) -> Any:
    """A transformer for weights that are loaded, of a class of transformers such as AutoModel, without a pooler."""
    options: dict[str, Any] = {}
    if auto_class is AutoModel:
        takes = inspect.signature(AutoModel._model_mapping[type(config)].__init__).parameters
        options = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
    backbone = auto_class.from_config(config, **options)
    if len(stack_of(backbone)[0]):
        make_divisible(backbone)
    return backbone


def late_interaction(module: LateInteraction, device: Any) -> CrossEncoder:
    """The CrossEncoder around a module, with raw logits."""
    return CrossEncoder(modules=[module], device=str(device), activation_fn=nn.Identity())


def module_of(student: CrossEncoderStudent) -> LateInteraction:
    """The PreTT or TK of a student; a UserError for another kind."""
    module = student.model[0]
    if not isinstance(module, LateInteraction):
        raise UserError(f"{student.name} reads pairs as a whole and stores no documents; a prett or tk student does.")
    return module


def _distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts in order, and (n,) int64: for each text its place among them."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), torch.tensor([places[text] for text in texts], dtype=torch.int64)


class StoredDocuments:
    """Documents as a PreTT or TK student serves them: packed states, in order, from the cache or into it."""

    def __init__(self, student: CrossEncoderStudent, texts: Sequence[str]) -> None:
        self.student, self.module = student, module_of(student)
        key = digest("packed", [student.fingerprint("document"), self.module.kind], texts_digest(texts))
        self.states = _states(self.module, texts, key, self.module.packed, self.module.precision)

    @property
    def bytes_per_document(self) -> float:
        """States, and where each document's begin."""
        return float(self.states.vectors.nbytes + self.states.places.nbytes) / max(1, len(self.states))

    def score(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(n,) float32 raw scores of one query with the documents at (n,) integer rows."""
        module, scores = self.module, np.zeros(len(rows), dtype=np.float32)
        with evaluating(module), torch.inference_mode():
            side = module.side([self.student.prompt("query") + query], "query")
            for start in range(0, len(rows), _PAIRS):
                documents, mask = self.states.padded(rows[start : start + _PAIRS], side.ids.device)
                queries = side.take(mask.new_zeros(len(mask), dtype=torch.int64))
                scores[start : start + _PAIRS] = module.compare(queries, documents, mask).float().cpu().numpy()
        return scores


class StoredDocumentsRanker(Ranker):
    """A PreTT or TK student as a ranker: it scores pairs by documents that it read once and stored."""

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
        query_rows, rows = pairs.positions(queries, collection.documents)
        scores = np.zeros(len(rows), dtype=np.float32)
        for query in np.unique(query_rows):
            places = np.flatnonzero(query_rows == query)
            scores[places] = score(texts[query], rows[places])
        return pairs.with_scores(scores, self.name)

    def pair_fn(self, collection: Collection) -> Callable[[str, np.ndarray], np.ndarray]:
        """Reads the query and compares it with stored documents."""
        return StoredDocuments(self.student, collection.documents.column).score

    def bytes_per_document(self, collection: Collection) -> float | None:
        """Stored states, and where each document's begin."""
        return StoredDocuments(self.student, collection.documents.column).bytes_per_document

    @property
    def queries_by(self) -> str:
        """The student."""
        return self.name


@contextlib.contextmanager
def below_stored(student: CrossEncoderStudent, documents: Sequence[str]) -> Iterator[None]:
    """Inside the block, the lower part of a PreTT or TK is frozen and documents' states of it come from a store.

    Training then moves the rest: PreTT's upper layers and head, TK's mix, projection, gate and kernel weights.
    ``documents`` are all that will be seen, in the corpus' order.
    """
    module = module_of(student)
    texts = [*documents, ""]  # the empty text fills masked positions
    rows = {text: row for row, text in enumerate(texts)}
    lower = nn.ParameterList(module.lower_parameters())
    # Not the whole student's weights: training those above leaves these states as they are.
    settings = [settings_of(module), tokenizers_digest([module]), configurations([module])]
    made_by = [weights_digest(lower), module.kind, settings]
    states = _states(module, texts, digest("lower", made_by, texts_digest(texts)), lambda states: states, "float16")

    def stored(texts: list[str]) -> tuple[Tensor, Tensor]:
        missing = [text for text in texts if text not in rows]
        if missing:
            raise UserError(f"{len(missing)} documents have no stored states, among them {missing[0][:40]!r}.")
        return states.padded(np.array([rows[text] for text in texts], dtype=np.int64))

    frozen = nn.ParameterList([parameter for parameter in lower if parameter.requires_grad])
    module.stored = stored
    frozen.requires_grad_(False)
    try:
        yield
    finally:
        module.stored = None
        frozen.requires_grad_(True)


def _states(
    module: LateInteraction, texts: Sequence[str], key: str, pack: Callable[[Tensor], Tensor], dtype: Precision
) -> States:
    def read(batch: list[str]) -> tuple[Tensor, Tensor]:
        side = module.side(batch, "document")
        return pack(side.states), side.mask

    with evaluating(module):
        device = next(module.parameters()).device
        return cached_states(
            key, texts, read, "documents' states", dtype=dtype, device=device, longest=module.document_length
        )


def train_late_interaction(run: StageRun) -> History:
    """Train a PreTT or TK; with ``train: head`` what follows the lower part, whose states are stored."""
    with contextlib.ExitStack() as stack:
        if run.stage.train == "head":
            with main_first():
                stack.enter_context(below_stored(run.student, run.data.collection.documents.column))
        return train_pairs(run)


def _check(settings: Any) -> None:
    if settings.dimension == "space":
        raise ValueError("the dimension of a student that stores tokens is a number: that of a token's vector")


LATE_INTERACTION = replace(  # what the kinds of PreTT and TK share
    CROSS_ENCODER,
    train=train_late_interaction,
    transformer=lambda model: model[0].backbone.base_model,
    ranker=lambda student, documents: StoredDocumentsRanker(student),
    parts=("head", "both_encoders"),
    check=_check,
    can_teach=False,
)
