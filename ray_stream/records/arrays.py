"""Arrow arrays as NumPy sees them, straight from their buffers.

Owns: the views. Refuses: types with nulls or of varying width.

Arrow's own `to_numpy` would do, and so would `pa.scalar` and `pa.array` of objects. But the first
such call of a process imports pandas wherever that is installed: half a second, and 50 MB, in front
of its first record.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def integers(array: pa.Array) -> npt.NDArray[Any]:
    """A signed integer array without nulls, uncopied and read-only."""
    width = array.type.bit_width // 8
    if not len(array):
        return np.empty(0, f"<i{width}")
    return np.frombuffer(array.buffers()[1], f"<i{width}", len(array), width * array.offset)


def validity(array: pa.Array) -> npt.NDArray[np.bool_]:
    """For each cell whether it is not null."""
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.full(len(array), array.null_count == 0)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].view(np.bool_)


def repeated(value: str | int, arrow_type: pa.DataType, count: int) -> pa.Array:
    """`count` times the same text, or integer."""
    if isinstance(value, int):
        buffers = [pa.py_buffer(value.to_bytes(arrow_type.bit_width // 8, "little", signed=True))]
    else:
        data = value.encode()
        buffers = [pa.py_buffer(np.array([0, len(data)], np.int32)), pa.py_buffer(data)]
    return pa.repeat(pa.Array.from_buffers(arrow_type, 1, [None, *buffers])[0], count)
