"""The linear maps of exits, solved: a shallow layer's vectors brought as near to the deepest exit's as a map can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from retrodistill.errors import UserError
from retrodistill.models.exits import behind_exit, exits_of
from retrodistill.progress import bar

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH = 64
_RIDGE = 0.01  # of the mean variance; by overlap@10 with MiniLM on held-out SciFact training queries, flat around it


def fit_exit_maps(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> None:
    """Fit the map of each exit but the deepest to the deepest exit's embeddings: LEAF's loss in closed form.

    Ridge regression ``W = (X'X + r I)^-1 X'Y`` of the unit vectors Y by the deepest exit on the pooled vectors X of a
    layer. A map that starts as the identity leaves a shallow layer nearly without a place in the space: the first two
    layers of all-MiniLM-L6-v2 share .08 of its ten best documents then, and .44 behind this.

    Args:
        model: Of `multi_exit` with ``project``; its maps are set in place.
        texts: Of the kind that exits will read, queries as a rule; some thousands.
        prompt: Put before each.

    Raises:
        UserError: An exit has no map, or there are no texts.
    """
    shallow = exits_of(model)[:-1]
    if not texts or not shallow:
        raise UserError("exits' maps are fitted to texts; give some, and exits besides the deepest.")
    dimension = int(model.get_embedding_dimension() or 0)
    grams = {layer: np.zeros((dimension, dimension)) for layer in shallow}
    moments = {layer: np.zeros((dimension, dimension)) for layer in shallow}
    training = model.training
    model.eval()
    with bar(len(texts), "fitting exits", "texts") as progress, torch.no_grad():
        for features in _batches(model, texts, prompt):
            out = model(features)
            wanted = torch.nn.functional.normalize(out["sentence_embedding"].double(), dim=1).cpu().numpy()
            for layer in shallow:
                given = _before_map(model, out, layer).double().cpu().numpy()
                grams[layer] += given.T @ given
                moments[layer] += given.T @ wanted
            progress.update(len(wanted))
        for layer in shallow:
            ridge = _RIDGE * np.trace(grams[layer]) / dimension * np.eye(dimension)
            fitted = np.linalg.solve(grams[layer] + ridge, moments[layer])
            weight = _map_of(model, layer).linear.weight
            weight.copy_(torch.from_numpy(fitted.T).to(weight))
    model.train(training)


def _batches(model: SentenceTransformer, texts: Sequence[str], prompt: str) -> Iterator[dict[str, Any]]:
    from sentence_transformers.util import batch_to_device

    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), _BATCH):
        features = model.preprocess(ordered[start : start + _BATCH], prompt=prompt or None)
        yield batch_to_device(features, model.device)


def _before_map(model: SentenceTransformer, out: dict[str, Any], layer: int) -> torch.Tensor:
    """(batch, d) what an exit's map is given."""
    state = {**out, "token_embeddings": out["all_layer_embeddings"][layer]}
    mapped = _map_of(model, layer)
    for module in behind_exit(list(model)[-1], layer):
        if module is mapped:
            break
        if not hasattr(module, "layer_weights"):
            state = module(state)
    found: torch.Tensor = state["sentence_embedding"]
    return found


def _map_of(model: SentenceTransformer, layer: int) -> Any:
    """The square linear map that `multi_exit` put last into an exit's route."""
    found = [module for module in behind_exit(list(model)[-1], layer) if type(module).__name__ == "Dense"]
    if not found:
        raise UserError(f"exit {layer} has no map of its own; make exits with project_exits: true.")
    return found[-1]
