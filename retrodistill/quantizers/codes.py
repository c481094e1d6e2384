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

_CODE = re.compile(r"(?:OPQ(\d+)(?:_(\d+))?,|ITQ(\d+),)?(?:IVF(\d+),)?PQ(\d+)(?:x([148]))?(?:np)?")
_REFINEMENT = re.compile(r",(?:R(Flat)|Refine\((Flat|SQ8|SQfp16)\))$")
_EXAMPLES = "'PQ16', 'OPQ16,PQ16', 'OPQ16,PQ16x4', 'OPQ16,IVF64,PQ16' or 'ITQ384,PQ384x1'"
Rows = np.ndarray | slice  # of documents: (n,) int64, or a range
ALL = slice(None)
_FAISS_SEED = 1234  # FAISS's default seed of k-means: seed 0 gives what FAISS gives
_BLOCK = 65_536  # documents that are read and coded at once


@dataclass(frozen=True, eq=False)
class Codes:
    """A product quantizer and the documents that it holds.

    A document is reconstructed as ``(codeword_1 .. codeword_M + centroid of its list) @ rotation``.

    Attributes:
        rotation: (width, d) float32 from the space of the vectors to that of the codes, with orthonormal rows at first.
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

    @property
    def single_bits(self) -> bool:
        """Whether each dimension has a code of 1 bit."""
        return self.codebooks.shape[1:] == (2, 1)

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
    """A parsed factory string: width of the space of the codes, M codes of some bits, IVF lists (0 for none).

    Codes of 1 bit are one per dimension after ITQ; the rotation of others is trained by OPQ. `code` is the factory
    without its refinement, whose vectors (Flat, SQ8, SQfp16) rank the best documents by codes again; None for none.
    """

    width: int
    subspaces: int
    bits: int
    lists: int
    rotated: bool
    code: str
    refinement: str | None

    @property
    def vectors_to_train(self) -> int:
        """The fewest vectors that FAISS trains on; with fewer it refuses or aborts the process."""
        return max(2**self.bits, self.width if self.rotated else 1, self.lists)


def factory_for(bytes: int | None, dimension: int, lists: int | None = None, bits: int = 8) -> str:
    """The factory string for a number of bytes per document.

    Args:
        bytes: Bytes of one document's codes, 1 to `dimension` (with 4 bits, to half of it; with 1, to an eighth). None
            for 16, or for single bits as many as there are dimensions.
        dimension: Dimension of the vectors.
        lists: IVF lists; none by default.
        bits: Bits of each code, 8, 4, or 1. With 4 there are more and smaller subspaces of 16 codewords: faster to
            search. With 1, each bit is one dimension's.

    Returns:
        ``OPQ{M}_{width},[IVF{lists},]PQ{M}x{bits}``, M = 8 bytes / bits, width the largest multiple of M that fits; for
        single bits ``ITQ{M},[IVF{lists},]PQ{M}x1``.
    """
    if bits not in (1, 4, 8):
        raise UserError(f"bits={bits}: codes have 1, 4 or 8 bits.")
    most = dimension * bits // 8
    if bytes is None:
        bytes = most if bits == 1 else min(16, most)
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
    if bits == 1:
        return f"ITQ{subspaces},{inverted}PQ{subspaces}x1"
    return f"OPQ{subspaces}_{width},{inverted}PQ{subspaces}" + ("" if bits == 8 else f"x{bits}")


def start_name(factory: str) -> str:
    """What the index that learning starts from is called: ``itq`` or ``opq``, which also stands for plain PQ."""
    return "itq" if factory.startswith("ITQ") else "opq"


def read_form(factory: str, dimension: int) -> Form:
    """Parse a factory string; a `UserError` if it cannot be learned or does not fit the dimension of the vectors."""
    written = factory.replace(" ", "")
    refinement = _REFINEMENT.search(written)
    code = written if refinement is None else written[: refinement.start()]
    match = _CODE.fullmatch(code)
    if match is None:
        raise UserError(f"factory {factory!r} cannot be learned; give one such as {_EXAMPLES}.")
    opq, opq_width, itq, lists, subspaces, bits = (int(group) if group else None for group in match.groups())
    width, subspaces = opq_width or itq or dimension, subspaces or 0
    if bits == 1:
        _check_single_bits(factory, dimension, itq, subspaces, has_lists=lists is not None)
    elif itq is not None:
        raise UserError(
            f"factory {factory!r}: ITQ rotates for single bits; write PQ{width}x1, or OPQ for larger codes."
        )
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
    refined_by = None if refinement is None else refinement.group(1) or refinement.group(2)
    return Form(width, subspaces, bits or 8, lists or 0, (opq or itq) is not None, code, refined_by)


def _check_single_bits(factory: str, dimension: int, itq: int | None, bits: int, *, has_lists: bool) -> None:
    if itq != bits or has_lists or bits % 8 or not 8 <= bits <= dimension:
        most = 8 * (dimension // 8)
        raise UserError(
            f"factory {factory!r} does not fit vectors of {dimension} dimensions: codes of 1 bit follow ITQ of "
            f"as many dimensions, in whole bytes and without IVF; use 'ITQ{most},PQ{most}x1' or fewer of both."
        )


def start_index(
    factory: str, documents: Vectors, *, seed: int = 0, iterations: int = 50, names: Sequence[Any] | None = None
) -> Any:
    """Train and fill the FAISS index that learning starts from and is compared with.

    Args:
        factory: As `read_form` takes it; its refinement is left out.
        documents: (n, d) float32, read in blocks. Too few are a `UserError`, since FAISS would abort the process, and
            so are vectors that are not finite.
        seed: Seed of k-means.
        iterations: Rounds of OPQ or ITQ; 50 is FAISS's own default of both.
        names: (n,) document ids, for messages.
    """
    count, dimension = documents.shape
    form = read_form(factory, dimension)
    if count < form.vectors_to_train:
        raise UserError(
            f"factory {factory!r} needs at least {form.vectors_to_train} documents to train, there are "
            f"{count}; choose fewer lists, 4-bit codes (16 codewords) or a scalar quantizer ('SQ8')."
        )
    sample = read_vectors(documents, training_rows(count, max(form.lists, 2**form.bits)), names)
    if form.bits == 1:
        index = _start_of_bits(form, sample, iterations, seed)
    else:
        index = faiss.index_factory(dimension, form.code, faiss.METRIC_INNER_PRODUCT)
    inner: Any = faiss.downcast_index(index.index) if form.rotated else index
    clusterings = [inner.pq.cp]
    if form.rotated and form.bits > 1:
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = iterations
        # Without a quantizer of the same size, OPQ trains for 8-bit codes.
        rotation_pq = faiss.ProductQuantizer(form.width, form.subspaces, form.bits)
        rotation.pq = rotation_pq
        clusterings.append(rotation_pq.cp)
    if form.lists:
        clusterings.append(inner.cp)
    else:
        # The factory asks for polysemous codes: a renumbering of codewords by simulated annealing that takes many
        # times as long as training and serves only searches by Hamming distance.
        inner.do_polysemous_training = False
    for clustering in clusterings:
        clustering.seed = seed + _FAISS_SEED
        clustering.min_points_per_centroid = 1  # otherwise C++ prints a warning per subspace and round
    index.train(sample)
    if form.rotated and form.bits > 1:
        rotation.pq = None  # `rotation_pq` is freed when this function returns
    fill(index, documents, names)
    return index


def _start_of_bits(form: Form, sample: np.ndarray, iterations: int, seed: int) -> Any:
    """The empty index of single bits, its rotation trained by ITQ (Gong & Lazebnik 2011, CVPR)."""
    inner = faiss.index_factory(form.width, f"PQ{form.width}x1np", faiss.METRIC_INNER_PRODUCT)
    trained = faiss.ITQTransform(sample.shape[1], form.width, True)
    trained.itq.max_iter, trained.itq.seed = iterations, seed + _FAISS_SEED
    trained.train(sample)
    # It subtracts the mean of the documents, which reorders inner products, and is left out of the index.
    rotation = faiss.vector_to_array(trained.pca_then_itq.A).reshape(form.width, sample.shape[1])
    return _rotated(rotation, inner)


def refined(index: Any, refinement: str, documents: Vectors, names: Sequence[Any] | None = None) -> Any:
    """The index with the documents' vectors (Flat, SQ8, SQfp16), which rank its k_factor_rf times k best again."""
    count, dimension = documents.shape
    exact: Any = faiss.index_factory(dimension, refinement, faiss.METRIC_INNER_PRODUCT)
    if not exact.is_trained:
        exact.train(read_vectors(documents, training_rows(count, 1), names))
    fill(exact, documents, names)
    both = faiss.IndexRefine(index, exact)
    index.this.disown()
    exact.this.disown()
    both.own_fields = both.own_refine_index = True
    return both


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
    """Read the parts of a FAISS PQ or IVF-PQ, after at most one linear transform; another index is a `UserError`.

    A refinement is left out.
    """
    rotation = centroids = lists = None
    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexRefine):
        return read_index(inner.base_index)
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
    if codes.single_bits:
        codes = _in_bytes(codes)
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
    return _rotated(codes.rotation, inner) if codes.rotated else inner


def _in_bytes(codes: Codes) -> Codes:
    """Codes of single bits as codes of 8 bits, each for eight dimensions, with the same scores and the same bytes.

    FAISS adds up eight dimensions by one look-up: it searches them in a fifth of the time or less (evaluation/studies/
    quantization-aware).
    """
    bits = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8) of each byte, lowest first, as FAISS packs them
    groups = codes.codebooks[:, :, 0].reshape(-1, 8, 2)
    packed = np.packbits(codes.codes, axis=1, bitorder="little")
    return replace(codes, codebooks=groups[:, np.arange(8), bits], codes=packed)


def read_bits(index: Any) -> Codes | None:
    """The map and the codewords of single bits that `to_faiss` has written as bytes, without documents; else None."""
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform) or index.chain.size() != 1:
        return None
    linear: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    inner: Any = faiss.downcast_index(index.index)
    is_bytes = isinstance(inner, faiss.IndexPQ) and (inner.pq.nbits, inner.pq.dsub) == (8, 8)
    if not is_bytes or not isinstance(linear, faiss.LinearTransform):
        return None
    words = faiss.vector_to_array(inner.pq.centroids).reshape(inner.pq.M, 256, 8)
    books = words[:, [0, 255]].transpose(0, 2, 1).reshape(-1, 2, 1)
    rotation = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
    nothing = np.empty((0, len(books)), dtype=np.uint8)
    codes = Codes(rotation, books.copy(), nothing)
    return codes if np.array_equal(_in_bytes(codes).codebooks, words) else None


def _rotated(rotation: np.ndarray, inner: Any) -> Any:
    """An index behind a linear map, (width, d) with orthonormal rows at first."""
    width, dimension = rotation.shape
    linear: Any = faiss.LinearTransform(dimension, width, False)
    faiss.copy_array_to_vector(_float32(rotation).ravel(), linear.A)
    linear.is_trained = True
    linear.set_is_orthonormal()
    index = faiss.IndexPreTransform(linear, inner)
    # FAISS owns what is inside of an index: Python must not free it, too.
    linear.this.disown()
    inner.this.disown()
    index.own_fields = True
    return index


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
