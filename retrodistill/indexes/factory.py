"""FAISS indexes by their factory string, with the checks that FAISS leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss
from retrodistill.core.runtime import bar, log
from retrodistill.encoders.vectors import Vectors, check_finite, training_rows

_EXAMPLES = "'Flat', 'SQ8', 'OPQ48,PQ48', 'IVF64,Flat', 'HNSW32', 'RaBitQ,Refine(SQ8)'"
_CODES = ("ResidualQuantizer", "LocalSearchQuantizer", "ProductResidualQuantizer", "ProductLocalSearchQuantizer")
_KINDS = {
    *("IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ", "IndexPQFastScan"),
    *("IndexRaBitQ", "IndexRaBitQFastScan", "IndexHNSWFlat", "IndexHNSWSQ"),
    *("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan"),
    *("IndexIVFRaBitQ", "IndexIVFRaBitQFastScan", "IndexPreTransform", "IndexRefine", "IndexRefineFlat"),
    *(f"Index{lists}{codes}{scan}" for codes in _CODES for lists in ("", "IVF") for scan in ("", "FastScan")),
}
_REFINING = {"IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ"}
_EUCLIDEAN = "FAISS has it for Euclidean distance only"
_LONGEST = 200  # characters; FAISS's parser is recursive
_MOST_LINKS, _MOST_BITS, _MOST_DIMENSIONS, _MOST_LISTS = 512, 16, 2**16, 2**22
_MOST_RESIDUALS = 64  # codewords per vector; more take hours to train and lose what they gain
_PER_CENTROID = 39  # vectors; FAISS warns below
_UNLIMITED = 2**20  # for parameters without a natural maximum
_BLOCK = 65_536  # vectors that are read and added at once; HNSW depends on it


def build_faiss(
    factory: str, vectors: Vectors, ids: Sequence[str] | None = None, source: str = "vectors to index"
) -> Any:
    """Build, train and fill an inner-product index of (n, d) float32 vectors, such as ``OPQ48,PQ48``.

    Vectors are read in blocks, and training takes an evenly drawn sample (`training_rows`): memory is that of the
    index, the sample and a block. `ids` (by default the numbers of rows) and `source` are for messages.

    PCA and ITQ usually subtract the mean of the documents, which reorders inner products (on MiniLM's NFCorpus vectors
    ``PCA192,Flat`` keeps .55 of the ten best, without the mean .91); here they only rotate and cut. Product quantizers
    skip the polysemous ordering of codewords, which takes most of the time and which nothing here searches by.

    Strings that do not parse, too few vectors to train (FAISS would abort the process), and vectors that are not finite
    raise a UserError.
    """
    count, dimension = vectors.shape
    index = empty_index(factory, dimension, count)
    names: Sequence[Any] = range(count) if ids is None else ids
    try:
        if not index.is_trained:
            rows = training_rows(count, _centroids(index))
            sample = np.ascontiguousarray(vectors[rows], dtype=np.float32)
            check_finite(sample, [names[row] for row in rows.tolist()], source)
            _train(index, sample, factory)
            del sample
        _reserve(index, count)
        with bar(count, f"indexing ({factory})", "vectors") as progress:
            for start in range(0, count, _BLOCK):
                block = np.ascontiguousarray(vectors[start : start + _BLOCK], dtype=np.float32)
                check_finite(block, names[start : start + _BLOCK], source)
                index.add(block)
                progress.update(len(block))
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"factory {factory!r} cannot be filled with {count} vectors of {dimension} dimensions "
            f"({_reason(error)}); {_smaller(factory)}."
        ) from error
    return index


def empty_index(factory: str, dimension: int, vectors: int, parameters: str | None = None) -> Any:
    """An untrained inner-product index for a number of vectors; also the check before any work starts.

    It refuses strings that do not parse for this width, too few vectors, and search parameters that do not fit.
    """
    _check_sizes(factory, dimension)
    needed = _lists(factory)
    if vectors >= needed:  # FAISS allocates all lists at once, so their number is checked before it parses
        index = _parse(factory, dimension)
        needed = 1 if index.is_trained else fewest_vectors(index)
    if vectors < needed:
        raise UserError(
            f"factory {factory!r} needs at least {needed} vectors to train, there are {vectors}; {_smaller(factory)}."
        )
    if parameters:
        set_parameters(index, parameters)
    return index


def fewest_vectors(index: Any) -> int:
    """The fewest vectors that an untrained index and all its parts can be trained on.

    Codewords and lists need one each. OPQ trains 256 codewords, and FAISS ends the process on fewer vectors than OPQ's
    output width. Residual quantizers first take as many principal components as a vector has dimensions.
    """
    needed = [1]
    for part in _parts(index):
        if isinstance(part, faiss.IndexIVF):
            needed.append(part.nlist)
        if hasattr(part, "pq"):
            needed.append(part.pq.ksub)
        for name in ("rq", "lsq", "prq", "plsq"):
            if codes := getattr(part, name, None):
                needed.append(2 ** int(max(faiss.vector_to_array(codes.nbits))))
                needed.append({"rq": codes.d, "prq": codes.d // max(getattr(codes, "nsplits", 1), 1)}.get(name, 1))
                needed.append(256 if codes.search_type == faiss.AdditiveQuantizer.ST_norm_cqint8 else 1)
    for step in _transforms(index):
        if isinstance(step, faiss.OPQMatrix):
            needed += [step.d_out, 256]
        elif isinstance(step, (faiss.PCAMatrix, faiss.ITQTransform)):
            needed.append(step.d_out)
    return int(max(needed))


def read_parameters(parameters: str) -> dict[str, int]:
    """Search parameters by name: ``nprobe=16,k_factor_rf=4`` is ``{"nprobe": 16, "k_factor_rf": 4}``."""
    values = {}
    for assignment in re.split(r"[ ,]+", parameters.strip(" ,")):
        name, _, value = assignment.partition("=")
        if not re.fullmatch(r"0*[1-9]\d{0,8}", value):
            raise UserError(
                f"search parameters {parameters!r} do not fit this index ({assignment!r} is not name=number, a whole "
                "number of 1 or more); e.g. 'nprobe=16' for IVF."
            )
        values[name] = int(value)
    return values


def written_parameters(parameters: dict[str, int]) -> str:
    """The reverse of `read_parameters`."""
    return ",".join(f"{name}={value}" for name, value in parameters.items())


def set_parameters(index: Any, parameters: str) -> dict[str, int]:
    """Set search parameters such as ``efSearch=64,k_factor_rf=4``, also behind transforms, and return their values."""
    known, values = known_parameters(index), read_parameters(parameters)
    if wrong := [name for name, value in values.items() if value > known.get(name, 0)]:
        names = f"it knows {', '.join(known)}" if known else "it has none"
        reason = f"{wrong[0]} is at most {known[wrong[0]]}" if wrong[0] in known else names
        raise UserError(
            f"search parameters {parameters!r} do not fit this index ({reason}); nprobe goes with IVF, efSearch with "
            "HNSW, k_factor_rf with refining."
        )
    for name, value in values.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    return values


def known_parameters(index: Any) -> dict[str, int]:
    """The search parameters that an index has, each with its largest value."""
    index = _behind_transforms(index)
    if isinstance(index, faiss.IndexRefine):
        return {**known_parameters(index.base_index), "k_factor_rf": _UNLIMITED}
    if isinstance(index, faiss.IndexIVF):
        quantizer = {f"quantizer_{name}": most for name, most in known_parameters(index.quantizer).items()}
        return {"nprobe": int(index.nlist), **quantizer}
    return {"efSearch": _UNLIMITED} if isinstance(index, faiss.IndexHNSW) else {}


def check_scores(index: Any) -> None:
    """Refuse an index whose scores are not inner products: those of Euclidean distance rank the nearest last.

    The quantizer of inverted lists may have any metric: it chooses lists and does not score.
    """
    for part in _scoring_parts(index):
        if not isinstance(part, faiss.Index) or part.metric_type != faiss.METRIC_INNER_PRODUCT:
            metric = "Euclidean distances" if getattr(part, "metric_type", 0) == faiss.METRIC_L2 else "another metric"
            raise UserError(
                f"{type(part).__name__} searches by {metric}, smaller is better, and an index of documents by inner "
                "products; add the vectors to one of METRIC_INNER_PRODUCT, such as IndexFlatIP, or use build_index."
            )


def _scoring_parts(index: Any) -> Iterator[Any]:
    """The index and its parts whose metric decides scores."""
    index = faiss.downcast_index(index) if isinstance(index, faiss.Index) else index
    yield index
    for name in ("index", "base_index", "refine_index", "storage"):
        if inner := getattr(index, name, None):
            yield from _scoring_parts(inner)
    if isinstance(index, (faiss.IndexShards, faiss.IndexReplicas)):
        for place in range(index.count()):
            yield from _scoring_parts(index.at(place))


def own_labels(index: Any) -> np.ndarray | None:
    """(n,) int64 labels that an `IndexIDMap` gives to its documents; None for any other index."""
    index = _behind_transforms(index)
    return faiss.vector_to_array(index.id_map) if isinstance(index, faiss.IndexIDMap) else None


def sampled_lengths(index: Any, count: int) -> tuple[np.ndarray, bool]:
    """Lengths of up to `count` vectors of the index, and whether it holds these exactly or as codes of each number.

    There are none for other codes, which tell little about lengths.
    """
    holder, exact = vector_holder(index), True
    if isinstance(holder, faiss.IndexIVFFlat):
        number = max(range(holder.nlist), key=holder.invlists.list_size)
        size = min(count, holder.invlists.list_size(number))
        vectors = faiss.rev_swig_ptr(holder.invlists.get_codes(number), size * holder.code_size).view(np.float32)
        return np.linalg.norm(vectors.reshape(size, holder.d), axis=1), exact
    if holder is None:
        holder, exact = _behind_transforms(index), False
        if isinstance(holder, faiss.IndexIDMap):
            holder = _behind_transforms(holder.index)
        if not isinstance(holder, faiss.IndexScalarQuantizer):
            return np.zeros(0, dtype=np.float32), exact
    rows = np.unique(np.linspace(0, holder.ntotal - 1, min(holder.ntotal, count)).astype(np.int64))
    vectors = np.reshape([holder.reconstruct(row) for row in rows.tolist()], (len(rows), holder.d))
    return np.linalg.norm(vectors, axis=1), exact


def keeps_labels(index: Any) -> bool:
    """Whether documents keep their labels when others are removed (inverted lists, maps of ids), or move up."""
    return isinstance(_behind_transforms(index), (faiss.IndexIVF, faiss.IndexIDMap))


def can_remove(index: Any) -> bool:
    """Whether documents can be removed: not from graphs, refined and fast-scan indexes."""
    # In fast-scan kinds of faiss 1.15, codes that are added after a removal overwrite others.
    core = _behind_transforms(index)
    if isinstance(core, faiss.IndexIDMap):
        return can_remove(core.index)
    return not isinstance(core, (faiss.IndexHNSW, faiss.IndexRefine)) and not type(core).__name__.endswith("FastScan")


def vector_holder(index: Any) -> Any:
    """The part that holds the vectors as they were given (Flat, also in HNSW and RFlat, or IVF,Flat), or None."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        return vector_holder(index.index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    elif isinstance(index, faiss.IndexHNSW):
        index = faiss.downcast_index(index.storage)
    return index if isinstance(index, (faiss.IndexFlat, faiss.IndexIVFFlat)) else None


def file_bytes(index: Any) -> int:
    """Size of an index as a file, counted in pieces: no second copy of the index is made."""
    sizes: list[int] = []
    writer = faiss.PyCallbackIOWriter(lambda piece: sizes.append(len(piece)))
    faiss.write_index(index, faiss.BufferedIOWriter(writer, 2**20))
    return sum(sizes)


def _parse(factory: str, dimension: int) -> Any:
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise _unreadable(factory, dimension, _reason(error)) from error
    # FAISS builds some kinds for Euclidean distance whatever is asked for, and ends the process in others.
    flaws = [*map(_flaw_of_part, _parts(index)), *map(_flaw_of_transform, _transforms(index))]
    if flaw := next(filter(None, flaws), None):
        raise _unreadable(factory, dimension, flaw)
    return index


def _check_sizes(factory: str, dimension: int) -> None:
    """Refuse strings that end FAISS's process or take all memory while it parses them."""
    if len(factory) > _LONGEST:
        raise _unreadable(f"{factory[:40]}...", dimension, f"longer than {_LONGEST} characters")

    def sizes(pattern: str) -> list[int]:
        return [int(size) for size in re.findall(pattern, factory)]

    links, bits = sizes(r"HNSW(\d+)"), sizes(r"x(\d+)(?![\dx])")
    widths = sizes(r"(?:OPQ\d+_|PCAW?R?|RR|ITQ|Pad)(\d+)")
    checks = (
        (0 in sizes(r"\d+"), "a size of 0"),
        (any(not 2 <= size <= _MOST_LINKS for size in links), f"HNSW has 2 to {_MOST_LINKS} links"),
        (max(bits, default=0) > _MOST_BITS, f"codewords have at most {_MOST_BITS} bits"),
        (max(widths, default=0) > _MOST_DIMENSIONS, f"vectors have at most {_MOST_DIMENSIONS} dimensions"),
        (_lists(factory) > _MOST_LISTS, f"at most {_MOST_LISTS} lists"),
    )
    for is_wrong, reason in checks:
        if is_wrong:
            raise _unreadable(factory, dimension, reason)


def _lists(factory: str) -> int:
    units = {"": 1, "k": 2**10, "M": 2**20}
    return max((int(lists) * units[unit] for lists, unit in re.findall(r"IVF(\d+)([kM]?)", factory)), default=1)


def _flaw_of_part(part: Any) -> str | None:
    name = type(part).__name__
    if part.metric_type != faiss.METRIC_INNER_PRODUCT:
        return _EUCLIDEAN
    if name not in _KINDS:
        return f"{name} is not among the kinds used here: Flat, SQ, PQ, RaBitQ, HNSW, IVF, RQ, LSQ and refined ones"
    if any(hasattr(part, codes) and getattr(part, codes).M > _MOST_RESIDUALS for codes in ("rq", "lsq")):
        return f"residual quantizers have at most {_MOST_RESIDUALS} codewords a vector"
    if isinstance(part, faiss.IndexRefine) and type(faiss.downcast_index(part.refine_index)).__name__ not in _REFINING:
        return "refine by RFlat, Refine(SQ8), Refine(SQfp16) or Refine(PQ...)"
    if isinstance(part, faiss.IndexIVF) and part.nlist < (needed := fewest_vectors(part.quantizer)):
        return f"the quantizer of its lists needs at least {needed} lists to train, there are {part.nlist}"
    return None


def _flaw_of_transform(step: Any) -> str | None:
    if isinstance(step, faiss.OPQMatrix) and step.d_out % step.M:
        return f"OPQ{step.M}: the width {step.d_out} is not a multiple of {step.M}"
    if isinstance(step, (faiss.PCAMatrix, faiss.ITQTransform)) and step.d_out > step.d_in:
        return f"{step.d_out} dimensions cannot be taken out of {step.d_in}"
    return None


def _train(index: Any, vectors: np.ndarray, factory: str) -> None:
    """Train without polysemous codes, and with one warning about few vectors in place of FAISS's for each codebook."""
    parts, steps = list(_parts(index)), _transforms(index)
    rotations = [step for step in steps if isinstance(step, faiss.OPQMatrix)]
    products = [part.pq for part in parts if hasattr(part, "pq")]
    for step in rotations:  # OPQ trains a quantizer of its own, or one that it is given and does not own
        products.append(faiss.ProductQuantizer(step.d_out, step.M, 8))  # the list keeps it alive
        step.pq = products[-1]
    lists = [part for part in parts if isinstance(part, faiss.IndexIVF)]
    for trained in [*products, *lists, *(part.rq for part in parts if hasattr(part, "rq"))]:
        trained.cp.min_points_per_centroid = 1
    for part in parts:
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False
    centroids = _centroids(index)
    if centroids > 1 and len(vectors) < centroids * _PER_CENTROID:  # kinds without centroids need no k-means
        log(
            f"{factory}: {len(vectors):,} vectors train {centroids:,} centroids, and k-means asks for "
            f"{centroids * _PER_CENTROID:,}: codes may be coarse; 'SQ8' and 'Flat' need none."
        )
    try:
        index.train(vectors)
    finally:
        for step in rotations:
            step.pq = None
    for step in steps:  # undo the subtraction of means; whitening (PCAW) stays as requested
        if isinstance(step, faiss.PCAMatrix) and step.eigen_power == 0:
            step.have_bias = False
        elif isinstance(step, faiss.ITQTransform):
            faiss.copy_array_to_vector(np.zeros(step.d_in, dtype=np.float32), step.mean)
            step.pca_then_itq.have_bias = False


def _centroids(index: Any) -> int:
    """The most centroids that one k-means of an untrained index finds."""
    parts = list(_parts(index))
    lists = [part.nlist for part in parts if isinstance(part, faiss.IndexIVF)]
    codewords = [part.pq.ksub for part in parts if hasattr(part, "pq")]
    rotations = [256 for step in _transforms(index) if isinstance(step, faiss.OPQMatrix)]
    return int(max([1, *lists, *codewords, *rotations]))


def _reserve(index: Any, count: int) -> None:
    """Allocate the codes of all vectors at once: growing copies them, which takes twice their memory."""
    for part in _parts(index):
        if isinstance(part, faiss.IndexFlatCodes) and not part.ntotal:  # the quantizer of lists is filled
            part.codes.resize(count * part.code_size)
            part.codes.resize(0)  # keeps the memory


def _parts(index: Any) -> Iterator[Any]:
    """Every FAISS index that this one consists of, itself first, each as its own class."""
    index = faiss.downcast_index(index)
    yield index
    for name in ("index", "base_index", "refine_index", "quantizer", "storage"):
        if inner := getattr(index, name, None):
            yield from _parts(inner)


def _transforms(index: Any) -> list[Any]:
    """The transforms of an index and its parts, in the order in which vectors pass them."""
    chains: list[Any] = [part.chain for part in _parts(index) if isinstance(part, faiss.IndexPreTransform)]
    return [faiss.downcast_VectorTransform(chain.at(place)) for chain in chains for place in range(chain.size())]


def _behind_transforms(index: Any) -> Any:
    index = faiss.downcast_index(index)
    return _behind_transforms(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _smaller(factory: str) -> str:
    """Advice on what to choose in place of a factory."""
    others = [repr(other) for other in ("SQ8", "Flat") if other != factory]
    return f"choose a smaller one, e.g. {' or '.join(others)}"


def _unreadable(factory: str, dimension: int, reason: str) -> UserError:
    return UserError(
        f"factory {factory!r} does not parse for {dimension} dimensions ({reason}); examples: {_EXAMPLES}."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "no memory for it"
    message = re.sub(r"^.*\.(?:cpp|h):\d+: ", "", str(error).strip().splitlines()[-1])  # without the place in FAISS
    if "METRIC_L2" in message:
        return _EUCLIDEAN
    return re.sub(r"^(?:Error: )?(?:'.*?' failed: (?=.))?", "", message)[:120]
