"""Documents as columns, for stores that take Arrow tables.

By kind of vectors,

- dense: ``vector`` fixed_size_list<float>[d];
- sparse: ``indices`` list<int32>, ascending, and ``values`` list<float>;
- multi-vector: ``vectors`` list<fixed_size_list<float>[d]>, one per token, in order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from retrodistill.encoders.multi_vector import Tokens
from retrodistill.encoders.vectors import to_float16
from retrodistill.exports.records import Batch, Vectors


def table_of(batch: Batch, numbers: Literal["float32", "float16"]) -> pa.Table:
    """Ids, titles, texts, fields, and vectors, a row per document; '' where it has no title or text.

    Raises:
        UserError: A number that float16 cannot hold.
    """
    columns = {name: pa.array(values, pa.string()) for name, values in batch.payload.items()}
    if batch.fields is not None:
        columns |= {name: batch.fields[name] for name in batch.fields.column_names}
    return pa.table({**columns, **_vector_columns(batch.vectors, numbers)})


def read_vectors(rows: pa.RecordBatch, width: int) -> Vectors:
    """The vectors of a table's rows, of `width` dimensions, in float32."""
    if "vector" in rows.schema.names:
        return rows["vector"].flatten().to_numpy().astype(np.float32).reshape(-1, width)
    lists = rows["vectors" if "vectors" in rows.schema.names else "values"]
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))])
    values = lists.flatten()
    if "vectors" in rows.schema.names:
        return Tokens(values.flatten().to_numpy().astype(np.float32).reshape(-1, width), bounds.astype(np.int64))
    indices = rows["indices"].flatten().to_numpy()
    return csr_array((values.to_numpy().astype(np.float32), indices, bounds), shape=(len(rows), width))


def _vector_columns(vectors: Vectors, numbers: str) -> dict[str, pa.Array]:
    def typed(values: np.ndarray) -> np.ndarray:
        return to_float16(values, "vectors") if numbers == "float16" else values.astype(np.float32, copy=False)

    if isinstance(vectors, np.ndarray):
        return {"vector": _fixed_size_rows(typed(vectors))}
    if isinstance(vectors, Tokens):
        bounds = pa.array(np.asarray(vectors.bounds, dtype=np.int32))
        return {"vectors": pa.ListArray.from_arrays(bounds, _fixed_size_rows(typed(vectors.vectors)))}
    bounds = pa.array(vectors.indptr.astype(np.int32))
    return {
        "indices": pa.ListArray.from_arrays(bounds, pa.array(vectors.indices.astype(np.int32))),
        "values": pa.ListArray.from_arrays(bounds, pa.array(typed(vectors.data))),
    }


def _fixed_size_rows(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])
