"""From a time to a record, wherever a time may be typed."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client import times
from ray_stream.client.consumer import Consumer
from ray_stream.client.reading import read
from ray_stream.client.starts import to_ms
from ray_stream.clock import SystemClock
from ray_stream.config import ConsumerConfig
from ray_stream.records.header import FLAG_LOG_APPEND_TIME, Compression, decode_header
from ray_stream.types import TopicPartition
from tests.unit.client.fake_cluster import FakeCluster, empty, restamped, stored
from tests.unit.client.threads import ThreadedServices

CLOCK = SystemClock()
T0, T1, T2 = (TopicPartition("t", number) for number in range(3))
Make = Callable[..., Consumer]


@pytest.fixture
def services() -> Iterator[ThreadedServices]:
    """Topic `t`: three partitions at two hosts, with records at 1,000 ms, 1,010 ms and so on."""

    def work(cluster: FakeCluster) -> None:
        cluster.make("t", 3, hosts=("host-a", "host-b"))
        for number in range(3):
            for first in (0, 10, 20):
                moments = [1_000 + 10 * one for one in range(first, first + 10)]
                cluster.append("t", number, [b"x"] * 10, timestamps=moments)

    with ThreadedServices() as made:
        made.do(work)
        yield made


@pytest.fixture
def consumer_of(services: ThreadedServices) -> Make:
    def make(*topics: str, **options: Any) -> Consumer:  # noqa: ANN401 - consumer options
        options.setdefault("auto_offset_reset", "earliest")
        options.setdefault("request_timeout_ms", 5_000)
        return Consumer(services, topics, ConsumerConfig(**options), clock=CLOCK)

    return make


def at(milliseconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def holds(services: ThreadedServices, *batches: bytes) -> None:
    """Partition 0 has these batches, and nothing else."""

    def work(cluster: FakeCluster) -> None:
        cluster.partition("t").batches[:] = batches

    services.do(work)


def mixed() -> list[bytes]:
    """Records whose time is in the comment; what has none is not for users."""
    columns = ([b"y" * 500] * 4, 6)
    late = stored([b"z"] * 3, 25, timestamps=[5, 4_000, 6])
    return [
        stored([b"x"] * 3, 0, timestamps=[10, 30, 20]),  # 0, 1, 2
        empty(3, 3),
        stored(
            *columns, timestamps=[40, 70, 50, 60], deltas=[1, 3, 4, 9], compression=Compression.ZSTD
        ),  # 7, 9, 10, 15
        empty(16, 1, control=True),  # a marker at 1,000
        stored([b"x"] * 8, 17, timestamp=80, compression=Compression.LZ4),  # 17 to 24
        # Appended when their topic said LogAppendTime: 25 to 27, at 1,000
        restamped(late, base_offset=25, flags=_append_time(late)),
        stored([b"x"] * 2, 28, timestamps=[7, 2_000]),  # 28, 29
    ]


def _append_time(raw: bytes) -> int:
    return decode_header(raw).flags | FLAG_LOG_APPEND_TIME


@pytest.mark.parametrize("isolation_level", ["read_committed", "read_uncommitted"])
def test_a_time_is_the_first_record_that_is_not_older(
    services: ThreadedServices, consumer_of: Make, isolation_level: str
) -> None:
    holds(services, *mixed())
    expected = {
        0: 0,
        10: 0,
        11: 1,
        30: 1,
        31: 7,
        41: 9,
        61: 9,
        71: 17,
        80: 17,
        81: 25,
        1_000: 25,
        1_001: 29,
        2_000: 29,
        2_001: None,
    }
    with consumer_of("t", isolation_level=isolation_level) as consumer:
        for moment, offset in expected.items():
            assert consumer.offsets_for_times({T0: moment}) == {T0: offset}, moment
            consumer.seek(T0, at(moment))
            assert consumer.position(T0) == (30 if offset is None else offset), moment


def test_records_of_many_partitions_are_found_in_one_call(consumer_of: Make) -> None:
    with consumer_of() as consumer:
        assert consumer.offsets_for_times({T2: 1_049, T0: at(1_250), T1: 9_999}) == {
            T2: 5,
            T0: 25,
            T1: None,
        }


def test_every_place_that_takes_a_time_means_the_record(
    services: ThreadedServices, consumer_of: Make
) -> None:
    with consumer_of() as consumer:
        consumer.assign([T0, T1], {0: at(1_150), 1: at(1_290)})
        assert (consumer.position(T0), consumer.position(T1)) == (15, 29)
        consumer.seek("t", at(1_033))
        assert [consumer.position(name) for name in (T0, T1)] == [4, 4]
        assert consumer.poll(max_records=1)[0].offset == 4
    table = read(services, CLOCK, "t", at(1_070), at(1_133), partitions=[2])
    assert table["offset"].to_pylist() == list(range(7, 14))


def test_a_record_in_front_of_the_log_start_is_not_found(
    services: ThreadedServices, consumer_of: Make
) -> None:
    """What made the first batch young is gone; the next record that is so is two batches on."""
    holds(
        services,
        stored([b"x"] * 4, 0, timestamps=[10, 90, 20, 30]),
        stored([b"x"] * 4, 4, timestamps=[40] * 4),
        stored([b"x"] * 4, 8, timestamps=[50, 60, 70, 80]),
    )

    def start_at(cluster: FakeCluster) -> None:
        cluster.partition("t").log_start = 2

    services.do(start_at)
    with consumer_of() as consumer:
        assert consumer.offsets_for_times({T0: 60}) == {T0: 9}
        assert consumer.offsets_for_times({T0: 15}) == {T0: 2}
        assert consumer.offsets_for_times({T0: 85}) == {T0: None}


@pytest.mark.parametrize("on_its_way", [False, True])
def test_damage_where_a_time_points_is_told_by_reading_and_hides_no_record(
    services: ThreadedServices, consumer_of: Make, *, on_its_way: bool
) -> None:
    def harm(cluster: FakeCluster) -> None:
        partition = cluster.partition("t")
        raw = partition.batches[1]
        if on_its_way:
            partition.sent_instead[raw] = raw[:-1] + bytes([raw[-1] ^ 1])
        else:
            partition.damage = errors.CorruptRecordError("t", 0, 10, 20, "checksum")
            partition.damage_offset = 10

    services.do(harm)
    with consumer_of() as consumer:
        assert consumer.offsets_for_times({T0: 1_150, T1: 1_150}) == {T0: 10, T1: 15}
        consumer.assign([T0], at(1_150))
        with pytest.raises(errors.CorruptRecordError) as raised:
            consumer.poll(timeout=5)
        assert (raised.value.first_offset, raised.value.next_offset) == (10, 20)
    with pytest.raises(errors.CorruptRecordError) as raised:
        read(services, CLOCK, "t", end=at(1_150), partitions=[0])
    assert (raised.value.first_offset, raised.value.next_offset) == (10, 20)


def test_a_leader_that_moves_meanwhile_is_found_again(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.then["list_offsets"] = lambda: services.cluster.move("t", 0, "host-c")
    with consumer_of() as consumer:
        assert consumer.offsets_for_times({T0: 1_150}) == {T0: 15}


def test_a_log_that_begins_later_meanwhile_is_searched_from_there(
    services: ThreadedServices, consumer_of: Make
) -> None:
    def move() -> None:
        services.cluster.partition("t").log_start = 20

    def arm() -> None:
        services.then["list_offsets"] = move

    services.then["list_offsets"] = arm
    with consumer_of() as consumer:
        assert consumer.offsets_for_times({T0: 1_150}) == {T0: 20}


@pytest.mark.parametrize("silent", ["list_offsets", "fetch"])
def test_a_leader_that_falls_silent_ends_the_search_in_time(
    services: ThreadedServices, consumer_of: Make, silent: str
) -> None:
    with consumer_of() as consumer:
        services.silent[silent] = None
        begin = time.monotonic()
        with pytest.raises(errors.TimeoutExpiredError, match="t-0"):
            consumer.offsets_for_times({T0: 1_150}, timeout=0.3)
        assert time.monotonic() - begin < 1.3


def test_one_batch_a_partition_is_read_for_a_time_however_many_follow(
    services: ThreadedServices, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "_FETCH_MAX_BYTES", 1)
    with consumer_of() as consumer:
        consumer.offsets_for_times({T0: 1_050})
    assert {one.partitions[0].fetch_offset for _, one in services.cluster.fetches} <= {0, 10}


def test_a_moment_between_two_milliseconds_is_the_later_one() -> None:
    for milliseconds in range(1_577_836_800_000, 1_577_836_802_000):
        assert to_ms(at(milliseconds), "time") == milliseconds
    assert to_ms(at(1_000.001), "time") == 1_001
    assert to_ms(at(-5), "time") == 0
    east = datetime(1970, 1, 1, 2, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert to_ms(east, "time") == 1_000
    assert to_ms(at(1_000).astimezone().replace(tzinfo=None), "time") == 1_000
