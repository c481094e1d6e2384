"""FAISS indexes by their factory string, with the checks that FAISS leaves out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.runtime import log
from retrodistill.encoders.vectors import check_finite

_CODES = ("ResidualQuantizer", "LocalSearchQuantizer", "ProductResidualQuantizer", "ProductLocalSearchQuantizer")
_KINDS = {
    *("IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ", "IndexPQFastScan"),
    *("IndexRaBitQ", "IndexRaBitQFastScan", "IndexHNSWFlat", "IndexHNSWSQ"),
    *("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan"),
    *("IndexIVFRaBitQ", "IndexIVFRaBitQFastScan", "IndexPreTransform", "IndexRefine", "IndexRefineFlat"),
    *(f"Index{lists}{codes}{scan}" for codes in _CODES for lists in ("", "IVF") for scan in ("", "FastScan")),
}
EUCLIDEAN = "FAISS has it for Euclidean distance only"
_MOST_RESIDUALS = 64  # codewords a vector; more take hours to train and lose what they gain
_MANY = 2**20  # of what has no natural largest value
_REFINING = {"IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ"}


def inside(index: Any) -> Iterator[Any]:
    """Every FAISS index that one consists of, itself first, each as its own class."""
    import faiss

    index = faiss.downcast_index(index)
    yield index
    if isinstance(index, faiss.IndexPreTransform):
        yield from inside(index.index)
    elif isinstance(index, faiss.IndexRefine):
        yield from inside(index.base_index)
        yield from inside(index.refine_index)
    elif isinstance(index, faiss.IndexIVF):
        yield from inside(index.quantizer)
    elif isinstance(index, faiss.IndexHNSW):
        yield from inside(index.storage)


def transforms(index: Any) -> list[Any]:
    """The transforms that vectors pass before an index sees them, those of its parts too."""
    import faiss

    chains: list[Any] = [part.chain for part in inside(index) if isinstance(part, faiss.IndexPreTransform)]
    return [faiss.downcast_VectorTransform(chain.at(place)) for chain in chains for place in range(chain.size())]


def flaw(index: Any) -> str | None:
    """Why an untrained index must not be used, in a few words; None for a sound one.

    FAISS builds some kinds for Euclidean distance whatever is asked for, and ends the process in others.
    """
    reasons = (_flaw_of_kind(part) for part in inside(index))
    steps = (_flaw_of_transform(step) for step in transforms(index))
    return next((reason for reason in (*reasons, *steps) if reason), None)


def fewest_vectors(index: Any) -> int:
    """The fewest vectors that an untrained index and all its parts can be trained on.

    Codewords and lists need one each; OPQ trains 256 codewords in its output width and ends the process on less than
    that width; residual quantizers take principal components first, as many as a vector has dimensions.
    """
    import faiss

    fewest = 1
    for part in inside(index):
        if isinstance(part, faiss.IndexIVF):
            fewest = max(fewest, part.nlist)
        if hasattr(part, "pq"):
            fewest = max(fewest, part.pq.ksub)
        for name in ("rq", "lsq", "prq", "plsq"):
            if hasattr(part, name):
                fewest = max(fewest, _for_residuals(getattr(part, name), name))
    for step in transforms(index):
        if isinstance(step, faiss.OPQMatrix):
            fewest = max(fewest, step.d_out, 256)
        elif isinstance(step, (faiss.PCAMatrix, faiss.ITQTransform)):
            fewest = max(fewest, step.d_out)
    return fewest


@contextlib.contextmanager
def quiet_clustering(index: Any) -> Iterator[int]:
    """Let an untrained index' k-means say nothing of few vectors; what it computes stays the same.

    Yields:
        The most centroids that any of its parts learns; 1 for none.
    """
    import faiss

    most, given = 1, []
    for step in transforms(index):
        if isinstance(step, faiss.OPQMatrix):
            # OPQ trains a quantizer of its own; one that is given can be told to be quiet. FAISS does not own it.
            step.pq = quantizer = faiss.ProductQuantizer(step.d_out, step.M, 8)
            quantizer.cp.min_points_per_centroid = 1
            given.append((step, quantizer))
            most = max(most, quantizer.ksub)
    for part in inside(index):
        if isinstance(part, faiss.IndexIVF):
            part.cp.min_points_per_centroid = 1
            most = max(most, part.nlist)
        for name, centroids in (("pq", lambda codes: codes.ksub), ("rq", lambda codes: 1)):
            if hasattr(part, name):
                codes = getattr(part, name)
                codes.cp.min_points_per_centroid = 1
                most = max(most, centroids(codes))
    try:
        yield most
    finally:
        for step, _ in given:
            step.pq = None


def keeps_labels(index: Any) -> bool:
    """Whether documents keep their labels when others are removed (inverted lists), or move up."""
    import faiss

    return isinstance(_core(index), faiss.IndexIVF)


def can_remove(index: Any) -> bool:
    """Whether documents can be removed: not from graphs and refined ones, nor from fast-scan kinds.

    In faiss 1.15 a fast-scan index loses the codes of documents that are added after a removal: they are written over
    what the removed ones left behind.
    """
    import faiss

    core = _core(index)
    fixed = isinstance(core, (faiss.IndexHNSW, faiss.IndexRefine)) or type(core).__name__.endswith("FastScan")
    return not fixed


def known_parameters(index: Any) -> dict[str, int]:
    """The search parameters that an index knows, each with its largest value."""
    import faiss

    known: dict[str, int] = {}
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        known = known_parameters(index.index)
    elif isinstance(index, faiss.IndexRefine):
        known = {**known_parameters(index.base_index), "k_factor_rf": _MANY}
    elif isinstance(index, faiss.IndexIVF):
        known = {"nprobe": int(index.nlist)}
        known |= {f"quantizer_{name}": most for name, most in known_parameters(index.quantizer).items()}
    elif isinstance(index, faiss.IndexHNSW):
        known = {"efSearch": _MANY}
    return known


def file_bytes(index: Any) -> int:
    """Size of an index as a file; it is written to nowhere in pieces, never held a second time."""
    import faiss

    library: Any = faiss  # its stubs lack the writers
    written = 0

    def count(piece: bytes) -> None:
        nonlocal written
        written += len(piece)

    library.write_index(index, library.BufferedIOWriter(library.PyCallbackIOWriter(count), 2**20))
    return written


def read_faiss(path: str | os.PathLike[str], *, memory_map: bool = False) -> Any:
    """Read an index' file.

    Args:
        path: The file.
        memory_map: Leave codes, vectors and graphs on disk, until they are searched; FAISS reads those of its
            fast-scan kinds (``PQ16x4fs``, ``RaBitQfs``) all the same. Such an index must not be changed: FAISS ends the
            process.
    """
    import faiss

    # IO_FLAG_MMAP, the older flag, leaves all but inverted lists in memory and writes lists as a reference to the file
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)


def _for_residuals(codes: Any, name: str) -> int:
    import faiss

    words = 2 ** int(max(faiss.vector_to_array(codes.nbits)))
    wide = {"rq": codes.d, "prq": codes.d // max(codes.nsplits, 1) if name == "prq" else 1}.get(name, 1)
    norms = 256 if codes.search_type == faiss.AdditiveQuantizer.ST_norm_cqint8 else 1
    return int(max(words, wide, norms))


def _flaw_of_kind(part: Any) -> str | None:
    import faiss

    name = type(part).__name__
    if part.metric_type != faiss.METRIC_INNER_PRODUCT:
        return EUCLIDEAN
    if name not in _KINDS:
        return f"{name} is not among the kinds used here: Flat, SQ, PQ, RaBitQ, HNSW, IVF, RQ, LSQ and refined ones"
    if any(hasattr(part, codes) and getattr(part, codes).M > _MOST_RESIDUALS for codes in ("rq", "lsq")):
        return f"residual quantizers have at most {_MOST_RESIDUALS} codewords a vector"
    if isinstance(part, faiss.IndexRefine) and _class_of(part.refine_index) not in _REFINING:
        return "refine by RFlat, Refine(SQ8), Refine(SQfp16) or Refine(PQ...)"
    if isinstance(part, faiss.IndexIVF) and part.nlist < (wanted := fewest_vectors(part.quantizer)):
        return f"the quantizer of its lists needs at least {wanted} lists to train, there are {part.nlist}"
    return None


def _flaw_of_transform(step: Any) -> str | None:
    import faiss

    if isinstance(step, faiss.OPQMatrix) and step.d_out % step.M:
        return f"OPQ{step.M}: the width {step.d_out} is no multiple of {step.M}"
    if isinstance(step, (faiss.PCAMatrix, faiss.ITQTransform)) and step.d_out > step.d_in:
        return f"{step.d_out} dimensions cannot be taken out of {step.d_in}"
    return None


def _core(index: Any) -> Any:
    """What is behind the transforms."""
    import faiss

    index = faiss.downcast_index(index)
    return _core(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _class_of(index: Any) -> str:
    import faiss

    return type(faiss.downcast_index(index)).__name__


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
