"""FAISS factories: built with the checks that FAISS leaves out."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.progress import log
from retrodistill.encoders.vectors import check_finite
from retrodistill.indexes.parts import (
    EUCLIDEAN,
    fewest_vectors,
    flaw,
    inside,
    known_parameters,
    quiet_clustering,
    transforms,
)

EXAMPLES = "'Flat', 'SQ8', 'OPQ48,PQ48', 'IVF64,Flat', 'HNSW32', 'RaBitQ,Refine(SQ8)'"
_LONGEST = 200  # characters; FAISS' parser recurses
_MOST_LINKS = 512
_MOST_BITS = 16
_WIDEST = 2**16
_MOST_LISTS = 2**22
_PER_CENTROID = 39  # vectors, below which FAISS warns


def build_faiss(factory: str, vectors: np.ndarray) -> Any:
    """Build, train and fill an inner-product index.

    PCA and ITQ subtract the mean of the documents, which reorders inner products (on MiniLM's NFCorpus vectors
    ``PCA192,Flat`` keeps .55 of the ten best, without the mean .91); here they only rotate and cut. Product quantizers
    skip the polysemous ordering of their codewords, which nothing here searches by and which takes most of the time.

    Args:
        factory: A FAISS factory string: ``Flat``, ``SQ8``, ``OPQ48,PQ48``, ``IVF64,Flat``, ``HNSW32``,
            ``RaBitQ4``, ``PQ48,RFlat``, ``RaBitQ,Refine(SQ8)``...
        vectors: (n, d) float32, finite.

    Raises:
        UserError: The string does not parse, there are too few vectors to train it (FAISS would abort the process), or
            a vector is not finite.
    """
    index = empty_index(factory, vectors.shape[1], len(vectors))
    if not np.isfinite(vectors).all():
        check_finite(vectors, [str(row) for row in range(len(vectors))], "vectors to index")
    for part in inside(index):
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False
    try:
        if not index.is_trained:
            with quiet_clustering(index) as centroids:
                _tell_few(factory, len(vectors), centroids)
                index.train(vectors)
        _keep_means(index)
        index.add(vectors)
    except (RuntimeError, MemoryError) as error:
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
    _check_sizes(factory, dimension)
    wanted = _lists(factory)
    if vectors >= wanted:  # FAISS makes room for all lists at once
        index = _parsed(factory, dimension)
        wanted = 1 if index.is_trained else fewest_vectors(index)
    if vectors < wanted:
        raise UserError(
            f"factory {factory!r} needs at least {wanted} vectors to train, there are {vectors}; "
            "choose a smaller one, e.g. 'SQ8' or 'Flat'."
        )
    if parameters:
        set_parameters(index, parameters)
    return index


def vectors_to_train(factory: str, dimension: int) -> int:
    """The fewest vectors a factory can be trained on: codewords, lists, and the output width of OPQ and PCA.

    Raises:
        UserError: The string does not parse for this width.
    """
    _check_sizes(factory, dimension)
    return fewest_vectors(_parsed(factory, dimension))


def read_parameters(parameters: str) -> dict[str, int]:
    """Search parameters by name: ``nprobe=16,k_factor_rf=4`` is ``{"nprobe": 16, "k_factor_rf": 4}``.

    Raises:
        UserError: Something that is no ``name=whole number`` of 1 or more.
    """
    found = {}
    for one in re.split(r"[ ,]+", parameters.strip(" ,")):
        name, _, value = one.partition("=")
        if not re.fullmatch(r"0*[1-9]\d{0,8}", value):
            raise UserError(
                f"search parameters {parameters!r} do not fit this index ({one!r} is no name=number, a whole one of 1 "
                "or more); e.g. 'nprobe=16' for IVF."
            )
        found[name] = int(value)
    return found


def written_parameters(parameters: dict[str, int]) -> str:
    """The reverse of `read_parameters`."""
    return ",".join(f"{name}={value}" for name, value in parameters.items())


def set_parameters(index: Any, parameters: str) -> None:
    """Set search parameters such as ``nprobe=16`` or ``efSearch=64,k_factor_rf=4``, inside transforms too.

    Raises:
        UserError: The index does not know them, or a value is out of range; the index keeps what it had.
    """
    import faiss

    known = known_parameters(index)
    wanted = read_parameters(parameters)
    for name, value in wanted.items():
        if name not in known:
            names = f"it knows {', '.join(known)}" if known else "it has none"
            raise UserError(
                f"search parameters {parameters!r} do not fit this index ({names}); nprobe goes with IVF, efSearch "
                "with HNSW, k_factor_rf with refining."
            )
        if value > known[name]:
            raise UserError(
                f"search parameters {parameters!r} do not fit this index ({name} is at most {known[name]}); "
                "choose a smaller one."
            )
    space = faiss.ParameterSpace()
    for name, value in wanted.items():
        space.set_index_parameter(index, name, value)


def _tell_few(factory: str, vectors: int, centroids: int) -> None:
    """One line where k-means has fewer vectors than it asks for, in the place of FAISS' own for each codebook."""
    if vectors < centroids * _PER_CENTROID:
        log(
            f"{factory}: {vectors:,} vectors train {centroids:,} centroids, and k-means asks for "
            f"{centroids * _PER_CENTROID:,}: codes may be coarse; 'SQ8' and 'Flat' need none."
        )


def _parsed(factory: str, dimension: int) -> Any:
    import faiss

    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise _unreadable(factory, dimension, _reason(error)) from error
    if reason := flaw(index):
        raise _unreadable(factory, dimension, reason)
    return index


def _check_sizes(factory: str, dimension: int) -> None:
    """Refuse what ends FAISS' process, or takes all memory, while it reads the string."""
    reason = ""
    numbers = re.findall(r"\d+", factory)
    if len(factory) > _LONGEST:
        factory, reason = f"{factory[:40]}...", f"longer than {_LONGEST} characters"
    elif any(int(number) == 0 for number in numbers):
        reason = "a size of 0"
    elif any(not 2 <= int(links) <= _MOST_LINKS for links in re.findall(r"HNSW(\d+)", factory)):
        reason = f"HNSW has 2 to {_MOST_LINKS} links"
    elif any(int(bits) > _MOST_BITS for bits in re.findall(r"x(\d+)(?![\dx])", factory)):
        reason = f"codewords have at most {_MOST_BITS} bits"
    elif any(int(width) > _WIDEST for width in re.findall(r"(?:OPQ\d+_|PCAW?R?|RR|ITQ|Pad)(\d+)", factory)):
        reason = f"vectors have at most {_WIDEST} dimensions"
    elif _lists(factory) > _MOST_LISTS:
        reason = f"at most {_MOST_LISTS} lists"
    if reason:
        raise _unreadable(factory, dimension, reason)


def _lists(factory: str) -> int:
    units = {"": 1, "k": 2**10, "M": 2**20}
    return max((int(lists) * units[unit] for lists, unit in re.findall(r"IVF(\d+)([kM]?)", factory)), default=1)


def _keep_means(index: Any) -> None:
    """Take the subtraction of means out of trained PCA and ITQ; whitening (PCAW) is left as it is asked for."""
    import faiss

    for step in transforms(index):
        if isinstance(step, faiss.PCAMatrix) and step.eigen_power == 0:
            step.have_bias = False
        elif isinstance(step, faiss.ITQTransform):
            faiss.copy_array_to_vector(np.zeros(step.d_in, dtype=np.float32), step.mean)
            step.pca_then_itq.have_bias = False


def _unreadable(factory: str, dimension: int, reason: str) -> UserError:
    return UserError(f"factory {factory!r} does not parse for {dimension} dimensions ({reason}); examples: {EXAMPLES}.")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "no memory for it"
    said = re.sub(r"^.*\.(?:cpp|h):\d+: ", "", str(error).strip().splitlines()[-1])  # where in FAISS it was said
    if "METRIC_L2" in said:
        return EUCLIDEAN
    return re.sub(r"^(?:Error: )?(?:'.*?' failed: (?=.))?", "", said)[:120]
