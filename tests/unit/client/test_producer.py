"""What a producer promises to those who send: every record where it belongs, once, in order."""

import logging
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from ray_stream import serializers
from ray_stream.client.buffer import SendBuffer
from ray_stream.client.partitioner import partition_of_key
from ray_stream.client.producer import Producer
from ray_stream.client.rows import OpenRows
from ray_stream.config import ProducerConfig
from ray_stream.errors import (
    ConcurrentAccessError,
    DeliveryError,
    FlushTimeoutError,
    InvalidRecordError,
    InvariantViolationError,
    OutcomeUnknownError,
    RayStreamError,
    UnknownOptionError,
    UnknownTopicOrPartitionError,
)
from ray_stream.types import RecordMetadata
from tests.unit.client.produce_services import CLOCK, Make, ProduceServices

PATIENT = 60_000


# --- one record at a time ------------------------------------------------------------------------


def test_records_arrive_in_order(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    for number in range(5_000):
        one.send("t", b"%d" % number)
    one.flush()
    assert services.values() == [b"%d" % number for number in range(5_000)]


def test_every_part_of_a_record_arrives(services: ProduceServices, producer: Make) -> None:
    services.make(partitions=3)
    one = producer()
    headers = [("h", b"1"), ("h", None), ("ü", b"")]
    one.send("t", b"v", b"k", partition=2, timestamp_ms=7, headers=headers)
    one.flush()
    (written,) = services.written()
    assert written == (2, 0, b"k", b"v", 7, headers)


def test_a_record_without_a_timestamp_gets_the_time_of_sending(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    before = CLOCK.now_ms()
    one.send("t", b"v")
    after = CLOCK.now_ms()
    one.flush()
    assert before <= services.written()[0].timestamp <= after


def test_records_that_linger_long_have_times_of_their_own(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=PATIENT)
    one.send("t", b"early")
    begin = CLOCK.now_ms()
    while CLOCK.now_ms() == begin:
        pass
    one.send("t", b"late")
    one.flush()
    early, late = services.written()
    assert early.timestamp < late.timestamp


def test_equal_keys_go_to_one_partition_in_order_wherever_kafka_puts_them(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=6)
    one = producer()
    for number in range(3_000):
        one.send("t", b"%d" % number, b"key-%d" % (number % 50))
    one.flush()
    seen: dict[bytes, list[int]] = {}
    for record in services.written():
        assert record.key is not None
        assert record.value is not None
        assert record.partition == partition_of_key(record.key, 6)
        seen.setdefault(record.key, []).append(int(record.value))
    assert sum(map(len, seen.values())) == 3_000
    assert all(before < after for values in seen.values() for before, after in pairwise(values))


def test_keyed_keyless_and_adorned_records_keep_their_order(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    for number in range(0, 300, 3):
        one.send("t", b"%d" % number)
        one.send("t", b"%d" % (number + 1), b"key")
        one.send("t", b"%d" % (number + 2), headers=[("h", b"")])
    one.flush()
    records = services.written()
    assert [record.value for record in records] == [b"%d" % number for number in range(300)]
    assert [record.key for record in records] == [None, b"key", None] * 100


def test_tombstones_and_empty_values_are_told_apart(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    one.send("t", None, b"k")
    one.send("t", b"", b"k")
    one.send("t", None)
    one.send("t", b"", b"")
    one.flush()
    assert [(record.key, record.value) for record in services.written()] == [
        (b"k", None),
        (b"k", b""),
        (None, None),
        (b"", b""),
    ]


def test_a_batch_is_sent_when_it_is_full_without_waiting_for_others(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=PATIENT, batch_size=1_000)
    for number in range(11):
        one.send("t", b"%0100d" % number)
    assert services.arrived.acquire(timeout=10)
    one.flush()
    assert [base for _, base, _ in services.topics["t"].batches] == [0, 10]


def test_a_record_that_does_not_fit_begins_another_batch(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=PATIENT, batch_size=1_000)
    for _ in range(7):
        one.send("t", bytes(300))
    one.flush()
    assert [base for _, base, _ in services.topics["t"].batches] == [0, 3, 6]


def test_a_lingering_batch_is_sent_when_its_time_is_over(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=20)
    one.send("t", b"a")
    one.send("t", b"b")
    assert services.arrived.acquire(timeout=10)
    one.flush()
    assert len(services.topics["t"].batches) == 1


def test_without_linger_a_record_goes_out_by_itself(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=0)
    for number in range(200):
        one.send("t", b"%d" % number)
    assert services.arrived.acquire(timeout=10)
    one.flush()
    assert services.values() == [b"%d" % number for number in range(200)]


def test_send_and_wait_does_not_linger_and_says_where_the_record_stands(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=2)
    one = producer(linger_ms=PATIENT)
    one.send("t", b"before", partition=1)
    answer = one.send_and_wait("t", b"v", b"k", partition=1, timestamp_ms=9, headers=[("h", b"")])
    assert answer == RecordMetadata("t", 1, 1, 9, "fsync")


def test_a_clock_of_the_log_shows_in_the_answer(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    assert one.send_and_wait("t", b"v").timestamp <= CLOCK.now_ms()


def test_with_acks_0_records_go_out_and_nobody_says_where(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(acks=0)
    answer = one.send_and_wait("t", b"v")
    assert (answer.offset, answer.durability) == (-1, "none")
    assert services.values() == [b"v"]


@pytest.mark.parametrize("compression", ["lz4", "zstd", "none"])
def test_records_arrive_compressed_or_not(
    services: ProduceServices, producer: Make, compression: str
) -> None:
    services.make()
    one = producer(compression_type=compression)
    for _ in range(1_000):
        one.send("t", bytes(100))
    one.flush()
    assert services.values() == [bytes(100)] * 1_000
    size = sum(len(raw) for _, _, raw in services.topics["t"].batches)
    assert (size < 50_000) == (compression != "none")


def test_batches_stay_below_what_the_topic_takes(services: ProduceServices, producer: Make) -> None:
    services.make(max_message_bytes=1_000, max_batch_bytes=2_000)
    one = producer(linger_ms=PATIENT)
    for number in range(100):
        one.send("t", b"%0500d" % number)
    one.flush()
    assert services.values() == [b"%0500d" % number for number in range(100)]
    assert all(len(raw) <= 2_000 for _, _, raw in services.topics["t"].batches)


def test_serializers_are_applied_on_every_way(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer(key_serializer=serializers.string, value_serializer=serializers.json)
    one.send("t", {"a": 1}, "k")
    one.send_and_wait("t", [2])
    one.send_batch("t", [{"b": None}, 3], key="k")
    one.flush()
    assert [(record.key, record.value) for record in services.written()] == [
        (b"k", b'{"a":1}'),
        (None, b"[2]"),
        (b"k", b'{"b":null}'),
        (b"k", b"3"),
    ]


def test_a_partitioner_of_ones_own_decides(services: ProduceServices, producer: Make) -> None:
    services.make(partitions=4)

    def last_byte(key: bytes | None, partitions: int) -> int:
        return 0 if key is None else key[-1] % partitions

    one = producer(partitioner=last_byte)
    one.send("t", b"a", b"\x07")
    one.send("t", b"b")
    one.send("t", b"c", b"\x07", partition=1)
    one.send_batch("t", [b"d"], key=b"\x06")
    one.flush()
    assert [(record.partition, record.value) for record in services.written()] == [
        (0, b"b"),
        (1, b"c"),
        (2, b"d"),
        (3, b"a"),
    ]


def test_several_threads_may_send_and_each_keeps_its_order(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=2)
    one = producer(batch_size=2_000, buffer_memory=50_000)

    def send(thread: int) -> None:
        for number in range(2_000):
            key = b"%d" % thread if number % 7 else None
            one.send("t", b"%d-%d" % (thread, number), key, partition=thread % 2)

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.flush()
    seen: dict[int, list[int]] = {}
    for record in services.written():
        assert record.value is not None
        sender, number = map(int, record.value.split(b"-"))
        seen.setdefault(sender, []).append(number)
    assert seen == {thread: list(range(2_000)) for thread in range(4)}


def test_a_record_that_comes_into_a_batch_just_taken_is_not_lost(
    services: ProduceServices, producer: Make
) -> None:
    """As if another thread had run between two steps of `send`."""
    services.make()
    one = producer(linger_ms=PATIENT // 1_000)
    one.send("t", b"a")
    rows = one._open["t"]

    class Overtaken(list[Any]):
        def append(self, value: object) -> None:
            one._sender.flush(10)
            super().append(value)

    rows.rows = Overtaken(rows.rows)
    one.send("t", b"b")
    one.flush()
    assert services.values() == [b"a", b"b"]


# --- being told ----------------------------------------------------------------------------------


def test_callbacks_are_told_where_records_stand_in_order(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    told: list[tuple[RecordMetadata | None, RayStreamError | None]] = []
    one.send("t", b"silent")
    for number in range(3):
        one.send(
            "t",
            b"v",
            timestamp_ms=number,
            on_delivery=lambda metadata, error: told.append((metadata, error)),
        )
    one.flush()
    assert told == [
        (RecordMetadata("t", 0, 1 + number, number, "fsync"), None) for number in range(3)
    ]


def test_callbacks_of_several_partitions_fit_their_records(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=5)
    one = producer()
    told: dict[bytes, RecordMetadata] = {}

    def telling(value: bytes) -> Callable[[RecordMetadata | None, RayStreamError | None], None]:
        def tell(metadata: RecordMetadata | None, _: RayStreamError | None) -> None:
            assert metadata is not None
            told[value] = metadata

        return tell

    for number in range(200):
        value = b"%d" % number
        callback = telling(value) if number % 3 else None
        one.send("t", value, b"key-%d" % (number % 20), on_delivery=callback)
    one.flush()
    places = {record.value: (record.partition, record.offset) for record in services.written()}
    assert len(told) == 133
    for value, metadata in told.items():
        assert places[value] == (metadata.partition, metadata.offset)


def test_a_callback_is_told_of_a_failure(services: ProduceServices, producer: Make) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("no")]
    one = producer()
    told = []
    one.send("t", b"v", on_delivery=lambda metadata, error: told.append((metadata, error)))
    with pytest.raises(DeliveryError):
        one.flush()
    ((metadata, error),) = told
    assert metadata is None
    assert isinstance(error, InvalidRecordError)


def test_a_callback_that_raises_is_reported_and_delivery_goes_on(
    services: ProduceServices, producer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    services.make()
    one = producer()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        one.send("t", b"a", on_delivery=broken)
        one.flush()
        one.send_and_wait("t", b"b")
    assert "on_delivery" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert services.values() == [b"a", b"b"]


def test_a_callback_may_send_but_not_wait_for_itself(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(buffer_memory=1_000)
    refused: list[object] = []

    def again(*_: object) -> None:
        one.send("t", b"from the callback")
        for wait in (one.flush, one.close, lambda: one.send_and_wait("t", b"x")):
            try:
                wait()
            except ConcurrentAccessError as error:
                refused.append(error)

    one.send("t", b"a", on_delivery=again)
    one.flush()
    one.flush()
    assert len(refused) == 3
    assert services.values()[:2] == [b"a", b"from the callback"]


def test_a_callback_that_exits_ends_nothing(
    services: ProduceServices, producer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    services.make()
    one = producer()
    with caplog.at_level(logging.ERROR):
        one.send("t", b"a", on_delivery=lambda *_: sys.exit(3))
        one.flush()
        one.send_and_wait("t", b"b")
    assert "SystemExit" in caplog.text


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_is_raised_by_the_next_flush_with_its_records(
    services: ProduceServices, producer: Make
) -> None:
    topic = services.make(partitions=2)
    topic.leaders[1].refusals = [InvalidRecordError("no")]
    one = producer()
    one.send("t", b"good", partition=0)
    one.send("t", b"bad", b"k", partition=1)
    one.send("t", b"worse", partition=1)
    with pytest.raises(DeliveryError) as caught:
        one.flush()
    error = caught.value
    assert error.failures == (("t", 1, 2, 0),)
    assert [record[:4] for record in error.records] == [
        ("t", 1, b"k", b"bad"),
        ("t", 1, None, b"worse"),
    ]
    assert isinstance(error.first, InvalidRecordError)
    assert (error.failed, error.unknown) == (2, 0)
    one.flush()  # somebody was told
    assert services.values() == [b"good"]


def test_a_failure_is_raised_by_leaving_the_block(services: ProduceServices) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("no")]
    with (
        pytest.raises(DeliveryError),
        Producer(services, ProducerConfig(), clock=CLOCK, cluster="test") as one,
    ):
        one.send("t", b"v")


def test_an_unknown_outcome_is_called_unknown(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer(delivery_timeout_ms=300, request_timeout_ms=100)
    services.silent.add("produce")
    one.send("t", b"v")
    with pytest.raises(DeliveryError) as caught:
        one.flush()
    assert (caught.value.failed, caught.value.unknown) == (0, 1)
    assert "1 have an unknown outcome" in str(caught.value)


def test_a_thousand_failed_records_are_kept_and_all_are_counted(
    services: ProduceServices, producer: Make
) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("no")] * 3
    one = producer(batch_size=1_000, linger_ms=PATIENT, max_in_flight=1)
    for number in range(1_500):
        one.send("t", b"%02d" % (number % 100))
    with pytest.raises(DeliveryError) as caught:
        one.flush()
    assert caught.value.failed == 1_500
    assert len(caught.value.records) == 1_000


def test_send_and_wait_raises_the_failure_itself_and_flush_not_again(
    services: ProduceServices, producer: Make
) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("no")]
    one = producer()
    with pytest.raises(InvalidRecordError):
        one.send_and_wait("t", b"v")
    one.flush()
    services.silent.add("produce")
    hasty = producer(delivery_timeout_ms=300, request_timeout_ms=100)
    with pytest.raises(OutcomeUnknownError):
        hasty.send_and_wait("t", b"v")


def test_a_flush_that_runs_out_of_time_keeps_the_records(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    services.gate.clear()
    for number in range(7):
        one.send("t", b"%d" % number)
    with pytest.raises(FlushTimeoutError) as caught:
        one.flush(timeout=0.05)
    assert caught.value.remaining == 7
    with pytest.raises(FlushTimeoutError):
        one.flush(timeout=0)
    services.open_gate()
    one.flush(timeout=10)
    assert len(services.values()) == 7


def test_a_flush_waits_for_what_was_sent_before_it_and_not_for_what_comes_after(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.make("u")
    one = producer(linger_ms=PATIENT)
    one.send("t", b"a")
    one.flush(timeout=10)
    services.gate.clear()
    one.send("u", b"later")
    generation = one._sender.buffer.seal_all()
    assert one._sender._remaining(generation) == 1
    assert one._sender._remaining(generation - 1) == 0


def test_records_for_a_topic_deleted_meanwhile_fail_soon(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    one.send_and_wait("t", b"a")
    services.delete("t")
    one.send("t", b"b")
    with pytest.raises(DeliveryError) as caught:
        one.flush(timeout=10)
    assert isinstance(caught.value.first, UnknownTopicOrPartitionError)
    with pytest.raises(UnknownTopicOrPartitionError):
        one.send("t", b"c")


def test_a_fault_of_our_own_is_raised_and_nobody_waits_for_ever(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.make()
    one = Producer(services, ProducerConfig(), clock=CLOCK, cluster="test")
    one.send_and_wait("t", b"a")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(one._sender._core, "step", fail)
    with pytest.raises(InvariantViolationError):
        one.send_and_wait("t", b"b")
    with pytest.raises(InvariantViolationError):
        one.send("t", b"c")
    with pytest.raises(InvariantViolationError):
        one.flush()
    with pytest.raises(InvariantViolationError):
        one.close()


# --- looking -------------------------------------------------------------------------------------


def test_partitions_and_counters_can_be_looked_at(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=3)
    one = producer()
    assert one.partitions_for("t") == [0, 1, 2]
    one.send_and_wait("t", b"abc", b"k")
    metrics = one.metrics()
    assert metrics["records_acknowledged"] == 1
    assert metrics["bytes_acknowledged"] == 4
    assert metrics["buffer_bytes"] == metrics["records_unresolved"] == 0


def test_an_interruption_while_a_batch_is_sealed_loses_and_doubles_nothing(
    services: ProduceServices, producer: Make
) -> None:
    """Ctrl-C may come between any two steps of the main thread."""
    services.make()
    one = producer(linger_ms=50)
    buffer: SendBuffer = one._sender.buffer
    one.send("t", b"a")
    rows: OpenRows = buffer.open["t"]
    with buffer._lock:
        buffer._sealed.append(rows)  # and then it came
    one.send("t", b"b")
    one.flush()
    one.send("t", b"c")
    one.flush()
    assert services.values() == [b"a", b"b", b"c"]
    assert one.metrics()["buffer_bytes"] == 0
    assert buffer._used == buffer._taken == 0


def test_an_unknown_option_names_the_nearest(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer()
    one.send("t", b"short way")  # opens a batch
    with pytest.raises(UnknownOptionError, match="did you mean 'partition'"):
        one.send("t", b"v", partiton=0)  # type: ignore[call-arg]
    one.flush()
    assert services.values() == [b"short way"]
