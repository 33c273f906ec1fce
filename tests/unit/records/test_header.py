"""A header is believed whole or not at all."""

import struct

import pytest

from ray_stream.errors import CorruptBatchError
from ray_stream.records.header import (
    FLAG_LOG_APPEND_TIME,
    FLAG_TRANSACTIONAL,
    HEADER_BYTES,
    LENGTH_MAX,
    BatchHeader,
    Compression,
    PayloadKind,
    decode_header,
    encode_header,
    header_checksum,
    stamp_header,
    with_producer,
)

FULL = BatchHeader(
    payload_kind=PayloadKind.ARROW,
    compression=Compression.ZSTD,
    flags=FLAG_TRANSACTIONAL | 5,
    payload_crc=0xDEADBEEF,
    length=1000,
    uncompressed_length=2000,
    record_count=9,
    last_offset_delta=11,
    schema_id=4,
    producer_epoch=3,
    producer_id=2**40 + 1,
    base_sequence=2**31 - 1,
    base_timestamp=1_700_000_000_000,
    max_timestamp=1_700_000_000_500,
    base_offset=2**50,
    leader_epoch=6,
    append_timestamp=1_700_000_001_000,
    durable_offset=2**49,
    delete_horizon=1_700_000_002_000,
)


def resealed(raw: bytes, position: int, replacement: bytes) -> bytes:
    changed = bytearray(raw)
    changed[position : position + len(replacement)] = replacement
    struct.pack_into("<I", changed, 12, header_checksum(changed))
    return bytes(changed)


def test_a_header_comes_back_as_it_was() -> None:
    raw = encode_header(FULL)

    assert len(raw) == HEADER_BYTES
    assert decode_header(raw) == FULL
    assert decode_header(b"x" * 7 + raw + b"y", 7) == FULL


@pytest.mark.parametrize("byte", range(HEADER_BYTES))
def test_every_flipped_bit_of_every_field_is_detected(byte: int) -> None:
    raw = encode_header(FULL)
    for bit in range(8):
        flipped = bytearray(raw)
        flipped[byte] ^= 1 << bit
        with pytest.raises(CorruptBatchError):
            decode_header(flipped)


@pytest.mark.parametrize("length", [0, 1, 127])
def test_the_beginning_of_a_header_is_not_a_header(length: int) -> None:
    with pytest.raises(CorruptBatchError, match=f"{length} bytes are left"):
        decode_header(encode_header(FULL)[:length])


def test_zeros_are_not_a_header() -> None:
    with pytest.raises(CorruptBatchError, match="magic"):
        decode_header(bytes(HEADER_BYTES))


@pytest.mark.parametrize("byte", [7, *range(106, 128)])
def test_a_reserved_byte_that_is_not_zero_is_refused_even_under_a_right_checksum(byte: int) -> None:
    with pytest.raises(CorruptBatchError, match="reserved"):
        decode_header(resealed(encode_header(FULL), byte, b"\x01"))


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(CorruptBatchError, match="version 2 is not 1"):
        decode_header(resealed(encode_header(FULL), 4, b"\x02"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload_kind": 2}, "payload kind 2"),
        ({"compression": 3}, "compression 3"),
        ({"flags": 1 << 31}, "incompatible flags"),
        ({"flags": 1 << 24}, "incompatible flags"),
        ({"length": LENGTH_MAX + 1}, "payload length"),
        ({"uncompressed_length": LENGTH_MAX + 1}, "uncompressed length"),
        ({"uncompressed_length": 2**32 - 1}, "uncompressed length"),
        ({"last_offset_delta": -1}, "below 0"),
        ({"record_count": -1}, "do not fit"),
        ({"record_count": 13}, "do not fit"),
        ({"compression": 0}, "two different lengths"),
    ],
)
def test_a_field_out_of_bounds_is_refused_even_under_a_right_checksum(
    changes: dict[str, int], reason: str
) -> None:
    with pytest.raises(CorruptBatchError, match=reason):
        decode_header(encode_header(FULL._replace(**changes)))


def test_unknown_compatible_flags_are_ignored() -> None:
    assert decode_header(encode_header(FULL._replace(flags=0xFFFF))).flags == 0xFFFF


def test_a_leader_stamps_its_own_fields_and_no_other() -> None:
    stamped = stamp_header(
        FULL,
        base_offset=1,
        leader_epoch=2,
        append_timestamp=3,
        durable_offset=4,
        log_append_time=True,
    )

    changed = {name for name in FULL._fields if getattr(stamped, name) != getattr(FULL, name)}
    assert changed == {"base_offset", "leader_epoch", "append_timestamp", "durable_offset", "flags"}
    assert stamped.flags == FULL.flags | FLAG_LOG_APPEND_TIME
    assert decode_header(encode_header(stamped)) == stamped


def test_a_producer_cannot_claim_the_leaders_clock() -> None:
    claimed = FULL._replace(flags=FLAG_LOG_APPEND_TIME | FLAG_TRANSACTIONAL)
    stamped = stamp_header(
        claimed,
        base_offset=1,
        leader_epoch=2,
        append_timestamp=3,
        durable_offset=4,
        log_append_time=False,
    )
    assert stamped.flags == FLAG_TRANSACTIONAL


def test_a_sequence_given_later_changes_nothing_else() -> None:
    raw = with_producer(encode_header(FULL), producer_id=-1, producer_epoch=-1, base_sequence=-1)
    assert decode_header(raw) == FULL._replace(producer_id=-1, producer_epoch=-1, base_sequence=-1)

    again = with_producer(
        memoryview(raw),
        producer_id=FULL.producer_id,
        producer_epoch=FULL.producer_epoch,
        base_sequence=FULL.base_sequence,
    )
    assert again == encode_header(FULL)


def test_the_position_behind_a_batch_counts_gaps() -> None:
    assert FULL.next_offset == 2**50 + 12
    assert FULL.batch_bytes == 1128
