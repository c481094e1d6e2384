"""Linear maps behind a cut transformer, solved: its vectors brought as near to the wanted ones as a map can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from retrodistill.core.errors import UserError
from retrodistill.core.progress import bar
from retrodistill.encoders.exits import behind_exit, exits_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH = 64
_RIDGE = 0.01  # of the mean variance; by overlap@10 with MiniLM on held-out SciFact training queries, flat around it


def fit_map(model: SentenceTransformer, texts: Sequence[str], vectors: np.ndarray, prompt: str = "") -> None:
    """Fit the map of a student that was cut to its first layers to the vectors of its space: LEAF's loss, solved.

    Ridge regression ``W = (X'X + r I)^-1 X'Y`` of unit vectors Y on the vectors X that reach the map. A shallow layer
    has nearly no place in the space otherwise: the first two layers of all-MiniLM-L6-v2 find .10 of its ten best
    documents for a query of SciFact, and .45 behind such a map; the first four .14 and .52 (evaluation/fitted_maps.py).

    Args:
        model: Of `dense_student` with ``mapped``; its map is set in place.
        texts: Of the kind that it will read; some thousands.
        vectors: (texts, d) by the space's model.
        prompt: Put before each text.

    Raises:
        UserError: The model has no map, or there are no texts.
    """
    modules = list(model)
    place = _last_map(modules, "the student has no map to fit; make it with a dimension of its own, or mapped")
    regression = _Regression(modules[place])
    for rows, features in _batches(model, texts, prompt):
        state = features
        for module in modules[:place]:
            state = module(state)
        regression.add(state["sentence_embedding"], vectors[rows])
    regression.solve()


def fit_exit_maps(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> None:
    """Fit the map of each exit but the deepest to the deepest exit's embeddings, as `fit_map` does.

    Args:
        model: Of `multi_exit` with ``project``; its maps are set in place.
        texts: Of the kind that exits will read, queries as a rule; some thousands.
        prompt: Put before each.

    Raises:
        UserError: An exit has no map, or there are no texts.
    """
    routes, regressions = {}, {}
    for layer in exits_of(model)[:-1]:
        behind = [one for one in behind_exit(list(model)[-1], layer) if not hasattr(one, "layer_weights")]
        place = _last_map(behind, f"exit {layer} has no map of its own; make exits with project_exits: true")
        routes[layer], regressions[layer] = behind[:place], _Regression(behind[place])
    for _, features in _batches(model, texts, prompt):
        out = model(features)
        for layer, before in routes.items():
            state = {**out, "token_embeddings": out["all_layer_embeddings"][layer]}
            for module in before:
                state = module(state)
            regressions[layer].add(state["sentence_embedding"], out["sentence_embedding"].cpu().numpy())
    for regression in regressions.values():
        regression.solve()


class _Regression:
    """Ridge regression of unit vectors, gathered a batch at a time, for the weights of a linear module."""

    def __init__(self, module: Any) -> None:
        self.weight = module.linear.weight
        wanted, given = self.weight.shape
        self.gram, self.moment = np.zeros((given, given)), np.zeros((given, wanted))

    def add(self, given: torch.Tensor, wanted: np.ndarray) -> None:
        """(batch, d) of what reaches the map and of what is to leave it."""
        vectors, targets = given.double().cpu().numpy(), wanted.astype(np.float64)
        lengths = np.linalg.norm(targets, axis=1, keepdims=True)
        self.gram += vectors.T @ vectors
        self.moment += vectors.T @ (targets / np.where(lengths > 0, lengths, 1.0))

    def solve(self) -> None:
        """Set the weights."""
        ridge = _RIDGE * np.trace(self.gram) / len(self.gram) * np.eye(len(self.gram))
        fitted = np.linalg.solve(self.gram + ridge, self.moment).T
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(fitted).to(self.weight))


def _batches(model: SentenceTransformer, texts: Sequence[str], prompt: str) -> Iterator[tuple[np.ndarray, Any]]:
    """Rows of texts and their features, in evaluation and without gradients."""
    from sentence_transformers.util import batch_to_device

    if not len(texts):
        raise UserError("a map is fitted to texts, and there are none; give some.")
    order = np.argsort([len(text) for text in texts], kind="stable")
    training = model.training
    model.eval()
    with bar(len(texts), "fitting maps", "texts") as progress, torch.no_grad():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            features = model.preprocess([texts[row] for row in rows], prompt=prompt or None)
            yield rows, batch_to_device(features, model.device)
            progress.update(len(rows))
    model.train(training)


def _last_map(modules: Sequence[Any], why: str) -> int:
    """Where the last linear map stands.

    Raises:
        UserError: There is none.
    """
    found = [place for place, module in enumerate(modules) if type(module).__name__ == "Dense"]
    if not found:
        raise UserError(f"{why}.")
    return found[-1]
