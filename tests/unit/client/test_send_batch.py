"""`send_batch`: whatever holds records, in one call, with its columns checked."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ray_stream import serializers
from ray_stream.client import tabular
from ray_stream.client.partitioner import partition_of_key
from ray_stream.client.tabular import Reading, columns_of
from ray_stream.errors import (
    BufferFullError,
    InvalidArgumentError,
    InvalidTimestampError,
    RayStreamError,
    RecordTooLargeError,
    SchemaError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from ray_stream.records.schema import HEADERS_TYPE
from tests.unit.client.produce_services import Make, ProduceServices

VALUES = [b"a", b"", b"ccc"]


@pytest.mark.parametrize(
    "data",
    [
        VALUES,
        tuple(VALUES),
        ["a", "", "ccc"],
        [bytearray(b"a"), memoryview(b""), "ccc"],
        pa.array(VALUES),
        pa.array(["a", "", "ccc"]),
        pa.array(VALUES, pa.large_binary()),
        pa.array(VALUES, pa.binary_view()),
        pa.array(["a", "", "ccc"], pa.string_view()),
        pa.array(VALUES).dictionary_encode(),
        pa.array([b"zz", *VALUES]).slice(1),
        pa.chunked_array([[b"a"], [], [b"", b"ccc"]], pa.binary()),
        np.array(VALUES),
        np.array(["a", "", "ccc"]),
        np.array(VALUES, dtype=object),
        pa.table({"value": VALUES}),
        pa.record_batch({"value": pa.array(VALUES)}),
        pa.table({"value": pa.chunked_array([[b"a"], [b"", b"ccc"]])}),
        pd.DataFrame({"value": VALUES}),
        pd.DataFrame({"value": ["a", "", "ccc"]}),
        pd.Series(VALUES),
    ],
    ids=lambda data: type(data).__name__,
)
def test_everything_that_holds_values_is_taken(
    services: ProduceServices, producer: Make, data: object
) -> None:
    services.make()
    one = producer()
    one.send_batch("t", data)
    one.flush()
    assert services.values() == VALUES


def test_zeros_inside_numpys_fixed_width_bytes_are_content(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    array = np.array([b"a\0b", b"\0\0c", b"d", b""], dtype="S3")
    one.send_batch("t", array)
    one.send_batch("t", array[::2])
    full = np.array([b"abc", b"def"])
    one.send_batch("t", full)
    full[:] = array[:2] = b"xxx"  # it was copied before
    one.flush()
    assert services.values() == [b"a\0b", b"\0\0c", b"d", b"", b"a\0b", b"d", b"abc", b"def"]


def test_all_four_columns_arrive(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    headers = [[("h", b"1")], [], None]
    table = pa.table(
        {
            "headers": pa.array(headers, HEADERS_TYPE),
            "timestamp": pa.array([5, 6, 7], pa.int32()),
            "key": ["k", None, ""],
            "value": VALUES,
        }
    )
    one.send_batch("t", table)
    one.flush()
    assert [tuple(record)[2:] for record in services.written()] == [
        (b"k", b"a", 5, [("h", b"1")]),
        (None, b"", 6, []),
        (b"", b"ccc", 7, []),
    ]


def test_arrow_timestamps_count_as_milliseconds_and_missing_ones_are_now(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    times = pa.array([1_500_000, None], pa.timestamp("us", "UTC"))
    one.send_batch("t", pa.table({"value": [b"a", b"b"], "timestamp": times}))
    one.flush()
    first, second = services.written()
    assert first.timestamp == 1_500
    assert second.timestamp > 1_600_000_000_000


def test_a_frame_brings_keys_times_and_headers(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    frame = pd.DataFrame(
        {
            "key": ["k", None],
            "value": [b"a", b"b"],
            "timestamp": pd.to_datetime([1_000, 2_000], unit="ms"),
            "headers": [[("h", b"1")], []],
        },
        index=[10, 20],
    )
    one.send_batch("t", frame)
    one.flush()
    assert [tuple(record)[2:] for record in services.written()] == [
        (b"k", b"a", 1_000, [("h", b"1")]),
        (None, b"b", 2_000, []),
    ]


def test_rows_are_split_by_key_as_kafka_does_and_keep_their_order(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=6)
    one = producer(batch_size=2_000)
    keys = [b"key-%d" % (number % 37) for number in range(2_000)]
    values = [b"%d" % number for number in range(2_000)]
    one.send_batch("t", pa.table({"key": keys, "value": values}))
    one.flush()
    records = services.written()
    assert sorted(int(record.value or b"") for record in records) == list(range(2_000))
    for record in records:
        assert record.key == b"key-%d" % (int(record.value or b"") % 37)
        assert record.partition == partition_of_key(record.key, 6)
    for partition in range(6):
        numbers = [int(one.value or b"") for one in records if one.partition == partition]
        assert numbers == sorted(numbers)


def test_rows_without_key_stay_together_for_a_batch(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=6)
    one = producer(batch_size=10_000)
    one.send_batch("t", [b"%0100d" % number for number in range(2_000)])
    one.flush()
    batches = services.topics["t"].batches
    assert len(batches) == 20
    assert len({partition for partition, _, _ in batches}) > 1


def test_one_key_and_one_partition_may_be_given_for_all(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=4)
    one = producer()
    one.send_batch("t", [b"a", b"b"], key=b"UA")
    one.send_batch("t", [b"c"], key="UA")
    one.send_batch("t", [b"d"], key=b"UA", partition=3)
    one.send_batch("t", pa.table({"key": [b"x", b"y"], "value": [b"e", b"f"]}), partition=1)
    one.flush()
    home = partition_of_key(b"UA", 4)
    assert [(r.partition, r.key, r.value) for r in services.written()] == sorted(
        [
            (home, b"UA", b"a"),
            (home, b"UA", b"b"),
            (home, b"UA", b"c"),
            (3, b"UA", b"d"),
            (1, b"x", b"e"),
            (1, b"y", b"f"),
        ]
    )


def test_it_keeps_its_place_among_records_sent_one_at_a_time(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=60_000)
    one.send("t", b"1")
    one.send_batch("t", [b"2", b"3"])
    one.send("t", b"4")
    one.flush()
    assert services.values() == [b"1", b"2", b"3", b"4"]


def test_tombstones_must_be_meant(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    keyed = pa.table({"key": [b"a", b"b"]})
    holed = pa.table({"key": [b"c", b"d"], "value": [b"x", None]})
    with pytest.raises(SchemaError, match="tombstones=True"):
        one.send_batch("t", keyed)
    with pytest.raises(SchemaError, match="row 1 is null"):
        one.send_batch("t", holed)
    with pytest.raises(SchemaError, match="row 0 is null"):
        one.send_batch("t", [None])
    one.send_batch("t", keyed, tombstones=True)
    one.send_batch("t", holed, tombstones=True)
    one.flush()
    assert [(record.key, record.value) for record in services.written()] == [
        (b"a", None),
        (b"b", None),
        (b"c", b"x"),
        (b"d", None),
    ]


def test_nothing_is_fine(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    one.send_batch("t", [])
    one.send_batch("t", pa.table({"value": pa.array([], pa.binary())}))
    one.send_batch("t", np.array([], "S1"))
    one.flush()
    assert services.values() == []


def test_values_of_other_types_go_through_a_serializer(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(value_serializer=serializers.json)
    one.send_batch("t", pa.table({"key": [b"k", b"l"], "value": [1, 2]}))
    one.send_batch("t", np.array([3, 4]))
    one.flush()
    assert services.values() == [b"1", b"2", b"3", b"4"]


BAD: list[tuple[Callable[[], Any], dict[str, Any], type[RayStreamError], str]] = [
    (lambda: pa.table({"value": VALUES, "carrier": VALUES}), {}, SchemaError, "'carrier'"),
    (lambda: pd.DataFrame({"value": VALUES, "dep": [1, 2, 3]}), {}, SchemaError, "'dep'"),
    (lambda: pa.table({"value": [b"x"], "offset": [1]}), {}, SchemaError, "'offset'"),
    (lambda: pa.table([[b"x"], [b"y"]], names=["value", "value"]), {}, SchemaError, "twice"),
    (lambda: pa.table({"value": [1, 2]}), {}, SerializationError, "value_serializer="),
    (lambda: pa.table({"key": [1.5], "value": [b"x"]}), {}, SerializationError, "key_serializer="),
    (lambda: [1, 2], {}, SerializationError, "value_serializer="),
    (lambda: [b"x", "\ud800"], {}, SerializationError, "value_serializer="),
    (lambda: np.array([1, 2]), {}, SerializationError, "value_serializer="),
    (lambda: np.array([[b"x"], [b"y"]]), {}, SchemaError, "2 dimensions"),
    (lambda: pd.DataFrame({"value": [b"x", 5]}), {}, SchemaError, "'value'"),
    (lambda: b"bytes", {}, InvalidArgumentError, "send()"),
    (lambda: "text", {}, InvalidArgumentError, "send()"),
    (lambda: 5, {}, InvalidArgumentError, "int"),
    (lambda: {"value": VALUES}, {}, InvalidArgumentError, "dict"),
    (lambda: iter(VALUES), {}, InvalidArgumentError, "iterator"),
    (
        lambda: pa.table({"value": VALUES, "timestamp": [1, -2, 3]}),
        {},
        InvalidTimestampError,
        "row 1",
    ),
    (
        lambda: pa.table({"value": [b"x"], "timestamp": pa.array([2**64 - 1], pa.uint64())}),
        {},
        InvalidTimestampError,
        "timestamp",
    ),
    (lambda: pa.table({"value": [b"x"], "timestamp": [1.5]}), {}, SchemaError, "double"),
    (lambda: pa.table({"value": [b"x"], "headers": [b"h"]}), {}, SchemaError, "map<string"),
    (lambda: VALUES, {"partition": 9}, UnknownTopicOrPartitionError, "0 to 1"),
    (lambda: VALUES, {"partition": "0"}, InvalidArgumentError, "partition="),
    (lambda: VALUES, {"key": 5}, SerializationError, "int is not bytes"),
    (lambda: pa.table({"key": VALUES, "value": VALUES}), {"key": b"k"}, SchemaError, "one of them"),
    (lambda: [b"x", bytes(1_001)], {}, RecordTooLargeError, "row 1"),
    (
        lambda: pa.table({"value": pa.chunked_array([[b"x"], [b"y", bytes(1_001)]])}),
        {},
        RecordTooLargeError,
        "row 2",
    ),
]


@pytest.mark.parametrize(("make", "options", "error", "said"), BAD)
def test_what_is_no_batch_of_records_is_refused_whole(
    services: ProduceServices,
    producer: Make,
    make: Callable[[], Any],
    options: dict[str, Any],
    error: type[RayStreamError],
    said: str,
) -> None:
    services.make(partitions=2, max_message_bytes=1_000)
    one = producer()
    with pytest.raises(error, match=re.escape(said)):
        one.send_batch("t", make(), **options)
    one.flush()
    assert services.values() == []


def test_a_frames_values_reach_the_serializer_as_they_are(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(value_serializer=serializers.json)
    one.send_batch("t", pd.DataFrame({"value": [{"a": 1}, {"b": 2}]}))
    one.flush()
    assert services.values() == [b'{"a":1}', b'{"b":2}']


def test_a_frames_values_of_several_types_reach_the_serializer(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(value_serializer=serializers.json)
    one.send_batch("t", pd.DataFrame({"value": [1, "x"]}))
    one.flush()
    assert services.values() == [b"1", b'"x"']


def test_masked_values_are_missing(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    with pytest.raises(SchemaError, match="null"):
        one.send_batch("t", np.ma.array([b"a", b"masked"], mask=[False, True]))
    one.flush()
    assert services.values() == []


def test_a_large_numpy_array_is_taken_in_runs_that_arrow_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tabular._ARRAY_BYTES_MAX < 2**31
    monkeypatch.setattr(tabular, "_ARRAY_BYTES_MAX", 10)
    values = [b"%04d" % number for number in range(7)]
    parts = columns_of(np.array(values), Reading(None, None, False, 0))
    assert [part.count for part in parts] == [2, 2, 2, 1]
    assert pa.concat_arrays([part.value for part in parts]).to_pylist() == values


def test_the_row_that_was_not_accepted_is_counted_over_all_chunks(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=4, max_block_ms=20)
    with pytest.raises(BufferFullError, match="rows from 4 on"):
        one.send_batch("t", pa.chunked_array([[b"0", b"1", b"2", b"3"], [b"4", b"5"]]))
    services.open_gate()
    one.flush()
    assert services.values() == [b"0", b"1", b"2", b"3"]


def test_the_row_that_is_null_is_counted_over_all_chunks(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    with pytest.raises(SchemaError, match="row 3 is null"):
        producer().send_batch("t", pa.chunked_array([[b"0", b"1"], [b"2", None]]))
