"""FAISS, imported when it is first used, and set to multiply matrices for a few queries too."""

from __future__ import annotations

import functools
import importlib
from typing import Any

# Queries times dimensions from which FAISS multiplies matrices; its own value is 128,000. On an AMD EPYC with
# AVX512, 16 queries of 384 dimensions take about as much processor time either way.
_BLAS_FROM = 16 * 384
# Documents of a product; FAISS's own value is 1,024. Threads wait for each other at every product, which takes most of
# the time where other processes use the processors.
_BLAS_DOCUMENTS = 16_384
# Vectors that a product quantizer codes at once; FAISS's own value is 262,144, whose distances to the codewords of
# PQ16 take 4.3 GB. The codes are the same.
CODED = 16_384


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
