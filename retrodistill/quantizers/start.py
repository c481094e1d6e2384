"""Where learning starts: a FAISS product quantizer, its parts read out as arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError

_FORM = re.compile(r"(?:OPQ(\d+)(?:_(\d+))?,)?(?:IVF(\d+),)?PQ(\d+)(?:x([48]))?(?:np)?")
_WANTED = "'PQ16', 'OPQ16,PQ16', 'OPQ16,PQ16x4' or 'OPQ16,IVF64,PQ16'"


@dataclass(frozen=True, eq=False)
class Codes:
    """A product quantizer and the documents that it holds.

    A document is rebuilt as ``(codeword_1 .. codeword_M + centroid of its list) @ rotation``.

    Attributes:
        rotation: (width, d) float32, rows of unit length at right angles; from the vectors' space to the codes'.
        codebooks: (M, 2^bits, width / M) float32.
        codes: (n, M) int64 codewords of each document.
        centroids: (lists, width) float32, or None without lists.
        lists: (n,) int64 list of each document, or None.
        rotated: Whether the rotation is part of the index; without, it is the identity.
    """

    rotation: np.ndarray
    codebooks: np.ndarray
    codes: np.ndarray
    centroids: np.ndarray | None = None
    lists: np.ndarray | None = None
    rotated: bool = True

    @property
    def bits(self) -> int:
        """Of one code, 4 or 8."""
        return int(self.codebooks.shape[1]).bit_length() - 1

    @property
    def bytes_per_document(self) -> int:
        """Of the codes; FAISS adds 8 for the id where there are lists."""
        return (self.codes.shape[1] * self.bits + 7) // 8

    def rebuilt(self) -> np.ndarray:
        """(n, d) float32 documents as the codes tell them, in the vectors' own space."""
        parts = [book[code] for book, code in zip(self.codebooks, self.codes.T, strict=True)]
        inner = np.concatenate(parts, axis=1)
        if self.centroids is not None and self.lists is not None:
            inner = inner + self.centroids[self.lists]
        return (inner @ self.rotation).astype(np.float32)

    def with_arrays(self, **arrays: Any) -> Codes:
        """The same with other arrays."""
        return replace(self, **arrays)


@dataclass(frozen=True)
class Form:
    """What a factory string says.

    Attributes:
        width: Of the space of the codes.
        subspaces: M, codes per document.
        bits: Of each code.
        lists: IVF lists, 0 for none.
        rotated: Whether there is an OPQ rotation.
    """

    width: int
    subspaces: int
    bits: int
    lists: int
    rotated: bool

    @property
    def vectors_to_train(self) -> int:
        """FAISS aborts, or refuses, below this."""
        return max(2**self.bits, self.width if self.rotated else 1, self.lists)


def factory_for(bytes: int, dimension: int, lists: int | None = None, bits: int = 8) -> str:
    """The factory string of so many bytes per document.

    Args:
        bytes: Of the codes of one document, 1 to `dimension` (at 4 bits to half of it).
        dimension: Of the vectors.
        lists: IVF lists; none by default.
        bits: Of each code, 8 or 4 (4: more and smaller subspaces of 16 codewords, faster to search).

    Returns:
        ``OPQ{M}_{width},[IVF{lists},]PQ{M}x{bits}`` with M = 8 bytes / bits, and the width the largest multiple of M
        that is at most `dimension`.

    Raises:
        UserError: Bytes that do not fit the dimension, or other bits.
    """
    if bits not in (4, 8):
        raise UserError(f"bits={bits}: codes have 4 or 8 bits.")
    most = dimension * bits // 8
    if not 1 <= bytes <= most:
        raise UserError(
            f"{bytes} bytes per document do not fit vectors of {dimension} dimensions at {bits}-bit codes; choose 1 to "
            f"{most}."
        )
    if lists is not None and lists < 1:
        raise UserError(f"lists={lists}: give at least 1, or none.")
    subspaces = bytes * 8 // bits
    width = subspaces * (dimension // subspaces)
    middle = f"IVF{lists}," if lists else ""
    return f"OPQ{subspaces}_{width},{middle}PQ{subspaces}" + ("" if bits == 8 else f"x{bits}")


def read_form(factory: str, dimension: int) -> Form:
    """What a factory string says, checked against the dimension of the vectors.

    Raises:
        UserError: Not of the forms that can be learned, or its subspaces do not divide the width.
    """
    found = _FORM.fullmatch(factory.replace(" ", ""))
    if found is None:
        raise UserError(f"factory {factory!r} cannot be learned; it is of the form {_WANTED}.")
    opq, out, lists, subspaces, bits = (int(group) if group else None for group in found.groups())
    width, blocks = out or dimension, subspaces or 0
    if opq is not None and opq != subspaces:
        raise UserError(f"factory {factory!r}: OPQ{opq} rotates for {opq} subspaces and PQ{subspaces} has {subspaces}.")
    if blocks < 1 or width % blocks or width > dimension:
        raise UserError(
            f"factory {factory!r} does not fit vectors of {dimension} dimensions: {blocks} subspaces must divide the "
            f"width {width}, which is at most {dimension}; take {factory_hint(blocks, dimension)}."
        )
    if lists == 0:
        raise UserError(f"factory {factory!r}: an IVF has at least 1 list.")
    return Form(width, blocks, bits or 8, lists or 0, opq is not None)


def factory_hint(subspaces: int, dimension: int) -> str:
    """A factory with about so many subspaces that fits."""
    fitting = max(1, min(subspaces, dimension))
    return repr(factory_for(fitting, dimension))


def start_index(factory: str, documents: np.ndarray, *, seed: int = 0, iterations: int = 50) -> Any:
    """Train and fill the FAISS index that learning starts from, and that its results are shown beside.

    Args:
        factory: `read_form` says which.
        documents: (n, d) float32, finite.
        seed: Of the k-means.
        iterations: OPQ's rounds of codebooks and rotation; 50 is FAISS's own default.

    Raises:
        UserError: Too few documents (FAISS would abort the process), or a factory that cannot be learned.
    """
    import faiss

    form = read_form(factory, documents.shape[1])
    if len(documents) < form.vectors_to_train:
        raise UserError(
            f"factory {factory!r} needs at least {form.vectors_to_train} documents to train, there are "
            f"{len(documents)}; choose fewer lists, 4-bit codes (16 codewords) or a scalar quantizer ('SQ8')."
        )
    index: Any = faiss.index_factory(documents.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    inner: Any = index
    if form.rotated:
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = iterations
        # OPQ trains for 8-bit codes unless it is handed a quantizer of the size that follows.
        inside = faiss.ProductQuantizer(form.width, form.subspaces, form.bits)
        inside.cp.seed = seed + 1234
        inside.cp.min_points_per_centroid = 1
        rotation.pq = inside
        inner = faiss.downcast_index(index.index)
    inner.pq.cp.seed = seed + 1234  # FAISS's own default is 1234
    inner.pq.cp.min_points_per_centroid = 1  # it warns on C++'s own stream, once per subspace and round
    if form.lists:
        inner.cp.seed = seed + 1234
        inner.cp.min_points_per_centroid = 1
    else:
        # The factory asks for polysemous codes: a renumbering of the codewords by simulated annealing that takes many
        # times as long as the training and serves only a search by Hamming distances.
        inner.do_polysemous_training = False
    index.train(documents)
    if form.rotated:
        rotation.pq = None  # `inside` ends with this function
    index.add(documents)
    return index


def read_index(index: Any) -> Codes:
    """The parts of a FAISS product quantizer (PQ or IVF-PQ, with or without a rotation before it).

    Raises:
        UserError: Another kind of index.
    """
    import faiss

    rotation = None
    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        chain: Any = inner.chain
        if chain.size() != 1:
            raise UserError(f"an index behind {chain.size()} transforms cannot be learned; one rotation can.")
        linear: Any = faiss.downcast_VectorTransform(chain.at(0))
        rotation = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in).copy()
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIVFPQ):
        centroids = inner.quantizer.reconstruct_n(0, inner.nlist)
        places, packed = _inverted(inner)
    elif isinstance(inner, faiss.IndexPQ):
        centroids, places = None, None
        packed = faiss.vector_to_array(inner.codes).reshape(inner.ntotal, inner.code_size)
    else:
        raise UserError(f"an index of {type(inner).__name__} cannot be learned; it is one of {_WANTED}.")
    pq = inner.pq
    if centroids is not None and not inner.by_residual:
        raise UserError("an IVF-PQ whose codes are not residuals cannot be learned; build it with by_residual.")
    codes = faiss.unpack_bitstrings(np.ascontiguousarray(packed), pq.M, pq.nbits).astype(np.int64)
    return Codes(
        rotation=np.eye(index.d, dtype=np.float32) if rotation is None else rotation,
        codebooks=faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub).copy(),
        codes=codes,
        centroids=centroids,
        lists=places,
        rotated=rotation is not None,
    )


def _inverted(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """(n,) list of each document and (n, bytes) its packed code, by document number."""
    import faiss

    places = np.empty(index.ntotal, dtype=np.int64)
    packed = np.empty((index.ntotal, index.code_size), dtype=np.uint8)
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
            places[ids] = number
            flat = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
            packed[ids] = flat.reshape(size, index.code_size)
    return places, packed
