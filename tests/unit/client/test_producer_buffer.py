"""`buffer_memory`: exact, never exceeded by more than a record, and a wait that ends in time."""

import threading
import time

import msgspec
import pyarrow as pa
import pytest

from ray_stream.client.buffer import SendBuffer
from ray_stream.config import ProducerConfig
from ray_stream.errors import BufferFullError, RecordTooLargeError
from tests.unit.client.produce_services import CLOCK, Make, ProduceServices

PATIENT = 60_000


def test_the_buffer_takes_as_many_bytes_as_it_has(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=10_000, max_block_ms=50, batch_size=3_000)
    for number in range(10):
        one.send("t", b"%01000d" % number)
    assert one.metrics()["buffer_bytes"] == 10_000
    with pytest.raises(BufferFullError) as caught:
        one.send("t", b"one too many")
    assert "buffer_memory=10000" in str(caught.value)
    assert "max_block_ms=50" in str(caught.value)
    services.open_gate()
    one.flush()
    assert services.values() == [b"%01000d" % number for number in range(10)]
    assert one.metrics()["buffer_bytes"] == 0


def test_keys_and_headers_count_and_an_empty_record_counts_as_a_byte(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(linger_ms=PATIENT)
    one.send("t", b"12345", b"123")
    assert one.metrics()["buffer_bytes"] == 8
    one.send("t", b"12345", b"123", headers=[("ü", b"1"), ("x", None)])
    assert one.metrics()["buffer_bytes"] == 8 + 8 + 4
    one.send("t", b"")
    one.send("t", None)
    assert one.metrics()["buffer_bytes"] == 8 + 8 + 4 + 2
    one.flush()
    assert one.metrics()["buffer_bytes"] == 0


def test_it_is_exceeded_by_one_record_at_most(services: ProduceServices, producer: Make) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=1_500, max_block_ms=20)
    one.send("t", bytes(1_000))
    one.send("t", bytes(1_000))
    with pytest.raises(BufferFullError):
        one.send("t", b"x")
    assert one.metrics()["buffer_bytes"] == 2_000


def test_a_record_larger_than_the_buffer_goes_through_an_empty_one(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer(buffer_memory=100)
    one.send("t", bytes(5_000))
    one.send_batch("t", [bytes(6_000), b"x"])
    one.flush()
    assert list(map(len, services.values())) == [5_000, 6_000, 1]  # type: ignore[arg-type]


def test_bytes_set_aside_for_one_topic_are_not_kept_from_another(
    services: ProduceServices, producer: Make
) -> None:
    services.make("a")
    services.make("b")
    services.gate.clear()
    one = producer(buffer_memory=10_000, max_block_ms=20, linger_ms=PATIENT)
    one.send("a", bytes(1_000))  # its open batch may take all the rest without asking
    for _ in range(9):
        one.send("b", bytes(1_000))
    with pytest.raises(BufferFullError):
        one.send("a", b"x")
    assert one.metrics()["buffer_bytes"] == 10_000
    services.open_gate()
    one.flush()
    assert len(services.values("a")) + len(services.values("b")) == 10


def test_batch_size_is_what_one_partition_of_many_gets(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=10)
    one = producer(batch_size=1_000, linger_ms=PATIENT)
    for number in range(80):
        one.send("t", bytes(90), b"%d" % number)
    assert one.metrics()["buffer_bytes"] > 7_000
    assert services.values() == [], "each partition has room for more"
    for number in range(80):
        one.send("t", bytes(90), b"%d" % number)
    one.flush()
    assert len(services.values()) == 160


def test_a_record_too_large_for_its_topic_finds_no_short_way_into_a_larger_batch(
    services: ProduceServices, producer: Make
) -> None:
    services.make(partitions=10, max_message_bytes=500)
    one = producer(batch_size=1_000, linger_ms=PATIENT)
    one.send("t", b"small", b"key")
    with pytest.raises(RecordTooLargeError):
        one.send("t", bytes(600), b"key")
    one.send("t", bytes(400), b"key")
    one.flush()
    assert len(services.values()) == 2


def test_a_full_buffer_sends_what_lingers(services: ProduceServices, producer: Make) -> None:
    services.make()
    one = producer(buffer_memory=1_000, linger_ms=PATIENT)
    for number in range(50):
        one.send("t", b"%0100d" % number)
    one.flush()
    assert len(services.values()) == 50


def test_who_waits_goes_on_as_soon_as_there_is_room(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=1_000)
    one.send("t", bytes(1_000))
    threading.Timer(0.05, services.open_gate).start()
    one.send("t", b"after")
    one.flush()
    assert services.values()[-1] == b"after"


def test_a_wait_ends_within_a_second_of_its_limit(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=10, max_block_ms=200)
    one.send("t", bytes(10))
    started = time.monotonic()
    with pytest.raises(BufferFullError):
        one.send("t", b"x")
    assert 0.2 <= time.monotonic() - started < 1.2


def test_many_threads_exceed_it_by_one_record_at_most(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=50_000, max_block_ms=50, batch_size=4_000)
    accepted = []

    def send() -> None:
        try:
            for _ in range(1_000):
                one.send("t", bytes(999), b"k")
                accepted.append(1)
        except BufferFullError:
            pass

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == 50
    assert one.metrics()["buffer_bytes"] == 50_000


def test_counting_anew_after_an_interruption_forgets_nothing(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    described = producer()._addresses.describe("t")
    config = ProducerConfig(linger_ms=PATIENT)
    buffer = SendBuffer(config, CLOCK, lambda: None, lambda: None, lambda: None)
    for name in ("a", "b", "c"):
        buffer.put(msgspec.structs.replace(described, name=name), (b"v",), 1, at_once=name != "c")
    taken = buffer.take()
    assert taken is not None
    before = buffer._used
    buffer._recount()
    assert buffer._used == before
    buffer.taken(taken.granted, 1)
    buffer.seal_all()
    while (taken := buffer.take()) is not None:
        buffer.taken(taken.granted, 1)
    buffer.release(3)
    assert buffer._used == buffer.used_bytes == 0


def test_a_large_batch_is_taken_part_by_part(services: ProduceServices, producer: Make) -> None:
    services.make(partitions=3)
    one = producer(buffer_memory=20_000)
    values = pa.array([b"%0100d" % number for number in range(3_000)])
    keys = pa.array([b"%d" % (number % 7) for number in range(3_000)])
    one.send_batch("t", pa.table({"key": keys, "value": values}))
    one.flush()
    assert sorted(services.values()) == values.to_pylist()  # type: ignore[type-var]


def test_a_batch_that_finds_no_room_says_which_rows_were_taken(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.gate.clear()
    one = producer(buffer_memory=10_000, max_block_ms=50)
    with pytest.raises(BufferFullError) as caught:
        one.send_batch("t", [b"%0100d" % number for number in range(1_000)])
    assert "rows from 100 on" in str(caught.value)
    services.open_gate()
    one.flush()
    assert services.values() == [b"%0100d" % number for number in range(100)]


def test_no_batch_of_keyed_rows_outgrows_arrows_offsets() -> None:
    config = ProducerConfig(batch_size=32 << 20, buffer_memory=64 << 30)
    buffer = SendBuffer(config, CLOCK, lambda: None, lambda: None, lambda: None)
    with ProduceServices() as services:
        services.make(partitions=1_000, max_message_bytes=1 << 20)
        topic = services._described(services.topics["t"])
    buffer.put(topic, (b"key", b"value"), 8, at_once=False)
    assert buffer.open["t"].full_at < 2**31
