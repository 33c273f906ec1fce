"""From rows to batches and back: every record once, in its partition, in order, byte for byte."""

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ray_stream.client import columns as columns_module
from ray_stream.client.batch import Batch
from ray_stream.client.batching_core import Batcher
from ray_stream.client.columns import Columns
from ray_stream.client.partitioner import partition_of_key
from ray_stream.client.rows import FULL, KEYED, PLAIN, OpenRows, widened
from ray_stream.config import TopicConfig
from ray_stream.metadata.commands import PartitionMetadata, TopicMetadata
from ray_stream.records.batch import check_batch
from ray_stream.records.header import HEADER_BYTES, Compression
from ray_stream.records.reader import to_user_batch

Record = tuple[bytes | None, bytes | None, int | None, int | None, list[Any] | None]

RECORDS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=6),
        st.none() | st.binary(max_size=40),
        st.none() | st.integers(0, 3),
        st.none() | st.integers(0, 2**40),
        st.none()
        | st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=3),
    ),
    min_size=1,
    max_size=60,
)
STAMP = 77


def topic(partitions: int, max_batch_bytes: int) -> TopicMetadata:
    config = TopicConfig(max_message_bytes=1_000, max_batch_bytes=max_batch_bytes)
    served = [PartitionMetadata(number, 1, 1, "h", [1], [1], "") for number in range(partitions)]
    return TopicMetadata("t", "id", 1, False, config, 0, served)


def decoded(batch: Batch) -> list[tuple[Any, ...]]:
    raw = batch.bytes()
    header = check_batch(raw)._replace(base_offset=0)
    rows = to_user_batch(header, memoryview(raw)[HEADER_BYTES:], "t", batch.partition, 0)
    return [
        (row["key"], row["value"], row["timestamp"], row["headers"]) for row in rows.to_pylist()
    ]


@given(
    RECORDS,
    st.integers(4, 6),
    st.sampled_from([1_500, 64 * 2**20]),
    st.sampled_from(list(Compression)),
    st.integers(0, 2**32),
)
def test_rows_become_batches_that_hold_them(
    records: list[Record], partitions: int, max_batch_bytes: int, compression: int, seed: int
) -> None:
    described = topic(partitions, max_batch_bytes)
    rows = OpenRows(described, FULL, 10**6, 10**6, 5, STAMP)
    told: list[int] = []
    for number, record in enumerate(records):
        rows.rows.extend((*record, lambda *_, number=number: told.append(number)))
    rows.take()
    columns = rows.columns()
    sizes = [
        len(key or b"")
        + len(value or b"")
        + sum(len(name.encode()) + len(content or b"") for name, content in headers or [])
        for key, value, _, _, headers in records
    ]
    assert columns.sizes().tolist() == [size or 1 for size in sizes]

    batches = Batcher(1_000, Compression(compression), random.Random(seed)).build(
        described, columns
    )
    assert sum(batch.record_bytes for batch in batches) == sum(size or 1 for size in sizes)
    assert sum(batch.record_count for batch in batches) == len(records)
    placed: dict[int, list[tuple[Any, ...]]] = {}
    for batch in batches:
        placed.setdefault(batch.partition, []).extend(decoded(batch))
        assert len(batch.bytes()) <= max_batch_bytes
        assert [row for row, _ in batch.callbacks] == list(range(batch.record_count))
    keyless = {batch.partition for batch in batches} - {
        partition_for(record, partitions) for record in records
    }
    assert len(keyless) <= 1, "keyless records of one batch stay together"
    expected: dict[int, list[tuple[Any, ...]]] = {}
    where = keyless.pop() if keyless else None
    for record in records:
        key, value, _, timestamp, headers = record
        place = partition_for(record, partitions)
        row = (key, value, STAMP if timestamp is None else timestamp, headers or [])
        expected.setdefault(place if place is not None else -1, []).append(row)
    if where is not None:
        assert placed[where] == expected.pop(-1)
        del placed[where]
        assert placed == expected
    elif -1 not in expected:
        assert placed == expected


def partition_for(record: Record, partitions: int) -> int | None:
    key, _, partition, _, _ = record
    if partition is not None:
        return partition
    return None if key is None else partition_of_key(key, partitions)


@given(st.lists(st.binary(max_size=5), max_size=20), st.sampled_from([PLAIN, KEYED]))
def test_records_keep_their_cells_when_others_need_more(values: list[bytes], width: int) -> None:
    flat: list[Any] = []
    for value in values:
        flat += (value,) if width == PLAIN else (b"k", value)
    wide = widened(flat, width, FULL)
    key = None if width == PLAIN else b"k"
    assert [tuple(wide[start : start + FULL]) for start in range(0, len(wide), FULL)] == [
        (key, value, None, None, None, None) for value in values
    ]


@given(st.lists(st.none() | st.binary(max_size=9)), st.data())
def test_a_slice_of_columns_has_the_sizes_of_its_rows(
    values: list[bytes | None], data: st.DataObject
) -> None:
    headers = [[("a", value)] * (index % 3) for index, value in enumerate(values)]
    columns = Columns(
        key=None,
        value=pa.array(values, pa.binary()),
        timestamp=None,
        headers=pa.array(headers, pa.map_(pa.string(), pa.binary())),
        partition=None,
        base_timestamp=0,
        created_ms=0,
    )
    window_rows = data.draw(st.integers(1, 5))
    sizes = columns.sizes().tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "_WINDOW_ROWS", window_rows)
        windows = [size for _, window in columns.size_windows() for size in window.tolist()]
        assert windows == sizes
        begin, limit = 0, data.draw(st.integers(1, 60))
        while begin < len(sizes):
            stop, size = columns.run_of_bytes(begin, limit)
            assert size == sum(sizes[begin:stop])
            assert stop > begin
            assert size <= limit or stop == begin + 1
            assert stop == len(sizes) or size + sizes[stop] > limit
            begin = stop
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    assert columns.slice(start, stop).sizes().tolist() == columns.sizes().tolist()[start:stop]


def test_much_for_one_partition_is_several_batches() -> None:
    """Keyed records are built for all partitions at once, so one key can have all of it."""
    described = topic(4, 64 * 2**20)
    rows = OpenRows(described, KEYED, 10**6, 10**6, 5, STAMP)
    for number in range(200):
        rows.rows.extend((b"key", b"%0100d" % number))
    rows.take()
    batches = Batcher(1_000, Compression.NONE, random.Random(1)).build(described, rows.columns())
    assert len({batch.partition for batch in batches}) == 1
    assert len(batches) > 5
    assert max(batch.record_bytes for batch in batches) <= 2_200
    values = [value for batch in batches for _, value, _, _ in decoded(batch)]
    assert values == [b"%0100d" % number for number in range(200)]


@given(
    st.sampled_from([PLAIN, KEYED, FULL]),
    st.none() | st.binary(max_size=6),
    st.none() | st.binary(max_size=40),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 2**40),
    st.sampled_from([None, [], [("name", b"value")]]),
    st.integers(0, 2**32),
)
def test_a_record_alone_becomes_the_batch_that_its_columns_would_become(
    width: int,
    key: bytes | None,
    value: bytes | None,
    partition: int | None,
    timestamp: int | None,
    headers: list[tuple[str, bytes]] | None,
    seed: int,
) -> None:
    described = topic(4, 64 * 2**20)
    rows = OpenRows(described, width, 10**6, 10**6, 5, STAMP)
    row = (key, value, partition, timestamp, headers, print)
    rows.rows += row if width == FULL else row[2 - width : 2]
    rows.generation = 3
    rows.take()
    single = rows.single()
    if headers and width == FULL:
        assert single is None
        return
    if value is None and (key is None or width == PLAIN):
        assert single is None
        return
    assert single is not None
    batcher = Batcher(1_000, Compression.NONE, random.Random(seed))
    found = batcher.build_single(described, single, batcher.choose(described, single))
    (wanted,) = Batcher(1_000, Compression.NONE, random.Random(seed)).build(
        described, rows.columns()
    )
    assert found.bytes() == wanted.bytes()
    for name in (
        "partition",
        "record_count",
        "record_bytes",
        "created_ms",
        "generation",
        "callbacks",
    ):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.timestamp_of(0) == wanted.timestamp_of(0)


def test_two_records_are_not_alone() -> None:
    rows = OpenRows(topic(4, 1_000), PLAIN, 10**6, 10**6, 5, STAMP)
    rows.rows += (b"a", b"b")
    rows.take()
    assert rows.single() is None


@pytest.mark.parametrize("alone", [True, False])
def test_a_topic_made_anew_with_fewer_partitions_gets_no_record_for_another(alone: bool) -> None:
    for seed in range(20):
        batcher = Batcher(1_000_000, Compression.NONE, random.Random(seed))
        for described in (topic(50, 10_000), structs.replace(topic(2, 10_000), topic_id="new")):
            rows = OpenRows(described, PLAIN, 1_000, 1_000, 0, 0)
            rows.rows += [b"value"]
            rows.take()
            single = rows.single()
            assert single is not None
            if alone:
                batch = batcher.build_single(described, single, batcher.choose(described, single))
            else:
                (batch,) = batcher.build(described, rows.columns())
            assert batch.partition < len(described.partitions)


@given(
    st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=9)), min_size=1, max_size=80),
    st.integers(2, 40),
    st.integers(1, 300),
    st.sampled_from([400, 64 * 2**20]),
)
def test_keyed_rows_are_shared_out_by_key_in_their_order(
    records: list[tuple[bytes, bytes]], partitions: int, batch_size: int, max_batch_bytes: int
) -> None:
    described = topic(partitions, max_batch_bytes)
    rows = OpenRows(described, KEYED, 10**6, 10**6, 5, STAMP)
    for record in records:
        rows.rows.extend(record)
    rows.take()
    batcher = Batcher(batch_size, Compression.NONE, random.Random(0))
    batches = batcher.build(described, rows.columns())
    placed: dict[int, list[tuple[Any, ...]]] = {}
    for batch in batches:
        assert batch.size == len(batch.bytes())
        assert batch.size <= max_batch_bytes or batch.record_count == 1
        found = decoded(batch)
        assert batch.record_count == len(found)
        assert batch.record_bytes == sum(len(key) + len(value) or 1 for key, value, _, _ in found)
        placed.setdefault(batch.partition, []).extend(found)
    expected: dict[int, list[tuple[Any, ...]]] = {}
    for key, value in records:
        place = partition_of_key(key, partitions)
        expected.setdefault(place, []).append((key, value, STAMP, []))
    assert placed == expected
