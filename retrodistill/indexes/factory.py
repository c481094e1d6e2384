"""FAISS factories: built with the checks that FAISS leaves out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from retrodistill.errors import UserError


def build_faiss(factory: str, vectors: np.ndarray) -> Any:
    """Build, train and fill an inner-product index.

    Args:
        factory: A FAISS factory string: ``Flat``, ``SQ8``, ``OPQ48,PQ48``, ``IVF64,Flat``...
        vectors: (n, d) float32, finite.

    Raises:
        UserError: The string does not parse, or there are too few vectors to train it (FAISS would abort the process).
    """
    import faiss

    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"factory {factory!r} does not parse for {vectors.shape[1]} dimensions ({_reason(error)}); examples: "
            "'Flat', 'SQ8', 'OPQ48,PQ48', 'IVF64,Flat'."
        ) from error
    if not index.is_trained:
        wanted = vectors_to_train(factory, vectors.shape[1])
        if len(vectors) < wanted:
            raise UserError(
                f"factory {factory!r} needs at least {wanted} vectors to train, there are {len(vectors)}; "
                "choose a smaller one, e.g. 'SQ8' or 'Flat'."
            )
        index.train(vectors)
    index.add(vectors)
    return index


def vectors_to_train(factory: str, dimension: int) -> int:
    """The fewest vectors a factory can be trained on: codewords, lists, and OPQ's output width."""
    fewest = 1
    for part in factory.split(","):
        if lists := re.match(r"IVF(\d+)", part):
            fewest = max(fewest, int(lists.group(1)))
        if rotation := re.match(r"OPQ\d+(?:_(\d+))?", part):
            fewest = max(fewest, int(rotation.group(1) or dimension), 256)
        if codes := re.match(r"PQ\d+(?:x(\d+))?", part):
            fewest = max(fewest, 2 ** int(codes.group(1) or 8))
    return fewest


def set_parameters(index: Any, parameters: str) -> None:
    """Set search parameters such as ``nprobe=16``, inside transforms too.

    Raises:
        UserError: The index does not know them.
    """
    import faiss

    space: Any = faiss.ParameterSpace()  # its stubs know only one of the two overloads
    try:
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise UserError(
            f"search parameters {parameters!r} do not fit this index ({_reason(error)}); e.g. 'nprobe=16' for IVF."
        ) from error


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].split("Error: ")[-1][:120]
