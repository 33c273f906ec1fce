"""The consumer as users hold it, against a cluster in another thread."""

import asyncio
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from ray_stream import errors, serializers
from ray_stream.client import calls, consumer_core
from ray_stream.client.consumer import Consumer
from ray_stream.clock import SystemClock
from ray_stream.config import ConsumerConfig
from ray_stream.records.schema import RECORD_SCHEMA
from ray_stream.types import Record, TopicPartition
from tests.unit.client.threads import ThreadedServices

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)
Make = Callable[..., Consumer]


@pytest.fixture
def services() -> Iterator[ThreadedServices]:
    with ThreadedServices() as made:
        yield made


@pytest.fixture
def consumer_of(services: ThreadedServices) -> Make:
    def make(*topics: str | re.Pattern[str], **options: Any) -> Consumer:  # noqa: ANN401
        options.setdefault("auto_offset_reset", "earliest")
        options.setdefault("request_timeout_ms", 5_000)
        config = ConsumerConfig(**options)
        return Consumer(services, topics, config, clock=SystemClock())

    return make


def fill(services: ThreadedServices, *counts: int, batch: int = 10, topic: str = "t") -> None:
    """A topic with so many records in each partition, numbered from 0."""

    def work(cluster: Any) -> None:  # noqa: ANN401 - a FakeCluster
        cluster.make(topic, len(counts))
        for number, count in enumerate(counts):
            for first in range(0, count, batch):
                values = [b"%d" % one for one in range(first, min(first + batch, count))]
                cluster.append(topic, number, values)

    services.do(work)


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


# --- ways to read ---------------------------------------------------------------------------------


def test_a_loop_until_the_end_gives_every_record_once_and_in_order(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1_234, 56, 0)
    seen: dict[int, list[tuple[int, bytes]]] = {}
    with consumer_of("t", until="end") as consumer:
        for record in consumer:
            seen.setdefault(record.partition, []).append((record.offset, record.value))
    assert seen == {
        0: [(n, b"%d" % n) for n in range(1_234)],
        1: [(n, b"%d" % n) for n in range(56)],
    }


def test_until_the_end_means_the_end_when_the_consumer_was_made(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 5)
    with consumer_of("t", until="end") as consumer:
        services.do(lambda cluster: cluster.append("t", 0, [b"later"] * 10))
        assert offsets(list(consumer)) == [0, 1, 2, 3, 4]
        assert consumer.poll(timeout=10) == []
        assert consumer.fetch(timeout=10).num_rows == 0
        assert list(consumer.batches()) == []


def test_a_record_carries_all_that_was_stored(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.do(
        lambda cluster: cluster.append(
            "t",
            0,
            [b"v", None],
            keys=[None, b"k"],
            headers=[[("a", b"1"), ("a", None)], []],
            timestamps=[5, 7],
        )
    )
    services.do(lambda cluster: cluster.move("t", 0, "host-b"))
    services.do(lambda cluster: cluster.append("t", 0, [b"plain"], timestamp=9))
    with consumer_of("t", until="end") as consumer:
        assert list(consumer) == [
            Record("t", 0, 0, 5, 0, None, b"v", (("a", b"1"), ("a", None)), 1),
            Record("t", 0, 1, 7, 0, b"k", None, (), 1),
            Record("t", 0, 2, 9, 0, None, b"plain", (), 2),
        ]


def test_all_ways_to_read_move_one_position(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 100)
    with consumer_of("t", until="end", max_poll_records=7) as consumer:
        loop = iter(consumer)
        assert offsets([next(loop) for _ in range(3)]) == [0, 1, 2]
        assert consumer.position(T0) == 3
        assert offsets(consumer.poll(4)) == [3, 4, 5, 6]
        assert consumer.fetch(5)["offset"].to_pylist() == [7, 8, 9, 10, 11]
        assert next(consumer.batches())["offset"].to_pylist() == list(range(12, 20))
        assert next(loop).offset == 20
        assert consumer.position(T0) == 21
        assert offsets(list(consumer)) == list(range(21, 100))


def test_the_position_in_a_loop_is_behind_the_record_in_hand(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 25)
    with consumer_of("t", until="end") as consumer:
        for record in consumer:
            assert consumer.position(T0) == record.offset + 1


def test_breaking_out_of_a_loop_loses_nothing(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 50)
    seen: list[int] = []
    with consumer_of("t", until="end") as consumer:
        while len(seen) < 50:
            for record in consumer:
                seen.append(record.offset)
                if len(seen) % 3 == 0:
                    break
    assert seen == list(range(50))


def test_poll_gives_at_most_what_was_asked_for(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 30, 30)
    with consumer_of("t", max_poll_records=25) as consumer:
        assert len(consumer.poll(5)) == 5
        got = 0
        while got < 55:
            records = consumer.poll()
            assert 0 < len(records) <= 25
            got += len(records)


def test_poll_waits_for_records_no_longer_than_it_must(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 0)
    with consumer_of("t") as consumer:
        assert consumer.poll(timeout=0) == []
        services.then["fetch"] = lambda: services.cluster.append("t", 0, [b"now"])
        begin = time.monotonic()
        assert [record.value for record in consumer.poll(timeout=30)] == [b"now"]
        assert time.monotonic() - begin < 10


def test_a_poll_of_no_time_at_all_gets_records_in_the_end(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 3)
    with consumer_of("t") as consumer:
        records: list[Record] = []
        deadline = time.monotonic() + 30
        while not records and time.monotonic() < deadline:
            records = consumer.poll(timeout=0)
        assert offsets(records) == [0, 1, 2]


def test_fetch_gives_the_public_schema_even_when_there_is_nothing(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 0)
    with consumer_of("t") as consumer:
        table = consumer.fetch(timeout=0)
        assert table.schema.equals(RECORD_SCHEMA)
        assert table.num_rows == 0


def test_fetch_is_limited_by_bytes_and_not_by_max_poll_records(
    services: ThreadedServices, consumer_of: Make
) -> None:
    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make("t")
        for _ in range(20):
            cluster.append("t", 0, [bytes(1_000)] * 10)

    services.do(work)
    with consumer_of("t", max_poll_records=1, fetch_max_bytes=50_000, until="end") as consumer:
        sizes = []
        while (table := consumer.fetch()).num_rows:
            sizes.append(table.num_rows)
        assert sum(sizes) == 200
        assert max(sizes) > 1
        assert max(sizes) <= 60, "50,000 bytes, and one batch"


def test_fetch_does_not_copy_values(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 10)
    (stored,) = services.do(lambda cluster: list(cluster.partition("t").batches))
    services.do(lambda cluster: cluster.partition("t").sent_instead.update({stored: stored}))
    with consumer_of("t") as consumer:
        before = pa.total_allocated_bytes()
        table = consumer.fetch()
        assert table.num_rows == 10
        assert pa.total_allocated_bytes() - before < len(stored)


def test_keys_and_values_are_deserialized_and_none_is_left_alone(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.do(lambda cluster: cluster.append("t", 0, [b'{"a":1}', None], keys=[b"x", b"y"]))
    with consumer_of(
        "t", key_deserializer=serializers.string, value_deserializer=serializers.json
    ) as consumer:
        assert [(one.key, one.value) for one in consumer.poll()] == [("x", {"a": 1}), ("y", None)]


def test_a_record_that_cannot_be_deserialized_is_named_and_the_position_stays(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.do(lambda cluster: cluster.append("t", 0, [b"1", b"2", b"{", b"4"]))
    with consumer_of("t", value_deserializer=serializers.json, until="end") as consumer:
        assert [record.value for record in consumer.poll()] == [1, 2]
        for _ in range(2):
            with pytest.raises(errors.DeserializationError) as raised:
                consumer.poll()
            assert raised.value.args[:3] == ("t", 0, 2)
            assert raised.value.__cause__ is not None
            assert consumer.position(T0) == 2
        with pytest.raises(errors.DeserializationError):
            next(iter(consumer))
        consumer.seek(T0, 3)
        assert [record.value for record in consumer] == [4]


def test_a_key_that_cannot_be_deserialized_stops_as_early_as_a_value(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.do(lambda cluster: cluster.append("t", 0, [b"0", b"1", b"{"], keys=[b"0", b"{", b"2"]))
    with consumer_of(
        "t", key_deserializer=serializers.json, value_deserializer=serializers.json
    ) as consumer:
        assert offsets(consumer.poll()) == [0]
        with pytest.raises(errors.DeserializationError) as raised:
            consumer.poll()
        assert raised.value.offset == 1


def test_the_first_record_that_is_refused_is_the_one_that_is_named(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.do(lambda cluster: cluster.append("t", 0, [b"{", b"1", b"2"], keys=[b"0", b"1", b"{"]))
    with consumer_of(
        "t", key_deserializer=serializers.json, value_deserializer=serializers.json
    ) as consumer:
        with pytest.raises(errors.DeserializationError) as raised:
            consumer.poll()
        assert raised.value.offset == 0


def test_damage_is_told_and_reading_goes_on_behind_it(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 30)
    damage = errors.CorruptRecordError("t", 0, 10, 20, "checksum")

    def harm(cluster: Any) -> None:  # noqa: ANN401
        cluster.partition("t").damage = damage
        cluster.partition("t").damage_offset = 10

    services.do(harm)
    with consumer_of("t", until="end") as consumer:
        assert offsets(consumer.poll()) == list(range(10))
        with pytest.raises(errors.CorruptRecordError) as raised:
            next(iter(consumer))
        assert raised.value.args == damage.args
        assert consumer.position(T0) == 10
        services.do(lambda cluster: setattr(cluster.partition("t"), "damage", None))
        consumer.seek(raised.value.next_offset)
        assert offsets(list(consumer)) == list(range(20, 30))


# --- where to start -------------------------------------------------------------------------------


def test_latest_is_fixed_when_the_consumer_is_made(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10)
    with consumer_of("t", auto_offset_reset="latest") as consumer:
        services.do(lambda cluster: cluster.append("t", 0, [b"first", b"second"]))
        assert offsets(consumer.poll(timeout=10)) == [10, 11]


def test_latest_is_fixed_when_partitions_are_assigned(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10)
    with consumer_of() as consumer:
        consumer.assign([T0], "latest")
        services.do(lambda cluster: cluster.append("t", 0, [b"first"]))
        assert offsets(consumer.poll(timeout=10)) == [10]


def timed(services: ThreadedServices) -> None:
    """Two partitions with a batch for each of the times 1 s, 2 s, 3 s; five records each."""

    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make("t", 2)
        for number in range(2):
            for second in (1, 2, 3):
                cluster.append("t", number, [b"x"] * 5, timestamp=second * 1000)

    services.do(work)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


STARTS = [
    ("earliest", (0, 0)),
    ("latest", (15, 15)),
    (7, (7, 7)),
    (at(2), (5, 5)),
    (at(2.5), (10, 10)),
    (at(0), (0, 0)),
    (at(9), (15, 15)),
    ({0: 3, 1: "latest"}, (3, 15)),
    ({1: at(3)}, (0, 10)),
]


@pytest.mark.parametrize(("start", "expected"), STARTS, ids=str)
def test_every_form_of_a_start_is_understood_by_assign(
    services: ThreadedServices,
    consumer_of: Make,
    start: Any,  # noqa: ANN401
    expected: tuple[int, int],
) -> None:
    timed(services)
    with consumer_of() as consumer:
        consumer.assign([T0, T1], start)
        assert (consumer.position(T0), consumer.position(T1)) == expected


@pytest.mark.parametrize(("start", "expected"), STARTS, ids=str)
def test_every_form_of_a_start_is_understood_by_seek(
    services: ThreadedServices,
    consumer_of: Make,
    start: Any,  # noqa: ANN401
    expected: tuple[int, int],
) -> None:
    timed(services)
    with consumer_of("t") as consumer:
        consumer.seek("t", start)
        assert (consumer.position(T0), consumer.position(T1)) == expected


def test_assigned_partitions_go_on_where_they_stand(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10, 10)
    with consumer_of() as consumer:
        consumer.assign([T0])
        assert offsets(consumer.poll(4)) == [0, 1, 2, 3]
        consumer.assign([T0, T1])
        assert consumer.position(T0) == 4
        assert consumer.position(T1) == 0
        assert consumer.assignment() == [T0, T1]


def test_seeking_in_a_loop_takes_effect_with_the_next_record(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 100)
    seen: list[int] = []
    with consumer_of("t", until="end") as consumer:
        for record in consumer:
            seen.append(record.offset)
            if record.offset == 3:
                consumer.seek(T0, 97)
    assert seen == [0, 1, 2, 3, 97, 98, 99]


def test_to_the_beginning_and_to_the_end(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 10)
    with consumer_of("t") as consumer:
        consumer.seek_to_end()
        assert consumer.position(T0) == 10
        consumer.seek_to_beginning([T0])
        assert consumer.position(T0) == 0


def test_a_paused_partition_stops_in_the_middle_of_a_loop_and_goes_on_there(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 20, 20)
    with consumer_of("t", until="end") as consumer:
        seen: list[tuple[int, int]] = []
        for record in consumer:
            seen.append((record.partition, record.offset))
            if (record.partition, record.offset) == (0, 4):
                consumer.pause([T0])
        assert [one for one in seen if one[0] == 0] == [(0, offset) for offset in range(5)]
        assert len(seen) == 25
        consumer.resume()
        assert offsets(list(consumer)) == list(range(5, 20))


def test_offsets_can_be_asked_of_partitions_that_are_not_read(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1)
    fill(services, 7, topic="u")
    with consumer_of("t") as consumer:
        assert consumer.end_offsets([TopicPartition("u", 0)]) == {TopicPartition("u", 0): 7}


def test_ends_times_and_lag(services: ThreadedServices, consumer_of: Make) -> None:
    timed(services)
    with consumer_of("t") as consumer:
        consumer.seek(T0, 4)
        assert consumer.beginning_offsets() == {T0: 0, T1: 0}
        assert consumer.end_offsets([T1]) == {T1: 15}
        assert consumer.offsets_for_times({T0: 2_000, T1: at(99)}) == {T0: 5, T1: None}
        assert consumer.lag() == {T0: 11, T1: 15}


# --- subscriptions and groups ---------------------------------------------------------------------


def test_a_pattern_subscribes_to_what_matches_now(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1, topic="flights")
    fill(services, 1, topic="flights2")
    fill(services, 1, topic="trains")
    with consumer_of(re.compile("flights.*")) as consumer:
        assert [one.topic for one in consumer.assignment()] == ["flights", "flights2"]


def test_a_pattern_never_means_internal_topics(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1, topic="__consumer_offsets")
    fill(services, 1, topic="flights")
    with consumer_of(re.compile(".*")) as consumer:
        assert [one.topic for one in consumer.assignment()] == ["flights"]


def test_a_loop_gets_nothing_more_of_a_topic_that_is_gone(
    services: ThreadedServices, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_core, "METADATA_MAX_AGE_MS", 0)
    fill(services, 20, topic="a")
    fill(services, 20, topic="b")
    there = TopicPartition("b", 0)
    with consumer_of(re.compile(".")) as consumer:
        consumer.pause([there])
        loop = iter(consumer)
        assert [next(loop).topic for _ in range(3)] == ["a"] * 3
        consumer.resume([there])
        assert next(loop).topic == "a"
        services.do(lambda cluster: cluster.delete("a"))
        while len(consumer.assignment()) > 1:
            consumer._driver.pump()  # as any call that has to wait does
        assert next(loop).topic == "b"


def test_what_is_wanted_next_travels_while_the_caller_works(
    services: ThreadedServices, consumer_of: Make
) -> None:
    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make("t")
        for _ in range(10):
            cluster.append("t", 0, [bytes(130_000)])

    services.do(work)
    with consumer_of("t", fetch_max_bytes=250_000) as consumer:
        assert len(consumer.poll()) == 1
        services.do(lambda _: None)
        assert services.counted("fetch") == 2


def test_a_loop_over_much_that_is_buffered_still_hears_of_other_partitions(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 4_000, 0, batch=100)
    with consumer_of("t", max_poll_records=50) as consumer:
        loop = iter(consumer)
        while consumer._core.states[T1].readable_end != 0:
            next(loop)
        services.do(lambda cluster: cluster.append("t", 1, [b"here"]))
        ahead = 0
        while next(loop).partition == 0:
            ahead += 1
        assert ahead < 300


def test_callbacks_hear_of_partitions_that_come_and_go(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1, 1)
    fill(services, 1, topic="u")
    heard: list[tuple[str, list[TopicPartition]]] = []
    with consumer_of(
        "t",
        on_assigned=lambda partitions: heard.append(("+", partitions)),
        on_revoked=lambda partitions: heard.append(("-", partitions)),
    ) as consumer:
        consumer.subscribe("u")
    assert heard == [("+", [T0, T1]), ("-", [T0, T1]), ("+", [TopicPartition("u", 0)])]


def test_a_callback_may_use_the_consumer(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 10)
    fill(services, 10, topic="u")
    made: list[Consumer] = []

    def start_at_8(partitions: list[TopicPartition]) -> None:
        for consumer in made:
            consumer.seek(partitions[0], 8)

    with consumer_of("u", on_assigned=start_at_8) as consumer:
        made.append(consumer)
        consumer.subscribe("t")
        assert offsets(consumer.poll()) == [8, 9]


def test_without_a_group_commits_are_refused(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 1)
    with consumer_of("t") as consumer:
        with pytest.raises(errors.InvalidArgumentError, match="group"):
            consumer.commit()
        with pytest.raises(errors.InvalidArgumentError, match="group"):
            consumer.committed([T0])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        ("missing", errors.UnknownTopicOrPartitionError),
        ("", errors.InvalidTopicError),
        ("a/b", errors.InvalidTopicError),
        ("..", errors.InvalidTopicError),
        ("x" * 250, errors.InvalidTopicError),
        (7, errors.InvalidTopicError),
        (re.compile(b"bytes"), errors.InvalidArgumentError),
    ],
)
def test_topics_that_cannot_be_read_are_refused_when_the_consumer_is_made(
    consumer_of: Make,
    topic: Any,  # noqa: ANN401
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        consumer_of(topic)


BAD_CALLS: list[tuple[str, Callable[[Consumer], object], type[Exception]]] = [
    ("max_records 0", lambda one: one.poll(0), errors.InvalidArgumentError),
    ("max_records bool", lambda one: one.fetch(True), errors.InvalidArgumentError),
    ("negative timeout", lambda one: one.poll(timeout=-1), errors.InvalidArgumentError),
    ("timeout nan", lambda one: one.poll(timeout=float("nan")), errors.InvalidArgumentError),
    ("timeout text", lambda one: one.poll(timeout="1"), errors.InvalidArgumentError),  # type: ignore[arg-type]
    ("seek elsewhere", lambda one: one.seek(T1, 0), errors.InvalidArgumentError),
    ("seek another topic", lambda one: one.seek("u", 0), errors.InvalidArgumentError),
    ("seek nowhere", lambda one: one.seek("t"), errors.InvalidArgumentError),
    ("seek below 0", lambda one: one.seek(T0, -1), errors.InvalidArgumentError),
    ("seek text", lambda one: one.seek(T0, "soon"), errors.InvalidArgumentError),  # type: ignore[arg-type]
    ("seek float", lambda one: one.seek(T0, 1.5), errors.InvalidArgumentError),  # type: ignore[arg-type]
    ("seek bool", lambda one: one.seek(T0, True), errors.InvalidArgumentError),
    ("seek dict", lambda one: one.seek("t", {5: 0}), errors.InvalidArgumentError),
    ("position", lambda one: one.position(T1), errors.InvalidArgumentError),
    ("pause", lambda one: one.pause([T1]), errors.InvalidArgumentError),
    ("pause one", lambda one: one.pause(T0), errors.InvalidArgumentError),  # type: ignore[arg-type]
    ("assign text", lambda one: one.assign("t"), errors.InvalidArgumentError),  # type: ignore[arg-type]
    ("assign part", lambda one: one.assign([T1]), errors.UnknownTopicOrPartitionError),
    ("end of nothing", lambda one: one.end_offsets([T1]), errors.UnknownTopicOrPartitionError),
    ("times", lambda one: one.offsets_for_times({T0: -5}), errors.InvalidArgumentError),
    ("subscribe", lambda one: one.subscribe(), errors.InvalidArgumentError),
    ("subscribe", lambda one: one.subscribe("no"), errors.UnknownTopicOrPartitionError),
]


@pytest.mark.parametrize(
    ("call", "error"), [one[1:] for one in BAD_CALLS], ids=[one[0] for one in BAD_CALLS]
)
def test_a_bad_argument_is_refused_and_changes_nothing(
    services: ThreadedServices,
    consumer_of: Make,
    call: Callable[[Consumer], object],
    error: type[Exception],
) -> None:
    fill(services, 10)
    with consumer_of("t") as consumer:
        consumer.poll(3)
        with pytest.raises(error):
            call(consumer)
        assert offsets(consumer.poll()) == list(range(3, 10))


def test_an_offset_out_of_range_is_an_error_where_that_was_asked_for(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10)
    with consumer_of("t", auto_offset_reset="error") as consumer:
        with pytest.raises(errors.InvalidArgumentError, match="no position"):
            consumer.poll()
        with pytest.raises(errors.InvalidArgumentError, match="no position"):
            consumer.position(T0)
        consumer.seek(T0, 50)
        with pytest.raises(errors.OffsetOutOfRangeError):
            consumer.poll()
        consumer.seek(T0, 9)
        assert offsets(consumer.poll()) == [9]


def test_reading_nothing_is_an_error_and_not_a_wait(consumer_of: Make) -> None:
    with consumer_of() as consumer:
        for read in (consumer.poll, consumer.fetch, lambda: next(iter(consumer))):
            with pytest.raises(errors.InvalidArgumentError, match="subscribe"):
                read()


def test_a_topic_deleted_under_the_consumer_is_an_error(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 3)
    with consumer_of("t") as consumer:
        assert len(consumer.poll()) == 3
        services.do(lambda cluster: cluster.delete("t"))
        with pytest.raises(errors.UnknownTopicOrPartitionError):
            consumer.poll(timeout=20)


# --- life cycle -----------------------------------------------------------------------------------


def test_after_close_everything_is_refused(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 10)
    consumer = consumer_of("t")
    loop = iter(consumer)
    next(loop)
    consumer.close()
    consumer.close()
    for call in (
        consumer.poll,
        consumer.fetch,
        consumer.assignment,
        consumer.lag,
        consumer.commit,
        consumer.seek_to_end,
        lambda: consumer.seek(T0, 1),
        lambda: next(iter(consumer)),
        lambda: next(consumer.batches()),
        lambda: next(loop),
        lambda: consumer.subscribe("t"),
    ):
        with pytest.raises(errors.ClosedError):
            call()


def test_two_threads_at_once_are_refused_and_one_after_the_other_are_not(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 0)
    refused: list[BaseException] = []
    with consumer_of("t") as consumer:
        started = threading.Event()

        def wait_for_records() -> None:
            started.set()
            consumer.poll(timeout=3)

        thread = threading.Thread(target=wait_for_records)
        thread.start()
        started.wait()
        while thread.is_alive() and not refused:
            try:
                consumer.poll(timeout=0)
            except errors.ConcurrentAccessError as error:
                refused.append(error)
                services.do(lambda cluster: cluster.append("t", 0, [b"go on"]))
        thread.join()
        assert refused
        consumer.seek_to_beginning()
        assert len(consumer.poll()) == 1


def test_a_fork_may_not_go_on_with_its_parents_consumer(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10)
    with consumer_of("t") as consumer, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
        if child == 0:
            try:
                consumer.poll(timeout=0)
            except errors.ForkedProcessError:
                os._exit(42)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert len(consumer.poll()) == 10


def press_ctrl_c() -> None:
    """In the main thread, which waits by then."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


WAITS: list[tuple[str, Callable[[Consumer], object]]] = [
    ("poll", lambda consumer: consumer.poll(timeout=60)),
    ("loop", lambda consumer: next(iter(consumer))),
    ("fetch", lambda consumer: consumer.fetch(timeout=60)),
    ("batches", lambda consumer: next(consumer.batches())),
]


@pytest.mark.parametrize("wait", [one[1] for one in WAITS], ids=[one[0] for one in WAITS])
def test_ctrl_c_ends_any_wait_at_once_and_loses_nothing(
    services: ThreadedServices, consumer_of: Make, wait: Callable[[Consumer], object]
) -> None:
    fill(services, 0)
    with consumer_of("t") as consumer:
        services.then["fetch"] = press_ctrl_c
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            wait(consumer)
        assert time.monotonic() - begin < 10
        services.do(lambda cluster: cluster.append("t", 0, [b"a", b"b"]))
        assert [record.value for record in consumer.poll(timeout=20)] == [b"a", b"b"]


def test_ctrl_c_ends_the_wait_for_a_cluster_that_does_not_answer(
    services: ThreadedServices, consumer_of: Make
) -> None:
    services.silent["metadata"] = None
    services.then["metadata"] = press_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        consumer_of("t", request_timeout_ms=60_000)


def test_an_interrupted_poll_hands_out_nothing_and_the_next_one_everything(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 30, 30)
    calls_made = 0

    def interrupt_once(value: bytes) -> bytes:
        nonlocal calls_made
        calls_made += 1
        if calls_made == 15:
            raise KeyboardInterrupt
        return value

    with consumer_of("t", value_deserializer=interrupt_once, until="end") as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.poll()
        seen: dict[int, list[int]] = {0: [], 1: []}
        for record in consumer:
            seen[record.partition].append(record.offset)
        assert seen == {0: list(range(30)), 1: list(range(30))}


def test_a_cluster_that_does_not_answer_is_a_timeout_in_time(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1)
    services.silent["list_offsets"] = None
    begin = time.monotonic()
    with pytest.raises(errors.TimeoutExpiredError, match="t-0"):
        consumer_of("t", auto_offset_reset="latest", request_timeout_ms=500)
    assert time.monotonic() - begin < 1.5
    with consumer_of("t", request_timeout_ms=500) as consumer:
        begin = time.monotonic()
        for wait in (consumer.lag, consumer.end_offsets, lambda: consumer.position(T0)):
            with pytest.raises(errors.TimeoutExpiredError):
                wait()
        assert time.monotonic() - begin < 4.5
        services.silent["fetch"] = None
        begin = time.monotonic()
        assert consumer.poll(timeout=0.3) == []
        assert time.monotonic() - begin < 1.3


def test_a_wait_inside_a_running_loop_works_and_warns_once(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10)
    calls._warn_once.cache_clear()

    async def main() -> list[int]:
        with consumer_of("t") as consumer:
            got = offsets(consumer.poll(5))
            consumer.poll(5)
            return got

    with pytest.warns(RuntimeWarning, match="event loop") as caught:
        assert asyncio.run(main()) == [0, 1, 2, 3, 4]
    assert len(caught) == 1


def test_a_deserializer_that_raises_stop_iteration_has_refused_the_record(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 1)
    asked: list[bytes] = []

    def first_of_nothing(data: bytes) -> object:
        asked.append(data)
        if len(asked) == 100:
            raise ValueError("else it is asked again and again, for ever")
        return next(iter(()))

    one = consumer_of("t", value_deserializer=first_of_nothing)
    with pytest.raises(errors.DeserializationError):
        one.poll(timeout=5)
    assert len(asked) == 1
    one.close()


def test_a_poll_without_a_timeout_waits(services: ThreadedServices, consumer_of: Make) -> None:
    fill(services, 1)
    one = consumer_of("t")
    assert offsets(one.poll(timeout=None)) == [0]
    one.close()


def test_starts_are_told_by_the_partitions_own_names(
    services: ThreadedServices, consumer_of: Make
) -> None:
    fill(services, 10, 10)
    one = consumer_of()
    one.assign([T0, T1], start={T0: 5, T1: 7})
    assert (one.position(T0), one.position(T1)) == (5, 7)
    one.assign([T0, T1], start=one.beginning_offsets([T0, T1]))
    assert (one.position(T0), one.position(T1)) == (0, 0)
    one.close()
