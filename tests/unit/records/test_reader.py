"""What users read: right rows, right offsets, or CorruptBatchError."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from ray_stream.errors import CorruptBatchError
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import (
    FLAG_LOG_APPEND_TIME,
    HEADER_BYTES,
    BatchHeader,
    Compression,
    decode_header,
    stamp_header,
)
from ray_stream.records.reader import decode_columns, offsets, timestamps, to_user_batch
from ray_stream.records.schema import RECORD_SCHEMA

Forge = Callable[..., bytes]


def binary(*values: bytes | None) -> pa.Array:
    return pa.array(values, pa.binary())


def placed(
    columns: RecordColumns, base_offset: int = 100, **options: object
) -> tuple[BatchHeader, bytes]:
    batch = b"".join(build_batch(columns, **options))  # type: ignore[arg-type]
    header = check_batch(batch, produced=False)
    return header._replace(base_offset=base_offset), batch[128:]


def test_rows_have_the_public_schema_and_every_field(rich: RecordColumns) -> None:
    header, payload = placed(rich)
    rows = to_user_batch(header, payload, "flights", 3, 0)

    rows.validate(full=True)
    assert rows.schema == RECORD_SCHEMA
    assert rows.to_pylist()[0] == {
        "offset": 100,
        "key": b"k",
        "value": b"a",
        "topic": "flights",
        "partition": 3,
        "timestamp": 10,
        "timestamp_type": 0,
        "headers": [("h", b"1"), ("h", None)],
    }
    assert rows["offset"].to_pylist() == [100, 101, 102, 103]


def test_absent_columns_are_null_and_absent_headers_empty() -> None:
    header, payload = placed(RecordColumns(key=binary(b"k", b"l"), base_timestamp=9))
    rows = to_user_batch(header, payload, "t", 0, 0)
    rows.validate(full=True)
    assert rows["value"].to_pylist() == [None, None]
    assert rows["headers"].to_pylist() == [[], []]
    assert rows["timestamp"].to_pylist() == [9, 9]

    header, payload = placed(RecordColumns(value=binary(b"k"), base_timestamp=9))
    assert to_user_batch(header, payload, "t", 0, 0)["key"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, [101, 104]), (101, [101, 104]), (102, [104]), (104, [104]), (105, []), (110, [])],
)
def test_rows_begin_at_the_offset_asked_for_across_gaps(start: int, expected: list[int]) -> None:
    deltas = pa.array([1, 4], pa.int32())
    header, payload = placed(
        RecordColumns(value=binary(b"b", b"e"), offset_delta=deltas, base_timestamp=1),
        last_offset_delta=9,
    )
    rows = to_user_batch(header, payload, "t", 0, start)
    assert rows["offset"].to_pylist() == expected
    assert rows["value"].to_pylist() == [b"b", b"e"][2 - len(expected) :]
    assert header.next_offset == 110


def test_offsets_and_times_line_up_with_the_stored_columns(rich: RecordColumns) -> None:
    header, payload = placed(rich, 2**40)
    columns = decode_columns(header, payload)
    assert offsets(header, columns).equals(pa.array(range(2**40, 2**40 + 4), pa.int64()))
    assert timestamps(header, columns).to_pylist() == [10, 30, 20, 10]


def test_the_leaders_time_hides_the_producers(rich: RecordColumns) -> None:
    header, payload = placed(rich)
    stamped = header._replace(flags=header.flags | FLAG_LOG_APPEND_TIME, append_timestamp=77)
    rows = to_user_batch(stamped, payload, "t", 0, 0)
    assert rows["timestamp"].to_pylist() == [77] * 4
    assert rows["timestamp_type"].to_pylist() == [1] * 4


def test_a_batch_without_records_has_no_rows() -> None:
    header, payload = placed(RecordColumns(), last_offset_delta=3)
    rows = to_user_batch(header, payload, "t", 0, 0)
    assert (rows.num_rows, rows.schema) == (0, RECORD_SCHEMA)
    assert decode_columns(header, payload).num_rows == 0


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 70_000])
def test_constant_columns_are_as_long_as_the_batch(count: int) -> None:
    header, payload = placed(RecordColumns(value=binary(*[b""] * count), base_timestamp=1))
    rows = to_user_batch(header, payload, "t", 5, 0)
    rows.validate(full=True)
    assert rows.num_rows == count
    for name, constant in (("topic", "t"), ("partition", 5), ("timestamp_type", 0)):
        assert rows[name].unique().to_pylist() == [constant]
    assert rows["key"].null_count == count
    assert rows["headers"].null_count == 0


@pytest.mark.parametrize("count", [1, 3, 70_000])
def test_batches_that_share_columns_have_each_its_own(count: int) -> None:
    for topic, partition, time, base in [("a", 0, 5, 0), ("b", 0, 5, 9), ("b", 1, 6, 0)]:
        values = pa.array([b"v"] * count, pa.binary())
        raw = b"".join(build_batch(RecordColumns(value=values, base_timestamp=time)))
        for late in (False, True):
            header = stamp_header(
                check_batch(raw),
                base_offset=base,
                leader_epoch=1,
                append_timestamp=time + 10,
                durable_offset=0,
                log_append_time=late,
            )
            rows = to_user_batch(header, raw[HEADER_BYTES:], topic, partition, 0)
            assert rows["offset"].to_pylist() == list(range(base, base + count))
            assert rows["topic"].to_pylist() == [topic] * count
            assert rows["partition"].to_pylist() == [partition] * count
            assert rows["timestamp"].to_pylist() == [time + 10 * late] * count
            assert rows["timestamp_type"].to_pylist() == [int(late)] * count
            assert rows["key"].null_count == len(rows["headers"]) == count


@pytest.mark.parametrize("compression", list(Compression))
def test_a_payload_at_an_odd_address_is_read(compression: Compression) -> None:
    columns = RecordColumns(
        value=pa.array([b"again"] * 100, pa.binary()), timestamp=pa.array(range(100), pa.int64())
    )
    header, payload = placed(columns, compression=compression)
    shifted = memoryview(b"xyz" + payload)[3:]
    rows = to_user_batch(header, shifted, "t", 0, 150)
    rows.validate(full=True)
    assert rows["timestamp"].to_pylist() == list(range(50, 100))
    assert rows["value"].to_pylist() == [b"again"] * 50


def test_values_are_read_where_they_lie() -> None:
    header, payload = placed(RecordColumns(value=binary(b"v" * 5000), base_timestamp=1))
    before = pa.total_allocated_bytes()
    columns = decode_columns(header, payload)
    assert columns["value"][0].as_buffer().size == 5000
    assert pa.total_allocated_bytes() - before < 1000


@pytest.mark.parametrize("base_offset", [-1, -(2**63), 2**63 - 1, 2**63 - 4])
def test_a_batch_without_a_place_in_a_log_has_no_offsets(
    rich: RecordColumns, base_offset: int
) -> None:
    header, payload = placed(rich, base_offset)
    with pytest.raises(CorruptBatchError, match="no place in a log"):
        to_user_batch(header, payload, "t", 0, 0)


@pytest.mark.parametrize("length", [0, 1, 8, 100])
def test_a_payload_of_another_length_is_refused(batch: bytes, length: int) -> None:
    with pytest.raises(CorruptBatchError, match="bytes, not"):
        decode_columns(decode_header(batch), batch[128 : 128 + length])


@pytest.mark.parametrize(
    ("needle", "replacement", "reason"),
    [
        ((0, 1, 3, 3), (0, 9, 3, 3), "damaged"),  # offsets of the values
        ((0, 1, 3, 3), (0, 1, -7, 3), "damaged"),
    ],
)
def test_offsets_that_lead_out_of_the_column_are_refused(
    batch: bytes, forge: Forge, needle: tuple[int, ...], replacement: tuple[int, ...], reason: str
) -> None:
    old, new = (pa.array(n, pa.int32()).buffers()[1].to_pybytes() for n in (needle, replacement))
    assert batch.count(old) == 1
    hostile = forge(batch[128:].replace(old, new))
    header = check_batch(hostile)
    with pytest.raises(CorruptBatchError, match=reason):
        decode_columns(header, hostile[128:])


def test_header_names_that_are_not_utf8_are_refused(batch: bytes, forge: Forge) -> None:
    assert batch.count("ü".encode()) == 1
    hostile = forge(batch[128:].replace("ü".encode(), b"\xff\xff"))
    with pytest.raises(CorruptBatchError, match="UTF8"):
        decode_columns(check_batch(hostile), hostile[128:])


@pytest.mark.parametrize("hostile", [[5, 31], [-1, 5], [5, -(2**63)]])
def test_times_beyond_the_headers_are_refused(hostile: list[int]) -> None:
    honest = RecordColumns(value=binary(b"a", b"b"), timestamp=pa.array([5, 30], pa.int64()))
    header, payload = placed(honest)
    old, new = (pa.array(n, pa.int64()).buffers()[1].to_pybytes() for n in ([5, 30], hostile))
    assert payload.count(old) == 1
    with pytest.raises(CorruptBatchError, match="timestamp"):
        decode_columns(header, payload.replace(old, new))


@pytest.mark.parametrize("hostile", [[4, 1], [1, 1], [-1, 4], [1, 5]])
def test_offset_deltas_out_of_order_or_bounds_are_refused(hostile: list[int]) -> None:
    deltas = pa.array([1, 4], pa.int32())
    header, payload = placed(
        RecordColumns(value=binary(b"b", b"e"), offset_delta=deltas, base_timestamp=1)
    )
    old, new = (pa.array(n, pa.int32()).buffers()[1].to_pybytes() for n in ([1, 4], hostile))
    assert payload.count(old) == 1
    with pytest.raises(CorruptBatchError, match="offset delta"):
        decode_columns(header, payload.replace(old, new))


def test_a_frame_that_hides_another_payload_is_refused() -> None:
    values = RecordColumns(value=pa.array([b"again"] * 100, pa.binary()), base_timestamp=1)
    header, payload = placed(values, compression=Compression.ZSTD)
    more = header._replace(record_count=101, last_offset_delta=100)
    with pytest.raises(CorruptBatchError):
        decode_columns(more, payload)
