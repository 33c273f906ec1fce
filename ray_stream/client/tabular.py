"""Whatever `send_batch` is given, as checked columns.

Owns: which shapes of data are records, the types of their columns, errors that name column and row.
Refuses: topics, splitting and sending (`producer`, `buffer`).

Arrow stays Arrow: nothing here makes an object for a record, unless a serializer was asked for or
the data is a sequence of Python objects already.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_stream.client.columns import Columns
from ray_stream.errors import (
    InvalidArgumentError,
    InvalidTimestampError,
    SchemaError,
    SerializationError,
)
from ray_stream.records.schema import HEADERS_TYPE

COLUMNS = ("key", "value", "timestamp", "headers")
_ARRAY_BYTES_MAX = 1 << 30
"""Of one run of rows: the offsets of an Arrow column end at 2 GiB."""
_KEY_COLUMN_BYTES = 16 * 1024 * 1024

Serialize = Callable[[Any], bytes | None]


class Reading(NamedTuple):
    """How to read what a user gave."""

    key_serializer: Serialize | None
    """None: keys are bytes or text."""
    value_serializer: Serialize | None
    tombstones: bool
    base_timestamp: int
    """ms; of rows without a timestamp."""


def columns_of(data: object, reading: Reading) -> list[Columns]:
    """The records in `data`, in runs of rows.

    Args:
        data: an Arrow table, record batch or array, a pandas frame or series, a NumPy array, a
            sequence of bytes or text.
        reading: serializers, and what missing things mean.

    Raises:
        SchemaError: a column that does not belong here or is missing, or of a wrong type.
        SerializationError: keys or values that are neither bytes nor text.
        InvalidTimestampError: a timestamp below 0.
        InvalidArgumentError: nothing of the above.
    """
    found: list[Columns] = []
    rows = 0
    for batch in _batches_of(data, reading):
        columns = _checked(batch, reading, rows)
        rows += columns.count
        if columns.count:
            found.append(columns)
    return found


def _batches_of(data: object, reading: Reading) -> Iterator[dict[str, Any]]:
    """Columns by name; a column is an Arrow array, or a list for a serializer."""
    pandas = sys.modules.get("pandas")  # a frame can only come from where pandas is loaded
    if pandas is not None and isinstance(data, pandas.DataFrame):
        yield from _batches_of_frame(data, reading)
        return
    if pandas is not None and isinstance(data, pandas.Series):
        data = data.to_numpy()
    if isinstance(data, pa.Table | pa.RecordBatch):
        _check_names(data.schema.names)
        for batch in data.to_batches() if isinstance(data, pa.Table) else [data]:
            yield dict(zip(batch.schema.names, batch.columns, strict=True))
    else:
        for values in _values_of(data):
            yield {"value": values}


def _values_of(data: object) -> list[Any]:
    if isinstance(data, pa.ChunkedArray):
        return list(data.chunks)
    if isinstance(data, pa.Array):
        return [data]
    if isinstance(data, np.ndarray):
        step = max(1, _ARRAY_BYTES_MAX // max(1, data.dtype.itemsize))
        starts = range(0, max(1, len(data)), step) if data.ndim else [...]
        return [_array_of_numpy(data[start : start + step]) for start in starts]
    if isinstance(data, Sequence) and not isinstance(data, str | bytes | bytearray | memoryview):
        return [list(data)]
    raise InvalidArgumentError(
        f"send_batch cannot read a {type(data).__name__}: give an Arrow table, record batch or "
        "array, a pandas frame, a NumPy array of bytes, or a list of bytes; one record goes by "
        "send()"
    )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            raise SchemaError(
                f"column {name!r} is not one of a record: key, value, timestamp and headers are; "
                "drop it, rename it, or put it into the value"
            )
        if names.count(name) > 1:
            raise SchemaError(f"column {name!r} is there twice")


def _batches_of_frame(frame: Any, reading: Reading) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a pandas frame, without its import
    _check_names([str(name) for name in frame.columns])
    objects = {}
    for name, serialize in (("key", reading.key_serializer), ("value", reading.value_serializer)):
        if serialize is not None and name in frame:  # Arrow would have them all of one type
            cells = frame[name].astype(object)
            objects[name] = cells.where(frame[name].notna(), None).tolist()
    table = _table_of_frame(frame.drop(columns=list(objects)))
    if objects:
        columns = [column.combine_chunks() for column in table.columns]
        yield dict(zip(table.column_names, columns, strict=True)) | objects
        return
    for batch in table.to_batches():
        yield dict(zip(batch.schema.names, batch.columns, strict=True))


def _table_of_frame(frame: Any) -> pa.Table:  # noqa: ANN401 - a pandas frame, without its import
    columns = {}
    for name in frame.columns:
        try:
            if name == "headers":
                columns[name] = pa.array(frame[name].tolist(), HEADERS_TYPE)
            else:
                columns[name] = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise SchemaError(
                f"column {name!r} of the frame is not of one type: {error}"
            ) from error
    return pa.table(columns)


def _array_of_numpy(array: npt.NDArray[Any]) -> pa.Array | list[Any]:
    if array.ndim != 1:
        raise SchemaError(f"a NumPy array of {array.ndim} dimensions: one value a row is needed")
    if np.ma.isMaskedArray(array):
        return array.tolist()
    if array.dtype.kind == "S":
        return _array_of_fixed(array)
    if array.dtype.kind == "U":
        return pa.array(array, pa.string())
    return array.tolist()


def _array_of_fixed(array: npt.NDArray[np.bytes_]) -> pa.Array:
    """NumPy's fixed-width bytes; only zeros at the end are padding, those inside are content."""
    width = array.dtype.itemsize
    count = len(array)
    if not count or not width:
        return pa.array([b""] * count, pa.binary())
    cells = np.ascontiguousarray(array).view(np.uint8).reshape(count, width)
    lengths = np.full(count, width, np.int64)
    padded = np.flatnonzero(cells[:, -1] == 0)
    if len(padded):
        used = cells[padded, ::-1] != 0
        lengths[padded] = np.where(used.any(axis=1), width - used.argmax(axis=1), 0)
        content = cells[np.arange(width) < lengths[:, None]]
    else:
        content = cells.reshape(-1).copy()  # the caller may write to the array later
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _checked(batch: dict[str, Any], reading: Reading, before: int) -> Columns:
    count = len(next(iter(batch.values()))) if batch else 0
    key = _binary("key", batch.get("key"), reading.key_serializer)
    value = _binary("value", batch.get("value"), reading.value_serializer)
    if not reading.tombstones:
        if value is None:
            raise SchemaError(
                "there is no column 'value': add it, or pass tombstones=True if null values "
                "(deletions) are meant"
            )
        if value.null_count:
            row = before + pc.index(value.is_null(), True).as_py()
            raise SchemaError(
                f"the value in row {row} is null, which is a tombstone: fill it, or pass "
                "tombstones=True if it is meant"
            )
    if value is None:
        value = pa.nulls(count, pa.binary())
    headers = _headers(batch.get("headers"))
    return Columns(
        key=None if key is None or key.null_count == len(key) else key,
        value=value,
        timestamp=_timestamps(batch.get("timestamp"), reading.base_timestamp, before),
        headers=headers,
        partition=None,
        base_timestamp=reading.base_timestamp,
        created_ms=0,
    )


def _binary(name: str, column: Any, serialize: Serialize | None) -> pa.Array | None:  # noqa: ANN401 - an Arrow array or a list
    if column is None:
        return None
    if serialize is not None:
        cells = column if isinstance(column, list) else column.to_pylist()
        return _in_one(name, pa.array([serialize(cell) for cell in cells], pa.binary()))
    try:
        if isinstance(column, list):
            return _in_one(name, pa.array(column, pa.binary()))
        if _is_text_or_bytes(column.type):
            return column.cast(pa.binary())
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise SerializationError(
            f"column {name!r} cannot be taken as bytes: {error}; encode it, or pass "
            f"{name}_serializer="
        ) from error
    raise SerializationError(
        f"column {name!r} is {column.type}, neither bytes nor text: encode it, or pass "
        f"{name}_serializer="
    )


def _in_one(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Arrow makes chunks of what it cannot hold in one array."""
    if isinstance(column, pa.ChunkedArray):
        raise SchemaError(f"column {name!r} holds more than 2 GiB: send it in several calls")
    return column


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        check(kind)
        for check in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_binary_view,
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_null,
        )
    )


def _timestamps(column: pa.Array | None, base_timestamp: int, before: int) -> pa.Array | None:
    if column is None or column.null_count == len(column):
        return None
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    elif pa.types.is_integer(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowException as error:
            raise InvalidTimestampError(f"column 'timestamp': {error}") from error
    else:
        raise SchemaError(
            f"column 'timestamp' is {column.type}: integers (ms since 1970) or Arrow timestamps "
            "are valid"
        )
    if column.null_count:
        column = column.fill_null(base_timestamp)
    lowest = pc.min(column).as_py()
    if lowest < 0:
        row = before + pc.index(column, lowest).as_py()
        raise InvalidTimestampError(
            f"timestamp {lowest} ms in row {row} is negative: times count from 1970-01-01T00:00Z"
        )
    return column


def _headers(column: pa.Array | None) -> pa.Array | None:
    if column is None or column.null_count == len(column):
        return None
    if column.type != HEADERS_TYPE:
        try:
            column = column.cast(HEADERS_TYPE)
        except pa.ArrowException as error:
            raise SchemaError(
                f"column 'headers' is {column.type}: map<string, binary> is needed"
            ) from error
    offsets = column.offsets
    first, last = offsets[0].as_py(), offsets[-1].as_py()
    if column.keys.slice(first, last - first).null_count:
        raise SchemaError("column 'headers' has a header without a name: every header needs one")
    return column


def with_key(parts: list[Columns], key: bytes | None) -> list[Columns]:
    """The same rows with one key for all; in shorter runs, should the key be long.

    Raises:
        SchemaError: there are keys already.
    """
    if any(part.key is not None for part in parts):
        raise SchemaError("there is a column 'key' and an argument key=: give one of them")
    if key is None:  # that is what the serializer made of it
        return parts
    rows = max(1, _KEY_COLUMN_BYTES // (len(key) + 1))
    keyed = []
    for part in parts:
        for start in range(0, part.count, rows):
            run = part.slice(start, min(start + rows, part.count))
            run.key = _same_key(key, run.count)
            keyed.append(run)
    return keyed


def _same_key(key: bytes, count: int) -> pa.Array:
    offsets = np.arange(count + 1, dtype=np.int32) * np.int32(len(key))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(key * count)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)
