"""The cluster as a fold of its facts.

Owns: what is durably true: topics, where partitions live, epochs, directories, tombstones.
Refuses: what is only true now (who lives, who serves: `liveness`), decisions, bytes.

`Image.apply` is the only mutation and runs alike on a fresh fact and on a replayed one. A fact
that contradicts the image is `InvariantViolationError`: it was checked before it was written, and
its checksum held, so the fault is ours and going on would make it worse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_stream.config import TopicConfig
from ray_stream.errors import InvariantViolationError
from ray_stream.metadata.commands import PartitionKey
from ray_stream.metadata.records import (
    BrokerNamed,
    ClusterFormatted,
    ControllerClaimed,
    DeletionConfirmed,
    DirectoryFound,
    DirectoryOrdered,
    LeadershipClaimed,
    PartitionOffline,
    PartitionOnline,
    PartitionsOpened,
    PartitionsPlaced,
    Record,
    TombstoneKept,
    TopicAdded,
    TopicConfigured,
    TopicRemoved,
    TopicsRetired,
)
from ray_stream.types import NO_EPOCH

RETIRED_MAX = 4096
"""Ids of deleted topics to remember, so that a late copy of a request cannot revive one."""


@dataclass(slots=True)
class Partition:
    """One partition of a living topic."""

    directory_id: str
    slot: int
    """Balanced by its remainder over a node's actors; `DEDICATED_SLOT`: an actor of its own."""
    leader_epoch: int = NO_EPOCH
    opened: bool = False
    """Served at least once: from then on missing files are a loss."""
    offline_reason: str = ""
    """Not empty: a sync failed, and no repair has ended that."""
    repaired_epoch: int = NO_EPOCH
    """Failures reported by leaders up to this epoch are over."""


@dataclass(slots=True)
class Topic:
    """One living topic."""

    topic_id: str
    name: str
    dedicated: bool
    replication_factor: int
    config: TopicConfig
    config_version: int
    created_ms: int
    partitions: list[Partition] = field(default_factory=list)


@dataclass(slots=True)
class Tombstone:
    """A deleted topic whose files are not all gone."""

    name: str
    holders: dict[int, str]
    """Partition to directory id, for each deletion that is not confirmed."""


@dataclass(slots=True)
class Directory:
    """One broker directory that the log knows."""

    broker_id: int
    """The broker for which it was made: its home."""
    host_id: str
    """Where it was last reported, or is to be made."""
    found: bool
    """Reported at least once; before that it may not exist, and holds nothing."""
    slots: dict[PartitionKey, int] = field(default_factory=dict)
    """The partitions of living topics in it, with their slot numbers."""
    deleting: dict[PartitionKey, None] = field(default_factory=dict)
    """The partitions of tombstones in it."""


@dataclass(slots=True)
class Image:
    """Everything that the metadata log says."""

    cluster_id: str = ""
    metadata_directory_id: str = ""
    created_ms: int = 0
    controller_epoch: int = NO_EPOCH
    next_broker_id: int = 0
    directories: dict[str, Directory] = field(default_factory=dict)
    topics: dict[str, Topic] = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
    """Name to id, living topics only."""
    tombstones: dict[str, Tombstone] = field(default_factory=dict)
    retired: dict[str, None] = field(default_factory=dict)
    """Ids of topics that are gone without a trace, oldest first."""

    def apply(self, record: Record) -> None:
        """Fold one fact in.

        Raises:
            InvariantViolationError: it contradicts the facts before it; the image is unusable.
        """
        _APPLY[type(record)](self, record)

    def topic_named(self, name: str) -> Topic | None:
        """The living topic of that name."""
        topic_id = self.topic_ids.get(name)
        return None if topic_id is None else self.topics[topic_id]

    def partition(self, topic_id: str, partition: int) -> Partition | None:
        """The partition, unless its topic is gone or has fewer."""
        topic = self.topics.get(topic_id)
        if topic is None or not 0 <= partition < len(topic.partitions):
            return None
        return topic.partitions[partition]

    def knows_topic_id(self, topic_id: str) -> bool:
        """Whether the id is, or as far as remembered was, a topic's."""
        return topic_id in self.topics or topic_id in self.tombstones or topic_id in self.retired


# --- folding -------------------------------------------------------------------------------------


def _format(image: Image, record: ClusterFormatted) -> None:
    _must(not image.cluster_id, "the cluster is formatted twice")
    image.cluster_id = record.cluster_id
    image.metadata_directory_id = record.metadata_directory_id
    image.created_ms = record.created_ms
    image.next_broker_id = record.broker_id + 1
    image.directories[record.metadata_directory_id] = Directory(
        record.broker_id, record.host_id, found=True
    )


def _claim_controller(image: Image, record: ControllerClaimed) -> None:
    _must(record.epoch > image.controller_epoch, f"controller epoch {record.epoch} is not new")
    image.controller_epoch = record.epoch


def _name_broker(image: Image, record: BrokerNamed) -> None:
    _must(record.broker_id >= image.next_broker_id, f"broker id {record.broker_id} given twice")
    image.next_broker_id = record.broker_id + 1


def _order_directory(image: Image, record: DirectoryOrdered) -> None:
    _must(record.directory_id not in image.directories, f"{record.directory_id} ordered twice")
    _must(record.broker_id < image.next_broker_id, f"broker id {record.broker_id} is unknown")
    image.directories[record.directory_id] = Directory(
        record.broker_id, record.host_id, found=False
    )


def _find_directory(image: Image, record: DirectoryFound) -> None:
    directory = _directory(image, record.directory_id)
    directory.host_id = record.host_id
    directory.found = True


def _add_topic(image: Image, record: TopicAdded) -> None:
    _must(not image.knows_topic_id(record.topic_id), f"topic id {record.topic_id} is not new")
    _must(record.name not in image.topic_ids, f"topic name {record.name} is taken")
    image.topics[record.topic_id] = Topic(
        record.topic_id,
        record.name,
        record.dedicated,
        record.replication_factor,
        record.config,
        record.config_version,
        record.created_ms,
    )
    image.topic_ids[record.name] = record.topic_id


def _place(image: Image, record: PartitionsPlaced) -> None:
    partitions = _topic(image, record.topic_id).partitions
    _must(record.first == len(partitions), f"{record.topic_id} does not grow at its end")
    directories = [_directory(image, directory_id) for directory_id in record.directories]
    for number, (index, slot) in enumerate(record.places, record.first):
        _must(0 <= index < len(directories), f"{record.topic_id}-{number} is placed nowhere")
        directories[index].slots[record.topic_id, number] = slot
        partitions.append(Partition(record.directories[index], slot))


def _configure(image: Image, record: TopicConfigured) -> None:
    topic = _topic(image, record.topic_id)
    _must(record.config_version > topic.config_version, f"{topic.name}: config goes back")
    topic.config = record.config
    topic.config_version = record.config_version


def _remove_topic(image: Image, record: TopicRemoved) -> None:
    topic = _topic(image, record.topic_id)
    del image.topics[record.topic_id]
    del image.topic_ids[topic.name]
    holders = {}
    for number, partition in enumerate(topic.partitions):
        directory = image.directories[partition.directory_id]
        del directory.slots[record.topic_id, number]
        directory.deleting[record.topic_id, number] = None
        holders[number] = partition.directory_id
    image.tombstones[record.topic_id] = Tombstone(topic.name, holders)


def _confirm_deleted(image: Image, record: DeletionConfirmed) -> None:
    for topic_id, numbers in record.partitions:
        tombstone = image.tombstones.get(topic_id)
        if tombstone is None:
            raise _contradiction(f"topic {topic_id} is deleted without a tombstone")
        for number in numbers:
            directory_id = tombstone.holders.pop(number, None)
            if directory_id is None:
                raise _contradiction(f"the deletion of {topic_id}-{number} is confirmed twice")
            del image.directories[directory_id].deleting[topic_id, number]
        if not tombstone.holders:
            del image.tombstones[topic_id]
            _retire(image, TopicsRetired([topic_id]))


def _claim_leadership(image: Image, record: LeadershipClaimed) -> None:
    for topic_id, numbers, epochs in record.claims:
        _must(len(numbers) == len(epochs), f"{topic_id}: not one epoch for each partition")
        for number, epoch in zip(numbers, epochs, strict=True):
            partition = _partition(image, topic_id, number)
            _must(epoch > partition.leader_epoch, f"{topic_id}-{number}: leader epoch {epoch}")
            partition.leader_epoch = epoch


def _open(image: Image, record: PartitionsOpened) -> None:
    for topic_id, numbers in record.partitions:
        for number in numbers:
            _partition(image, topic_id, number).opened = True


def _take_offline(image: Image, record: PartitionOffline) -> None:
    _must(record.reason, f"{record.topic_id}-{record.partition} is offline without a reason")
    _partition(image, record.topic_id, record.partition).offline_reason = record.reason


def _bring_online(image: Image, record: PartitionOnline) -> None:
    partition = _partition(image, record.topic_id, record.partition)
    partition.offline_reason = ""
    partition.repaired_epoch = record.leader_epoch


def _keep_tombstone(image: Image, record: TombstoneKept) -> None:
    _must(not image.knows_topic_id(record.topic_id), f"topic id {record.topic_id} is not new")
    tombstone = Tombstone(record.name, {})
    for directory_id, numbers in record.holders:
        directory = _directory(image, directory_id)
        for number in numbers:
            tombstone.holders[number] = directory_id
            directory.deleting[record.topic_id, number] = None
    image.tombstones[record.topic_id] = tombstone


def _retire(image: Image, record: TopicsRetired) -> None:
    for topic_id in record.topic_ids:
        image.retired[topic_id] = None
    while len(image.retired) > RETIRED_MAX:
        del image.retired[next(iter(image.retired))]


def _topic(image: Image, topic_id: str) -> Topic:
    topic = image.topics.get(topic_id)
    if topic is None:
        raise _contradiction(f"there is no topic {topic_id}")
    return topic


def _partition(image: Image, topic_id: str, number: int) -> Partition:
    partition = image.partition(topic_id, number)
    if partition is None:
        raise _contradiction(f"there is no partition {topic_id}-{number}")
    return partition


def _directory(image: Image, directory_id: str) -> Directory:
    directory = image.directories.get(directory_id)
    if directory is None:
        raise _contradiction(f"there is no directory {directory_id}")
    return directory


_APPLY: dict[type[Record], Callable[[Image, Any], None]] = {
    ClusterFormatted: _format,
    ControllerClaimed: _claim_controller,
    BrokerNamed: _name_broker,
    DirectoryOrdered: _order_directory,
    DirectoryFound: _find_directory,
    TopicAdded: _add_topic,
    PartitionsPlaced: _place,
    TopicConfigured: _configure,
    TopicRemoved: _remove_topic,
    DeletionConfirmed: _confirm_deleted,
    LeadershipClaimed: _claim_leadership,
    PartitionsOpened: _open,
    PartitionOffline: _take_offline,
    PartitionOnline: _bring_online,
    TombstoneKept: _keep_tombstone,
    TopicsRetired: _retire,
}


def snapshot(image: Image) -> Iterator[Record]:
    """Facts which, applied to an empty image, rebuild an equal one."""
    if not image.cluster_id:
        return
    voter = image.directories[image.metadata_directory_id]
    yield ClusterFormatted(
        image.cluster_id,
        image.metadata_directory_id,
        voter.broker_id,
        voter.host_id,
        image.created_ms,
    )
    if image.controller_epoch >= 0:
        yield ControllerClaimed(image.controller_epoch)
    if image.next_broker_id > voter.broker_id + 1:
        yield BrokerNamed(image.next_broker_id - 1)
    for directory_id, directory in image.directories.items():
        if directory_id == image.metadata_directory_id:
            continue
        yield DirectoryOrdered(directory_id, directory.broker_id, directory.host_id)
        if directory.found:
            yield DirectoryFound(directory_id, directory.host_id)
    if image.retired:
        yield TopicsRetired(list(image.retired))
    for topic in image.topics.values():
        yield from _topic_facts(topic)
    for topic_id, tombstone in image.tombstones.items():
        yield _tombstone_fact(topic_id, tombstone)


def _tombstone_fact(topic_id: str, tombstone: Tombstone) -> Record:
    holders: dict[str, list[int]] = {}
    for number, directory_id in tombstone.holders.items():
        holders.setdefault(directory_id, []).append(number)
    return TombstoneKept(topic_id, tombstone.name, list(holders.items()))


def _topic_facts(topic: Topic) -> Iterator[Record]:
    topic_id, partitions = topic.topic_id, topic.partitions
    yield TopicAdded(
        topic_id,
        topic.name,
        topic.dedicated,
        topic.replication_factor,
        topic.config,
        topic.config_version,
        topic.created_ms,
    )
    indices = {directory_id: i for i, directory_id in enumerate(_directories_of(topic))}
    places = [(indices[partition.directory_id], partition.slot) for partition in partitions]
    yield PartitionsPlaced(topic_id, 0, list(indices), places)
    led = [n for n, partition in enumerate(partitions) if partition.leader_epoch != NO_EPOCH]
    if led:
        epochs = [partitions[number].leader_epoch for number in led]
        yield LeadershipClaimed([(topic_id, led, epochs)])
    opened = [number for number, partition in enumerate(partitions) if partition.opened]
    if opened:
        yield PartitionsOpened([(topic_id, opened)])
    for number, partition in enumerate(partitions):
        if partition.repaired_epoch != NO_EPOCH:
            yield PartitionOnline(topic_id, number, partition.repaired_epoch)
        if partition.offline_reason:
            yield PartitionOffline(topic_id, number, partition.offline_reason)


def _directories_of(topic: Topic) -> list[str]:
    return list(dict.fromkeys(partition.directory_id for partition in topic.partitions))


def _must(truth: object, otherwise: str) -> None:
    if not truth:
        raise _contradiction(otherwise)


def _contradiction(what: str) -> InvariantViolationError:
    return InvariantViolationError(f"a metadata record contradicts the ones before it: {what}")
