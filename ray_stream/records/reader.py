"""From the bytes of a batch to Arrow columns.

Owns: every check of what is inside a payload, and the rows that users read. Refuses: checksums
(`batch` has checked both before), where bytes come from, rows as Python objects.

Whatever the bytes, the result is columns or `CorruptBatchError`: Arrow sees a message only after
its every length was checked (`arrow_message`), and its values are validated before they are used.
Columns are not copied: they keep the payload's memory alive, and it must not change beneath them.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.errors import CorruptBatchError
from ray_stream.records.arrays import integers, repeated
from ray_stream.records.batch import check_arrow_payload
from ray_stream.records.compression import decompress
from ray_stream.records.header import (
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    BatchHeader,
    Buffer,
    Compression,
    PayloadKind,
)
from ray_stream.records.schema import RECORD_SCHEMA, payload_schema
from ray_stream.types import TimestampType

_OFFSET_MAX = 2**63 - 1
_CACHED_ROWS = 64 * 1024
_NO_COLUMNS = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
_NO_ROWS = pa.RecordBatch.from_arrays(
    [pa.nulls(0, f.type) for f in RECORD_SCHEMA], schema=RECORD_SCHEMA
)


def decode_columns(header: BatchHeader, payload: Buffer) -> pa.RecordBatch:
    """The stored columns of an Arrow batch, all checks done.

    Args:
        header: as `check_batch` or `split_batches` returned it.
        payload: its bytes, whose checksum they have checked.

    Returns:
        Exactly the columns that the header's flags name; none for a batch without records.

    Raises:
        CorruptBatchError: anything in the payload is not as it should be.
    """
    if header.payload_kind != PayloadKind.ARROW:
        raise CorruptBatchError("the payload is in Kafka's format, which this version cannot read")
    if len(payload) != header.length:
        raise CorruptBatchError(f"the payload has {len(payload)} bytes, not {header.length}")
    if not header.record_count:
        return _NO_COLUMNS
    if header.compression != Compression.NONE:
        payload = decompress(payload, header.compression, header.uncompressed_length)
    check_arrow_payload(header, payload)
    try:
        columns = pa.ipc.read_record_batch(pa.py_buffer(payload), payload_schema(header.flags))
        columns.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CorruptBatchError(f"the payload's columns are damaged: {error}") from error
    _check_numbers(header, columns)
    return columns


def _check_numbers(header: BatchHeader, columns: pa.RecordBatch) -> None:
    if header.flags & FLAG_OFFSET_DELTA:
        deltas = integers(columns["offset_delta"])
        if deltas[0] < 0 or deltas[-1] > header.last_offset_delta:
            raise CorruptBatchError(f"an offset delta is not in [0, {header.last_offset_delta}]")
        if (deltas[1:] <= deltas[:-1]).any():
            raise CorruptBatchError("offset deltas do not increase")
    if header.flags & FLAG_TIMESTAMP:
        times = integers(columns["timestamp"])
        if times.min() < 0 or times.max() > header.max_timestamp:
            raise CorruptBatchError(f"a timestamp is not in [0, {header.max_timestamp}]")


def offsets(header: BatchHeader, columns: pa.RecordBatch) -> pa.Array:
    """The offset of each row of `decode_columns`, as `int64`.

    Raises:
        CorruptBatchError: the batch has no place in a log: no leader stamped it.
    """
    return _int64(_offsets(header, columns))


def _offsets(header: BatchHeader, columns: pa.RecordBatch) -> npt.NDArray[np.int64]:
    base = header.base_offset
    if not 0 <= base < _OFFSET_MAX - header.last_offset_delta:
        raise CorruptBatchError(f"base offset {base}: the batch has no place in a log")
    if header.flags & FLAG_OFFSET_DELTA:
        deltas: npt.NDArray[np.int32] = integers(columns["offset_delta"])
        return deltas.astype(np.int64) + base
    return np.arange(base, base + header.record_count, dtype=np.int64)


def timestamps(header: BatchHeader, columns: pa.RecordBatch) -> pa.Array:
    """The time of each row of `decode_columns`, as `int64` ms.

    It is the leader's where the topic says so (`message_timestamp_type=LogAppendTime`).
    """
    if header.is_log_append_time:
        return _times(header.append_timestamp, header.record_count)
    if header.flags & FLAG_TIMESTAMP:
        return columns["timestamp"]
    return _times(header.base_timestamp, header.record_count)


def _times(time: int, count: int) -> pa.Array:
    if count > _CACHED_ROWS:
        return _int64(np.full(count, time, np.int64))
    return _cached_times(time, count)


@lru_cache(maxsize=8)
def _cached_times(time: int, count: int) -> pa.Array:
    """Batches that were sent together have one time, and often as many rows."""
    return _int64(np.full(count, time, np.int64))


def to_user_batch(
    header: BatchHeader, payload: Buffer, topic: str, partition: int, start_offset: int
) -> pa.RecordBatch:
    """The rows from `start_offset` on, in `RECORD_SCHEMA`.

    A batch of the log's own markers and one without records have no rows; the reader's position
    is behind them all the same, at `header.next_offset`.

    Args:
        header: as `split_batches` returned it.
        payload: as `split_batches` returned it.
        topic: the constant of its column.
        partition: the constant of its column.
        start_offset: rows below it are cut off.

    Raises:
        CorruptBatchError: as `decode_columns` and `offsets`.
    """
    columns = decode_columns(header, payload)
    if header.is_control or not header.record_count:
        return _NO_ROWS
    numbers = _offsets(header, columns)
    if start_offset >= header.next_offset:
        return _NO_ROWS
    flags = header.flags
    usual = _usual_columns(topic, partition, _timestamp_type(header), header.record_count)
    rows = pa.RecordBatch.from_arrays(
        [
            _int64(numbers),
            columns["key"] if flags & FLAG_KEY else usual.null,
            columns["value"] if flags & FLAG_VALUE else usual.null,
            usual.topic,
            usual.partition,
            timestamps(header, columns),
            usual.timestamp_type,
            columns["headers"] if flags & FLAG_HEADERS else usual.headers,
        ],
        schema=RECORD_SCHEMA,
    )
    if start_offset > header.base_offset:
        return rows.slice(int(np.searchsorted(numbers, start_offset)))
    return rows


def _timestamp_type(header: BatchHeader) -> TimestampType:
    if header.is_log_append_time:
        return TimestampType.LOG_APPEND_TIME
    return TimestampType.CREATE_TIME


def _int64(numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


class _UsualColumns(NamedTuple):
    """What a batch does not store, and what is the same for many."""

    topic: pa.Array
    partition: pa.Array
    timestamp_type: pa.Array
    null: pa.Array
    headers: pa.Array


def _usual_columns(
    topic: str, partition: int, timestamp_type: TimestampType, count: int
) -> _UsualColumns:
    if count > _CACHED_ROWS:
        return _made_columns(topic, partition, timestamp_type, count)
    return _cached_columns(topic, partition, timestamp_type, count)


@lru_cache(maxsize=32)
def _cached_columns(
    topic: str, partition: int, timestamp_type: TimestampType, count: int
) -> _UsualColumns:
    return _made_columns(topic, partition, timestamp_type, count)


def _made_columns(
    topic: str, partition: int, timestamp_type: TimestampType, count: int
) -> _UsualColumns:
    """Cut from arrays that batches of any number of rows share, if there are not too many."""
    return _UsualColumns(
        _constant(topic, pa.string(), count),
        _constant(partition, pa.int32(), count),
        _constant(timestamp_type, pa.int32(), count),
        _all_null(count),
        _no_headers(count),
    )


def _constant(value: str | int, arrow_type: pa.DataType, count: int) -> pa.Array:
    """`count` times the same; one array is made for many batches, and cut to each."""
    if count > _CACHED_ROWS:
        return repeated(value, arrow_type, count)
    return _cached_constant(value, arrow_type, _rows_class(count)).slice(0, count)


def _all_null(count: int) -> pa.Array:
    if count > _CACHED_ROWS:
        return pa.nulls(count, pa.binary())
    return _cached_nulls(_rows_class(count)).slice(0, count)


def _no_headers(count: int) -> pa.Array:
    if count > _CACHED_ROWS:
        return _empty_maps(count)
    return _cached_empty_maps(_rows_class(count)).slice(0, count)


def _rows_class(count: int) -> int:
    """The next power of two: few sizes, so that few arrays are kept."""
    return max(1024, 1 << (count - 1).bit_length())


def _empty_maps(count: int) -> pa.Array:
    offsets = pa.Array.from_buffers(
        pa.int32(), count + 1, [None, pa.py_buffer(bytes(4 * count + 4))]
    )
    return pa.MapArray.from_arrays(offsets, pa.nulls(0, pa.string()), pa.nulls(0, pa.binary()))


@lru_cache(maxsize=64)
def _cached_constant(value: str | int, arrow_type: pa.DataType, count: int) -> pa.Array:
    return repeated(value, arrow_type, count)


@lru_cache(maxsize=8)
def _cached_nulls(count: int) -> pa.Array:
    return pa.nulls(count, pa.binary())


@lru_cache(maxsize=8)
def _cached_empty_maps(count: int) -> pa.Array:
    return _empty_maps(count)
