"""The one layout of a message: Arrow reads it, and nothing else passes for it."""

import struct
from itertools import product

import pyarrow as pa
import pytest

from ray_stream.errors import CorruptBatchError
from ray_stream.records.arrow_message import check_message
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import COLUMN_FLAGS
from ray_stream.records.schema import payload_schema

BODY = 88 + 16 + 48  # of a payload with a value column only
HOSTILE = (-1, 1, 7, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))


def message(columns: RecordColumns) -> tuple[bytes, int, int]:
    batch = b"".join(build_batch(columns))
    header = check_batch(batch, produced=False)
    return batch[128:], header.flags, header.record_count


def values(*content: bytes | None) -> tuple[bytes, int, int]:
    return message(RecordColumns(value=pa.array(content, pa.binary()), base_timestamp=1))


@pytest.mark.parametrize("present", list(product([False, True], repeat=5)))
def test_arrow_itself_reads_every_combination_of_columns(present: tuple[bool, ...]) -> None:
    key, value, timestamp, headers, offset_delta = present
    columns = RecordColumns(
        key=pa.array([b"a", None, b"c"], pa.binary()) if key else None,
        value=pa.array([b"x" * 9, b"", b"z"], pa.binary()) if value or not key else None,
        timestamp=pa.array([1, 2, 3], pa.int64()) if timestamp else None,
        headers=(
            pa.array([[("h", None)], [], [("i", b"1")]], pa.map_(pa.string(), pa.binary()))
            if headers
            else None
        ),
        offset_delta=pa.array([0, 5, 6], pa.int32()) if offset_delta else None,
        base_timestamp=1,
    )
    payload, flags, _ = message(columns)

    found = pa.ipc.read_record_batch(payload, payload_schema(flags))

    found.validate(full=True)
    for name in found.schema.names:
        assert found[name].equals(getattr(columns, name))


def test_arrows_own_layout_of_the_same_records_is_refused() -> None:
    column = pa.array([b"abc"], pa.binary())
    theirs = pa.record_batch([column], names=["value"]).serialize().to_pybytes()
    ours, flags, count = values(b"abc")
    assert len(theirs) != 0
    assert theirs != ours
    with pytest.raises(CorruptBatchError):
        check_message(theirs, flags, count)


def test_arrows_buffer_compression_cannot_be_smuggled_in() -> None:
    column = pa.array([b"abc" * 1000], pa.binary())
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    batch = pa.record_batch([column], names=["value"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    compressed = reader.read_next_message().serialize().to_pybytes()
    _, flags, count = values(b"abc" * 1000)
    with pytest.raises(CorruptBatchError):
        check_message(compressed, flags, count)


def test_every_flipped_bit_of_the_metadata_is_detected() -> None:
    payload, flags, count = values(b"abc", None, b"d")
    for bit in range(8 * BODY):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatchError):
            check_message(flipped, flags, count)


@pytest.mark.parametrize("number", HOSTILE)
@pytest.mark.parametrize("position", range(80, BODY, 8))
def test_a_hostile_count_or_length_is_refused(position: int, number: int) -> None:
    payload, flags, count = values(b"abc", None, b"d")
    hostile = bytearray(payload)
    if struct.unpack_from("<q", hostile, position) == (number,):
        return
    struct.pack_into("<q", hostile, position, number)
    with pytest.raises(CorruptBatchError):
        check_message(hostile, flags, count)


def test_lengths_that_cancel_each_other_out_are_refused() -> None:
    payload, flags, count = values(b"abc", None, b"d")
    lengths = [BODY - 40, BODY - 24, BODY - 8]
    for first in lengths:
        for second in lengths:
            if first == second:
                continue
            hostile = bytearray(payload)
            for position, change in ((first, 8), (second, -8)):
                (length,) = struct.unpack_from("<q", hostile, position)
                struct.pack_into("<q", hostile, position, length + change)
            with pytest.raises(CorruptBatchError):
                check_message(hostile, flags, count)


def test_a_length_below_zero_is_refused_though_another_makes_up_for_it() -> None:
    both = RecordColumns(
        key=pa.array([b""], pa.binary()), value=pa.array([b"x" * 16], pa.binary()), base_timestamp=1
    )
    payload, flags, count = message(both)
    body = 88 + 32 + 96
    assert len(payload) == body + 8 + 8 + 16
    hostile = bytearray(payload)
    for position, numbers in (
        (body - 56, (-8,)),  # the key's data: bytes; then the value's three buffers
        (body - 48, (0, 0, 0, 8, 8, 24)),
        (body - 72, (0, 8)),
    ):
        struct.pack_into(f"<{len(numbers)}q", hostile, position, *numbers)
    struct.pack_into("<2i", hostile, body, 0, -8)
    struct.pack_into("<2i", hostile, body + 8, 0, 24)
    with pytest.raises(CorruptBatchError, match="not in"):
        check_message(hostile, flags, count)


def test_nulls_other_than_the_bitmaps_are_refused() -> None:
    payload, flags, count = values(b"abc", None, None)
    assert payload[BODY] == 0b001
    for bitmap, nulls in ((0b001, 1), (0b011, 2), (0b1001, 1), (0b10000001, 1), (0b111, 0)):
        hostile = bytearray(payload)
        hostile[BODY] = bitmap
        struct.pack_into("<q", hostile, 88, nulls)
        with pytest.raises(CorruptBatchError):
            check_message(hostile, flags, count)


@pytest.mark.parametrize("flags", [0, COLUMN_FLAGS])
def test_a_payload_too_short_for_its_columns_is_refused(flags: int) -> None:
    for length in range(0, 300, 7):
        with pytest.raises(CorruptBatchError):
            check_message(bytes(length), flags, 1)


def test_more_bytes_than_the_columns_need_are_refused() -> None:
    payload, flags, count = values(b"abc")
    with pytest.raises(CorruptBatchError, match="the columns need"):
        check_message(payload + bytes(8), flags, count)
