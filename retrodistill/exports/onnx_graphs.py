"""Graphs of models in ONNX: traced by torch, quantized by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrodistill.core.errors import UserError, first_line
from retrodistill.encoders.loading import quiet_libraries

_OPSET = 20  # the first with GELU as one node
_LARGEST = 2**31  # bytes of a file in protobuf
_TEXTS = ["a", "a longer text than that"]  # tracing takes 0 and 1 for constants: both shapes must be larger
_QUANTIZED = ("MatMul", "Gather")


class SparsePooling(nn.Module):
    """A SPLADE pooling whose number of tokens is not a constant of the graph, as its loop over chunks makes it."""

    def __init__(self, pooling: Any) -> None:
        super().__init__()
        self.is_max = pooling.pooling_strategy == "max"
        self.is_double = pooling.activation_function == "log1p_relu"

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pool (batch, tokens, vocabulary) logits; what is masked counts 0, as in the library."""
        weights = (features["token_embeddings"] * features["attention_mask"][:, :, None]).relu().log1p()
        weights = weights.log1p() if self.is_double else weights
        features["sentence_embedding"] = weights.amax(dim=1) if self.is_max else weights.sum(dim=1)
        return features


class TokenTable(nn.Module):
    """The mean of a token table's rows, from padded tokens."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(table, requires_grad=False)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """(batch, width) means; 0 for a text without tokens."""
        ids, mask = features["input_ids"], features["attention_mask"][:, :, None].float()
        sums = (nn.functional.embedding(ids, self.rows) * mask).sum(dim=1)
        features["sentence_embedding"] = sums / mask.sum(dim=1).clamp(min=1.0)
        return features


class _Traced(nn.Module):
    """Modules of sentence-transformers as a function of tensors."""

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[str], *, scores: bool) -> None:
        super().__init__()
        self.parts, self.inputs, self.scores = nn.ModuleList(modules), inputs, scores

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        features: dict[str, Any] = dict(zip(self.inputs, tensors, strict=True))
        outputs = []
        for part in self.parts:
            features = part(features)
            if part is self.parts[0] and "token_embeddings" in features:
                outputs.append(features["token_embeddings"])
        if self.scores:
            return (features["scores"].reshape(-1, 1),)
        return (*outputs, features["sentence_embedding"])


def input_names(modules: Sequence[Any]) -> list[str]:
    """The tensors that the first module takes of a tokenized text."""
    if type(modules[0]).__name__ == "StaticEmbedding":
        return ["input_ids", "attention_mask"]
    features = modules[0].preprocess(_TEXTS)
    known = ("input_ids", "attention_mask", "token_type_ids")
    return [name for name in known if name in features]


def write_graph(modules: Sequence[Any], inputs: Sequence[str], path: Path, name: str, *, scores: bool = False) -> str:
    """Trace the modules of a model to a graph with dynamic shapes; returns the name of its output for a text.

    The outputs are ``last_hidden_state`` (``logits`` for a masked language model), which sentence-transformers reads,
    and ``sentence_embedding``, which needs nothing more; a cross-encoder has ``logits`` only.

    Raises:
        UserError: torch cannot export an operation, or the model takes 2 GB or more.
    """
    size = sum(parameter.numel() * parameter.element_size() for part in modules for parameter in part.parameters())
    if size >= _LARGEST:
        raise UserError(
            f"model {name} takes {size / 2**30:.1f} GiB, and an ONNX file less than 2; export a student of it."
        )
    parts = [_exported(part) for part in modules]
    traced = _Traced(parts, inputs, scores=scores).eval()
    has_states = not scores and not isinstance(parts[0], TokenTable)
    is_masked = any(isinstance(part, SparsePooling) for part in parts)
    states = (["logits" if is_masked else "last_hidden_state"]) if has_states else []
    outputs = ["logits"] if scores else [*states, "sentence_embedding"]
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    examples = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in inputs)
    with _silence(), torch.inference_mode(), _plain_attention(modules):
        try:
            torch.onnx.export(
                traced,
                examples,
                str(path),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=(tuple({0: batch, 1: tokens} for _ in inputs),),
                opset_version=_OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # torch raises many kinds, of export, of tracing, and of translation
            raise UserError(f"model {name} cannot be exported to ONNX ({_reason(error)}); run it in torch.") from error
    return outputs[-1]


def quantize_graph(source: Path, target: Path, *, reduce_range: bool, kept: Sequence[str] = ()) -> None:
    """Quantize the matrices of a graph to int8, each column with a scale; activations are quantized as they come.

    Args:
        source: The float32 graph.
        target: The graph to write.
        reduce_range: Use 7 bits, since sums of products overflow 16 bits on processors without VNNI.
        kept: Names of nodes that stay in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    del model.graph.value_info[:]  # shapes between nodes, which the quantizer infers again; a few of torch's are wrong
    with _silence():
        quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=list(_QUANTIZED),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
        )


def quantizable_nodes(source: Path) -> list[str]:
    """Names of the nodes that multiply with a matrix of the model, in order."""
    import onnx

    graph = onnx.load(str(source)).graph
    stored = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and stored.intersection(node.input)]


def _exported(module: Any) -> nn.Module:
    kind = type(module).__name__
    if kind == "StaticEmbedding":
        return TokenTable(module.embedding.weight.detach())
    part: nn.Module = SparsePooling(module) if kind == "SpladePooling" else module
    return part


@contextlib.contextmanager
def _plain_attention(modules: Sequence[Any]) -> Iterator[None]:
    """Trace attention as its products and a softmax, which takes a fifth fewer nodes than torch's fused function."""
    models = [module.auto_model for module in modules if hasattr(module, "auto_model")]
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation("eager")
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def _reason(error: BaseException) -> str:
    """The first line of the error that others were raised from: torch's own says what step failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:160].rstrip(".")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the warnings of torch, transformers, and onnxruntime about their own ways."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
