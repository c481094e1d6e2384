"""What a FAISS index is made of: its kinds, what they need to be trained, and the parameters they know."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

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
