"""Export a model to ONNX: a graph that needs no torch, optionally in int8, and checked against the model."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from retrodistill.core.checksums import files_of
from retrodistill.core.digests import digest
from retrodistill.core.errors import UserError
from retrodistill.core.files import atomic_folder, check_replaceable
from retrodistill.core.manifest import FILE_NAME, Manifest
from retrodistill.core.paths import path_of
from retrodistill.core.runtime import bar, log
from retrodistill.core.settings import Settings, validated
from retrodistill.data.collection import Collection
from retrodistill.encoders.any_encoder import load_encoder, of_export
from retrodistill.encoders.classic_names import write_classic_names
from retrodistill.encoders.contract import STUDENT_MANIFEST, Role, encode_with
from retrodistill.encoders.loading import quiet_libraries, student_manifest
from retrodistill.encoders.modules import LENGTH_ADAPTIVE, fast_tokenizer_of, save_pretrained
from retrodistill.encoders.names import KINDS, parse_model_name, split_variant
from retrodistill.encoders.onnx_runtime import FOLDER, MISSING, TOKENIZER, OnnxExport, instructions, runs_here
from retrodistill.exports.onnx_fidelity import DEPTH, Comparison, Fidelity, PairComparison, VectorComparison, as_array
from retrodistill.exports.onnx_graphs import input_names, quantizable_nodes, quantize_graph, write_graph
from retrodistill.rankers.cross_encoder import OnnxCrossEncoderRanker, open_cross_encoder
from retrodistill.students.registry import load_student

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_MARK = f"{FOLDER}/{FILE_NAME}"
_FLOAT = "model.onnx"
_ROLES: tuple[Role, Role] = ("query", "document")
_CLOSE = 1e-3  # how much a float32 vector may differ from torch's, as a share of its length
_KEPT = (0.125, 0.25, 0.5)  # shares of the matrices that stay in float32, one after the other
_WEIGHTS = (".safetensors", ".bin", ".pt")


class OnnxSettings(Settings):
    """Options of an export to ONNX."""

    quantize: Literal["int8"] | None = None
    """`int8` for a second graph with int8 matrices, which is checked on a collection and used where it is."""
    min_agreement: float = Field(default=0.9, ge=0, le=1)
    """Least share of the float32 model's ten best documents that the int8 one must find, on average."""
    instructions: Literal["auto", "avx2", "avx512_vnni", "arm64"] = "auto"
    """The processors that the int8 graph is for, by default those like this one. One for `avx2` runs on all, and has
    weights of 7 bits."""


@dataclass(frozen=True)
class OnnxReport:
    """What an export wrote."""

    folder: str
    kind: str
    megabytes: dict[str, float]  # of each graph, by precision
    fidelity: Fidelity | None  # of the int8 graph

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def export_onnx(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    collection: Collection | None = None,
    settings: OnnxSettings | Mapping[str, Any] | None = None,
) -> OnnxReport:
    """Export a model to ONNX: its folder with ``onnx/model.onnx`` and, if wanted, ``onnx/model_qint8_*.onnx``.

    The folder is that of the model, with names of files that ``SentenceTransformer(folder, backend="onnx")`` reads.
    `load_encoder`, and all that loads models by name, takes the graph by itself where onnxruntime is installed. Pooling
    and normalization are in the graph, as the output ``sentence_embedding``.

    An int8 graph quantizes each column of a matrix with its own scale, and activations as they come. It must agree with
    the float32 one on queries that are not test queries. If it does not, the matrices that lose most stay in float32,
    up to half of them.

    Args:
        source: A model's name (``dense:``, ``static:``, ``sparse:``, ``cross-encoder:``), or a student's folder.
        folder: A new folder, or one of an earlier export, which is replaced.
        collection: What an int8 graph is checked on.
        settings: Options.

    Raises:
        UserError: Packages are missing; the model has another kind, an operation that ONNX lacks, or 2 GB and more; the
            graph gives other vectors; or int8 agrees too little. Nothing is written then.
    """
    if not isinstance(settings, OnnxSettings):
        settings = validated(OnnxSettings, dict(settings or {}), "export to onnx", "option")
    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"exporting to ONNX {MISSING.format(packages=' and '.join(absent))}")
    if settings.quantize and collection is None:
        raise UserError("int8 is checked on queries and documents: give a collection of the kind that is searched.")
    if settings.quantize and not runs_here(settings.instructions):
        raise UserError(
            f"instructions={settings.instructions}: this processor does not have them, so that int8 cannot be checked "
            "here; take avx2, or export on a processor that has them."
        )
    target = check_replaceable(folder, _MARK)
    model = _open(source)
    about = model.about()
    with atomic_folder(target) as temporary:
        with quiet_libraries():
            save_pretrained(model.ranker.model, temporary)
            write_classic_names(temporary)
        export = _write(model, about, temporary)
        _check(export, model)
        fidelity = None
        if settings.quantize and collection is not None:
            comparison = model.comparison(export, collection, model.running)
            export, fidelity = _quantized(export, comparison, settings, model.name)
        _seal(export, model, fidelity, settings)
        graphs = export.manifest.about["graphs"]
        sizes = {name: (temporary / FOLDER / file).stat().st_size / 1e6 for name, file in graphs.items()}
    return OnnxReport(str(target), export.kind, sizes, fidelity)


def _open(source: str | os.PathLike[str]) -> _Encoder | _CrossEncoder:
    """The model, in torch and float32."""
    text = str(source)
    with encode_with(runtime="torch", precision="float32"):
        if text.partition(":")[0] not in KINDS and path_of(text).is_dir():
            student: Any = load_student(text)
            text = f"{student.kind}:{text}"
        name = parse_model_name(text)
        if name.kind == "cross-encoder" and (ranker := open_cross_encoder(name)).student_kind == name.kind:
            return _CrossEncoder(ranker)
        if name.kind in ("dense", "static", "sparse"):
            return _Encoder(load_encoder(name))
    raise UserError(
        f"{name} cannot be exported to ONNX; models that can give a text one vector or a pair one score: dense, "
        "static, sparse, and cross-encoder."
    )


@dataclass(frozen=True)
class _Model:
    """A model that is exported."""

    ranker: Any  # in torch

    @property
    def name(self) -> str:
        return str(self.ranker.name)


class _Encoder(_Model):
    """A model that gives texts vectors."""

    scores = False
    comparison = VectorComparison

    @property
    def modules(self) -> list[Any]:
        """What the graph is made of: the modules of documents, which queries share."""
        found: list[Any] = self.ranker.modules("document")
        return found

    @property
    def max_length(self) -> int | None:
        length: int | None = self.ranker.contract("document")["max_length"]
        return length

    @property
    def has_special_tokens(self) -> bool:
        return bool(self.ranker.kind != "static")

    def about(self) -> dict[str, Any]:
        """What the manifest says of the model: all that a search needs to know without it."""
        name, model = self.name, self.ranker
        roles = {role: model.modules(role) for role in _ROLES}
        roles = {
            role: modules for role, modules in roles.items() if type(modules[0]).__name__ != "SparseStaticEmbedding"
        }
        first, *others = roles.values()
        if any(modules != first for modules in others):
            raise UserError(f"model {name} has one encoder for queries and one for documents; export them one by one.")
        if hasattr(first[0], LENGTH_ADAPTIVE):  # a number of tokens would become a constant of the graph
            raise UserError(
                f"model {name} drops tokens, and a graph has the same layers for all texts; export the model with all "
                "tokens, without @keep-..., or run it in torch."
            )
        for role, modules in roles.items():
            if model.prompt(role) and not all(getattr(module, "include_prompt", True) for module in modules):
                raise UserError(f"model {name} pools without its prompt, which a graph does not know; use torch.")
        contracts = {role: {"contract": model.contract(role), "prompt": model.prompt(role)} for role in roles}
        return {"kind": model.kind, "roles": contracts}

    def running(self, export: OnnxExport) -> Any:
        """The model with its texts in a graph."""
        return of_export(export, self.name, None, lambda: self.ranker.model)

    def results(self, export: OnnxExport, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(n, width) results of the graph and of the model, for each role that the graph encodes."""
        graph = self.running(export)
        return [
            (as_array(graph.encode(texts, role)), as_array(self.ranker.encode(texts, role))) for role in export.roles
        ]


class _CrossEncoder(_Model):
    """A model that gives pairs scores."""

    scores = True
    comparison = PairComparison
    has_special_tokens = True

    @property
    def modules(self) -> list[Any]:
        """What the graph is made of."""
        return list(self.ranker.model)

    @property
    def max_length(self) -> int | None:
        length: int | None = self.ranker.model.max_seq_length
        return length

    def about(self) -> dict[str, Any]:
        """As `_Encoder.about`."""
        owner = {name: getattr(self.ranker.owner, name) for name in ("inputs", "settings", "about")}
        return {"kind": "cross-encoder", "roles": {}, "owner": owner, "prompt": self.ranker.prompt}

    def running(self, export: OnnxExport) -> Any:
        """As `_Encoder.running`."""
        return OnnxCrossEncoderRanker(export, self.name, lambda: self.ranker.model)

    def results(self, export: OnnxExport, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `_Encoder.results`, (pairs, 1)."""
        pairs = list(zip(texts, reversed(texts), strict=True))
        return [(self.running(export).logits(pairs)[:, None], self.ranker.logits(pairs)[:, None])]


def _write(model: _Encoder | _CrossEncoder, about: dict[str, Any], folder: Path) -> OnnxExport:
    """Write the float32 graph and the tokenizer."""
    modules = model.modules
    fast = fast_tokenizer_of(modules[0])
    if fast is None:
        raise UserError(f"model {model.name} has no fast tokenizer, which a graph needs; run it in torch.")
    graphs = folder / FOLDER
    graphs.mkdir()
    inputs = input_names(modules)
    log(f"tracing {model.name}")
    output = write_graph(modules, inputs, graphs / _FLOAT, model.name, scores=model.scores)
    tokenizer = Tokenizer.from_str(fast.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own = modules[0].tokenizer
    if model.max_length is not None:
        tokenizer.enable_truncation(int(model.max_length), direction=getattr(own, "truncation_side", "right"))
    tokenizer.save(str(folder / TOKENIZER))
    reading = {
        "output": output,
        "inputs": inputs,
        "padding": int(getattr(own, "pad_token_id", None) or 0),
        "left": getattr(own, "padding_side", "right") == "left",
        "special": model.has_special_tokens,
    }
    return OnnxExport(folder, Manifest("onnx", about={**about, "graphs": {"float32": _FLOAT}, "reading": reading}))


def _check(export: OnnxExport, model: _Encoder | _CrossEncoder) -> None:
    """Compare the float32 graph with torch on texts of different lengths, made of words of the vocabulary."""
    words = sorted(token for token in export.tokenizer.get_vocab() if token.isalpha()) or ["a"]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, size)) for size in (1, 2, 7, 30, 200, 600)]
    for found, wanted in model.results(export, texts):
        lengths = np.linalg.norm(wanted, axis=1)
        if model.scores:  # errors of all pairs count alike, also where a score is near 0
            lengths = np.full_like(lengths, lengths.max())
        lengths = np.maximum(lengths, 1e-6)
        apart = float((np.linalg.norm(found - wanted, axis=1) / lengths).max())
        if not apart <= _CLOSE:
            raise UserError(
                f"the graph of {model.name} gives other results than torch (apart by {apart:.1%} of their length), so "
                "nothing is written; run it in torch."
            )


def _quantized(
    export: OnnxExport, comparison: Comparison, settings: OnnxSettings, name: str
) -> tuple[OnnxExport, Fidelity]:
    """Add an int8 graph that agrees enough, with as few matrices in float32 as that takes."""
    folder = export.folder / FOLDER
    target = instructions() if settings.instructions == "auto" else settings.instructions
    graphs = {"float32": _FLOAT, "int8": f"model_qint8_{target}.onnx"}
    manifest = replace(export.manifest, about={**export.manifest.about, "graphs": graphs})
    matrices = quantizable_nodes(folder / _FLOAT)

    def quantized(kept: Sequence[str]) -> OnnxExport:
        quantize_graph(folder / _FLOAT, folder / graphs["int8"], reduce_range=target == "avx2", kept=kept)
        return OnnxExport(export.folder, manifest)  # a new one, whose graph is read anew

    def attempt(kept: Sequence[str]) -> Fidelity:
        return replace(comparison.fidelity(quantized(kept)), kept=len(kept), matrices=len(matrices))

    log(f"quantizing to int8 ({target})")
    best = attempt([])
    if best.agreement < settings.min_agreement and matrices:
        log(f"int8 finds {best.agreement:.1%} of the same {DEPTH} best documents; looking for matrices to leave alone")
        order = _by_loss(matrices, lambda kept: comparison.similarity(quantized(kept)))
        for share in _KEPT:
            best = attempt(order[: math.ceil(share * len(order))])
            if best.agreement >= settings.min_agreement:
                break
    if best.agreement < settings.min_agreement:
        raise UserError(
            f"int8 finds {best.agreement:.1%} of the {DEPTH} best documents of {name} (cosine or correlation "
            f"{best.similarity:.4f}) with {best.kept} of {best.matrices} matrices in float32, less than min_agreement="
            f"{settings.min_agreement:g}; accept less, or export without int8."
        )
    return OnnxExport(export.folder, manifest), best


def _by_loss(matrices: list[str], similarity: Callable[[Sequence[str]], float]) -> list[str]:
    """The matrices, those first whose quantization alone moves results furthest.

    `similarity` is that of a graph in which some matrices stay in float32.
    """
    found = []
    with bar(len(matrices), "measuring matrices", "matrices") as progress:
        for name in matrices:
            found.append(similarity([other for other in matrices if other != name]))
            progress.update(1)
    return [matrices[place] for place in np.argsort(found, kind="stable")]


def _seal(export: OnnxExport, model: _Model, fidelity: Fidelity | None, settings: OnnxSettings) -> None:
    """Write the manifests: of the graphs, with the files that they belong to, and of a student."""
    folder = export.folder
    own = {name: checksum for name, checksum in files_of(folder).items() if _is_of_graph(name)}
    facts = {} if fidelity is None else {"fidelity": asdict(fidelity)}
    about = {**export.manifest.about, **facts}
    inputs = {"weights": digest(*sorted(own.items()))}
    Manifest("onnx", inputs, settings.model_dump(), about, own).write(folder / FOLDER)
    student = student_manifest(split_variant(parse_model_name(model.name).name)[0])
    if student is not None:
        student.with_files(folder).write(folder, STUDENT_MANIFEST)


def _is_of_graph(name: str) -> bool:
    """Whether a file of a folder decides what a graph gives, or what it stands for."""
    return name.startswith(f"{FOLDER}/") or Path(name).suffix in _WEIGHTS
