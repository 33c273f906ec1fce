"""From Arrow columns to the bytes of a batch.

Owns: which columns are stored, and the message's body. Refuses: rows as Python objects, offsets in
a log, choosing when a batch is full.

The columns' own buffers are the payload: they are listed, not copied, for a gathering write. Arrow
arrays are immutable; memory changed beneath one breaks the batch, and its checksum shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.errors import InvalidTimestampError, RecordTooLargeError, SchemaError
from ray_stream.records.arrays import integers, validity
from ray_stream.records.arrow_message import FIXED_WIDTH, Shape, encode_metadata
from ray_stream.records.compression import compress
from ray_stream.records.header import (
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    LENGTH_MAX,
    BatchHeader,
    Buffer,
    Compression,
    encode_header,
)
from ray_stream.records.schema import HEADERS_TYPE

_JOINED_BYTES = 16 * 1024
"""Up to here one copied piece is cheaper than a list of pieces."""
_PADDING = tuple(bytes(length) for length in range(8))
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """The records of one batch, a column each; a column that is None is not stored.

    Args:
        key: `binary`; None: every key is null.
        value: `binary`; None: every value is null (then there must be keys). For records with
            neither, give nulls.
        timestamp: `int64`, ms, no nulls; None: every record has `base_timestamp`.
        headers: `map<string, binary>`; None or a null row: no headers.
        offset_delta: `int32`, increasing: offsets relative to the batch's base; None: 0, 1, 2 …
        base_timestamp: ms; used only where there is no timestamp column.
        is_ours: keys and values were checked before (`validate`), or made here.
    """

    key: pa.Array | None = None
    value: pa.Array | None = None
    timestamp: pa.Array | None = None
    headers: pa.Array | None = None
    offset_delta: pa.Array | None = None
    base_timestamp: int = -1
    is_ours: bool = False

    @property
    def record_count(self) -> int:
        """The rows."""
        column = self.value if self.value is not None else self.key
        return 0 if column is None else len(column)


class _Body:
    """The payload while it grows: what the metadata will say, and the pieces behind it."""

    __slots__ = ("flags", "pieces", "shape")

    def __init__(self) -> None:
        self.flags = 0
        self.shape = Shape()
        self.pieces: list[Buffer] = []

    def add(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            if length := len(buffer):
                self.pieces.append(buffer)
                if padding := -length % 8:
                    self.pieces.append(_PADDING[padding])

    def add_binary(self, array: pa.Array) -> None:
        validity, offsets, data = _binary_buffers(array)
        self.shape.add_binary(len(array), array.null_count, len(data))
        self.add(validity, offsets, data)

    def add_fixed(self, flag: int, array: pa.Array) -> None:
        self.shape.add_fixed(len(array), FIXED_WIDTH[flag])
        self.add(_bytes_of(integers(array)))

    def add_headers(self, array: pa.Array) -> None:
        offsets, keys, values = _map_parts(array)
        key_buffers, value_buffers = _binary_buffers(keys), _binary_buffers(values)
        self.shape.add_headers(
            len(array), len(keys), values.null_count, len(key_buffers[2]), len(value_buffers[2])
        )
        self.add(offsets, *key_buffers, *value_buffers)


def build_batch(
    columns: RecordColumns,
    *,
    compression: Compression = Compression.NONE,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    schema_id: int = -1,
    flags: int = 0,
    last_offset_delta: int | None = None,
) -> list[Buffer]:
    """One batch: the header, then the pieces of its payload.

    Args:
        columns: the records.
        compression: how to wrap the payload; it is left plain when wrapping does not shrink it.
        producer_id: with `producer_epoch` and `base_sequence`; `header.with_producer` sets them
            later as well.
        producer_epoch: see `producer_id`.
        base_sequence: sequence of the first record.
        schema_id: of a registered schema, -1 without one.
        flags: `FLAG_TRANSACTIONAL`, `FLAG_CONTROL`; those of columns are set here.
        last_offset_delta: for a batch that covers more offsets than it has records.

    Returns:
        Pieces for a gathering write; the first one is the header's 128 bytes.

    Raises:
        SchemaError: columns of wrong types or different lengths, or nulls where none may be.
        InvalidTimestampError: a negative timestamp.
        RecordTooLargeError: a payload above `LENGTH_MAX`.
    """
    _check_columns(columns)
    base_timestamp, max_timestamp, has_timestamps = _times(columns)
    body = _lay_out(columns, has_timestamps=has_timestamps)
    last = _last_offset_delta(columns, last_offset_delta)
    uncompressed_length = sum(map(len, body.pieces))
    pieces, used = _wrapped(body.pieces, uncompressed_length, compression)
    checksum = 0
    for piece in pieces:
        checksum = crc32c.crc32c(piece, checksum)
    header = BatchHeader(
        compression=used,
        flags=flags | body.flags,
        payload_crc=checksum,
        length=sum(map(len, pieces)),
        uncompressed_length=uncompressed_length,
        record_count=columns.record_count,
        last_offset_delta=last,
        schema_id=schema_id,
        producer_epoch=producer_epoch,
        producer_id=producer_id,
        base_sequence=base_sequence,
        base_timestamp=base_timestamp,
        max_timestamp=max_timestamp,
    )
    return [encode_header(header), *pieces]


def _check_columns(columns: RecordColumns) -> None:
    expected = (
        ("key", columns.key, pa.binary()),
        ("value", columns.value, pa.binary()),
        ("timestamp", columns.timestamp, pa.int64()),
        ("headers", columns.headers, HEADERS_TYPE),
        ("offset_delta", columns.offset_delta, pa.int32()),
    )
    count = columns.record_count
    for name, array, arrow_type in expected:
        if array is None:
            continue
        if array.type != arrow_type:
            raise SchemaError(f"column {name} is {array.type}, it must be {arrow_type}")
        if len(array) != count:
            raise SchemaError(
                f"column {name} has {len(array)} rows, others {count}: columns are equally long, "
                "and there are keys or values (nulls, if need be)"
            )
        if array.null_count and name in ("timestamp", "offset_delta"):
            raise SchemaError(f"column {name} has nulls: give every record one, or no column")
        if name != "headers" and not columns.is_ours:
            validate(array)


def validate(array: pa.Array) -> None:
    """What no reader could decode must not be acknowledged: 1 ns a record.

    Raises:
        SchemaError: offsets that lead out of the data.
    """
    try:
        array.validate(full=True)
    except (ValueError, pa.ArrowException) as error:
        raise SchemaError(f"a column is damaged: {error}") from error


def _times(columns: RecordColumns) -> tuple[int, int, bool]:
    """Base and greatest time, and whether the records differ in it."""
    first = last = columns.base_timestamp
    base = first
    if columns.timestamp is not None and len(columns.timestamp):
        times = integers(columns.timestamp)
        first, last, base = int(times.min()), int(times.max()), int(times[0])
    if first < 0 and columns.record_count:
        raise InvalidTimestampError(
            f"timestamp {first} ms is negative: times count from 1970-01-01T00:00Z"
        )
    return base, last, first != last


def _last_offset_delta(columns: RecordColumns, given: int | None) -> int:
    last = columns.record_count - 1
    if columns.offset_delta is not None and len(columns.offset_delta):
        deltas = integers(columns.offset_delta)
        last = int(deltas[-1])
        if deltas[0] < 0 or (deltas[1:] <= deltas[:-1]).any():
            raise SchemaError("column offset_delta must increase from 0 or above")
    if given is None:
        given = last
    if not max(last, 0) <= given <= _INT32_MAX:
        raise SchemaError(
            f"last_offset_delta {given} is below that of the last record, {last}; "
            "a batch without records needs one of 0 or above"
        )
    return given


def _lay_out(columns: RecordColumns, *, has_timestamps: bool) -> _Body:
    body = _Body()
    if not columns.record_count:
        return body
    key, value = _unless_null(columns.key), _unless_null(columns.value)
    if key is None and value is None:
        value = pa.nulls(columns.record_count, pa.binary())
    if key is not None:
        body.flags |= FLAG_KEY
        body.add_binary(key)
    if value is not None:
        body.flags |= FLAG_VALUE
        body.add_binary(value)
    if has_timestamps:
        body.flags |= FLAG_TIMESTAMP
        body.add_fixed(FLAG_TIMESTAMP, columns.timestamp)
    if columns.headers is not None:
        body.flags |= FLAG_HEADERS
        body.add_headers(columns.headers)
    if columns.offset_delta is not None:
        body.flags |= FLAG_OFFSET_DELTA
        body.add_fixed(FLAG_OFFSET_DELTA, columns.offset_delta)
    body.pieces.insert(0, encode_metadata(body.flags, columns.record_count, body.shape))
    return body


def _wrapped(
    pieces: list[Buffer], length: int, compression: Compression
) -> tuple[Sequence[Buffer], Compression]:
    if length > LENGTH_MAX:
        raise RecordTooLargeError(
            f"a payload of {length} bytes is above {LENGTH_MAX}: send fewer records at a time"
        )
    if compression != Compression.NONE and length:
        wrapped = compress(b"".join(pieces), compression)
        if len(wrapped) < length:
            return [wrapped], compression
    if len(pieces) > 1 and length <= _JOINED_BYTES:
        pieces = [b"".join(pieces)]
    return pieces, Compression.NONE


def _unless_null(array: pa.Array | None) -> pa.Array | None:
    return None if array is None or array.null_count == len(array) else array


def _bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _binary_buffers(array: pa.Array) -> tuple[Buffer, Buffer, Buffer]:
    """Validity, offsets from 0 on, and data of a binary or string array, slices included."""
    count, start = len(array), array.offset
    if not count:
        return b"", bytes(4), b""
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, count + 1, 4 * start)
    first, last = int(offsets[0]), int(offsets[-1])
    if first:
        offsets = offsets - first
    content = b"" if data is None else memoryview(data).cast("B")[first:last]
    return _validity(array), _bytes_of(offsets), content


def _validity(array: pa.Array) -> Buffer:
    if not array.null_count:
        return b""
    valid = validity(array)
    return _bytes_of(np.packbits(valid, bitorder="little"))


def _map_parts(array: pa.Array) -> tuple[Buffer, pa.Array, pa.Array]:
    """Offsets from 0 on, keys and values; a null row becomes an empty one."""
    offsets = integers(array.offsets)
    first, last = int(offsets[0]), int(offsets[-1])
    keys = array.keys.slice(first, last - first)
    values = array.items.slice(first, last - first)
    for part in (keys, values):
        validate(part)
    if (offsets[1:] < offsets[:-1]).any():
        raise SchemaError("column headers is damaged: its offsets decrease")
    if keys.null_count:
        raise SchemaError("a header without a name: every header needs one")
    if array.null_count:  # a null row may still span entries
        valid = validity(array)
        lengths = np.diff(offsets)
        kept = pa.array(np.repeat(valid, lengths))
        keys, values = keys.filter(kept), values.filter(kept)
        ends = np.cumsum(lengths * valid, dtype=np.int32)
        return _bytes_of(np.concatenate(([np.int32(0)], ends))), keys, values
    if first:
        offsets = offsets - first
    return _bytes_of(offsets), keys, values
