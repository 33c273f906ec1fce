"""From columns to bytes: what is stored, what is left out, what is refused."""

import struct

import crc32c
import numpy as np
import pyarrow as pa
import pytest

from ray_stream.errors import InvalidTimestampError, RecordTooLargeError, SchemaError
from ray_stream.records import builder
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import (
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_TIMESTAMP,
    FLAG_TRANSACTIONAL,
    FLAG_VALUE,
    BatchHeader,
    Compression,
    decode_header,
    with_producer,
)
from ray_stream.records.reader import decode_columns

BINARY = pa.binary()
MAP = pa.map_(pa.string(), BINARY)


def binary(*values: bytes | None) -> pa.Array:
    return pa.array(values, BINARY)


def built(columns: RecordColumns) -> tuple[BatchHeader, pa.RecordBatch]:
    batch = b"".join(build_batch(columns))
    header = check_batch(batch, produced=False)
    return header, decode_columns(header, batch[128:])


def test_columns_that_are_all_null_are_not_stored() -> None:
    header, found = built(
        RecordColumns(key=binary(None, None), value=binary(b"a", None), base_timestamp=1)
    )
    assert header.flags == FLAG_VALUE
    assert found.to_pydict() == {"value": [b"a", None]}


def test_tombstones_need_no_value_column() -> None:
    header, found = built(RecordColumns(key=binary(b"k"), value=binary(None), base_timestamp=1))
    assert header.flags == FLAG_KEY
    assert found.to_pydict() == {"key": [b"k"]}


def test_records_with_neither_key_nor_value_keep_their_number() -> None:
    header, found = built(RecordColumns(value=binary(None, None, None), base_timestamp=1))
    assert header.record_count == 3
    assert found["value"].to_pylist() == [None, None, None]


def test_equal_times_are_said_once() -> None:
    times = pa.array([7, 7], pa.int64())
    header, _ = built(RecordColumns(value=binary(b"a", b"b"), timestamp=times, base_timestamp=1))
    assert not header.flags & FLAG_TIMESTAMP
    assert (header.base_timestamp, header.max_timestamp) == (7, 7)


def test_the_first_and_the_greatest_time_are_in_the_header() -> None:
    times = pa.array([7, 9, 5], pa.int64())
    header, found = built(RecordColumns(value=binary(b"a", b"b", b"c"), timestamp=times))
    assert (header.base_timestamp, header.max_timestamp) == (7, 9)
    assert found["timestamp"].to_pylist() == [7, 9, 5]


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("length", [1, 3, 8, 11])
def test_a_slice_is_stored_as_if_it_were_the_whole(start: int, length: int) -> None:
    arrays = {
        "key": pa.array([f"k{i}".encode() for i in range(25)], BINARY),
        "value": pa.array([None if i % 3 == 0 else b"v" * i for i in range(25)], BINARY),
        "timestamp": pa.array(range(25), pa.int64()),
        "headers": pa.array([[(f"h{i}", b"x" * i)] * (i % 3) for i in range(25)], MAP),
    }
    slices = {name: array.slice(start, length) for name, array in arrays.items()}
    copies = {name: pa.array(array.to_pylist(), array.type) for name, array in slices.items()}
    sliced, whole = RecordColumns(**slices), RecordColumns(**copies)
    assert b"".join(build_batch(sliced)) == b"".join(build_batch(whole))


def test_a_null_in_the_headers_column_is_a_record_without_headers() -> None:
    offsets = pa.array([0, 1, 3, 4], pa.int32())
    entries = [pa.array(["a", "b", "c", "d"]), binary(b"1", b"2", None, b"4")]
    spanning = pa.MapArray.from_arrays(offsets, *entries)
    hidden = pa.Array.from_buffers(
        MAP, 3, [pa.py_buffer(b"\x05"), spanning.buffers()[1]], children=[_entries(spanning)]
    )
    assert hidden.to_pylist() == [[("a", b"1")], None, [("d", b"4")]]

    header, found = built(
        RecordColumns(value=binary(b"x", b"y", b"z"), headers=hidden, base_timestamp=1)
    )

    assert header.flags & FLAG_HEADERS
    assert found["headers"].to_pylist() == [[("a", b"1")], [], [("d", b"4")]]


def _entries(array: pa.Array) -> pa.Array:
    fields = [pa.field("key", pa.string(), nullable=False), pa.field("value", BINARY)]
    return pa.StructArray.from_arrays([array.keys, array.items], fields=fields)


def test_a_large_payload_is_listed_and_not_copied() -> None:
    data = np.full(100_000, 97, np.uint8)
    values = pa.Array.from_buffers(
        BINARY,
        2,
        [None, pa.py_buffer(np.array([0, 60_000, 100_000], np.int32)), pa.py_buffer(data)],
    )
    pieces = build_batch(RecordColumns(value=values, base_timestamp=1))
    (largest,) = [piece for piece in pieces if len(piece) >= 100_000]
    assert np.shares_memory(np.frombuffer(largest, np.uint8), data)
    assert len(pieces[0]) == 128


def test_a_small_payload_is_one_piece() -> None:
    assert len(build_batch(RecordColumns(value=binary(b"v"), base_timestamp=1))) == 2


def test_one_record_of_100_bytes_takes_392() -> None:
    pieces = build_batch(RecordColumns(value=binary(b"v" * 100), base_timestamp=1))
    assert sum(map(len, pieces)) == 392


def test_checksum_and_lengths_describe_the_pieces() -> None:
    values = pa.array([b"x" * 100] * 1000, BINARY)
    for compression in Compression:
        pieces = build_batch(RecordColumns(value=values, base_timestamp=1), compression=compression)
        header, payload = decode_header(pieces[0]), b"".join(pieces[1:])
        assert header.compression == compression
        assert header.length == len(payload)
        assert header.payload_crc == crc32c.crc32c(payload)


def test_a_payload_that_does_not_shrink_is_left_plain() -> None:
    noise = np.random.default_rng(1).bytes(100_000)
    pieces = build_batch(
        RecordColumns(value=binary(noise), base_timestamp=1), compression=Compression.ZSTD
    )
    assert decode_header(pieces[0]).compression == Compression.NONE


def test_identity_and_flags_are_in_the_header_and_can_be_given_later() -> None:
    columns = RecordColumns(value=binary(b"v"), base_timestamp=1)
    identity = {"producer_id": 5, "producer_epoch": 1, "base_sequence": 7}
    at_once = build_batch(columns, flags=FLAG_TRANSACTIONAL, schema_id=3, **identity)  # type: ignore[arg-type]
    later = build_batch(columns, flags=FLAG_TRANSACTIONAL, schema_id=3)

    assert with_producer(later[0], **identity) == at_once[0]
    header = check_batch(b"".join(at_once))
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (5, 1, 7)
    assert (header.schema_id, header.flags) == (3, FLAG_TRANSACTIONAL | FLAG_VALUE)


def test_gaps_and_emptiness_keep_their_offsets() -> None:
    deltas = pa.array([1, 4], pa.int32())
    columns = RecordColumns(value=binary(b"b", b"e"), offset_delta=deltas, base_timestamp=1)
    assert decode_header(build_batch(columns)[0]).last_offset_delta == 4
    assert decode_header(build_batch(columns, last_offset_delta=9)[0]).last_offset_delta == 9
    pieces = build_batch(RecordColumns(), last_offset_delta=9)
    assert len(pieces) == 1
    assert check_batch(pieces[0], produced=False).record_count == 0


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (RecordColumns(value=pa.array(["text"])), "column value is string, it must be binary"),
        (RecordColumns(value=pa.array([b"x"], pa.large_binary())), "it must be binary"),
        (RecordColumns(value=binary(b"a"), key=binary(b"a", b"b")), "column key has 2 rows"),
        (RecordColumns(timestamp=pa.array([1], pa.int64())), "there are keys or values"),
        (RecordColumns(value=binary(b"a"), timestamp=pa.array([None], pa.int64())), "nulls"),
        (RecordColumns(value=binary(b"a"), timestamp=pa.array([1], pa.int32())), "int64"),
        (
            RecordColumns(value=binary(b"a", b"b"), offset_delta=pa.array([1, 1], pa.int32())),
            "must increase",
        ),
        (
            RecordColumns(value=binary(b"a"), offset_delta=pa.array([-1], pa.int32())),
            "must increase",
        ),
        (RecordColumns(), "last_offset_delta"),
    ],
)
def test_columns_that_are_no_records_are_refused(columns: RecordColumns, reason: str) -> None:
    timed = RecordColumns(
        columns.key, columns.value, columns.timestamp, columns.headers, columns.offset_delta, 1
    )
    with pytest.raises(SchemaError, match=reason):
        build_batch(timed)


@pytest.mark.parametrize("last_offset_delta", [-1, 0, 2**31])
def test_a_batch_cannot_end_before_its_last_record_or_beyond_int32(last_offset_delta: int) -> None:
    columns = RecordColumns(value=binary(b"a", b"b"), base_timestamp=1)
    with pytest.raises(SchemaError, match="last_offset_delta"):
        build_batch(columns, last_offset_delta=last_offset_delta)


@pytest.mark.parametrize(
    "columns",
    [
        RecordColumns(value=binary(b"a")),
        RecordColumns(value=binary(b"a"), base_timestamp=-5),
        RecordColumns(value=binary(b"a", b"b"), timestamp=pa.array([5, -1], pa.int64())),
    ],
)
def test_negative_times_are_refused(columns: RecordColumns) -> None:
    with pytest.raises(InvalidTimestampError, match="negative"):
        build_batch(columns)


def test_what_no_reader_could_decode_is_never_built() -> None:
    offsets = pa.py_buffer(struct.pack("<3i", 0, 9, 3))
    broken = pa.Array.from_buffers(BINARY, 2, [None, offsets, pa.py_buffer(b"abc")])
    with pytest.raises(SchemaError, match="damaged"):
        build_batch(RecordColumns(value=broken, base_timestamp=1))

    names = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<2i", 0, 1)), pa.py_buffer(b"\xff")]
    )
    headers = pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), names, binary(b"x"))
    with pytest.raises(SchemaError, match="UTF8"):
        build_batch(RecordColumns(value=binary(b"a"), headers=headers, base_timestamp=1))


def test_a_payload_above_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "LENGTH_MAX", 1000)
    with pytest.raises(RecordTooLargeError, match="above 1000"):
        build_batch(RecordColumns(value=binary(b"x" * 1000), base_timestamp=1))
