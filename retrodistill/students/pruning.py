"""Structured pruning: remove attention heads and feed-forward units of a transformer, without gradients and labels.

Which ones, and what their layer's output map becomes, follows from activations on a sample of texts. A layer is pruned
after those before it, so that it sees what they give now. Two ideas are published: importance by unlabeled activations
(Nova et al., arXiv 2303.04185) and least squares on a layer's output (Kwon et al., arXiv 2204.09656, for one factor per
head and unit). Here the whole output map is solved, and what goes is what this solution misses least: the Optimal Brain
Surgeon (Hassibi and Stork 1992) on groups of inputs. On MiniLM, that keeps more than the convex mask (KCM) of the first
paper (evaluation/studies/pruning).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import bar
from retrodistill.data.pseudo_queries import sample_sentences, source_document, title_texts
from retrodistill.data.texts import spread, spread_rows
from retrodistill.encoders.contract import Role
from retrodistill.encoders.modules import LENGTH_ADAPTIVE
from retrodistill.encoders.pruned_layers import Parts, describe_pruned, heads_of, units_of
from retrodistill.students.registry import as_student, kind_of
from retrodistill.training.trainer import evaluating

Kept = int | float  # a number, or a share between 0 and 1

_BATCH = 64  # texts of one step
_ROUNDS = 64  # in which units are removed, some at a time: with one at a time, overlap@10 with MiniLM is the same
_RIDGE = 1e-3  # of the mean variance, towards the map as it was


class Inputs(NamedTuple):
    """Texts, or pairs of them, as a transformer reads them."""

    texts: Sequence[Any]
    prompt: str = ""
    role: Role | None = None


def prune(
    model: Any, sample: Sequence[Inputs], *, heads: Kept | None = None, units: Kept | None = None, refit: bool = True
) -> None:
    """Remove attention heads and feed-forward units of each layer of a model's transformer, in place.

    Memory is that of a batch and of one layer's matrix of inner products, (units, units) in float64.

    Args:
        model: A sentence-transformers model of any class.
        sample: What it reads: some hundred texts of the kind that it is for. Without any, the heads and units with the
            largest weights are kept, in no time.
        heads: Number of heads that each layer keeps, or their share; all by default.
        units: The same for units.
        refit: Fit the output map of heads and units to what it gave before.

    Raises:
        UserError: The model is not a transformer, or one whose heads or units cannot be removed; or the number is
            larger than that of the model.
    """
    module = transformer_of(model)
    transformer: Any = module.auto_model
    chosen = []
    for name, kept, find in (("heads", heads, heads_of), ("units", units, units_of)):
        if kept is not None:
            layers = find(transformer)
            number = kept_number(name, kept, len(layers[0]))
            chosen.append([(parts, number) for parts in layers])
    steps = [(parts, number) for layer in zip(*chosen, strict=True) for parts, number in layer if number < len(parts)]
    with evaluating(model), bar(len(steps), "pruning", "parts") as progress:
        for parts, number in steps:
            _prune(module, parts, number, sample, refit)
            progress.update(1)
    describe_pruned(module)


def transformer_of(model: Any) -> Transformer:
    """The one transformer of a model, possibly in a Router; a UserError if it has none, or one for each side."""
    found = [module for module in model.modules() if isinstance(module, Transformer)]
    if not found:
        raise UserError(f"a model of {type(model[0]).__name__} has no heads and units to remove; leave 'keep' out.")
    if len(found) > 1:
        raise UserError("a model with several transformers is not pruned; leave 'keep' out.")
    if hasattr(found[0], LENGTH_ADAPTIVE):
        raise UserError("a model that drops tokens is not pruned; start from it with all tokens, without @keep-...")
    return found[0]


def kept_number(name: str, kept: Kept, count: int) -> int:
    """How many of a layer's heads or units are kept; at least one of a share."""
    number = max(1, round(kept * count)) if isinstance(kept, float) else kept
    if not 1 <= number <= count:
        raise UserError(f"keep.{name}={kept}: a layer of the model has {count} {name}; choose 1 to {count}.")
    return number


def _prune(module: Transformer, parts: Parts, number: int, sample: Sequence[Inputs], refit: bool) -> None:
    """Keep a number of heads or units of a layer."""
    out = parts.out
    weights = out.weight.detach().double().cpu().numpy().T
    if not any(len(inputs.texts) for inputs in sample):
        sizes = (weights**2).reshape(len(parts), -1).sum(axis=1)
        parts.keep(sorted(np.argsort(-sizes, kind="stable")[:number].tolist()))
        return
    moments = _Moments(out.in_features, centered=out.bias is not None)
    for activations in _activations(module, out, sample):
        moments.add(activations)
    gram = moments.gram()
    gram += np.eye(len(gram)) * max(_RIDGE * np.trace(gram) / len(gram), 1e-12)
    kept = least_missed(gram, weights, parts.width, number)
    places = parts.places(kept.tolist()).numpy()
    parts.keep(kept.tolist())
    if not refit:
        return
    fitted = np.linalg.solve(gram[np.ix_(places, places)], gram[places] @ weights)
    with torch.no_grad():
        out.weight.copy_(torch.from_numpy(fitted.T).to(out.weight))
        if out.bias is not None:
            moved = moments.mean @ weights - moments.mean[places] @ fitted
            out.bias.add_(torch.from_numpy(moved).to(out.bias))


class _Moments:
    """Inner products and means of (rows, width) activations, gathered a batch at a time, in float64."""

    def __init__(self, width: int, *, centered: bool) -> None:
        self.count, self._sum, self._products = 0, np.zeros(width), np.zeros((width, width))
        self._centered = centered

    def add(self, activations: np.ndarray) -> None:
        self.count += len(activations)
        self._sum += activations.sum(axis=0)
        self._products += activations.T @ activations

    @property
    def mean(self) -> np.ndarray:
        """(width,) mean activations."""
        return self._sum / self.count

    def gram(self) -> np.ndarray:
        """(width, width) inner products, around the mean where the map has a bias, which then takes the mean's part."""
        return self._products - self.count * np.outer(self.mean, self.mean) if self._centered else self._products


class _Reached(Exception):  # noqa: N818 - ends a forward pass where it has got far enough
    pass


def _activations(module: Transformer, out: torch.nn.Linear, sample: Sequence[Inputs]) -> Iterator[np.ndarray]:
    """(tokens, width) float64 inputs of a linear map, a batch of texts at a time, without padding."""
    seen: list[torch.Tensor] = []

    def stop(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Reached

    hook = out.register_forward_pre_hook(stop)
    try:
        for features in _batches(module, sample):
            mask = features["attention_mask"].bool()
            try:
                with torch.no_grad():
                    module(features)
            except _Reached:
                yield seen.pop()[mask].cpu().double().numpy()
    finally:
        hook.remove()


def _batches(module: Transformer, sample: Sequence[Inputs]) -> Iterator[dict[str, Any]]:
    """Features of the texts, shortest first."""
    for inputs in sample:
        order = np.argsort([len("".join(text)) for text in inputs.texts], kind="stable")
        for start in range(0, len(order), _BATCH):
            texts = [inputs.texts[row] for row in order[start : start + _BATCH]]
            features = module.preprocess(texts, prompt=inputs.prompt or None, task=inputs.role)
            yield batch_to_device(features, module.auto_model.device)


def least_missed(gram: np.ndarray, weights: np.ndarray, width: int, number: int) -> np.ndarray:
    """Ascending places of the heads or units to keep: those whose removal would change a layer's output most.

    They are removed greedily. Without group B, the best output map misses ``tr(W_B' (P_BB)^-1 W_B)`` more of the
    squares, where P is the inverse of the inner products that are left and W the best map on them; both are updated.

    Args:
        gram: (groups * width, groups * width) inner products of activations, positive definite.
        weights: (groups * width, d) output map.
        width: Inputs of a group: those of a head, or 1.
        number: Groups to keep.
    """
    inverse, left = np.linalg.inv(gram), np.arange(len(gram) // width)
    at_once = max(1, -(-(len(left) - number) // _ROUNDS))
    while len(left) > number:
        missed = _missed(inverse, weights, width)
        gone = np.argsort(missed, kind="stable")[: min(at_once, len(left) - number)]
        is_gone = np.repeat(np.isin(np.arange(len(left)), gone), width)
        across = inverse[np.ix_(~is_gone, is_gone)]
        moved = across @ np.linalg.inv(inverse[np.ix_(is_gone, is_gone)])
        weights = weights[~is_gone] - moved @ weights[is_gone]
        inverse = inverse[np.ix_(~is_gone, ~is_gone)] - moved @ across.T
        left = np.delete(left, gone)
    return left


def _missed(inverse: np.ndarray, weights: np.ndarray, width: int) -> np.ndarray:
    """(groups,) squares that the best output map misses without each group."""
    if width == 1:
        return (weights**2).sum(axis=1) / inverse.diagonal()
    groups = np.arange(len(inverse) // width)
    own = inverse.reshape(len(groups), width, len(groups), width)[groups, :, groups, :]
    maps = weights.reshape(len(groups), width, -1)
    return (maps * np.linalg.solve(own, maps)).sum(axis=(1, 2))


def pruned(model: Any, settings: Any, data: Any) -> Any:
    """A recipe's student, pruned in place as its settings say, on texts of the collection."""
    if settings.keep is not None:
        sample = _sample(model, settings, data)
        prune(model, sample, heads=settings.keep.heads, units=settings.keep.units)
    return model


def _sample(model: Any, settings: Any, data: Any) -> list[Inputs]:
    """What the student will read: queries, documents if it encodes them, or pairs of both."""
    number, kind, collection = settings.keep.texts, kind_of(model), data.collection
    if not number:
        return []
    student, rows = as_student(model), spread_rows(len(collection.documents), number)
    if not kind.can_search:
        sample = [Inputs(_pairs(data, rows), student.prompt("query"))]
    else:
        queries = [] if settings.queries == "inference-free" else _queries(data, rows)
        documents = collection.documents.column if settings.documents == "student" else []
        number = number // 2 if len(queries) and len(documents) else number
        sides: list[tuple[Role, Sequence[str]]] = [("query", queries), ("document", documents)]
        sample = [Inputs(spread(texts, number), student.prompt(role), role) for role, texts in sides if len(texts)]
    if not any(len(inputs.texts) for inputs in sample):
        raise UserError(
            "keep: heads and units are chosen by texts, and there are no queries, titles, or sentences; set "
            "split.train to a split with queries, or keep.texts: 0 to choose by weights."
        )
    return sample


def _queries(data: Any, rows: np.ndarray) -> list[str]:
    """Training queries and titles; sentences where there are none."""
    texts = [*data.queries.texts, *title_texts(data.collection, rows).texts]
    return texts or sample_sentences(data.collection, 1, data.seed, rows).texts


def _pairs(data: Any, rows: np.ndarray) -> list[tuple[str, str]]:
    """Sentences of half of the documents, each with its own document and with the next one's."""
    sentences = sample_sentences(data.collection, 1, data.seed, rows[::2])
    documents = [data.collection.documents[str(source_document(id_))] for id_ in sentences.ids]
    others = [*documents[1:], *documents[:1]]
    return [pair for side in (documents, others) for pair in zip(sentences.texts, side, strict=True)]
