"""FAISS, imported when it is first used and set to multiply matrices for a few queries too; its files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrodistill.core.errors import UserError

# Queries times dimensions from which FAISS multiplies matrices; its own value is 128,000. On an AMD EPYC with
# AVX512, 16 queries of 384 dimensions take about as much processor time either way.
_BLAS_FROM = 16 * 384
# Documents of a product; FAISS's own value is 1,024. Threads wait for each other at every product, which takes most of
# the time where other processes use the processors.
_BLAS_DOCUMENTS = 16_384
# Vectors that a product quantizer codes at once; FAISS's own value is 262,144, whose distances to the codewords of
# PQ16 take 4.3 GB. The codes are the same.
CODED = 16_384
_READING = threading.Lock()  # the limits of reading are those of the process
_LIMITS = ("deserialization_vector_byte_limit", "deserialization_loop_limit")


class _Faiss:
    """The module `faiss`, so that ``--help`` and settings do not pay for its import."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load(), name)


@functools.cache
def _load() -> Any:
    library = importlib.import_module("faiss")
    library.cvar.distance_compute_blas_threshold = min(library.cvar.distance_compute_blas_threshold, _BLAS_FROM)
    library.cvar.distance_compute_blas_database_bs = max(
        library.cvar.distance_compute_blas_database_bs, _BLAS_DOCUMENTS
    )
    library.cvar.product_quantizer_compute_codes_bs = min(library.cvar.product_quantizer_compute_codes_bs, CODED)
    return library


faiss: Any = _Faiss()


def read_faiss(path: str | os.PathLike[str], *, memory_map: bool = False) -> Any:
    """Read an index of inner products from its file, or map it; changing a memory-mapped index would end the process.

    No part may claim more bytes or elements than the file has: FAISS would take memory for what a header says. FAISS
    below 1.14 does not check that.

    Raises:
        UserError: The file is absent, cut short, altered, or of another format.
    """
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE  # a table for Euclidean distances, which can be larger than the file
    if not Path(path).is_file():
        raise UserError(f"no file {path}; build the index again.")
    try:
        with _READING, _limits(Path(path).stat().st_size):
            if not memory_map:
                return faiss.read_index(str(path), flags)
            # FAISS maps files as well, but IO_FLAG_MMAP_IFC reads beyond the end of one that is cut short, and
            # IO_FLAG_MMAP only maps inverted lists, whose copy would be written as a reference to this file.
            content = np.memmap(path, np.uint8, "r")
            index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(content), len(content)), flags)
            index.referenced_objects = [content]  # as FAISS's own wrappers keep what an index points to
            return index
    except (RuntimeError, MemoryError, ValueError) as error:
        # FAISS words it as: Error in FUNCTION at FILE:LINE: Error: 'CONDITION' failed: REASON
        reason = " ".join(str(error).rpartition(": ")[2].split())[:120] or type(error).__name__
        raise UserError(f"{path} is not a whole FAISS file ({reason}); build the index again.") from error


def write_faiss(index: Any, path: str | os.PathLike[str]) -> None:
    """Write an index to a file, by Python: FAISS does not look whether closing its file succeeded on a full disk."""
    with Path(path).open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


@contextlib.contextmanager
def _limits(size: int) -> Iterator[None]:
    """FAISS's own limits of reading, where it has them, inside the block."""
    names = [name for name in _LIMITS if hasattr(faiss, f"set_{name}")]
    before = {name: getattr(faiss, f"get_{name}")() for name in names}
    try:
        for name in names:
            getattr(faiss, f"set_{name}")(size)
        yield
    finally:
        for name, value in before.items():
            getattr(faiss, f"set_{name}")(value)
