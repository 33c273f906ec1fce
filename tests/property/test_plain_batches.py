"""The short way to judge a plain batch says yes exactly where the long way does."""

import struct

import crc32c
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import RayStreamError
from ray_stream.records import arrow_message
from ray_stream.records import batch as batches
from ray_stream.records.arrow_message import PLAIN_COLUMNS, check_message, is_plain_message
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import (
    COLUMN_FLAGS,
    FLAG_KEY,
    FLAG_VALUE,
    HEADER_BYTES,
    BatchHeader,
    Buffer,
    decode_header,
    encode_header,
    encode_stamped,
    header_checksum,
    stamp_header,
)

CELLS = st.binary(max_size=20)
NUMBERS = (-(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 8, 12, 2**24, 2**31 - 1)
FIELD_NUMBERS = (*NUMBERS, *(1 << bit for bit in range(8, 32)), 2**32, 2**62, -(2**63))


@st.composite
def plain(draw: st.DrawFn, cells: st.SearchStrategy[bytes | None] = CELLS) -> bytes:
    """A batch of keys, values or both."""
    count = draw(st.integers(1, 9))
    which = draw(st.sampled_from(PLAIN_COLUMNS))
    rows = st.lists(cells, min_size=count, max_size=count)
    key = pa.array(draw(rows), pa.binary()) if which & FLAG_KEY else None
    value = pa.array(draw(rows), pa.binary()) if which & FLAG_VALUE else None
    identity = draw(st.sampled_from([(-1, -1, -1), (2**40, 3, 2**31 - 2)]))
    built = build_batch(
        RecordColumns(key=key, value=value, base_timestamp=draw(st.integers(0, 2**50))),
        producer_id=identity[0],
        producer_epoch=identity[1],
        base_sequence=identity[2],
    )
    return b"".join(built)


def sealed(raw: bytearray) -> bytes:
    """With both checksums right, so that what lies behind them is looked at."""
    struct.pack_into("<I", raw, 16, crc32c.crc32c(raw[HEADER_BYTES:]))
    struct.pack_into("<I", raw, 12, header_checksum(raw))
    return bytes(raw)


@pytest.fixture(params=PLAIN_COLUMNS)
def known(request: pytest.FixtureRequest) -> bytes:
    column = pa.array([b"abc", b"", b"d" * 9], pa.binary())
    built = build_batch(
        RecordColumns(
            key=column if request.param & FLAG_KEY else None,
            value=column if request.param & FLAG_VALUE else None,
            base_timestamp=7,
        ),
        producer_id=9,
        producer_epoch=2,
        base_sequence=3,
    )
    return b"".join(built)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A plain batch with something wrong, or not quite plain; its checksums are mostly right."""
    raw = bytearray(draw(st.one_of(plain(), plain(st.none() | CELLS))))
    for _ in range(draw(st.integers(1, 3))):
        if not raw:
            break
        position = draw(st.one_of(st.integers(0, len(raw) - 1), st.integers(0, 400))) % len(raw)
        kind = draw(st.sampled_from(["bit", "byte", "number", "cut", "longer"]))
        if kind == "bit":
            raw[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            raw[position] = draw(st.integers(0, 255))
        elif kind == "number" and position + 4 <= len(raw):
            struct.pack_into("<i", raw, position, draw(st.sampled_from(NUMBERS)))
        elif kind == "cut":
            del raw[position:]
        else:
            raw += bytes(draw(st.integers(1, 16)))
    if len(raw) >= HEADER_BYTES and draw(st.integers(0, 4)):
        if draw(st.booleans()):
            struct.pack_into("<II", raw, 20, *(len(raw) - HEADER_BYTES,) * 2)
        return sealed(raw)
    return bytes(raw)


def outcome(batch: Buffer, limit: int) -> BatchHeader | tuple[type, str]:
    try:
        return check_batch(batch, batch_bytes_max=limit)
    except RayStreamError as error:
        return type(error), str(error)


def long_way(batch: Buffer, limit: int) -> BatchHeader | tuple[type, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_plain_header", lambda *_: None)
        patch.setattr(arrow_message, "single_cells", lambda *_: None)
        return outcome(batch, limit)


@given(plain(), st.integers(-1, 1))
def test_a_plain_batch_is_taken_the_short_way_and_only_within_the_limit(
    batch: bytes, room: int
) -> None:
    limit = len(batch) + room
    expected = long_way(batch, limit)
    short = batches._plain_header(memoryview(batch), limit)
    assert (short is None) == (room < 0)
    assert outcome(batch, limit) == expected
    assert short is None or (short == expected == decode_header(batch))


def assert_agreed(batch: bytes) -> None:
    expected = long_way(batch, 1 << 20)
    short = batches._plain_header(memoryview(batch), 1 << 20)
    assert short is None or short == expected
    assert outcome(batch, 1 << 20) == expected


@pytest.mark.parametrize("field", BatchHeader._fields)
def test_both_ways_agree_on_every_field_of_the_header(known: bytes, field: str) -> None:
    header = decode_header(known)
    old = getattr(header, field)
    for number in FIELD_NUMBERS:
        for changed in (number, old | number, old + number):
            try:
                raw = bytearray(encode_header(header._replace(**{field: changed})))
            except struct.error:  # cannot be said in that field
                continue
            assert_agreed(bytes(raw) + known[HEADER_BYTES:])
            assert_agreed(sealed(raw + known[HEADER_BYTES:]))


def test_both_ways_agree_on_every_byte_of_a_header_whose_checksum_is_right(known: bytes) -> None:
    for position in range(HEADER_BYTES):
        for byte in (0, 1, 2, 0x40, 0x80, 0xFF):
            raw = bytearray(known)
            raw[position] = byte
            struct.pack_into("<I", raw, 12, header_checksum(raw))
            assert_agreed(bytes(raw))


def test_both_ways_agree_on_every_number_of_the_message(known: bytes) -> None:
    for position in range(HEADER_BYTES, len(known) - 3, 2):
        for number in NUMBERS:
            raw = bytearray(known)
            struct.pack_into("<i", raw, position, number)
            assert_agreed(sealed(raw))


@pytest.mark.parametrize("times", [(-1, -1), (-5, -5), (-5, 7), (7, -5), (8, 7), (0, 0), (7, 8)])
def test_both_ways_agree_on_times(known: bytes, times: tuple[int, int]) -> None:
    header = decode_header(known)._replace(base_timestamp=times[0], max_timestamp=times[1])
    assert_agreed(encode_header(header) + known[HEADER_BYTES:])


def test_both_ways_agree_on_half_an_identity(known: bytes) -> None:
    header = decode_header(known)
    for producer_id in (-2, -1, 0):
        for epoch in (-2, -1, 0):
            for sequence in (-2, -1, 0):
                changed = header._replace(
                    producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence
                )
                assert_agreed(encode_header(changed) + known[HEADER_BYTES:])


@given(mutated())
def test_both_ways_agree_on_whatever_is_wrong(batch: bytes) -> None:
    assert_agreed(batch)


def test_every_flipped_bit_of_a_plain_batch_is_refused(known: bytes) -> None:
    for position in range(len(known)):
        for bit in range(8):
            flipped = bytearray(known)
            flipped[position] ^= 1 << bit
            assert batches._plain_header(memoryview(flipped), 1 << 20) is None
            with pytest.raises(RayStreamError):
                check_batch(flipped)


@given(mutated())
def test_a_plain_message_is_one_that_the_general_check_accepts(batch: bytes) -> None:
    if len(batch) <= HEADER_BYTES:
        return
    for flags in PLAIN_COLUMNS:
        for count in (1, 2, 9, 2**31 - 1):
            if not is_plain_message(memoryview(batch), HEADER_BYTES, flags, count):
                continue
            check_message(batch[HEADER_BYTES:], flags, count)


@given(plain(), st.booleans(), st.integers(0, 2**62))
def test_a_header_stamped_in_place_is_the_one_encoded_anew(
    batch: bytes, is_log_append_time: bool, offset: int
) -> None:
    raw = bytearray(batch)
    raw[8] = 5  # bits that this version does not know and carries along
    received = decode_header(sealed(raw))
    stamped = stamp_header(
        received,
        base_offset=offset,
        leader_epoch=7,
        append_timestamp=offset // 2,
        durable_offset=offset // 3,
        log_append_time=is_log_append_time,
    )
    assert encode_stamped(raw, stamped) == encode_header(stamped)
    assert stamped.flags & COLUMN_FLAGS == received.flags & COLUMN_FLAGS
