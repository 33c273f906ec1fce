"""A record that travels alone: the bytes and the checks are those of columns."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import CorruptBatchError, InvalidTimestampError
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import HEADER_BYTES, Compression, decode_header, stamp_producer
from ray_stream.records.reader import decode_columns
from ray_stream.records.single import build_single, decode_single, is_single

CELLS = st.none() | st.binary(max_size=40)
BINARY = pa.binary()


def column(cell: bytes | None) -> pa.Array | None:
    return None if cell is None else pa.array([cell], BINARY)


def as_columns(key: bytes | None, value: bytes | None, timestamp: int) -> bytes:
    columns = RecordColumns(
        key=column(key), value=pa.array([value], BINARY), base_timestamp=timestamp
    )
    return b"".join(build_batch(columns))


def stamped(batch: bytearray) -> bytes:
    """As of no producer."""
    stamp_producer(batch, producer_id=-1, producer_epoch=-1, base_sequence=-1)
    return bytes(batch)


@given(CELLS, CELLS, st.integers(0, 2**62))
def test_the_bytes_are_those_of_columns(
    key: bytes | None, value: bytes | None, timestamp: int
) -> None:
    if key is None and value is None:
        return
    batch = stamped(build_single(key, value, timestamp))
    assert batch == as_columns(key, value, timestamp)
    header = check_batch(batch)
    assert is_single(header)
    assert decode_single(header, batch[HEADER_BYTES:]) == (key, value)


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(InvalidTimestampError):
        build_single(None, b"value", -1)


@pytest.mark.parametrize(
    "columns",
    [
        RecordColumns(value=pa.array([b"a", b"b"], BINARY), base_timestamp=1),
        RecordColumns(
            value=pa.array([b"a"], BINARY),
            headers=pa.array([[("h", b"1")]], pa.map_(pa.string(), BINARY)),
            base_timestamp=1,
        ),
        RecordColumns(
            value=pa.array([b"a"], BINARY),
            offset_delta=pa.array([3], pa.int32()),
            base_timestamp=1,
        ),
    ],
    ids=["two records", "headers", "an offset of its own"],
)
def test_what_needs_columns_is_no_single(columns: RecordColumns) -> None:
    assert not is_single(decode_header(b"".join(build_batch(columns))))


def test_neither_is_what_was_compressed() -> None:
    columns = RecordColumns(value=pa.array([bytes(10_000)], BINARY), base_timestamp=1)
    batch = b"".join(build_batch(columns, compression=Compression.LZ4))
    assert not is_single(decode_header(batch))


def test_a_null_is_left_to_columns() -> None:
    batch = as_columns(None, None, 1)
    header = check_batch(batch)
    assert decode_single(header, batch[HEADER_BYTES:]) is None
    assert decode_columns(header, batch[HEADER_BYTES:]).to_pydict() == {"value": [None]}


@given(
    CELLS,
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=3),
    st.integers(-9, 9),
)
def test_of_damage_it_takes_nothing_that_columns_would_refuse(
    key: bytes | None, value: bytes, flips: list[tuple[int, int]], more: int
) -> None:
    """Checksums are not looked at here: whatever gets behind them meets the same checks."""
    batch = stamped(build_single(key, value, 1))
    header = check_batch(batch)
    damaged = bytearray(batch[HEADER_BYTES:])
    for place, bits in flips:
        damaged[place % len(damaged)] ^= bits
    damaged = damaged[:more] if more < 0 else damaged + bytes(more)
    found = decode_single(header, bytes(damaged))
    try:
        columns = decode_columns(header, bytes(damaged))
    except CorruptBatchError:
        assert found is None
        return
    if found is not None:
        cells = {name: columns.column(name)[0].as_py() for name in columns.schema.names}
        assert found == (cells.get("key"), cells.get("value"))
