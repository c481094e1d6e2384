"""Product quantizers of FAISS as arrays: factory strings, the index to start from, reading, and writing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from retrodistill.core.errors import UserError
from retrodistill.core.faiss import faiss
from retrodistill.encoders.vectors import Vectors, check_finite, training_rows

_FACTORY = re.compile(r"(?:OPQ(\d+)(?:_(\d+))?,)?(?:IVF(\d+),)?PQ(\d+)(?:x([48]))?(?:np)?")
_EXAMPLES = "'PQ16', 'OPQ16,PQ16', 'OPQ16,PQ16x4' or 'OPQ16,IVF64,PQ16'"
Rows = np.ndarray | slice  # of documents: (n,) int64, or a range
ALL = slice(None)
_FAISS_SEED = 1234  # FAISS's default seed of k-means: seed 0 gives what FAISS gives
_BLOCK = 65_536  # documents that are read and coded at once


@dataclass(frozen=True, eq=False)
class Codes:
    """A product quantizer and the documents that it holds.

    A document is reconstructed as ``(codeword_1 .. codeword_M + centroid of its list) @ rotation``.

    Attributes:
        rotation: (width, d) float32 with orthonormal rows, from the space of the vectors to that of the codes.
        codebooks: (M, 2^bits, width / M) float32.
        codes: (n, M) uint8, the codewords of each document.
        centroids: (lists, width) float32; None without lists.
        lists: (n,) int64, the list of each document; None without lists.
        rotated: Whether the index has a rotation; without one, `rotation` is the identity.
    """

    rotation: np.ndarray
    codebooks: np.ndarray
    codes: np.ndarray
    centroids: np.ndarray | None = None
    lists: np.ndarray | None = None
    rotated: bool = True

    def of(self, rows: Rows) -> Codes:
        """The same quantizer with only these documents."""
        return replace(self, codes=self.codes[rows], lists=None if self.lists is None else self.lists[rows])

    def reconstruct(self) -> np.ndarray:
        """(n, d) float32 documents as their codes represent them, in the space of the vectors."""
        documents = np.empty((len(self.codes), self.rotation.shape[1]), dtype=np.float32)
        for start in range(0, len(documents), _BLOCK):
            block = self.of(slice(start, start + _BLOCK))
            parts = [book[code] for book, code in zip(block.codebooks, block.codes.T, strict=True)]
            inner = np.concatenate(parts, axis=1)
            if block.centroids is not None and block.lists is not None:
                inner = inner + block.centroids[block.lists]
            documents[start : start + _BLOCK] = inner @ self.rotation
        return documents


class Form(NamedTuple):
    """A parsed factory string: width of the space of the codes, M codes of some bits, IVF lists (0 for none)."""

    width: int
    subspaces: int
    bits: int
    lists: int
    rotated: bool

    @property
    def vectors_to_train(self) -> int:
        """The fewest vectors that FAISS trains on; with fewer it refuses or aborts the process."""
        return max(2**self.bits, self.width if self.rotated else 1, self.lists)


def factory_for(bytes: int, dimension: int, lists: int | None = None, bits: int = 8) -> str:
    """The factory string for a number of bytes per document.

    Args:
        bytes: Bytes of one document's codes, 1 to `dimension` (with 4 bits, to half of it).
        dimension: Dimension of the vectors.
        lists: IVF lists; none by default.
        bits: Bits of each code, 8 or 4. With 4 there are more and smaller subspaces of 16 codewords: faster to search.

    Returns:
        ``OPQ{M}_{width},[IVF{lists},]PQ{M}x{bits}``, M = 8 bytes / bits, width the largest multiple of M that fits.
    """
    if bits not in (4, 8):
        raise UserError(f"bits={bits}: codes have 4 or 8 bits.")
    most = dimension * bits // 8
    if not 1 <= bytes <= most:
        raise UserError(
            f"{bytes} bytes per document do not fit vectors of {dimension} dimensions with {bits}-bit codes; choose 1 "
            f"to {most}."
        )
    if lists is not None and lists < 1:
        raise UserError(f"lists={lists}: give at least 1, or none.")
    subspaces = bytes * 8 // bits
    width = subspaces * (dimension // subspaces)
    inverted = f"IVF{lists}," if lists else ""
    return f"OPQ{subspaces}_{width},{inverted}PQ{subspaces}" + ("" if bits == 8 else f"x{bits}")


def read_form(factory: str, dimension: int) -> Form:
    """Parse a factory string; a `UserError` if it cannot be learned or does not fit the dimension of the vectors."""
    match = _FACTORY.fullmatch(factory.replace(" ", ""))
    if match is None:
        raise UserError(f"factory {factory!r} cannot be learned; give one such as {_EXAMPLES}.")
    opq, opq_width, lists, subspaces, bits = (int(group) if group else None for group in match.groups())
    width, subspaces = opq_width or dimension, subspaces or 0
    if opq is not None and opq != subspaces:
        raise UserError(f"factory {factory!r}: OPQ{opq} rotates for {opq} subspaces; PQ{subspaces} has {subspaces}.")
    if subspaces < 1 or width % subspaces or width > dimension:
        fitting = factory_for(max(1, min(subspaces, dimension)), dimension)
        raise UserError(
            f"factory {factory!r} does not fit vectors of {dimension} dimensions: {subspaces} subspaces must divide "
            f"the width {width}, which is at most {dimension}; use {fitting!r}."
        )
    if lists == 0:
        raise UserError(f"factory {factory!r}: an IVF has at least 1 list.")
    return Form(width, subspaces, bits or 8, lists or 0, opq is not None)


def start_index(
    factory: str, documents: Vectors, *, seed: int = 0, iterations: int = 50, names: Sequence[Any] | None = None
) -> Any:
    """Train and fill the FAISS index that learning starts from and is compared with.

    Args:
        factory: As `read_form` takes it.
        documents: (n, d) float32, read in blocks. Too few are a `UserError`, since FAISS would abort the process, and
            so are vectors that are not finite.
        seed: Seed of k-means.
        iterations: Rounds of OPQ; 50 is FAISS's own default.
        names: (n,) document ids, for messages.
    """
    count, dimension = documents.shape
    form = read_form(factory, dimension)
    if count < form.vectors_to_train:
        raise UserError(
            f"factory {factory!r} needs at least {form.vectors_to_train} documents to train, there are "
            f"{count}; choose fewer lists, 4-bit codes (16 codewords) or a scalar quantizer ('SQ8')."
        )
    index: Any = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    inner: Any = index
    clusterings = []
    if form.rotated:
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = iterations
        # Without a quantizer of the same size, OPQ trains for 8-bit codes.
        rotation_pq = faiss.ProductQuantizer(form.width, form.subspaces, form.bits)
        rotation.pq = rotation_pq
        clusterings.append(rotation_pq.cp)
        inner = faiss.downcast_index(index.index)
    clusterings.append(inner.pq.cp)
    if form.lists:
        clusterings.append(inner.cp)
    else:
        # The factory asks for polysemous codes: a renumbering of codewords by simulated annealing that takes many
        # times as long as training and serves only searches by Hamming distance.
        inner.do_polysemous_training = False
    for clustering in clusterings:
        clustering.seed = seed + _FAISS_SEED
        clustering.min_points_per_centroid = 1  # otherwise C++ prints a warning per subspace and round
    index.train(read_vectors(documents, training_rows(count, max(form.lists, 2**form.bits)), names))
    if form.rotated:
        rotation.pq = None  # `rotation_pq` is freed when this function returns
    fill(index, documents, names)
    return index


def fill(index: Any, documents: Vectors, names: Sequence[Any] | None = None) -> None:
    """Add all documents to a trained FAISS index, block by block."""
    for start in range(0, documents.shape[0], _BLOCK):
        index.add(read_vectors(documents, slice(start, start + _BLOCK), names))


def read_vectors(
    vectors: Vectors, rows: Rows, names: Sequence[Any] | None = None, what: str = "documents"
) -> np.ndarray:
    """(m, d) contiguous float32 vectors at these rows; those that are not finite are a `UserError`."""
    read = np.ascontiguousarray(vectors[rows], dtype=np.float32)
    if not np.isfinite(read).all():
        places = np.arange(vectors.shape[0])[rows].tolist()
        check_finite(read, [f"row {row}" if names is None else names[row] for row in places], what)
    return read


def read_index(index: Any) -> Codes:
    """Read the parts of a FAISS PQ or IVF-PQ, after at most one linear transform; another index is a `UserError`."""
    rotation = centroids = lists = None
    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        chain: Any = inner.chain
        if chain.size() != 1:
            raise UserError(f"an index with {chain.size()} transforms cannot be learned; it may have one rotation.")
        linear: Any = faiss.downcast_VectorTransform(chain.at(0))
        rotation = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in).copy()
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIVFPQ):
        if not inner.by_residual:
            raise UserError("an IVF-PQ whose codes are not residuals cannot be learned; build it with by_residual.")
        centroids = inner.quantizer.reconstruct_n(0, inner.nlist)
        lists = np.empty(inner.ntotal, dtype=np.int64)
        packed = np.empty((inner.ntotal, inner.code_size), dtype=np.uint8)
        for number in range(inner.nlist):
            if size := inner.invlists.list_size(number):
                ids = faiss.rev_swig_ptr(inner.invlists.get_ids(number), size)
                in_list = faiss.rev_swig_ptr(inner.invlists.get_codes(number), size * inner.code_size)
                lists[ids], packed[ids] = number, in_list.reshape(size, inner.code_size)
    elif isinstance(inner, faiss.IndexPQ):
        packed = faiss.vector_to_array(inner.codes).reshape(inner.ntotal, inner.code_size)
    else:
        raise UserError(f"an index of class {type(inner).__name__} cannot be learned; use one such as {_EXAMPLES}.")
    pq = inner.pq
    codebooks = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub).copy()
    codes = faiss.unpack_bitstrings(np.ascontiguousarray(packed), pq.M, pq.nbits).astype(np.uint8)
    if rotation is None:
        return Codes(np.eye(index.d, dtype=np.float32), codebooks, codes, centroids, lists, rotated=False)
    return Codes(rotation, codebooks, codes, centroids, lists)


def reconstructed(index: Any) -> np.ndarray:
    """(n, d) float32 documents as a product-quantized FAISS index represents them, in the space of the vectors.

    ``queries @ reconstructed(index).T`` are the scores of the index. As the stored document vectors of a stage with
    ``train: query_encoder`` they train a query encoder against the index: Distill-VQ's joint learning, codes fixed.
    """
    return read_index(index).reconstruct()


def to_faiss(codes: Codes) -> Any:
    """Build the FAISS index of these parts and codes; any FAISS program can load it.

    Documents keep their codes, whether or not FAISS would have chosen them. Documents added later get the nearest
    codewords and, with lists, the list of highest inner product.

    Returns:
        ``IndexPQ`` or ``IndexIVFPQ`` for inner product, in an ``IndexPreTransform`` where there is a rotation.
    """
    subspaces, width, bits = codes.codes.shape[1], len(codes.rotation), codes.codebooks.shape[1].bit_length() - 1
    inverted = "" if codes.centroids is None else f"IVF{len(codes.centroids)},"
    inner: Any = faiss.index_factory(width, f"{inverted}PQ{subspaces}x{bits}np", faiss.METRIC_INNER_PRODUCT)
    if codes.centroids is not None:
        inner.quantizer.add(_float32(codes.centroids))
    faiss.copy_array_to_vector(_float32(codes.codebooks).ravel(), inner.pq.centroids)
    inner.is_trained = True
    packed = faiss.pack_bitstrings(codes.codes.astype(np.int32), bits)
    if codes.lists is not None:  # FAISS's standalone codes begin with the number of the list
        numbers = codes.lists.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : inner.coarse_code_size()]
        packed = np.concatenate([numbers, packed], axis=1)
    inner.add_sa_codes(np.ascontiguousarray(packed))
    if not codes.rotated:
        return inner
    rotation: Any = faiss.LinearTransform(codes.rotation.shape[1], width, False)
    faiss.copy_array_to_vector(_float32(codes.rotation).ravel(), rotation.A)
    rotation.is_trained = True
    rotation.set_is_orthonormal()
    index = faiss.IndexPreTransform(rotation, inner)
    # FAISS owns what is inside of an index: Python must not free it, too.
    rotation.this.disown()
    inner.this.disown()
    index.own_fields = True
    return index


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
