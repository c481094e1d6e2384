"""What determines a text's vectors: the encoder, its settings, and the space that its documents are in."""

from __future__ import annotations

import contextlib
import copy
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from retrodistill.core.errors import UserError
from retrodistill.core.manifest import Manifest
from retrodistill.core.settings import Settings, validated
from retrodistill.core.spending import Bill
from retrodistill.core.turns import in_turn
from retrodistill.data.collection import Collection
from retrodistill.data.records import require_utf8
from retrodistill.data.texts import Texts
from retrodistill.encoders.modules import (
    configurations,
    fast_tokenizer_of,
    settings_of,
    tokenizers_digest,
    weights_digest,
)
from retrodistill.encoders.names import ModelName
from retrodistill.encoders.precision import fastest_precision
from retrodistill.encoders.reading import Reader
from retrodistill.encoders.remote_code import code_of
from retrodistill.encoders.space import space_fingerprint

Role = Literal["query", "document"]
Result = TypeVar("Result")
STUDENT_MANIFEST = "retrodistill.json"
IN_MEMORY = "in-memory"  # name of a model object that was never saved
TOKENS_PER_PASS, _TOKENS_ON_GPU = 4096, 65536  # forward, on a CPU and on a GPU
_BYTES_PER_TOKEN = 4  # of UTF-8, in English and, with three bytes a character, about in Chinese
_PROMPTS: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


class EncodingSettings(Settings):
    """How frozen models encode texts and score pairs. Training has its own settings."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Texts or pairs per forward pass in torch; `auto` for as many as have about 4,096 tokens together, or 65,536 on a
    GPU. ONNX Runtime always does as `auto`, and an int8 graph reads one text at a time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; weights, vectors, and scores stay float32. `auto` is `bfloat16` where the device
    has instructions for it (a CPU with AMX or AVX512-BF16, most GPUs) and a short measurement shows that it is faster.
    Stores and manifests keep the two apart. Static models are always float32."""
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    """What runs models. `auto` is `onnx`, which is ONNX Runtime on the CPU without torch, for a model with an ONNX
    export in its folder (`retrodistill export MODEL --to onnx`) where onnxruntime is installed, unless `precision` is
    set; it is `torch` for all others. `onnx` refuses a model without an export. Training takes `torch`."""
    store_precision: Literal["float32", "float16"] = "float32"
    """Precision of dense vectors in stores. `float16` takes half the disk and changes a number by at most a 2,048th of
    itself; numbers beyond 65,504 are rejected. Token vectors are always float16."""

    @model_validator(mode="after")
    def _precision_of_runtime(self) -> EncodingSettings:
        if self.runtime == "onnx" and self.precision == "bfloat16":
            raise ValueError("runtime: onnx computes in the precision of its files; leave precision out")
        return self

    def on(self, model: Any) -> EncodingSettings:
        """These settings for a model in torch, with the precision that ``auto`` stands for on its device.

        A model whose weights are not float32 was given a precision already, so that ``auto`` adds no other.
        """
        import torch

        precision = self.precision
        if precision == "auto":
            is_full = all(parameter.dtype == torch.float32 for parameter in model.parameters())
            precision = fastest_precision(model.device) if is_full else "float32"
        return self.model_copy(update={"precision": precision, "runtime": "torch"})

    def in_onnx(self) -> EncodingSettings:
        """These settings for a model in ONNX Runtime, whose graph has the precision."""
        return self.model_copy(update={"runtime": "onnx", "precision": "float32"})

    def autocast(self, device: Any) -> contextlib.AbstractContextManager[Any]:
        """A context in which matrix products on a device have this precision, once it is resolved by `on`."""
        import torch

        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)

    def batches(self, bytes_of: Sequence[int], longest: int | None, tokens: int) -> list[np.ndarray]:
        """Positions of texts for each forward pass, longest texts first; the same for the same texts.

        Args:
            bytes_of: UTF-8 bytes of each text (or pair), from which its tokens are estimated.
            longest: Most tokens that the model reads of a text; None for no limit.
            tokens: Most tokens of a batch, padding included, for a batch size of ``auto``; a longer text is alone.
        """
        order = np.argsort(-np.asarray(bytes_of), kind="stable")
        batches, start = [], 0
        while start < len(order):
            widest = min(bytes_of[order[start]] // _BYTES_PER_TOKEN + 2, longest or np.inf)  # 2 special tokens
            size = max(1, int(tokens // widest)) if self.batch_size == "auto" else self.batch_size
            batches.append(order[start : start + size])
            start += size
        return batches


def searched_space(documents: TextModel) -> dict[str, Any]:
    """Entries of a student's manifest that name the space of the documents that its queries search."""
    return {"query_space": documents.document_space, "query_space_contract": documents.contract("document")}


def tokens_per_pass(device: Any) -> int:
    """Tokens of a forward pass that use a device well."""
    import torch

    return TOKENS_PER_PASS if torch.device(device).type == "cpu" else _TOKENS_ON_GPU


_CURRENT: ContextVar[EncodingSettings] = ContextVar("encoding")


def current_encoding() -> EncodingSettings:
    """The settings that a model takes when it is loaded."""
    return _CURRENT.get(EncodingSettings())


@contextlib.contextmanager
def encode_with(settings: EncodingSettings | None = None, **changes: Any) -> Iterator[EncodingSettings]:
    """Models loaded inside the block encode with these settings or changed keys, e.g. ``encode_with(batch_size=8)``."""
    content = {**(settings or current_encoding()).model_dump(), **changes}
    chosen = validated(EncodingSettings, content, "encoding", "option")
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)


class TextModel:
    """A sentence-transformers model of any kind, with all that determines the vectors of a text.

    Its name is ``kind:name`` as the user wrote it; `student` is the manifest of one that retrodistill trained.
    """

    similarities: Sequence[str] = ("cosine", "dot")
    kind: str = "dense"
    is_static: bool = False
    is_recorded: bool = False
    ignored_settings: ClassVar[Mapping[Role, Sequence[str]]] = {}  # of modules, without effect on a role's vectors
    most_tokens: int = _TOKENS_ON_GPU  # of a forward pass
    loaded_from: ModelName | None = None  # by which any process can load it; None for a model that was made here
    members: Sequence[TextModel] = ()  # the encoders of one that puts the vectors of several side by side
    can_truncate: bool = True  # whether leading dimensions of its vectors may stand for the whole
    has_model: bool = True  # False for token weights, which an index may store to encode queries without a model
    has_weights: bool = True  # False for a model that is elsewhere: its vectors are recorded, or come from an API
    part: int | None = None  # texts that are encoded at once, where that is not for the encoding settings to say
    threads: int = 1  # of such parts at once

    def __init__(self, model: Any, name: str, student: Manifest | None = None) -> None:
        self.model, self.name, self.student = model, name, student
        encoding = current_encoding()
        has_precision = self.has_weights and not self.is_static
        self.encoding = encoding.on(model) if has_precision else encoding.model_copy(update={"precision": "float32"})

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int | None = None) -> Any:
        """Encode texts as an array, CSR or `Tokens`, depending on the kind."""
        raise NotImplementedError

    def needs_store(self, role: Role) -> bool:
        """Whether encoding takes longer than looking stored vectors up."""
        return True

    @property
    def can_be_timed(self) -> bool:
        """Whether encoding a query takes the time that its model takes."""
        return self.has_weights

    def bill(self, texts: Sequence[str], role: Role) -> Bill:
        """What encoding texts takes, if it sends requests."""
        return Bill()

    def bind(self, collection: Collection) -> Self:
        """Prepare for a collection: recorded vectors are found by its texts; models need nothing."""
        return self

    @property
    def is_symmetric(self) -> bool:
        """Whether prompts give a text the same vector as a query and as a document."""
        return self.prompt("query") == self.prompt("document")

    def missing(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """(m,) int64 positions of texts that it cannot encode: none, unless its vectors are recorded."""
        return np.zeros(0, dtype=np.int64)

    def require(self, texts: Texts, role: Role) -> None:
        """Check, before work starts, that it can encode texts."""

    def _run(self, texts: Sequence[str], role: Role, batch_size: int | None, **options: Any) -> list[Any]:
        """Encode each text with the model itself; `options` select the form of a result."""
        require_utf8(texts, role)
        prompt, device = self.prompt(role), self.model.device
        encoding = self.encoding if batch_size is None else self.encoding.model_copy(update={"batch_size": batch_size})
        bytes_of = [len(prompt.encode()) + len(text.encode()) for text in texts]
        tokens = min(tokens_per_pass(device), self.most_tokens)
        results: list[Any] = [None] * len(texts)
        first = self.modules(role)[0]
        with in_turn(first), encoding.autocast(device):
            for rows in encoding.batches(bytes_of, _max_length(first), tokens):
                batch = [texts[row] for row in rows]
                options |= {"batch_size": len(batch), "show_progress_bar": False}
                # the task selects a Router's tower, and a multi-vector model's mask and expansion
                for row, result in zip(
                    rows, self.model.encode(batch, prompt=prompt, task=role, **options), strict=True
                ):
                    results[row] = result
        return results

    def _require_finite(self, broken: np.ndarray, bounds: np.ndarray | None, texts: Sequence[str], what: str) -> None:
        """Raise for the first broken value; `bounds` are those of the texts' values, None for one value per text."""
        if broken.any():
            first = int(np.flatnonzero(broken)[0])
            row = first if bounds is None else int(np.searchsorted(bounds, first, side="right")) - 1
            raise UserError(f"model {self.name} gives a {what} that is not finite for {texts[row][:60]!r}.")

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        width = self.model.get_embedding_dimension()
        if width is None:
            raise UserError(f"model {self.name} does not say its embedding dimension; its last module must.")
        if not isinstance(width, numbers.Integral) or isinstance(width, bool) or width < 1:
            raise UserError(f"model {self.name} says that its embedding dimension is {width!r}; correct its files.")
        return int(width)

    @property
    def similarity(self) -> str:
        """Similarity function of two vectors, e.g. ``cosine`` or ``dot``."""
        if (name := str(self.model.similarity_fn_name)) not in self.similarities:
            accepted = " or ".join(self.similarities)
            raise UserError(f"model {self.name} uses similarity {name!r}; a retriever uses {accepted}.")
        return name

    @property
    def truncation(self) -> int | None:
        """Number of leading dimensions that the model itself keeps (``truncate_dim``); None for all."""
        if getattr(self.model, "truncate_dim", None) is None:
            return None
        plain = copy.copy(self.model)  # another thread may encode with the model itself
        plain.truncate_dim = None
        full = plain.get_embedding_dimension()
        return None if full is not None and full <= self.model.truncate_dim else int(self.model.truncate_dim)

    def modules(self, role: Role) -> list[Any]:
        """The modules that process texts of a role: a Router's route for the role, then the modules after it."""
        return [part for module in self.model for part in _routed(module, role, self.name)]

    def contract(self, role: Role) -> dict[str, Any]:
        """All that determines the vector of a text.

        That is weights, modules (pooling!), tokenizer, configuration, prompt, length, similarity and width. Of a Router
        only the role's route counts: a model that sends documents through another model's modules puts them into that
        model's space. ``truncation`` is a key only if the model truncates: fingerprints of others stay.
        """
        modules, ignored = self.modules(role), self.ignored_settings.get(role, ())
        contract = {
            "weights": self._weights[role],
            "modules": [settings_of(module, ignored) for module in modules],
            "tokenizers": self._tokenizers_of[role],
            "configurations": self._configurations_of[role],
            "prompt": self.prompt(role),
            "max_length": _max_length(modules[0]),
            "similarity": self.similarity,
            "dimension": self.dimension,
        }
        return contract if self.truncation is None else {**contract, "truncation": self.truncation}

    @cached_property
    def code(self) -> dict[str, Any]:
        """Digests of the code that the model brings, for manifests; empty for most models."""
        return code_of(self.model)

    @cached_property
    def document_space(self) -> str:
        """Fingerprint of the space of this model's documents."""
        return space_fingerprint(self.contract("document"))

    @property
    def query_space(self) -> str:
        """Fingerprint of the document space that this model's queries search: its own or the one it was aligned to."""
        if self.student is not None and "query_space" in self.student.about:
            return str(self.student.about["query_space"])
        return self.document_space

    @property
    def query_space_contract(self) -> dict[str, Any]:
        """The content of `query_space`; empty if the student's manifest does not say."""
        if self.student is not None and "query_space" in self.student.about:
            return dict(self.student.about.get("query_space_contract", {}))
        return self.contract("document")

    def reader(self, role: Role) -> Reader:
        """What tells the texts of a role that it cannot read."""
        return self._readers[role]

    def fingerprint(self, role: Role) -> str:
        """Fingerprint of what determines the vectors of this role, for stores and manifests.

        It includes both precisions, unlike `document_space`: queries in float32 may search documents in bfloat16.
        """
        encoding = self.encoding
        chosen: list[str] = []
        if self.needs_store(role):  # nothing is added for float32, as before precision could be chosen
            chosen += [encoding.precision] if encoding.precision != "float32" else []
            if self.kind == "dense" and encoding.store_precision != "float32":
                chosen += ["stored", encoding.store_precision]
        return space_fingerprint(self.contract(role), *chosen)

    def prompt(self, role: Role) -> str:
        """The model's own prompt for the role; empty if it has none.

        As sentence-transformers applies prompts: one that is set to "" is set, and keeps the default prompt away.
        """
        prompts = self.model.prompts or {}
        name = next((name for name in _PROMPTS[role] if name in prompts), self.model.default_prompt_name or "")
        return str(prompts.get(name) or "")

    @cached_property
    def weights_digest(self) -> str:
        """Digest of all parameters and buffers that documents go through, by name."""
        return self._weights["document"]

    @cached_property
    def _weights(self) -> dict[Role, str]:
        from torch import nn

        return self._by_role(lambda modules: weights_digest(nn.Sequential(*modules)))

    @cached_property
    def _configurations_of(self) -> dict[Role, list[dict[str, Any]]]:
        return self._by_role(configurations)

    @cached_property
    def _tokenizers_of(self) -> dict[Role, str]:
        return self._by_role(tokenizers_digest)

    @cached_property
    def _readers(self) -> dict[Role, Reader]:
        if not self.has_weights:
            return {"query": Reader(None), "document": Reader(None)}
        return self._by_role(lambda modules: Reader(fast_tokenizer_of(modules[0])))

    def _by_role(self, compute: Callable[[list[Any]], Result]) -> dict[Role, Result]:
        """What is computed from the modules of each role, once if both have the same."""
        query, document = self.modules("query"), self.modules("document")
        shared = compute(document)
        return {"document": shared, "query": shared if query == document else compute(query)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.dimension} dimensions, {self.similarity})"


def _routed(module: Any, role: Role, name: str) -> Iterator[Any]:
    """A module itself, or a Router's modules for the role, chosen in the order of sentence-transformers."""
    if not hasattr(module, "sub_modules"):
        yield module
        return
    mapped = map(module.route_mappings.get, ((role, "text"), (role, None), (None, "text"), (None, None)))
    route = next((route for route in (*mapped, role, "text") if route in module.sub_modules), None)
    if route is None:
        routes = ", ".join(module.sub_modules)
        problem = f"model {name} has no route for a {role} (routes: {routes})"
        raise UserError(f"{problem}; a Router needs 'query' and 'document'.")
    for part in module.sub_modules[route]:
        yield from _routed(part, role, name)


def _max_length(module: Any) -> int | None:
    """Tokens that a first module reads. A token table reads what its tokenizer keeps, whatever it reports itself."""
    length = getattr(module, "max_seq_length", None)
    if length not in (None, float("inf")):
        return int(length)
    truncation = getattr(getattr(module, "tokenizer", None), "truncation", None)
    return int(truncation["max_length"]) if isinstance(truncation, dict) else None
