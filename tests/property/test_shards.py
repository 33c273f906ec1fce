"""Many batches built at once are, byte for byte, those that are built one by one."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import InvalidTimestampError, RecordTooLargeError
from ray_stream.records import shards
from ray_stream.records.batch import check_batch
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.gathered import Gathered
from ray_stream.records.header import FLAG_KEY, FLAG_VALUE, LENGTH_MAX, stamp_producer
from ray_stream.records.shards import ShardColumn, build_shards

np = pytest.importorskip("numpy")

CELLS = st.binary(max_size=20)
RUNS = st.lists(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=7), min_size=1, max_size=9)


def column(flag: int, cells: list[bytes]) -> ShardColumn:
    lengths = np.array([len(cell) for cell in cells], np.int64)
    return ShardColumn(flag, lengths, memoryview(b"".join(cells)))


@given(RUNS, st.booleans(), st.booleans(), st.integers(0, 2**45))
def test_batches_are_the_same_bytes_as_the_builders(
    runs: list[list[tuple[bytes, bytes]]], has_values: bool, inline: bool, timestamp: int
) -> None:
    rows = [row for run in runs for row in run]
    columns = [column(FLAG_KEY, [key for key, _ in rows])]
    if has_values:
        columns.append(column(FLAG_VALUE, [value for _, value in rows]))
    stops = np.cumsum([len(run) for run in runs])
    starts = stops - [len(run) for run in runs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "INLINE_BYTES", 1 << 20 if inline else 0)
        built = build_shards(columns, starts, stops, timestamp)
    for number, (run, part) in enumerate(zip(runs, built, strict=True)):
        assert isinstance(part, Gathered) is not inline
        first = part.pieces[0] if isinstance(part, Gathered) else part
        stamp_producer(first, producer_id=7, producer_epoch=3, base_sequence=number)  # type: ignore[arg-type]
        expected = build_batch(
            RecordColumns(
                key=pa.array([key for key, _ in run], pa.binary()),
                value=pa.array([value for _, value in run], pa.binary()) if has_values else None,
                base_timestamp=timestamp,
            ),
            producer_id=7,
            producer_epoch=3,
            base_sequence=number,
        )
        assert bytes(part) == b"".join(expected)
        assert check_batch(bytes(part)).record_count == len(run)


def test_what_no_batch_may_be_is_refused() -> None:
    one = column(FLAG_VALUE, [b"value"])
    begin, end = np.array([0]), np.array([1])
    with pytest.raises(InvalidTimestampError):
        build_shards([one], begin, end, -1)
    huge = ShardColumn(FLAG_VALUE, np.array([LENGTH_MAX]), memoryview(b""))
    with pytest.raises(RecordTooLargeError):
        build_shards([huge], begin, end, 0)
