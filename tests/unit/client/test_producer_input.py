"""What a producer refuses, each with an error of its own that says what to do; nothing is hurt."""

import re
import time
from typing import Any

import pytest

from ray_stream.errors import (
    ControllerNotAvailableError,
    InvalidArgumentError,
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    RayStreamError,
    RecordTooLargeError,
    SerializationError,
    TimeoutExpiredError,
    UnknownTopicOrPartitionError,
)
from tests.unit.client.produce_services import Make, ProduceServices

REFUSED: list[tuple[dict[str, Any], type[RayStreamError], str]] = [
    ({"topic": ""}, InvalidTopicError, "1 to 249"),
    ({"topic": "x" * 250}, InvalidTopicError, "1 to 249"),
    ({"topic": "a/b"}, InvalidTopicError, "'a/b'"),
    ({"topic": ".."}, InvalidTopicError, "'..'"),
    ({"topic": "__internal"}, InvalidTopicError, "internal"),
    ({"topic": 5}, InvalidTopicError, "int"),
    ({"topic": ["t"]}, InvalidTopicError, "list"),
    ({"topic": "missing"}, UnknownTopicOrPartitionError, "create_topic('missing')"),
    ({"partition": 2}, UnknownTopicOrPartitionError, "0 to 1"),
    ({"partition": -1}, UnknownTopicOrPartitionError, "0 to 1"),
    ({"partition": "0"}, InvalidArgumentError, "partition='0'"),
    ({"partition": True}, InvalidArgumentError, "partition=True"),
    ({"value": "text"}, SerializationError, "value_serializer"),
    ({"value": 5}, SerializationError, "int is not bytes"),
    ({"value": {}}, SerializationError, "dict is not bytes"),
    ({"key": "text"}, SerializationError, "key_serializer"),
    ({"key": 5}, SerializationError, "int is not bytes"),
    ({"timestamp_ms": -1}, InvalidTimestampError, "timestamp_ms=-1"),
    ({"timestamp_ms": 2**63}, InvalidTimestampError, "2**63-1"),
    ({"timestamp_ms": 1.5}, InvalidArgumentError, "whole milliseconds"),
    ({"timestamp_ms": True}, InvalidArgumentError, "whole milliseconds"),
    ({"headers": "h"}, InvalidRecordError, "list of (name, value)"),
    ({"headers": 5}, InvalidRecordError, "list of (name, value)"),
    ({"headers": ["h"]}, InvalidRecordError, "pair of a name"),
    ({"headers": [("h",)]}, InvalidRecordError, "pair of a name"),
    ({"headers": [(b"h", b"")]}, InvalidRecordError, "pair of a name"),
    ({"headers": [("h", "text")]}, InvalidRecordError, "bytes or None"),
    ({"headers": [("\ud800", b"")]}, InvalidRecordError, "UTF-8"),
    ({"headers": {"h": 1}}, InvalidRecordError, "bytes or None"),
    ({"on_delivery": "call me"}, InvalidArgumentError, "on_delivery"),
    ({"value": bytes(1_001)}, RecordTooLargeError, "max_message_bytes=1000"),
    ({"value": bytes(990), "key": bytes(11)}, RecordTooLargeError, "1001 bytes"),
    (
        {"value": bytes(990), "headers": [("name", b"1234567")]},
        RecordTooLargeError,
        "key, value and headers",
    ),
]


@pytest.mark.parametrize(
    ("given", "error", "said"), REFUSED, ids=[f"{given!s:.40}" for given, _, _ in REFUSED]
)
def test_bad_input_is_refused_where_it_is_given(
    services: ProduceServices,
    producer: Make,
    given: dict[str, Any],
    error: type[RayStreamError],
    said: str,
) -> None:
    services.make(partitions=2, max_message_bytes=1_000)
    one = producer()
    arguments = {"topic": "t", "value": b"v", **given}
    with pytest.raises(error, match=re.escape(said)) as caught:
        one.send(**arguments)
    assert "\n" not in str(caught.value)
    if "on_delivery" not in given:
        with pytest.raises(error):
            one.send_and_wait(**arguments)
    one.send("t", b"good")
    one.flush()
    assert services.values() == [b"good"], "nothing else was hurt"


def test_the_largest_record_that_is_allowed_goes_through(
    services: ProduceServices, producer: Make
) -> None:
    services.make(max_message_bytes=1_000)
    one = producer()
    one.send("t", bytes(1_000))
    one.send("t", b"v" * 990, b"k" * 10)
    one.flush()
    assert [len(value or b"") for value in services.values()] == [1_000, 990]


def test_a_record_that_no_batch_could_hold_is_refused(
    services: ProduceServices, producer: Make
) -> None:
    services.make(max_message_bytes=1_024, max_batch_bytes=1_024)
    one = producer(linger_ms=60_000)
    for fine in (bytes(500), b"x"):
        one.send("t", fine)
        with pytest.raises(RecordTooLargeError, match="max_batch_bytes=1024"):
            one.send("t", bytes(900))
    with pytest.raises(RecordTooLargeError, match="max_batch_bytes=1024"):
        one.send_batch("t", [b"a", bytes(1_024)])
    one.flush()
    assert services.values() == [bytes(500), b"x"]


def test_a_limit_that_was_raised_meanwhile_is_found_out(
    services: ProduceServices, producer: Make
) -> None:
    services.make(max_message_bytes=100)
    one = producer()
    with pytest.raises(RecordTooLargeError):
        one.send("t", bytes(500))
    services.configure("t", max_message_bytes=1_000)
    one.send("t", bytes(500))
    services.configure("t", max_message_bytes=2_000)
    one.send_batch("t", [bytes(1_500)])
    one.flush()
    assert len(services.values()) == 2


def test_a_partition_that_was_added_meanwhile_is_found_out(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()
    with pytest.raises(UnknownTopicOrPartitionError):
        one.send("t", b"a", partition=1)
    services.add_partition("t")
    one.send("t", b"b", partition=1)
    one.flush()
    assert [record.partition for record in services.written()] == [1]


def test_a_topic_that_is_made_after_a_refusal_is_found(
    services: ProduceServices, producer: Make
) -> None:
    one = producer()
    with pytest.raises(UnknownTopicOrPartitionError):
        one.send("t", b"a")
    services.make()
    one.send("t", b"b")
    one.flush()
    assert services.values() == [b"b"]


def test_a_topic_that_cannot_be_looked_up_ends_in_time(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    services.silent.add("metadata")
    one = producer(max_block_ms=100)
    started = time.monotonic()
    with pytest.raises(TimeoutExpiredError, match="max_block_ms=100"):
        one.send("t", b"v")
    with pytest.raises(TimeoutExpiredError):
        one.partitions_for("t")
    assert time.monotonic() - started < 2.2


def test_a_controller_that_moves_is_asked_again(services: ProduceServices, producer: Make) -> None:
    services.make()
    services.instead["metadata"] = [ControllerNotAvailableError("moving")] * 2
    one = producer()
    one.send_and_wait("t", b"v")
    assert services.values() == [b"v"]


@pytest.mark.parametrize("answer", [5, -1, "0", None, True, 1.0])
def test_a_partitioner_that_says_nonsense_is_told_so(
    services: ProduceServices, producer: Make, answer: object
) -> None:
    services.make(partitions=2)
    one = producer(partitioner=lambda _key, _partitions: answer)
    with pytest.raises(InvalidArgumentError, match="the partitioner returned"):
        one.send("t", b"v", b"k")
    with pytest.raises(InvalidArgumentError, match="the partitioner returned"):
        one.send_batch("t", [b"v"])


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(producer: Make, timeout: object) -> None:
    one = producer()
    with pytest.raises(InvalidArgumentError):
        one.flush(timeout=timeout)  # type: ignore[arg-type]
