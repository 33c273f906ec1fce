"""What a lone record is promised that goes out from its caller's thread: the same as any other."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_stream.client.express import LANES_MAX
from ray_stream.client.producer import Producer
from ray_stream.errors import ClosedError, InvalidRecordError, RayStreamError
from ray_stream.rpc.messages import ProduceRequest
from ray_stream.types import RecordMetadata
from tests.unit.client.produce_services import Make, ProduceServices

PATIENT_S = 20.0


class Watched(ProduceServices):
    """Notes in which thread each request is made, and interrupts some."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.interrupt: str = ""
        """ "before" or "after" the next request of the watched thread is written."""

    def produce(self, request: ProduceRequest, reply: Callable[[Any], None]) -> None:
        self.threads.append(threading.get_ident())
        mine = threading.current_thread() is threading.main_thread()
        interrupt, self.interrupt = (self.interrupt, "") if mine else ("", self.interrupt)
        if interrupt == "before":
            raise KeyboardInterrupt
        super().produce(request, reply)
        if interrupt == "after":
            raise KeyboardInterrupt

    @property
    def mine(self) -> int:
        """Requests made in this thread."""
        return self.threads.count(threading.get_ident())


@pytest.fixture
def services() -> Any:  # noqa: ANN401 - a fixture in place of another
    with Watched() as made:
        yield made


def until_express(services: Watched, one: Producer) -> int:
    """Send records until one went out from here; how many were sent."""
    for count in range(1, 1_000):
        before = services.mine
        one.send_and_wait("t", b"first")
        if services.mine > before:
            return count
    raise AssertionError("no record ever goes out from its caller's thread")


def test_a_lone_record_goes_out_from_its_callers_thread(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0)
    until_express(services, one)
    before = services.mine
    for number in range(5):
        assert one.send_and_wait("t", b"%d" % number).durability == "fsync"
    assert services.mine == before + 5
    assert services.values()[-5:] == [b"%d" % number for number in range(5)]


def test_records_keep_their_order_whichever_way_they_go(services: Watched, producer: Make) -> None:
    services.make(partitions=2)
    one = producer(linger_ms=0)
    sent: dict[int, list[bytes]] = {0: [], 1: []}
    for number in range(3_000):
        place, value = number % 3 % 2, b"%d" % number
        if number % 7:
            one.send("t", value, partition=place)
            sent[place].append(value)
        else:
            one.send_batch("t", [value, value], partition=place)
            sent[place] += [value, value]
        if not number % 100:
            one.flush()
    one.flush()
    assert services.mine, "none went out from here"
    for place, values in sent.items():
        assert [one.value for one in services.written() if one.partition == place] == values


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_record_whose_caller_is_interrupted_is_delivered_once(
    services: Watched, producer: Make, when: str
) -> None:
    services.make()
    one = producer(linger_ms=0)
    count = until_express(services, one)
    services.interrupt = when
    with pytest.raises(KeyboardInterrupt):
        one.send("t", b"interrupted")
    one.send("t", b"next")
    one.flush()
    assert services.values() == [b"first"] * count + [b"interrupted", b"next"]
    assert one.metrics()["buffer_bytes"] == 0


def test_a_flush_waits_for_what_went_alone(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0)
    until_express(services, one)
    services.gate.clear()
    before = services.mine
    one.send("t", b"held back")
    assert services.mine == before + 1
    assert one.metrics()["records_unresolved"] == 1
    assert one.metrics()["buffer_bytes"] == len(b"held back")
    with pytest.raises(RayStreamError, match="1 record"):
        one.flush(timeout=0.05)
    services.open_gate()
    one.flush()
    assert services.values()[-1] == b"held back"


def test_no_more_go_alone_than_may_be_under_way(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0, max_in_flight=2)
    until_express(services, one)
    services.gate.clear()
    before = services.mine
    for number in range(6):
        one.send("t", b"%d" % number)
    assert services.mine <= before + 2
    services.open_gate()
    one.flush()
    assert services.values()[-6:] == [b"%d" % number for number in range(6)]


def test_a_refusal_is_told_and_the_next_record_goes_on(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0)
    until_express(services, one)
    services.topics["t"].leaders[0].refusals.append(InvalidRecordError("no"))
    with pytest.raises(InvalidRecordError):
        one.send_and_wait("t", b"refused")
    assert one.send_and_wait("t", b"good").offset >= 0
    assert services.values()[-1] == b"good"


def test_a_callback_is_told_and_may_send(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0)
    until_express(services, one)
    told: list[RecordMetadata | None] = []
    done = threading.Event()

    def again(metadata: RecordMetadata | None, error: RayStreamError | None) -> None:
        assert error is None
        told.append(metadata)
        one.send("t", b"from a callback", on_delivery=lambda *_: done.set())

    one.send("t", b"told", on_delivery=again)
    assert done.wait(PATIENT_S)
    assert told[0] is not None
    assert services.values()[-2:] == [b"told", b"from a callback"]


def test_a_full_buffer_holds_lone_records_back(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0, buffer_memory=4_000, batch_size=1_000, max_block_ms=500)
    until_express(services, one)
    services.gate.clear()
    for _ in range(4):
        one.send("t", b"x" * 1_000)
    with pytest.raises(RayStreamError, match="stayed full"):
        one.send("t", b"x")
    assert one.metrics()["buffer_bytes"] <= 4_000
    services.open_gate()
    one.flush()


def test_a_closed_producer_takes_no_lone_record(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0)
    until_express(services, one)
    one.close()
    with pytest.raises(ClosedError):
        one.send("t", b"late")


def test_a_lone_record_that_is_too_large_for_its_topic_is_refused(
    services: Watched, producer: Make
) -> None:
    services.make(max_message_bytes=2_000)
    one = producer(linger_ms=0)
    until_express(services, one)
    with pytest.raises(RayStreamError, match="max_message_bytes"):
        one.send("t", b"x" * 5_000)
    one.flush()


def test_what_nobody_answers_times_out(services: Watched, producer: Make) -> None:
    services.make()
    one = producer(linger_ms=0, request_timeout_ms=50, delivery_timeout_ms=200, retry_backoff_ms=10)
    until_express(services, one)
    services.silent.add("produce")
    before = services.mine
    one.send("t", b"unanswered")
    assert services.mine == before + 1
    with pytest.raises(RayStreamError, match="1 unknown"):
        one.flush(PATIENT_S)
    services.silent.clear()


def test_many_partitions_share_few_passes(services: Watched, producer: Make) -> None:
    services.make(partitions=3 * LANES_MAX)
    one = producer(linger_ms=0)
    for _ in range(3):
        for partition in range(3 * LANES_MAX):
            one.send_and_wait("t", b"%d" % partition, partition=partition)
    before = services.mine
    for _ in range(3):
        one.send_and_wait("t", b"0", partition=0)
    assert services.mine > before, "the partition that is used has a pass"
    assert len(one._sender.express._lanes) <= LANES_MAX
    one.flush()
    assert len(services.values()) == 9 * LANES_MAX + 3
