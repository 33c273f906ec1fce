"""The 128-byte header in front of every batch: layout, encoding, and the checks before trust.

Owns: the layout of `docs/format.md`, and what makes a header believable by itself. Refuses: payload
bytes, files, policy such as sequence numbers or epochs.

`header_crc` is CRC32C over every other header byte and is checked before any other field is used.
The leader stamps offsets, epoch and times, so it re-stamps `header_crc`; `payload_crc` is the
producer's and is never recomputed by a broker.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

import crc32c
import numpy as np
import numpy.typing as npt

from ray_stream.errors import CorruptBatchError

HEADER_BYTES = 128
MAGIC = 0x52545352
"""`RSTR`, little-endian. Not zero: zeros are the end of a log, not a record."""
VERSION = 1

LENGTH_MAX = 256 * 1024 * 1024
"""No payload is larger, compressed or not, whatever a header says."""

LAYOUT = struct.Struct("<IBBBBIIIIIiiihqiqqqiqqq22s")
assert LAYOUT.size == HEADER_BYTES

Int64s = npt.NDArray[np.int64]

_ROW = np.dtype(
    {
        "names": [
            "payload_crc",
            "length",
            "uncompressed_length",
            "record_count",
            "last_offset_delta",
        ],
        "formats": ["<u4", "<u4", "<u4", "<i4", "<i4"],
        "offsets": [16, 20, 24, 28, 32],
        "itemsize": HEADER_BYTES,
    }
)
"""The fields that differ from batch to batch when many are built at once."""
_FLAGS_POSITION = 8
_CRC_POSITION = 12
_CRC_END = 16
_U32 = struct.Struct("<I")
_PRODUCER = struct.Struct("<hqi")
_PRODUCER_POSITION = 40
_LEADER = struct.Struct("<qiqq")
"""Base offset, leader epoch, append timestamp, durable offset."""
_LEADER_POSITION = 70
RESERVED = bytes(22)

Buffer = bytes | bytearray | memoryview
"""Bytes that are read where they lie."""


class PayloadKind(IntEnum):
    """What the payload bytes are."""

    ARROW = 0
    KAFKA_V2 = 1


class Compression(IntEnum):
    """How the whole payload is wrapped."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


# The upper half of `flags` changes how a batch must be read, so an unknown bit there is refused;
# the lower half may be ignored by a reader that does not know it.
FLAG_LOG_APPEND_TIME = 1 << 16
FLAG_TRANSACTIONAL = 1 << 17
FLAG_CONTROL = 1 << 18
FLAG_OFFSET_DELTA = 1 << 19
FLAG_KEY = 1 << 20
FLAG_VALUE = 1 << 21
FLAG_TIMESTAMP = 1 << 22
FLAG_HEADERS = 1 << 23
COLUMN_FLAGS = FLAG_KEY | FLAG_VALUE | FLAG_TIMESTAMP | FLAG_HEADERS | FLAG_OFFSET_DELTA
"""Which columns an Arrow payload holds: with them no schema need be stored."""
_KNOWN_FLAGS = FLAG_LOG_APPEND_TIME | FLAG_TRANSACTIONAL | FLAG_CONTROL | COLUMN_FLAGS
_INCOMPATIBLE_MASK = 0xFFFF0000
# What a header says is compared with these: an enum's member is slow to look up.
_KINDS = tuple(map(int, PayloadKind))
_COMPRESSIONS = tuple(map(int, Compression))
_PLAIN = int(Compression.NONE)


class BatchHeader(NamedTuple):
    """The fields in the order of their bytes, but for magic, version and the header's checksum."""

    payload_kind: int = PayloadKind.ARROW
    compression: int = Compression.NONE
    flags: int = 0
    payload_crc: int = 0
    length: int = 0
    uncompressed_length: int = 0
    record_count: int = 0
    last_offset_delta: int = -1
    schema_id: int = -1
    producer_epoch: int = -1
    producer_id: int = -1
    base_sequence: int = -1
    base_timestamp: int = -1
    max_timestamp: int = -1
    base_offset: int = -1
    leader_epoch: int = -1
    append_timestamp: int = -1
    durable_offset: int = -1
    delete_horizon: int = -1

    @property
    def next_offset(self) -> int:
        """The offset behind the batch: a reader's position after it."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def batch_bytes(self) -> int:
        """Header and payload."""
        return HEADER_BYTES + self.length

    @property
    def is_control(self) -> bool:
        """Whether the records are the log's own markers, hidden from consumers."""
        return bool(self.flags & FLAG_CONTROL)

    @property
    def is_log_append_time(self) -> bool:
        """Whether every record's time is `append_timestamp`."""
        return bool(self.flags & FLAG_LOG_APPEND_TIME)


def header_checksum(raw: Buffer) -> int:
    """CRC32C over the 124 header bytes that are not the checksum."""
    view = memoryview(raw)
    return crc32c.crc32c(view[_CRC_END:HEADER_BYTES], crc32c.crc32c(view[:_CRC_POSITION]))


def encode_header(header: BatchHeader) -> bytes:
    """The 128 bytes, checksum included."""
    raw = bytearray(
        LAYOUT.pack(MAGIC, VERSION, *header[:2], 0, header[2], 0, *header[3:], RESERVED)
    )
    _U32.pack_into(raw, _CRC_POSITION, header_checksum(raw))
    return bytes(raw)


def decode_header(raw: Buffer, position: int = 0) -> BatchHeader:
    """Read and check the header at `position`.

    Raises:
        CorruptBatchError: too few bytes, or any check fails: magic, checksum, version, reserved
            bytes, unknown incompatible flags, lengths or counts out of bounds.
    """
    view = memoryview(raw)[position : position + HEADER_BYTES]
    if len(view) < HEADER_BYTES:
        raise CorruptBatchError(f"{len(view)} bytes are left, a header has {HEADER_BYTES}")
    fields = LAYOUT.unpack(view)
    magic, version, kind, compression, reserved, flags, checksum = fields[:7]
    if magic != MAGIC:
        raise CorruptBatchError(f"magic is {magic:#010x}, not {MAGIC:#010x}")
    if checksum != header_checksum(view):
        raise CorruptBatchError("the header's checksum does not match")
    if version != VERSION:
        raise CorruptBatchError(
            f"header version {version} is not {VERSION}: written by another version of ray_stream"
        )
    if reserved or fields[-1] != RESERVED:
        raise CorruptBatchError("reserved header bytes are not zero")
    header = BatchHeader(kind, compression, flags, *fields[7:-1])
    _check_fields(header)
    return header


def _check_fields(header: BatchHeader) -> None:
    if header.payload_kind not in _KINDS:
        raise CorruptBatchError(f"unknown payload kind {header.payload_kind}")
    if header.compression not in _COMPRESSIONS:
        raise CorruptBatchError(f"unknown compression {header.compression}")
    if unknown := header.flags & _INCOMPATIBLE_MASK & ~_KNOWN_FLAGS:
        raise CorruptBatchError(f"unknown incompatible flags {unknown:#x}")
    if header.length > LENGTH_MAX:
        raise CorruptBatchError(f"payload length {header.length} is above {LENGTH_MAX}")
    if header.uncompressed_length > LENGTH_MAX:
        raise CorruptBatchError(
            f"uncompressed length {header.uncompressed_length} is above {LENGTH_MAX}"
        )
    if header.last_offset_delta < 0:
        raise CorruptBatchError(f"last_offset_delta is {header.last_offset_delta}, below 0")
    if not 0 <= header.record_count <= header.last_offset_delta + 1:
        raise CorruptBatchError(
            f"{header.record_count} records do not fit {header.last_offset_delta + 1} offsets"
        )
    if header.compression == _PLAIN and header.length != header.uncompressed_length:
        raise CorruptBatchError("an uncompressed payload with two different lengths")


def with_producer(
    raw: Buffer, *, producer_id: int, producer_epoch: int, base_sequence: int
) -> bytes:
    """An encoded header with another producer id, epoch and sequence, and its checksum renewed.

    A client builds a batch once and learns these only when the batch is first sent.
    """
    stamped = bytearray(raw)
    stamp_producer(
        stamped,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
    )
    return bytes(stamped)


def stamp_producer(
    raw: bytearray | memoryview, *, producer_id: int, producer_epoch: int, base_sequence: int
) -> None:
    """As `with_producer`, in place; `raw` begins with the header."""
    _PRODUCER.pack_into(raw, _PRODUCER_POSITION, producer_epoch, producer_id, base_sequence)
    _U32.pack_into(raw, _CRC_POSITION, header_checksum(raw))


def header_rows(
    flags: int, checksums: Int64s, lengths: Int64s, counts: Int64s, timestamp: int
) -> Int64s:
    """Headers of many batches of producers, without producer and without their own checksum.

    Args:
        flags: of each.
        checksums: of each payload.
        lengths: bytes of each payload, which is not compressed.
        counts: records of each.
        timestamp: ms; of every record.

    Returns:
        A row of eight-byte words for each header; `stamp_producer` makes it complete.
    """
    plain = encode_header(
        BatchHeader(flags=flags, base_timestamp=timestamp, max_timestamp=timestamp)
    )
    words = np.tile(np.frombuffer(plain, np.int64), (len(counts), 1))
    rows = words.view(_ROW)[:, 0]
    rows["payload_crc"] = checksums
    rows["length"] = rows["uncompressed_length"] = lengths
    rows["record_count"] = counts
    rows["last_offset_delta"] = counts - 1
    return words


def stamp_header(
    header: BatchHeader,
    *,
    base_offset: int,
    leader_epoch: int,
    append_timestamp: int,
    durable_offset: int,
    log_append_time: bool,
) -> BatchHeader:
    """The header with the leader's fields set; everything of the producer's stays.

    Whose clock the times are from is the topic's to say, so that flag is set or cleared.
    """
    flags = header.flags & ~FLAG_LOG_APPEND_TIME
    if log_append_time:
        flags |= FLAG_LOG_APPEND_TIME
    leaders = (base_offset, leader_epoch, append_timestamp, durable_offset)
    # `_replace` would do the same at five times the cost, for each batch that is written.
    return BatchHeader._make((*header[:2], flags, *header[3:14], *leaders, header[18]))


def encode_stamped(raw: Buffer, header: BatchHeader) -> bytearray:
    """As `encode_header`, from the bytes that a header was received as.

    Args:
        raw: begins with them; they were checked (`decode_header`).
        header: what they say, with the leader's fields set (`stamp_header`).
    """
    stamped = bytearray(raw[:HEADER_BYTES])
    _U32.pack_into(stamped, _FLAGS_POSITION, header[2])
    _LEADER.pack_into(stamped, _LEADER_POSITION, *header[14:18])
    _U32.pack_into(stamped, _CRC_POSITION, header_checksum(stamped))
    return stamped
