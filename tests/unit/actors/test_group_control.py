"""What a coordinator's broker and its operator are told, and when."""

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.actors.group_control import GroupControl, seen_topics
from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS, TopicConfig
from ray_stream.groups.commands import CommittedOffset, OffsetCommit, SeenTopic
from ray_stream.groups.routing import partition_of
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import Lock, Storage
from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerMetadata,
    PartitionMetadata,
    TopicMetadata,
)
from ray_stream.rpc.hosting import (
    LeadPartitions,
    PartitionsLed,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import MetadataResponse
from ray_stream.testing.memory import MemoryStorage
from ray_stream.testing.scheduler import Scheduler, VirtualClock

TOPIC = "c" * 32
NUMBER = partition_of("planners", COORDINATOR_PARTITIONS)
ROOT = "/data"


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


def lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    assert taken is not None
    return taken


class Life:
    """One life of a coordinator's process, which leads one partition."""

    def __init__(self, storage: MemoryStorage, epoch: int) -> None:
        clock = VirtualClock(Scheduler(random.Random(0)))
        self.host = PartitionHost(clock, self._sync)
        self.partitions = PartitionControl(
            self.host,
            storage,
            clock,
            boot_id="boot",
            interval_ms=1_000,
            locking=lock,
            spread=one_by_one,
        )
        self.groups = GroupHost(
            self.host,
            storage,
            clock,
            want_metadata=lambda: None,
            joined=lambda *_: None,
            snapshot_records=1,
        )
        self.control = GroupControl(self.partitions, self.groups)
        spec = AssignedPartition(
            TOPIC, CONSUMER_OFFSETS_TOPIC, NUMBER, "dir", "groups", epoch == 0, TopicConfig(), 0, 16
        )
        self.partitions.prepare(PreparePartitions({"dir": ROOT}, [spec]), lambda _: None)
        self.led: list[PartitionsLed | errors.RayStreamError] = []
        self.control.lead(LeadPartitions([(TOPIC, NUMBER, epoch)]), self.led.append)

    def _sync(self, job: SyncJob, done: Callable[[errors.StorageError | None], None]) -> None:
        job.run()
        done(None)

    def commit(self, offset: int) -> None:
        """Of somebody who is in no group: one fact, and a snapshot behind it."""
        offsets = [CommittedOffset("f" * 32, 0, offset)]
        self.groups.ask(OffsetCommit("planners", "", -1, offsets), lambda _: None)
        self.host.end_turn()
        self.groups.end_turn()

    def close(self) -> None:
        self.control.release(ReleasePartitions([(TOPIC, NUMBER)], False, {}, []), lambda _: None)


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    storage.make_directory(ROOT)
    return storage


def images(storage: MemoryStorage) -> list[str]:
    path = f"{ROOT}/{TOPIC}-{NUMBER}"
    return [f"{path}/{one}" for one in storage.list_directory(path) if one.endswith(".image")]


def test_a_damaged_snapshot_of_a_coordinators_journal_is_told_once(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(storage, 0)
    life.commit(7)
    life.commit(8)
    life.control.look()
    life.close()
    assert caplog.messages == []
    newest = images(storage)[-1]
    storage.flip_bit(newest, 50)
    later = Life(storage, 1)
    later.control.look()
    later.control.look()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert newest.rpartition("/")[2] in record.getMessage()
    assert f"groups {NUMBER}" in record.getMessage()


def test_a_snapshot_that_could_not_be_kept_is_told(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(storage, 0)
    storage.faults.fail_sync(path_part=".image")
    life.commit(7)
    life.control.look()
    life.control.look()
    (said,) = caplog.messages
    assert "no snapshot" in said


def test_a_partition_whose_facts_cannot_be_replayed_is_not_led(storage: MemoryStorage) -> None:
    life = Life(storage, 0)
    for offset in range(3):
        life.commit(offset)
    life.close()
    for image in images(storage):
        storage.flip_bit(image, 50)
    later = Life(storage, 1)
    (answer,) = later.led
    assert isinstance(answer, PartitionsLed)
    (served,) = answer.served
    assert "CorruptMetadataError" in served.offline_reason
    assert later.groups.machines() == {}


def topic(name: str, topic_id: str, leaders: Sequence[int]) -> TopicMetadata:
    partitions = [
        PartitionMetadata(number, leader, 0, "host", [leader], [leader], "")
        for number, leader in enumerate(leaders)
    ]
    return TopicMetadata(name, topic_id, 1, False, TopicConfig(), 0, partitions)


def test_groups_see_every_topic_but_the_internal_ones_with_its_leaders_nodes() -> None:
    topics = [topic("flights", "f" * 32, [5, -1]), topic(CONSUMER_OFFSETS_TOPIC, TOPIC, [5])]
    brokers = [BrokerMetadata(5, 1, "node-a", "h", True, "actor", [])]
    shown = MetadataResponse("cluster", 1, 3, topics, brokers)
    assert seen_topics(shown) == [SeenTopic("f" * 32, "flights", ["node-a", ""])]
