"""Bounded reads: what lies between two places, and nothing else."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client.reading import read, read_batches
from ray_stream.clock import SystemClock
from ray_stream.records.schema import RECORD_SCHEMA
from tests.unit.client.threads import ThreadedServices

CLOCK = SystemClock()


@pytest.fixture
def services() -> Iterator[ThreadedServices]:
    """Topic `t`: two partitions, three batches of ten in each, at the seconds 1, 2 and 3."""

    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make("t", 2)
        for number in range(2):
            for second in range(3):
                values = [b"%d" % one for one in range(10 * second, 10 * second + 10)]
                cluster.append("t", number, values, timestamp=1_000 * (second + 1))

    with ThreadedServices() as made:
        made.do(work)
        yield made


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def ranges(table: Any) -> dict[int, tuple[int, int]]:  # noqa: ANN401 - a pyarrow.Table
    found: dict[int, list[int]] = {}
    for row in table.select(["partition", "offset"]).to_pylist():
        found.setdefault(row["partition"], []).append(row["offset"])
    for offsets in found.values():
        assert offsets == list(range(offsets[0], offsets[-1] + 1))
    return {number: (offsets[0], offsets[-1] + 1) for number, offsets in found.items()}


def test_the_default_is_all_that_there_is_by_partition_and_offset(
    services: ThreadedServices,
) -> None:
    table = read(services, CLOCK, "t")
    assert table.schema.equals(RECORD_SCHEMA)
    assert table["partition"].to_pylist() == [0] * 30 + [1] * 30
    assert ranges(table) == {0: (0, 30), 1: (0, 30)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 5, "end": 15}, {0: (5, 15), 1: (5, 15)}),
        ({"start": at(2)}, {0: (10, 30), 1: (10, 30)}),
        ({"start": at(2), "end": at(3)}, {0: (10, 20), 1: (10, 20)}),
        ({"end": at(99)}, {0: (0, 30), 1: (0, 30)}),
        ({"start": at(99)}, {}),
        ({"start": "latest"}, {}),
        ({"end": "earliest"}, {}),
        ({"start": 20, "end": 10}, {}),
        ({"start": 30}, {}),
        ({"partitions": [1], "start": 25}, {1: (25, 30)}),
        ({"partitions": []}, {}),
        ({"start": {0: 5, 1: at(3)}}, {0: (5, 30), 1: (20, 30)}),
        ({"start": {1: 5}}, {1: (5, 30)}),
        ({"end": {1: 5}}, {0: (0, 30), 1: (0, 5)}),
    ],
    ids=str,
)
def test_every_form_of_start_and_end_is_understood(
    services: ThreadedServices, options: dict[str, Any], expected: dict[int, tuple[int, int]]
) -> None:
    assert ranges(read(services, CLOCK, "t", **options)) == expected


def test_what_is_written_after_the_call_is_left_out(services: ThreadedServices) -> None:
    batches = read_batches(services, CLOCK, "t", partitions=[0])
    services.do(lambda cluster: cluster.append("t", 0, [b"late"]))
    assert sum(batch.num_rows for batch in batches) == 30


def test_a_limit_of_bytes_ends_the_read_at_a_batch(services: ThreadedServices) -> None:
    size = services.do(lambda cluster: len(cluster.partition("t").batches[0]))
    for max_bytes, rows in ((1, 10), (size, 10), (size + 1, 20)):
        table = read(services, CLOCK, "t", partitions=[0], max_bytes=max_bytes)
        assert table.num_rows == rows


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"topic": "no"}, errors.UnknownTopicOrPartitionError),
        ({"topic": ""}, errors.InvalidTopicError),
        ({"partitions": [2]}, errors.UnknownTopicOrPartitionError),
        ({"partitions": "0"}, errors.InvalidArgumentError),
        ({"partitions": 0}, errors.InvalidArgumentError),
        ({"start": 31}, errors.OffsetOutOfRangeError),
        ({"end": 31}, errors.OffsetOutOfRangeError),
        ({"start": -1}, errors.InvalidArgumentError),
        ({"start": "soon"}, errors.InvalidArgumentError),
        ({"end": 1.5}, errors.InvalidArgumentError),
        ({"start": {7: 0}}, errors.UnknownTopicOrPartitionError),
        ({"end": {7: 0}}, errors.InvalidArgumentError),
        ({"max_bytes": 0}, errors.InvalidArgumentError),
        ({"timeout": -1}, errors.InvalidArgumentError),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_before_the_first_batch(
    services: ThreadedServices, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_batches(services, CLOCK, **{"topic": "t", **options})


def test_damage_ends_the_read_with_its_range(services: ThreadedServices) -> None:
    damage = errors.CorruptRecordError("t", 0, 10, 20, "checksum")

    def harm(cluster: Any) -> None:  # noqa: ANN401
        cluster.partition("t").damage = damage
        cluster.partition("t").damage_offset = 10

    services.do(harm)
    with pytest.raises(errors.CorruptRecordError) as raised:
        read(services, CLOCK, "t")
    assert raised.value.args == damage.args


def test_a_leader_that_falls_silent_ends_the_read_in_time(services: ThreadedServices) -> None:
    services.silent["fetch"] = None
    batches = read_batches(services, CLOCK, "t", timeout=0.3)
    begin = time.monotonic()
    with pytest.raises(errors.TimeoutExpiredError):
        next(batches)
    assert time.monotonic() - begin < 1.3
