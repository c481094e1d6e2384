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
    index = empty_index(factory, vectors.shape[1], len(vectors))
    try:
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise UserError(
            f"factory {factory!r} cannot be filled with {len(vectors)} vectors of {vectors.shape[1]} dimensions "
            f"({_reason(error)}); choose another, e.g. 'SQ8' or 'Flat'."
        ) from error
    return index


def empty_index(factory: str, dimension: int, vectors: int, parameters: str | None = None) -> Any:
    """An inner-product index before training: the check that is made before any work starts.

    Args:
        factory: A FAISS factory string.
        dimension: Width of the vectors.
        vectors: How many it will be trained on and filled with.
        parameters: Search parameters that it must know.

    Raises:
        UserError: The string does not parse for this width, there are too few vectors, or parameters do not fit.
    """
    import faiss

    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"factory {factory!r} does not parse for {dimension} dimensions ({_reason(error)}); examples: "
            "'Flat', 'SQ8', 'OPQ48,PQ48', 'IVF64,Flat'."
        ) from error
    wanted = 1 if index.is_trained else vectors_to_train(factory, dimension)
    if vectors < wanted:
        raise UserError(
            f"factory {factory!r} needs at least {wanted} vectors to train, there are {vectors}; "
            "choose a smaller one, e.g. 'SQ8' or 'Flat'."
        )
    if parameters:
        set_parameters(index, parameters)
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
