"""Control batches: the log's own markers, one record each, hidden from consumers.

Owns: their bytes. Refuses: deciding when one is written. It needs no Arrow: partition actors write
these.

Key and value are big-endian, as in Kafka's control records (KIP-98): key `int16` version and
`int16` kind, value `int16` version and an `int32`.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

import crc32c

from ray_stream.errors import CorruptBatchError
from ray_stream.records.arrow_message import Shape, encode_metadata
from ray_stream.records.header import (
    FLAG_CONTROL,
    FLAG_KEY,
    FLAG_TRANSACTIONAL,
    FLAG_VALUE,
    BatchHeader,
    Buffer,
    encode_header,
)

_COLUMNS = FLAG_KEY | FLAG_VALUE
_KEY = struct.Struct(">hh")
_VALUE = struct.Struct(">hi")
_OFFSETS = struct.Struct("<ii")
_VERSION = 0


class MarkerKind(IntEnum):
    """What happened; the numbers are Kafka's."""

    ABORT = 0
    COMMIT = 1
    LEADER_CHANGE = 2


class Marker(NamedTuple):
    """The one record of a control batch."""

    kind: MarkerKind
    detail: int
    """The new leader's broker id, or of a transaction's end its coordinator's epoch."""


def build_control_batch(
    marker: Marker, *, timestamp: int, producer_id: int = -1, producer_epoch: int = -1
) -> bytes:
    """The whole batch, still without a place in a log.

    Args:
        marker: what to say.
        timestamp: ms.
        producer_id: whose transaction ended; -1 for a change of leader.
        producer_epoch: see `producer_id`.
    """
    payload = _encode(marker)
    ends_transaction = marker.kind != MarkerKind.LEADER_CHANGE
    header = BatchHeader(
        flags=_COLUMNS | FLAG_CONTROL | (FLAG_TRANSACTIONAL if ends_transaction else 0),
        payload_crc=crc32c.crc32c(payload),
        length=len(payload),
        uncompressed_length=len(payload),
        record_count=1,
        last_offset_delta=0,
        producer_epoch=producer_epoch,
        producer_id=producer_id,
        base_timestamp=timestamp,
        max_timestamp=timestamp,
    )
    return encode_header(header) + payload


def parse_control_batch(header: BatchHeader, payload: Buffer) -> Marker:
    """The marker in a control batch.

    Args:
        header: of a batch whose `is_control` is set.
        payload: its bytes, whose checksum was checked.

    Raises:
        CorruptBatchError: not exactly one marker of a known kind and version.
    """
    assert header.is_control, "the caller looks at the flag first"
    model = _encode(Marker(MarkerKind.ABORT, 0))
    if len(payload) == len(model):
        value_at = len(model) - 8
        _, kind = _KEY.unpack_from(payload, value_at - 16)
        _, detail = _VALUE.unpack_from(payload, value_at)
        if kind in tuple(MarkerKind):
            marker = Marker(MarkerKind(kind), detail)
            if _encode(marker) == payload:
                return marker
    raise CorruptBatchError("a control batch that is not one marker of a known kind and version")


def _encode(marker: Marker) -> bytes:
    key = _KEY.pack(_VERSION, marker.kind)
    value = _VALUE.pack(_VERSION, marker.detail)
    shape = Shape()
    shape.add_binary(1, 0, len(key))
    shape.add_binary(1, 0, len(value))
    return b"".join(
        (
            encode_metadata(_COLUMNS, 1, shape),
            *(_OFFSETS.pack(0, len(key)), key.ljust(8, b"\0")),
            *(_OFFSETS.pack(0, len(value)), value.ljust(8, b"\0")),
        )
    )
