"""Batches under arbitrary records and arbitrary bytes."""

import struct
import tracemalloc

import crc32c
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import RayStreamError
from ray_stream.records.batch import check_batch, split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.compression import compress
from ray_stream.records.header import (
    COLUMN_FLAGS,
    BatchHeader,
    Compression,
    decode_header,
    encode_header,
)
from ray_stream.records.reader import decode_columns, to_user_batch

BINARY = pa.binary()
MAP = pa.map_(pa.string(), BINARY)
NUMBERS = [0, 1, -1, 7, 8, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63)]

POOLS: list[pa.MemoryPool] = []
"""Kept to the end: an Arrow buffer that outlives its pool crashes the interpreter."""

optional_bytes = st.none() | st.binary(max_size=40)
headers = st.lists(st.tuples(st.text(max_size=5), optional_bytes), max_size=3)
record = st.tuples(optional_bytes, optional_bytes, st.integers(0, 2**62), headers)
compressions = st.sampled_from(list(Compression))


@st.composite
def record_columns(draw: st.DrawFn) -> RecordColumns:
    """Columns that are there or not, whole arrays and slices of longer ones."""
    rows = draw(st.lists(record, min_size=1, max_size=20))
    skipped = draw(st.integers(0, len(rows) - 1))
    deltas = draw(
        st.none()
        | st.sets(st.integers(0, 2**31 - 1), min_size=len(rows), max_size=len(rows)).map(sorted)
    )
    keys, values, times, all_headers = zip(*rows, strict=True)

    def column(content: object, arrow_type: pa.DataType, *, there: bool = True) -> pa.Array | None:
        return pa.array(content, arrow_type).slice(skipped) if there else None

    return RecordColumns(
        key=column(keys, BINARY, there=draw(st.booleans())),
        value=column(values, BINARY),
        timestamp=column(times, pa.int64(), there=draw(st.booleans())),
        headers=column(all_headers, MAP, there=draw(st.booleans())),
        offset_delta=None if deltas is None else column(deltas, pa.int32()),
        base_timestamp=draw(st.integers(0, 2**62)),
    )


def rows_of(columns: RecordColumns) -> list[dict[str, object]]:
    count = columns.record_count

    def content(array: pa.Array | None, default: list[object]) -> list[object]:
        return default if array is None else array.to_pylist()

    return [
        {"key": key, "value": value, "timestamp": time, "headers": some, "offset": offset}
        for key, value, time, some, offset in zip(
            content(columns.key, [None] * count),
            content(columns.value, [None] * count),
            content(columns.timestamp, [columns.base_timestamp] * count),
            content(columns.headers, [[]] * count),
            content(columns.offset_delta, list(range(count))),
            strict=True,
        )
    ]


@given(columns=record_columns(), compression=compressions, start=st.integers(0, 25))
def test_records_come_back_as_they_were_from_every_offset_on(
    columns: RecordColumns, compression: Compression, start: int
) -> None:
    batch = b"".join(build_batch(columns, compression=compression))
    check_batch(batch, produced=columns.offset_delta is None)

    ((header, payload),) = split_batches(batch)
    rows = to_user_batch(header._replace(base_offset=0), payload, "t", 1, start)

    rows.validate(full=True)
    names = ["key", "value", "timestamp", "headers", "offset"]
    assert rows.select(names).to_pylist() == [
        row
        for row in rows_of(columns)
        if row["offset"] >= start  # type: ignore[operator]
    ]


def sealed(header: BatchHeader, payload: bytes, uncompressed_length: int) -> bytes:
    """A batch whose checksums are right, whatever is in it."""
    header = header._replace(
        length=len(payload),
        uncompressed_length=uncompressed_length,
        payload_crc=crc32c.crc32c(payload),
    )
    return encode_header(header) + payload


def read_or_refuse(batch: bytes) -> pa.RecordBatch | None:
    """Everything that a leader and a reader do with bytes; None when one of them refuses."""
    try:
        header = check_batch(batch, produced=False)
        columns = decode_columns(header, memoryview(batch)[128:])
        rows = to_user_batch(header._replace(base_offset=5), batch[128:], "t", 0, 6)
    except RayStreamError:
        return None
    assert columns.num_rows == header.record_count
    rows.validate(full=True)
    rows.to_pylist()
    return rows


@given(
    payload=st.binary(max_size=400),
    flags=st.integers(0, 2**32 - 1) | st.integers(0, 31).map(lambda bits: bits << 19),
    count=st.integers(0, 40) | st.integers(0, 2**31 - 1),
    compression=compressions,
    uncompressed_length=st.integers(0, 2000),
)
def test_random_bytes_under_right_checksums_are_refused_by_name(
    payload: bytes, flags: int, count: int, compression: Compression, uncompressed_length: int
) -> None:
    header = BatchHeader(
        compression=compression,
        flags=flags,
        record_count=count,
        last_offset_delta=max(count - 1, 0),
        base_timestamp=1,
        max_timestamp=1,
    )
    if compression == Compression.NONE:
        uncompressed_length = len(payload)
    rows = read_or_refuse(sealed(header, payload, uncompressed_length))
    assert rows is None or count == 0


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid batch, its payload and counts changed in hostile ways, its checksums made right."""
    pieces = build_batch(draw(record_columns()))
    header, payload = decode_header(pieces[0]), bytearray(b"".join(pieces[1:]))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(payload)))
        match draw(st.sampled_from(["bit", "i64", "i32", "cut", "grow", "count", "flag"])):
            case "bit" if position < len(payload):
                payload[position] ^= 1 << draw(st.integers(0, 7))
            case "i64" if (at := position // 8 * 8) + 8 <= len(payload):
                struct.pack_into("<q", payload, at, draw(st.sampled_from(NUMBERS)))
            case "i32" if (at := position // 4 * 4) + 4 <= len(payload):
                number = draw(st.sampled_from([n for n in NUMBERS if -(2**31) <= n < 2**31]))
                struct.pack_into("<i", payload, at, number)
            case "cut":
                del payload[position:]
            case "grow":
                payload[position:position] = bytes(draw(st.sampled_from([1, 8, 64])))
            case "count":
                count = draw(st.integers(0, 2**31 - 2))
                header = header._replace(record_count=count, last_offset_delta=count)
            case "flag":
                flag = draw(st.sampled_from([1 << bit for bit in range(16, 24)]))
                header = header._replace(flags=header.flags ^ flag)
            case _:
                pass
    content, compression = bytes(payload), draw(compressions)
    if compression != Compression.NONE:
        content = compress(content, compression)
    return sealed(header._replace(compression=compression), content, len(payload))


@given(batch=mutated())
def test_hostile_messages_are_read_whole_or_refused_by_name_in_bounded_memory(
    batch: bytes,
) -> None:
    header = decode_header(batch) if _believable(batch) else None
    before = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(before)
    POOLS.append(watched)
    pa.set_memory_pool(watched)
    tracemalloc.start()
    try:
        rows = read_or_refuse(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    # a number in the batch may be 2**63; what is allocated goes by the bytes that there are
    assert peak < 2**20
    assert watched.max_memory() < 2**20
    if rows is not None:
        assert header is not None
        assert header.record_count == 0 or header.flags & COLUMN_FLAGS


def _believable(batch: bytes) -> bool:
    try:
        decode_header(batch)
    except RayStreamError:
        return False
    return True


@given(first=record_columns(), second=record_columns(), data=st.data())
def test_a_damaged_byte_in_a_run_of_batches_is_found_and_what_is_before_it_is_read(
    first: RecordColumns, second: RecordColumns, data: st.DataObject
) -> None:
    good = b"".join(build_batch(first))
    bad = bytearray(b"".join(build_batch(second)))
    position = data.draw(st.integers(0, len(bad) - 1))
    bad[position] ^= data.draw(st.integers(1, 255))

    walk = split_batches(good + bad)

    assert next(walk)[0] == decode_header(good)
    try:
        next(walk)
    except RayStreamError:
        return
    raise AssertionError(f"byte {position} was changed and nobody noticed")
