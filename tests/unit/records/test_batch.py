"""What a log takes in: whole batches that are exactly what they claim to be."""

from collections.abc import Callable

import pyarrow as pa
import pytest

from ray_stream.errors import (
    CorruptBatchError,
    InvalidRecordError,
    InvalidTimestampError,
    RecordTooLargeError,
)
from ray_stream.records.batch import check_batch, split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.control import Marker, MarkerKind, build_control_batch
from ray_stream.records.header import (
    FLAG_CONTROL,
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_LOG_APPEND_TIME,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    HEADER_BYTES,
    Compression,
    PayloadKind,
    decode_header,
    encode_header,
)

Forge = Callable[..., bytes]


def joined(columns: RecordColumns) -> bytes:
    return b"".join(build_batch(columns))


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_a_batch_as_built_is_accepted(batch: bytes, form: Callable[[bytes], memoryview]) -> None:
    header = check_batch(form(batch), batch_bytes_max=len(batch))
    assert (header.record_count, header.last_offset_delta) == (4, 3)
    assert (header.base_timestamp, header.max_timestamp) == (10, 30)


@pytest.mark.parametrize("compression", list(Compression))
def test_every_flipped_bit_of_a_payload_is_detected(compression: Compression) -> None:
    values = pa.array([b"the same again"] * 20, pa.binary())
    columns = RecordColumns(value=values, base_timestamp=1)
    batch = b"".join(build_batch(columns, compression=compression))
    assert decode_header(batch).compression == compression
    for bit in range(8 * HEADER_BYTES, 8 * len(batch)):
        flipped = bytearray(batch)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatchError, match="checksum"):
            check_batch(flipped)


@pytest.mark.parametrize("change", [-1, 1, 8])
def test_bytes_too_few_or_too_many_are_refused(batch: bytes, change: int) -> None:
    wrong = batch[:change] if change < 0 else batch + bytes(change)
    with pytest.raises(CorruptBatchError, match=f"there are {len(batch) + change}"):
        check_batch(wrong)


def test_a_batch_above_the_limit_is_refused_by_its_header_alone(batch: bytes) -> None:
    with pytest.raises(RecordTooLargeError, match=f"{len(batch)} bytes is above"):
        check_batch(batch[:HEADER_BYTES], batch_bytes_max=len(batch) - 1)


@pytest.mark.parametrize(
    "identity",
    [
        {"producer_id": 7},
        {"producer_id": 7, "producer_epoch": 0},
        {"producer_epoch": 0, "base_sequence": 0},
        {"base_sequence": 0},
        {"producer_id": -2, "producer_epoch": -2, "base_sequence": -2},
        {"producer_id": 7, "producer_epoch": 0, "base_sequence": -5},
    ],
)
def test_half_an_identity_is_refused(forge: Forge, identity: dict[str, int]) -> None:
    with pytest.raises(CorruptBatchError, match="all are set, or all are -1"):
        check_batch(forge(**identity))


def test_a_whole_identity_is_accepted(forge: Forge) -> None:
    header = check_batch(forge(producer_id=0, producer_epoch=0, base_sequence=0))
    assert header.producer_id == 0


@pytest.mark.parametrize(
    "times",
    [
        {"base_timestamp": -1},
        {"base_timestamp": -1, "max_timestamp": -1},
        {"max_timestamp": 9},
        {"max_timestamp": -(2**63)},
    ],
)
def test_impossible_times_are_refused(forge: Forge, times: dict[str, int]) -> None:
    with pytest.raises(InvalidTimestampError):
        check_batch(forge(**times))
    with pytest.raises(CorruptBatchError):
        list(split_batches(forge(**times)))


def test_different_times_need_a_column_of_them() -> None:
    batch = joined(RecordColumns(value=pa.array([b"v"], pa.binary()), base_timestamp=5))
    later = encode_header(check_batch(batch)._replace(max_timestamp=6)) + batch[HEADER_BYTES:]
    with pytest.raises(CorruptBatchError, match="no column of them"):
        check_batch(later)


@pytest.mark.parametrize("flag", [FLAG_KEY, FLAG_VALUE, FLAG_TIMESTAMP, FLAG_HEADERS])
def test_a_column_that_the_flags_deny_is_refused(batch: bytes, forge: Forge, flag: int) -> None:
    with pytest.raises(CorruptBatchError):
        check_batch(forge(flags=decode_header(batch).flags & ~flag))


def test_a_column_that_the_flags_invent_is_refused(batch: bytes, forge: Forge) -> None:
    flags = decode_header(batch).flags | FLAG_OFFSET_DELTA
    with pytest.raises(CorruptBatchError):
        check_batch(forge(flags=flags), produced=False)


@pytest.mark.parametrize(
    "counts",
    [
        {"record_count": 3, "last_offset_delta": 2},
        {"record_count": 5, "last_offset_delta": 4},
        {"record_count": 3},
        {"last_offset_delta": 4},
        {"record_count": 2**31 - 1, "last_offset_delta": 2**31 - 2},
        {"record_count": 0},
    ],
)
def test_a_row_count_other_than_the_payloads_is_refused(
    forge: Forge, counts: dict[str, int]
) -> None:
    with pytest.raises(CorruptBatchError):
        check_batch(forge(**counts), produced=False)


@pytest.mark.parametrize("flag", [FLAG_LOG_APPEND_TIME, FLAG_CONTROL, FLAG_OFFSET_DELTA])
def test_a_producer_may_not_send_what_only_a_log_writes(
    batch: bytes, forge: Forge, flag: int
) -> None:
    with pytest.raises(InvalidRecordError, match="log's own"):
        check_batch(forge(flags=decode_header(batch).flags | flag))


def test_a_producer_may_not_send_a_batch_without_records() -> None:
    empty = b"".join(build_batch(RecordColumns(), last_offset_delta=9))
    with pytest.raises(InvalidRecordError, match="without records"):
        check_batch(empty)
    assert check_batch(empty, produced=False).next_offset == 9


def test_rows_without_keys_and_values_are_refused_because_no_byte_bounds_them(
    forge: Forge,
) -> None:
    with pytest.raises(CorruptBatchError, match="neither keys nor values"):
        check_batch(forge(b"", flags=0, record_count=2**31 - 1, last_offset_delta=2**31 - 2))


def test_kafka_payloads_are_refused_from_producers_and_opaque_in_a_log(forge: Forge) -> None:
    opaque = forge(b"anything", payload_kind=PayloadKind.KAFKA_V2, flags=0)
    with pytest.raises(InvalidRecordError, match="Kafka"):
        check_batch(opaque)
    assert check_batch(opaque, produced=False).payload_kind == PayloadKind.KAFKA_V2
    for changes in ({"compression": 1, "flags": 0}, {"flags": FLAG_KEY}):
        wrong = forge(b"anything", payload_kind=PayloadKind.KAFKA_V2, **changes)
        with pytest.raises(CorruptBatchError, match="Kafka payload"):
            check_batch(wrong, produced=False)


def test_batches_one_behind_the_other_are_walked_without_a_copy(batch: bytes) -> None:
    marker = build_control_batch(Marker(MarkerKind.LEADER_CHANGE, 1), timestamp=0)
    buffer = bytearray(batch + marker + batch)

    found = list(split_batches(buffer))

    assert [header.is_control for header, _ in found] == [False, True, False]
    assert all(payload.obj is buffer for _, payload in found)
    assert bytes(found[2][1]) == batch[HEADER_BYTES:]


def test_nothing_is_no_batches() -> None:
    assert list(split_batches(b"")) == []


@pytest.mark.parametrize("cut", [1, 127, 128, 200])
def test_a_walk_hands_out_whole_batches_and_says_where_the_bytes_end(
    batch: bytes, cut: int
) -> None:
    walk = split_batches(batch + batch[:cut])
    assert next(walk)[0].record_count == 4
    with pytest.raises(CorruptBatchError, match="left"):
        next(walk)


def test_a_walk_checks_the_payloads_checksum(batch: bytes) -> None:
    damaged = bytearray(batch)
    damaged[-1] ^= 1
    with pytest.raises(CorruptBatchError, match="payload's checksum"):
        list(split_batches(damaged))
