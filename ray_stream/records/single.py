"""Batches of one record: the same bytes as `builder` and `reader`, without columns.

Owns: the short way for a record that travels alone, there and back. Refuses: headers, and whatever
else needs a column (`builder`, `reader`).

Somebody who waits for one record waits for every step of it. Columns of one row cost some forty
calls of NumPy and Arrow, most of them out of cold memory.
"""

import struct
from functools import lru_cache

import crc32c

from ray_stream.errors import InvalidTimestampError, RecordTooLargeError
from ray_stream.records.arrow_message import single_cells, single_metadata
from ray_stream.records.header import (
    COLUMN_FLAGS,
    FLAG_KEY,
    FLAG_VALUE,
    HEADER_BYTES,
    LENGTH_MAX,
    BatchHeader,
    Buffer,
    Compression,
    PayloadKind,
    encode_header,
    fill_header,
)

_OFFSETS = struct.Struct("<ii")
_NARROW = (FLAG_VALUE, FLAG_KEY | FLAG_VALUE, FLAG_KEY)
_PADDING = tuple(bytes(length) for length in range(8))


def build_single(key: bytes | None, value: bytes | None, timestamp: int) -> bytearray:
    """The batch of one record without headers, not compressed; as `build_batch` builds it.

    Args:
        key: or None.
        value: or None; a record with neither is for `build_batch`.
        timestamp: ms.

    Returns:
        Header and payload; the header is complete after `stamp_producer`.

    Raises:
        InvalidTimestampError: a negative timestamp.
        RecordTooLargeError: a payload above `LENGTH_MAX`.
    """
    if timestamp < 0:
        raise InvalidTimestampError(
            f"timestamp {timestamp} ms is negative: times count from 1970-01-01T00:00Z"
        )
    flags = (0 if key is None else FLAG_KEY) | (0 if value is None else FLAG_VALUE)
    cells = [cell for cell in (key, value) if cell is not None]
    assert cells, "a record with neither key nor value needs a column that says so"
    pieces = [_header_of_one(flags), single_metadata(flags, tuple(map(len, cells)))]
    for cell in cells:
        pieces += (_OFFSETS.pack(0, len(cell)), cell, _PADDING[-len(cell) % 8])
    batch = bytearray().join(pieces)
    length = len(batch) - HEADER_BYTES
    if length > LENGTH_MAX:
        raise RecordTooLargeError(f"a payload of {length} bytes is above {LENGTH_MAX}")
    fill_header(batch, crc32c.crc32c(memoryview(batch)[HEADER_BYTES:]), length, timestamp)
    return batch


@lru_cache(maxsize=4)
def _header_of_one(flags: int) -> bytes:
    return encode_header(BatchHeader(flags=flags, record_count=1, last_offset_delta=0))


def is_single(header: BatchHeader) -> bool:
    """Whether `decode_single` can read that batch."""
    return (
        header.record_count == 1
        and header.flags & COLUMN_FLAGS in _NARROW
        and header.compression == Compression.NONE
        and header.payload_kind == PayloadKind.ARROW
    )


def decode_single(header: BatchHeader, payload: Buffer) -> tuple[bytes | None, bytes | None] | None:
    """Key and value of a batch of one record, all checks done.

    Args:
        header: as `check_batch` or `split_batches` returned it; `is_single`.
        payload: its bytes, whose checksum they have checked.

    Returns:
        None where `decode_columns` has to look: at a null, or at damage.
    """
    if len(payload) != header.length:
        return None
    cells = single_cells(payload, header.flags)
    if cells is None:
        return None
    found = iter(map(bytes, cells))
    key = next(found) if header.flags & FLAG_KEY else None
    return key, next(found) if header.flags & FLAG_VALUE else None
