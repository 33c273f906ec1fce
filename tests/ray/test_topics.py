"""Topics through a real cluster: names, partitions, changes, deletion under those who use them."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from ray_stream import Cluster, Consumer, errors

pytestmark = pytest.mark.ray


@pytest.fixture
def topic(shared: Cluster) -> Iterator[str]:
    """A topic `life` of two partitions, whatever becomes of it."""
    shared.create_topic("life", partitions=2)
    yield "life"
    if "life" in shared.topics():
        shared.delete_topic("life")


def values(cluster: Cluster, topic: str) -> list[bytes | None]:
    with cluster.consumer(topic, auto_offset_reset="earliest", until="end") as consumer:
        return [record.value for record in consumer]


def poll_until_it_fails(consumer: Consumer) -> None:
    for _ in range(30):
        consumer.poll(timeout=1)


def test_a_consumer_may_be_made_of_a_pattern(shared: Cluster, topic: str) -> None:
    with shared.producer() as producer:
        producer.send(topic, b"here")
    with shared.consumer(re.compile("li.e"), auto_offset_reset="earliest") as consumer:
        assert {one.topic for one in consumer.assignment()} == {topic}
        assert consumer.poll(timeout=30)[0].value == b"here"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_time_means_its_record_however_records_are_batched(
    shared: Cluster, topic: str, compression: Literal["zstd"] | None
) -> None:
    times = [1_000 + 10 * number for number in range(500)]
    table = pa.table({"value": [b"x" * 100] * 500, "timestamp": pa.array(times, pa.int64())})
    with shared.producer(compression_type=compression, batch_size=16_384) as producer:
        for partition in (0, 1):
            producer.send_batch(topic, table, partition=partition)
    start, end = (datetime.fromtimestamp(second, UTC) for second in (2.005, 3.0))
    for partition in (0, 1):
        found = shared.read(topic, start, end, partitions=[partition])
        assert found["timestamp"].to_pylist() == list(range(2_010, 3_000, 10))


@pytest.mark.parametrize(
    "name", ["", "x" * 250, "a/b", "..", ".", "a b", "ä", "__internal", "a\n", None, 7, b"bytes"]
)
def test_a_name_that_cannot_be_one_is_refused_by_every_call(shared: Cluster, name: object) -> None:
    calls = [shared.create_topic, shared.describe_topic, shared.delete_topic]
    for call in calls:
        with pytest.raises(errors.InvalidTopicError, match="topic name"):
            call(name)  # type: ignore[operator]
    with pytest.raises(errors.InvalidTopicError, match="topic name"):
        shared.alter_topic(name, partitions=2)  # type: ignore[arg-type]
    with shared.producer() as producer, pytest.raises(errors.InvalidTopicError):
        producer.send(name, b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize("partitions", [0, -1, 2_000_000, 1.5, True, "2"])
def test_a_number_of_partitions_that_cannot_be_is_refused(
    shared: Cluster, partitions: object
) -> None:
    with pytest.raises(errors.InvalidPartitionsError, match="partitions"):
        shared.create_topic("other", partitions=partitions)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidPartitionsError, match="partitions"):
        shared.alter_topic("standing", partitions=partitions)  # type: ignore[arg-type]
    assert "other" not in shared.topics()


def test_what_is_not_enforced_is_refused_and_nothing_is_made(shared: Cluster) -> None:
    with pytest.raises(errors.ConfigNotEnforcedError, match="retention_ms"):
        shared.create_topic("other", retention_ms=1_000)
    with pytest.raises(errors.UnknownOptionError, match="segment_bytes"):
        shared.create_topic("other", segment_byte=1)  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidReplicationFactorError, match="replica"):
        shared.create_topic("other", replication_factor=3)
    assert "other" not in shared.topics()


def test_a_name_that_is_taken_is_refused_unless_the_same_is_meant(
    shared: Cluster, topic: str
) -> None:
    with pytest.raises(errors.TopicAlreadyExistsError, match=topic):
        shared.create_topic(topic, partitions=2)
    before = shared.describe_topic(topic).topic_id
    shared.create_topic(topic, partitions=2, exist_ok=True)
    assert shared.describe_topic(topic).topic_id == before


def test_what_is_not_there_is_named(shared: Cluster) -> None:
    for call in (shared.describe_topic, shared.delete_topic):
        with pytest.raises(errors.UnknownTopicOrPartitionError, match="'nothing'"):
            call("nothing")
    with pytest.raises(errors.UnknownTopicOrPartitionError, match="'nothing'"):
        shared.alter_topic("nothing", partitions=2)
    with shared.producer() as producer, pytest.raises(errors.UnknownTopicOrPartitionError):
        producer.send_and_wait("nothing", b"x")


def test_a_topic_is_described_as_it_was_made(shared: Cluster, topic: str) -> None:
    with shared.producer() as producer:
        producer.send_and_wait(topic, b"x", partition=1)
    described = shared.describe_topic(topic)
    assert (described.name, described.replication_factor, described.dedicated) == (topic, 1, False)
    assert described.config["durability"] == "fsync"
    ends = [(one.partition, one.beginning_offset, one.end_offset) for one in described.partitions]
    assert ends == [(0, 0, 0), (1, 0, 1)]
    for one in described.partitions:
        assert one.replicas == one.isr == (one.leader,)
        assert one.offline_reason == ""


def test_a_topic_grows_and_both_old_and_new_partitions_serve(shared: Cluster, topic: str) -> None:
    with shared.producer() as producer:
        producer.send_and_wait(topic, b"before", partition=1)
        shared.alter_topic(topic, partitions=4)
        assert len(shared.describe_topic(topic).partitions) == 4
        producer.send_and_wait(topic, b"after", partition=1)
    with shared.producer() as producer:
        producer.send_and_wait(topic, b"new", partition=3)
    assert sorted(values(shared, topic), key=str) == [b"after", b"before", b"new"]
    with pytest.raises(errors.InvalidPartitionsError, match="below the 4"):
        shared.alter_topic(topic, partitions=3)


def test_durability_changes_with_the_topic_in_use(shared: Cluster, topic: str) -> None:
    with shared.producer() as producer:
        assert producer.send_and_wait(topic, b"1", partition=0).durability == "fsync"
        shared.alter_topic(topic, durability="replicated")
        assert producer.send_and_wait(topic, b"2", partition=0).durability == "replicated"
        shared.alter_topic(topic, durability="fsync")
        assert producer.send_and_wait(topic, b"3", partition=0).durability == "fsync"
    assert shared.describe_topic(topic).config["durability"] == "fsync"
    assert values(shared, topic) == [b"1", b"2", b"3"]


def test_a_topic_deleted_under_its_users_is_said_to_both(shared: Cluster, topic: str) -> None:
    with shared.consumer(topic, auto_offset_reset="earliest") as consumer:
        producer = shared.producer(delivery_timeout_ms=10_000)
        producer.send_and_wait(topic, b"x")
        assert consumer.poll(timeout=30)
        shared.delete_topic(topic)
        assert topic not in shared.topics()
        with pytest.raises(errors.RayStreamError) as sent:
            producer.send_and_wait(topic, b"y")
        assert isinstance(
            sent.value, errors.UnknownTopicOrPartitionError | errors.UnknownTopicIdError
        )
        with pytest.raises((errors.UnknownTopicOrPartitionError, errors.UnknownTopicIdError)):
            poll_until_it_fails(consumer)
        producer.close()


def test_a_topic_made_anew_is_another_one(shared: Cluster, topic: str) -> None:
    with shared.producer() as producer:
        producer.send_and_wait(topic, b"old", partition=0)
        before = shared.describe_topic(topic).topic_id
        shared.delete_topic(topic)
        shared.create_topic(topic)
        assert shared.describe_topic(topic).topic_id != before
        assert values(shared, topic) == []
        # What a producer meant for the one it knew is not written to another; then it knows.
        with pytest.raises(errors.UnknownTopicIdError, match="made anew"):
            producer.send_and_wait(topic, b"for the old one")
        assert producer.send_and_wait(topic, b"new").offset == 0
    assert values(shared, topic) == [b"new"]


def test_the_files_of_a_deleted_topic_go(shared: Cluster, topic: str, shared_dir: Path) -> None:
    root = shared_dir / shared.name
    topic_id = shared.describe_topic(topic).topic_id
    assert list(root.glob(f"*/{topic_id}-*"))
    shared.delete_topic(topic)
    assert not list(root.glob(f"*/{topic_id}-[0-9]"))
