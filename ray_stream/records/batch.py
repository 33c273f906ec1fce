"""The checks of a whole batch, before a byte of it is trusted.

Owns: what a batch must be to enter a log, and walking the batches that a fetch or a file returns.
Refuses: decoding records (`reader`), offsets, epochs and sequences against the log's state.

Checks go from cheap to dear, and every size is capped before it is used. Nothing is decompressed
and no value is looked at, so this needs neither Arrow nor memory beyond the batch: of a compressed
payload only the wrapping is checked here, and readers check what is in it (`reader`).
"""

import struct
from collections.abc import Iterator

import crc32c

from ray_stream.errors import (
    CorruptBatchError,
    InvalidRecordError,
    InvalidTimestampError,
    RecordTooLargeError,
)
from ray_stream.records.arrow_message import PLAIN_COLUMNS, check_message, is_plain_message
from ray_stream.records.header import (
    COLUMN_FLAGS,
    FLAG_CONTROL,
    FLAG_KEY,
    FLAG_LOG_APPEND_TIME,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    HEADER_BYTES,
    LENGTH_MAX,
    MAGIC,
    RESERVED,
    VERSION,
    BatchHeader,
    Buffer,
    Compression,
    PayloadKind,
    decode_header,
    header_checksum,
)

# As `header.LAYOUT`, with everything in front of the flags as one number.
_LAYOUT = struct.Struct("<QIIIIIiiihqiqqqiqqq22s")
assert _LAYOUT.size == HEADER_BYTES
_PLAIN_BEGIN = int.from_bytes(
    struct.pack("<IBBBB", MAGIC, VERSION, PayloadKind.ARROW, Compression.NONE, 0), "little"
)
_ARROW = int(PayloadKind.ARROW)
_UNWRAPPED = int(Compression.NONE)
_LEADERS_FLAGS = FLAG_CONTROL | FLAG_OFFSET_DELTA | FLAG_LOG_APPEND_TIME


def check_batch(
    batch: Buffer, *, batch_bytes_max: int = HEADER_BYTES + LENGTH_MAX, produced: bool = True
) -> BatchHeader:
    """Check one received batch, header and payload, and return its header.

    Args:
        batch: exactly one batch.
        batch_bytes_max: bytes of header and payload together that are accepted.
        produced: it comes from a producer and gets its offsets here. False is for batches that a
            log already held: control batches, gaps and Kafka's payloads are legal there.

    Raises:
        CorruptBatchError: the bytes are not a batch, or not as they left their producer.
        RecordTooLargeError: above `batch_bytes_max`.
        InvalidRecordError: a batch that a producer may not send.
        InvalidTimestampError: times that are negative or out of order.
    """
    view = memoryview(batch)
    if produced and (plain := _plain_header(view, batch_bytes_max)) is not None:
        return plain
    header = decode_header(view)
    if header.batch_bytes > batch_bytes_max:
        raise RecordTooLargeError(
            f"a batch of {header.batch_bytes} bytes is above the limit of {batch_bytes_max}: "
            "send fewer records at a time, or raise max_message_bytes"
        )
    if len(view) != header.batch_bytes:
        raise CorruptBatchError(
            f"the header announces {header.batch_bytes} bytes, there are {len(view)}"
        )
    if produced:
        _check_produced(header)
    check_header(header)
    payload = view[HEADER_BYTES:]
    check_payload_checksum(header, payload)
    if header.payload_kind == _ARROW and header.compression == _UNWRAPPED:
        check_arrow_payload(header, payload)
    return header


def _plain_header(view: memoryview, batch_bytes_max: int) -> BatchHeader | None:
    """The header of the batch that most producers send, in one pass instead of one for each rule.

    Keys, values or both, no nulls, no other column, not compressed. Everything that `check_batch`
    checks is checked, in its order: the header's checksum before any other field is used, sizes
    before the payload is looked at. None: `check_batch` has to look, and to say what is wrong.
    """
    if len(view) < HEADER_BYTES:
        return None
    fields = _LAYOUT.unpack_from(view)
    begin, flags, checksum, payload_crc, length, uncompressed, count, last_delta = fields[:8]
    if begin != _PLAIN_BEGIN or checksum != header_checksum(view):
        return None
    schema_id, producer_epoch, producer_id, base_sequence, base_timestamp, max_timestamp = fields[
        8:14
    ]
    if (
        flags not in PLAIN_COLUMNS
        or fields[-1] != RESERVED
        or not length == uncompressed == len(view) - HEADER_BYTES <= LENGTH_MAX
        or len(view) > batch_bytes_max
        or not 0 < count == last_delta + 1
        or schema_id < -1
        or not 0 <= base_timestamp == max_timestamp
    ):
        return None
    if (producer_id < 0 or producer_epoch < 0 or base_sequence < 0) and not (
        producer_id == producer_epoch == base_sequence == -1
    ):
        return None
    is_whole = crc32c.crc32c(view[HEADER_BYTES:]) == payload_crc
    if not is_whole or not is_plain_message(view, HEADER_BYTES, flags, count):
        return None
    return BatchHeader._make((_ARROW, _UNWRAPPED, flags, *fields[3:-1]))


def split_batches(buffer: Buffer) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The batches that lie one behind the other in `buffer`: header and payload, uncopied.

    Both checksums are checked, and what is in the header; the payload is for `reader` to check.

    Raises:
        CorruptBatchError: bytes that are not a batch, or only the beginning of one.
    """
    view = memoryview(buffer)
    position = 0
    while position < len(view):
        header = decode_header(view, position)
        end = position + header.batch_bytes
        payload = view[position + HEADER_BYTES : end]
        if len(payload) != header.length:
            raise CorruptBatchError(
                f"the header at byte {position} announces {header.length} bytes of payload, "
                f"{len(payload)} are left"
            )
        check_header(header)
        check_payload_checksum(header, payload)
        yield header, payload
        position = end


def check_header(header: BatchHeader) -> None:
    """Check that the fields of a decoded header agree with each other.

    Raises:
        CorruptBatchError: no writer of this format makes such a header.
    """
    _check_producer(header)
    if header.schema_id < -1:
        raise CorruptBatchError(f"schema id {header.schema_id} is below -1")
    if header.record_count and not 0 <= header.base_timestamp <= header.max_timestamp:
        raise CorruptBatchError(
            f"timestamps from {header.base_timestamp} to {header.max_timestamp} ms: one is "
            "negative, or the greatest below the first"
        )
    if header.payload_kind == _ARROW:
        _check_arrow_header(header)
    elif header.compression != _UNWRAPPED or header.flags & COLUMN_FLAGS:
        raise CorruptBatchError("a Kafka payload with our own compression or columns")


def _check_producer(header: BatchHeader) -> None:
    identity = [header.producer_id, header.producer_epoch, header.base_sequence]
    if header.is_control:  # the end of a transaction has its producer's id, but no sequence
        if header.base_sequence != -1:
            raise CorruptBatchError(f"a control batch with sequence {header.base_sequence}")
        identity.pop()
    if min(identity) < 0 and identity != [-1] * len(identity):
        raise CorruptBatchError(
            f"producer id, epoch and sequence {identity}: all are set, or all are -1"
        )


def _check_arrow_header(header: BatchHeader) -> None:
    flags = header.flags
    if header.record_count == 0:
        if header.length or header.uncompressed_length or flags & COLUMN_FLAGS:
            raise CorruptBatchError("a batch without records has a payload")
        return
    if not flags & (FLAG_KEY | FLAG_VALUE):
        raise CorruptBatchError("a batch with neither keys nor values")
    if not flags & FLAG_OFFSET_DELTA and header.record_count != header.last_offset_delta + 1:
        raise CorruptBatchError(
            f"{header.record_count} records on {header.last_offset_delta + 1} offsets, "
            "and no column says which"
        )
    if not flags & FLAG_TIMESTAMP and header.base_timestamp != header.max_timestamp:
        raise CorruptBatchError("different timestamps, and no column of them")


def _check_produced(header: BatchHeader) -> None:
    if header.payload_kind != _ARROW:
        raise InvalidRecordError(
            "Kafka payloads are not served by this version: send Arrow batches"
        )
    if header.record_count == 0:
        raise InvalidRecordError("a batch without records: send at least one")
    if flags := header.flags & _LEADERS_FLAGS:
        raise InvalidRecordError(f"flags {flags:#x} are the log's own, a producer leaves them 0")
    if not 0 <= header.base_timestamp <= header.max_timestamp:
        raise InvalidTimestampError(
            f"timestamps from {header.base_timestamp} to {header.max_timestamp} ms: they must not "
            "be negative, and the greatest not below the first"
        )


def check_payload_checksum(header: BatchHeader, payload: Buffer) -> None:
    """Check the producer's checksum of the payload.

    Raises:
        CorruptBatchError: it does not match.
    """
    if crc32c.crc32c(payload) != header.payload_crc:
        raise CorruptBatchError("the payload's checksum does not match")


def check_arrow_payload(header: BatchHeader, payload: Buffer) -> None:
    """Check an uncompressed (or decompressed) Arrow payload against its header, values left out.

    Raises:
        CorruptBatchError: it is not one record batch of the header's columns and row count.
    """
    if header.record_count:
        check_message(payload, header.flags, header.record_count)
